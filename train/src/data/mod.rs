//! From files to examples: labels joined with pairs or with cached latents, an order, a stream.
//!
//! [`Dataset`] joins `labels.parquet` with the pairs by (`source_file`, `source_row`) and keeps a few
//! tens of bytes of each pair; what is wrong with the input is said there, before anything long
//! starts. [`Stream`] hands out examples in the order of an epoch (see [`WINDOW_BYTES`]), epoch after epoch,
//! from any position on, reading and decoding ahead of the device within a bound of memory.
//!
//! What a row of labels means is not decided here: a function turns it into a judgement, of any type,
//! or leaves the row out.

mod augment;
mod cached;
mod encoded;
mod error;
mod join;
mod memory_budget;
mod order;
mod stream;
pub(crate) mod transform;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nn::pipeline::PromptEmbeds;
use schemas::labels::{LabelRow, LabelsFile};
use schemas::latents::Manifest;
use schemas::pairs::{PairFile, discover, positional_pair_id};
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::cached::Cache;
pub use self::error::DataError;
use self::join::{SmallRow, Source as _};
pub use self::order::{BLOCK_BYTES, WINDOW_BYTES};
use self::order::{Geometry, Rows};
pub use self::stream::{Stream, StreamOptions};

/// One pair, ready for the device.
#[derive(Debug)]
pub struct Example<L> {
    /// The name of the pair, as in the labels.
    pub pair_id: String,
    /// The prompt.
    pub caption: String,
    /// What the labels say.
    pub label: L,
    /// Its number since the start of training, across epochs.
    pub position: u64,
    /// Pixels or latents.
    pub content: Content,
}

impl<L> Example<L> {
    /// The same with what `change` makes of the judgement.
    pub fn map<M>(self, change: impl FnOnce(L) -> M) -> Example<M> {
        let Self { pair_id, caption, label, position, content } = self;
        Example { pair_id, caption, label: change(label), position, content }
    }
}

/// What the networks read of a pair.
#[derive(Debug)]
pub enum Content {
    /// Of both images the pixels: channel, row, column, in [-1, 1].
    Pixels([Vec<f32>; 2]),
    /// From a cache; f32, on the CPU.
    Latents {
        /// Of both images the mean of the latents, `[C, H, W]`, not scaled.
        mean: [Tensor; 2],
        /// Of both images the standard deviation of the latents, `[C, H, W]`, not scaled.
        std: [Tensor; 2],
        /// The caption as the UNet reads it, one row.
        text: PromptEmbeds,
    },
    /// Nothing: the pair keeps its place in the order, and is not read. It has no name and no caption.
    Skipped,
}

/// How many rows there are, and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of the labels.
    pub rows: u64,
    /// Of these, rows without votes: their status is not `ok`.
    pub failed: u64,
    /// Rows that the judgement left out, such as dropped ties.
    pub dropped: u64,
    /// Rows whose latents are not in the cache.
    pub uncached: u64,
    /// Rows that are trained on.
    pub selected: u64,
    /// Rows that could be trained on and are held out ([`Dataset::hold_out`]).
    pub held_out: u64,
    /// Of the selected rows, those that are skipped: they keep their place in the order and are not read.
    pub skipped: u64,
    /// Pairs of the input that the labels do not speak of.
    pub unlabelled: u64,
    /// The same for each input file.
    pub by_file: Vec<FileCounts>,
}

/// How many rows of one input file there are, and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileCounts {
    /// The file, as the labels name it.
    pub source_file: String,
    /// Its pairs.
    pub pairs: u64,
    /// Rows of the labels that speak of them.
    pub labelled: u64,
    /// As [`Counts::failed`].
    pub failed: u64,
    /// As [`Counts::dropped`].
    pub dropped: u64,
    /// As [`Counts::uncached`].
    pub uncached: u64,
    /// As [`Counts::selected`], before any were held out.
    pub selected: u64,
}

/// Labels joined with what they speak of.
#[derive(Debug)]
pub struct Dataset<L> {
    selection: Arc<Selection>,
    /// In the order of [`Selection::rows`].
    labels: Vec<L>,
    counts: Counts,
    fingerprint: String,
}

/// Where the pairs of a dataset are: what the threads of a stream share.
#[derive(Debug)]
struct Selection {
    source: Arc<Source>,
    geometry: Arc<Geometry>,
    rows: Rows,
    /// Of each row, whether the labels name the pair by its place though it has an id.
    positional: Vec<bool>,
    /// Of each row, whether it is not to be read.
    skipped: Vec<bool>,
}

impl Selection {
    /// Whether a row is not to be read.
    fn is_skipped(&self, index: usize) -> bool {
        self.skipped.get(index).copied().unwrap_or(false)
    }
}

/// Refuses pairs to be trained on that have no images, where the footers of the files give them away: more
/// images are missing in a row group than it has rows without labels.
fn check_images(files: &[PairFile], selected: &Rows, labelled: &Rows) -> Result<(), DataError> {
    for (number, file) in files.iter().enumerate() {
        for group in file.row_groups() {
            let rows = group.first_row..group.first_row + group.num_rows;
            let [first, end] = [rows.start, rows.end].map(|row| u64::try_from(row).unwrap_or(0));
            let unlabelled = (end - first) - labelled.among(number, first..end).len() as u64;
            if group.missing_images.iter().any(|missing| *missing > unlabelled) {
                encoded::find_missing_image(file, rows, selected.among(number, first..end))?;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
enum Source {
    Pairs(Vec<PairFile>),
    Cache(Box<Cache>),
}

impl<L> Dataset<L> {
    /// Joins labels with the files, folders and patterns of `pairs`, of which `splits` are taken
    /// ([`discover`]). `judge` is shown every row of
    /// the labels whose status is `ok`, in their order; a row for which it has no answer is left out.
    ///
    /// The small columns of all pairs are read, their images only where the footer of a file says that
    /// more are missing than are left out.
    ///
    /// # Errors
    /// When a file cannot be read or lacks columns, the labels belong to other pairs, or no pair is
    /// left.
    pub fn open(
        pairs: &[PathBuf],
        splits: &[String],
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
    ) -> Result<Self, DataError> {
        Self::open_skipping(pairs, splits, labels, label, &|_| false)
    }

    /// As [`Dataset::open`]; pairs whose judgement `is_skipped` keep their place in the order of an epoch, are
    /// never read, and come as [`Content::Skipped`].
    ///
    /// # Errors
    /// As [`Dataset::open`], but that nothing is asked of the images of pairs that are skipped.
    pub fn open_skipping(
        pairs: &[PathBuf],
        splits: &[String],
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
        is_skipped: &dyn Fn(&L) -> bool,
    ) -> Result<Self, DataError> {
        let found = discover(pairs, splits)?;
        if let Some(left_out) = found.left_out() {
            tracing::info!("{left_out}");
        }
        let open = |input| -> Result<PairFile, DataError> {
            runkit::signals::check()?;
            Ok(PairFile::open(input)?)
        };
        let files = found.files.iter().map(open).collect::<Result<Vec<PairFile>, _>>()?;
        let groups = files.iter().map(PairFile::row_group_sizes).collect::<Result<Vec<_>, _>>()?;
        Self::join(Source::Pairs(files), &groups, labels, label, is_skipped)
    }

    /// Joins labels with the latents in the folder of a cache, as [`Dataset::open`] does with pairs.
    /// The order of its epochs is that of the pairs the cache was made of.
    ///
    /// # Errors
    /// As [`Dataset::open`], and when the cache is not complete.
    pub fn open_cache(
        folder: &Path,
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
    ) -> Result<Self, DataError> {
        Self::open_cache_skipping(folder, labels, label, &|_| false)
    }

    /// To [`Dataset::open_cache`] what [`Dataset::open_skipping`] is to [`Dataset::open`].
    ///
    /// # Errors
    /// As [`Dataset::open_cache`].
    pub fn open_cache_skipping(
        folder: &Path,
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
        is_skipped: &dyn Fn(&L) -> bool,
    ) -> Result<Self, DataError> {
        let cache = Cache::open(folder)?;
        let groups = cache.row_groups();
        Self::join(Source::Cache(Box::new(cache)), &groups, labels, label, is_skipped)
    }

    fn join(
        source: Source,
        groups: &[Vec<(u32, u64)>],
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
        is_skipped: &dyn Fn(&L) -> bool,
    ) -> Result<Self, DataError> {
        let labels = LabelsFile::open(labels)?;
        let mut joined = join::join(&source, &labels, label)?;
        let skipped: Vec<bool> = joined.labels.iter().map(is_skipped).collect();
        joined.counts.skipped = skipped.iter().filter(|skipped| **skipped).count() as u64;
        if let Source::Pairs(files) = &source {
            let (_, needed) = joined.rows.split(&skipped);
            check_images(files, &needed, &joined.labelled)?;
        }
        let selection = Selection {
            source: Arc::new(source),
            geometry: Arc::new(Geometry::new(groups)),
            rows: joined.rows,
            positional: joined.positional,
            skipped,
        };
        Ok(Self::of(selection, joined.labels, joined.counts))
    }

    fn of(selection: Selection, labels: Vec<L>, counts: Counts) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        let source = &selection.source;
        text(match &**source {
            Source::Pairs(_) => "pairs",
            Source::Cache(cache) => cache.fingerprint(),
        });
        for file in 0..source.files() {
            text(source.source_file(file));
            text(&source.fingerprint(file));
        }
        for index in 0..selection.rows.len() {
            hasher.update(&selection.rows.place(index).number().to_le_bytes());
        }
        let fingerprint = hasher.finalize().to_hex().to_string();
        Self { selection: Arc::new(selection), labels, counts, fingerprint }
    }

    /// Takes `count` pairs out: the rest, and a dataset of those. Which they are is a function of `key` and of
    /// where the pairs stand in the input, so that pairs and their cache, and labels that differ in few pairs,
    /// hold out the same. The second dataset has none where `count` is 0, and all where there are no more.
    #[must_use]
    pub fn hold_out(self, count: u64, key: u64) -> (Self, Self)
    where
        L: Clone,
    {
        let Selection { source, geometry, rows, positional, skipped } = &*self.selection;
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(rows.len());
        let mut keyed: Vec<(u64, usize)> = (0..rows.len())
            .map(|index| (xxh3_64_with_seed(&rows.place(index).number().to_le_bytes(), key), index))
            .collect();
        if (1..keyed.len()).contains(&count) {
            keyed.select_nth_unstable(count - 1);
        }
        let mut is_held = vec![false; rows.len()];
        for (_, index) in keyed.iter().take(count) {
            if let Some(is_held) = is_held.get_mut(*index) {
                *is_held = true;
            }
        }
        let (held, kept) = rows.split(&is_held);
        let side = |rows: Rows, wanted: bool| {
            let flags = |flags: &[bool]| -> Vec<bool> {
                let chosen = flags.iter().zip(&is_held).filter(|(_, held)| **held == wanted);
                chosen.map(|(flag, _)| *flag).collect()
            };
            let labels = self.labels.iter().zip(&is_held);
            let labels: Vec<L> = labels
                .filter(|(_, held)| **held == wanted)
                .map(|(label, _)| label.clone())
                .collect();
            let skipped = flags(skipped);
            let counts = Counts {
                selected: rows.len() as u64,
                held_out: if wanted { 0 } else { count as u64 },
                skipped: skipped.iter().filter(|skipped| **skipped).count() as u64,
                ..self.counts.clone()
            };
            let selection = Selection {
                source: Arc::clone(source),
                geometry: Arc::clone(geometry),
                rows,
                positional: flags(positional),
                skipped,
            };
            Self::of(selection, labels, counts)
        };
        (side(kept, false), side(held, true))
    }

    /// Where the pairs stand, as `FILE:ROW`, in input order.
    pub fn selection(&self) -> impl Iterator<Item = String> + '_ {
        let Selection { source, rows, .. } = &*self.selection;
        (0..rows.len()).map(move |index| {
            let place = rows.place(index);
            positional_pair_id(source.source_file(place.file as usize), i64::from(place.row))
        })
    }

    /// The pairs of an epoch: those that are trained on.
    pub fn len(&self) -> u64 {
        self.selection.rows.len() as u64
    }

    /// Whether there is none: never at first, since a dataset without a pair is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A checksum of which pairs are trained on: names and footers of the input files, and the rows
    /// selected. What is thought of each pair is not in it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// How many rows there are, and what became of them.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The labels of the pairs that are trained on, in input order.
    pub fn labels(&self) -> &[L] {
        &self.labels
    }

    /// Checks that a stream can be had.
    ///
    /// # Errors
    /// As [`Stream::start`].
    pub fn check(&self, options: &StreamOptions) -> Result<(), DataError> {
        stream::check(&self.selection, options).map(|_| ())
    }

    /// What the cache was made with, where this is one.
    pub fn cache(&self) -> Option<&Manifest> {
        match &*self.selection.source {
            Source::Pairs(_) => None,
            Source::Cache(cache) => Some(cache.manifest()),
        }
    }
}

impl join::Source for Source {
    fn files(&self) -> usize {
        match self {
            Self::Pairs(files) => files.len(),
            Self::Cache(cache) => cache.files(),
        }
    }

    fn source_file(&self, file: usize) -> &str {
        match self {
            Self::Pairs(files) => files.get(file).map_or("", PairFile::source_file),
            Self::Cache(cache) => cache.source_file(file),
        }
    }

    fn path(&self, file: usize) -> &Path {
        match self {
            Self::Pairs(files) => files.get(file).map_or(Path::new(""), PairFile::path),
            Self::Cache(cache) => cache.path(file),
        }
    }

    fn fingerprint(&self, file: usize) -> String {
        match self {
            Self::Pairs(files) => files.get(file).map(PairFile::fingerprint).unwrap_or_default(),
            Self::Cache(cache) => cache.input_fingerprint(file).to_owned(),
        }
    }

    fn num_rows(&self, file: usize) -> u32 {
        let rows = match self {
            Self::Pairs(files) => files.get(file).map_or(0, PairFile::num_rows),
            Self::Cache(cache) => cache.num_rows(file),
        };
        u32::try_from(rows).unwrap_or(0)
    }

    fn each_row(
        &self,
        file: usize,
        each: &mut dyn FnMut(SmallRow<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        match self {
            Self::Pairs(files) => {
                let Some(file) = files.get(file) else { return Ok(()) };
                for batch in file.plan_rows()? {
                    runkit::signals::check_at("plan")?;
                    for row in batch? {
                        each(SmallRow {
                            row: u32::try_from(row.row).unwrap_or(u32::MAX),
                            pair_id: &row.pair_id,
                            caption: row.caption.as_deref(),
                            image_uid: row.image_uid.each_ref().map(Option::as_deref),
                            usable: true,
                        })?;
                    }
                }
                Ok(())
            }
            Self::Cache(cache) => cache.each_row(file, each),
        }
    }
}

#[cfg(test)]
mod tests;
