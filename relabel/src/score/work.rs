//! What stands beside the output while a run lasts: locks, the work folder with its manifest, and at
//! the end the settings. Decides whether an earlier run is this one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use runkit::lock::{LockError, OutputLock};
use runkit::output::{OutputFile, State};
use schemas::labels::{KEY_MANIFEST, LabelsError, LabelsFile};
use schemas::pairs::InputFile;
use serde_json::{Value, json};

use super::{Config, Manifest};

/// What the run is, inside the work folder.
const MANIFEST: &str = "manifest.json";

/// Where a run keeps what it has until the output is complete.
#[must_use]
pub fn work_folder(out: &Path) -> PathBuf {
    with_suffix(out, ".work")
}

/// The folder a file stands in; the current one for a bare name.
pub(super) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A file beside the output whose name begins with a dot.
fn hidden(out: &Path, suffix: &str) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.{suffix}"))
}

/// The labels file that a command is about to write.
pub(crate) fn labels_output(out: &Path, fresh: bool) -> OutputFile<'_> {
    OutputFile { path: out, flag: "--out", expected: "labels of relabel", fresh }
}

/// What a labels file of ours was made from; `None` for any other file.
pub(crate) fn manifest_of_labels(file: &Path) -> Option<Value> {
    match LabelsFile::open(file) {
        Ok(labels) => serde_json::from_str(labels.metadata().get(KEY_MANIFEST)?).ok(),
        // Ours, of another time.
        Err(LabelsError::Version { found, .. }) => Some(json!({ "schema_version": found })),
        Err(_) => None,
    }
}

/// Refuses an output that is not ours or that is one of the inputs, whatever the flags: before anything
/// is planned, written or removed.
pub(super) fn refuse_foreign(config: &Config, inputs: &[InputFile]) -> Result<()> {
    let out = config.out.as_path();
    let mut read: Vec<PathBuf> = inputs.iter().map(|input| input.path.clone()).collect();
    read.push(config.scorers.clone());
    read.extend(config.config.clone());
    runkit::output::refuse_input("--out", out, &read)?;
    if out.symlink_metadata().is_ok() && manifest_of_labels(out).is_none() {
        let output = labels_output(out, config.fresh);
        return Err(runkit::output::foreign(output.flag, out, output.expected).into());
    }
    let expected = "the unfinished work of relabel score";
    runkit::output::refuse_foreign_folder("--out", &work_folder(out), expected, |work| {
        std::fs::read_to_string(work.join(MANIFEST))
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .is_some_and(|manifest| manifest.get("scorers").is_some())
    })?;
    Ok(())
}

/// Whether the output stands there already, complete and of this very run.
pub(super) fn already_complete(config: &Config, manifest: &Manifest) -> Result<bool> {
    let output = labels_output(&config.out, config.fresh);
    let manifest = serde_json::to_value(manifest)?;
    Ok(output.examine(&[], &manifest, manifest_of_labels)? == State::Complete)
}

/// Refuses to go on with what another run left in the work folder.
pub(super) fn refuse_another_run(config: &Config, manifest: &Manifest) -> Result<()> {
    let work = work_folder(&config.out);
    let file = work.join(MANIFEST);
    if config.fresh || !file.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{}: cannot be read", file.display()))?;
    let found: Value = serde_json::from_str(&text).with_context(|| {
        format!(
            "{}: expected the manifest of a run; hint: choose another --out, or start over with --fresh",
            file.display()
        )
    })?;
    let manifest = serde_json::to_value(manifest)?;
    Ok(runkit::output::refuse_another_run("--out", &work, &found, &manifest)?)
}

/// Makes the work folder for this run, or goes on with the one an earlier run of the same kind left.
pub(super) fn prepare(config: &Config, manifest: &Manifest, parts: &Path) -> Result<()> {
    let work = work_folder(&config.out);
    if config.fresh {
        remove_work(&work)?;
    }
    runkit::files::create_folder(&work)?;
    let file = work.join(MANIFEST);
    // Before all else: without it nothing here is known to be ours.
    if !file.exists() {
        runkit::files::write_json_atomic(&file, manifest)?;
    }
    runkit::files::create_folder(parts)?;
    if config.shard.is_whole() {
        runkit::files::remove_stale_temporaries(parts)?;
    }
    Ok(())
}

/// The lock of whoever puts the output in its place; `None` when another share has it.
pub(super) fn merge_lock(config: &Config) -> Result<Option<OutputLock>> {
    match OutputLock::exclusive(hidden(&config.out, "merge.lock")) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Held { .. }) if !config.shard.is_whole() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The lock that keeps two runs from one output; shares of one run hold it together.
pub(super) fn output_lock(config: &Config) -> Result<OutputLock> {
    let path = hidden(&config.out, "lock");
    Ok(match config.shard.is_whole() {
        true => OutputLock::exclusive(path)?,
        false => OutputLock::shared(path)?,
    })
}

/// With the output in its place: the settings beside it, and nothing else left of the run. Also
/// finishes what a run that was killed right after its last file left undone. Call it with the merge
/// lock.
pub(super) fn tidy(config: &Config) -> Result<()> {
    let settings = config.out.with_extension("config.toml");
    let work = work_folder(&config.out);
    // A finished run leaves no work folder: its settings stay as they were, whoever asks again.
    if work.exists() || !settings.exists() {
        save_settings(config, &settings)?;
    }
    remove_work(&work)?;
    runkit::files::remove_stale_temporaries(folder_of(&config.out))?;
    Ok(())
}

/// The first line of saved settings, by which they are known as ours.
const SETTINGS_HEAD: &str = "# Written by relabel score; a valid --config.\n";

/// The resolved settings, beside the output and a valid `--config` themselves. A file of the user's under
/// that name stays as it is.
fn save_settings(config: &Config, file: &Path) -> Result<()> {
    let mut settings = config.settings.clone();
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    settings.pairs = settings.pairs.map(|pairs| pairs.iter().map(absolute).collect());
    settings.scorers = settings.scorers.as_ref().map(absolute);
    settings.out = settings.out.as_ref().map(absolute);
    settings.scratch = settings.scratch.as_ref().map(absolute);
    let text = format!("{SETTINGS_HEAD}{}", runkit::config::to_toml_string(&settings)?);
    let found = std::fs::read(file).ok();
    if found.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    let is_ours = found.is_none_or(|found| found.starts_with(SETTINGS_HEAD.as_bytes()));
    if (!is_ours && file.exists())
        || config.config.as_ref().is_some_and(|given| same_file(given, file))
    {
        tracing::warn!("{} stays as it is: the settings of this run are not saved", file.display());
        return Ok(());
    }
    runkit::files::write_atomic(file, |file| std::io::Write::write_all(file, text.as_bytes()))?;
    Ok(())
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Removes the work folder; its manifest, which says that the rest is ours, after all else.
fn remove_work(work: &Path) -> Result<()> {
    let fail = || format!("{}: cannot be removed", work.display());
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(work) {
        Err(error) if gone(&error) => return Ok(()),
        other => other.with_context(fail)?,
    };
    for entry in entries {
        let path = entry.with_context(fail)?.path();
        if path.file_name().is_some_and(|name| name == MANIFEST) {
            continue;
        }
        let removed = match path.is_dir() && !path.is_symlink() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        match removed {
            Err(error) if !gone(&error) => return Err(error).with_context(fail),
            _ => {}
        }
    }
    match std::fs::remove_dir_all(work) {
        Err(error) if !gone(&error) => Err(error).with_context(fail),
        _ => Ok(()),
    }
}
