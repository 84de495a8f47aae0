//! Durable files: the only way this workspace puts bytes under a final name.
//!
//! A file under its final name is complete and on the disk, whatever kills the process or the
//! machine. The order is: unique temporary name in the same folder, write, `fsync`, rename, `fsync`
//! of the folder. [`AtomicFile`] does it piece by piece, [`write_atomic`] for a closure,
//! [`write_json_atomic`] for a value. Every step passes a [`crate::fault`] point.
//!
//! Temporary files of a killed run are removed by [`remove_stale_temporaries`] at the next start.
//!
//! Reading: [`read_pieces`] and [`blake3_of`] read large files and can be stopped, [`FileHashes`]
//! remembers the hashes of files, [`Kind`] tells what a file is that is not what it should be.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

mod atomic;
pub(crate) mod error;
mod hashes;
mod kind;

pub use atomic::AtomicFile;
pub use error::{FileError, Operation};
pub use hashes::FileHashes;
pub use kind::Kind;

use crate::lock;
use crate::signals::StopFlag;
use atomic::{Owner, parent_of};

/// How much of a file is read between two looks at the stop flag: milliseconds even of a slow disk.
const PIECE_BYTES: usize = 1 << 20;

/// Writes a file through a buffer and commits it when `write` succeeds.
///
/// # Errors
/// What `write` returned (kept whole if it came from the file), or a failing commit.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    let path = path.as_ref();
    let fail = |cause| FileError::new(path, Operation::Write, cause);
    let mut buffered = io::BufWriter::with_capacity(1 << 16, AtomicFile::create(path)?);
    write(&mut buffered).map_err(fail)?;
    buffered.into_inner().map_err(|error| fail(error.into_error()))?.commit()
}

/// Writes `value` as indented JSON with a final newline.
///
/// # Errors
/// When the value cannot be written as JSON (a map whose keys are not text), or the file cannot.
pub fn write_json_atomic<T: Serialize + ?Sized>(
    path: impl AsRef<Path>,
    value: &T,
) -> Result<(), FileError> {
    let path = path.as_ref();
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| FileError::new(path, Operation::Serialize, error.into()))?;
    text.push(b'\n');
    write_atomic(path, |writer| writer.write_all(&text))
}

/// Gives a file that is complete and synced its final name, and syncs the folder. Both names are
/// on one file system; the file that had the final name is replaced.
///
/// # Errors
/// When the file cannot be renamed, or the folder cannot be synced.
pub fn rename_durably(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
    let to = to.as_ref();
    atomic::rename(from.as_ref(), to)
        .map_err(|cause| FileError::new(to, Operation::Rename, cause))?;
    crate::fault::point("rename");
    sync_folder(parent_of(to)).map_err(|cause| FileError::new(to, Operation::Sync, cause))?;
    crate::fault::point("marker");
    Ok(())
}

/// Removes the temporary files that killed runs left in `folder` (not in folders below it) and
/// returns their paths.
///
/// Only names of our own pattern are touched, only those that a process of this machine wrote, and
/// only if that process has none of them open. Those of another machine are left alone, and a
/// warning names them: whether their writer lives cannot be seen from here. Call it while holding
/// the lock of the output, so that two starting runs do not race over it. A folder that does not
/// exist holds no leftovers.
///
/// # Errors
/// When the folder cannot be listed or a leftover cannot be removed.
pub fn remove_stale_temporaries(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, FileError> {
    let folder = folder.as_ref();
    let list = |cause| FileError::new(folder, Operation::List, cause);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(list)?,
    };
    let mut removed = Vec::new();
    let mut foreign = Vec::new();
    for entry in entries {
        let path = entry.map_err(list)?.path();
        let Some(owner) = Owner::of(&path) else { continue };
        if !owner.is_this_host() {
            if path.symlink_metadata().is_ok_and(|found| found.is_file()) {
                foreign.push(path);
            }
        } else if remove_if_stale(&path, &owner)? {
            removed.push(path);
        }
    }
    if !foreign.is_empty() {
        foreign.sort();
        let names = foreign.iter().filter_map(|path| path.file_name());
        tracing::warn!(
            "{}: left alone, as another machine began to write it: {}; if no run there writes any \
             more, remove it by hand",
            folder.display(),
            crate::text::choices(names.map(|name| name.to_string_lossy()))
        );
    }
    removed.sort();
    Ok(removed)
}

/// Reads a file from its beginning, in pieces, and returns its length. Between two pieces it looks
/// at `stop`, so a file of any size is left within a moment of a signal.
///
/// # Errors
/// When the file cannot be read; when a stop was asked for ([`FileError`] then carries
/// [`crate::signals::Stopped`]).
pub fn read_pieces(
    path: impl AsRef<Path>,
    stop: &StopFlag,
    mut take: impl FnMut(&[u8]),
) -> Result<u64, FileError> {
    let path = path.as_ref();
    let fail = |cause| FileError::new(path, Operation::Read, cause);
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut length = 0;
    loop {
        stop.check().map_err(|stopped| fail(stopped.into()))?;
        match file.read(&mut piece) {
            Ok(0) => return Ok(length),
            Ok(count) => {
                take(&piece[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
}

/// The BLAKE3 digest of a file, as 64 hexadecimal digits.
pub fn blake3_of(path: impl AsRef<Path>, stop: &StopFlag) -> Result<String, FileError> {
    let mut hasher = blake3::Hasher::new();
    read_pieces(path, stop, |piece| {
        hasher.update(piece);
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Makes a folder with all its parents and syncs each new entry, so that the folder survives a
/// power cut as its files do. An existing folder is fine.
///
/// # Errors
/// When a folder cannot be made or a file stands in the way.
pub fn create_folder(path: impl AsRef<Path>) -> Result<(), FileError> {
    let path = path.as_ref();
    let fail = |cause| FileError::new(path, Operation::CreateFolder, cause);
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .collect();
    std::fs::create_dir_all(path).map_err(fail)?;
    missing.iter().rev().try_for_each(|folder| sync_folder(parent_of(folder))).map_err(fail)
}

/// The bytes this process may still write on the disk that holds `path`; for a path that does not
/// exist yet, on the disk of the nearest folder above it.
///
/// # Errors
/// When the disk cannot be asked.
pub fn free_space(path: impl AsRef<Path>) -> Result<u64, FileError> {
    let path = path.as_ref();
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    fs4::available_space(existing)
        .map_err(|cause| FileError::new(path, Operation::FreeSpace, cause))
}

pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match std::fs::File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder; they have no order to protect either.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Whether a name has the pattern of our temporary files, on whatever machine it was written. A
/// walk over a folder of inputs skips them.
#[must_use]
pub fn is_temporary_name(path: &Path) -> bool {
    Owner::of(path).is_some()
}

fn remove_if_stale(path: &Path, owner: &Owner) -> Result<bool, FileError> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let fail = |cause| FileError::new(path, Operation::Remove, cause);
    if !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
        return Ok(false);
    }
    let file = match std::fs::File::open(path) {
        Err(error) if gone(&error) => return Ok(false),
        other => other.map_err(fail)?,
    };
    // Both must say so: some file systems grant every lock, and a container does not see the
    // processes of another one.
    let stale = match lock::try_exclusive(&file) {
        lock::Tried::Taken => owner.is_this_process() || !owner.may_be_alive(),
        lock::Tried::Held | lock::Tried::Failed(_) => false,
        lock::Tried::Unsupported(_) => !owner.may_be_alive(),
    };
    if !stale {
        return Ok(false);
    }
    match std::fs::remove_file(path) {
        Err(error) if gone(&error) => Ok(false),
        other => other.map(|()| true).map_err(fail),
    }
}
