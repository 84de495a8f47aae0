//! The plan of a run: which image is scored where, and with which captions.
//!
//! Made from the small columns alone, before any image is read, and a pure function of the inputs.
//! Images recur across pairs (in Pick-a-Pic the winner stays on), so each distinct uid has one
//! owner, the slot of its first occurrence, and is scored there. Images in other slots with the
//! same uid are compared by their bytes, and scored as images of their own if they differ (see
//! `super::batches`). The result is therefore independent of how the files are split between
//! processes: whoever works on the owner's unit computes the same batch, and the merge hands the
//! scores to every other slot. The plan also says what the units of work are ([`Unit`]).
//!
//! Memory: [`BYTES_PER_ROW`] while the plan is made, less than half of it afterwards; captions
//! themselves go to a scratch file.

mod ids;
mod keys;
mod saved;
mod units;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use runkit::logging::counted;
use runkit::signals::StopFlag;
use schemas::layouts::{Kept, Layout, TextStore};
use schemas::pairs::{
    EmptyCaption, InputFile, NoVote, PairFile, PairRow, caption_problem, positional_pair_id,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

pub use self::units::{UNIT_PAIRS, Unit};
use super::captions::{CaptionText, no_scratch};

/// The most memory that making the plan takes for each row, in bytes, with two images and a caption
/// of its own in every row: 148 measured. `relabel/tests/plan_memory.rs` measures it.
pub const BYTES_PER_ROW: u64 = 160;

/// Rows of a run beyond this do not fit the plan's indices.
const MAX_ROWS: u64 = u32::MAX as u64 / 4;

/// Stands for no index. `Option<u32>` would take twice the memory, for every row of a run.
pub(crate) const NO_INDEX: u32 = u32::MAX;

/// The identity of bytes or text: the first 16 bytes of their BLAKE3, so that nobody can make two
/// that are taken for one.
pub(crate) type Digest = [u8; 16];

/// The digest of these bytes.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    digest
}

/// An input file of the run.
#[derive(Debug, Clone)]
pub struct PlannedFile {
    /// Where it is.
    pub input: InputFile,
    /// Its length and footer, hashed.
    pub fingerprint: String,
    /// Its layout.
    pub layout: Layout,
    /// Where the texts of a tar that lies elsewhere are kept.
    pub(crate) kept: Option<Kept>,
    /// The rows of it that this run labels.
    pub rows: u64,
    /// The rows before it.
    pub first_row: u64,
}

/// An image-caption pair: what a score belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageCaption {
    /// The slot (2·row + position) where the image's uid occurs first.
    pub owner: u32,
    /// Index of the caption.
    pub caption: u32,
}

/// The plan.
#[derive(Debug)]
pub struct Plan {
    /// The inputs, in order.
    pub files: Vec<PlannedFile>,
    /// The units of work, in order of their rows.
    pub units: Vec<Unit>,
    /// The distinct captions.
    pub captions: CaptionText,
    /// A checksum of every planned value, for the manifest.
    pub content: String,
    /// The same of the first so many rows, where [`PlanOptions::marks`] asks for it.
    pub(crate) marked: Vec<(u64, String)>,
    /// Every distinct image-caption pair, sorted.
    image_captions: Vec<ImageCaption>,
    /// For every slot, the slot where the same uid occurs first; [`NO_INDEX`] if the row cannot be
    /// scored whatever its images are.
    owner: Vec<u32>,
    /// For every row, its caption; [`NO_INDEX`] if it cannot be scored.
    caption: Vec<u32>,
    /// Rows whose own id is another row's, and how they are named instead.
    renamed: Vec<ids::Renamed>,
    /// Distinct uids, and places without one.
    images: u64,
    /// The texts of tars that lie elsewhere, if there are any.
    texts: Option<TextStore>,
}

/// What the plan depends on besides its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanOptions {
    /// At most this many rows are taken.
    pub limit: Option<u64>,
    /// Pairs of a unit: at least so many, and fewer than twice as many, where a file has them.
    pub unit_pairs: u64,
    /// Numbers of first rows whose checksum is wanted, to compare with an earlier run over those rows;
    /// 0 for none.
    #[serde(default)]
    pub marks: [u64; 2],
}

/// Every row of every input, in units of the usual size.
impl Default for PlanOptions {
    fn default() -> Self {
        Self { limit: None, unit_pairs: UNIT_PAIRS, marks: [0; 2] }
    }
}

/// Collects the plan row by row.
struct Planner {
    plan: Plan,
    unit_pairs: u64,
    marks: [u64; 2],
    captions: HashMap<Digest, u32>,
    /// Every uid in a row that can be scored, with its slot.
    uids: Vec<(Digest, u32)>,
    /// Every id, with its row.
    ids: Vec<(Digest, u32)>,
    content: Xxh3,
    no_votes: HashMap<NoVote, u64>,
}

impl Plan {
    /// Reads the small columns of every input.
    ///
    /// # Errors
    /// An input that is not a readable Parquet file of pairs, the scratch folder cannot be written,
    /// or `stop` asks for a stop.
    pub fn make(
        inputs: &[InputFile],
        options: PlanOptions,
        scratch: &Path,
        stop: &StopFlag,
    ) -> Result<Self> {
        let is_elsewhere = |input: &InputFile| runkit::path::is_address(&input.path);
        let texts = match inputs.iter().any(is_elsewhere) {
            true => Some(TextStore::scratch(scratch).with_context(|| no_scratch(scratch))?),
            false => None,
        };
        let mut planner = Planner {
            unit_pairs: options.unit_pairs,
            marks: options.marks,
            plan: Self {
                files: Vec::new(),
                units: Vec::new(),
                captions: CaptionText::new(scratch)?,
                content: String::new(),
                marked: Vec::new(),
                image_captions: Vec::new(),
                owner: Vec::new(),
                caption: Vec::new(),
                renamed: Vec::new(),
                images: 0,
                texts,
            },
            captions: HashMap::new(),
            uids: Vec::new(),
            ids: Vec::new(),
            content: Xxh3::new(),
            no_votes: HashMap::new(),
        };
        let mut left = options.limit.unwrap_or(u64::MAX);
        for input in inputs {
            if left == 0 {
                break;
            }
            stop.check()?;
            left -= planner.add_file(input, left, stop)?;
        }
        planner.say_no_votes();
        planner.finish()
    }

    /// Pairs of the run.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        self.caption.len() as u64
    }

    /// Distinct images of the run, as far as their uids tell.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.images
    }

    /// Opens a file of the plan. Of a tar whose texts are kept nothing is read before its images.
    ///
    /// # Errors
    /// If the file cannot be read, or is not the one that was planned.
    pub(crate) fn open(&self, file: &PlannedFile) -> Result<PairFile> {
        let pairs = match (&self.texts, &file.kept) {
            (Some(texts), Some(kept)) => PairFile::open_kept(&file.input, texts, kept)?,
            _ => PairFile::open(&file.input)?,
        };
        ensure!(
            pairs.fingerprint() == file.fingerprint,
            "{}: the file has changed since the run was planned; hint: run the same command again",
            file.input.path.display()
        );
        Ok(pairs)
    }

    /// Bytes of the texts that are kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.texts.as_ref().map_or(0, TextStore::len)
    }

    /// Logs which layouts the files have, a line for each.
    pub(crate) fn say_layouts(&self, named: Option<Layout>) {
        let mut counts: BTreeMap<Layout, u64> = BTreeMap::new();
        for file in &self.files {
            *counts.entry(file.layout).or_default() += 1;
        }
        let how = if named.is_some() { "named" } else { "recognised" };
        for (layout, files) in counts {
            let files = counted(files, "files");
            tracing::info!(%layout, "{files} in the layout {layout} ({how})");
        }
    }

    /// The distinct images whose owner is in `unit`.
    #[must_use]
    pub fn images_owned_by(&self, unit: &Unit) -> u64 {
        let slots = unit.slots();
        slots.filter(|&slot| self.owner(slot).map(u64::from) == Some(slot)).count() as u64
    }

    /// The slot where the uid of the image in `slot` occurs first; `None` if its row cannot be
    /// scored.
    pub(crate) fn owner(&self, slot: u64) -> Option<u32> {
        self.owner.get(usize::try_from(slot).ok()?).copied().filter(|&owner| owner != NO_INDEX)
    }

    /// The image-caption pair in `slot`; `None` if its row cannot be scored.
    pub(crate) fn image_caption_at(&self, slot: u64) -> Option<u32> {
        let (owner, caption) = (self.owner(slot)?, self.caption_at(slot)?);
        let found = self.image_captions.binary_search(&ImageCaption { owner, caption }).ok()?;
        u32::try_from(found).ok()
    }

    /// The caption of the image in `slot`; `None` if the row cannot be scored.
    pub(crate) fn caption_at(&self, slot: u64) -> Option<u32> {
        let caption = self.caption.get(usize::try_from(slot / 2).ok()?).copied();
        caption.filter(|&caption| caption != NO_INDEX)
    }

    /// An image-caption pair by its index.
    pub(crate) fn image_caption(&self, index: u32) -> Option<ImageCaption> {
        self.image_captions.get(index as usize).copied()
    }

    /// How many image-caption pairs there are.
    pub(crate) fn image_caption_count(&self) -> usize {
        self.image_captions.len()
    }

    /// Every image-caption pair of the image whose uid occurs first at `owner`, by index.
    pub(crate) fn image_captions_of(&self, owner: u32) -> std::ops::Range<u32> {
        let start =
            self.image_captions.partition_point(|image_caption| image_caption.owner < owner);
        let length = self.image_captions[start..]
            .partition_point(|image_caption| image_caption.owner == owner);
        // There are at most two for each row, and rows are fewer than a quarter of u32::MAX.
        start as u32..(start + length) as u32
    }

    /// The id of a row in the output: its own, or one made from file and row if another row has
    /// that id.
    pub(crate) fn pair_id(&self, file: &PlannedFile, row: u64, own: String) -> String {
        let number = u32::try_from(file.first_row + row).unwrap_or(NO_INDEX);
        match self.renamed.binary_search_by_key(&number, |renamed| renamed.row) {
            Ok(found) => self.renamed[found].name(&positional(file, row)),
            Err(_) => own,
        }
    }
}

/// The id of a row that is made from its file and row.
fn positional(file: &PlannedFile, row: u64) -> String {
    positional_pair_id(&file.input.source_file, i64::try_from(row).unwrap_or(i64::MAX))
}

impl Planner {
    /// Adds at most `left` rows of a file and returns how many.
    fn add_file(&mut self, input: &InputFile, left: u64, stop: &StopFlag) -> Result<u64> {
        let (file, kept) = match &self.plan.texts {
            Some(texts) => PairFile::open_keeping(input, texts)?,
            None => (PairFile::open(input)?, None),
        };
        let all = u64::try_from(file.num_rows()).unwrap_or(0);
        let rows = all.min(left);
        let first_row = self.plan.pairs();
        ensure!(
            first_row + rows <= MAX_ROWS,
            "{}: the run would have more than {MAX_ROWS} pairs; hint: run it in parts with one --out each",
            input.path.display()
        );
        let index = self.plan.files.len();
        let cut = units::cut(&file.row_groups(), all, rows, self.unit_pairs).into_iter();
        self.plan.units.extend(cut.map(|rows| {
            let first_row = first_row + rows.start;
            Unit { file: index, rows, first_row }
        }));
        self.plan.files.push(PlannedFile {
            input: input.clone(),
            fingerprint: file.fingerprint(),
            layout: file.layout(),
            kept,
            rows,
            first_row,
        });
        // Exactly, since growth by doubling would hold up to twice the bytes. A footer may promise
        // more rows than there are: what a damaged file costs is bounded by the largest plan.
        let expected = usize::try_from(rows)?;
        self.plan.caption.reserve_exact(expected);
        self.plan.owner.reserve_exact(2 * expected);
        self.uids.reserve_exact(2 * expected);
        self.ids.reserve_exact(expected);
        let mut taken = 0;
        'file: for batch in file.plan_rows()? {
            stop.check()?;
            for row in batch? {
                if taken == rows {
                    break 'file;
                }
                self.add(&row)?;
                taken += 1;
                if self.marks.contains(&(first_row + taken)) {
                    let content = format!("{:032x}", self.content.digest128());
                    self.plan.marked.push((first_row + taken, content));
                }
            }
        }
        ensure!(
            taken == rows,
            "{}: its footer promises {rows} rows but {taken} could be read",
            input.path.display()
        );
        Ok(rows)
    }

    /// Logs how many labels of the input are not human votes, and why.
    fn say_no_votes(&self) {
        for (why, reason) in [
            (NoVote::HasLabelFalse, "has_label is false there"),
            (NoVote::Contradiction, "label_1 is not 1 - label_0 there"),
            (NoVote::NotANumber, "it is NaN there"),
        ] {
            if let Some(rows) = self.no_votes.get(&why) {
                let rows = counted(*rows, "rows");
                tracing::warn!("label_0 of {rows} is not a human vote: {reason}");
            }
        }
    }

    fn add(&mut self, row: &PairRow) -> Result<()> {
        self.digest(row);
        if let Some(why) = row.no_vote {
            *self.no_votes.entry(why).or_default() += 1;
        }
        // Fewer than a quarter of u32::MAX: `add_file` counted them.
        let number = self.plan.caption.len() as u32;
        self.ids.push((digest(row.pair_id.as_bytes()), number));
        let caption = match &row.caption {
            Some(caption) if caption_problem(Some(caption), EmptyCaption::Refused).is_none() => {
                self.caption(caption)?
            }
            _ => {
                self.plan.caption.push(NO_INDEX);
                self.plan.owner.extend([NO_INDEX; 2]);
                return Ok(());
            }
        };
        self.plan.caption.push(caption);
        for (uid, slot) in row.image_uid.iter().zip(2 * number..) {
            // An image without a uid is identified by its slot.
            if let Some(uid) = uid.as_deref().filter(|uid| !uid.is_empty()) {
                self.uids.push((digest(uid.as_bytes()), slot));
            }
            self.plan.owner.push(slot);
        }
        Ok(())
    }

    fn caption(&mut self, caption: &str) -> Result<u32> {
        let next = self.captions.len() as u32;
        let known = *self.captions.entry(digest(caption.as_bytes())).or_insert(next);
        if known == next {
            self.plan.captions.push(caption)?;
        }
        Ok(known)
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

    /// Gives every list its final form, the largest ones one after the other.
    fn finish(self) -> Result<Plan> {
        let Self { mut plan, captions, mut uids, ids, content, .. } = self;
        drop(captions);
        plan.content = format!("{:032x}", content.digest128());
        plan.captions.finish()?;
        let files = &plan.files;
        plan.renamed = ids::make_unique(ids, |row| {
            let row = u64::from(row);
            let file = files.partition_point(|file| file.first_row <= row).saturating_sub(1);
            files.get(file).map_or_else(String::new, |file| positional(file, row - file.first_row))
        });
        if !plan.renamed.is_empty() {
            tracing::warn!(
                rows = plan.renamed.len(),
                "duplicate ranking_id values; later rows get an id of the form file:row"
            );
        }
        uids.sort_unstable();
        for places in uids.chunk_by(|one, other| one.0 == other.0) {
            for &(_, slot) in places {
                plan.owner[slot as usize] = places[0].1;
            }
        }
        drop(uids);
        let owners = (0u32..).zip(&plan.owner).filter(|&(slot, &owner)| slot == owner);
        plan.images = owners.count() as u64;
        let mut image_captions = Vec::with_capacity(plan.owner.len());
        for (owners, &caption) in plan.owner.chunks_exact(2).zip(&plan.caption) {
            if caption != NO_INDEX {
                image_captions.extend(owners.iter().map(|&owner| ImageCaption { owner, caption }));
            }
        }
        image_captions.sort_unstable();
        image_captions.dedup();
        image_captions.shrink_to_fit();
        plan.image_captions = image_captions;
        Ok(plan)
    }
}
