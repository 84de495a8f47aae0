//! All parts into the one labels file: every input row once, in input order, with its scores, votes
//! and consensus.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use runkit::progress::Progress;
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::pairs::{PairFile, PairRow, positional_pair_id};

use super::part::{self, PartRow};
use super::plan::{NONE, Plan, PlannedFile, caption_problem};
use crate::vote::{Moments, TiePolicy, vote};

/// What the merge counted, for the summary and the exit code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Rows of the labels file.
    pub rows: u64,
    /// Rows without votes.
    pub failed_rows: u64,
    /// Rows with votes whose consensus is a tie.
    pub ties: u64,
}

/// What became of every combination, and which bytes each image has.
struct Scores {
    scorers: usize,
    /// `scorers` numbers per combination; NaN where it has none.
    values: Vec<f32>,
    failures: HashMap<u32, (Status, String)>,
    /// Checksum of each image's bytes at its owner's place; null when there are none.
    content: Vec<Option<u64>>,
    /// Slots whose bytes differ from those at the owner's place.
    conflicts: HashMap<u64, String>,
}

/// Writes the labels file at `out` from the parts in `folder`.
pub(crate) fn merge(
    plan: &Plan,
    scorers: &[String],
    ties: TiePolicy,
    metadata: &BTreeMap<String, String>,
    folder: &Path,
    out: &Path,
) -> Result<Summary> {
    let scores = Scores::read(plan, scorers, folder)?;
    let scale = match ties {
        TiePolicy::Margin => scores.margin_scale(plan),
        _ => vec![1.0; scorers.len()],
    };
    let schema = LabelsSchema::new(scorers)?;
    let mut writer = LabelsWriter::create(out, &schema, metadata)?;
    let mut summary = Summary::default();
    let progress = Progress::new("merging", "pairs", plan.pairs());
    for file in &plan.files {
        let pairs = PairFile::open_without_images(&file.input)?;
        ensure!(
            pairs.fingerprint() == file.fingerprint,
            "{}: the file has changed since the run was planned; hint: run the same command again",
            file.input.path.display()
        );
        let mut taken = 0;
        'file: for batch in pairs.plan_rows()? {
            for row in batch? {
                if taken == file.rows {
                    break 'file;
                }
                let label = scores.label(plan, file, taken, row, ties, &scale);
                summary.rows += 1;
                summary.failed_rows += u64::from(label.status != Status::Ok);
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

impl Scores {
    fn read(plan: &Plan, scorers: &[String], folder: &Path) -> Result<Self> {
        let mut scores = Self {
            scorers: scorers.len(),
            values: vec![f32::NAN; plan.combinations.len() * scorers.len()],
            failures: HashMap::new(),
            content: vec![None; plan.owner_slot.len()],
            conflicts: HashMap::new(),
        };
        for (index, file) in plan.files.iter().enumerate() {
            let path = part::path(folder, index, plan.files.len());
            part::read(&path, scorers, |row| scores.take(plan, file, row))
                .with_context(|| format!("merging {}", path.display()))?;
        }
        Ok(scores)
    }

    /// Owners stand first in the input, so a part's row about an image always comes after its owner's.
    fn take(&mut self, plan: &Plan, file: &PlannedFile, row: PartRow) -> Result<()> {
        const FOREIGN: &str = "a row does not belong to this run; hint: remove the part and run the same command again";
        let slot = 2 * file.first_row + row.slot;
        let combination = match row.combination {
            Some(combination) => combination,
            None => {
                let row = plan.rows.get(usize::try_from(slot / 2)?).context(FOREIGN)?;
                row[usize::from(slot % 2 == 1)]
            }
        };
        let image = plan.combinations.get(combination as usize).context(FOREIGN)?.image as usize;
        if row.combination.is_none() {
            if self.content[image] != row.content {
                self.conflicts.insert(slot, conflict(plan, image, row.content));
            }
            return Ok(());
        }
        self.content[image] = row.content;
        if row.status == Status::Ok {
            ensure!(row.scores.len() == self.scorers, FOREIGN);
            let start = combination as usize * self.scorers;
            self.values[start..start + self.scorers].copy_from_slice(&row.scores);
        } else {
            self.failures.insert(combination, (row.status, row.error.unwrap_or_default()));
        }
        Ok(())
    }

    fn of(&self, combination: u32) -> &[f32] {
        let start = combination as usize * self.scorers;
        &self.values[start..start + self.scorers]
    }

    /// Why a slot cannot be voted on, if so.
    fn problem(&self, slot: u64, combination: u32) -> Option<(Status, String)> {
        if let Some(conflict) = self.conflicts.get(&slot) {
            return Some((Status::UidConflict, conflict.clone()));
        }
        self.failures.get(&combination).cloned()
    }

    fn label(
        &self,
        plan: &Plan,
        file: &PlannedFile,
        row: u64,
        pair: PairRow,
        ties: TiePolicy,
        scale: &[f64],
    ) -> LabelRow {
        let global = file.first_row + row;
        let combinations = plan.rows[global as usize];
        let mut label = LabelRow {
            pair_id: if plan.renamed.contains(&global) {
                positional_pair_id(&file.input.source_file, pair.row)
            } else {
                pair.pair_id
            },
            source_file: file.input.source_file.clone(),
            source_row: row as i64,
            caption: pair.caption,
            image_uid: pair.image_uid,
            human_label_0: pair.human_label_0,
            scores: vec![[None; 2]; self.scorers],
            votes: vec![None; self.scorers],
            vote_sum: None,
            consensus: None,
            status: Status::Ok,
            error: None,
        };
        let mut problem = caption_problem(label.caption.as_deref());
        for position in [0, 1] {
            let (slot, combination) = (2 * global + position as u64, combinations[position]);
            if combination == NONE {
                continue;
            }
            match self.problem(slot, combination) {
                Some((status, error)) => {
                    problem.get_or_insert((status, format!("image_{position}: {error}")));
                }
                None => {
                    for (scores, &value) in label.scores.iter_mut().zip(self.of(combination)) {
                        scores[position] = Some(value);
                    }
                }
            }
        }
        if let Some((status, error)) = problem {
            label.status = status;
            label.error = Some(error);
            return label;
        }
        let (mut sum, mut margin) = (0, 0.0);
        for (index, scores) in label.scores.iter().enumerate() {
            if let [Some(first), Some(second)] = *scores {
                let vote = vote(first, second);
                label.votes[index] = Some(vote);
                sum += vote;
                margin += (f64::from(first) - f64::from(second)) / scale[index];
            }
        }
        label.vote_sum = Some(sum);
        label.consensus = Some(ties.decide(sum, label.human_label_0, margin));
        label
    }

    /// The standard deviation of each scorer's margins over the pairs that have votes.
    fn margin_scale(&self, plan: &Plan) -> Vec<f64> {
        let mut moments = vec![Moments::default(); self.scorers];
        for (row, &[first, second]) in plan.rows.iter().enumerate() {
            let slot = 2 * row as u64;
            if first == NONE
                || self.problem(slot, first).is_some()
                || self.problem(slot + 1, second).is_some()
            {
                continue;
            }
            for ((moments, first), second) in
                moments.iter_mut().zip(self.of(first)).zip(self.of(second))
            {
                moments.add(f64::from(*first) - f64::from(*second));
            }
        }
        moments.iter().map(|moments| moments.standard_deviation().max(f64::MIN_POSITIVE)).collect()
    }
}

fn conflict(plan: &Plan, image: usize, content: Option<u64>) -> String {
    let owner = plan.owner_slot[image];
    let file = plan.files.partition_point(|file| file.first_row <= owner / 2).saturating_sub(1);
    let file = &plan.files[file];
    let place = format!("{} row {}", file.input.source_file, owner / 2 - file.first_row);
    match content {
        None => format!("image is null here, but its uid names an image at {place}"),
        Some(_) => format!("the same uid names other bytes at {place}"),
    }
}
