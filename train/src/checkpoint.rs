//! Checkpoints: everything a run needs to go on as if it had not stopped.
//!
//! `checkpoints/step-000100/` holds `unet/`, `reference/`, `optimizer.safetensors`, `state.json`, and
//! `DONE`, which is written last and lists the other files with their lengths and BLAKE3 hashes. A
//! folder without `DONE` is none; one whose files are not what `DONE` says is damaged: it is removed and
//! the one before it is taken. One that cannot be read, or is of another version, stays as it is. Each
//! is a new folder, so that a full disk spoils nothing that is there, and copies of it are complete
//! wherever they are moved.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nn::optimizer::Optimizer;
use nn::weights::{Weights, write_safetensors};
use serde::{Deserialize, Serialize};

use crate::model::Networks;

/// The version of the format. It grows when an older program would misread a checkpoint.
const FORMAT: u32 = 1;
const MARKER: &str = "DONE";
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// The folder of the trained UNet.
pub const UNET: &str = "unet";
/// The folder of the reference.
pub const REFERENCE: &str = "reference";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The version of the format.
    pub format: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Pairs consumed since the start of training, over all epochs.
    pub position: u64,
    /// The step whose weights the reference has; 0 for the base model's.
    pub reference_step: u64,
    /// The fingerprint of the run's manifest.
    pub run: String,
}

impl State {
    /// Of a run of this fingerprint.
    pub fn new(step: u64, position: u64, reference_step: u64, run: &str) -> Self {
        Self { format: FORMAT, step, position, reference_step, run: run.to_owned() }
    }
}

/// What `DONE` says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    blake3: String,
}

/// A checkpoint that is complete.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub state: State,
}

impl Checkpoint {
    /// Lays the optimizer's state into `optimizer`.
    ///
    /// # Errors
    /// Where the state is of another optimizer.
    pub fn load_optimizer(&self, optimizer: &mut dyn Optimizer) -> Result<()> {
        optimizer.load_state(&Weights::open(self.folder.join(OPTIMIZER))?)?;
        Ok(())
    }
}

/// The folder of the checkpoint of a step.
pub fn folder(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:06}"))
}

/// Writes the checkpoint of `state.step`, unless it is there and whole.
///
/// # Errors
/// Where a file cannot be written; what is there without `DONE` is removed by the next run.
pub fn save(
    checkpoints: &Path,
    state: &State,
    networks: &Networks,
    optimizer: &dyn Optimizer,
) -> Result<PathBuf> {
    let folder = folder(checkpoints, state.step);
    if folder.join(MARKER).exists() && read(&folder).is_ok_and(|there| there == *state) {
        return Ok(folder);
    }
    remove(&folder)?;
    let context = || format!("writing the checkpoint {}", folder.display());
    let write = || -> Result<()> {
        for (name, network) in [(UNET, &networks.pipeline.unet), (REFERENCE, &networks.reference)] {
            let part = folder.join(name);
            runkit::files::create_folder(&part)?;
            network.save(&part)?;
        }
        write_safetensors(&folder.join(OPTIMIZER), &optimizer.state())?;
        runkit::files::write_json_atomic(folder.join(STATE), state)?;
        runkit::files::write_json_atomic(folder.join(MARKER), &records(&folder)?)?;
        Ok(())
    };
    write().with_context(context)?;
    runkit::fault::point("checkpoint");
    Ok(folder)
}

/// The newest checkpoint that is whole and of the run `run`. Damaged newer ones are warned of and removed,
/// as are folders that a killed run left.
///
/// # Errors
/// Where a checkpoint cannot be read, or is of another run or another version.
pub fn latest(checkpoints: &Path, run: &str) -> Result<Option<Checkpoint>> {
    let mut found = list(checkpoints)?;
    while let Some((step, folder)) = found.pop_last() {
        if !folder.join(MARKER).exists() {
            tracing::debug!(folder = %folder.display(), "removing an unfinished checkpoint");
            remove(&folder)?;
            continue;
        }
        match verify(&folder)? {
            Found::Whole(state) => {
                ensure!(
                    state.run == run && state.step == step,
                    "{}: of another run; hint: choose another --out, or start over with --fresh",
                    folder.display()
                );
                return Ok(Some(Checkpoint { folder, state }));
            }
            Found::Damaged(reason) => {
                match found.is_empty() {
                    false => tracing::warn!("{reason}; taking the checkpoint before it"),
                    true => tracing::warn!("{reason}; there is none before it: starting over"),
                }
                remove(&folder)?;
            }
        }
    }
    Ok(None)
}

/// Whether there is a checkpoint to go on from, whole or damaged.
///
/// # Errors
/// Where the folder cannot be read.
pub fn exists(checkpoints: &Path) -> Result<bool> {
    Ok(list(checkpoints)?.values().any(|folder| folder.join(MARKER).exists()))
}

/// Removes all but the newest `keep` checkpoints.
///
/// # Errors
/// Where one cannot be removed.
pub fn prune(checkpoints: &Path, keep: usize) -> Result<()> {
    let found = list(checkpoints)?;
    let surplus = found.len().saturating_sub(keep);
    for folder in found.into_values().take(surplus) {
        remove(&folder)?;
    }
    Ok(())
}

/// The folders that have the name of a checkpoint, by step.
fn list(checkpoints: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let entries = match std::fs::read_dir(checkpoints) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.with_context(|| format!("cannot list {}", checkpoints.display()))?,
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("step-"))
            .and_then(|digits| digits.parse().ok());
        if let (Some(step), true) = (step, path.is_dir()) {
            found.insert(step, path);
        }
    }
    Ok(found)
}

/// Takes the mark off first, so that half a checkpoint is never taken for one.
fn remove(folder: &Path) -> Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(std::fs::remove_file(folder.join(MARKER)))
        .and_then(|()| gone(std::fs::remove_dir_all(folder)))
        .with_context(|| format!("cannot remove {}", folder.display()))
}

fn read(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: cannot be read", path.display()))?;
    let state: State = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected the state of a checkpoint", path.display()))?;
    ensure!(
        state.format == FORMAT,
        "{}: expected format {FORMAT}, found {}; hint: go on with the version that wrote it",
        path.display(),
        state.format
    );
    Ok(state)
}

/// Every file but the mark, by its path below the folder.
fn records(folder: &Path) -> Result<BTreeMap<String, FileRecord>> {
    let mut records = BTreeMap::new();
    for part in ["", UNET, REFERENCE] {
        let listed = std::fs::read_dir(folder.join(part))
            .with_context(|| format!("cannot list {}", folder.join(part).display()))?;
        for entry in listed {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !path.is_file() || name == MARKER || name.starts_with('.') {
                continue;
            }
            let name = if part.is_empty() { name } else { format!("{part}/{name}") };
            records.insert(name, record(&path)?);
        }
    }
    Ok(records)
}

fn record(path: &Path) -> Result<FileRecord> {
    let context = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(context)?;
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut file, &mut hasher).with_context(context)?;
    Ok(FileRecord { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// What a folder with a mark turns out to be.
enum Found {
    Whole(State),
    /// And why, in a sentence that names the file.
    Damaged(String),
}

/// Compares every file with what the mark says.
fn verify(folder: &Path) -> Result<Found> {
    let marker = folder.join(MARKER);
    let text =
        std::fs::read(&marker).with_context(|| format!("{}: cannot be read", marker.display()))?;
    let damaged = |path: &Path, reason: &str| {
        Ok(Found::Damaged(format!("{}: damaged: {reason}", path.display())))
    };
    let Ok(expected) = serde_json::from_slice::<BTreeMap<String, FileRecord>>(&text) else {
        return damaged(&marker, "it is no list of files");
    };
    if !expected.contains_key(STATE) {
        return damaged(&marker, &format!("it lists no {STATE}"));
    }
    for (name, expected) in &expected {
        let path = folder.join(name);
        if !path.exists() {
            return damaged(&path, "it is missing");
        }
        let found = record(&path)?;
        if found != *expected {
            let short = |record: &FileRecord| record.blake3.chars().take(12).collect::<String>();
            let (ours, theirs) = (short(expected), short(&found));
            return damaged(
                &path,
                &format!(
                    "expected {} bytes with the hash {ours}, found {} bytes with {theirs}",
                    expected.bytes, found.bytes
                ),
            );
        }
    }
    read(folder).map(Found::Whole)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    /// A checkpoint of text files: what is not read again need not be weights.
    fn write(checkpoints: &Path, step: u64, run: &str) -> PathBuf {
        let folder = folder(checkpoints, step);
        for part in [UNET, REFERENCE] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
            std::fs::write(folder.join(part).join("weights"), format!("{part} {step}")).unwrap();
        }
        std::fs::write(folder.join(OPTIMIZER), "moments").unwrap();
        let state = State::new(step, 4 * step, 0, run);
        runkit::files::write_json_atomic(folder.join(STATE), &state).unwrap();
        runkit::files::write_json_atomic(folder.join(MARKER), &records(&folder).unwrap()).unwrap();
        folder
    }

    fn newest(checkpoints: &Path) -> Option<u64> {
        latest(checkpoints, "run").unwrap().map(|checkpoint| checkpoint.state.step)
    }

    #[test]
    fn the_newest_whole_checkpoint_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let checkpoints = place.path().join("checkpoints");
        assert_eq!(newest(&checkpoints), None);
        write(&checkpoints, 9, "run");
        write(&checkpoints, 10, "run");
        assert_eq!(newest(&checkpoints), Some(10));
        let unfinished = write(&checkpoints, 11, "run");
        std::fs::remove_file(unfinished.join(MARKER)).unwrap();
        assert_eq!(newest(&checkpoints), Some(10));
        assert!(!unfinished.exists(), "what a killed run left is removed");
    }

    #[test]
    fn damage_of_every_kind_falls_back_to_the_one_before() {
        for file in [STATE, OPTIMIZER, "unet/weights", "reference/weights", MARKER] {
            for damage in ["cut", "flipped", "missing"] {
                if (file, damage) == (MARKER, "flipped") {
                    continue;
                }
                let place = tempfile::tempdir().unwrap();
                write(place.path(), 1, "run");
                let path = write(place.path(), 2, "run").join(file);
                let mut bytes = std::fs::read(&path).unwrap();
                match damage {
                    "cut" => bytes.truncate(bytes.len() / 2),
                    "flipped" => bytes[0] ^= 1,
                    _ => std::fs::remove_file(&path).unwrap(),
                }
                if damage != "missing" {
                    std::fs::write(&path, bytes).unwrap();
                }
                assert_eq!(newest(place.path()), Some(1), "{file} {damage}");
            }
        }
    }

    #[test]
    fn what_is_not_damaged_is_not_removed() {
        let place = tempfile::tempdir().unwrap();
        let folder = write(place.path(), 2, "run");
        let newer = State { format: FORMAT + 1, ..State::new(2, 8, 0, "run") };
        runkit::files::write_json_atomic(folder.join(STATE), &newer).unwrap();
        runkit::files::write_json_atomic(folder.join(MARKER), &records(&folder).unwrap()).unwrap();
        let message = latest(place.path(), "run").unwrap_err().to_string();
        assert!(message.contains("the version that wrote it"), "{message}");
        assert!(folder.join(OPTIMIZER).exists());
    }

    #[test]
    fn the_only_checkpoint_may_be_damaged() {
        let place = tempfile::tempdir().unwrap();
        let folder = write(place.path(), 2, "run");
        std::fs::write(folder.join(OPTIMIZER), "momentS").unwrap();
        assert_eq!(newest(place.path()), None);
        assert!(!folder.exists());
    }

    #[test]
    fn another_runs_checkpoint_is_refused_and_old_ones_are_pruned() {
        let place = tempfile::tempdir().unwrap();
        for step in [100, 200, 300] {
            write(place.path(), step, "run");
        }
        let message = latest(place.path(), "other").unwrap_err().to_string();
        assert!(message.contains("step-000300") && message.contains("--fresh"), "{message}");
        prune(place.path(), 2).unwrap();
        assert_eq!(list(place.path()).unwrap().into_keys().collect::<Vec<_>>(), [200, 300]);
        prune(place.path(), 2).unwrap();
        assert_eq!(newest(place.path()), Some(300));
    }
}
