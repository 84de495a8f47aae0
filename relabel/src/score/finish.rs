//! The end of a run: what only all parts together show is scored, then they become the labels.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use runkit::progress::Progress;
use scorers::MemoryLimits;

use super::batches::Choice;
use super::manifest::KEY_MEMORY;
use super::merge::Merge;
use super::networks::Networks;
use super::output::Found;
use super::part::{self, Note, PartKey, ScorerKey};
use super::pipeline::Task;
use super::scores::{Parts, Scores, Slots};
use super::{End, Run};

impl Run<'_> {
    /// Puts the output in its place when all parts are there.
    pub(super) fn merge_if_ready(&self, networks: Networks) -> Result<End> {
        let (config, output, count) = (self.config, self.output, self.plan.units.len());
        let mut missing = 0;
        for unit in 0..count {
            let path = part::path(&self.parts, unit, count);
            missing += usize::from(!part::is_done(&path, &self.part_key(unit))?);
        }
        let merged_by_another = || {
            Ok::<_, anyhow::Error>(
                !config.sharing.is_alone()
                    && output.examine(&self.manifest, &self.plan)? == Found::Complete,
            )
        };
        // If several processes finish together, one of them merges and then removes the parts.
        if missing > 0 {
            if !merged_by_another()? {
                return Ok(End::ShareDone { missing });
            }
            // This one may have made the work folder again in that moment.
            if let Some(_lock) = output.merge_lock()? {
                output.tidy()?;
            }
            return Ok(End::DoneElsewhere);
        }
        let Some(_lock) = output.merge_lock()? else {
            return Ok(End::ShareDone { missing });
        };
        if merged_by_another()? {
            return Ok(End::DoneElsewhere);
        }
        tracing::info!(parts = count, "merging");
        let scores = self.scores(networks)?;
        let note = self.note()?;
        let mut metadata = self.manifest.metadata()?;
        if note.memory != MemoryLimits::default() {
            metadata.insert(KEY_MEMORY.to_owned(), runkit::manifest::canonical_json(&note.memory)?);
        }
        let merge = Merge::new(&self.plan, &scores, &self.manifest);
        let summary = merge.write(&output.labels_here(), &metadata, self.stop)?;
        output.upload(&self.manifest)?;
        tracing::info!(
            rows = summary.rows,
            failed = summary.failed_rows,
            partial = summary.partial_rows,
            ties = summary.ties,
            "labels written"
        );
        if note.on_white > 0 {
            tracing::info!(
                images = note.on_white,
                "images with transparency were laid on white, as transformers does; with alpha = \"drop\" \
                 in scorers.toml transparency is ignored"
            );
        }
        if note.memory != MemoryLimits::default() {
            tracing::warn!(
                images_per_forward = note.memory.images,
                captions_per_forward = note.memory.captions,
                "the device ran out of memory at the batch size asked for; last bits may differ from a \
                 run that had enough"
            );
        }
        output.tidy()?;
        Ok(End::Done)
    }

    /// The notes of all parts together.
    fn note(&self) -> Result<Note> {
        let count = self.plan.units.len();
        let memory = self.reuse.as_ref().map(|reuse| reuse.memory).unwrap_or_default();
        let mut note = Note { memory, ..Note::default() };
        for index in 0..count {
            for path in [part::path, part::rest_path, part::more_path] {
                let path = path(&self.parts, index, count);
                if path.exists() {
                    note = note.with(Note::read(&path)?);
                }
            }
        }
        Ok(note)
    }

    /// The scores of all parts, and those that are taken over. Only all of them together show which
    /// images were scored nowhere, and which scores the earlier run lacks; those are scored first.
    fn scores(&self, mut networks: Networks) -> Result<Scores> {
        let parts = Parts {
            plan: &self.plan,
            units: &self.unit_keys,
            scorers: &self.scorer_keys,
            records: &self.manifest.scorers.scorers,
            folder: &self.parts,
            reuse: self.reuse.as_ref(),
        };
        let mut scores = Scores::read(&parts, self.stop)?;
        let several = scores.uids_with_other_bytes(&self.plan);
        if several > 0 {
            tracing::warn!(
                uids = several,
                "some uids name images with different bytes; each is scored as an image of its own"
            );
        }
        let gaps = scores.gaps(&self.plan);
        if !gaps.is_empty() {
            drop(scores);
            tracing::info!(
                images = images_in(&gaps),
                "scoring images whose uid names other bytes elsewhere"
            );
            let all = vec![true; self.scorer_keys.len()];
            self.score_rest(gaps, &all, part::rest_path, &mut networks)?;
            scores = Scores::read(&parts, self.stop)?;
        }
        let (lacking, missing) = scores.missing(&self.plan);
        if !missing.is_empty() {
            drop(scores);
            tracing::info!(images = images_in(&missing), "scoring what the earlier labels lack");
            self.score_rest(missing, &lacking, part::more_path, &mut networks)?;
            scores = Scores::read(&parts, self.stop)?;
        }
        ensure!(
            scores.gaps(&self.plan).is_empty() && scores.missing(&self.plan).1.is_empty(),
            "the images have changed during the run; hint: start over with --fresh"
        );
        Ok(scores)
    }

    /// Scores these slots with these scorers, into parts of their own.
    fn score_rest(
        &self,
        slots: Slots,
        scorers: &[bool],
        path: fn(&Path, usize, usize) -> PathBuf,
        networks: &mut Networks,
    ) -> Result<()> {
        let progress = Progress::new("scoring the rest", "images", images_in(&slots));
        let (loaded, externals) = networks.ready(self, scorers)?;
        let wanted: Vec<ScorerKey> = self
            .scorer_keys
            .iter()
            .zip(scorers)
            .filter(|(_, it)| **it)
            .map(|(it, _)| it.clone())
            .collect();
        let count = self.plan.units.len();
        let tasks = slots.into_iter().map(|(unit, slots)| {
            let key = PartKey { unit: self.unit_keys[unit].clone(), scorers: wanted.clone() };
            Ok(Task {
                unit,
                choice: Choice::Rest(slots),
                path: path(&self.parts, unit, count),
                key,
            })
        });
        self.score_tasks(loaded, externals, self.captions(loaded)?, tasks, &progress)?;
        progress.finish();
        Ok(())
    }
}

/// How many images such slots have.
fn images_in(slots: &Slots) -> u64 {
    slots.values().map(|slots| slots.len() as u64).sum()
}
