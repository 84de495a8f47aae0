//! Which files of a run's folder a mirror has, beside checkpoints, the result and the manifest.

use std::path::Path;

use anyhow::Result;
use runkit::metrics::{LOG_NAME, TENSORBOARD_NAME};
use runkit::run_folder::names_in;

use crate::record;
use crate::run::folder::NOT_FINITE;
use crate::run::{probe, samples};

/// The files that do not change once they are written.
///
/// # Errors
/// If a folder cannot be listed.
pub(super) fn written_once(run: &Path) -> Result<Vec<String>> {
    let mut names = names_in(run, is_written_once)?;
    let mut list = |folder: String| -> Result<()> {
        let is_ours = |name: &str| is_written_once(&format!("{folder}/{name}"));
        let found = names_in(&run.join(&folder), is_ours)?;
        names.extend(found.into_iter().map(|name| format!("{folder}/{name}")));
        Ok(())
    };
    list(record::FOLDER.to_owned())?;
    for set in names_in(&run.join(samples::FOLDER), |name| name.starts_with("step-"))? {
        list(format!("{}/{set}", samples::FOLDER))?;
    }
    Ok(names)
}

/// The files that grow: the metrics first.
///
/// # Errors
/// If a folder cannot be listed.
pub(super) fn logs(run: &Path) -> Result<Vec<String>> {
    let mut names = names_in(run, |name| name == LOG_NAME)?;
    let is_log = |name: &str| is_log(&format!("{TENSORBOARD_NAME}/{name}"));
    let events = names_in(&run.join(TENSORBOARD_NAME), is_log)?;
    names.extend(events.into_iter().map(|name| format!("{TENSORBOARD_NAME}/{name}")));
    Ok(names)
}

/// Whether a name below the folder of a run is that of a file that never changes.
pub(super) fn is_written_once(name: &str) -> bool {
    match name.split_once('/') {
        None => [probe::NAMES, probe::TENSORS].contains(&name) || name.starts_with(NOT_FINITE),
        Some((record::FOLDER, name)) => {
            name.starts_with("step-") && name.ends_with(".safetensors") && !name.contains('/')
        }
        Some((samples::FOLDER, name)) => name
            .split_once('/')
            .is_some_and(|(set, image)| set.starts_with("step-") && samples::is_image(image)),
        Some(_) => false,
    }
}

/// Whether a name below the folder of a run is that of a file that grows.
pub(super) fn is_log(name: &str) -> bool {
    let events = name.strip_prefix(TENSORBOARD_NAME).and_then(|rest| rest.strip_prefix('/'));
    let is_events = |name: &str| name.starts_with("events.out.tfevents.") && !name.contains('/');
    name == LOG_NAME || events.is_some_and(is_events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_run_are_known_by_their_names() {
        for name in [
            "probe.json",
            "probe.safetensors",
            "not-finite-step-000003.txt",
            "record/step-000001-micro-000.safetensors",
            "samples/step-000005/00.png",
        ] {
            assert!(is_written_once(name) && !is_log(name), "{name}");
        }
        for name in ["metrics.jsonl", "tensorboard/events.out.tfevents.1"] {
            assert!(is_log(name) && !is_written_once(name), "{name}");
        }
        for name in [
            "thesis.tex",
            "samples/best.png",
            "samples/step-000005/../00.png",
            "record/step-1/x.safetensors",
            "tensorboard/a/events.out.tfevents.1",
            "checkpoints/step-000001/DONE",
        ] {
            assert!(!is_log(name) && !is_written_once(name), "{name}");
        }
    }
}
