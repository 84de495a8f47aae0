//! `labels.parquet`, the output of `relabel`: one row per pair, in input order, with the scores,
//! the votes and the consensus. It has every input row once; a row without votes says why.
//!
//! [`LabelsSchema`] is the set of columns for a list of scorers, [`LabelRow`] one row,
//! [`LabelBatch`] many rows by column, [`LabelsWriter`] and [`LabelsFile`] the file. [`vote()`] and
//! [`consensus`] say what the columns of votes hold; `relabel` decides what becomes of ties.

mod batch;
mod file;
mod row;
mod schema;
mod vote;
mod writer;

use std::path::PathBuf;

use arrow::error::ArrowError;

use crate::input::InputError;
use crate::table_writer::WriteError;

pub use batch::{LabelBatch, LabelBatchBuilder};
pub use file::{LabelBatches, LabelsFile};
pub use row::{LabelRow, Status};
pub use schema::{LabelsSchema, MAX_SCORERS};
pub use vote::{consensus, vote};
pub use writer::{LabelsWriter, ROW_GROUP_ROWS};

/// The version of the columns and their meaning. It grows when a reader of the old version would
/// misread a file or miss a column; a new column does not change it.
pub const SCHEMA_VERSION: u32 = 1;
/// The metadata key of [`SCHEMA_VERSION`]; the writer sets it.
pub const KEY_SCHEMA_VERSION: &str = "relabel.schema_version";
/// The metadata key of the fingerprint of everything the file was computed from.
pub const KEY_FINGERPRINT: &str = "relabel.fingerprint";
/// The metadata key of the manifest, as JSON.
pub const KEY_MANIFEST: &str = "relabel.manifest";

/// Why labels could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LabelsError {
    /// The file is not readable Parquet.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The file is Parquet but not labels; all reasons are listed.
    #[error("{}: not a labels file:\n  {}", path.display(), problems.join("\n  "))]
    Columns {
        /// The file.
        path: PathBuf,
        /// One sentence for each column.
        problems: Vec<String>,
    },
    /// The file was written by another version of the schema.
    #[error("{}: expected schema version {SCHEMA_VERSION}, found {found:?}; hint: make the file again, or read it with the release that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file's metadata.
        found: String,
    },
    /// The names of the scorers cannot be names of columns.
    #[error("scorer names: {problem}")]
    Scorers {
        /// What is wrong with them.
        problem: String,
    },
    /// A row or batch that must not be in a labels file.
    #[error("row {row} ({pair_id:?}): {problem}")]
    Row {
        /// The row, counted from 0 in the caller's order.
        row: usize,
        /// Its pair.
        pair_id: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value that must not be in a labels file, or does not fit its column's type.
    #[error("{}: row {row} (counted from 0): {problem}; hint: make the labels again with relabel score", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The row of the file, counted from 0.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Columns that do not fit together.
    #[error("labels: columns do not fit: {0}")]
    Batch(#[from] ArrowError),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
