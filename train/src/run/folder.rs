//! The folder of a run: what in it is ours. Nothing else is ever overwritten or removed.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::manifest::Manifest;
use super::{checkpoint, export, probe, samples};
use crate::{config, record};

/// The folder of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// The lock of a run.
pub const LOCK: &str = "run.lock";
/// Lists of pairs whose loss was not finite.
pub(crate) const NOT_FINITE: &str = "not-finite-step-";

/// Refuses a folder that holds something and is none of a run, before anything is written to it.
///
/// # Errors
/// Naming what is in it.
pub fn refuse_foreign(run: &Path) -> Result<()> {
    let is_ours = |run: &Path| matches!(Manifest::read(run), Ok(Some(_)));
    Ok(runkit::output::refuse_foreign_folder("--out", run, "the folder of a run", is_ours)?)
}

/// Removes what an earlier start left, of which the manifest says that it is a run's. The manifest stays until
/// the next one takes its place, so that the folder is that of a run all the time. `spared` is a file that is
/// needed still.
///
/// # Errors
/// Where a file cannot be removed, or the folder is none of a run.
pub fn forget(run: &Path, spared: Option<&Path>) -> Result<()> {
    refuse_foreign(run)?;
    let manifest = Manifest::read(run)?.unwrap_or_default();
    clean(run)?;
    checkpoint::remove_all(&run.join(CHECKPOINTS))?;
    export::remove(run, &result_of(&manifest))?;
    let spared = spared.and_then(|path| path.canonicalize().ok());
    let mut names: Vec<String> = [
        runkit::metrics::LOG_NAME,
        probe::NAMES,
        probe::TENSORS,
        crate::model::HASHES,
        config::FILE,
    ]
    .map(str::to_owned)
    .into();
    let in_folder = |folder: &str, is_ours: &dyn Fn(&str) -> bool| -> Result<Vec<String>> {
        let listed = list(&run.join(folder))?.into_iter().filter(|name| is_ours(name));
        Ok(listed.map(|name| format!("{folder}/{name}")).collect())
    };
    names.extend(list(run)?.into_iter().filter(|name| name.starts_with(NOT_FINITE)));
    names.extend(in_folder(record::FOLDER, &|name| {
        name.starts_with("step-") && name.ends_with(".safetensors")
    })?);
    names.extend(in_folder(runkit::metrics::TENSORBOARD_NAME, &|name| {
        name.starts_with("events.out.tfevents.")
    })?);
    let sets = in_folder(samples::FOLDER, &|name| name.starts_with("step-"))?;
    for set in &sets {
        names.extend(in_folder(set, &samples::is_image)?);
    }
    for name in names {
        let path = run.join(&name);
        if spared.as_ref().is_none_or(|spared| path.canonicalize().ok().as_ref() != Some(spared)) {
            remove_file(&path)?;
        }
    }
    let folders = [samples::FOLDER, record::FOLDER, runkit::metrics::TENSORBOARD_NAME, CHECKPOINTS];
    for folder in sets.iter().map(String::as_str).chain(folders) {
        remove_if_empty(&run.join(folder))?;
    }
    Ok(())
}

/// The files of `pipeline/` that a manifest lists.
pub(crate) fn result_of(manifest: &Value) -> Vec<String> {
    let listed = manifest.get("result").and_then(Value::as_array).into_iter().flatten();
    listed.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Removes temporary files that killed starts left, in every folder that is written to.
///
/// # Errors
/// Where one cannot be removed.
pub fn clean(run: &Path) -> Result<()> {
    let mut folders = vec![run.to_owned()];
    for name in [export::FOLDER, samples::FOLDER, record::FOLDER] {
        let folder = run.join(name);
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            folders.push(entry?.path());
        }
        folders.push(folder);
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        runkit::files::remove_stale_temporaries(folder)?;
    }
    Ok(())
}

/// The names in a folder; none where it is not there.
fn list(folder: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot list {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        other => other.with_context(context)?,
    };
    let name = |entry: io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect::<io::Result<_>>().with_context(context)
}

/// Removes a file where there is one.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Removes a folder where nothing is in it.
pub(crate) fn remove_if_empty(folder: &Path) -> Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
    match std::fs::remove_dir(folder) {
        Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotADirectory | NotFound) => {
            Ok(())
        }
        other => other.with_context(|| format!("cannot remove {}", folder.display())),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;
    use crate::run::manifest;

    #[test]
    fn a_folder_of_somebody_is_refused_and_of_a_run_only_what_is_ours_goes() {
        let place = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
        };
        assert!(refuse_foreign(&place.path().join("nowhere")).is_ok());
        put(LOCK);
        put(".manifest.json.1-2-3.runkit-tmp");
        assert!(refuse_foreign(place.path()).is_ok());
        put("thesis.tex");
        let message = refuse_foreign(place.path()).unwrap_err().to_string();
        assert!(message.contains("thesis.tex") && message.contains("another --out"), "{message}");
        assert!(!message.contains("--fresh"), "{message}");
        assert!(forget(place.path(), None).is_err());

        let manifest =
            serde_json::json!({"program": "train", "result": ["vae/config.json", "../x"]});
        runkit::files::write_json_atomic(place.path().join(manifest::FILE), &manifest).unwrap();
        let ours = [
            "metrics.jsonl",
            "probe.json",
            "config.toml",
            "not-finite-step-000003.txt",
            "pipeline/vae/config.json",
            "samples/step-000005/00.png",
            "record/step-000001-micro-000.safetensors",
            "checkpoints/step-000001/unet/config.json",
            "tensorboard/events.out.tfevents.1",
        ];
        let theirs = [
            "pipeline/model.bin",
            "pipeline/vae/mine.bin",
            "checkpoints/mine/w.bin",
            "checkpoints/step-000001/notes.txt",
            "samples/best.png",
            "samples/step-000005/best.png",
        ];
        ours.iter().chain(&theirs).for_each(|name| put(name));
        put("../x");
        let spared = place.path().join(ours[3]);
        forget(place.path(), Some(&spared)).unwrap();
        for name in ours {
            assert_eq!(place.path().join(name).exists(), name == ours[3], "{name}");
        }
        for name in theirs {
            assert!(place.path().join(name).exists(), "{name}");
        }
        assert!(!place.path().join("tensorboard").exists());
        assert!(place.path().join("../x").exists(), "a manifest names files of the folder only");
        std::fs::remove_file(place.path().join("../x")).unwrap();
    }
}
