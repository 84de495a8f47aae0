//! What manifests say of the pairs that a file was made from. The names of the fields are part of
//! the manifests, and so of the bytes of `labels.parquet`.

use serde::{Deserialize, Serialize};

/// The pairs that were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Pairs.
    pub rows: u64,
    /// A checksum of ids, captions, uids and human labels, if the program reads them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The files, in order.
    pub files: Vec<FileRecord>,
}

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name below the input folder, as in the column `source_file`.
    pub source_file: String,
    /// The rows that were read.
    pub rows: u64,
    /// blake3 of its length and footer.
    pub fingerprint: String,
}
