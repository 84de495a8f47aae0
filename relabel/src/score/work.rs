//! What stands beside the output while a run lasts: locks, the work folder with its manifest, and at
//! the end the settings. Decides whether an earlier run is this one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use runkit::lock::{LockError, OutputLock};
use schemas::labels::{KEY_MANIFEST, LabelsFile};
use serde_json::Value;

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

/// Whether the output stands there already, complete and of this very run.
pub(super) fn already_complete(config: &Config, manifest: &Manifest) -> Result<bool> {
    if config.fresh || !config.out.exists() {
        return Ok(false);
    }
    let hint = "hint: choose another --out, or start over with --fresh";
    let labels = LabelsFile::open(&config.out).with_context(|| {
        format!("{} exists and is not a labels file of this program; {hint}", config.out.display())
    })?;
    let Some(found) = labels.metadata().get(KEY_MANIFEST) else {
        bail!("{} exists and does not say what it was made from; {hint}", config.out.display());
    };
    let found: Value = serde_json::from_str(found)
        .with_context(|| format!("{}: its manifest is not JSON; {hint}", config.out.display()))?;
    refuse_differences(
        &found,
        manifest,
        &format!("{} was made by another run", config.out.display()),
        hint,
    )?;
    Ok(true)
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
    let hint =
        "hint: repeat the command that began it, choose another --out, or start over with --fresh";
    let found: Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected the manifest of a run; {hint}", file.display()))?;
    refuse_differences(&found, manifest, &format!("{} holds another run", work.display()), hint)
}

/// Makes the work folder for this run, or goes on with the one an earlier run of the same kind left.
pub(super) fn prepare(config: &Config, manifest: &Manifest, parts: &Path) -> Result<()> {
    let work = work_folder(&config.out);
    if config.fresh {
        remove_folder(&work)?;
    }
    runkit::files::create_folder(&work)?;
    runkit::files::create_folder(parts)?;
    let file = work.join(MANIFEST);
    if !file.exists() {
        runkit::files::write_json_atomic(&file, manifest)?;
    }
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
    remove_folder(&work)?;
    runkit::files::remove_stale_temporaries(folder_of(&config.out))?;
    Ok(())
}

fn refuse_differences(found: &Value, manifest: &Manifest, what: &str, hint: &str) -> Result<()> {
    const SHOWN: usize = 8;
    let differences = runkit::manifest::differences(found, &serde_json::to_value(manifest)?);
    if differences.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> =
        differences.iter().take(SHOWN).map(|difference| format!("  {difference}")).collect();
    if differences.len() > SHOWN {
        lines.push(format!("  and {} more", differences.len() - SHOWN));
    }
    bail!("{what}, which differs from this one:\n{}\n{hint}", lines.join("\n"));
}

/// The resolved settings, beside the output and a valid `--config` themselves.
fn save_settings(config: &Config, file: &Path) -> Result<()> {
    let mut settings = config.settings.clone();
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    settings.pairs = settings.pairs.map(|pairs| pairs.iter().map(absolute).collect());
    settings.scorers = settings.scorers.as_ref().map(absolute);
    settings.out = settings.out.as_ref().map(absolute);
    let text = runkit::config::to_toml_string(&settings)?;
    if std::fs::read(file).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    runkit::files::write_atomic(file, |file| std::io::Write::write_all(file, text.as_bytes()))?;
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", folder.display()))
        }
        _ => Ok(()),
    }
}
