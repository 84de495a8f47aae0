//! [`AtomicFile`]: written under a temporary name, seen under the final one only when complete.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{FileError, Operation};
use super::sync_folder;
use crate::{fault, lock};

/// The end of every temporary name; together with the leading dot it is the pattern that
/// [`super::remove_stale_temporaries`] recognises.
const TEMPORARY_SUFFIX: &str = ".runkit-tmp";

/// How much of the final name a temporary one shows: at most 4 bytes each, which with our additions
/// stays below the 255 bytes of Linux file systems.
const SHOWN_CHARACTERS: usize = 30;
/// How much of the machine's name it shows.
const HOST_CHARACTERS: usize = 24;

/// A file that appears under its final name whole or not at all.
///
/// It is written under a unique temporary name in the same folder; [`AtomicFile::commit`] flushes,
/// syncs the file, renames it and syncs the folder. Dropped without `commit`, the temporary file is
/// removed and the file under the final name stays. Writes are not buffered: wrap it in a
/// [`std::io::BufWriter`] if writes are small, and take it back with `into_inner`.
///
/// While it is open the temporary file is locked: an unlocked one is the leftover of a killed run
/// on this machine. Its name holds the machine and the process that write it, for file systems that
/// have no locks, or none that another machine sees. A final name that is a symbolic link is
/// followed; one that is a folder, a device or a pipe is refused.
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
    /// The old file then stays, except after a failed folder sync: then the new one is complete,
    /// but a power cut may undo the rename.
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

/// The folder of a file; the current folder for a bare name.
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
        if matches!(lock::try_exclusive(&file), lock::Tried::Held) {
            continue;
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
    let Owner { host, process } = Owner::this();
    OsString::from(format!(
        ".{shown}.{host}.{process}-{number:x}-{nanoseconds:x}{TEMPORARY_SUFFIX}"
    ))
}

/// Who writes a temporary file, as its name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The machine, in letters, digits and hyphens; empty in names of earlier versions.
    host: String,
    /// The number of the process there.
    process: u32,
}

impl Owner {
    fn this() -> Self {
        Self { host: this_host(), process: std::process::id() }
    }

    /// The owner of a temporary file; `None` for a name of another pattern.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy();
        let name = name.strip_prefix('.')?.strip_suffix(TEMPORARY_SUFFIX)?;
        // .NAME.HOST.PROCESS-NUMBER-NANOSECONDS; the name may hold dots, the others do not.
        let mut fields = name.rsplitn(3, '.');
        let process = fields.next()?.split('-').next()?.parse().ok();
        let host = fields.next().filter(|_| fields.next().is_some());
        match (host, process) {
            (Some(host), Some(process)) => Some(Self { host: host.to_owned(), process }),
            // Of our pattern, but by whom is not known.
            _ => Some(Self { host: String::new(), process: 0 }),
        }
    }

    pub(super) fn is_this_host(&self) -> bool {
        self.host == this_host()
    }

    /// Whether the number is ours: what we write ourselves is locked, so the rest is of a namesake.
    pub(super) fn is_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// False only for a process of this machine that is known to have ended.
    pub(super) fn may_be_alive(&self) -> bool {
        lock::process_may_be_alive(self.process)
    }
}

/// The machine's name as temporary names hold it; never empty.
fn this_host() -> String {
    let plain = |one: char| if one.is_ascii_alphanumeric() { one } else { '-' };
    let name: String = lock::host_name().chars().map(plain).take(HOST_CHARACTERS).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

#[expect(clippy::disallowed_methods, reason = "this is the durable writer the lint points to")]
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

#[cfg(test)]
mod tests {
    use super::{OsStr, Owner, temporary_name};
    use std::path::Path;

    #[test]
    fn a_temporary_name_says_who_writes_it() {
        for name in ["labels.parquet", "x", "a.b.c.tar.gz", "名前.parquet", ".hidden"] {
            let temporary = temporary_name(OsStr::new(name));
            let owner = Owner::of(Path::new("folder").join(&temporary).as_path());
            assert_eq!(owner, Some(Owner::this()), "{temporary:?}");
            assert!(temporary.len() < 255);
        }
        assert!(temporary_name(OsStr::new(&"狐".repeat(80))).len() < 255);
    }

    #[test]
    fn only_our_pattern_has_an_owner_and_old_names_are_of_nobody_here() {
        for name in ["labels.parquet", ".labels.parquet.lock", "x.runkit-tmp", ".x.tmp"] {
            assert_eq!(Owner::of(Path::new(name)), None, "{name}");
        }
        let old = Owner::of(Path::new(".labels.parquet.1f-0-3a.runkit-tmp")).unwrap();
        assert!(!old.is_this_host(), "{old:?}");
        let other = Owner::of(Path::new(".labels.parquet.node-17.31-0-3a.runkit-tmp")).unwrap();
        assert!(!other.is_this_host(), "{other:?}");
    }
}
