//! The folder of a run: which of its files are ours. Nothing else is ever overwritten or deleted.

use std::path::Path;

use anyhow::Result;
use runkit::files::FileHashes;
use runkit::run_folder::{FolderKind, names_in};
use serde_json::Value;

use super::manifest::{self, NOTES};
use super::{checkpoint, export, probe, samples};
use crate::{config, record};

/// Lists of pairs whose loss is not finite.
pub(crate) const NOT_FINITE: &str = "not-finite-step-";

/// The folder of a run of `train run`.
pub const RUN: FolderKind = FolderKind {
    name: "the folder of a run",
    flag: "--out",
    lock: "run.lock",
    is_ours: manifest::is_ours,
    // A checkpoint notes the numerics of the start that wrote it: see `other_numerics`.
    numerics: &[],
    notes: &NOTES,
    hint: Some(
        "choose another --out, where --from CHECKPOINT starts with what was trained here, or start \
         over with --fresh",
    ),
};

/// The files in the folder that an earlier start wrote, below the folder. The mark of a complete
/// result and of a complete checkpoint come before the files they stand for, so that a kill in the
/// middle of deleting them leaves nothing that looks complete.
///
/// # Errors
/// If a folder cannot be listed.
pub fn outputs(run: &Path, manifest: &Value) -> Result<Vec<String>> {
    let mut files = export::outputs(manifest);
    files.extend(checkpoint::outputs(&run.join(checkpoint::CHECKPOINTS), checkpoint::CHECKPOINTS)?);
    files.extend(
        [runkit::metrics::LOG_NAME, probe::NAMES, probe::TENSORS, FileHashes::FILE, config::FILE]
            .map(str::to_owned),
    );
    files.extend(names_in(run, |name| name.starts_with(NOT_FINITE))?);
    let mut list = |folder: &str, is_ours: &dyn Fn(&str) -> bool| -> Result<()> {
        let names = names_in(&run.join(folder), is_ours)?;
        files.extend(names.into_iter().map(|name| format!("{folder}/{name}")));
        Ok(())
    };
    list(record::FOLDER, &|name| name.starts_with("step-") && name.ends_with(".safetensors"))?;
    list(runkit::metrics::TENSORBOARD_NAME, &|name| name.starts_with("events.out.tfevents."))?;
    for set in names_in(&run.join(samples::FOLDER), |name| name.starts_with("step-"))? {
        list(&format!("{}/{set}", samples::FOLDER), &samples::is_image)?;
    }
    Ok(files)
}

/// Deletes what an earlier start left, but `spared`, a file that is still needed.
///
/// # Errors
/// If the folder is not that of a run, or a file cannot be deleted.
pub fn clear(run: &Path, spared: Option<&Path>) -> Result<()> {
    let folder = RUN.at(run);
    // Before temporary files are deleted, too.
    folder.refuse_foreign()?;
    let manifest = folder.manifest()?.unwrap_or_default();
    remove_temporaries(run)?;
    Ok(folder.clear(outputs(run, &manifest)?, spared)?)
}

/// Deletes the temporary files that killed starts left, in every folder that a run writes to.
///
/// # Errors
/// If one cannot be deleted.
pub fn remove_temporaries(run: &Path) -> Result<()> {
    let mut folders = vec![run.to_owned()];
    for name in [export::FOLDER, export::LORA, samples::FOLDER, record::FOLDER] {
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_folder_is_refused_and_only_our_files_of_a_run_are_deleted() {
        let place = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
        };
        let refuse_foreign = |path: &Path| RUN.at(path).refuse_foreign();
        assert!(refuse_foreign(&place.path().join("nowhere")).is_ok());
        put(RUN.lock);
        put(".manifest.json.1-2-3.runkit-tmp");
        assert!(refuse_foreign(place.path()).is_ok());
        put("thesis.tex");
        let message = refuse_foreign(place.path()).unwrap_err().to_string();
        assert!(message.contains("thesis.tex") && message.contains("another --out"), "{message}");
        assert!(!message.contains("--fresh"), "{message}");
        assert!(clear(place.path(), None).is_err());

        let manifest =
            serde_json::json!({"program": "train", "result": ["vae/config.json", "../x"]});
        runkit::files::write_json_atomic(
            place.path().join(runkit::run_folder::MANIFEST),
            &manifest,
        )
        .unwrap();
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
        clear(place.path(), Some(&spared)).unwrap();
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
