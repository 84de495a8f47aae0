//! From files to examples: labels joined with pairs or with cached latents, an order, a stream.
//!
//! [`Dataset`] joins `labels.parquet` with the pairs by (`source_file`, `source_row`) and keeps a
//! few tens of bytes of each pair; it reports errors of the input before anything long starts.
//! [`Stream`] returns examples in the order of an epoch (see [`WINDOW_BYTES`]), epoch after epoch,
//! from any position on, and prefetches them within a bound of memory.
//!
//! This module does not interpret labels: a function turns a row of labels into a label of any
//! type, or drops the row.

mod augment;
mod cache_files;
mod cached;
mod dealing;
mod encoded;
mod error;
mod inputs;
mod join;
mod loader;
mod memory_budget;
mod options;
mod order;
mod stream;
pub(crate) mod transform;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nn::pipeline::PromptEmbeds;
use schemas::labels::{LabelRow, LabelsFile};
use schemas::latents::Manifest;
use schemas::pairs::{PairFile, positional_pair_id};
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::cached::Cache;
pub use self::error::DataError;
pub use self::inputs::PairInputs;
use self::join::{SmallRow, Source as _};
pub use self::options::{Positions, StreamOptions};
pub use self::order::{BLOCK_BYTES, WINDOW_BYTES};
use self::order::{Geometry, Rows};
pub use self::stream::Stream;
pub(crate) use self::stream::decoded_ahead;

/// One pair, ready for the device.
#[derive(Debug)]
pub struct Example<L> {
    /// The name of the pair, as in the labels.
    pub pair_id: String,
    /// The prompt.
    pub caption: String,
    /// What the labels say.
    pub label: L,
    /// Its position since the start of training, across epochs.
    pub position: u64,
    /// Pixels or latents.
    pub content: Content,
}

impl<L> Example<L> {
    /// The same example with another label.
    pub fn map<M>(self, change: impl FnOnce(L) -> M) -> Example<M> {
        let Self { pair_id, caption, label, position, content } = self;
        Example { pair_id, caption, label: change(label), position, content }
    }
}

/// What the networks read from a pair.
#[derive(Debug)]
pub enum Content {
    /// The pixels of both images: channel, row, column, in [-1, 1].
    Pixels([Vec<f32>; 2]),
    /// From a cache; f32, on the CPU.
    Latents {
        /// The mean of the latents of both images, `[C, H, W]`, not scaled.
        mean: [Tensor; 2],
        /// The std of the latents of both images, `[C, H, W]`, not scaled.
        std: [Tensor; 2],
        /// The prompt embeddings of the caption, one row.
        text: PromptEmbeds,
    },
    /// A skipped pair: it keeps its position in the order and is not read. It has no id and no
    /// caption.
    Skipped,
}

/// Counts of rows by what happened to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of the labels for pairs of these files.
    pub rows: u64,
    /// Rows of the labels for other pairs.
    pub elsewhere: u64,
    /// Rows that relabelling failed for: without votes, or partial and without what the preference
    /// needs.
    pub failed: u64,
    /// Rows without a label, such as dropped ties.
    pub dropped: u64,
    /// Rows whose latents are not in the cache.
    pub uncached: u64,
    /// Rows to train on.
    pub selected: u64,
    /// Rows that could be trained on and are held out ([`Dataset::hold_out`]).
    pub held_out: u64,
    /// Selected rows that are skipped: they keep their position in the order and are not read.
    pub skipped: u64,
    /// Pairs of the input without a row of labels.
    pub unlabelled: u64,
    /// The same for each input file.
    pub by_file: Vec<FileCounts>,
}

/// Counts of rows of one input file by what happened to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileCounts {
    /// The file, as the labels name it.
    pub source_file: String,
    /// Its pairs.
    pub pairs: u64,
    /// Rows of labels for them.
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

/// Labels joined with their pairs or with cached latents.
#[derive(Debug)]
pub struct Dataset<L> {
    selection: Arc<Selection>,
    /// One label per row of [`Selection::rows`].
    labels: Vec<L>,
    counts: Counts,
    fingerprint: String,
}

/// The selected pairs of a dataset and where they are. The threads of a stream share it.
#[derive(Debug)]
struct Selection {
    source: Arc<Source>,
    geometry: Arc<Geometry>,
    rows: Rows,
    /// Per row, whether the labels identify the pair by its location although it has an id.
    positional: Vec<bool>,
    /// Per row, whether it is skipped.
    skipped: Vec<bool>,
}

impl Selection {
    /// Whether a row is skipped.
    fn is_skipped(&self, index: usize) -> bool {
        self.skipped.get(index).copied().unwrap_or(false)
    }
}

/// Refuses selected pairs without images. The images are read only if the footers of the files give
/// a reason: a row group lacks more images than it has rows without labels.
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
    /// Joins labels with the `splits` of the files, folders, patterns and addresses of `pairs`
    /// ([`discover`](schemas::pairs::discover())). `label` gets every row of the labels whose status
    /// is `ok`, in order; a row without a result is dropped.
    ///
    /// This reads the small columns of all pairs, and images only if the footer of a file says that
    /// more of them are missing than rows are dropped.
    ///
    /// # Errors
    /// If a file cannot be read or lacks columns, the labels belong to other pairs, or no pair is
    /// left.
    pub fn open(
        pairs: &[PathBuf],
        splits: &[String],
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
    ) -> Result<Self, DataError> {
        let inputs = PairInputs { pairs: pairs.to_vec(), splits: splits.to_vec(), layout: None };
        Self::open_skipping(&inputs, labels, label, &|_| false)
    }

    /// Like [`Dataset::open`]; pairs whose label `is_skipped` keep their position in the order of
    /// an epoch, are never read, and come as [`Content::Skipped`].
    ///
    /// # Errors
    /// As [`Dataset::open`]; the images of skipped pairs may be missing.
    pub fn open_skipping(
        inputs: &PairInputs,
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
        is_skipped: &dyn Fn(&L) -> bool,
    ) -> Result<Self, DataError> {
        let opened = inputs.open(|_, file| Ok::<_, DataError>(file))?;
        opened.say();
        opened.warn_of_whole_groups();
        let files = opened.files;
        let groups = files.iter().map(PairFile::row_group_sizes).collect::<Result<Vec<_>, _>>()?;
        Self::join(Source::Pairs(files), &groups, labels, label, is_skipped)
    }

    /// Joins labels with the latents in the folder of a cache, as [`Dataset::open`] does with
    /// pairs. The order of its epochs is that of the pairs that the cache was made from.
    ///
    /// # Errors
    /// As [`Dataset::open`], and if the cache is not complete.
    pub fn open_cache(
        folder: &Path,
        labels: &Path,
        label: &mut dyn FnMut(&LabelRow) -> Option<L>,
    ) -> Result<Self, DataError> {
        Self::open_cache_skipping(folder, labels, label, &|_| false)
    }

    /// Like [`Dataset::open_cache`], with skipped pairs as in [`Dataset::open_skipping`].
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
        dealing::refuse_another(&source, &labels)?;
        let mut joined = join::join(&source, &labels, label)?;
        let Counts { rows, elsewhere, .. } = joined.counts;
        if elsewhere > 0 {
            tracing::info!("{rows} of {} labelled pairs are in these files", rows + elsewhere);
        }
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
            hasher.update(&selection.rows.location(index).number().to_le_bytes());
        }
        let fingerprint = hasher.finalize().to_hex().to_string();
        Self { selection: Arc::new(selection), labels, counts, fingerprint }
    }

    /// Holds out `count` pairs, or all if there are fewer: returns the remaining pairs and the
    /// held-out ones. The choice is a function of `key` and of the pairs' locations in the input,
    /// so that pairs and their cache, and labels that differ in few pairs, hold out the same pairs.
    #[doc(alias = "held-out")]
    #[doc(alias = "train_test_split")]
    #[must_use]
    pub fn hold_out(self, count: u64, key: u64) -> (Self, Self)
    where
        L: Clone,
    {
        let Selection { source, geometry, rows, positional, skipped } = &*self.selection;
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(rows.len());
        let mut keyed: Vec<(u64, usize)> = (0..rows.len())
            .map(|index| {
                (xxh3_64_with_seed(&rows.location(index).number().to_le_bytes(), key), index)
            })
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

    /// The locations of the pairs, as `FILE:ROW`, in input order.
    pub fn locations(&self) -> impl Iterator<Item = String> + '_ {
        let Selection { source, rows, .. } = &*self.selection;
        (0..rows.len()).map(move |index| {
            let location = rows.location(index);
            positional_pair_id(source.source_file(location.file as usize), i64::from(location.row))
        })
    }

    /// The number of pairs of an epoch.
    pub fn len(&self) -> u64 {
        self.selection.rows.len() as u64
    }

    /// Whether there is no pair. [`Dataset::open`] refuses that, but nothing may be held out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A checksum of the choice of pairs: names and footers of the input files, and the selected
    /// rows. It does not depend on the labels.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Counts of rows by what happened to them.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The labels of the selected pairs, in input order.
    pub fn labels(&self) -> &[L] {
        &self.labels
    }

    /// Checks that [`Stream::start`] would accept these options.
    ///
    /// # Errors
    /// As [`Stream::start`].
    pub fn check(&self, options: &StreamOptions) -> Result<(), DataError> {
        stream::check(&self.selection, options).map(|_| ())
    }

    /// How the images of winner-first pairs are dealt out, if there may be such.
    pub fn dealing(&self) -> Option<&str> {
        dealing::of(&self.selection.source).map(|(_, dealing)| dealing)
    }

    /// What the cache was made with, if the source is a cache.
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
            Self::Pairs(files) => {
                files.get(file).map_or(0, |file| u64::try_from(file.num_rows()).unwrap_or(0))
            }
            Self::Cache(cache) => cache.num_rows(file),
        };
        u32::try_from(rows).unwrap_or(0)
    }

    fn has_row(&self, file: usize, row: u32) -> bool {
        match self {
            Self::Pairs(_) => row < self.num_rows(file),
            Self::Cache(cache) => cache.has_row(file, row),
        }
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
