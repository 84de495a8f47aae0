//! What is to be generated with one model, and how far it is.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow::{Break, Continue};

use anyhow::Result;
use nn::pipeline::Image;
use rayon::prelude::*;
use runkit::progress::Progress;
use runkit::signals::{StopFlag, Stoppable};
use runkit::text::escape_for_terminal;

use super::generator::Generator;
use super::image::{self, Recipe};
use super::model::Model;
use super::{Config, Job, PROGRAM, VERSION};

/// Progress in denoising steps of images, so that the time left is known within a batch.
pub(super) struct Steps {
    pub(super) bar: Progress,
    /// All images of the run.
    images: usize,
    /// Those that are there.
    there: Cell<usize>,
}

impl Steps {
    pub(super) fn new(images: usize, work: &[Work<'_>]) -> Self {
        let of = |work: &Work<'_>| work.model.calls as u64;
        // Work::generate repeats a batch that is partly there.
        let to_do = work.iter().map(|work| {
            let images: usize = work.batches.iter().map(|(batch, _)| batch.len()).sum();
            images as u64 * of(work)
        });
        let to_do: u64 = to_do.sum();
        let missing: usize = work.iter().map(|work| work.missing).sum();
        let there = images - missing;
        let all = images / work.len().max(1);
        let whole: u64 = work.iter().map(|work| (all - work.missing) as u64 * of(work)).sum();
        let bar = Progress::new("generating", "steps", whole + to_do);
        bar.already_done(whole);
        let steps = Self { bar, images, there: Cell::new(there) };
        steps.finished(0);
        steps
    }

    /// Counts a call of the UNet for this many images.
    fn step(&self, images: usize) {
        self.bar.add(images as u64);
    }

    /// Counts images that were written.
    fn finished(&self, images: usize) {
        self.there.set(self.there.get() + images);
        self.bar.message(format!("{} of {} images", self.there.get(), self.images));
    }
}

/// What is to be generated with one model.
pub(super) struct Work<'run> {
    pub(super) model: &'run Model,
    pub(super) batch_size: usize,
    /// The batches that are not complete, each with which of its jobs are missing.
    pub(super) batches: Vec<(&'run [Job<'run>], Vec<bool>)>,
    pub(super) missing: usize,
}

impl<'run> Work<'run> {
    pub(super) fn find(config: &Config, model: &'run Model, jobs: &'run [Job<'run>]) -> Self {
        let batch_size = config.batch_size(model.record.size);
        let batches: Vec<_> = jobs
            .chunks(batch_size)
            .map(|batch| {
                let absent =
                    |job: &Job<'_>| config.fresh || !config.image_path(model, job).is_file();
                (batch, batch.iter().map(absent).collect::<Vec<bool>>())
            })
            .filter(|(_, missing)| missing.contains(&true))
            .collect();
        let missing = batches
            .iter()
            .map(|(_, missing)| missing.iter().filter(|missing| **missing).count())
            .sum();
        Self { model, batch_size, batches, missing }
    }

    /// Generates and writes. A batch that is partly there is generated as a whole, since the last
    /// bits of an image depend on its batch; the images that are there stay.
    pub(super) fn generate(
        &self,
        generator: &mut Generator<'_>,
        config: &Config,
        progress: &Steps,
        stop: &StopFlag,
    ) -> Result<Stoppable> {
        for (batch, missing) in &self.batches {
            let mut stopped = None;
            let images = generator.generate(batch, &mut |_, _| {
                progress.step(batch.len());
                stopped = stop.requested();
                if stopped.is_none() { Continue(()) } else { Break(()) }
            })?;
            if let Some(images) = images {
                let pairs = batch.iter().zip(&images).zip(missing);
                let fresh: Vec<(&Job<'_>, &Image)> =
                    pairs.filter(|(_, missing)| **missing).map(|(pair, _)| pair).collect();
                self.write(&fresh, config)?;
                progress.finished(fresh.len());
                stopped = stop.requested();
            }
            if let Some(signal) = stopped {
                return Ok(Break(signal));
            }
        }
        Ok(Continue(()))
    }

    fn write(&self, fresh: &[(&Job<'_>, &Image)], config: &Config) -> Result<()> {
        let mut folders = HashSet::new();
        for (job, _) in fresh {
            if folders.insert(&job.prompt.id) {
                let folder = config.prompt_folder(self.model, job.prompt);
                runkit::files::create_folder(&folder)?;
                runkit::files::remove_stale_temporaries(&folder)?;
            }
        }
        let record = &self.model.record;
        let dtype = config.precision.to_string();
        fresh.par_iter().try_for_each(|(job, image)| {
            let recipe = Recipe {
                prompt: &job.prompt.text,
                negative_prompt: config.negative_prompt.as_deref(),
                seed: job.seed,
                steps: config.steps,
                guidance: record.guidance,
                scheduler: record.scheduler,
                size: record.size,
                model: &self.model.name,
                checkpoint: &record.checkpoint,
                dtype: &dtype,
                device: config.device_kind(),
                program: PROGRAM,
                version: VERSION,
            };
            let bytes = image::encode(image, &recipe)?;
            image::write(&config.image_path(self.model, job), &bytes)
        })
    }
}

/// Warns about each prompt that is too long, with the part that the model does not read: once, and
/// again if another model reads more or less of it.
pub(super) fn warn_truncated(config: &Config, work: &[Work<'_>]) {
    let mut warned = BTreeSet::new();
    for work in work {
        let jobs = work.batches.iter().flat_map(|(batch, _)| batch.iter());
        let prompts = jobs.map(|job| (job.prompt.id.as_str(), job.prompt.text.as_str()));
        let negative = config.negative_prompt.iter().map(|text| ("negative", text.as_str()));
        for (id, text) in prompts.chain(negative) {
            let Some(unread) = work.model.unread(text) else { continue };
            if warned.insert((id, unread.len())) {
                tracing::warn!(
                    "prompt {id} is too long for model {} and is truncated; not read: {:?}",
                    work.model.name,
                    escape_for_terminal(unread)
                );
            }
        }
    }
}
