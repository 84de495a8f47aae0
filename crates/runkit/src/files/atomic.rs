//! [`AtomicFile`]: written under a temporary name, seen under the final one only when complete.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{FileError, Operation};
use super::sync_folder;
use crate::fault;

/// The end of every temporary name; together with the leading dot it is the pattern that
/// [`super::remove_stale_temporaries`] recognises.
pub(super) const TEMPORARY_SUFFIX: &str = ".runkit-tmp";

/// How much of the final name a temporary one shows: at most 4 bytes each, which with our additions
/// stays below the 255 bytes of Linux file systems.
const SHOWN_CHARACTERS: usize = 40;

/// A file that appears under its final name whole or not at all.
///
/// It is written under a unique temporary name in the same folder; [`AtomicFile::commit`] flushes,
/// syncs the file, renames it and syncs the folder. Dropped without `commit`, the temporary file is
/// removed and whatever stood under the final name stays. Writes are not buffered: wrap it in a
/// [`std::io::BufWriter`] where writes are small, and take it back with `into_inner`.
///
/// While it is open the temporary file is locked, which is how a live one is told from the leftover
/// of a killed run. A final name that is a symbolic link is followed; one that is a folder, a device
/// or a pipe is refused.
#[derive(Debug)]
pub struct AtomicFile {
    file: std::fs::File,
    temporary: PathBuf,
    target: PathBuf,
    written: u64,
    failed: bool,
    committed: bool,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`, whose folder must exist.
    ///
    /// # Errors
    /// When the folder is missing or not writable, or `path` names something that is not a file.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let fail = |cause| FileError::new(path, Operation::Create, cause);
        let target = resolve_target(path).map_err(fail)?;
        fault::error_at("open").map_err(fail)?;
        let (file, temporary) = open_temporary(&target).map_err(fail)?;
        fault::point("open");
        Ok(Self { file, temporary, target, written: 0, failed: false, committed: false })
    }

    /// The open temporary file, for what `Write` does not offer (its length, preallocation).
    pub fn file(&self) -> &std::fs::File {
        &self.file
    }

    /// The final name.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// The bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    /// Makes the file appear under its final name: sync, rename, sync of the folder.
    ///
    /// # Errors
    /// When a step fails, or an earlier write failed (a file with a hole must not look finished).
    /// The old file then stays, except after a failed folder sync, when the new one stands there
    /// complete but may be forgotten by a power cut.
    pub fn commit(mut self) -> Result<(), FileError> {
        if self.failed {
            let cause = io::Error::other("an earlier write to this file failed");
            return Err(self.error(Operation::Sync, cause));
        }
        fault::error_at("sync")
            .and_then(|()| self.file.sync_all())
            .map_err(|cause| self.error(Operation::Sync, cause))?;
        fault::point("sync");
        fault::error_at("rename")
            .and_then(|()| rename(&self.temporary, &self.target))
            .map_err(|cause| self.error(Operation::Rename, cause))?;
        self.committed = true;
        fault::point("rename");
        fault::error_at("marker")
            .and_then(|()| sync_folder(parent_of(&self.target)))
            .map_err(|cause| self.error(Operation::Sync, cause))?;
        fault::point("marker");
        Ok(())
    }

    fn error(&self, operation: Operation, cause: io::Error) -> FileError {
        FileError::new(&self.target, operation, cause)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match fault::error_at("write").and_then(|()| self.file.write(bytes)) {
            Ok(count) => {
                self.written += count as u64;
                fault::point("write");
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failed = true;
                let error = self.error(Operation::Write, error);
                Err(error.with_bytes(self.written, bytes.len() as u64).into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs_err::remove_file(&self.temporary)
        {
            tracing::warn!("a temporary file stays behind: {error}");
        }
    }
}

/// The folder a file stands in; a bare name stands in the current folder.
pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn resolve_target(path: &Path) -> io::Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a file"));
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            Err(io::Error::new(io::ErrorKind::IsADirectory, "expected a file, found a folder"))
        }
        Ok(found) if !found.is_file() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected a regular file, found a device, pipe or socket",
        )),
        Ok(_) if path.is_symlink() => std::fs::canonicalize(path),
        Ok(_) => Ok(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error),
    }
}

fn open_temporary(target: &Path) -> io::Result<(std::fs::File, PathBuf)> {
    let name = target.file_name().unwrap_or(OsStr::new("file"));
    loop {
        let temporary = target.with_file_name(temporary_name(name));
        let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // Between the two calls a clean-up of another process may take the file for a leftover;
        // then it is gone or locked, and the next name is tried.
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => continue,
            // A file system without locks: the clean-up leaves such files alone.
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => {}
        }
        if file.metadata()?.nlink() > 0 {
            return Ok((file, temporary));
        }
    }
}

fn temporary_name(name: &OsStr) -> OsString {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanoseconds =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.subsec_nanos());
    let shown: String = name.to_string_lossy().chars().take(SHOWN_CHARACTERS).collect();
    let process = std::process::id();
    OsString::from(format!(".{shown}.{process:x}-{number:x}-{nanoseconds:x}{TEMPORARY_SUFFIX}"))
}

#[expect(clippy::disallowed_methods, reason = "this is the durable writer the lint points to")]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}
