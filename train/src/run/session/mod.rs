//! A started run: its networks, data and files, from the first step of this start to the end.

mod start;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use nn::distributed::{DistributedError, World};
use runkit::metrics::Metrics;
use runkit::progress::Progress;
use runkit::signals::{Signal, StopFlag, Stoppable, Stopped};
use serde_json::{Value, json};

use crate::config::Config;
use crate::model::BaseModel;
use crate::preference::Preference;
use crate::report::{StepReport, Values};
use crate::run::Finished;
use crate::run::checkpoint::{self, CHECKPOINTS, State};
use crate::run::export::ResultFiles;
use crate::run::folder::RUN;
use crate::run::manifest::Manifest;
use crate::run::mirror::Mirror;
use crate::run::opened::OpenedRun;
use crate::run::probe::{Probe, ProbeReport};
use crate::run::samples::{SampleImage, Sampler};
use crate::run::{advice, card, export, ranks, samples};
use crate::trainer::Trainer;

/// The alarm: the errors on chosen and rejected images have both risen by this fraction of the base
/// model's. Then the model gets worse at denoising any image, instead of only preferring one over
/// the other.
const ALARMING_RISE: f64 = 0.1;

/// A started run.
pub(crate) struct Session<'run> {
    config: &'run Config,
    run: &'run Path,
    world: &'run World,
    manifest: &'run Manifest,
    fingerprint: String,
    trainer: Trainer<'run>,
    probe: Option<Probe>,
    sampler: Option<Sampler>,
    /// At rank 0.
    metrics: Option<Metrics>,
    /// At rank 0, if the run has one.
    mirror: Option<Mirror>,
    /// Whether the run has no checkpoint yet.
    is_first: bool,
    /// The step of the newest checkpoint, or the step that the run started from.
    saved: u64,
    /// When the newest checkpoint was written.
    saved_at: Instant,
    /// The numerics that this start changes, for the next line of metrics.
    changed: Option<Value>,
    /// The metrics of the last step, if they could not be written.
    unwritten: Option<Values>,
}

impl Session<'_> {
    /// Trains to the end. After an error that leaves the weights whole, saves a checkpoint first.
    pub(crate) fn train(
        &mut self,
        opened: &OpenedRun,
        stop: &StopFlag,
    ) -> Result<Stoppable<Finished>> {
        let end = match self.steps(opened, stop) {
            // All ranks were stopped at the same place.
            Err(error) => match Stopped::behind(error.as_ref()) {
                Some(Stopped(signal)) => self.stopped(signal),
                None => Err(error),
            },
            end => end,
        };
        let end = end.map_err(|error| self.keep_steps(error));
        self.end_mirror(end, stop)
    }

    /// Waits for the mirror. A run that is finished fails if its mirror is not complete; after a
    /// signal or an error, that is a warning.
    fn end_mirror(
        &mut self,
        end: Result<Stoppable<Finished>>,
        stop: &StopFlag,
    ) -> Result<Stoppable<Finished>> {
        let mirror = self.mirror.take();
        if let Ok(ControlFlow::Continue(_)) = &end {
            ranks::first(self.world, || mirror.map_or(Ok(()), |mirror| mirror.finish(stop)))?;
        } else if let Some(mirror) = mirror
            && let Err(error) = mirror.wait(stop)
        {
            tracing::warn!("{error:#}");
        }
        end
    }

    fn steps(&mut self, opened: &OpenedRun, stop: &StopFlag) -> Result<Stoppable<Finished>> {
        let config = self.config;
        let base = &opened.base;
        let first = self.trainer.position();
        if self.is_first {
            let measured = self.measure_probe()?;
            self.write_first(&measured)?;
            self.generate_samples(base, stop)?;
        } else if ranks::first(self.world, || Ok(self.samples_are_missing()))? {
            self.generate_samples(base, stop)?;
        }
        let pairs = first.pairs + (config.settings.steps - first.step) * config.settings.batch_size;
        let progress = Progress::new("training", "pairs", pairs);
        progress.already_done(first.pairs);
        while self.trainer.position().step < config.settings.steps {
            runkit::fault::point("step");
            let report = match self.trainer.step(self.run, stop)? {
                ControlFlow::Continue(report) => report,
                ControlFlow::Break(signal) => return self.stopped(signal),
            };
            let is_written = self.write(&report, opened);
            progress.message(format!(
                "step {} of {}, loss {:.4}, accuracy {:.3}, lr {:.3e}",
                report.step,
                config.settings.steps,
                report.loss,
                report.accuracy,
                report.learning_rate
            ));
            progress.add(config.settings.batch_size);
            // Rank 0's clock counts.
            let time_is_up =
                config.checkpoint_after.is_some_and(|after| self.saved_at.elapsed() >= after);
            let clocks = ranks::gather(self.world, is_written.map(|()| time_is_up))?;
            let time_is_up = clocks.first() == Some(&true);
            if self.samples_are_due() {
                self.generate_samples(base, stop)?;
            }
            let last = report.step == config.settings.steps;
            if last || time_is_up || report.step.is_multiple_of(config.settings.checkpoint_every) {
                self.save()?;
            }
        }
        progress.finish();
        self.finish(base)
    }

    /// Writes the line of metrics before the first step: the probe, if there is one.
    fn write_first(&mut self, measured: &Option<ProbeReport>) -> Result<()> {
        let step = self.trainer.position().step;
        let is_written = match (&mut self.metrics, measured) {
            (Some(metrics), Some(report)) => {
                metrics.write(step, &report.values()).map_err(anyhow::Error::from)
            }
            _ => Ok(()),
        };
        ranks::agree(self.world, is_written)
    }

    /// Measures the probe, if there is one, with all ranks.
    fn measure_probe(&mut self) -> Result<Option<ProbeReport>> {
        let Some(probe) = &self.probe else { return Ok(None) };
        let (beta, world) = (self.config.settings.beta, self.world);
        let measured = self.trainer.with_exported(|networks| {
            probe.measure(&networks.pipeline.unet, &networks.schedule, beta, world)
        });
        measured.map(Some)
    }

    /// Writes the metrics of a step at rank 0, and warns if both errors have risen. All ranks
    /// measure the probe.
    fn write(&mut self, report: &StepReport, opened: &OpenedRun) -> Result<()> {
        let mut values = report.values();
        if self.config.settings.preference == Preference::RandomScorer {
            let scorer = opened.scorers.get(report.scorer);
            values.push(("scorer", json!(scorer)));
        }
        // The step is done: its metrics are written even if the measurement fails.
        let measured = match self.config.measures_after(report.step) {
            true => self.measure_probe(),
            false => Ok(None),
        };
        let Some(metrics) = &mut self.metrics else { return measured.map(|_| ()) };
        if let Ok(Some(probe)) = &measured {
            values.extend(probe.values());
            let [chosen, rejected] = probe.rises();
            if chosen > ALARMING_RISE && rejected > ALARMING_RISE {
                tracing::warn!(
                    "step {}: the errors on the chosen and on the rejected images have both risen, by \
                     {:.0} % and {:.0} %: the model gets worse at denoising; hint: start another run \
                     from the checkpoint before (--from) with a lower --lr, a higher --beta or \
                     --winner-anchor 1",
                    report.step,
                    100.0 * chosen,
                    100.0 * rejected
                );
                values.push(("alarm", json!(1)));
            }
        }
        values.extend(report.distance.map(|distance| ("distance", json!(distance))));
        values.extend(self.changed.take().map(|changed| ("changed", changed)));
        values.extend(report.times.values());
        if let Err(error) = metrics.write(report.step, &values) {
            self.unwritten = Some(values);
            return Err(error.into());
        }
        measured.map(|_| ())
    }

    fn samples_are_due(&self) -> bool {
        let step = self.trainer.position().step;
        let due = |sampler: &Sampler| step == self.config.settings.steps || sampler.is_due(step);
        self.sampler.as_ref().is_some_and(due)
    }

    /// Whether an earlier start was stopped while it generated the images of its last step.
    fn samples_are_missing(&self) -> bool {
        let step = self.trainer.position().step;
        let missing = |sampler: &Sampler| !sampler.exists(self.run, step);
        self.samples_are_due() && self.sampler.as_ref().is_some_and(missing)
    }

    /// Generates sample images, if the run has prompts, with all ranks.
    fn generate_samples(&mut self, base: &BaseModel, stop: &StopFlag) -> Result<()> {
        let Some(sampler) = &self.sampler else { return Ok(()) };
        let step = self.trainer.position().step;
        let world = self.world;
        let generated = self
            .trainer
            .with_exported(|networks| sampler.generate(base, networks, step, world, stop));
        let images = generated.with_context(|| format!("sample images of step {step}"))?;
        let are_written = match &mut self.metrics {
            Some(metrics) => show(&images, self.run, step, metrics),
            None => Ok(()),
        };
        ranks::agree(self.world, are_written)
    }

    /// Saves a checkpoint with all ranks.
    fn save(&mut self) -> Result<()> {
        let synced = self.sync_metrics();
        ranks::agree(self.world, synced)?;
        let saved = self.save_with(self.world);
        ranks::agree(self.world, saved)
    }

    /// Writes the metrics of the last step, if they are missing. Once the checkpoint exists, no
    /// earlier line of metrics may be lost.
    fn sync_metrics(&mut self) -> Result<()> {
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        if let Some(values) = &self.unwritten {
            metrics.write(self.trainer.position().step, values)?;
            self.unwritten = None;
        }
        Ok(metrics.sync()?)
    }

    fn save_with(&mut self, world: &World) -> Result<()> {
        let checkpoints = self.run.join(CHECKPOINTS);
        let trainer = &self.trainer;
        let position = trainer.position();
        let numerics = &self.manifest.numerics;
        let state = State::new(position, self.config.optimizer.kind, &self.fingerprint, numerics);
        checkpoint::save(&checkpoints, &state, trainer.networks(), trainer.optimizer(), world)?;
        (self.saved, self.saved_at) = (position.step, Instant::now());
        if !world.is_first() {
            return Ok(());
        }
        if let Some(mirror) = &self.mirror {
            mirror.copy(position.step);
        }
        checkpoint::prune(&checkpoints, self.config.settings.keep)
    }

    /// Saves what can be saved after an error: with all ranks, or if one is lost at rank 0 alone.
    fn save_after(&mut self, error: &anyhow::Error) -> Result<()> {
        if !self.trainer.is_whole() {
            return Ok(());
        }
        let is_unsaved = self.trainer.position().step > self.saved;
        if !is_unsaved || matches!(error.downcast_ref(), Some(DistributedError::Differ(_))) {
            return Ok(());
        }
        if ranks::lost_rank(error).is_none() {
            let of_ranks = |error: &anyhow::Error| {
                error.chain().any(<dyn std::error::Error + 'static>::is::<DistributedError>)
            };
            match self.save() {
                Err(error) if of_ranks(&error) => {}
                saved => return saved,
            }
        }
        // The moments of a lost rank's parameters are lost with it.
        match self.world.is_first() && !self.has_sharded_states() {
            true => self.sync_metrics().and_then(|()| self.save_with(&World::alone())),
            false => Ok(()),
        }
    }

    fn has_sharded_states(&self) -> bool {
        self.trainer.optimizer().shard().is_some()
    }

    /// Saves a checkpoint, unless the weights are not whole, and adds a hint to the error.
    fn keep_steps(&mut self, error: anyhow::Error) -> anyhow::Error {
        let step = self.trainer.position().step;
        if let Err(unsaved) = self.save_after(&error) {
            // Another rank's fault while saving is the same fault.
            return match ranks::lost_rank(&error).is_none() && self.world.is_first() {
                true => error.context(format!("the last steps cannot be kept: {unsaved:#}")),
                false => error,
            };
        }
        let kept = match step {
            0 => None,
            _ if step != self.saved || !self.world.is_first() => None,
            1 => Some("the 1 step done is kept".to_owned()),
            _ => Some(format!("the {step} steps done are kept")),
        };
        let advice = advice::after(&error, self.config)
            .unwrap_or_else(|unwritten| Some(format!("the pairs cannot be listed: {unwritten:#}")));
        if let Some(lost) = ranks::lost_rank(&error) {
            let parts = [Some(lost.to_string()), kept, advice];
            return anyhow!(parts.into_iter().flatten().collect::<Vec<_>>().join("; "));
        }
        match (kept, advice) {
            (None, None) => error,
            (Some(kept), None) => error.context(kept),
            (None, Some(advice)) => error.context(advice),
            (Some(kept), Some(advice)) => error.context(format!("{kept}; {advice}")),
        }
    }

    /// Saves a checkpoint, and returns the signal that stopped a rank.
    fn stopped(&mut self, signal: Signal) -> Result<Stoppable<Finished>> {
        if self.trainer.position().step > self.saved {
            self.save()?;
        }
        Ok(ControlFlow::Break(signal))
    }

    fn finish(&mut self, base: &BaseModel) -> Result<Stoppable<Finished>> {
        let report = self.measure_probe()?;
        ranks::first(self.world, || {
            self.sync_metrics()?;
            let files = ResultFiles::of(self.config, base)?;
            let manifest = Manifest {
                steps: self.config.settings.steps,
                result: files.pipeline.clone(),
                lora: files.lora.clone(),
                ..self.manifest.clone()
            };
            if manifest != *self.manifest {
                // An earlier result, of fewer steps or in another form, is no longer the result of
                // this run.
                export::unmark(self.run)?;
                export::remove_others(self.run, self.manifest, &files)?;
                RUN.at(self.run).begin(&manifest)?;
            }
            let before = report.as_ref().map(ProbeReport::before);
            let probes = before.as_ref().zip(report.as_ref());
            let card = card::model_card(self.config, base, &manifest, probes);
            let (run, config) = (self.run, self.config);
            self.trainer.with_exported(|networks| export::write(run, config, base, networks, &card))
        })?;
        Ok(ControlFlow::Continue(Finished::of(self.config, report)))
    }
}

/// Writes sample images and their entries in the metrics.
fn show(images: &[SampleImage], run: &Path, step: u64, metrics: &mut Metrics) -> Result<()> {
    samples::write(images, run, step)?;
    for (index, image) in images.iter().enumerate() {
        let name = format!("{}/{index:02}", samples::FOLDER);
        metrics.image(step, &name, image.size, &image.png)?;
    }
    Ok(())
}
