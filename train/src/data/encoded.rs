//! Pairs from the input files, read window by window.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use schemas::pairs::{PairFile, positional_pair_id};

use super::loader::{DecodedExample, Encoded, Item, Loader, Row, Work};
use super::memory_budget::MemoryBudget;
use super::order::Location;
use super::{DataError, Selection};

/// Rows that Parquet decodes together: about ten megabytes of usual pairs.
const READ_ROWS: usize = 16;
/// Up to this many unwanted rows are read, which is faster than opening the file again behind them.
const LARGEST_GAP: u32 = 32;

/// Reads windows of pairs.
pub(super) struct PairLoader<'data> {
    pub(super) selection: &'data Selection,
    pub(super) files: &'data [PairFile],
    pub(super) budget: &'data Arc<MemoryBudget>,
}

impl Loader for PairLoader<'_> {
    fn chunk_rows(&self) -> usize {
        usize::MAX
    }

    fn load(&mut self, rows: &[Row], epoch: u64) -> Result<Option<Vec<Item>>, DataError> {
        let mut wanted: Vec<(Location, usize)> = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| !self.selection.is_skipped(row.index))
            .map(|(at, row)| (self.selection.rows.location(row.index), at))
            .collect();
        wanted.sort_unstable();
        let mut found: Vec<Option<Encoded>> = rows.iter().map(|_| None).collect();
        let mut held = 0_u64;
        for run in wanted.chunk_by(|(before, _), (after, _)| {
            before.file == after.file && after.row - before.row <= LARGEST_GAP
        }) {
            let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
            let Some(file) = self.files.get(first.file as usize) else { continue };
            let at: HashMap<u32, usize> =
                run.iter().map(|(location, at)| (location.row, *at)).collect();
            let range = i64::from(first.row)..i64::from(last.row) + 1;
            for batch in file.rows_with_images_in(range, READ_ROWS)? {
                for pair in batch? {
                    let Some(row) = u32::try_from(pair.row).ok() else { continue };
                    let Some(&at) = at.get(&row) else { continue };
                    let location = Location { file: first.file, row };
                    let positional =
                        rows.get(at).and_then(|row| self.selection.positional.get(row.index));
                    let positional = positional.copied();
                    let pair_id = match positional {
                        Some(true) => positional_pair_id(file.source_file(), pair.row),
                        _ => pair.pair_id,
                    };
                    let images = images(file.path(), row, &pair_id, pair.image, pair.absent)?;
                    let bytes = images.iter().map(|image| image.len() as u64).sum();
                    let Some(permit) = self.budget.take(bytes, held) else { return Ok(None) };
                    held += bytes;
                    if let Some(encoded) = found.get_mut(at) {
                        *encoded = Some(Encoded {
                            location,
                            epoch,
                            pair_id,
                            caption: pair.caption.unwrap_or_default(),
                            images,
                            _permit: permit,
                        });
                    }
                }
            }
        }
        let items = rows.iter().zip(found).map(|(&Row { index, position }, encoded)| {
            let work = match encoded {
                Some(encoded) => Work::Decode(encoded),
                None if self.selection.is_skipped(index) => Work::Ready(DecodedExample::skipped()),
                None => {
                    let reason = format!("row {index} was not found again");
                    return Err(DataError::Thread { what: "reads", reason });
                }
            };
            Ok(Item { index, position, work })
        });
        items.collect::<Result<Vec<_>, DataError>>().map(Some)
    }
}

/// Looks in `rows` for the first of the `selected` rows that lacks an image, and returns its error.
pub(super) fn find_missing_image(
    file: &PairFile,
    rows: Range<i64>,
    selected: &[u32],
) -> Result<(), DataError> {
    for batch in file.rows_with_images_in(rows, READ_ROWS)? {
        runkit::signals::check()?;
        for pair in batch? {
            let row = u32::try_from(pair.row).unwrap_or(u32::MAX);
            if selected.binary_search(&row).is_ok() {
                images(file.path(), row, &pair.pair_id, pair.image, pair.absent)?;
            }
        }
    }
    Ok(())
}

/// Copies both images. Without the copy they would keep a whole Parquet page in memory, with images
/// that nobody wants.
fn images(
    path: &Path,
    row: u32,
    pair_id: &str,
    images: [Option<Bytes>; 2],
    absent: [Option<String>; 2],
) -> Result<[Bytes; 2], DataError> {
    let copy = |image: usize, bytes: Option<Bytes>, why: Option<String>| match bytes {
        Some(bytes) if !bytes.is_empty() => Ok(Bytes::copy_from_slice(&bytes)),
        _ => {
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            let (path, pair_id) = (path.to_owned(), pair_id.to_owned());
            Err(DataError::MissingImage { path, row, pair_id, image, why })
        }
    };
    let ([first, second], [why_first, why_second]) = (images, absent);
    Ok([copy(0, first, why_first)?, copy(1, second, why_second)?])
}
