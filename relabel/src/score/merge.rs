//! All parts into the one labels file: every input row once, in input order, with its scores, votes
//! and consensus.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use runkit::progress::Progress;
use runkit::signals::StopFlag;
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::pairs::{EmptyCaption, PairRow, caption_problem};

use super::Manifest;
use super::plan::{Plan, PlannedFile};
use super::scores::{Held, Scores};
use crate::vote::{Decider, MarginScale, TiePolicy, cast};

/// What the merge counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Rows of the labels file.
    pub rows: u64,
    /// Rows without a consensus.
    pub failed_rows: u64,
    /// Rows for which some scorers have no vote.
    pub partial_rows: u64,
    /// Rows with votes whose consensus is a tie.
    pub ties: u64,
}

/// How rows are decided: ties by the margins of all rows if the manifest asks for it.
fn decider(plan: &Plan, scores: &Scores, manifest: &Manifest) -> Decider {
    let scorers = manifest.voters.len();
    let mut scale = MarginScale::new(scorers, manifest.missing);
    if manifest.ties == TiePolicy::Margin {
        let (mut row, mut votes) = (vec![[None; 2]; scorers], vec![None; scorers]);
        for number in 0..plan.pairs() {
            row.fill([None; 2]);
            votes.fill(None);
            let mut has_scores = true;
            for position in [0, 1] {
                let found = scores.at(plan, 2 * number + position as u64);
                let Some(Held::Scores(found)) = found else {
                    has_scores = false;
                    continue;
                };
                for (scorer, row) in row.iter_mut().enumerate() {
                    row[position] = found.of(scorer).ok().filter(|_| !scores.compares(scorer));
                }
            }
            for (scorer, vote) in votes.iter_mut().enumerate() {
                if has_scores && scores.compares(scorer) {
                    *vote = scores.vote(number, scorer).ok();
                }
            }
            cast(&row, &mut votes);
            scale.add(&row, &votes);
        }
    }
    Decider::new(manifest.ties, &scale)
}

/// What a row of labels is made of.
pub(super) struct Merge<'run> {
    plan: &'run Plan,
    scores: &'run Scores,
    scorers: &'run [String],
    decider: Decider,
}

impl<'run> Merge<'run> {
    /// A merge of `scores`, which have no gaps.
    pub(super) fn new(plan: &'run Plan, scores: &'run Scores, manifest: &'run Manifest) -> Self {
        let decider = decider(plan, scores, manifest);
        Self { plan, scores, scorers: &manifest.voters, decider }
    }

    /// Writes the labels file at `out`.
    pub(super) fn write(
        &self,
        out: &Path,
        metadata: &BTreeMap<String, String>,
        stop: &StopFlag,
    ) -> Result<Summary> {
        let schema = LabelsSchema::new(self.scorers)?;
        let mut writer = LabelsWriter::create(out, &schema, metadata)?;
        let mut summary = Summary::default();
        let progress = Progress::new("merging", "pairs", self.plan.pairs());
        for file in &self.plan.files {
            let pairs = self.plan.open(file)?;
            let mut taken = 0;
            'file: for batch in pairs.plan_rows()? {
                stop.check()?;
                for row in batch? {
                    if taken == file.rows {
                        break 'file;
                    }
                    let label = self.label(file, taken, row);
                    summary.rows += 1;
                    summary.failed_rows += u64::from(label.consensus.is_none());
                    summary.partial_rows += u64::from(label.status == Status::Partial);
                    summary.ties += u64::from(label.consensus == Some(0));
                    writer.write(&label)?;
                    taken += 1;
                }
            }
            ensure!(
                taken == file.rows,
                "{}: fewer rows than planned could be read",
                file.input.path.display()
            );
            progress.add(taken);
        }
        writer.finish()?;
        progress.finish();
        Ok(summary)
    }

    fn label(&self, file: &PlannedFile, row: u64, pair: PairRow) -> LabelRow {
        let mut label = LabelRow {
            pair_id: self.plan.pair_id(file, row, pair.pair_id),
            source_file: file.input.source_file.clone(),
            source_row: row as i64,
            caption: pair.caption,
            image_uid: pair.image_uid,
            human_label_0: pair.human_label_0,
            scores: vec![[None; 2]; self.scorers.len()],
            votes: vec![None; self.scorers.len()],
            vote_sum: None,
            consensus: None,
            status: Status::Ok,
            error: None,
        };
        let slot = 2 * (file.first_row + row);
        let mut problem = caption_problem(label.caption.as_deref(), EmptyCaption::Refused);
        for position in [0, 1] {
            let found = match self.scores.at(self.plan, slot + position as u64) {
                None => continue,
                Some(Held::Scores(found)) => {
                    for (scorer, scores) in label.scores.iter_mut().enumerate() {
                        let score = found.of(scorer).ok();
                        scores[position] = score.filter(|_| !self.scores.compares(scorer));
                    }
                    continue;
                }
                Some(Held::Missing(why)) => {
                    (Status::MissingImage, why.unwrap_or("image is null or empty"))
                }
                Some(Held::Failure(status, error)) => (status, error),
                // The run fills all gaps before it merges.
                Some(Held::Gap) => (Status::DecodeError, "the image was not scored"),
            };
            problem.get_or_insert((found.0, format!("image_{position}: {}", found.1)));
        }
        if problem.is_none() {
            problem = self
                .failures(slot, &mut label.scores, &mut label.votes)
                .map(|error| (Status::Partial, error));
        }
        cast(&label.scores, &mut label.votes);
        let decision = self.decider.decide(&label.scores, &label.votes, label.human_label_0);
        if let Some((sum, consensus)) = decision {
            (label.vote_sum, label.consensus) = (Some(sum), Some(consensus));
        }
        if let Some((status, error)) = problem {
            (label.status, label.error) = (status, Some(error));
        }
        label
    }

    /// Which scorers failed at which image and why, in a sentence; `None` if none did. A scorer that
    /// failed at one of the images loses its score of the other, which decides nothing. Takes the
    /// votes of scorers that compare the images.
    fn failures(
        &self,
        slot: u64,
        scores: &mut [[Option<f32>; 2]],
        votes: &mut [Option<i8>],
    ) -> Option<String> {
        let mut sentences = Vec::new();
        for position in [0, 1] {
            let Some(Held::Scores(found)) = self.scores.at(self.plan, slot + position) else {
                continue;
            };
            for (scorer, (name, scores)) in self.scorers.iter().zip(&mut *scores).enumerate() {
                if !self.scores.compares(scorer)
                    && let Err(reason) = found.of(scorer)
                {
                    *scores = [None; 2];
                    sentences.push(format!("image_{position}: scorer `{name}` {reason}"));
                }
            }
        }
        for (scorer, (name, vote)) in self.scorers.iter().zip(votes).enumerate() {
            if self.scores.compares(scorer) {
                match self.scores.vote(slot / 2, scorer) {
                    Ok(found) => *vote = Some(found),
                    Err(reason) => sentences.push(format!("scorer `{name}` {reason}")),
                }
            }
        }
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }
}
