//! The one error of durable files: which operation, on which path, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::signals::Stopped;

/// What was being done when a [`FileError`] arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Making a new file.
    Create,
    /// Writing bytes.
    Write,
    /// Bringing written bytes to the disk (`fsync`).
    Sync,
    /// Giving the finished file its final name.
    Rename,
    /// Reading bytes.
    Read,
    /// Removing a file.
    Remove,
    /// Making a folder.
    CreateFolder,
    /// Listing a folder.
    List,
    /// Asking for the free space of a disk.
    FreeSpace,
    /// Turning a value into the file's format.
    Serialize,
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Rename => "put in place",
            Self::Read => "read",
            Self::Remove => "remove",
            Self::CreateFolder => "create folder",
            Self::List => "list folder",
            Self::FreeSpace => "find the free space at",
            Self::Serialize => "serialize",
        })
    }
}

/// An operation on a file failed. The message names the operation, the path and the reason; for a
/// full disk, quota or file-size limit also the bytes, and how to go on.
#[derive(Debug)]
pub struct FileError {
    path: PathBuf,
    operation: Operation,
    /// Bytes written before the failure, and bytes of the write that failed.
    progress: Option<(u64, u64)>,
    cause: io::Error,
}

impl FileError {
    /// Wraps an I/O error. If `cause` already carries a [`FileError`] (as the errors of
    /// [`super::AtomicFile`]'s `Write` do), that one is returned, so the first cause is the one
    /// seen.
    pub fn new(path: impl Into<PathBuf>, operation: Operation, cause: io::Error) -> Self {
        match cause.downcast::<Self>() {
            Ok(original) => original,
            Err(cause) => Self { path: path.into(), operation, progress: None, cause },
        }
    }

    pub(super) fn with_bytes(mut self, written: u64, attempted: u64) -> Self {
        self.progress = Some((written, attempted));
        self
    }

    /// The file or folder concerned (its final name, not the temporary one).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was being done.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The kind of the operating system's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }

    /// Whether there was no room: disk full, quota used up, or the process's file-size limit.
    pub fn is_out_of_space(&self) -> bool {
        self.no_room().is_some()
    }

    fn no_room(&self) -> Option<&'static str> {
        match self.cause.raw_os_error() {
            Some(libc::ENOSPC) => Some("no space left on the disk"),
            Some(libc::EDQUOT) => Some("the disk quota is used up"),
            Some(libc::EFBIG) => {
                Some("the file-size limit of the process (ulimit -f) or of the disk is reached")
            }
            _ => None,
        }
    }

    /// The stop that ended the operation, if one did.
    pub fn stopped(&self) -> Option<Stopped> {
        Stopped::behind(&self.cause)
    }
}

/// What to do about an error of the system, if that is clear.
pub(crate) fn hint(cause: &io::Error) -> Option<&'static str> {
    match cause.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Some("free some space and run the same command again"),
        Some(libc::EFBIG) => Some("raise the limit and run the same command again"),
        Some(libc::EACCES | libc::EPERM) => Some("check the permissions of the folder"),
        Some(libc::EROFS) => Some("the disk is mounted read-only; choose another place"),
        _ => None,
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot {} {}: ", self.operation, self.path.display())?;
        match self.no_room() {
            Some(reason) => formatter.write_str(reason)?,
            None => write!(formatter, "{}", self.cause)?,
        }
        if let Some((written, attempted)) = self.progress {
            write!(formatter, " (after {written} bytes, {attempted} more to write)")?;
        }
        match hint(&self.cause) {
            Some(hint) => write!(formatter, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The message holds the cause already. Only a stop is a source as well, so that callers find it.
impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.stopped().is_some().then_some(&self.cause)
    }
}

impl From<FileError> for io::Error {
    /// Keeps the whole [`FileError`] inside, so that it survives writers that only know
    /// `io::Error`.
    fn from(error: FileError) -> Self {
        Self::new(error.kind(), error)
    }
}
