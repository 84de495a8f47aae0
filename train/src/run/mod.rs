//! `train run`: from files to a pipeline, in as many starts as it takes.
//!
//! The folder of a run holds `manifest.json` (what the run is; another run is refused),
//! `config.toml` (the resolved settings), `metrics.jsonl` and `tensorboard/`, `probe.safetensors`,
//! `samples/`, `record/`, `checkpoints/`, and in the end `pipeline/`, and `lora/` if it trains
//! adapters. A run that is killed at any
//! instant resumes from its newest checkpoint and ends with the same bytes. An error that leaves
//! the weights whole ends with a checkpoint.
//!
//! Several ranks may share a run. Rank 0 writes all that is in the folder, but for the records and
//! the optimizer's sharded states of other ranks. All ranks go through the same code in the same
//! order, and agree on what ends it (`ranks`).

mod advice;
mod card;
pub mod checkpoint;
mod communication;
pub mod export;
pub mod folder;
pub mod manifest;
mod mirror;
pub mod opened;
mod pair_list;
pub mod plan;
pub mod probe;
pub(crate) mod ranks;
pub mod samples;
mod session;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nn::distributed::{World, sharing_stops};
use runkit::files::FileHashes;
use runkit::lock::OutputLock;
use runkit::program::message_of;
use runkit::signals::{StopFlag, Stoppable, stoppable};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::checkpoint::{CHECKPOINTS, Checkpoint, State};
use self::export::ResultFiles;
use self::folder::RUN;
use self::manifest::{Manifest, Origin};
use self::mirror::Held;
use self::opened::OpenedRun;
use self::plan::Disk;
use self::probe::ProbeReport;
use self::session::Session;
use crate::config::Config;
use crate::loss::Objective;

/// What a finished run has.
#[derive(Debug)]
pub struct Finished {
    /// The folder of the pipeline, unless adapters are not merged.
    pub pipeline: Option<PathBuf>,
    /// The folder of the adapters, if adapters were trained.
    pub lora: Option<PathBuf>,
    /// The last measurement of the probe, if there is a probe and this start trained.
    pub probe: Option<ProbeReport>,
}

impl Finished {
    /// What the finished run of `config` has.
    fn of(config: &Config, probe: Option<ProbeReport>) -> Self {
        let result = config.lora_result.as_ref();
        let is_merged = result.is_none_or(|result| result.is_merged);
        Self {
            pipeline: is_merged.then(|| config.out.join(export::FOLDER)),
            lora: result.map(|_| config.out.join(export::LORA)),
            probe,
        }
    }
}

/// Joins the ranks that share the run. Nothing is written before.
///
/// # Errors
/// If they do not find each other within `--rank-timeout`.
pub fn join(config: &Config) -> Result<World> {
    let limit = Duration::from_secs(config.settings.rank_timeout);
    Ok(World::join(&config.launch, config.device, limit)?)
}

/// Runs `config` until it is finished, or a signal stops a rank. `program` is the version of the
/// program, which must be the same at all ranks.
///
/// # Errors
/// One sentence about what is wrong with an input, the output, or an earlier run that this one
/// would mix with; about the pairs whose loss is not finite; or about a rank that is lost.
pub fn run(
    config: &Config,
    program: &str,
    world: &World,
    stop: &StopFlag,
) -> Result<Stoppable<Finished>> {
    let store = world.store().map(Arc::as_ref);
    let end = sharing_stops(store, stop, || start(config, program, world, stop));
    let end = stoppable(end.map_err(ranks::plain));
    if let Err(error) = &end {
        world.leave_words(&message_of(error));
    }
    end
}

/// What rank 0 decides before the networks are loaded.
#[derive(Debug, Serialize, Deserialize)]
struct Beginning {
    manifest: Manifest,
    /// Whether there is nothing left to do.
    is_finished: bool,
    found: FoundState,
}

/// The state of a checkpoint that a start resumes from.
#[derive(Debug, Serialize, Deserialize)]
enum FoundState {
    Own(State),
    Other(State),
    Nothing,
}

fn start(
    config: &Config,
    program: &str,
    world: &World,
    stop: &StopFlag,
) -> Result<Stoppable<Finished>> {
    let run = config.out.as_path();
    let settings = config.settings_of_all_ranks()?;
    let start = json!({"program": program, "settings": settings});
    ranks::refuse_differences(world, "program or settings", &start)?;
    let opened = open(config, world)?;
    let mut hashes = FileHashes::read(run);
    let mut lock = None;
    let Beginning { manifest, is_finished, found } =
        ranks::first(world, || begin(config, &opened, &mut hashes, &mut lock))?;
    if is_finished {
        if world.is_first() {
            tracing::info!(run = %run.display(), "already complete");
        }
        ranks::first(world, || mirror::complete(config))?;
        let finished = Finished::of(config, None);
        return Ok(ControlFlow::Continue(finished));
    }
    let found = match found {
        FoundState::Own(state) => {
            let folder = checkpoint::folder(&run.join(CHECKPOINTS), state.step);
            Found::Own(Checkpoint { folder, state })
        }
        FoundState::Other(state) => {
            let folder = config.settings.from.clone().unwrap_or_default();
            Found::Other(Checkpoint { folder, state })
        }
        FoundState::Nothing => Found::Nothing,
    };
    // The networks are loaded before anything is written: a wrong model leaves no trace.
    let mut session = Session::start(config, &opened, &manifest, &found, world, stop)?;
    if world.is_first() {
        hashes.write(run)?;
    }
    session.train(&opened, stop)
}

/// Opens the inputs. Rank 0 does so before the others: it reports what is wrong with them, once,
/// and downloads a model that the machine does not have.
fn open(config: &Config, world: &World) -> Result<OpenedRun> {
    let mut opened = None;
    ranks::first(world, || {
        // Before hours of planning and hashing, and again once the folder is locked.
        RUN.at(&config.out).refuse_foreign()?;
        opened = Some(OpenedRun::new(config)?);
        Ok(())
    })?;
    let opened = ranks::agree(world, opened.map_or_else(|| OpenedRun::new(config), Ok))?;
    if world.size() == 1 {
        return Ok(opened);
    }
    let facts = ranks::agree(world, opened.facts())?;
    ranks::refuse_differences(world, "model or data", &facts)?;
    Ok(opened)
}

/// Takes the folder, and decides what there is to do. Rank 0 does this alone.
fn begin(
    config: &Config,
    opened: &OpenedRun,
    hashes: &mut FileHashes,
    lock: &mut Option<OutputLock>,
) -> Result<Beginning> {
    let run = config.out.as_path();
    let folder = RUN.at(run);
    let mirror = config.mirror.as_deref().map(|mirror| Held::look(mirror, run)).transpose()?;
    let mut manifest = opened.manifest(config, hashes)?;
    manifest.from = origin(config, mirror.as_ref())?;
    *lock = Some(folder.lock()?);
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
    if let Some(mut mirror) = mirror {
        match config.fresh {
            true => mirror.clear()?,
            false => mirror.refuse_another(&manifest)?,
        }
        if !has_result(config)? {
            mirror.restore(run, config.settings.steps)?;
        }
    }
    if is_finished(config, opened, &mut manifest)? {
        return Ok(Beginning { manifest, is_finished: true, found: FoundState::Nothing });
    }
    log_summary(config, opened)?;
    let fingerprint = manifest.fingerprint()?;
    let own = checkpoint::latest(&run.join(CHECKPOINTS), &fingerprint)?;
    // An earlier start may have been killed before it pruned.
    checkpoint::prune(&run.join(CHECKPOINTS), config.settings.keep)?;
    let found = match own {
        Some(own) => FoundState::Own(own.state),
        None => match &config.settings.from {
            Some(folder) => FoundState::Other(Checkpoint::open(folder)?.state),
            None => FoundState::Nothing,
        },
    };
    Ok(Beginning { manifest, is_finished: false, found })
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

/// Identifies the checkpoint of `--from`. If it is gone and the run has a checkpoint of its own, here
/// or in its mirror, the run's manifest still identifies it.
fn origin(config: &Config, mirror: Option<&Held>) -> Result<Option<Origin>> {
    let Some(from) = &config.settings.from else { return Ok(None) };
    let here = RUN.at(&config.out).manifest()?.and_then(|earlier| earlier.get("from").cloned());
    let remembered = here.or_else(|| mirror?.field("from").cloned());
    let remembered = remembered.and_then(|earlier| serde_json::from_value::<Origin>(earlier).ok());
    let has_own = checkpoint::exists(&config.out.join(CHECKPOINTS))?
        || mirror.is_some_and(|mirror| mirror.newest().is_some());
    let origin = match remembered {
        Some(earlier) if !from.exists() && has_own => earlier,
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

/// Whether the result is there, with as many steps as asked for.
fn has_result(config: &Config) -> Result<bool> {
    let earlier = RUN.at(&config.out).manifest()?.unwrap_or_default();
    let steps = earlier.get("steps").and_then(Value::as_u64);
    Ok(export::is_complete(&config.out) && steps == Some(config.settings.steps))
}

/// Whether the run is finished: [`has_result`]. Otherwise `manifest` gets the
/// files of an earlier result, and its steps if it is complete: that result stays until the new one
/// is written.
fn is_finished(config: &Config, opened: &OpenedRun, manifest: &mut Manifest) -> Result<bool> {
    let (run, steps) = (config.out.as_path(), config.settings.steps);
    let newest = checkpoint::newest_step(&run.join(CHECKPOINTS))?;
    let earlier = RUN.at(run).manifest()?.unwrap_or_default();
    let before = earlier.get("steps").and_then(Value::as_u64);
    let is_complete = export::is_complete(run);
    let listed = ResultFiles::listed(&earlier);
    if is_complete && before == Some(steps) {
        if listed == ResultFiles::of(config, &opened.base)? {
            return Ok(true);
        }
        ensure!(
            newest.is_some(),
            "{}: the run is finished with other files of its result, and its checkpoints are gone, so they \
             cannot be written again; hint: the --lora-format and --no-merge of before, or train merge",
            run.display()
        );
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
    (manifest.result, manifest.lora) = (listed.pipeline, listed.lora);
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
    tracing::info!("loss: {}", Objective::in_words(&config.settings));
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
