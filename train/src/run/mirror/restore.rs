//! A start: what a mirror holds of a run, and how the folder of the run gets it back.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use runkit::manifest::Difference;
use runkit::output::OutputError;
use runkit::run_folder::MANIFEST;
use serde_json::Value;

use super::names;
use super::place::{Listing, Place};
use crate::config;
use crate::run::checkpoint::{self, CHECKPOINTS, MARKER};
use crate::run::export;
use crate::run::folder::RUN;
use crate::run::manifest::{self, Manifest};

/// A mirror as a start finds it.
#[derive(Debug)]
pub(crate) struct Held {
    place: Place,
    listing: Listing,
    /// Its manifest; nothing if the mirror is empty.
    manifest: Option<(Vec<u8>, Value)>,
}

impl Held {
    /// Looks at the mirror of the run in the folder `run`.
    ///
    /// # Errors
    /// If it cannot be reached, or holds something else than a run.
    pub(crate) fn look(mirror: &Path, run: &Path) -> Result<Self> {
        let place = Place::parse(mirror, run)?;
        let listing = place.list()?;
        place.remove_temporaries(&listing)?;
        let path = place.path().to_owned();
        let manifest = match listing.contains_key(MANIFEST) {
            true => {
                let text = place.read(MANIFEST)?;
                let value = serde_json::from_slice(&text).ok().filter(manifest::is_ours);
                let value = value.ok_or_else(|| OutputError::Manifest {
                    path: path.join(MANIFEST),
                    flag: "--mirror",
                    expected: RUN.name,
                    found: "a file of another program".to_owned(),
                })?;
                Some((text, value))
            }
            false => {
                let is_hidden = |name: &str| name.rsplit('/').next().unwrap_or("").starts_with('.');
                if let Some(found) = listing.keys().find(|name| !is_hidden(name)) {
                    return Err(OutputError::Foreign {
                        flag: "--mirror",
                        path,
                        expected: "the mirror of a run",
                        found: found.clone(),
                    }
                    .into());
                }
                None
            }
        };
        Ok(Self { place, listing, manifest })
    }

    /// A field of its manifest.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        self.manifest.as_ref()?.1.get(name)
    }

    /// The step of its newest complete checkpoint.
    pub(crate) fn newest(&self) -> Option<u64> {
        checkpoint::complete_in(self.listing.keys()).last().copied()
    }

    /// Refuses the mirror of another run. One that has neither a checkpoint nor a result has nothing
    /// worth keeping and is cleared, as the folder of such a run is.
    ///
    /// # Errors
    /// [`OutputError::OtherRun`] with the fields that differ.
    pub(crate) fn refuse_another(&mut self, manifest: &Manifest) -> Result<()> {
        let Some((_, earlier)) = &self.manifest else { return Ok(()) };
        let differences: Vec<Difference> = manifest.differences_from(earlier)?;
        if differences.is_empty() {
            return Ok(());
        }
        let has_result = export::mark_names().iter().any(|mark| self.listing.contains_key(mark));
        if self.newest().is_none() && !has_result {
            tracing::info!(
                "{}: removing what another run left before its first checkpoint",
                self.place.path().display()
            );
            return self.clear();
        }
        let path = self.place.path().to_owned();
        let hint = "choose another --mirror, or start over with --fresh".to_owned();
        Err(OutputError::OtherRun { path, differences, hint }.into())
    }

    /// Removes what a run has put there, the marks first. The manifest stays until the next one takes
    /// its place, so that after a kill the rest is still known to be of a run.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub(crate) fn clear(&mut self) -> Result<()> {
        let result = self.manifest.as_ref().map(|(_, value)| export::outputs(value));
        let result = result.unwrap_or_default();
        let is_ours = |name: &&String| {
            checkpoint::parse(name).is_some()
                || names::is_written_once(name)
                || names::is_log(name)
                || *name == config::FILE
                || result.contains(name)
        };
        let mut ours: Vec<String> = self.listing.keys().filter(is_ours).cloned().collect();
        let marks = export::mark_names();
        ours.sort_by_key(|name| !marks.contains(name) && !name.ends_with(&format!("/{MARKER}")));
        for name in ours {
            runkit::signals::check()?;
            self.place.remove(&name)?;
            self.listing.remove(&name);
        }
        Ok(())
    }

    /// Brings the newest checkpoint to the folder of the run, with what else is beside it, if it is
    /// newer than any that is there. A damaged one is passed over with a warning.
    ///
    /// # Errors
    /// If a file cannot be read or written, a signal stops it, or the run ends before that step.
    pub(crate) fn restore(&self, run: &Path, steps: u64) -> Result<()> {
        let Some((manifest, _)) = &self.manifest else { return Ok(()) };
        let checkpoints = run.join(CHECKPOINTS);
        let here = checkpoint::newest_step(&checkpoints)?;
        let mut newer = checkpoint::complete_in(self.listing.keys());
        newer.retain(|step| here.is_none_or(|here| *step > here));
        let Some(newest) = newer.last() else { return Ok(()) };
        let mirror = self.place.path().display();
        ensure!(
            *newest <= steps,
            "{mirror}: steps: {steps} is below step {newest} of its newest checkpoint; hint: --steps \
             {newest} or more, or another --mirror",
        );
        tracing::info!("{mirror}: step {newest} is newer than what is in {}", run.display());
        runkit::files::create_folder(run)?;
        if RUN.at(run).manifest()?.is_none() {
            runkit::files::write_atomic(run.join(MANIFEST), |file| file.write_all(manifest))?;
        }
        self.restore_outputs(run)?;
        for step in newer.iter().rev() {
            let fetched = self.restore_checkpoint(&checkpoints, *step);
            if fetched.with_context(|| format!("fetching step {step} of {mirror}"))? {
                return Ok(());
            }
            tracing::warn!("{mirror}: step {step} is damaged there and passed over");
        }
        if here.is_none() {
            tracing::warn!("{mirror}: no checkpoint there is whole: starting over");
        }
        Ok(())
    }

    /// Brings the files beside the checkpoints: those that are not here, and the metrics, which are
    /// those of the newer checkpoint.
    fn restore_outputs(&self, run: &Path) -> Result<()> {
        for name in self.listing.keys() {
            let target: PathBuf = run.join(name);
            let is_metrics = name == runkit::metrics::LOG_NAME;
            let is_wanted = names::is_written_once(name) || names::is_log(name);
            if is_wanted && (is_metrics || !target.exists()) {
                runkit::files::create_folder(target.parent().unwrap_or(run))?;
                self.place.fetch(name, &target)?;
            }
        }
        Ok(())
    }

    /// Whether the checkpoint is whole. Nothing of one that is not stays here.
    fn restore_checkpoint(&self, checkpoints: &Path, step: u64) -> Result<bool> {
        let mark = self.place.read(&checkpoint::name_in_run(step, MARKER))?;
        let is_there = |(name, bytes): &(String, u64)| {
            let there = self.listing.get(&checkpoint::name_in_run(step, name));
            there.is_some_and(|there| there.bytes == *bytes)
        };
        if !checkpoint::files_of(&mark).is_some_and(|files| files.iter().all(is_there)) {
            return Ok(false);
        }
        checkpoint::put_together(checkpoints, step, &mark, |name, to| {
            self.place.fetch(&checkpoint::name_in_run(step, name), to)
        })
    }
}
