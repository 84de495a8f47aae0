//! Image pairs, the input: Parquet files in Pick-a-Pic's layout (v1 and v2 have the same columns)
//! or one's own with the columns of [`crate::columns::PAIR_COLUMNS`], and the other layouts of
//! [`crate::layouts`].
//!
//! [`discover()`] turns the user's files, folders and patterns into a fixed order of files,
//! [`PairFile`] checks one of them, [`PairRows`] streams its rows, with or without the images.

mod caption;
mod columns;
mod discover;
mod file;
mod images;
mod own;
mod record;
mod remote;
mod rows;
mod splits;

use std::path::PathBuf;

use crate::input::InputError;

pub use caption::{EmptyCaption, MAX_CAPTION_BYTES, caption_problem};
pub use discover::{Discovered, InputFile, discover, discover_as};
pub use file::{PairFile, RowGroup};
pub use record::{FileRecord, InputRecord};
pub use rows::{NoVote, PairRow, PairRows, positional_pair_id};
pub use splits::split_in_name;

pub(crate) use columns::{ALIASES, Columns};
pub(crate) use images::ImageColumn;
pub(crate) use rows::{LABELS, ParquetRows};

/// Why pairs could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    /// The file is not readable Parquet.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A location is not understood, cannot be reached or does not exist.
    #[error(transparent)]
    Location(#[from] locations::LocationError),
    /// Columns are missing or have the wrong type; all of them are listed.
    #[error("{}: not usable as pairs:\n  {}\n{hint}", path.display(), problems.join("\n  "))]
    Columns {
        /// The file.
        path: PathBuf,
        /// One sentence for each column.
        problems: Vec<String>,
        /// How to make a file that is usable.
        hint: String,
    },
    /// A value that its column cannot have.
    #[error("{}: row {row} (counted from 0): {column} is {found}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: i64,
        /// The column.
        column: &'static str,
        /// The value, as text.
        found: String,
        /// The values that are allowed, and a hint.
        expected: &'static str,
    },
    /// A record of a file is not what its layout says, or the file is damaged there.
    #[error("{}: {place}: {detail}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The record, the line or the byte.
        place: String,
        /// What was expected and found.
        detail: String,
    },
    /// A file in none of the layouts.
    #[error(
        "{}: expected pairs in one of the layouts {}; found {found}; hint: docs/data.md describes \
         the layouts; --layout NAME names one",
        path.display(), crate::layouts::Layout::names()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// A file has more pairs than can be numbered.
    #[error(
        "{}: expected at most 4294967295 pairs in a file, found {rows}; hint: split it into several",
        path.display()
    )]
    TooManyRows {
        /// The file.
        path: PathBuf,
        /// Its rows.
        rows: i64,
    },
    /// A file that this workspace wrote, given as pairs.
    #[error("{}: expected pairs, found {kind}, which this program wrote; hint: name the pairs they were made of", path.display())]
    Own {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The files are of several splits, and the user chose none.
    #[error(
        "{}: expected one split, found {found}; hint: choose with --split {example}, so that no \
         training pair is evaluated; --split takes several names, separated by commas",
        path.display()
    )]
    SeveralSplits {
        /// The first location.
        path: PathBuf,
        /// The splits, with their files counted.
        found: String,
        /// One of them.
        example: String,
    },
    /// A chosen split that does not exist.
    #[error(
        "{}: expected files of the split {split:?}, found {found}; hint: the name of a file, such as \
         train-00000-of-00645.parquet, or of a folder names its split",
        path.display()
    )]
    NoSplit {
        /// The first location.
        path: PathBuf,
        /// The chosen split.
        split: String,
        /// The splits that exist.
        found: String,
    },
    /// Nothing has the given name.
    #[error(
        "{}: expected a file, a folder or a pattern, found nothing of that name{}",
        path.display(),
        runkit::path::hint_for_data(path)
    )]
    Missing {
        /// The name.
        path: PathBuf,
    },
    /// A folder or pattern that holds no file.
    #[error(
        "{}: expected {expected}, found none{skipped}; hint: a folder is searched at any depth for \
         *.parquet, *.tar, *.jsonl, *.json or images NAME_w.EXT and NAME_l.EXT", path.display()
    )]
    Nothing {
        /// The folder or pattern.
        path: PathBuf,
        /// Files of pairs, or of a layout.
        expected: String,
        /// What was skipped there, in brackets, or nothing.
        skipped: String,
    },
    /// No input was given.
    #[error("expected at least one file, folder or pattern of pairs, found none")]
    NoInputs,
    /// A folder could not be listed, or a pattern is invalid.
    #[error("{}: cannot search: {detail}", path.display())]
    Search {
        /// The folder or pattern.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// A name that cannot be written into the output.
    #[error("{}: expected a name in UTF-8; hint: rename the file", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// Two files would have the same name in the output.
    #[error(
        "{} and {} would both be called {source_file:?} in the output; hint: give the folder above both",
        first.display(), second.display()
    )]
    SameName {
        /// The file found first.
        first: PathBuf,
        /// The file found later.
        second: PathBuf,
        /// Their common name.
        source_file: String,
    },
    /// One file was named twice.
    #[error("{} and {} are the same file; hint: name it once", first.display(), second.display())]
    SameFile {
        /// The path found first.
        first: PathBuf,
        /// The path found later.
        second: PathBuf,
    },
}
