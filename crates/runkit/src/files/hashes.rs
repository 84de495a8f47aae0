//! The SHA-256 of files, remembered from one start of a run to the next: hashing the models of a
//! run takes minutes.
//!
//! A file counts as unchanged if its path, inode, length, time of change of its contents (mtime)
//! and time of change of anything (ctime) are the same. Every write to a file changes its ctime,
//! even if length and mtime are restored; only a change below the file system goes unnoticed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{FileError, Operation, read_pieces, write_json_atomic};

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
    fn of(path: &Path) -> Result<Self, FileError> {
        let found =
            path.metadata().map_err(|cause| FileError::new(path, Operation::Read, cause))?;
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
    /// The file in the folder of a run.
    pub const FILE: &str = ".hashes.json";

    /// The hashes that an earlier start of a run wrote; empty if they cannot be read.
    pub fn read(run: &Path) -> Self {
        let text = std::fs::read(run.join(Self::FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes the hashes to the folder of a run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, run: &Path) -> Result<(), FileError> {
        write_json_atomic(run.join(Self::FILE), self)
    }

    /// Hashes those of `paths` that are not known, several at a time.
    ///
    /// # Errors
    /// If one cannot be read or a signal stops it.
    pub fn learn<'path>(
        &mut self,
        paths: impl IntoIterator<Item = &'path Path>,
    ) -> Result<(), FileError> {
        let now = SystemTime::now();
        let seen = paths.into_iter().map(|path| Ok((path, Seen::of(path)?)));
        let mut unknown = seen.collect::<Result<Vec<_>, FileError>>()?;
        unknown.sort_by_key(|&(path, _)| path);
        unknown.dedup_by_key(|&mut (path, _)| path);
        unknown.retain(|(path, seen)| self.0.get(*path).is_none_or(|known| known.seen != *seen));
        for (path, known) in hash_all(&unknown)? {
            self.0.insert(path.to_owned(), known);
        }
        // A file that is not settled is hashed again by the next start.
        for known in self.0.values_mut() {
            if !known.seen.is_settled_at(now) {
                known.seen.inode = 0;
            }
        }
        Ok(())
    }

    /// The hash of a file that [`FileHashes::learn`] knows, as 64 hexadecimal digits.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<&str> {
        self.0.get(path).map(|known| known.sha256.as_str())
    }
}

/// Hashes files on as many threads as there are cores.
fn hash_all<'path>(files: &[(&'path Path, Seen)]) -> Result<Vec<(&'path Path, Known)>, FileError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut hashed = Vec::new();
        while let Some(&(path, seen)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            hashed.push((path, Known { seen, sha256: sha256(path)? }));
        }
        Ok(hashed)
    };
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores.min(files.len())).map(|_| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<Vec<_>>, FileError>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

fn sha256(path: &Path) -> Result<String, FileError> {
    let fail = |cause| FileError::new(path, Operation::Read, cause);
    crate::signals::check_at("hash").map_err(|stopped| fail(stopped.into()))?;
    let mut digest = Sha256::new();
    read_pieces(path, &crate::signals::flag_of_process(), |piece| digest.update(piece))?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    /// Treats the file as settled.
    fn learn(hashes: &mut FileHashes, path: &Path) -> String {
        hashes.learn(std::iter::once(path)).unwrap();
        let hash = hashes.of(path).unwrap().to_owned();
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
        std::fs::write(folder.path().join(FileHashes::FILE), "no json").unwrap();
        assert_eq!(FileHashes::read(folder.path()), FileHashes::default());
    }
}
