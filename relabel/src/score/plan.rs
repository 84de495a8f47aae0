//! The plan of a run: which image is scored where, and with which captions.
//!
//! Made from the small columns alone, before any image is read, and a pure function of the inputs.
//! Images recur across pairs (in Pick-a-Pic the winner stays on), so each distinct uid has one owner,
//! the place where it stands first, and is scored there and nowhere else. That is what makes the
//! result independent of how the files are split between processes: whoever works on the owner's
//! file computes the same batch, and the merge hands the scores to every other place.
//!
//! Memory: a few numbers a pair; captions themselves go to a scratch file.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use schemas::labels::Status;
use schemas::pairs::{InputFile, PairFile, PairRow};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::captions::CaptionText;

/// A caption longer than this is not a prompt: the row is kept with the status `caption_too_long`.
pub const MAX_CAPTION_BYTES: usize = 64 * 1024;

/// Rows of a file beyond this do not fit the plan's indices.
const MAX_ROWS: u64 = u32::MAX as u64 / 4;

/// No image, caption or combination.
pub const NONE: u32 = u32::MAX;

/// An input file of the run.
#[derive(Debug, Clone)]
pub struct PlannedFile {
    /// Where it is.
    pub input: InputFile,
    /// Its length and footer, hashed.
    pub fingerprint: String,
    /// The rows of it that this run labels.
    pub rows: u64,
    /// How many rows stand before it.
    pub first_row: u64,
}

/// A picture with a caption: what a score belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Combination {
    /// Index of the image.
    pub image: u32,
    /// Index of the caption.
    pub caption: u32,
}

/// The plan.
#[derive(Debug)]
pub struct Plan {
    /// The inputs, in order.
    pub files: Vec<PlannedFile>,
    /// Every distinct (image, caption), in order of first appearance.
    pub combinations: Vec<Combination>,
    /// For every row of the run, the combination of its first and second image; [`NONE`] where the
    /// row cannot be scored whatever its images are.
    pub rows: Vec<[u32; 2]>,
    /// For every image, the slot (2·row + position) where it stands first.
    pub owner_slot: Vec<u64>,
    /// The distinct captions.
    pub captions: CaptionText,
    /// Rows whose `ranking_id` stood before in the input: they are named by their place instead, so
    /// that ids stay unique.
    pub renamed: HashSet<u64>,
    /// A checksum of every planned value, for the manifest.
    pub content: String,
    first_combination: Vec<u32>,
    next_combination: Vec<u32>,
}

/// Collects the plan row by row.
struct Planner {
    plan: Plan,
    images: HashMap<u128, u32>,
    captions: HashMap<u128, u32>,
    combinations: HashMap<Combination, u32>,
    pair_ids: HashSet<u128>,
    content: Xxh3,
}

impl Plan {
    /// Reads the small columns of every input, at most `limit` rows.
    ///
    /// # Errors
    /// An input that is not a readable Parquet file of pairs, or the scratch folder cannot be written.
    pub fn make(
        inputs: &[InputFile],
        limit: Option<u64>,
        scratch: &std::path::Path,
    ) -> Result<Self> {
        let mut planner = Planner {
            plan: Self {
                files: Vec::new(),
                combinations: Vec::new(),
                rows: Vec::new(),
                owner_slot: Vec::new(),
                captions: CaptionText::new(scratch)?,
                renamed: HashSet::new(),
                content: String::new(),
                first_combination: Vec::new(),
                next_combination: Vec::new(),
            },
            images: HashMap::new(),
            captions: HashMap::new(),
            combinations: HashMap::new(),
            pair_ids: HashSet::new(),
            content: Xxh3::new(),
        };
        let mut left = limit.unwrap_or(u64::MAX);
        for input in inputs {
            if left == 0 {
                break;
            }
            let file = PairFile::open(input)?;
            let rows = u64::try_from(file.num_rows()).unwrap_or(0).min(left);
            let first_row = planner.plan.rows.len() as u64;
            ensure!(
                first_row + rows <= MAX_ROWS,
                "{}: the run would have more than {MAX_ROWS} pairs; hint: run it in parts with one --out each",
                input.path.display()
            );
            planner.plan.files.push(PlannedFile {
                input: input.clone(),
                fingerprint: file.fingerprint(),
                rows,
                first_row,
            });
            let mut taken = 0;
            'file: for batch in file.plan_rows()? {
                for row in batch? {
                    if taken == rows {
                        break 'file;
                    }
                    planner.add(&row)?;
                    taken += 1;
                }
            }
            ensure!(
                taken == rows,
                "{}: its footer promises {rows} rows but {taken} could be read",
                input.path.display()
            );
            left -= rows;
        }
        if !planner.plan.renamed.is_empty() {
            tracing::warn!(
                rows = planner.plan.renamed.len(),
                "some ranking_id stand more than once; later rows are named by their place"
            );
        }
        planner.plan.content = format!("{:032x}", planner.content.digest128());
        planner.plan.captions.finish()?;
        Ok(planner.plan)
    }

    /// Pairs of the run.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Distinct images of the run.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.owner_slot.len() as u64
    }

    /// Every combination of `image`, the one that appears last first.
    pub fn combinations_of(&self, image: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = self.first_combination[image as usize];
        std::iter::from_fn(move || {
            let combination = next;
            if combination == NONE {
                return None;
            }
            next = self.next_combination[combination as usize];
            Some(combination)
        })
    }

    /// The distinct images whose owner stands in `file`.
    #[must_use]
    pub fn images_owned_by(&self, file: usize) -> u64 {
        let planned = &self.files[file];
        let slots = 2 * planned.first_row..2 * (planned.first_row + planned.rows);
        let first = self.owner_slot.partition_point(|&slot| slot < slots.start);
        let end = self.owner_slot.partition_point(|&slot| slot < slots.end);
        (end - first) as u64
    }

    /// The paths of the inputs, for messages.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.input.path.clone()).collect()
    }
}

/// Why a caption cannot be scored, if so.
#[must_use]
pub fn caption_problem(caption: Option<&str>) -> Option<(Status, String)> {
    match caption {
        None => Some((Status::MissingCaption, "caption is null".to_owned())),
        Some(caption) if caption.trim().is_empty() => {
            Some((Status::EmptyCaption, "caption is empty".to_owned()))
        }
        Some(caption) if caption.len() > MAX_CAPTION_BYTES => Some((
            Status::CaptionTooLong,
            format!(
                "caption has {} bytes; at most {MAX_CAPTION_BYTES} are taken for a prompt",
                caption.len()
            ),
        )),
        Some(_) => None,
    }
}

impl Planner {
    fn add(&mut self, row: &PairRow) -> Result<()> {
        self.digest(row);
        let number = self.plan.rows.len() as u64;
        if !self.pair_ids.insert(xxh3_128(row.pair_id.as_bytes())) {
            self.plan.renamed.insert(number);
        }
        let slot = 2 * number;
        let caption = match &row.caption {
            Some(caption) if caption_problem(Some(caption)).is_none() => self.caption(caption)?,
            _ => {
                self.plan.rows.push([NONE; 2]);
                return Ok(());
            }
        };
        let mut combinations = [NONE; 2];
        for ((combination, uid), slot) in combinations.iter_mut().zip(&row.image_uid).zip(slot..) {
            let image = self.image(uid.as_deref(), slot);
            *combination = self.combination(Combination { image, caption });
        }
        self.plan.rows.push(combinations);
        Ok(())
    }

    fn caption(&mut self, caption: &str) -> Result<u32> {
        let next = self.captions.len() as u32;
        let known = *self.captions.entry(xxh3_128(caption.as_bytes())).or_insert(next);
        if known == next {
            self.plan.captions.push(caption)?;
        }
        Ok(known)
    }

    /// An image without a uid is nobody else's: it is known by where it stands.
    fn image(&mut self, uid: Option<&str>, slot: u64) -> u32 {
        let next = self.plan.owner_slot.len() as u32;
        let known = match uid {
            Some(uid) if !uid.is_empty() => {
                *self.images.entry(xxh3_128(uid.as_bytes())).or_insert(next)
            }
            _ => next,
        };
        if known == next {
            self.plan.owner_slot.push(slot);
            self.plan.first_combination.push(NONE);
        }
        known
    }

    fn combination(&mut self, combination: Combination) -> u32 {
        let next = self.plan.combinations.len() as u32;
        let known = *self.combinations.entry(combination).or_insert(next);
        if known == next {
            self.plan.combinations.push(combination);
            // The newest stands first in the image's chain.
            let first = &mut self.plan.first_combination[combination.image as usize];
            self.plan.next_combination.push(std::mem::replace(first, next));
        }
        known
    }

    fn digest(&mut self, row: &PairRow) {
        let mut field = |value: Option<&[u8]>| {
            self.content.update(&value.map_or(u64::MAX, |value| value.len() as u64).to_le_bytes());
            self.content.update(value.unwrap_or_default());
        };
        field(Some(row.pair_id.as_bytes()));
        field(row.caption.as_deref().map(str::as_bytes));
        field(row.image_uid[0].as_deref().map(str::as_bytes));
        field(row.image_uid[1].as_deref().map(str::as_bytes));
        field(row.human_label_0.map(f64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }
}
