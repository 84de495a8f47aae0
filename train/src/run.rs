//! `train run`: from files to a pipeline, in as many starts as it takes.
//!
//! The folder of a run holds `manifest.json` (what the run is; another one is refused), `config.toml`
//! (the settings as resolved), `metrics.jsonl` and `tensorboard/`, `probe.safetensors`, `samples/`,
//! `record/`, `checkpoints/`, and in the end `pipeline/`. A run that is killed at any instant goes on
//! from its newest checkpoint and ends with the same bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nn::device::Precision;
use runkit::lock::OutputLock;
use runkit::metrics::Metrics;
use runkit::progress::Progress;
use runkit::signals::{Signal, StopFlag};
use serde_json::{Value, json};

use crate::checkpoint::{self, Checkpoint, State};
use crate::config::{self, Config};
use crate::data::{DataError, Stream, StreamOptions};
use crate::export;
use crate::manifest::{self, Manifest};
use crate::model::{BaseModel, Networks, Start};
use crate::plan::Disk;
use crate::preference::Preference;
use crate::prepared::{Prepared, stream_options};
use crate::probe::{Probe, ProbeReport};
use crate::randomness::Choice;
use crate::record;
use crate::samples::{self, Sampler};
use crate::step::Preparation;
use crate::trainer::{self, StepEnd, StepReport, Trainer};

/// The folder of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// Read ahead for the probe: its pairs are few, and drawn out of this many bytes.
const PROBE_MEMORY: u64 = 64 << 20;
/// An alarm is raised where the errors on both images have risen by this share of the base model's:
/// then the model becomes worse at drawing, and not only less fond of the one image.
const ALARMING_RISE: f64 = 0.1;
/// Which of the run's names are removed by `--fresh`; the manifest, which says what the rest is, last.
const OUTPUTS: [&str; 10] = [
    export::FOLDER,
    CHECKPOINTS,
    samples::FOLDER,
    record::FOLDER,
    "tensorboard",
    "metrics.jsonl",
    "probe.json",
    "probe.safetensors",
    config::FILE,
    manifest::FILE,
];

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
    let prepared = Prepared::new(config)?;
    let manifest = prepared.manifest(config)?;
    let run = config.out.as_path();
    runkit::files::create_folder(run)?;
    let _lock = OutputLock::exclusive(run.join("run.lock"))?;
    if config.fresh {
        forget(run)?;
    }
    if let Err(other) = manifest.refuse_another(run) {
        // Another program's folder is not touched. Nothing is lost of a run that never came to a checkpoint, for one because its settings
        // were wrong.
        if export::is_complete(run) || checkpoint::exists(&run.join(CHECKPOINTS))? {
            return Err(other);
        }
        tracing::info!("removing what another run left before its first checkpoint");
        forget(run)?;
    }
    if export::is_complete(run) {
        tracing::info!(run = %run.display(), "already complete");
        return Ok(End::Done { pipeline: run.join(export::FOLDER), probe: None });
    }
    announce(config, &prepared)?;
    let fingerprint = manifest.fingerprint()?;
    let found = checkpoint::latest(&run.join(CHECKPOINTS), &fingerprint)?;
    // An earlier start may have been killed before it did.
    checkpoint::prune(&run.join(CHECKPOINTS), config.keep)?;
    // The networks are loaded before anything is written: a wrong model leaves no trace.
    let mut session = Session::start(config, &prepared, &manifest, found.as_ref())?;
    session.train(&prepared, stop)
}

/// Says what matters most before it is too late.
fn announce(config: &Config, prepared: &Prepared) -> Result<()> {
    let counts = prepared.counts();
    tracing::info!(
        "{} of {} pairs: {} failed, {} left out as ties or without a preference",
        counts.selected,
        counts.rows,
        counts.failed,
        counts.left_out
    );
    if prepared.ties.ties > 0 {
        tracing::info!("ties: {}, policy: {}", prepared.ties, config.ties);
    }
    let rate = config.settings.lr.unwrap_or_default();
    let scaled = match config.settings.scale_lr {
        Some(false) => String::new(),
        _ => format!(" = {rate:e} · {} pairs of a batch", config.batch_size),
    };
    tracing::info!("effective learning rate {:e}{scaled}", config.learning_rate.peak());
    if config.precision == Precision::F16 {
        tracing::warn!(
            "--dtype f16: small gradients become zero, as the loss is not scaled; hint: --dtype bf16"
        );
    }
    let disk = Disk::of(config, &prepared.base)?;
    if disk.all > disk.free {
        tracing::warn!(
            "the disk of {} may become full: the run takes {disk}; hint: a smaller --keep",
            config.out.display()
        );
    }
    Ok(())
}

/// Removes what an earlier run left.
///
/// # Errors
/// Where a file cannot be removed, or the folder is none of a run: the names are common ones.
fn forget(run: &Path) -> Result<()> {
    if Manifest::read(run)?.is_none()
        && let Some(name) = OUTPUTS.iter().find(|name| run.join(name).exists())
    {
        bail!(
            "{}: expected the folder of a run, found {name} without the {} that would say so; \
             nothing is removed; hint: choose another --out",
            run.display(),
            manifest::FILE
        );
    }
    for name in OUTPUTS {
        let path = run.join(name);
        let removed = match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// A started run.
struct Session<'run> {
    config: &'run Config,
    run: &'run Path,
    manifest: &'run Manifest,
    fingerprint: String,
    trainer: Trainer<'run>,
    probe: Option<Probe>,
    sampler: Option<Sampler>,
    metrics: Metrics,
    /// Whether this start is the first.
    from_scratch: bool,
}

impl<'run> Session<'run> {
    fn start(
        config: &'run Config,
        prepared: &'run Prepared,
        manifest: &'run Manifest,
        found: Option<&Checkpoint>,
    ) -> Result<Self> {
        let base = &prepared.base;
        let run = config.out.as_path();
        let start = found.map_or(Start::Base, |found| Start::Checkpoint(&found.folder));
        let networks = Networks::load(base, start, config.device, config.precision)?;
        let mut optimizer = trainer::optimizer(config, networks.pipeline.unet.parameters())?;
        let (step, reference_step) = match found {
            None => (0, 0),
            Some(found) => {
                found.load_optimizer(optimizer.as_mut())?;
                tracing::info!("going on from {}", found.folder.display());
                (found.state.step, found.state.reference_step)
            }
        };
        let options = stream_options(config, base, step * config.batch_size);
        let stream = Stream::start(Arc::clone(&prepared.dataset), options)?;
        clean(run)?;
        runkit::files::write_json_atomic(run.join(manifest::FILE), manifest)?;
        let settings = config.settings.with_absolute_paths();
        let text = runkit::config::to_toml_string(&settings)?;
        runkit::files::write_atomic(run.join(config::FILE), |file| {
            file.write_all(text.as_bytes())
        })?;
        let probe = probe(config, prepared, &networks, found.is_none())?;
        let captions = match &probe {
            Some(probe) => probe.captions.clone(),
            None => Vec::new(),
        };
        let sampler = Sampler::new(config, &captions, base)?;
        let metrics = Metrics::open(run, found.map(|_| step))?;
        let scorers = prepared.scorers.len();
        let trainer =
            Trainer::new(config, base, networks, optimizer, stream, scorers, step, reference_step);
        Ok(Self {
            config,
            run,
            manifest,
            fingerprint: manifest.fingerprint()?,
            trainer,
            probe,
            sampler,
            metrics,
            from_scratch: found.is_none(),
        })
    }

    fn train(&mut self, prepared: &Prepared, stop: &StopFlag) -> Result<End> {
        let config = self.config;
        let base = &prepared.base;
        if self.from_scratch {
            if let Some(report) = self.look()? {
                self.metrics.write(0, &probe_values(&report))?;
            }
            if !self.draw(base, stop)? {
                return self.stopped(stop);
            }
        } else if self.samples_are_missing() && !self.draw(base, stop)? {
            return self.stopped(stop);
        }
        let progress = Progress::new("training", "pairs", config.steps * config.batch_size);
        progress.already_done(self.trainer.position());
        while self.trainer.step < config.steps {
            let report = match self.trainer.step(self.run, stop) {
                Ok(StepEnd::Done(report)) => report,
                Ok(StepEnd::Stopped(_)) => return self.stopped(stop),
                Err(error) => return Err(self.keep_steps(error)),
            };
            self.write(&report, prepared)?;
            progress.message(format!(
                "step {} of {}, loss {:.4}, accuracy {:.3}, lr {:.3e}",
                report.step, config.steps, report.loss, report.accuracy, report.learning_rate
            ));
            progress.add(config.batch_size);
            let last = report.step == config.steps;
            if self.samples_are_due() && !self.draw(base, stop)? {
                return self.stopped(stop);
            }
            if last || report.step.is_multiple_of(config.checkpoint_every) {
                self.save()?;
            }
        }
        progress.finish();
        self.finish(base)
    }

    /// A look at the probe, if there is one.
    fn look(&self) -> Result<Option<ProbeReport>> {
        let networks = &self.trainer.networks;
        let look = |probe: &Probe| {
            probe.look(&networks.pipeline.unet, &networks.schedule, self.config.beta)
        };
        self.probe.as_ref().map(look).transpose()
    }

    /// Writes the line of a step.
    fn write(&mut self, report: &StepReport, prepared: &Prepared) -> Result<()> {
        let mut values = step_values(report);
        if self.config.preference == Preference::RandomScorer {
            let scorer = prepared.scorers.get(report.scorer);
            values.push(("scorer", json!(scorer)));
        }
        if self.config.looks_after(report.step)
            && let Some(probe) = self.look()?
        {
            values.extend(probe_values(&probe));
            let [better, other] = probe.rises();
            if better > ALARMING_RISE && other > ALARMING_RISE {
                tracing::warn!(
                    "step {}: the errors on the better images and on the others have both risen, by \
                     {:.0} % and {:.0} %: the model gets worse at drawing; hint: a lower --lr, a \
                     higher --beta, or the checkpoint before",
                    report.step,
                    100.0 * better,
                    100.0 * other
                );
                values.push(("alarm", json!(1)));
            }
        }
        values.extend(report.distance.map(|distance| ("distance", json!(distance))));
        values.extend(time_values(report));
        self.metrics.write(report.step, &values)?;
        Ok(())
    }

    fn samples_are_due(&self) -> bool {
        let step = self.trainer.step;
        let due = |sampler: &Sampler| step == self.config.steps || sampler.is_due(step);
        self.sampler.as_ref().is_some_and(due)
    }

    /// Whether an earlier start was stopped while it drew those of its last step.
    fn samples_are_missing(&self) -> bool {
        let step = self.trainer.step;
        let missing = |sampler: &Sampler| !sampler.is_drawn(self.run, step);
        self.samples_are_due() && self.sampler.as_ref().is_some_and(missing)
    }

    /// Draws sample images where there are any to draw; false where it was stopped.
    fn draw(&mut self, base: &BaseModel, stop: &StopFlag) -> Result<bool> {
        let Some(sampler) = &self.sampler else { return Ok(true) };
        let step = self.trainer.step;
        let networks = &mut self.trainer.networks;
        let Some(pictures) = sampler.draw(base, networks, self.run, step, stop)? else {
            return Ok(false);
        };
        for (index, drawn) in pictures.iter().enumerate() {
            let picture = &drawn.picture;
            let size = (u32::try_from(picture.width)?, u32::try_from(picture.height)?);
            self.metrics.image(step, &format!("samples/{index:02}"), size, &drawn.png)?;
        }
        Ok(true)
    }

    fn save(&mut self) -> Result<()> {
        // No line up to the checkpoint may be lost once it is there.
        self.metrics.sync()?;
        let checkpoints = self.run.join(CHECKPOINTS);
        let trainer = &self.trainer;
        let state =
            State::new(trainer.step, trainer.position(), trainer.reference_step, &self.fingerprint);
        let networks = &trainer.networks;
        checkpoint::save(&checkpoints, &state, networks, trainer.optimizer.as_ref())?;
        checkpoint::prune(&checkpoints, self.config.keep)
    }

    /// Saves what is done where it is the data that cannot be gone on with: once they are mended, no
    /// step is lost.
    fn keep_steps(&mut self, error: anyhow::Error) -> anyhow::Error {
        let is_of_data = error.chain().any(<dyn std::error::Error>::is::<DataError>);
        if !is_of_data || self.trainer.step == 0 {
            return error;
        }
        match self.save() {
            Ok(()) => error.context(format!("the {} steps done are kept", self.trainer.step)),
            Err(unsaved) => error.context(format!("the last steps cannot be kept: {unsaved:#}")),
        }
    }

    /// Saves what is done and says which signal came.
    fn stopped(&mut self, stop: &StopFlag) -> Result<End> {
        if self.trainer.step > 0 {
            self.save()?;
        }
        Ok(End::Stopped(stop.requested().unwrap_or(Signal::Terminate)))
    }

    fn finish(&mut self, base: &BaseModel) -> Result<End> {
        let report = self.look()?;
        let before = report.as_ref().map(ProbeReport::before);
        let probes = before.as_ref().zip(report.as_ref());
        let card = export::model_card(self.config, base, self.manifest, probes);
        self.metrics.sync()?;
        let pipeline = export::write(self.run, base, &self.trainer.networks, &card)?;
        Ok(End::Done { pipeline, probe: report })
    }
}

/// The probe of the run: the one that an earlier start wrote, or a new one. Where the reference is the
/// base model still, it serves as such.
fn probe(
    config: &Config,
    prepared: &Prepared,
    networks: &Networks,
    reference_is_base: bool,
) -> Result<Option<Probe>> {
    if config.probe_pairs == 0 {
        return Ok(None);
    }
    let (run, rows, device) = (config.out.as_path(), config.micro_batch, config.device);
    if let Some(probe) = Probe::read(run, rows, device)? {
        return Ok(Some(probe));
    }
    let base = &prepared.base;
    let seed = Choice::Probe.number(config.seed, 0, 0);
    let options = StreamOptions {
        seed,
        resolution: (base.resolution, base.resolution),
        random_crop: false,
        hflip: false,
        position: 0,
        threads: 1,
        memory: PROBE_MEMORY,
    };
    let mut stream = Stream::start(Arc::clone(&prepared.dataset), options)?;
    let count = config.probe_pairs.min(prepared.counts().selected);
    let examples = (0..count).map(|_| stream.next()).collect::<Result<Vec<_>, _>>()?;
    let loaded = match reference_is_base {
        true => None,
        false => Some(Networks::load_base_reference(base, config.device, config.precision)?),
    };
    let reference = loaded.as_ref().unwrap_or(&networks.reference);
    let preparation = Preparation { base, seed, caption_dropout: 0.0 };
    let scorers = prepared.scorers.len();
    Probe::make(&preparation, networks, reference, examples, scorers, rows, run).map(Some)
}

/// Removes temporary files that killed starts left, in every folder that is written to.
fn clean(run: &Path) -> Result<()> {
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

type Values = Vec<(&'static str, Value)>;

fn step_values(report: &StepReport) -> Values {
    let [q05, q25, q50, q75, q95] = report.logits.quantiles;
    vec![
        ("loss", json!(report.loss)),
        ("accuracy", json!(report.accuracy)),
        ("lr", json!(report.learning_rate)),
        ("grad_norm", json!(report.grad_norm)),
        ("z/mean", json!(report.logits.mean)),
        ("z/deviation", json!(report.logits.deviation)),
        ("z/q05", json!(q05)),
        ("z/q25", json!(q25)),
        ("z/q50", json!(q50)),
        ("z/q75", json!(q75)),
        ("z/q95", json!(q95)),
        ("error/model_better", json!(report.model_errors[0])),
        ("error/model_other", json!(report.model_errors[1])),
        ("error/reference_better", json!(report.reference_errors[0])),
        ("error/reference_other", json!(report.reference_errors[1])),
        ("reference_step", json!(report.reference_step)),
    ]
}

fn probe_values(report: &ProbeReport) -> Values {
    vec![
        ("probe/loss", json!(report.loss)),
        ("probe/accuracy", json!(report.accuracy)),
        ("probe/z_mean", json!(report.logits.mean)),
        ("probe/z_deviation", json!(report.logits.deviation)),
        ("probe/error_better", json!(report.errors[0])),
        ("probe/error_other", json!(report.errors[1])),
        ("probe/base_error_better", json!(report.base_errors[0])),
        ("probe/base_error_other", json!(report.base_errors[1])),
    ]
}

fn time_values(report: &StepReport) -> Values {
    let times = &report.times;
    vec![
        ("time/data", json!(times.data)),
        ("time/encode", json!(times.encode)),
        ("time/forward", json!(times.forward)),
        ("time/backward", json!(times.backward)),
        ("time/optimizer", json!(times.optimizer)),
        ("time/step", json!(times.total())),
    ]
}
