//! Which run owns an output folder: lock, manifest, resume, refuse, clear.
//!
//! A run that can be resumed keeps its state in a folder with a manifest, `manifest.json`, which
//! says what the run is. The rules are the same for every program:
//!
//! * one process writes the folder at a time ([`RunFolder::lock`]);
//! * a folder that holds something else is never written to, with or without `--fresh`
//!   ([`RunFolder::refuse_foreign`]);
//! * a run whose *identity* differs is refused, naming the fields that differ
//!   ([`RunFolder::refuse_another`]). Its *numerics* (number of images at once, kind of device) may
//!   differ: the result is the same but for rounding, and the caller says so;
//! * the manifest is written before any other file ([`RunFolder::begin`]), so that everything below
//!   it is known to be ours;
//! * `--fresh` deletes what the program lists as its outputs, and nothing else
//!   ([`RunFolder::clear`]).
//!
//! A command that writes a folder uses [`FolderKind::at`]; one that writes a file and keeps a
//! folder of unfinished work beside it uses [`FolderKind::beside`].
//!
//! ```
//! use runkit::run_folder::FolderKind;
//! use serde_json::json;
//!
//! const RUN: FolderKind = FolderKind {
//!     name: "the folder of a training run",
//!     flag: "--out",
//!     lock: "run.lock",
//!     is_ours: |manifest| manifest["program"] == "train",
//!     numerics: &["micro_batch"],
//!     notes: &["steps"],
//!     hint: None,
//! };
//! # let place = tempfile::tempdir()?;
//! # let out = place.path().join("run");
//! let manifest = json!({"program": "train", "seed": 1, "micro_batch": 2, "steps": 100});
//! let run = RUN.at(&out);
//! run.refuse_foreign()?;
//! let _lock = run.lock()?;
//! run.refuse_another(&manifest)?;
//! run.begin(&manifest)?;
//!
//! let longer = json!({"program": "train", "seed": 1, "micro_batch": 1, "steps": 200});
//! let numerics = run.refuse_another(&longer)?;
//! assert_eq!(numerics[0].to_string(), "micro_batch: was 2, now 1");
//! let another = json!({"program": "train", "seed": 2, "micro_batch": 2, "steps": 100});
//! assert!(run.refuse_another(&another).unwrap_err().to_string().contains("seed: was 1, now 2"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::files::{
    FileError, Operation, create_folder, is_temporary_name, remove_stale_temporaries, write_atomic,
};
use crate::lock::OutputLock;
use crate::manifest::{Difference, differences};
use crate::output::{OutputError, other_run, refuse_foreign_folder};

/// The name of the manifest inside the folder of a run.
pub const MANIFEST: &str = "manifest.json";

/// What the folders of one kind of run have in common.
#[derive(Debug, Clone, Copy)]
pub struct FolderKind {
    /// What it is, with its article: "the folder of a training run".
    pub name: &'static str,
    /// The flag that names the output, such as `--out`.
    pub flag: &'static str,
    /// The name of the lock file inside the folder. [`FolderKind::beside`] does not use it.
    pub lock: &'static str,
    /// Whether this program wrote a manifest.
    pub is_ours: fn(&Value) -> bool,
    /// Fields of the manifest that change the result by rounding alone.
    pub numerics: &'static [&'static str],
    /// Fields of the manifest that may change from one start to the next without a word.
    pub notes: &'static [&'static str],
    /// What to do if the folder holds another run; the usual advice if `None`.
    pub hint: Option<&'static str>,
}

impl FolderKind {
    /// The run whose output is the folder `path`.
    pub fn at(self, path: impl Into<PathBuf>) -> RunFolder {
        let path = path.into();
        RunFolder { lock: path.join(self.lock), path, kind: self }
    }

    /// The run whose output is the file `output`: unfinished work is in `OUTPUT.work`, the lock in
    /// `.NAME.lock` beside the file.
    #[must_use]
    pub fn beside(self, output: &Path) -> RunFolder {
        let mut work = output.as_os_str().to_owned();
        work.push(".work");
        RunFolder { path: work.into(), lock: hidden_beside(output, "lock"), kind: self }
    }

    /// The folder of unfinished work at `path`, wherever the output is: the lock is `.NAME.lock`
    /// beside the folder, which is removed in the end.
    #[must_use]
    pub fn apart(self, path: &Path) -> RunFolder {
        RunFolder { path: path.to_owned(), lock: hidden_beside(path, "lock"), kind: self }
    }
}

/// A file beside `output` whose name begins with a dot.
#[must_use]
pub fn hidden_beside(output: &Path, suffix: &str) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!(".{name}.{suffix}"))
}

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    kind: FolderKind,
    path: PathBuf,
    lock: PathBuf,
}

impl RunFolder {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a folder that holds something and has no manifest of ours. Call it before hours of
    /// planning, and again with the lock.
    ///
    /// # Errors
    /// [`OutputError::Foreign`] naming what is there.
    pub fn refuse_foreign(&self) -> Result<(), OutputError> {
        self.refuse_foreign_unless(|_| false)
    }

    /// As [`RunFolder::refuse_foreign`], if a folder without a manifest may be ours too.
    ///
    /// # Errors
    /// [`OutputError::Foreign`] naming what is there.
    pub fn refuse_foreign_unless(
        &self,
        is_ours: impl FnOnce(&Path) -> bool,
    ) -> Result<(), OutputError> {
        let is_ours = |path: &Path| matches!(self.manifest(), Ok(Some(_))) || is_ours(path);
        refuse_foreign_folder(self.kind.flag, &self.path, self.kind.name, is_ours)
    }

    /// Takes the folder for this process alone.
    ///
    /// # Errors
    /// [`OutputError::Lock`] naming who holds it.
    pub fn lock(&self) -> Result<OutputLock, OutputError> {
        self.create_folder_of_lock()?;
        Ok(OutputLock::exclusive(&self.lock)?)
    }

    /// Takes the folder together with the other shards of the same run.
    ///
    /// # Errors
    /// [`OutputError::Lock`] naming who holds it alone.
    pub fn lock_shared(&self) -> Result<OutputLock, OutputError> {
        self.create_folder_of_lock()?;
        Ok(OutputLock::shared(&self.lock)?)
    }

    fn create_folder_of_lock(&self) -> Result<(), FileError> {
        match self.lock.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => create_folder(folder),
            _ => Ok(()),
        }
    }

    /// The manifest in the folder, if there is one.
    ///
    /// # Errors
    /// [`OutputError::Manifest`] if the file is something else.
    pub fn manifest(&self) -> Result<Option<Value>, OutputError> {
        let file = self.path.join(MANIFEST);
        let fail = |found: String| {
            let (path, flag, expected) = (file.clone(), self.kind.flag, self.kind.name);
            OutputError::Manifest { path, flag, expected, found }
        };
        let text = match std::fs::read(&file) {
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
            Ok(text) => text,
        };
        let manifest: Value =
            serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
        match (self.kind.is_ours)(&manifest) {
            true => Ok(Some(manifest)),
            false => Err(fail("a file of another program".to_owned())),
        }
    }

    /// Refuses to resume another run, and returns how the numerics of this start differ from those
    /// of the manifest.
    ///
    /// # Errors
    /// [`OutputError::OtherRun`] naming the fields of the identity that differ.
    pub fn refuse_another(
        &self,
        manifest: &impl Serialize,
    ) -> Result<Vec<Difference>, OutputError> {
        let Some(earlier) = self.manifest()? else { return Ok(Vec::new()) };
        let ours = self.to_value(manifest)?;
        let (identity, numerics) = self.split(ours);
        let (earlier_identity, earlier_numerics) = self.split(earlier);
        let found = differences(&earlier_identity, &identity);
        if found.is_empty() {
            return Ok(differences(&earlier_numerics, &numerics));
        }
        Err(match self.kind.hint {
            Some(hint) => {
                let (path, hint) = (self.path.clone(), hint.to_owned());
                OutputError::OtherRun { path, differences: found, hint }
            }
            None => other_run(self.kind.flag, &self.path, found),
        })
    }

    /// The identity and the numerics of a manifest.
    fn split(&self, manifest: Value) -> (Value, Value) {
        let Value::Object(fields) = manifest else { return (manifest, Value::Null) };
        let is = |names: &[&str], name: &str| names.contains(&name);
        let fields = fields.into_iter().filter(|(name, _)| !is(self.kind.notes, name));
        let (numerics, identity): (Map<_, _>, Map<_, _>) =
            fields.partition(|(name, _)| is(self.kind.numerics, name));
        (identity.into(), numerics.into())
    }

    /// Makes the folder and writes the manifest, unless the very same one is there. Removes the
    /// temporary files that killed starts left in the folder.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn begin(&self, manifest: &impl Serialize) -> Result<(), OutputError> {
        create_folder(&self.path)?;
        remove_stale_temporaries(&self.path)?;
        let file = self.path.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(manifest)
            .map_err(|error| FileError::new(&file, Operation::Serialize, error.into()))?;
        text.push(b'\n');
        if std::fs::read(&file).is_ok_and(|found| found == text) {
            return Ok(());
        }
        Ok(write_atomic(&file, |file| file.write_all(&text))?)
    }

    /// Deletes outputs of an earlier run, for `--fresh`. `outputs` are files relative to the
    /// folder; a path that leads out of it is skipped, and so is `spared`, which this run reads.
    /// Then deletes temporary files and folders that have become empty. The manifest stays until
    /// [`RunFolder::begin`] replaces it, so that after a kill the rest is still known to be ours.
    ///
    /// # Errors
    /// If the folder is not ours, or a file cannot be deleted.
    #[doc(alias = "fresh")]
    pub fn clear(
        &self,
        outputs: impl IntoIterator<Item = impl AsRef<Path>>,
        spared: Option<&Path>,
    ) -> Result<(), OutputError> {
        self.refuse_foreign()?;
        let spared = spared.and_then(|path| path.canonicalize().ok());
        let mut folders = BTreeSet::from([PathBuf::new()]);
        for output in outputs {
            let output = output.as_ref();
            let stays_inside = output.components().all(|part| matches!(part, Component::Normal(_)));
            let path = self.path.join(output);
            let is_spared = spared.is_some() && path.canonicalize().ok() == spared;
            if stays_inside && !is_spared {
                folders.extend(output.ancestors().skip(1).map(Path::to_owned));
                remove_file(&path)?;
            }
        }
        // The deepest folders come last in order, and go first.
        for folder in folders.iter().rev() {
            let path = self.path.join(folder);
            if path.is_dir() {
                remove_stale_temporaries(&path)?;
            }
            if !folder.as_os_str().is_empty() {
                remove_if_empty(&path)?;
            }
        }
        Ok(())
    }

    /// Deletes the folder with all it holds, the manifest after all else. For work folders, which
    /// hold nothing but our unfinished work.
    ///
    /// # Errors
    /// If something cannot be deleted.
    pub fn remove(&self) -> Result<(), OutputError> {
        let fail = |cause| FileError::new(&self.path, Operation::Remove, cause);
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if is_absent(&error) => return Ok(()),
            other => other.map_err(fail)?,
        };
        for entry in entries {
            let path = entry.map_err(fail)?.path();
            if path.file_name().is_some_and(|name| name == MANIFEST) {
                continue;
            }
            let removed = match path.is_dir() && !path.is_symlink() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            // Another shard may be at the same work.
            removed.or_else(unless_absent).map_err(fail)?;
        }
        Ok(std::fs::remove_dir_all(&self.path).or_else(unless_absent).map_err(fail)?)
    }

    fn to_value(&self, manifest: &impl Serialize) -> Result<Value, FileError> {
        serde_json::to_value(manifest).map_err(|error| {
            FileError::new(self.path.join(MANIFEST), Operation::Serialize, error.into())
        })
    }
}

/// The names of the files and folders in `folder` that `is_ours` accepts, sorted; empty if there is
/// no such folder. Our temporary files are not listed.
///
/// # Errors
/// If the folder cannot be listed.
pub fn names_in(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<Vec<String>, FileError> {
    let fail = |cause| FileError::new(folder, Operation::List, cause);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours(&name) && !is_temporary_name(&entry.path()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Deletes a file if there is one.
///
/// # Errors
/// If it cannot be deleted.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    let fail = |cause| FileError::new(path, Operation::Remove, cause);
    std::fs::remove_file(path).or_else(unless_absent).map_err(fail)
}

/// Deletes a folder if it is empty.
///
/// # Errors
/// If it is empty and cannot be deleted.
pub fn remove_if_empty(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other
            .or_else(unless_absent)
            .map_err(|cause| FileError::new(path, Operation::Remove, cause)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unless_absent(error: io::Error) -> io::Result<()> {
    if is_absent(&error) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::json;

    use super::{FolderKind, MANIFEST, RunFolder, hidden_beside, names_in};
    use crate::output::OutputError;

    const RUN: FolderKind = FolderKind {
        name: "the folder of a run",
        flag: "--out",
        lock: "run.lock",
        is_ours: |manifest| manifest["program"] == "test",
        numerics: &["batch"],
        notes: &["steps"],
        hint: None,
    };

    fn put(folder: &Path, name: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }

    fn begun(folder: &Path) -> RunFolder {
        let run = RUN.at(folder);
        run.begin(&json!({"program": "test", "seed": 1, "batch": 1, "steps": 1})).unwrap();
        run
    }

    #[test]
    fn a_folder_without_our_manifest_is_refused_without_naming_fresh() {
        let place = tempfile::tempdir().unwrap();
        let run = RUN.at(place.path());
        run.refuse_foreign().unwrap();
        put(place.path(), "thesis.tex");
        for manifest in [None, Some("{}"), Some("{"), Some("[1]")] {
            if let Some(text) = manifest {
                std::fs::write(place.path().join(MANIFEST), text).unwrap();
                assert!(matches!(run.manifest(), Err(OutputError::Manifest { .. })), "{text}");
            }
            for error in
                [run.refuse_foreign().unwrap_err(), run.clear(["thesis.tex"], None).unwrap_err()]
            {
                let message = error.to_string();
                assert!(message.contains("thesis.tex") && !message.contains("fresh"), "{message}");
            }
        }
        assert!(place.path().join("thesis.tex").exists());
        run.refuse_foreign_unless(|_| true).unwrap();
    }

    #[test]
    fn identity_numerics_and_notes_are_kept_apart() {
        let place = tempfile::tempdir().unwrap();
        let run = begun(place.path());
        let numerics =
            run.refuse_another(&json!({"program": "test", "seed": 1, "batch": 2, "steps": 9}));
        let numerics: Vec<String> = numerics.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(numerics, ["batch: was 1, now 2"]);
        let another = json!({"program": "test", "seed": 2, "batch": 2, "steps": 9});
        let message = run.refuse_another(&another).unwrap_err().to_string();
        assert!(message.contains("seed: was 1, now 2") && !message.contains("batch"), "{message}");
        let hint = FolderKind { hint: Some("see there"), ..RUN }.at(place.path());
        assert!(
            hint.refuse_another(&another).unwrap_err().to_string().ends_with("hint: see there")
        );
    }

    #[test]
    fn a_second_process_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let run = RUN.at(place.path().join("new/run"));
        let held = run.lock().unwrap();
        let message = run.lock().unwrap_err().to_string();
        assert!(message.contains("run.lock is held by process"), "{message}");
        drop(held);
        let _shards = [run.lock_shared().unwrap(), run.lock_shared().unwrap()];
        run.lock().unwrap_err();
    }

    #[test]
    fn clear_deletes_outputs_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let run = begun(&place.path().join("run"));
        let outputs = ["log.jsonl", "list.txt", "images/a/0.png", "images/b/0.png", "deep/er/x"];
        let others = ["mine.txt", "images/b/mine.png", "../x"];
        outputs.iter().chain(&others).for_each(|name| put(run.path(), name));
        let absolute = place.path().join("x");
        let listed = outputs.iter().map(PathBuf::from).chain([
            PathBuf::from("../x"),
            PathBuf::from("absent/file"),
            absolute,
        ]);
        run.clear(listed, Some(&run.path().join("list.txt"))).unwrap();
        for name in outputs {
            assert_eq!(run.path().join(name).exists(), name == "list.txt", "{name}");
        }
        for name in others.iter().chain(&[MANIFEST]) {
            assert!(run.path().join(name).exists(), "{name}");
        }
        assert!(!run.path().join("images/a").exists() && !run.path().join("deep").exists());
    }

    #[test]
    fn a_work_folder_goes_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("labels.parquet");
        let run = RUN.beside(&output);
        assert_eq!(run.path(), place.path().join("labels.parquet.work"));
        assert_eq!(hidden_beside(&output, "lock"), place.path().join(".labels.parquet.lock"));
        run.remove().unwrap();
        run.begin(&json!({"program": "test"})).unwrap();
        put(run.path(), "parts/0");
        run.remove().unwrap();
        assert!(!run.path().exists());
    }

    #[test]
    fn names_are_listed_in_order() {
        let place = tempfile::tempdir().unwrap();
        for name in ["step-2", "step-1", "mine", ".step-3.1-2-3.runkit-tmp"] {
            put(place.path(), name);
        }
        let steps = names_in(place.path(), |name| name.contains("step-")).unwrap();
        assert_eq!(steps, ["step-1", "step-2"]);
        assert!(names_in(&place.path().join("absent"), |_| true).unwrap().is_empty());
    }
}
