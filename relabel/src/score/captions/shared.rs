//! Caption features in the work folder, so that a run encodes each caption once, whichever process
//! does it and however often the run is started.
//!
//! One file for a chunk of captions: a line that says what they belong to, the features of each text
//! tower row by row in little-endian f32, and the BLAKE3 of all that. A file that is damaged counts
//! as absent, and one of another run too: its captions are encoded again, into the same bytes.

use std::path::PathBuf;

use anyhow::Result;
use runkit::files::{FileError, create_folder, write_atomic};

use super::Groups;

/// The features that the processes of a run share.
#[derive(Debug, Clone)]
pub(crate) struct SharedFeatures {
    folder: PathBuf,
    /// What the features depend on.
    fingerprint: String,
    groups: Groups,
    /// Numbers per caption, for each text tower.
    widths: Vec<usize>,
}

impl SharedFeatures {
    /// Those of a run, in a folder that exists or is made when the first features are written.
    pub(crate) fn new(
        folder: PathBuf,
        fingerprint: &str,
        groups: Groups,
        widths: Vec<usize>,
    ) -> Self {
        Self { folder, fingerprint: fingerprint.to_owned(), groups, widths }
    }

    fn path(&self, chunk: usize) -> PathBuf {
        let count = self.groups.chunks();
        self.folder.join(format!("captions-{chunk:05}-of-{count:05}.features"))
    }

    fn head(&self, chunk: usize) -> String {
        format!("caption features of {}, {chunk}, {:?}\n", self.fingerprint, self.widths)
    }

    /// Whether there is a file of a chunk, whole or damaged.
    pub(super) fn has(&self, chunk: usize) -> bool {
        self.path(chunk).exists()
    }

    /// The features of a chunk for each text tower, if somebody has encoded it.
    pub(super) fn read(&self, chunk: usize) -> Option<Vec<Vec<u8>>> {
        let bytes = std::fs::read(self.path(chunk)).ok()?;
        let (content, digest) =
            bytes.split_at_checked(bytes.len().checked_sub(blake3::OUT_LEN)?)?;
        let mut rest = content.strip_prefix(self.head(chunk).as_bytes())?;
        if blake3::hash(content).as_bytes() != digest {
            tracing::warn!(
                "{}: damaged; its captions are encoded again",
                self.path(chunk).display()
            );
            return None;
        }
        let captions = self.groups.captions_in(&self.groups.groups_in(chunk)).len();
        let mut towers = Vec::with_capacity(self.widths.len());
        for width in &self.widths {
            let (tower, others) = rest.split_at_checked(captions * width * size_of::<f32>())?;
            towers.push(tower.to_vec());
            rest = others;
        }
        rest.is_empty().then_some(towers)
    }

    /// Writes the features of a chunk.
    ///
    /// # Errors
    /// If the disk fails. If the work folder is gone, since another process has finished the run,
    /// nothing is written.
    pub(super) fn write(&self, chunk: usize, towers: &[Vec<u8>]) -> Result<(), FileError> {
        if !self.folder.parent().is_some_and(std::path::Path::exists) {
            return Ok(());
        }
        create_folder(&self.folder)?;
        let head = self.head(chunk);
        let mut hasher = blake3::Hasher::new();
        hasher.update(head.as_bytes());
        towers.iter().for_each(|tower| {
            hasher.update(tower);
        });
        write_atomic(self.path(chunk), |file| {
            file.write_all(head.as_bytes())?;
            towers.iter().try_for_each(|tower| file.write_all(tower))?;
            file.write_all(hasher.finalize().as_bytes())
        })
    }
}
