//! The votes of a labels file as the study of rules reads them: a few bytes a row.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::array::Array as _;
use schemas::labels::{LabelBatch, LabelsFile};
use sha2::{Digest as _, Sha256};

/// Rows are dealt into this many folds. What a rule learns of human labels it learns of the
/// other folds.
pub(super) const FOLDS: u64 = 5;

/// How large a vote without scores counts: as the median margin does.
const SIZE_WITHOUT_SCORES: f64 = 0.5;

/// The rows of a labels file with at least one vote.
pub(super) struct Ballots {
    /// The voters, in the order of the columns.
    pub(super) voters: Vec<String>,
    /// Rows of the file.
    pub(super) rows: u64,
    /// Votes, row by row: +1, −1, or 0 where a voter has none.
    votes: Vec<i8>,
    /// `score_0 − score_1` beside each vote; NaN where there are no scores.
    margins: Vec<f32>,
    /// What people prefer in each row.
    human: Vec<Human>,
    /// The fold of each row.
    folds: Vec<u8>,
}

/// What people prefer in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Human {
    /// Image 0 (+1) or image 1 (−1).
    Prefers(i8),
    /// Neither.
    Tie,
    /// Nobody was asked.
    Missing,
}

impl Ballots {
    /// Reads a labels file once.
    pub(super) fn read(labels: &Path) -> Result<Self> {
        let file = LabelsFile::open(labels)?;
        let mut ballots = Self::new(file.schema().scorers());
        for batch in file.batches()? {
            let reading = || format!("reading {}", locations::shown(labels).display());
            ballots.add(&batch.with_context(reading)?);
        }
        Ok(ballots)
    }

    fn new(voters: &[String]) -> Self {
        Self {
            voters: voters.to_vec(),
            rows: 0,
            votes: Vec::new(),
            margins: Vec::new(),
            human: Vec::new(),
            folds: Vec::new(),
        }
    }

    fn add(&mut self, batch: &LabelBatch) {
        let human_label_0 = batch.human_label_0();
        let mut votes = vec![0; self.voters.len()];
        for row in 0..batch.num_rows() {
            self.rows += 1;
            for (voter, vote) in votes.iter_mut().enumerate() {
                let column = batch.votes(voter);
                *vote = if column.is_valid(row) { column.value(row) } else { 0 };
            }
            if votes.iter().all(|vote| *vote == 0) {
                continue;
            }
            for voter in 0..votes.len() {
                let [first, second] = batch.scores(voter);
                let is_scored = first.is_valid(row) && second.is_valid(row);
                let margin = || first.value(row) - second.value(row);
                self.margins.push(if is_scored { margin() } else { f32::NAN });
            }
            self.votes.extend(&votes);
            self.human.push(match human_label_0.is_valid(row).then(|| human_label_0.value(row)) {
                None => Human::Missing,
                Some(label) if label > 0.5 => Human::Prefers(1),
                Some(label) if label < 0.5 => Human::Prefers(-1),
                Some(_) => Human::Tie,
            });
            let caption = batch.caption();
            let text = match caption.is_valid(row) {
                true => caption.value(row),
                false => batch.pair_id().value(row),
            };
            self.folds.push(fold(text));
        }
    }

    /// How many rows have a vote.
    pub(super) fn len(&self) -> usize {
        self.human.len()
    }

    /// The votes of a row, one for each voter.
    pub(super) fn votes(&self, row: usize) -> &[i8] {
        let voters = self.voters.len();
        self.votes.get(row * voters..(row + 1) * voters).unwrap_or_default()
    }

    pub(super) fn human(&self, row: usize) -> Human {
        self.human.get(row).copied().unwrap_or(Human::Missing)
    }

    pub(super) fn fold(&self, row: usize) -> usize {
        usize::from(self.folds.get(row).copied().unwrap_or(0))
    }

    /// How many rows have each pattern of votes.
    pub(super) fn patterns(&self) -> BTreeMap<&[i8], u64> {
        let mut patterns = BTreeMap::new();
        for row in 0..self.len() {
            *patterns.entry(self.votes(row)).or_default() += 1;
        }
        patterns
    }

    /// How large each margin is among all of its voter, beside the votes: the rank of its size over
    /// their number, above 0 up to 1 (equal sizes share their mean rank). 0 for equal scores, one
    /// half for a vote without scores.
    pub(super) fn sizes(&self) -> Vec<f64> {
        let voters = self.voters.len();
        let mut sizes = vec![SIZE_WITHOUT_SCORES; self.margins.len()];
        for voter in 0..voters {
            let of_voter = (voter..self.margins.len()).step_by(voters);
            let mut ordered: Vec<(f32, usize)> = of_voter
                .filter_map(|at| {
                    let margin = self.margins.get(at)?.abs();
                    (!margin.is_nan()).then_some((margin, at))
                })
                .collect();
            ordered.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let count = ordered.len() as f64;
            let mut before = 0;
            for equal in ordered.chunk_by(|a, b| a.0 == b.0) {
                // The mean of the ranks before + 1 … before + equal.len().
                let rank = before as f64 + (equal.len() as f64 + 1.0) / 2.0;
                before += equal.len();
                for (margin, at) in equal {
                    if let Some(size) = sizes.get_mut(*at) {
                        *size = if *margin == 0.0 { 0.0 } else { rank / count };
                    }
                }
            }
        }
        sizes
    }
}

/// The fold of a row by its caption's SHA-256: pairs of one caption are in the same one, whatever
/// their order.
fn fold(text: &str) -> u8 {
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(text).into();
    // Below FOLDS.
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % FOLDS) as u8
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Ballots of these votes, all with the same margins.
    pub(in crate::inspect::voting) fn ballots(rows: &[(&[i8], Human)]) -> Ballots {
        let voters = rows.first().map_or(0, |(votes, _)| votes.len());
        let names = ["clip", "hps", "pickscore", "aesthetic", "image_reward"];
        let mut ballots = Ballots::new(&names.map(str::to_owned)[..voters]);
        for (number, (votes, human)) in rows.iter().enumerate() {
            ballots.rows += 1;
            ballots.votes.extend(*votes);
            ballots.margins.extend(votes.iter().map(|vote| f32::from(*vote)));
            ballots.human.push(*human);
            ballots.folds.push(fold(&format!("caption {number}")));
        }
        ballots
    }

    #[test]
    fn sizes_are_mean_ranks_of_each_voter() {
        let rows: [(&[i8], Human); 4] = [(&[1, 1], Human::Missing); 4];
        let mut ballots = ballots(&rows);
        ballots.margins = vec![0.5, 9.0, -0.5, f32::NAN, 0.0, 8.0, 2.0, -7.0];
        let third = 1.0 / 3.0;
        let expected = [0.625, 1.0, 0.625, 0.5, 0.0, 2.0 * third, 1.0, third];
        for (size, expected) in ballots.sizes().into_iter().zip(expected) {
            assert!((size - expected).abs() < 1e-12, "{size} {expected}");
        }
    }

    #[test]
    fn folds_follow_from_the_caption() {
        assert_eq!(fold("a fox"), fold("a fox"));
        let mut counts = [0; FOLDS as usize];
        (0..1000).for_each(|number| counts[usize::from(fold(&number.to_string()))] += 1);
        assert!(counts.iter().all(|count| (150..250).contains(count)), "{counts:?}");
    }
}
