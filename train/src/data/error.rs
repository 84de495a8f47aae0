//! Errors of the data of a run.

use std::path::PathBuf;

use locations::LocationError;
use media::decode::DecodeError;
use nn::NetworkError;
use runkit::signals::Stopped;
use schemas::labels::LabelsError;
use schemas::latents::LatentsError;
use schemas::pairs::PairsError;

/// Why a dataset cannot be opened or the next example cannot be read. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The process was asked to stop.
    #[error("{0}")]
    Stopped(#[source] Stopped),
    /// The pairs cannot be found or read.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// The labels cannot be read.
    #[error(transparent)]
    Labels(#[from] LabelsError),
    /// The cache cannot be read.
    #[error(transparent)]
    Latents(#[from] LatentsError),
    /// The cache lies elsewhere and cannot be reached.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// No row of the labels is of a file of the pairs.
    #[error(
        "{}: no row is of a file given ({files}): row {row} is of {source_file:?}; \
         hint: give the pairs that were labelled, by the same folder",
        labels.display()
    )]
    UnknownFile {
        /// The labels.
        labels: PathBuf,
        /// The row of the labels.
        row: u64,
        /// The file it names.
        source_file: String,
        /// Some of the files of the pairs.
        files: String,
    },
    /// The labels name a row that does not exist.
    #[error(
        "{}: row {row} is of row {source_row} of {source_file:?}, which has {rows} rows; \
         hint: give the pairs that were labelled, or label these",
        labels.display()
    )]
    UnknownRow {
        /// The labels.
        labels: PathBuf,
        /// The row of the labels.
        row: u64,
        /// The file.
        source_file: String,
        /// The row it names.
        source_row: i64,
        /// The rows of the file.
        rows: u32,
    },
    /// The labels have two rows for a pair.
    #[error("{}: expected each pair once, found row {source_row} of {source_file:?} twice", labels.display())]
    Twice {
        /// The labels.
        labels: PathBuf,
        /// The file.
        source_file: String,
        /// Its row.
        source_row: u32,
    },
    /// The labels are of other pairs.
    #[error(
        "{}: the labels are of other pairs: {field} of row {source_row} of {} is {found} there and \
         {expected} in the labels; hint: give the pairs that were labelled, or label these",
        labels.display(),
        pairs.display()
    )]
    OtherPairs {
        /// The labels.
        labels: PathBuf,
        /// The file of pairs.
        pairs: PathBuf,
        /// Its row.
        source_row: u32,
        /// Which column differs.
        field: &'static str,
        /// The value in the labels.
        expected: String,
        /// The value in the pairs.
        found: String,
    },
    /// The images of winner-first pairs are dealt out in another way than the labels say.
    #[error(
        "{}: the images of its pairs were dealt out by {labelled:?}, those of {} are by {dealt:?}, so \
         that a vote may mean the other image; hint: label the pairs again with this version",
        labels.display(),
        pairs.display()
    )]
    Dealing {
        /// The labels.
        labels: PathBuf,
        /// Their rule.
        labelled: String,
        /// The pairs, or their cache.
        pairs: PathBuf,
        /// Theirs.
        dealt: String,
    },
    /// A row of labels is `ok` but cannot be trained on.
    #[error("{}: row {row} has status ok and no caption; hint: label the pairs again", labels.display())]
    NoCaption {
        /// The labels.
        labels: PathBuf,
        /// The row of the labels.
        row: u64,
    },
    /// No pair is left.
    #[error(
        "{}: no pair is left to train on: of {rows} rows {failed} failed, {dropped} were dropped as \
         ties or without a preference, and {uncached} are not in the cache; hint: look at the labels \
         with `relabel inspect`, or decide ties with --ties",
        labels.display()
    )]
    Empty {
        /// The labels.
        labels: PathBuf,
        /// Rows of the labels.
        rows: u64,
        /// Rows without votes.
        failed: u64,
        /// Rows without a label.
        dropped: u64,
        /// Rows whose latents are missing.
        uncached: u64,
    },
    /// The folder is not a complete cache.
    #[error("{}: {reason}", folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// What was expected and found, with a hint.
        reason: String,
    },
    /// The options of a stream ask for something that the data does not have.
    #[error("{0}")]
    Options(String),
    /// A selected pair lacks an image.
    #[error(
        "{}: pair {pair_id} (row {row}) has no image {image}{why}, though its labels are ok; \
         hint: give the pairs that were labelled, or skip this one: --skip-pairs takes a file with \
         {pair_id} in a line",
        path.display()
    )]
    MissingImage {
        /// The file.
        path: PathBuf,
        /// Its row.
        row: u32,
        /// The pair.
        pair_id: String,
        /// Which image.
        image: usize,
        /// Why, in brackets, if the file says more than null.
        why: String,
    },
    /// An image of a selected pair cannot be decoded.
    #[error(
        "{}: image {image} of pair {pair_id} (row {row}): {cause}\n\
         hint: its labels are ok, so the file has changed since it was labelled; restore it, or skip the pair: \
         --skip-pairs takes a file with {pair_id} in a line",
        path.display()
    )]
    Decode {
        /// The file.
        path: PathBuf,
        /// Its row.
        row: u32,
        /// The pair.
        pair_id: String,
        /// Which image.
        image: usize,
        /// The error of the decoder.
        #[source]
        cause: DecodeError,
    },
    /// libtorch could not hold what was read.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A thread could not be started or ended early.
    #[error("the thread that {what} ended: {reason}; hint: this is a bug, please report it")]
    Thread {
        /// What it does.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl From<Stopped> for DataError {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

impl From<tch::TchError> for DataError {
    fn from(error: tch::TchError) -> Self {
        Self::Network(error.into())
    }
}
