//! What may be written where: one rule for every command.
//!
//! * If there is nothing under the name of the output, it is written.
//! * If the output of this very run is there, it is complete or resumed.
//! * If the output of another run of ours is there, it is refused, naming what differs; `--fresh`
//!   replaces it.
//! * If something else is there, or one of the inputs, no flag overwrites or removes it.
//!
//! Our outputs are recognised by their contents, never by their names: the caller reads the
//! manifest that its program wrote into the file or the folder. [`OutputFile::examine`] does it for
//! one file, [`crate::run_folder`] for a folder; [`refuse_input`], [`refuse_foreign_folder`] and
//! [`refuse_another_run`] are their steps. Call it with the lock of the output, before anything is
//! written or removed.
//!
//! ```
//! use runkit::output::{OutputFile, State};
//! use serde_json::json;
//! # let folder = std::env::temp_dir();
//! # let path = folder.join("runkit-doc-absent.parquet");
//! let output = OutputFile { path: &path, flag: "--out", expected: "labels of relabel", fresh: false };
//! let state = output.examine(&[], &json!({"ties": "zero"}), |_| None)?;
//! assert_eq!(state, State::New);
//! # Ok::<(), runkit::output::OutputError>(())
//! ```

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::files::{FileError, Kind, is_temporary_name};
use crate::lock::LockError;
use crate::manifest::{Difference, differences};
use crate::text::choices;

/// At most this many differing fields are listed.
const MOST_DIFFERENCES: usize = 8;

/// Why an output may not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The output is one of the inputs.
    #[error(
        "{flag} {} is one of the inputs ({}); nothing was changed\nhint: choose another {flag}",
        path.display(),
        input.display()
    )]
    IsInput {
        /// The flag that names the output.
        flag: &'static str,
        /// The output.
        path: PathBuf,
        /// The input that is the same file or folder.
        input: PathBuf,
    },
    /// Something is there that is not ours.
    #[error(
        "{}: expected {expected} or nothing, found {found}; nothing was changed\n\
         hint: choose another {flag}, or move it away",
        path.display()
    )]
    Foreign {
        /// The flag that names the output.
        flag: &'static str,
        /// The output.
        path: PathBuf,
        /// What may be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The output of another run of ours is there.
    #[error(
        "{} belongs to another run, which differs from this one:{}\nhint: {hint}",
        path.display(),
        Fields(differences)
    )]
    OtherRun {
        /// The output.
        path: PathBuf,
        /// In which fields of the manifest.
        differences: Vec<Difference>,
        /// What to do.
        hint: String,
    },
    /// The manifest in the folder of a run cannot be used.
    #[error(
        "{}: expected the manifest of {expected}, found {found}\nhint: choose another {flag}",
        path.display()
    )]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The flag that names the output.
        flag: &'static str,
        /// Whose manifest it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Another process works on the output.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file of the output cannot be written or deleted.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system does not say what is there.
    #[error("cannot look at {}: {cause}", path.display())]
    Unreadable {
        /// The output.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

/// What is under the name of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing: write it.
    New,
    /// The output of this very run, complete.
    Complete,
    /// An output of ours that `--fresh` replaces.
    Replace,
}

/// A file that a command is about to write.
#[derive(Debug, Clone, Copy)]
pub struct OutputFile<'run> {
    /// Where.
    pub path: &'run Path,
    /// The flag that names it, such as `--out`.
    pub flag: &'static str,
    /// What it will be, with its article or in the plural: "labels of relabel".
    pub expected: &'static str,
    /// Whether another output of ours may be replaced.
    pub fresh: bool,
}

impl OutputFile<'_> {
    /// Applies the rule. `inputs` are the files and folders that the command reads, `manifest` says
    /// what this run is, and `read_manifest` reads the manifest that our program wrote into the
    /// file; it returns `None` for any other file.
    ///
    /// # Errors
    /// When nothing may be written.
    pub fn examine(
        &self,
        inputs: &[PathBuf],
        manifest: &Value,
        read_manifest: impl FnOnce(&Path) -> Option<Value>,
    ) -> Result<State, OutputError> {
        refuse_input(self.flag, self.path, inputs)?;
        if !is_there(self.path)? {
            return Ok(State::New);
        }
        let Some(found) = read_manifest(self.path) else {
            return Err(foreign(self.flag, self.path, self.expected));
        };
        let same = differences(&found, manifest).is_empty();
        match (self.fresh, same) {
            (true, _) => Ok(State::Replace),
            (false, true) => Ok(State::Complete),
            (false, false) => {
                refuse_another_run(self.flag, self.path, &found, manifest)?;
                Ok(State::Complete)
            }
        }
    }
}

/// Refuses an output that is one of the inputs, also by another name of the same file.
///
/// # Errors
/// [`OutputError::IsInput`].
pub fn refuse_input(
    flag: &'static str,
    path: &Path,
    inputs: &[impl AsRef<Path>],
) -> Result<(), OutputError> {
    let identity =
        |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let Some(output) = identity(path) else { return Ok(()) };
    match inputs.iter().map(AsRef::as_ref).find(|input| identity(input) == Some(output)) {
        None => Ok(()),
        Some(input) => {
            let (path, input) = (path.to_owned(), input.to_owned());
            Err(OutputError::IsInput { flag, path, input })
        }
    }
}

/// Refuses a folder that holds something, unless `is_ours` finds in it that our program wrote it.
/// Hidden files, lock files and our own unfinished files do not count.
///
/// # Errors
/// [`OutputError::Foreign`] naming what is there; [`OutputError::Unreadable`].
pub fn refuse_foreign_folder(
    flag: &'static str,
    path: &Path,
    expected: &'static str,
    is_ours: impl FnOnce(&Path) -> bool,
) -> Result<(), OutputError> {
    if !is_there(path)? {
        return Ok(());
    }
    let unreadable = |cause| OutputError::Unreadable { path: path.to_owned(), cause };
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Err(foreign(flag, path, expected));
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with('.') && !name.ends_with(".lock") && !is_temporary_name(&entry) {
            names.push(name);
        }
    }
    if names.is_empty() || is_ours(path) {
        return Ok(());
    }
    names.sort();
    let found = format!("a folder of something else ({})", choices(&names));
    Err(OutputError::Foreign { flag, path: path.to_owned(), expected, found })
}

/// Refuses an output whose manifest is not that of this run, naming the fields that differ.
///
/// # Errors
/// [`OutputError::OtherRun`].
pub fn refuse_another_run(
    flag: &'static str,
    path: &Path,
    found: &Value,
    manifest: &Value,
) -> Result<(), OutputError> {
    let differences = differences(found, manifest);
    if differences.is_empty() { Ok(()) } else { Err(other_run(flag, path, differences)) }
}

/// The error about another run, with the usual advice.
pub(crate) fn other_run(flag: &str, path: &Path, differences: Vec<Difference>) -> OutputError {
    let hint = format!(
        "repeat the command that began it, choose another {flag}, or replace it with --fresh"
    );
    OutputError::OtherRun { path: path.to_owned(), differences, hint }
}

/// The error about something that is not ours. Its hint names no flag that would overwrite it.
#[must_use]
pub fn foreign(flag: &'static str, path: &Path, expected: &'static str) -> OutputError {
    let found = match Kind::of(path) {
        Ok(kind) => format!("{kind} that this program did not write"),
        Err(_) if path.is_symlink() => "a symbolic link to nothing".to_owned(),
        Err(error) => format!("something that cannot be read ({error})"),
    };
    OutputError::Foreign { flag, path: path.to_owned(), expected, found }
}

/// Whether anything is there, a symbolic link to nothing included.
fn is_there(path: &Path) -> Result<bool, OutputError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(OutputError::Unreadable { path: path.to_owned(), cause }),
    }
}

/// A line for each differing field, the first ones of many.
struct Fields<'a>(&'a [Difference]);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in self.0.iter().take(MOST_DIFFERENCES) {
            write!(formatter, "\n  {difference}")?;
        }
        match self.0.len().saturating_sub(MOST_DIFFERENCES) {
            0 => Ok(()),
            more => write!(formatter, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use super::{OutputError, OutputFile, State, refuse_foreign_folder};

    fn examine(path: &Path, inputs: &[PathBuf], fresh: bool) -> Result<State, OutputError> {
        let output = OutputFile { path, flag: "--out", expected: "a file of ours", fresh };
        output.examine(inputs, &json!({"seed": 1}), |path| {
            let text = std::fs::read_to_string(path).ok()?;
            serde_json::from_str(text.strip_prefix("ours ")?).ok()
        })
    }

    #[test]
    fn what_is_not_ours_is_refused_with_and_without_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("thesis.tex");
        std::fs::write(&text, "\\begin{document}").unwrap();
        let link = folder.path().join("dangling");
        std::os::unix::fs::symlink("absent", &link).unwrap();
        for (path, found) in [
            (text.as_path(), "plain text that this program did not write"),
            (link.as_path(), "a symbolic link to nothing"),
            (folder.path(), "a folder that this program did not write"),
        ] {
            for fresh in [false, true] {
                let message = examine(path, &[], fresh).unwrap_err().to_string();
                assert!(message.contains(found), "{message}");
                assert!(!message.contains("fresh"), "{message}");
            }
        }
    }

    #[test]
    fn an_input_is_refused_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("pairs.parquet");
        std::fs::write(&input, "ours {\"seed\": 1}").unwrap();
        let (link, hard) = (folder.path().join("link"), folder.path().join("hard"));
        std::os::unix::fs::symlink(&input, &link).unwrap();
        std::fs::hard_link(&input, &hard).unwrap();
        for output in [&input, &link, &hard, &folder.path().join("./pairs.parquet")] {
            for fresh in [false, true] {
                let error = examine(output, std::slice::from_ref(&input), fresh).unwrap_err();
                assert!(matches!(error, OutputError::IsInput { .. }), "{error}");
                assert!(!error.to_string().contains("fresh"), "{error}");
            }
        }
    }

    #[test]
    fn ours_is_new_complete_or_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        assert_eq!(examine(&path, &[], false).unwrap(), State::New);
        assert_eq!(examine(&path, &[], true).unwrap(), State::New);
        std::fs::write(&path, "ours {\"seed\": 1}").unwrap();
        assert_eq!(examine(&path, &[], false).unwrap(), State::Complete);
        assert_eq!(examine(&path, &[], true).unwrap(), State::Replace);
        std::fs::write(&path, "ours {\"seed\": 2}").unwrap();
        let message = examine(&path, &[], false).unwrap_err().to_string();
        assert!(message.contains("seed: was 2, now 1") && message.contains("--fresh"), "{message}");
        assert_eq!(examine(&path, &[], true).unwrap(), State::Replace);
    }

    #[test]
    fn many_differences_are_counted() {
        let values = |offset: u64| -> Value { (0..50).map(|number| number + offset).collect() };
        let error = super::refuse_another_run("--out", Path::new("x"), &values(0), &values(1));
        let message = error.unwrap_err().to_string();
        assert!(message.contains("and 42 more"), "{message}");
    }

    #[test]
    fn a_folder_is_new_ours_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = |ours: bool| {
            refuse_foreign_folder("--out", folder.path(), "the folder of a run", |_| ours)
        };
        refuse(false).unwrap();
        for name in [".DS_Store", "run.lock"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        refuse(false).unwrap();
        std::fs::write(folder.path().join("model.bin"), "mine").unwrap();
        refuse(true).unwrap();
        let message = refuse(false).unwrap_err().to_string();
        assert!(message.contains("model.bin") && !message.contains("fresh"), "{message}");
        refuse_foreign_folder("--out", &folder.path().join("new"), "x", |_| false).unwrap();
        let file = folder.path().join("model.bin");
        refuse_foreign_folder("--out", &file, "x", |_| true).unwrap_err();
    }
}
