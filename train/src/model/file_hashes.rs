//! The SHA-256 of files, remembered from one start of a run to the next: hashing a model of
//! published size takes a minute.
//!
//! A file counts as unchanged if its path, inode, length, time of change of its contents (mtime)
//! and time of change of anything (ctime) are the same. Every write to a file changes its ctime,
//! even if length and mtime are restored; only a change below the file system goes unnoticed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The file in the folder of a run.
pub(crate) const FILE: &str = ".hashes.json";
/// A file that changed less than this before it was hashed may change again within one tick of its
/// clock.
const SETTLED: Duration = Duration::from_secs(2);

/// Hashes by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHashes(BTreeMap<PathBuf, Known>);

/// A hash, and the file it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    seen: Seen,
    sha256: String,
}

/// What the file system reports about a file. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    inode: u64,
    length: u64,
    modified: i64,
    changed: i64,
}

impl Seen {
    fn of(path: &Path) -> Result<Self> {
        let found = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000) + rest;
        Ok(Self {
            inode: found.ino(),
            length: found.len(),
            modified: nanoseconds(found.mtime(), found.mtime_nsec()),
            changed: nanoseconds(found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether its last change was long enough before `time`.
    fn is_settled_at(&self, time: SystemTime) -> bool {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let limit = since.saturating_sub(SETTLED).as_nanos();
        u128::try_from(self.changed).is_ok_and(|changed| changed < limit)
    }
}

impl FileHashes {
    /// The hashes that an earlier start of a run wrote; empty if they cannot be read.
    pub fn read(run: &Path) -> Self {
        let text = std::fs::read(run.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes the hashes to the folder of a run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, run: &Path) -> Result<()> {
        Ok(runkit::files::write_json_atomic(run.join(FILE), self)?)
    }

    /// Hashes those of `paths` that are not known.
    ///
    /// # Errors
    /// If one cannot be read or a signal stops it.
    pub(crate) fn learn<'path>(&mut self, paths: impl Iterator<Item = &'path Path>) -> Result<()> {
        let now = SystemTime::now();
        let seen = paths.map(|path| Ok((path, Seen::of(path)?)));
        let mut unknown = seen.collect::<Result<Vec<_>>>()?;
        unknown.retain(|(path, seen)| self.0.get(*path).is_none_or(|known| known.seen != *seen));
        let hash =
            |(path, seen): (&'path Path, Seen)| Ok((path, Known { seen, sha256: sha256(path)? }));
        let hashed = unknown.into_par_iter().map(hash).collect::<Result<Vec<_>>>()?;
        self.0.extend(hashed.into_iter().map(|(path, known)| (path.to_owned(), known)));
        // A file that is not settled is hashed again by the next start.
        for known in self.0.values_mut() {
            if !known.seen.is_settled_at(now) {
                known.seen.inode = 0;
            }
        }
        Ok(())
    }

    /// The hash of a file that [`FileHashes::learn`] knows.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn of(&self, path: &Path) -> Result<String> {
        let known = self.0.get(path);
        let known = known.with_context(|| format!("{}: it was not hashed", path.display()))?;
        Ok(known.sha256.clone())
    }
}

fn sha256(path: &Path) -> Result<String> {
    runkit::signals::check_at("hash")?;
    let mut digest = Sha256::new();
    let stop = runkit::signals::flag_of_process();
    runkit::files::read_pieces(path, &stop, |piece| digest.update(piece))?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    /// Treats the file as settled.
    fn learn(hashes: &mut FileHashes, path: &Path) -> String {
        hashes.learn(std::iter::once(path)).unwrap();
        let hash = hashes.of(path).unwrap();
        hashes.0.get_mut(path).unwrap().seen = Seen::of(path).unwrap();
        hash
    }

    #[test]
    fn a_known_file_is_not_read_and_a_changed_one_is_whatever_its_times_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, "12345678").unwrap();
        let mut hashes = FileHashes::default();
        let first = learn(&mut hashes, &path);
        // It is not read: a false hash is believed.
        hashes.0.get_mut(&path).unwrap().sha256 = "remembered".to_owned();
        assert_eq!(learn(&mut hashes, &path), "remembered");
        hashes.write(folder.path()).unwrap();
        assert_eq!(FileHashes::read(folder.path()), hashes);
        // Other bytes of the same length under the same mtime.
        let modified = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0).unwrap();
        file.set_modified(modified).unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), modified);
        let second = learn(&mut hashes, &path);
        assert!(second != "remembered" && second != first);
    }

    #[test]
    fn a_file_that_has_just_changed_is_hashed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, "1").unwrap();
        let mut hashes = FileHashes::default();
        hashes.learn(std::iter::once(&*path)).unwrap();
        let known = &hashes.0[&path];
        assert_ne!(known.seen, Seen::of(&path).unwrap());
        std::fs::write(folder.path().join(FILE), "no json").unwrap();
        assert_eq!(FileHashes::read(folder.path()), FileHashes::default());
    }
}
