//! The start of a run: networks, probe, and the files of the folder.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nn::distributed::World;
use runkit::metrics::Metrics;
use runkit::signals::StopFlag;
use serde_json::{Value, json};

use super::Session;
use crate::config::{self, Config, Source};
use crate::data::{Content, Positions, Stream, StreamOptions};
use crate::loss::Objective;
use crate::loss_scale::{LossScale, LossScaling};
use crate::model::{BaseModel, Networks, SeededLora, Start, Training};
use crate::optimizer::RankOptimizer;
use crate::randomness::Choice;
use crate::run::checkpoint::{Checkpoint, State};
use crate::run::folder::{self, RUN};
use crate::run::manifest::{self, Manifest};
use crate::run::mirror::Mirror;
use crate::run::opened::{OpenedRun, stream_options};
use crate::run::probe::Probe;
use crate::run::samples::Sampler;
use crate::run::{Found, ranks};
use crate::step::MicroBatchBuilder;
use crate::trainer::{Position, Trainer, TrainingState};

/// The prefetch buffer for the probe, which has few pairs.
const PROBE_MEMORY: u64 = 64 << 20;

impl<'run> Session<'run> {
    /// Loads the networks, then opens the files of the run: a wrong model leaves no trace.
    pub(crate) fn start(
        config: &'run Config,
        opened: &'run OpenedRun,
        manifest: &'run Manifest,
        found: &Found,
        world: &'run World,
        stop: &StopFlag,
    ) -> Result<Self> {
        let base = &opened.base;
        let run = config.out.as_path();
        let checkpoint = found.checkpoint();
        let loaded = load(config, base, checkpoint, world);
        let (networks, optimizer) =
            ranks::agree(world, loaded.and_then(|loaded| Ok(stop.check().map(|()| loaded)?)))?;
        let mut position = checkpoint.map_or(Position::default(), |found| found.state.position());
        // Another run's checkpoint (--from) may have had another choice of scale.
        if !matches!((found, config.loss_scaling), (Found::Own(_), LossScaling::Dynamic(_))) {
            position.loss_scale = LossScale::first(config.loss_scaling);
        }
        let is_first = !matches!(found, Found::Own(_));
        let mut mine = None;
        let has_probe = ranks::first(world, || {
            if let Some(found) = checkpoint {
                tracing::info!("resuming from {}", found.folder.display());
            }
            let changed = match found {
                Found::Own(found) => changes(&found.state, manifest),
                _ => None,
            };
            folder::remove_temporaries(run)?;
            RUN.at(run).begin(manifest)?;
            runkit::files::write_atomic(run.join(config::FILE), |file| {
                file.write_all(config.saved_settings.as_bytes())
            })?;
            let probe = probe(config, opened, &networks, checkpoint.is_none())?;
            let metrics = Metrics::open(run, (!is_first).then_some(position.step))?;
            let has_probe = probe.is_some();
            let mirror = Mirror::begin(config, if is_first { 0 } else { position.step })?;
            if let (Some(mirror), false) = (&mirror, is_first) {
                mirror.copy(position.step);
            }
            mine = Some((changed, probe, metrics, mirror));
            Ok(has_probe)
        })?;
        let (changed, probe, metrics, mirror) = match mine {
            Some((changed, probe, metrics, mirror)) => (changed, Ok(probe), Some(metrics), mirror),
            None => (None, other_probe(config, has_probe), None, None),
        };
        let probe = ranks::agree(world, probe)?;
        let captions = probe.as_ref().map(|probe| probe.captions.clone()).unwrap_or_default();
        let sampler = ranks::agree(world, Sampler::new(config, &captions, base))?;
        let prompts = json!(sampler.as_ref().map(|sampler| &sampler.prompts));
        ranks::refuse_differences(world, "sample prompts", &prompts)?;
        let started = || -> Result<Trainer<'run>> {
            let options = stream_options(config, base, position.pairs, world);
            let stream = Stream::start(Arc::clone(&opened.dataset), options)?;
            let state = TrainingState { networks, optimizer, position };
            Trainer::new(config, base, state, stream, opened.scorers.len(), world)
        };
        let trainer = ranks::agree(world, started())?;
        Ok(Self {
            config,
            run,
            world,
            manifest,
            fingerprint: manifest.fingerprint()?,
            trainer,
            probe,
            sampler,
            metrics,
            mirror,
            is_first,
            saved: position.step,
            saved_at: Instant::now(),
            changed,
            unwritten: None,
        })
    }
}

/// Loads the networks and the optimizer's states, from a checkpoint if there is one.
fn load(
    config: &Config,
    base: &BaseModel,
    checkpoint: Option<&Checkpoint>,
    world: &World,
) -> Result<(Networks, RankOptimizer)> {
    if let Some(found) = checkpoint
        && !world.is_first()
    {
        ensure!(
            found.folder.is_dir(),
            "{}: rank 0 resumes from this checkpoint, and here it does not exist; hint: all machines must \
             see the folder of the run under the same path",
            found.folder.display()
        );
    }
    let start = checkpoint.map_or(Start::Base, |found| Start::Checkpoint(&found.folder));
    let training = match &config.lora {
        None => Training::Weights { checkpointing: config.settings.grad_checkpointing },
        Some(lora) => Training::Adapters(SeededLora { config: lora, seed: config.settings.seed }),
    };
    let mut networks = Networks::load(base, start, training, config.device, config.precision)?;
    // A cache has what they would make; sample images load them again.
    if matches!(config.source, Source::Cache(_)) {
        networks.pipeline.encoders.release();
    }
    if !Objective::of(&config.settings).uses_reference() {
        networks.reference = None;
    }
    networks.start_averages(config, checkpoint.map(|found| found.folder.as_path()))?;
    let parameters = networks.pipeline.unet.parameters();
    let mut optimizer =
        config.optimizer.build(parameters, world, config.settings.shard_optimizer)?;
    if let Some(found) = checkpoint {
        match found.state.optimizer == config.optimizer.kind {
            true => found.load_optimizer(&mut optimizer)?,
            false => tracing::warn!(
                "the moments of {} are of another optimizer: they start at zero",
                found.folder.display()
            ),
        }
    }
    Ok((networks, optimizer))
}

/// The probe that rank 0 wrote, if it did.
fn other_probe(config: &Config, has_probe: bool) -> Result<Option<Probe>> {
    if !has_probe {
        return Ok(None);
    }
    let probe = Probe::read(&config.out, config.settings.micro_batch, config.device)?;
    let context = || {
        format!(
            "{}: rank 0 wrote the probe into this folder, and here it does not exist; hint: all machines \
             must see the folder of the run under the same path",
            config.out.display()
        )
    };
    probe.with_context(context).map(Some)
}

/// The numerics in which this start differs from the one that wrote the checkpoint. That is
/// allowed, with a warning.
fn changes(state: &State, manifest: &Manifest) -> Option<Value> {
    let differences = manifest::other_numerics(&state.numerics, &manifest.numerics);
    for difference in &differences {
        tracing::warn!(
            "resuming from step {} with other numerics: {difference}{}",
            state.step,
            match difference.field.as_str() {
                "skip_pairs" => "",
                _ => "; the weights differ by rounding from those of an undisturbed run",
            }
        );
    }
    let values = differences.into_iter().map(|difference| (difference.field, difference.new));
    let values: serde_json::Map<String, Value> =
        values.map(|(field, new)| (field, new.unwrap_or_default())).collect();
    (!values.is_empty()).then_some(Value::Object(values))
}

/// The probe of the run: the one that an earlier start wrote, or a new one. If the reference model
/// is still the base model, it serves as the base model.
fn probe(
    config: &Config,
    opened: &OpenedRun,
    networks: &Networks,
    reference_is_base: bool,
) -> Result<Option<Probe>> {
    if opened.probe.is_empty() {
        return Ok(None);
    }
    let (run, rows, device) = (config.out.as_path(), config.settings.micro_batch, config.device);
    if let Some(probe) = Probe::read(run, rows, device)? {
        return Ok(Some(probe));
    }
    let base = &opened.base;
    let seed = Choice::Probe.number(config.settings.seed, 0, 0);
    let options = StreamOptions {
        seed,
        resolution: (base.resolution, base.resolution),
        random_crop: false,
        hflip: false,
        position: 0,
        positions: Positions::ALL,
        threads: 1,
        memory: PROBE_MEMORY,
    };
    let mut stream = Stream::start(Arc::clone(&opened.probe), options)?;
    let scorers = opened.scorers.len();
    let mut examples = Vec::new();
    for _ in 0..opened.probe.len() {
        let example = stream.next()?;
        if !matches!(example.content, Content::Skipped) {
            examples.push(example.map(|label| label.target.mean(scorers)));
        }
    }
    if examples.is_empty() {
        return Ok(None);
    }
    let own = networks.reference.as_ref().filter(|_| reference_is_base);
    let loaded = match own {
        Some(_) => None,
        None => Some(networks.base_reference(base)?),
    };
    let reference = own.or(loaded.as_ref()).context("the base model is not loaded")?;
    // No caption is dropped: the probe measures what the model makes of captions.
    let builder = MicroBatchBuilder { base, seed, caption_dropout: 0.0 };
    let probe = Probe::build(&builder, networks, reference, examples, rows)?;
    probe.write(run)?;
    Ok(Some(probe))
}
