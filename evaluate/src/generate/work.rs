//! What is to be generated with one model, and how far it is.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow::{Break, Continue};
use std::ops::Range;

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
    /// All images of the units.
    images: usize,
    /// Those that are there.
    there: Cell<usize>,
    /// Steps counted by this start.
    counted: Cell<u64>,
    /// The steps and the images to generate before each unit.
    before: Vec<(u64, usize)>,
    /// The images that were there at the start.
    earlier: usize,
}

impl Steps {
    /// Progress over the units that `is_ours` accepts.
    pub(super) fn new(
        work: &[Work<'_>],
        units: &[Unit],
        mut is_ours: impl FnMut(usize) -> bool,
    ) -> Self {
        let (mut steps, mut to_do, mut images, mut missing) = (0, 0, 0, 0);
        let mut before = Vec::with_capacity(units.len());
        for (index, unit) in units.iter().enumerate() {
            before.push((to_do, missing));
            if !is_ours(index) {
                continue;
            }
            let Some(work) = work.get(unit.work) else { continue };
            let calls = work.model.calls as u64;
            for batch in &work.batches[unit.batches.clone()] {
                images += batch.jobs.len();
                missing += batch.missing;
                steps += (batch.jobs.len() - batch.missing) as u64 * calls;
                // Work::generate repeats a batch that is partly there.
                if batch.missing > 0 {
                    to_do += batch.jobs.len() as u64 * calls;
                }
            }
        }
        let bar = Progress::new("generating", "steps", steps + to_do);
        bar.already_done(steps);
        let earlier = images - missing;
        let (there, counted) = (Cell::new(earlier), Cell::new(0));
        let steps = Self { bar, images, there, counted, before, earlier };
        steps.finished(0);
        steps
    }

    /// Counts what other ranks were dealt before this unit.
    pub(super) fn dealt(&self, unit: usize) {
        let Some(&(steps, images)) = self.before.get(unit) else { return };
        let behind = steps.saturating_sub(self.counted.get());
        if behind > 0 {
            self.step(behind);
            self.there.set(self.earlier + images);
            self.finished(0);
        }
    }

    /// Counts calls of the UNet, each for as many images as it was for.
    fn step(&self, images: u64) {
        self.counted.set(self.counted.get() + images);
        self.bar.add(images);
    }

    /// Counts images that were written.
    fn finished(&self, images: usize) {
        self.there.set(self.there.get() + images);
        self.bar.message(format!("{} of {} images", self.there.get(), self.images));
    }
}

/// Images that are generated together.
pub(super) struct Batch<'run> {
    pub(super) jobs: &'run [Job<'run>],
    /// How many of them were missing when the work was looked for.
    pub(super) missing: usize,
}

/// What one process does at a time: batches of one model.
pub(super) struct Unit {
    /// The model, by its place in the work.
    pub(super) work: usize,
    pub(super) batches: Range<usize>,
}

/// What is to be generated with one model.
pub(super) struct Work<'run> {
    pub(super) model: &'run Model,
    pub(super) batch_size: usize,
    /// All batches.
    pub(super) batches: Vec<Batch<'run>>,
    pub(super) missing: usize,
    /// Whether other processes write to the same folders: then what looks left behind may be
    /// theirs.
    pub(super) is_shared: bool,
}

impl<'run> Work<'run> {
    pub(super) fn find(config: &Config, model: &'run Model, jobs: &'run [Job<'run>]) -> Self {
        let batch_size = config.batch_size(model.record.size);
        let batch = |jobs| {
            let missing = missing(config, model, jobs);
            Batch { jobs, missing: missing.into_iter().filter(|missing| *missing).count() }
        };
        let batches: Vec<Batch<'run>> = jobs.chunks(batch_size).map(batch).collect();
        let missing = batches.iter().map(|batch| batch.missing).sum();
        Self { model, batch_size, batches, missing, is_shared: false }
    }

    /// The batches that are not complete.
    pub(super) fn incomplete(&self) -> impl Iterator<Item = &Batch<'run>> {
        self.batches.iter().filter(|batch| batch.missing > 0)
    }

    /// Generates what a batch lacks, and returns how many images these are. A batch that is partly
    /// there is generated as a whole, since the last bits of an image depend on its batch; the
    /// images that are there stay.
    pub(super) fn generate(
        &self,
        jobs: &[Job<'_>],
        missing: &[bool],
        generator: &mut Generator<'_>,
        config: &Config,
        progress: &Steps,
        stop: &StopFlag,
    ) -> Result<Stoppable<usize>> {
        let mut stopped = None;
        let images = generator.generate(jobs, &mut |_, _| {
            progress.step(jobs.len() as u64);
            stopped = stop.requested();
            if stopped.is_none() { Continue(()) } else { Break(()) }
        })?;
        let mut written = 0;
        if let Some(images) = images {
            let pairs = jobs.iter().zip(&images).zip(missing);
            let fresh: Vec<(&Job<'_>, &Image)> =
                pairs.filter(|(_, missing)| **missing).map(|(pair, _)| pair).collect();
            self.write(&fresh, config)?;
            written = fresh.len();
            progress.finished(written);
            stopped = stop.requested();
        }
        Ok(stopped.map_or(Continue(written), Break))
    }

    fn write(&self, fresh: &[(&Job<'_>, &Image)], config: &Config) -> Result<()> {
        let mut folders = HashSet::new();
        for (job, _) in fresh {
            if folders.insert(&job.prompt.id) {
                let folder = config.prompt_folder(self.model, job.prompt);
                runkit::files::create_folder(&folder)?;
                if !self.is_shared {
                    runkit::files::remove_stale_temporaries(&folder)?;
                }
            }
        }
        let record = &self.model.record;
        let dtype = nn::device::dtype_name(config.precision, config.device);
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

/// Which of the images are not there. Starting over, all are missing.
pub(super) fn missing(config: &Config, model: &Model, jobs: &[Job<'_>]) -> Vec<bool> {
    let is_missing = |job: &Job<'_>| config.fresh || !config.image_path(model, job).is_file();
    jobs.iter().map(is_missing).collect()
}

/// The work in units of whole batches: of as many images as `together` and a batch both divide, or
/// of one batch.
pub(super) fn units(work: &[Work<'_>], together: Option<usize>) -> Vec<Unit> {
    let of_model = |(index, work): (usize, &Work<'_>)| {
        let count = work.batches.len();
        let step =
            together.map_or(1, |images| common_multiple(work.batch_size, images) / work.batch_size);
        let starts = (0..count).step_by(step.max(1));
        let unit = move |start| Unit { work: index, batches: start..(start + step).min(count) };
        starts.map(unit).collect::<Vec<_>>()
    };
    work.iter().enumerate().flat_map(of_model).collect()
}

/// The least common multiple of two numbers above 0.
pub(crate) fn common_multiple(one: usize, other: usize) -> usize {
    let (mut divisor, mut rest) = (one, other);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (one / divisor.max(1)).saturating_mul(other)
}

/// Warns about each prompt that is too long, with the part that the model does not read: once, and
/// again if another model reads more or less of it.
pub(super) fn warn_truncated(config: &Config, work: &[Work<'_>]) {
    let mut warned = BTreeSet::new();
    for work in work {
        let jobs = work.incomplete().flat_map(|batch| batch.jobs.iter());
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
