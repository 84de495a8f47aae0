//! Which images of a unit are scored, in batches, decoded and preprocessed.
//!
//! Every image's bytes are hashed as they are read. An image is scored in the slot where its uid
//! occurs first (its owner), and in every other slot whose bytes this unit has not seen: if the
//! owner of a uid is missing, damaged or another image, only the owner's row fails. Bytes that the
//! unit has seen are not decoded again, under any uid. An image whose owner is in an earlier unit
//! is only hashed; if its bytes turn out to be others than the owner's, the run scores it at the
//! end ([`Choice::Rest`]).
//!
//! All of this follows from the unit and the plan alone, so that the same unit gives the same
//! batches in every process.
//!
//! Memory: [`ROWS_PER_READ`] rows, a batch of encoded images, and 16 bytes for each distinct image
//! of the unit, in a hash table that is up to half empty. Of an image that is only hashed, the
//! digest is kept.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use anyhow::Result;
use bytes::Bytes;
use media::decode::{Limits, decode};
use rayon::prelude::*;
use runkit::signals::StopFlag;
use schemas::labels::Status;
use schemas::pairs::{PairFile, PairRows};
use scorers::{ImagePreprocessor, PreprocessedImage};

use super::external::{PairImages, Wants};
use super::plan::{Digest, NO_INDEX, Plan, Unit, digest};

/// Rows read from Parquet at a time: with 2 images of some 150 kB each, about 10 MB.
const ROWS_PER_READ: usize = 32;

/// Slots handed on at a time if none of their images is to be scored.
const SLOTS_TOGETHER: usize = 4096;

/// What is scored of a unit.
#[derive(Debug, Clone)]
pub(crate) enum Choice {
    /// The images that the unit owns, and those with other bytes than their owner in the same unit.
    First,
    /// These slots, counted over the run, with the pairs to score of each: bytes that no part has a
    /// score of.
    Rest(BTreeMap<u64, Vec<u32>>),
}

/// A batch: images to score, and what was found in every slot that was read since the last batch.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The slots, with what was found there.
    pub(crate) slots: Vec<(u64, Occurrence)>,
    /// The images to score.
    pub(crate) images: Vec<Chosen>,
    /// The images of the rows that were read since the last batch, if scorers compare them.
    pub(crate) pairs: Vec<PairImages>,
    /// Owners among the slots, for the progress.
    pub(crate) owners: u64,
}

/// What was found in a slot.
#[derive(Debug)]
pub(crate) enum Occurrence {
    /// An image with this digest.
    Image(Digest),
    /// No image: it is null or empty.
    Null,
    /// No image, and why.
    Absent(String),
}

/// What a row has in a slot: the bytes, or why it has no bytes if it says so.
type Encountered = (u64, Option<Bytes>, Option<String>);

/// An image to score.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Its slot, counted over the run.
    pub(crate) slot: u64,
    /// The digest of its bytes.
    pub(crate) content: Digest,
    /// What is scored of it: indices of pairs.
    pub(crate) image_captions: Vec<u32>,
    /// Its bytes, if external scorers want them.
    pub(crate) bytes: Option<Bytes>,
    /// Its pixels, or why it has no pixels.
    pub(crate) pixels: std::result::Result<PreprocessedImage, (Status, String)>,
}

/// A batch before its images are decoded.
pub(crate) type Encoded = (Batch, Vec<Waiting>);

/// A chosen image before it is decoded.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) slot: u64,
    pub(crate) content: Digest,
    pub(crate) image_captions: Vec<u32>,
    bytes: Bytes,
}

/// What the batches of every unit of a run have in common.
#[derive(Clone, Copy)]
pub(crate) struct Source<'run> {
    pub(crate) plan: &'run Plan,
    pub(crate) batch_size: usize,
    pub(crate) wants: Wants,
    pub(crate) stop: &'run StopFlag,
}

/// A file that is open, so that the units of one file read its footer once.
#[derive(Default)]
pub(crate) struct OpenFile(Option<(usize, PairFile)>);

impl OpenFile {
    /// The file of this number in the plan.
    fn get(&mut self, plan: &Plan, number: usize) -> Result<&PairFile> {
        if self.0.as_ref().is_none_or(|(open, _)| *open != number) {
            self.0 = Some((number, plan.open(&plan.files[number])?));
        }
        let Some((_, pairs)) = &self.0 else { anyhow::bail!("no file is open") };
        Ok(pairs)
    }
}

/// The batches of one unit, not decoded. Ends early once a stop is asked for: look at the flag
/// after the last.
pub(crate) struct Batches<'run> {
    plan: &'run Plan,
    unit: &'run Unit,
    choice: Choice,
    batch_size: usize,
    stop: StopFlag,
    /// The next row of the run to be read, and where reading ends.
    row: u64,
    end: u64,
    rows: PairRows,
    seen: Seen,
    waiting: VecDeque<Waiting>,
    slots: Vec<(u64, Occurrence)>,
    /// The images of rows that are not handed on yet, if scorers compare them.
    pairs: Vec<PairImages>,
    wants_pairs: bool,
    owners: u64,
}

/// From encoded bytes to pixels, on any thread.
pub(crate) struct Decoder {
    preprocessor: ImagePreprocessor,
    limits: Limits,
    keeps_bytes: bool,
}

/// The bytes that were chosen in a unit.
///
/// Known by eight bytes of their digest, half of what their identity is elsewhere: two images that
/// share them cost a score here, which the run then makes up for in the end.
#[derive(Default)]
struct Seen {
    /// The owner with whose captions the bytes were scored first.
    owners: HashMap<[u32; 2], u32>,
    /// Further owners with whose captions the same bytes were scored.
    more: HashSet<([u32; 2], u32)>,
}

impl Seen {
    /// What is to be scored of these bytes under `owner`; nothing if it was chosen before.
    fn choose(&mut self, plan: &Plan, content: &Digest, owner: u32) -> Vec<u32> {
        let half = |bytes: &[u8]| bytes.iter().fold(0, |half, &byte| half << 8 | u32::from(byte));
        let key = [half(&content[..4]), half(&content[4..8])];
        let known = *self.owners.entry(key).or_insert(NO_INDEX);
        if known == NO_INDEX {
            self.owners.insert(key, owner);
            return plan.image_captions_of(owner).collect();
        }
        if known == owner || !self.more.insert((key, owner)) {
            return Vec::new();
        }
        // Other captions of the same bytes: those that the first owner has not got.
        let captions: HashSet<u32> = plan
            .image_captions_of(known)
            .filter_map(|index| Some(plan.image_caption(index)?.caption))
            .collect();
        let is_new = |&index: &u32| {
            plan.image_caption(index).is_some_and(|it| !captions.contains(&it.caption))
        };
        plan.image_captions_of(owner).filter(is_new).collect()
    }
}

impl<'run> Batches<'run> {
    /// The batches of unit `unit`; `file` keeps its file open.
    pub(crate) fn open(
        source: Source<'run>,
        unit: usize,
        choice: Choice,
        file: &mut OpenFile,
    ) -> Result<Self> {
        let Source { plan, batch_size, wants, stop } = source;
        let unit = &plan.units[unit];
        let (row, end) = match &choice {
            Choice::First => (unit.slots().start / 2, unit.slots().end / 2),
            Choice::Rest(wanted) => {
                let first = wanted.first_key_value().map_or(0, |(slot, _)| slot / 2);
                let last = wanted.last_key_value().map_or(0, |(slot, _)| slot / 2 + 1);
                (first, last)
            }
        };
        let before = plan.files[unit.file].first_row;
        let rows = i64::try_from(row - before)?..i64::try_from(end - before)?;
        let wants_pairs = wants.pairs && matches!(choice, Choice::First);
        Ok(Self {
            plan,
            unit,
            choice,
            batch_size,
            stop: stop.clone(),
            row,
            end,
            rows: file.get(plan, unit.file)?.rows_with_images_in(rows, ROWS_PER_READ)?,
            seen: Seen::default(),
            waiting: VecDeque::new(),
            slots: Vec::new(),
            pairs: Vec::new(),
            wants_pairs,
            owners: 0,
        })
    }

    /// Whether what was read is handed on although there is no batch of images.
    fn is_full(&self) -> bool {
        self.slots.len() >= SLOTS_TOGETHER || self.pairs.len() >= ROWS_PER_READ
    }

    /// Reads on until there is enough for a batch, or slots enough to hand on. `None` at the end.
    fn take(&mut self) -> Result<Option<Encoded>> {
        while self.waiting.len() < self.batch_size && !self.is_full() {
            if self.row >= self.end || self.stop.requested().is_some() {
                break;
            }
            let Some(rows) = self.rows.next() else { break };
            let mut images = Vec::new();
            for row in rows? {
                let found = row.image.into_iter().zip(row.absent);
                let slots = (2 * self.row..).zip(found);
                images.extend(slots.map(|(slot, (image, absent))| (slot, image, absent)));
                self.row += 1;
            }
            self.hash(images)?;
        }
        if self.stop.requested().is_some() {
            return Ok(None);
        }
        let ready = match self.waiting.len() {
            enough if enough >= self.batch_size => self.batch_size,
            _ if self.is_full() => 0,
            rest => rest,
        };
        let waiting: Vec<Waiting> = self.waiting.drain(..ready).collect();
        if waiting.is_empty() && self.slots.is_empty() {
            return Ok(None);
        }
        let slots = std::mem::take(&mut self.slots);
        let (owners, pairs) = (std::mem::take(&mut self.owners), std::mem::take(&mut self.pairs));
        Ok(Some((Batch { slots, images: Vec::new(), pairs, owners }, waiting)))
    }

    /// Hashes images on all threads, then chooses what to score of them, in order.
    fn hash(&mut self, images: Vec<Encountered>) -> Result<()> {
        let images: Vec<_> = images
            .into_par_iter()
            // A row whose caption cannot be scored needs no images.
            .filter_map(|(slot, bytes, why)| Some((slot, self.plan.owner(slot)?, bytes, why)))
            .map(|(slot, owner, bytes, why)| {
                let bytes = bytes.filter(|bytes| !bytes.is_empty());
                let content = bytes.as_ref().map(|bytes| digest(bytes));
                (slot, owner, bytes.zip(content), why)
            })
            .collect();
        // The first image of a row, until the second one comes.
        let mut first: Option<(u64, Bytes)> = None;
        for (slot, owner, found, why) in images {
            if self.wants_pairs
                && let Some((bytes, _)) = &found
            {
                match first.take() {
                    Some((other, image)) if other + 1 == slot && slot % 2 == 1 => {
                        if let Some(caption) = self.plan.caption_at(slot) {
                            let images = [image, bytes.clone()];
                            self.pairs.push(PairImages { row: slot / 2, images, caption });
                        }
                    }
                    _ => first = Some((slot, bytes.clone())),
                }
            }
            let Some((bytes, content)) = found else {
                self.add_slot(slot, owner, why.map_or(Occurrence::Null, Occurrence::Absent));
                continue;
            };
            let image_captions = match &self.choice {
                Choice::First if u64::from(owner) < self.unit.slots().start => Vec::new(),
                Choice::First => self.seen.choose(self.plan, &content, owner),
                Choice::Rest(wanted) => wanted.get(&slot).cloned().unwrap_or_default(),
            };
            self.add_slot(slot, owner, Occurrence::Image(content));
            if !image_captions.is_empty() {
                self.waiting.push_back(Waiting { slot, content, image_captions, bytes });
            }
        }
        Ok(())
    }

    fn add_slot(&mut self, slot: u64, owner: u32, found: Occurrence) {
        if matches!(self.choice, Choice::First) {
            self.slots.push((slot, found));
            self.owners += u64::from(u64::from(owner) == slot);
        }
    }
}

impl Decoder {
    pub(crate) fn new(preprocessor: ImagePreprocessor, wants: Wants) -> Self {
        Self { preprocessor, limits: Limits::default(), keeps_bytes: wants.images }
    }

    /// Decodes what a batch waits for, on all threads.
    pub(crate) fn decode(&self, (mut batch, waiting): Encoded) -> Batch {
        batch.images = waiting.into_par_iter().map(|waiting| self.decode_one(waiting)).collect();
        batch
    }

    fn decode_one(&self, waiting: Waiting) -> Chosen {
        let Waiting { slot, content, image_captions, bytes } = waiting;
        let pixels = self.pixels(&bytes);
        let bytes = Some(bytes).filter(|_| self.keeps_bytes);
        Chosen { slot, content, image_captions, bytes, pixels }
    }

    fn pixels(&self, bytes: &[u8]) -> std::result::Result<PreprocessedImage, (Status, String)> {
        let image = decode(bytes, &self.limits).map_err(|error| {
            (error.reason().parse().unwrap_or(Status::DecodeError), error.to_string())
        })?;
        self.preprocessor
            .preprocess(&image)
            .map_err(|error| (Status::DecodeError, error.to_string()))
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Encoded>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.take().transpose();
        // Reading ends with the first error: the next call finds the reader exhausted.
        if matches!(item, Some(Err(_))) {
            self.end = 0;
        }
        item
    }
}
