//! `train run`: from files to a pipeline, in as many starts as it takes.
//!
//! The folder of a run holds `manifest.json` (what the run is; another one is refused), `config.toml`
//! (the settings as resolved), `metrics.jsonl` and `tensorboard/`, `probe.safetensors`, `samples/`,
//! `record/`, `checkpoints/`, and in the end `pipeline/`. A run that is killed at any instant goes on
//! from its newest checkpoint and ends with the same bytes. An error that leaves the weights whole ends with a
//! checkpoint.

mod advice;
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

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use runkit::lock::OutputLock;
use runkit::signals::{Signal, StopFlag, Stopped};
use serde_json::Value;

use self::checkpoint::Checkpoint;
use self::folder::{CHECKPOINTS, LOCK};
use self::manifest::{Manifest, Origin};
use self::opened::OpenedRun;
use self::plan::Disk;
use self::probe::ProbeReport;
use self::session::Session;
use crate::config::Config;
use crate::model::FileHashes;

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The result is there.
    Done {
        /// Its folder.
        pipeline: PathBuf,
        /// The last look at the probe, if there is one and this start trained.
        probe: Option<ProbeReport>,
    },
    /// A signal came; the same command goes on.
    Stopped(Signal),
}

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with an input, the output, or an earlier run that this one
/// would mix with; or about the pairs at which the loss is not finite.
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    match start(config, stop) {
        Err(error) => match Stopped::behind(error.as_ref()) {
            Some(Stopped(signal)) => Ok(End::Stopped(signal)),
            None => Err(error),
        },
        end => end,
    }
}

fn start(config: &Config, stop: &StopFlag) -> Result<End> {
    let run = config.out.as_path();
    // Before hours of planning and hashing as well as before the first file.
    folder::refuse_foreign(run)?;
    let opened = OpenedRun::new(config)?;
    let mut hashes = FileHashes::read(run);
    let mut manifest = opened.manifest(config, &mut hashes)?;
    manifest.from = origin(config)?;
    runkit::files::create_folder(run)?;
    let _lock = OutputLock::exclusive(run.join(LOCK))?;
    folder::refuse_foreign(run)?;
    if config.fresh {
        folder::forget(run, config.skip_pairs.as_deref())?;
    }
    if let Err(other) = manifest.refuse_another(run) {
        // Nothing is lost of a run that never came to a checkpoint, for one because its settings were wrong.
        if export::is_complete(run) || checkpoint::exists(&run.join(CHECKPOINTS))? {
            return Err(other);
        }
        tracing::info!("removing what another run left before its first checkpoint");
        folder::forget(run, config.skip_pairs.as_deref())?;
    }
    if is_finished(config, &mut manifest)? {
        tracing::info!(run = %run.display(), "already complete");
        return Ok(End::Done { pipeline: run.join(export::FOLDER), probe: None });
    }
    log_summary(config, &opened)?;
    let fingerprint = manifest.fingerprint()?;
    let own = checkpoint::latest(&run.join(CHECKPOINTS), &fingerprint)?;
    // An earlier start may have been killed before it did.
    checkpoint::prune(&run.join(CHECKPOINTS), config.keep)?;
    let found = match own {
        Some(own) => Found::Own(own),
        None => match &config.from {
            Some(folder) => Found::Other(Checkpoint::open(folder)?),
            None => Found::Nothing,
        },
    };
    // The networks are loaded before anything is written: a wrong model leaves no trace.
    let mut session = Session::start(config, &opened, &manifest, &found, stop)?;
    hashes.write(run)?;
    session.train(&opened, stop)
}

/// What a start begins with.
pub(crate) enum Found {
    /// A checkpoint of the run.
    Own(Checkpoint),
    /// One of another run.
    Other(Checkpoint),
    /// The base model.
    Nothing,
}

impl Found {
    /// The checkpoint, whosever it is.
    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Own(found) | Self::Other(found) => Some(found),
            Self::Nothing => None,
        }
    }
}

/// What the checkpoint of `--from` is. One that has gone since is the one that the run remembers, where the run
/// has a checkpoint of its own.
fn origin(config: &Config) -> Result<Option<Origin>> {
    let Some(from) = &config.from else { return Ok(None) };
    let remembered = Manifest::read(&config.out)?.and_then(|earlier| earlier.get("from").cloned());
    let remembered = remembered.and_then(|earlier| serde_json::from_value::<Origin>(earlier).ok());
    let origin = match remembered {
        Some(earlier) if !from.exists() && checkpoint::exists(&config.out.join(CHECKPOINTS))? => {
            earlier
        }
        _ => checkpoint::origin(from)?,
    };
    ensure!(
        config.steps > origin.step,
        "--steps {} is not above step {} of {}, from which steps count on; hint: --steps {}",
        config.steps,
        origin.step,
        from.display(),
        origin.step + config.steps
    );
    Ok(Some(origin))
}

/// Whether the result is there, of as many steps as are asked for. The manifest gets the files of a result that
/// was begun, and the steps of one that is whole: it stays until the new one is written.
fn is_finished(config: &Config, manifest: &mut Manifest) -> Result<bool> {
    let (run, steps) = (config.out.as_path(), config.steps);
    let newest = checkpoint::newest_step(&run.join(CHECKPOINTS))?;
    let earlier = Manifest::read(run)?.unwrap_or_default();
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
                "{}: the run of {before} steps is finished and its checkpoints are gone, so that it cannot \
                 go on to {steps}; hint: choose another --out",
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
    manifest.result = folder::result_of(&earlier);
    if is_complete {
        manifest.steps = before.unwrap_or(steps);
    }
    Ok(false)
}

/// Says what matters most before it is too late.
fn log_summary(config: &Config, opened: &OpenedRun) -> Result<()> {
    let counts = opened.counts();
    tracing::info!(
        "{} of {} pairs: {} failed, {} left out as ties or without a preference, {} held out for the probe",
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
        tracing::info!("{} of them are skipped: they have no weight", counts.skipped);
    }
    if opened.ties.ties > 0 {
        tracing::info!("ties: {}", opened.ties_in_words(config));
    }
    let rate = config.settings.lr.unwrap_or_default();
    let scaled = match config.settings.scale_lr {
        Some(false) => String::new(),
        _ => format!(" = {rate:e} · {} pairs of a batch", config.batch_size),
    };
    tracing::info!("effective learning rate {:e}{scaled}", config.learning_rate.peak());
    if let Some(warning) = config.short_of_warm_up() {
        tracing::warn!("{warning}");
    }
    let disk = Disk::of(config, &opened.base)?;
    if disk.all > disk.free {
        tracing::warn!(
            "the disk of {} may become full: the run takes {disk}; hint: a smaller --keep",
            config.out.display()
        );
    }
    Ok(())
}
