//! What goes to a mirror, and in which order: a mirror has the files of a run's folder under the same
//! names, and what says that others are complete (`DONE`, `model_index.json`, the card of adapters
//! alone) comes after them.
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use indicatif::HumanBytes;
use runkit::run_folder::MANIFEST;
use runkit::signals::StopFlag;
use serde_json::Value;

use super::names;
use super::place::{Content, Listing, Place};
use crate::config;
use crate::run::checkpoint::{self, MARKER};
use crate::run::export;
use crate::run::folder::RUN;

/// What to copy.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// The step of the newest checkpoint, and its opened files, `DONE` last.
    pub(super) checkpoint: Option<(u64, Vec<(String, File)>)>,
    /// Whether the result is there to be copied.
    pub(super) with_result: bool,
}

impl Job {
    /// The checkpoint of a step. It is opened here, so that it can be copied to the end even if
    /// newer ones take its place.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn of_step(run: &Path, step: u64) -> Result<Self> {
        let folder = checkpoint::folder(&run.join(checkpoint::CHECKPOINTS), step);
        let files = checkpoint::open_files(&folder)?;
        Ok(Self { checkpoint: Some((step, files)), with_result: false })
    }
}

/// Copies from the folder of a run to its mirror.
#[derive(Debug)]
pub(super) struct Copier {
    pub(super) place: Place,
    pub(super) run: PathBuf,
    /// How many checkpoints stay in the mirror.
    pub(super) keep: usize,
}

impl Copier {
    /// Copies what is beside the checkpoints, for a start that resumes after `step`. Removes newer
    /// checkpoints, which this start could not use: the metrics no longer reach to them.
    ///
    /// # Errors
    /// As [`Copier::copy`].
    pub(super) fn begin(&self, step: u64, stop: StopFlag) -> Result<()> {
        let mut pass = self.pass(stop)?;
        pass.remove_checkpoints(|of| of > step)?;
        pass.copy_outputs()
    }

    fn pass(&self, stop: StopFlag) -> Result<Pass<'_>> {
        let place = self.place.anew(stop);
        let there = place.list()?;
        Ok(Pass { place, there, run: &self.run, bytes: 0 })
    }

    /// Copies a job. `stop` ends it.
    ///
    /// # Errors
    /// If a file cannot be read or written. What was copied stays; another call copies the rest.
    pub(super) fn copy(&self, job: &Job, stop: StopFlag) -> Result<()> {
        let mut pass = self.pass(stop)?;
        let is_whole = !job.with_result || pass.has_result()?;
        if !is_whole {
            pass.unmark_result()?;
        }
        pass.copy_outputs()?;
        if let Some((step, files)) = &job.checkpoint {
            pass.copy_checkpoint(*step, files)?;
            pass.prune(*step, self.keep)?;
        }
        if !is_whole {
            pass.copy_result()?;
        }
        if let Some((step, _)) = &job.checkpoint {
            let (mirror, bytes) = (pass.place.path().display(), HumanBytes(pass.bytes));
            tracing::info!("{mirror}: step {step} is there, {bytes} were copied");
        }
        Ok(())
    }
}

/// The steps that a manifest names.
fn steps_of(manifest: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(manifest).ok()?.get("steps")?.as_u64()
}

/// One pass over a run and its mirror.
struct Pass<'run> {
    place: Place,
    /// What was in the mirror when the pass began, but for what it has removed.
    there: Listing,
    run: &'run Path,
    /// Bytes that were copied.
    bytes: u64,
}

impl Pass<'_> {
    fn put(&mut self, name: &str, content: &Content<'_>) -> Result<()> {
        let there = self.there.get(name);
        self.place.put(name, there, content)?;
        self.bytes += content.len();
        // A pass puts a name once, so the new state is not needed.
        self.there.remove(name);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        if self.there.remove(name).is_some() {
            self.place.remove(name)?;
        }
        Ok(())
    }

    /// Copies a file as long as it is now; a log may grow meanwhile.
    fn put_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let context = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(context)?;
        let length = file.metadata().with_context(context)?.len();
        self.put(name, &Content::File(&file, length))
    }

    /// A small file of the run.
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.run.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Whether the mirror has a file with these bytes.
    fn holds(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        Ok(self.there.contains_key(name) && self.place.holds(name, &Content::Bytes(bytes))?)
    }

    /// Whether the mirror has the result of the run as its manifest describes it.
    fn has_result(&self) -> Result<bool> {
        let is_marked = export::mark_names().iter().any(|mark| self.there.contains_key(mark));
        Ok(is_marked && self.holds(MANIFEST, &self.read(MANIFEST)?)?)
    }

    /// What is there no longer counts as the result.
    fn unmark_result(&mut self) -> Result<()> {
        export::mark_names().iter().try_for_each(|mark| self.remove(mark))
    }

    /// Copies what is beside the checkpoints, the manifest first. Images, records and the probe do not
    /// change once they are written; logs grow.
    fn copy_outputs(&mut self) -> Result<()> {
        let manifest = self.read(MANIFEST)?;
        let there = match self.there.contains_key(MANIFEST) {
            true => Some(self.place.read(MANIFEST)?),
            false => None,
        };
        if there.as_ref() != Some(&manifest) {
            // A result of fewer steps is not the result of this manifest.
            if there.and_then(|there| steps_of(&there)) != steps_of(&manifest) {
                self.unmark_result()?;
            }
            self.put(MANIFEST, &Content::Bytes(&manifest))?;
        }
        if self.run.join(config::FILE).exists() {
            let settings = self.read(config::FILE)?;
            if !self.holds(config::FILE, &settings)? {
                self.put(config::FILE, &Content::Bytes(&settings))?;
            }
        }
        for name in names::written_once(self.run)? {
            let path = self.run.join(&name);
            let length = path.metadata().map_or(0, |found| found.len());
            if self.there.get(&name).is_none_or(|there| there.bytes != length) {
                self.put_file(&name, &path)?;
            }
        }
        for name in names::logs(self.run)? {
            self.put_file(&name, &self.run.join(&name))?;
        }
        Ok(())
    }

    /// Copies a checkpoint, unless the mirror has it.
    fn copy_checkpoint(&mut self, step: u64, files: &[(String, File)]) -> Result<()> {
        let Some(((mark, mark_file), others)) = files.split_last() else { return Ok(()) };
        let length = |file: &File| Ok::<_, anyhow::Error>(file.metadata()?.len());
        let mark_name = checkpoint::name_in_run(step, mark);
        let mark_content = Content::File(mark_file, length(mark_file)?);
        if self.there.contains_key(&mark_name) && self.place.holds(&mark_name, &mark_content)? {
            return Ok(());
        }
        // Another start, with other numerics, had a checkpoint of this step.
        self.remove(&mark_name)?;
        for (name, file) in others {
            let content = Content::File(file, length(file)?);
            self.put(&checkpoint::name_in_run(step, name), &content)?;
        }
        self.put(&mark_name, &mark_content)
    }

    /// Removes all but the newest `keep` complete checkpoints, and what interrupted copies left.
    /// That of `step` was complete a moment ago.
    fn prune(&mut self, step: u64, keep: usize) -> Result<()> {
        let mut complete: BTreeSet<u64> =
            checkpoint::complete_in(self.there.keys()).into_iter().collect();
        complete.insert(step);
        let kept: BTreeSet<u64> = complete.into_iter().rev().take(keep).collect();
        self.remove_checkpoints(|of| of != step && !kept.contains(&of))
    }

    fn remove_checkpoints(&mut self, is_surplus: impl Fn(u64) -> bool) -> Result<()> {
        let surplus =
            |name: &&String| checkpoint::parse(name).is_some_and(|(step, _)| is_surplus(step));
        let mut names: Vec<String> = self.there.keys().filter(surplus).cloned().collect();
        // The marks first: half a checkpoint never counts as one.
        names.sort_by_key(|name| !name.ends_with(MARKER));
        names.iter().try_for_each(|name| self.remove(name))
    }

    /// Copies the result.
    fn copy_result(&mut self) -> Result<()> {
        let manifest = RUN.at(self.run).manifest()?.unwrap_or_default();
        for name in export::in_order_of_copying(&manifest) {
            self.put_file(&name, &self.run.join(&name))?;
        }
        Ok(())
    }
}
