//! Image pairs, the input: Parquet files in Pick-a-Pic's layout (v1 and v2 have the same columns) or
//! one's own with the columns of [`crate::columns::PAIR_COLUMNS`].
//!
//! [`discover()`] turns what the user named (files, folders, patterns) into a fixed order of files,
//! [`PairFile`] checks one of them, [`PairRows`] streams its rows, with or without the images.

mod discover;
mod file;
mod layout;
mod rows;

use std::path::PathBuf;

use crate::input::InputError;

pub use discover::{InputFile, discover};
pub use file::{PairFile, RowGroup};
pub use rows::{PairRow, PairRows, positional_pair_id};

/// Why pairs could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    /// The file is not readable Parquet.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Columns are missing or have the wrong type; all of them are listed.
    #[error("{}: not usable as pairs:\n  {}", path.display(), problems.join("\n  "))]
    Columns {
        /// The file.
        path: PathBuf,
        /// One sentence for each column.
        problems: Vec<String>,
    },
    /// Nothing stands under the name that was given.
    #[error("{}: expected a Parquet file, a folder or a pattern, found nothing of that name", path.display())]
    Missing {
        /// The name.
        path: PathBuf,
    },
    /// A folder or pattern that holds no file.
    #[error("{}: expected Parquet files, found none; hint: a folder is searched for *.parquet at any depth", path.display())]
    Nothing {
        /// The folder or pattern.
        path: PathBuf,
    },
    /// No input was given.
    #[error("expected at least one file, folder or pattern of pairs, found none")]
    NoInputs,
    /// A folder could not be listed or a pattern not understood.
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
