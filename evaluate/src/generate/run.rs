//! The units of work of a process, from loading networks to written images.

use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use runkit::logging::tenths;
use runkit::settings::FILE as SETTINGS;
use runkit::signals::{StopFlag, Stoppable};

use super::generator::Generator;
use super::work::{self, Steps, Unit, Work, warn_truncated};
use super::{Config, FOLDER, Generation, Manifest, Summary, image};
use crate::sharing::{Held, Sharing};

/// How long a file of another machine may take to be seen: attributes are kept for a minute.
const LATE: Duration = Duration::from_secs(90);

impl Generation<'_> {
    /// Generates what is missing of the units of this process, until it is done or stopped. Ranks
    /// wait for each other.
    ///
    /// # Errors
    /// If a checkpoint cannot be loaded, or the output not be written.
    pub(crate) fn run(mut self, held: &Held<'_>, stop: &StopFlag) -> Result<Stoppable<Summary>> {
        let (config, sharing) = (self.config, held.sharing);
        let folder = FOLDER.at(&config.out);
        // Another run may have been at work since it was opened.
        self.manifest = self.joined()?;
        let images = self.jobs.len() * self.models.len();
        let missing = self.missing();
        let begin = || {
            let _moment = held.moment()?;
            folder.begin(&self.joined()?)?;
            let settings = config.out.join(SETTINGS);
            write_if_different(&settings, config.saved_settings.as_bytes())
        };
        if missing == 0 {
            tracing::info!(images = images, "already complete");
            if sharing.is_alone() {
                begin()?;
                return Ok(Continue(Summary { images, generated: 0, missing }));
            }
        }
        let mut work = self.work();
        work.iter_mut().for_each(|work| work.is_shared = !sharing.is_alone());
        let units = work::units(&work, sharing.shard().and(self.scored_together));
        let is_ours = |unit: usize| sharing.shard().is_none_or(|shard| shard.owns(unit as u64));
        // The networks of the first model are loaded before anything is deleted or written: a model
        // that cannot be loaded leaves no trace.
        let ours = units.iter().enumerate().filter(|(index, _)| is_ours(*index));
        let lacks = |unit: &Unit| {
            work[unit.work].batches[unit.batches.clone()].iter().any(|batch| batch.missing > 0)
        };
        let mut loaded = match ours.map(|(_, unit)| unit).find(|unit| lacks(unit)) {
            Some(unit) => Some((unit.work, load(&work[unit.work], config)?)),
            None => None,
        };
        if config.fresh
            && let Some(earlier) = Manifest::of_folder(&config.out)?
        {
            folder.clear(earlier.images(), None)?;
        }
        sharing.by_first(begin)?;
        if sharing.is_first() {
            warn_truncated(config, &work);
        }
        let started = Instant::now();
        let progress = Steps::new(&work, &units, is_ours);
        let mut generated = 0;
        for unit in sharing.units("generate", units.len()) {
            let unit = unit? as usize;
            if sharing.shard().is_none() {
                progress.dealt(unit);
            }
            let Unit { work: index, batches } = &units[unit];
            let work = &work[*index];
            for batch in &work.batches[batches.clone()] {
                let missing = work::missing(config, work.model, batch.jobs);
                if !missing.contains(&true) {
                    continue;
                }
                if loaded.as_ref().is_none_or(|(of, _)| of != index) {
                    drop(loaded.take());
                    loaded = Some((*index, load(work, config)?));
                }
                let Some((_, generator)) = &mut loaded else { continue };
                match work.generate(batch.jobs, &missing, generator, config, &progress, stop)? {
                    Continue(written) => generated += written,
                    Break(signal) => return Ok(Break(signal)),
                }
            }
            if let Break(signal) = stop.flow() {
                return Ok(Break(signal));
            }
        }
        drop(loaded);
        let generated = sharing.sum(generated)?;
        if generated > 0 {
            let rate = generated as f64 / started.elapsed().as_secs_f64();
            tracing::info!("{rate:.3} images/s, loading included");
            progress.bar.finish();
        }
        let missing = match sharing {
            Sharing::Alone => 0,
            Sharing::Shard(_) => self.missing(),
            Sharing::World(_) => self.see_all(sharing)?,
        };
        if missing == 0 && sharing.is_first() && !sharing.is_alone() {
            self.remove_leftovers()?;
        }
        Ok(Continue(Summary { images, generated, missing }))
    }

    /// Removes the temporary files of processes that were killed.
    fn remove_leftovers(&self) -> Result<()> {
        for model in &self.models {
            let mut folders: Vec<PathBuf> =
                self.jobs.iter().map(|job| self.config.prompt_folder(model, job.prompt)).collect();
            folders.dedup();
            for folder in folders {
                runkit::files::remove_stale_temporaries(folder)?;
            }
        }
        Ok(())
    }

    /// Waits until this rank sees the images of all ranks: a file system between machines may show
    /// them late.
    fn see_all(&self, sharing: &Sharing) -> Result<usize> {
        let started = Instant::now();
        loop {
            let missing = self.missing();
            if missing == 0 {
                return Ok(0);
            }
            ensure!(
                sharing.spans_machines() && started.elapsed() < LATE,
                "{}: {missing} images are missing, although all ranks are done; hint: --out must \
                 be one folder that all machines share",
                self.config.out.display()
            );
            runkit::signals::check()?;
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// Loads the networks of a model, and says so.
fn load<'run>(work: &Work<'run>, config: &'run Config) -> Result<Generator<'run>> {
    let loading = Instant::now();
    let generator = Generator::load(work.model, config)?;
    let loading = loading.elapsed();
    tracing::info!(
        model = work.model.name,
        images = work.missing,
        size = %work.model.record.size,
        steps = config.steps,
        scheduler = %work.model.record.scheduler,
        batch_size = work.batch_size,
        loading_seconds = tenths(loading),
        "Loaded {} in {:.1} s",
        work.model.name,
        loading.as_secs_f64()
    );
    Ok(generator)
}

fn write_if_different(path: &Path, bytes: &[u8]) -> Result<()> {
    match std::fs::read(path).is_ok_and(|found| found == bytes) {
        true => Ok(()),
        false => image::write(path, bytes),
    }
}
