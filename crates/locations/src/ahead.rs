//! Reads ranges that were named beforehand, with the next ones fetched in the background.
//!
//! A lane is a list of ranges that are read in order, such as the chunks of one column. Its ranges
//! are merged where they are close together, and divided into pieces of at most [`PIECE_BYTES`]. A
//! lane holds the piece that is read, the one before it and [`AHEAD`] after it; memory is bounded
//! by that, whatever the size of the object. Small columns share a lane: then the pieces of a whole
//! group of ranges are held, and the caller sees to it that a group is small.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::LocationError;
use crate::remote::Object;
use crate::retry::{Pending, start, wait};

/// The most bytes of one request.
pub const PIECE_BYTES: u64 = 8 << 20;
/// Pieces of a lane that are fetched while one is read.
const AHEAD: usize = 3;
/// Ranges with at most this between them are one request.
const MERGED_GAP: u64 = 64 << 10;

/// Ranges of an object, read lane by lane.
#[derive(Debug)]
pub(crate) struct Lanes {
    object: Arc<Object>,
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    /// In order, without overlap.
    pieces: Vec<Piece>,
    /// Whether the pieces of a group are read in turns.
    shared: bool,
    slots: Mutex<Slots>,
}

/// A range that one request fetches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    /// Groups are counted; in a shared lane the pieces of one are kept together.
    group: usize,
}

#[derive(Debug, Default)]
struct Slots {
    held: BTreeMap<usize, Slot>,
    /// The last group that was reached.
    newest: usize,
}

#[derive(Debug)]
enum Slot {
    Pending(Pending<Bytes>),
    Here(Bytes),
}

impl Lanes {
    /// Each lane is a list of groups of ranges: the ranges of a group are read in turns, the groups
    /// one after another.
    pub(crate) fn new(object: Arc<Object>, lanes: Vec<Vec<Vec<Range<u64>>>>) -> Self {
        let size = object.known.size;
        let lanes = lanes.into_iter().map(|groups| {
            let shared = groups.iter().any(|group| group.len() > 1);
            Lane { pieces: pieces(groups, size), shared, slots: Mutex::default() }
        });
        Self { lanes: lanes.collect(), object }
    }

    /// Requests the first piece of every lane, so that a reader waits for all of them at once.
    pub(crate) fn begin(&self) {
        for lane in self.lanes.iter().filter(|lane| !lane.pieces.is_empty()) {
            let mut slots = lane.slots.lock().unwrap_or_else(PoisonError::into_inner);
            lane.request(&self.object, &mut slots, 0);
        }
    }

    /// Fills `into` with the bytes from `start` on.
    pub(crate) fn read_exact_at(&self, into: &mut [u8], start: u64) -> Result<(), LocationError> {
        if into.is_empty() {
            return Ok(());
        }
        let end = start.saturating_add(into.len() as u64);
        match self.lanes.iter().find_map(|lane| Some((lane, lane.covering(start, end)?))) {
            Some((lane, first)) => lane.read(&self.object, into, start, first),
            None => {
                // Not foreseen: one request for each piece of it.
                let mut position = start;
                for part in into.chunks_mut(PIECE_BYTES as usize) {
                    let next = position + part.len() as u64;
                    let (object, range) = (Arc::clone(&self.object), position..next);
                    let work = async move { object.read(range).await };
                    part.copy_from_slice(&wait(&self.object.remote.access, work)?);
                    position = next;
                }
                Ok(())
            }
        }
    }
}

/// Merges and divides the ranges of a lane.
fn pieces(groups: Vec<Vec<Range<u64>>>, size: u64) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::new();
    for (group, mut ranges) in groups.into_iter().enumerate() {
        ranges.sort_by_key(|range| range.start);
        for range in ranges {
            let range = range.start.min(size)..range.end.min(size);
            match merged.last_mut() {
                Some(last) if range.start < last.range.end.saturating_add(MERGED_GAP) => {
                    last.range.end = last.range.end.max(range.end);
                }
                _ if range.is_empty() => {}
                _ => merged.push(Piece { range, group }),
            }
        }
    }
    // Groups that became one count once.
    let (mut count, mut last) = (0, None);
    for piece in &mut merged {
        if last.replace(piece.group).is_some_and(|last| last != piece.group) {
            count += 1;
        }
        piece.group = count;
    }
    let divided = merged.into_iter().flat_map(|piece| {
        let count = (piece.range.end - piece.range.start).div_ceil(PIECE_BYTES);
        // Equal parts, so that none is tiny.
        let length = (piece.range.end - piece.range.start).div_ceil(count);
        (0..count).map(move |part| {
            let start = piece.range.start + part * length;
            Piece { range: start..(start + length).min(piece.range.end), group: piece.group }
        })
    });
    divided.collect()
}

impl Lane {
    /// The piece with `start`, if this lane has all bytes from there to `end`.
    fn covering(&self, start: u64, end: u64) -> Option<usize> {
        let first = self.pieces.partition_point(|piece| piece.range.end <= start);
        let mut position = start;
        for piece in self.pieces.get(first..)? {
            if piece.range.start > position {
                return None;
            }
            position = piece.range.end;
            if position >= end {
                return Some(first);
            }
        }
        None
    }

    fn read(
        &self,
        object: &Arc<Object>,
        into: &mut [u8],
        start: u64,
        first: usize,
    ) -> Result<(), LocationError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut position, mut index, mut left) = (start, first, into);
        while !left.is_empty() {
            let Some(piece) = self.pieces.get(index) else {
                // `covering` saw them all.
                return Err(LocationError::Response {
                    location: object.remote.shown.display().to_string(),
                    problem: "a range ends early".to_owned(),
                });
            };
            let bytes = self.piece(object, &mut slots, index)?;
            let from = (position - piece.range.start) as usize;
            let count = left.len().min(bytes.len() - from);
            let (now, later) = left.split_at_mut(count);
            now.copy_from_slice(&bytes[from..from + count]);
            left = later;
            position += count as u64;
            index += 1;
        }
        Ok(())
    }

    /// Begins to fetch a piece, if there is one and it is not held.
    fn request(&self, object: &Arc<Object>, slots: &mut Slots, index: usize) {
        let Some(piece) = self.pieces.get(index) else { return };
        slots.held.entry(index).or_insert_with(|| {
            let (object, range) = (Arc::clone(object), piece.range.clone());
            Slot::Pending(start(async move { object.read(range).await }))
        });
    }

    /// A piece, and the next ones requested.
    fn piece(
        &self,
        object: &Arc<Object>,
        slots: &mut Slots,
        index: usize,
    ) -> Result<Bytes, LocationError> {
        let group = self.pieces.get(index).map_or(0, |piece| piece.group);
        slots.newest = slots.newest.max(group);
        // Columns that are read in turns do not end at the same moment: what they share stays
        // until all of them are two groups further.
        let (newest, pieces, shared) = (slots.newest, &self.pieces, self.shared);
        slots.held.retain(|&held, _| {
            let group = pieces.get(held).map_or(0, |piece| piece.group);
            held + 1 >= index || (shared && group + 1 >= newest)
        });
        for wanted in index..=index + AHEAD {
            self.request(object, slots, wanted);
        }
        let bytes = match slots.held.get(&index) {
            Some(Slot::Here(bytes)) => return Ok(bytes.clone()),
            Some(Slot::Pending(pending)) => pending.wait(&object.remote.access),
            None => Ok(Bytes::new()),
        };
        match bytes {
            Ok(bytes) => {
                slots.held.insert(index, Slot::Here(bytes.clone()));
                Ok(bytes)
            }
            Err(error) => {
                // A later read begins anew.
                slots.held.remove(&index);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(groups: Vec<Vec<Range<u64>>>, size: u64) -> Vec<(Range<u64>, usize)> {
        pieces(groups, size).into_iter().map(|piece| (piece.range, piece.group)).collect()
    }

    #[test]
    fn ranges_are_merged_and_divided() {
        // Close together: one request, also over groups.
        assert_eq!(of(vec![vec![0..10, 20..30], vec![40..50]], 100), [(0..50, 0)]);
        // Far apart: one each, and groups are counted anew.
        let far = MERGED_GAP + 100;
        let found = of(vec![vec![0..10], vec![50..60], vec![far..far + 10]], far + 5);
        assert_eq!(found, [(0..60, 0), (far..far + 5, 1)]);
        // Long: equal pieces, none above the limit.
        let long = of(vec![vec![0..PIECE_BYTES * 2 + 2]], u64::MAX);
        assert_eq!(long.len(), 3);
        assert!(long.iter().all(|(range, _)| range.end - range.start <= PIECE_BYTES));
        assert_eq!(long.last().map(|(range, _)| range.end), Some(PIECE_BYTES * 2 + 2));
        assert_eq!(of(vec![vec![5..5]], 100), []);
    }
}
