//! Checkpoints: everything a run needs to resume as if it had not stopped.
//!
//! `checkpoints/step-000100/` holds `unet/`, `reference/` and with `--ema` `ema/` (each with
//! `adapters.safetensors` alone, if adapters are trained), `optimizer.safetensors` (with
//! `--shard-optimizer` one `optimizer-00001-of-00008.safetensors` of each rank), `state.json`, and
//! `DONE`, which is written last and lists the other files with their lengths and BLAKE3
//! hashes. A folder without `DONE` is not a checkpoint. A checkpoint whose files differ from `DONE`
//! is damaged: it is deleted, and the one before it is used. A checkpoint that cannot be read, or
//! is of another version, stays as it is. Each checkpoint is a new folder, so that a full disk
//! damages none of the others, and a copy of the folder is complete wherever it is moved.
//!
//! Files are hashed while they are written. If the reference model is the same as in an earlier
//! checkpoint, its file is a hard link to the earlier one, if the file system has hard links.

mod copies;
mod equal;
mod shards;
mod write;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nn::optimizer::OptimizerKind;
use nn::weights::{Weights, Written};
use rayon::prelude::*;
use runkit::signals::Stopped;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::copies::{
    complete_in, files_of, name_in_run, open_files, parse, put_together,
};
pub use self::write::save;
use crate::loss::RunningMargin;
use crate::loss_scale::LossScale;
use crate::optimizer::RankOptimizer;
use crate::run::manifest::{Numerics, Origin};
use crate::trainer::Position;

/// The folder of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// The version of the format. It grows when an older program would misread a checkpoint.
const FORMAT: u32 = 2;
/// The mark of a complete checkpoint.
pub(crate) const MARKER: &str = "DONE";
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// The folder of the trained UNet.
pub const UNET: &str = "unet";
/// The folder of the reference model.
pub const REFERENCE: &str = "reference";
/// The folder of the model's moving average.
pub const EMA: &str = "ema";
/// Every file of a checkpoint, below its folder, but for the shards of the optimizer's state.
const FILES: [&str; 12] = [
    MARKER,
    STATE,
    OPTIMIZER,
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "reference/config.json",
    "reference/diffusion_pytorch_model.safetensors",
    "ema/config.json",
    "ema/diffusion_pytorch_model.safetensors",
    "unet/adapters.safetensors",
    "reference/adapters.safetensors",
    "ema/adapters.safetensors",
];
/// Bytes of a file that are read and hashed at a time.
const PIECE: usize = 8 << 20;

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
    /// The step whose weights the reference model has; 0 for the base model's.
    pub reference_step: u64,
    /// The factor of the next loss.
    #[serde(default)]
    pub loss_scale: LossScale,
    /// The running mean of the margins, for a β that adapts.
    #[serde(default, skip_serializing_if = "RunningMargin::is_unset")]
    pub margin: RunningMargin,
    /// The optimizer of the moments.
    pub optimizer: OptimizerKind,
    /// The fingerprint of the run's identity.
    pub run: String,
    /// The numerics of the start that wrote it.
    pub numerics: Numerics,
}

impl State {
    /// The state of the run with this fingerprint.
    pub fn new(
        position: Position,
        optimizer: OptimizerKind,
        run: &str,
        numerics: &Numerics,
    ) -> Self {
        let Position { step, pairs, reference_step, loss_scale, margin } = position;
        Self {
            format: FORMAT,
            step,
            position: pairs,
            reference_step,
            loss_scale,
            margin,
            optimizer,
            run: run.to_owned(),
            numerics: numerics.clone(),
        }
    }

    /// Where the run stands.
    pub fn position(&self) -> Position {
        Position {
            step: self.step,
            pairs: self.position,
            reference_step: self.reference_step,
            loss_scale: self.loss_scale,
            margin: self.margin,
        }
    }
}

/// The entry of a file in `DONE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    blake3: String,
}

impl From<Written> for FileRecord {
    fn from(written: Written) -> Self {
        Self { bytes: written.bytes, blake3: written.blake3 }
    }
}

/// The content of `DONE`: every other file by its path below the folder.
type Records = BTreeMap<String, FileRecord>;

/// A complete checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub state: State,
}

impl Checkpoint {
    /// Opens a checkpoint of any run and checks every file.
    ///
    /// # Errors
    /// If it is not a complete checkpoint, damaged, or of another version.
    pub fn open(folder: &Path) -> Result<Self> {
        refuse_unfinished(folder)?;
        match verify(folder)? {
            Found::Whole(state) => Ok(Self { folder: folder.to_owned(), state }),
            Found::Damaged(reason) => bail!("{reason}; hint: choose another checkpoint"),
        }
    }

    /// Loads the optimizer's state into `optimizer`: all of it or a shard, from one file or from
    /// the shards of any number of ranks.
    ///
    /// # Errors
    /// If the state is of another optimizer, or not complete.
    pub fn load_optimizer(&self, optimizer: &mut RankOptimizer) -> Result<()> {
        let marker = self.folder.join(MARKER);
        let text = std::fs::read(&marker)
            .with_context(|| format!("{}: cannot be read", marker.display()))?;
        let records: Records = serde_json::from_slice(&text)
            .with_context(|| format!("{}: expected a list of files", marker.display()))?;
        let names = records.keys().filter(|name| *name == OPTIMIZER || shards::is_shard(name));
        let files: Vec<PathBuf> = names.map(|name| self.folder.join(name)).collect();
        ensure!(!files.is_empty(), "{}: it lists no {OPTIMIZER}", marker.display());
        optimizer.load_state(&Weights::open_files(&files)?)
    }
}

/// Identifies a checkpoint, for the manifest of a run that starts from it. Reads none of its large
/// files.
///
/// # Errors
/// If it is not a complete checkpoint.
pub fn origin(folder: &Path) -> Result<Origin> {
    refuse_unfinished(folder)?;
    let marker = folder.join(MARKER);
    let bytes =
        std::fs::read(&marker).with_context(|| format!("{}: cannot be read", marker.display()))?;
    let state = read(folder)?;
    Ok(Origin {
        step: state.step,
        position: state.position,
        checkpoint: blake3::hash(&bytes).to_hex().to_string(),
    })
}

fn refuse_unfinished(folder: &Path) -> Result<()> {
    if folder.join(MARKER).is_file() {
        return Ok(());
    }
    let inside = [folder.join(CHECKPOINTS), folder.to_owned()];
    let newest = inside.iter().find_map(|place| list(place).ok()?.pop_last());
    let hint = match newest {
        Some((_, found)) => format!("name the folder of one, as {}", found.display()),
        None => "name a folder as runs/A/checkpoints/step-000500".to_owned(),
    };
    bail!("{}: expected a checkpoint, found no {MARKER} in it; hint: {hint}", folder.display())
}

/// The folder of the checkpoint of a step.
pub fn folder(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:06}"))
}

/// The newest intact checkpoint of the run `run`. Deletes damaged newer ones with a warning, and
/// folders that a killed start left unfinished.
///
/// # Errors
/// If a checkpoint cannot be read, or is of another run or another version.
pub fn latest(checkpoints: &Path, run: &str) -> Result<Option<Checkpoint>> {
    let mut found = list(checkpoints)?;
    while let Some((step, folder)) = found.pop_last() {
        if !folder.join(MARKER).exists() {
            tracing::debug!(folder = %folder.display(), "deleting an unfinished checkpoint");
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
                    false => tracing::warn!("{reason}; using the checkpoint before it"),
                    true => tracing::warn!("{reason}; there is no earlier one: starting over"),
                }
                remove(&folder)?;
            }
        }
    }
    Ok(None)
}

/// Whether there is a checkpoint to resume from, intact or damaged.
///
/// # Errors
/// If the folder cannot be read.
pub fn exists(checkpoints: &Path) -> Result<bool> {
    Ok(list(checkpoints)?.values().any(|folder| folder.join(MARKER).exists()))
}

/// Deletes all but the newest `keep` checkpoints.
///
/// # Errors
/// If one cannot be deleted.
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

/// Deletes a checkpoint, `DONE` first, so that half a checkpoint never counts as one. Foreign files
/// in the folder stay, and the folder with them.
fn remove(folder: &Path) -> Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let remove = || -> io::Result<()> {
        let shards = shards::list(folder);
        for name in FILES.into_iter().chain(shards.iter().map(String::as_str)) {
            gone(std::fs::remove_file(folder.join(name)))?;
        }
        for part in [UNET, REFERENCE, EMA, ""] {
            let part = folder.join(part);
            runkit::files::remove_stale_temporaries(&part).map_err(io::Error::other)?;
            match std::fs::remove_dir(&part) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                other => gone(other)?,
            }
        }
        Ok(())
    };
    remove().with_context(|| format!("cannot remove {}", folder.display()))
}

/// Every file of every checkpoint, below `prefix`, the marks first.
///
/// # Errors
/// If the folder cannot be listed.
pub fn outputs(checkpoints: &Path, prefix: &str) -> Result<Vec<String>> {
    let folders: Vec<PathBuf> = list(checkpoints)?.into_values().collect();
    let below = |folder: &Path, name: &str| {
        folder.file_name().map(|folder| format!("{prefix}/{}/{name}", folder.display()))
    };
    let files = |name: &'static str| folders.iter().filter_map(move |folder| below(folder, name));
    let shards = folders.iter().flat_map(|folder| {
        shards::list(folder).into_iter().filter_map(move |name| below(folder, &name))
    });
    Ok(FILES.into_iter().flat_map(files).chain(shards).collect())
}

/// The step of the newest complete checkpoint.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest_step(checkpoints: &Path) -> Result<Option<u64>> {
    let complete =
        list(checkpoints)?.into_iter().filter(|(_, folder)| folder.join(MARKER).exists());
    Ok(complete.map(|(step, _)| step).max())
}

/// The folders of the complete checkpoints, oldest first.
///
/// # Errors
/// If the folder cannot be read.
pub fn complete(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let found = list(checkpoints)?.into_values();
    Ok(found.filter(|folder| folder.join(MARKER).exists()).collect())
}

fn read(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: cannot be read", path.display()))?;
    let context = || format!("{}: expected the state of a checkpoint", path.display());
    let value: Value = serde_json::from_str(&text).with_context(context)?;
    let format = value.get("format").and_then(Value::as_u64).with_context(context)?;
    ensure!(
        format == u64::from(FORMAT),
        "{}: expected format {FORMAT}, found {format}; hint: resume with the version that wrote it",
        path.display()
    );
    serde_json::from_value(value).with_context(context)
}

/// Length and hash of a file. Calls `check` between pieces: a signal stops the check of a
/// checkpoint, but not its writing.
fn record(path: &Path, check: fn() -> Result<(), Stopped>) -> Result<FileRecord> {
    let context = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(context)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        check()?;
        match io::Read::read(&mut file, &mut piece) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update_rayon(piece.get(..count).unwrap_or_default());
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(FileRecord { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// The result of checking a folder with `DONE`.
enum Found {
    Whole(State),
    /// Damaged, with a reason that names the file.
    Damaged(String),
}

/// Compares every file with its entry in `DONE`.
fn verify(folder: &Path) -> Result<Found> {
    let marker = folder.join(MARKER);
    let text =
        std::fs::read(&marker).with_context(|| format!("{}: cannot be read", marker.display()))?;
    let damaged = |path: &Path, reason: &str| {
        Ok(Found::Damaged(format!("{}: damaged: {reason}", path.display())))
    };
    let Ok(expected) = serde_json::from_slice::<Records>(&text) else {
        return damaged(&marker, "it is not a list of files");
    };
    if !expected.contains_key(STATE) {
        return damaged(&marker, &format!("it lists no {STATE}"));
    }
    if let Some(missing) = expected.keys().find(|name| !folder.join(name).exists()) {
        return damaged(&folder.join(missing), "it is missing");
    }
    // In parallel: the resumed run waits for it.
    let records: Vec<(&String, &FileRecord)> = expected.iter().collect();
    let found = records
        .into_par_iter()
        .map(|(name, expected)| {
            Ok((name, expected, record(&folder.join(name), runkit::signals::check)?))
        })
        .collect::<Result<Vec<_>>>()?;
    for (name, expected, found) in found {
        if found != *expected {
            let short = |record: &FileRecord| record.blake3.chars().take(12).collect::<String>();
            let (ours, theirs) = (short(expected), short(&found));
            return damaged(
                &folder.join(name),
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
mod tests;
