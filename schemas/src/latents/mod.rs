//! Cached latents, the output of `train cache`: pairs encoded by the autoencoder and the text
//! encoders, so that training needs neither.
//!
//! A cache is a folder of parts. A part is a range of rows of one input file and has two files:
//! `latents-*.parquet` ([`LatentsFile`], [`LatentsWriter`]) has a row for each of its pairs, in the
//! same order, and `captions-*.parquet` ([`CaptionsFile`], [`CaptionsWriter`]) one for each caption
//! that no earlier part has. They hold no label, so a cache serves every labelling of its pairs.
//! `manifest.json` ([`CacheManifest`]) lists the parts; a cache grows by parts.
//!
//! Training reads both in random order, a row at a time: a data page holds at least one row and not
//! much more than [`PAGE_BYTES`], and the page index says where it is.

mod file;
mod layout;
mod manifest;
mod row;
mod table;
mod writer;

use std::path::PathBuf;

use arrow::error::ArrowError;

use crate::input::InputError;
use crate::table_writer::WriteError;

pub use crate::columns::StoredFloat;
pub use file::{CaptionsFile, LatentRows, LatentsFile};
pub use layout::{CaptionsLayout, LatentsLayout};
pub use manifest::{CacheManifest, Manifest, PartPlan, PartRecord, encoders};
pub use row::{CaptionRow, Geometry, ImageMoments, LatentRow, Moments};
pub use table::PAGE_BYTES;
pub use writer::{CaptionsWriter, LatentsWriter};

/// The version of the columns and their meaning. It grows when a reader of the old version would
/// misread a file or miss a column; a new column does not change it.
pub const SCHEMA_VERSION: u32 = 2;
/// The metadata key of [`SCHEMA_VERSION`]; the writers set it.
pub const KEY_SCHEMA_VERSION: &str = "latents.schema_version";
/// The metadata key of the fingerprint of everything but the pairs that the cache was computed from.
/// All parts of a cache have the same.
pub const KEY_FINGERPRINT: &str = "latents.fingerprint";
/// The metadata key of the [`Manifest`] of a part, as JSON; its input is the part's file alone.
pub const KEY_MANIFEST: &str = "latents.manifest";
/// The metadata key of the [`PartRecord`], as JSON.
pub const KEY_PART: &str = "latents.part";
/// The metadata key of the shape of the numbers in a list; the writers set it.
pub const KEY_SHAPE: &str = "latents.shape";

/// `latents-00003.parquet`: the latents of part 3.
pub fn latents_name(part: usize) -> String {
    format!("latents-{part:05}.parquet")
}

/// `captions-00003.parquet`: the captions that first occur in part 3.
pub fn captions_name(part: usize) -> String {
    format!("captions-{part:05}.parquet")
}

/// Why cached latents could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LatentsError {
    /// The file is not readable Parquet.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The file is Parquet but not this part of a cache; all reasons are listed.
    #[error(
        "{}: not {what}:\n  {}\nhint: name the folder that `train cache` wrote",
        path.display(),
        problems.join("\n  ")
    )]
    Columns {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// One sentence for each column.
        problems: Vec<String>,
    },
    /// The file was written by another version of the schema.
    #[error(
        "{}: expected cached latents of schema version {SCHEMA_VERSION}, found version {found}; \
         hint: make the cache again with `train cache --fresh`",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file's metadata.
        found: String,
    },
    /// A row that must not be in the file, or that the file does not have.
    #[error("{}: row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: i64,
        /// What is wrong with it.
        problem: String,
    },
    /// Columns that do not fit together.
    #[error("latents: columns do not fit: {0}")]
    Batch(#[from] ArrowError),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
