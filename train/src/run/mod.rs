//! `train run`: from files to a pipeline, in as many starts as it takes.
//!
//! The folder of a run holds `manifest.json` (what the run is; another run is refused),
//! `config.toml` (the resolved settings), `metrics.jsonl` and `tensorboard/`, `probe.safetensors`,
//! `samples/`, `record/`, `checkpoints/`, and in the end `pipeline/`. A run that is killed at any
//! instant resumes from its newest checkpoint and ends with the same bytes. An error that leaves
//! the weights whole ends with a checkpoint.

mod advice;
mod card;
pub mod checkpoint;
pub mod export;
pub mod folder;
pub mod manifest;
pub mod opened;
mod pair_list;
pub mod plan;
pub mod probe;
pub mod samples;
mod session;

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use nn::distributed::World;
use runkit::files::FileHashes;
use runkit::signals::{StopFlag, Stoppable, stoppable};
use serde_json::Value;

use self::checkpoint::CHECKPOINTS;
use self::checkpoint::Checkpoint;
use self::folder::RUN;
use self::manifest::{Manifest, Origin};
use self::opened::OpenedRun;
use self::plan::Disk;
use self::probe::ProbeReport;
use self::session::Session;
use crate::config::Config;

/// What a finished run has.
#[derive(Debug)]
pub struct Finished {
    /// The folder of the result.
    pub pipeline: PathBuf,
    /// The last measurement of the probe, if there is a probe and this start trained.
    pub probe: Option<ProbeReport>,
}

/// Runs `config` until it is finished, or a signal stops it.
///
/// # Errors
/// One sentence about what is wrong with an input, the output, or an earlier run that this one
/// would mix with; or about the pairs whose loss is not finite.
pub fn run(config: &Config, stop: &StopFlag) -> Result<Stoppable<Finished>> {
    stoppable(start(config, stop))
}

fn start(config: &Config, stop: &StopFlag) -> Result<Stoppable<Finished>> {
    let run = config.out.as_path();
    let folder = RUN.at(run);
    // Before hours of planning and hashing, and again once the folder is locked.
    folder.refuse_foreign()?;
    let opened = OpenedRun::new(config)?;
    let mut hashes = FileHashes::read(run);
    let mut manifest = opened.manifest(config, &mut hashes)?;
    manifest.from = origin(config)?;
    let _lock = folder.lock()?;
    folder.refuse_foreign()?;
    let spared = config.settings.skip_pairs.as_deref();
    if config.fresh {
        folder::clear(run, spared)?;
    }
    if let Err(other) = folder.refuse_another(&manifest) {
        // A run that never reached a checkpoint (bad settings, say) has nothing worth keeping.
        if export::is_complete(run) || checkpoint::exists(&run.join(CHECKPOINTS))? {
            return Err(other.into());
        }
        tracing::info!("deleting what another run left before its first checkpoint");
        folder::clear(run, spared)?;
    }
    if is_finished(config, &mut manifest)? {
        tracing::info!(run = %run.display(), "already complete");
        let finished = Finished { pipeline: run.join(export::FOLDER), probe: None };
        return Ok(ControlFlow::Continue(finished));
    }
    log_summary(config, &opened)?;
    let fingerprint = manifest.fingerprint()?;
    let own = checkpoint::latest(&run.join(CHECKPOINTS), &fingerprint)?;
    // An earlier start may have been killed before it pruned.
    checkpoint::prune(&run.join(CHECKPOINTS), config.settings.keep)?;
    let found = match own {
        Some(own) => Found::Own(own),
        None => match &config.settings.from {
            Some(folder) => Found::Other(Checkpoint::open(folder)?),
            None => Found::Nothing,
        },
    };
    let world = World::alone();
    // The networks are loaded before anything is written: a wrong model leaves no trace.
    let mut session = Session::start(config, &opened, &manifest, &found, &world, stop)?;
    hashes.write(run)?;
    session.train(&opened, stop)
}

/// Where the weights of a start come from.
pub(crate) enum Found {
    /// A checkpoint of the run.
    Own(Checkpoint),
    /// One of another run.
    Other(Checkpoint),
    /// The base model.
    Nothing,
}

impl Found {
    /// The checkpoint, of this run or of another.
    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Own(found) | Self::Other(found) => Some(found),
            Self::Nothing => None,
        }
    }
}

/// Identifies the checkpoint of `--from`. If it is gone and the run has a checkpoint of its own,
/// the run's manifest still identifies it.
fn origin(config: &Config) -> Result<Option<Origin>> {
    let Some(from) = &config.settings.from else { return Ok(None) };
    let remembered =
        RUN.at(&config.out).manifest()?.and_then(|earlier| earlier.get("from").cloned());
    let remembered = remembered.and_then(|earlier| serde_json::from_value::<Origin>(earlier).ok());
    let origin = match remembered {
        Some(earlier) if !from.exists() && checkpoint::exists(&config.out.join(CHECKPOINTS))? => {
            earlier
        }
        _ => checkpoint::origin(from)?,
    };
    ensure!(
        config.settings.steps > origin.step,
        "--steps {} is not above step {} of {}, from which steps count on; hint: --steps {}",
        config.settings.steps,
        origin.step,
        from.display(),
        origin.step + config.settings.steps
    );
    Ok(Some(origin))
}

/// Whether the result is there, with as many steps as asked for. Otherwise `manifest` gets the
/// files of an earlier result, and its steps if it is complete: that result stays until the new one
/// is written.
fn is_finished(config: &Config, manifest: &mut Manifest) -> Result<bool> {
    let (run, steps) = (config.out.as_path(), config.settings.steps);
    let newest = checkpoint::newest_step(&run.join(CHECKPOINTS))?;
    let earlier = RUN.at(run).manifest()?.unwrap_or_default();
    let before = earlier.get("steps").and_then(Value::as_u64);
    let is_complete = export::is_complete(run);
    if is_complete && before == Some(steps) {
        return Ok(true);
    }
    if let Some(newest) = newest.filter(|newest| *newest > steps) {
        bail!(
            "{}: steps: {steps} is below step {newest} of its newest checkpoint; hint: --steps {newest} or \
             more, or another --out",
            run.display()
        );
    }
    if let Some(before) = before.filter(|before| *before != steps) {
        if is_complete && newest.is_none() {
            bail!(
                "{}: the run of {before} steps is finished and its checkpoints are gone, so it cannot be \
                 resumed to {steps} steps; hint: choose another --out",
                run.display()
            );
        }
        if config.learning_rate.falls() && newest.is_some() {
            tracing::warn!(
                "--steps was {before} and is {steps}: the learning rate falls along another curve from here \
                 on; after step {} it is {:e}",
                newest.unwrap_or_default(),
                config.learning_rate.at(newest.unwrap_or_default())
            );
        }
    }
    manifest.result = export::listed(&earlier);
    if is_complete {
        manifest.steps = before.unwrap_or(steps);
    }
    Ok(false)
}

/// Logs what surprises most often: how many pairs are left, and the effective learning rate.
fn log_summary(config: &Config, opened: &OpenedRun) -> Result<()> {
    let counts = opened.counts();
    tracing::info!(
        "training on {} of {} pairs: {} failed, {} dropped as ties or without a preference, {} held out for \
         the probe",
        counts.selected,
        counts.rows,
        counts.failed,
        counts.dropped,
        counts.held_out
    );
    if let Some(shortage) = opened.probe_shortage(config) {
        tracing::warn!("{shortage}");
    }
    if counts.skipped > 0 {
        tracing::info!("{} training pairs are skipped: they have no weight", counts.skipped);
    }
    if opened.ties.ties > 0 {
        tracing::info!("ties: {}", opened.ties_in_words(config));
    }
    let rate = config.settings.lr;
    let scaled = match config.settings.scale_lr {
        false => String::new(),
        true => format!(" = {rate:e} · {} pairs per batch", config.settings.batch_size),
    };
    tracing::info!("effective learning rate {:e}{scaled}", config.learning_rate.peak());
    if let Some(warning) = config.short_of_warm_up() {
        tracing::warn!("{warning}");
    }
    let disk = Disk::of(config, &opened.base)?;
    if disk.all > disk.free {
        tracing::warn!(
            "the disk of {} may become full: the run needs {disk}; hint: a smaller --keep",
            config.out.display()
        );
    }
    Ok(())
}
