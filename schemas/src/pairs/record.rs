//! What manifests say of the pairs that a file was made from. The names of the fields are part of
//! the manifests, and so of the bytes of `labels.parquet`.

use serde::{Deserialize, Serialize};

use super::PairFile;
use crate::layouts::{DEALING, Layout};

/// The pairs that were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Pairs.
    pub rows: u64,
    /// A checksum of ids, captions, uids and human labels, if the program reads them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// How the images of winner-first pairs were dealt out ([`DEALING`]), if a file may have such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dealing: Option<String>,
    /// The files, in order.
    pub files: Vec<FileRecord>,
}

impl InputRecord {
    /// Of these files.
    pub fn new(rows: u64, content: Option<String>, files: Vec<FileRecord>) -> Self {
        let is_dealt = |file: &FileRecord| file.layout.is_some_and(Layout::is_dealt);
        let dealing = files.iter().any(is_dealt).then(|| DEALING.to_owned());
        Self { rows, content, dealing, files }
    }
}

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name below the input folder, as in the column `source_file`.
    pub source_file: String,
    /// Its layout; absent for Pick-a-Pic's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// The rows that were read.
    pub rows: u64,
    /// [`PairFile::fingerprint`].
    pub fingerprint: String,
}

impl PairFile {
    /// What a manifest says of the file, if `rows` of it were read.
    pub fn record(&self, rows: u64) -> FileRecord {
        FileRecord {
            source_file: self.source_file().to_owned(),
            layout: Some(self.layout()).filter(|layout| *layout != Layout::PickAPic),
            rows,
            fingerprint: self.fingerprint(),
        }
    }
}
