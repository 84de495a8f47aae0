//! Checks of an output before hours of work, and how estimates are written.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use indicatif::HumanDuration;
use runkit::files::{FileError, Operation};

/// Tries to make a file in `folder`, or in the nearest folder above it that exists. Leaves nothing
/// behind.
///
/// # Errors
/// The error that a later write would end with.
pub(crate) fn check_writable(folder: &Path) -> Result<(), FileError> {
    let here = Path::new(".");
    let existing = folder.ancestors().find(|folder| folder.symlink_metadata().is_ok());
    let existing = existing.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(here);
    let fail = |cause| FileError::new(folder, Operation::CreateFolder, cause);
    if !existing.is_dir() {
        return Err(fail(ErrorKind::NotADirectory.into()));
    }
    // The file has no name, so a kill in this instant leaves nothing.
    tempfile::tempfile_in(existing).map(drop).map_err(|error| match error.raw_os_error() {
        // The library would add the path, which the message already has.
        Some(number) => fail(std::io::Error::from_raw_os_error(number)),
        None => fail(error),
    })
}

/// Checks that `bytes` more fit on the disk of `folder`.
///
/// # Errors
/// If they do not, with both numbers.
pub(crate) fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    let free = runkit::files::free_space(folder)?;
    ensure!(
        bytes <= free,
        "{}: about {:.1} MB are needed but only {:.1} MB are free; hint: choose another --out",
        folder.display(),
        bytes as f64 / 1e6,
        free as f64 / 1e6
    );
    Ok(())
}

/// "3 minutes"
pub(crate) fn duration(seconds: f64) -> HumanDuration {
    HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_written_is_named_and_others_stay_empty() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(&folder.path().join("a/b")).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let file = folder.path().join("file");
        runkit::files::write_atomic(&file, |_| Ok(())).unwrap();
        for below in [file.clone(), file.join("a")] {
            let error = check_writable(&below).unwrap_err().to_string();
            assert!(error.contains("cannot create folder") && error.contains("file"), "{error}");
        }
        let error = check_writable(Path::new("/proc/a")).unwrap_err().to_string();
        assert!(error.contains("/proc/a"), "{error}");
        let error = check_space(folder.path(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("are free; hint: choose another --out"), "{error}");
    }
}
