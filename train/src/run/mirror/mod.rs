//! A copy of the run at another place (`--mirror`), so that a machine that vanishes takes nothing
//! with it: a start on an empty disk fetches the newest checkpoint and resumes.
//!
//! The mirror has the files of the folder of the run under the same names, and the same rules hold:
//! its manifest comes first and says what it is, the mirror of another run is refused, a checkpoint
//! counts once its `DONE` is there, and nothing that is not of a run is overwritten or removed. It
//! belongs to rank 0.
//!
//! A thread copies while the run trains. It holds the files of a checkpoint open, so that it comes
//! to an end even if training deletes them meanwhile; if checkpoints come faster than they can be
//! copied, it takes the newest. A copy that fails is a warning, and the next checkpoint tries again;
//! the end of the run waits, and fails if its last state is not there.

mod copy;
mod names;
mod place;
mod restore;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use runkit::signals::StopFlag;

use self::copy::{Copier, Job};
use self::place::Place;
pub(crate) use self::restore::Held;
use crate::config::Config;
use crate::run::checkpoint::{self, CHECKPOINTS};

/// How often the end of a run looks whether the copy is done.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The mirror of a run that trains.
#[derive(Debug)]
pub(crate) struct Mirror {
    copier: Arc<Copier>,
    desk: Arc<Desk>,
    thread: JoinHandle<Result<()>>,
}

/// Where the thread gets its jobs.
#[derive(Debug, Default)]
struct Desk {
    next: Mutex<Next>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Next {
    job: Option<Job>,
    /// Whether no job comes after it.
    is_last: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job there, in place of an older one that was not begun.
    fn put(&self, job: Job, is_last: bool) {
        let mut next = self.lock();
        next.job = Some(job);
        next.is_last |= is_last;
        self.changed.notify_all();
    }

    /// Waits for a job; `None` after the last.
    fn take(&self) -> Option<Job> {
        let mut next = self.lock();
        loop {
            match next.job.take() {
                None if !next.is_last => {
                    next = self.changed.wait(next).unwrap_or_else(PoisonError::into_inner);
                }
                job => return job,
            }
        }
    }
}

impl Mirror {
    /// Begins the mirror of a run that resumes after `step`, if it has one: what is in the folder of
    /// the run but for its checkpoints is copied before anything is trained, so that a mirror that
    /// cannot be written ends the run at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn begin(config: &Config, step: u64) -> Result<Option<Self>> {
        let Some(copier) = copier(config)? else { return Ok(None) };
        copier.begin(step, runkit::signals::flag_of_process())?;
        let (copier, desk) = (Arc::new(copier), Arc::<Desk>::default());
        let (copies, jobs) = (Arc::clone(&copier), Arc::clone(&desk));
        let thread = std::thread::Builder::new().name("mirror".to_owned());
        let thread = thread.spawn(move || copy_all(&copies, &jobs)).context("a thread")?;
        Ok(Some(Self { copier, desk, thread }))
    }

    /// Copies a new checkpoint in the background.
    pub(crate) fn copy(&self, step: u64) {
        match Job::of_step(&self.copier.run, step) {
            Ok(job) => self.desk.put(job, false),
            Err(error) => warn(&self.copier, &error),
        }
    }

    /// Waits until the newest checkpoint is copied, after a signal or an error.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn wait(self, stop: &StopFlag) -> Result<()> {
        let job = Job { with_result: false, ..whole(&self.copier.run)? };
        self.end(job, stop)
    }

    /// Copies the newest checkpoint and the result, and waits until they are there.
    ///
    /// # Errors
    /// If they are not.
    pub(crate) fn finish(self, stop: &StopFlag) -> Result<()> {
        let job = whole(&self.copier.run)?;
        self.end(job, stop)
    }

    fn end(self, job: Job, stop: &StopFlag) -> Result<()> {
        self.desk.put(job, true);
        let mut has_told = stop.requested().is_some();
        while !self.thread.is_finished() {
            if stop.requested().is_some() && !has_told {
                has_told = true;
                tracing::warn!(
                    "still copying to {}: a second signal ends it",
                    self.copier.place.path().display()
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let end = self.thread.join().map_err(|_| anyhow!("its thread panicked"));
        end.and_then(|end| end).with_context(|| unfinished(&self.copier))
    }
}

/// Copies a run that was complete before this start, if its mirror lacks something.
///
/// # Errors
/// If it cannot be copied.
pub(crate) fn complete(config: &Config) -> Result<()> {
    let Some(copier) = copier(config)? else { return Ok(()) };
    let copied = copier.copy(&whole(&config.out)?, runkit::signals::flag_of_process());
    copied.with_context(|| unfinished(&copier))
}

fn unfinished(copier: &Copier) -> String {
    format!(
        "the run is in {}, but {} does not have all of it; hint: the same command copies the rest",
        copier.run.display(),
        copier.place.path().display()
    )
}

/// The newest checkpoint and the result.
fn whole(run: &Path) -> Result<Job> {
    let newest = checkpoint::newest_step(&run.join(CHECKPOINTS))?;
    let job = newest.map(|step| Job::of_step(run, step)).transpose()?.unwrap_or_default();
    Ok(Job { with_result: true, ..job })
}

fn copier(config: &Config) -> Result<Option<Copier>> {
    let Some(mirror) = &config.mirror else { return Ok(None) };
    let place = Place::parse(mirror, &config.out)?;
    Ok(Some(Copier { place, run: config.out.clone(), keep: config.settings.keep }))
}

fn warn(copier: &Copier, error: &anyhow::Error) {
    tracing::warn!(
        "{} lacks the newest checkpoint: {error:#}; training continues, and the next checkpoint is \
         copied again",
        copier.place.path().display()
    );
}

/// The body of the thread: copies until the last job, whose end it returns. A signal does not end
/// it: what was saved because of the signal is copied too.
fn copy_all(copier: &Copier, desk: &Desk) -> Result<()> {
    let mut end = Ok(());
    while let Some(job) = desk.take() {
        end = copier.copy(&job, StopFlag::never());
        // What the last job ends with is returned.
        if let Err(error) = &end
            && !desk.lock().is_last
        {
            warn(copier, error);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_job_takes_the_place_of_those_before_it() {
        let desk = Desk::default();
        let job = |step| Job { checkpoint: Some((step, Vec::new())), with_result: false };
        desk.put(job(3), false);
        desk.put(job(6), false);
        let step = |job: Option<Job>| job.and_then(|job| job.checkpoint).map(|(step, _)| step);
        assert_eq!(step(desk.take()), Some(6));
        desk.put(job(9), true);
        assert_eq!(step(desk.take()), Some(9));
        assert!(desk.take().is_none());
    }
}
