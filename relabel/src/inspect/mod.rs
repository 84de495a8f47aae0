//! What a labels file says about its scorers: how each votes, how much they agree with each other
//! and with human labels, how clear the margins are, what failed, and whether a scorer looks
//! broken. [`Voting`] compares rules that decide the same votes.

mod text;
mod voting;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::array::{Array as _, Int8Array};
use schemas::labels::{LabelBatch, LabelsFile, Status};
use serde::Serialize;

pub use self::voting::{DawidSkeneReport, Rate, RuleReport, VoterReport, Voting};
use crate::vote::Moments;

/// If the standard deviation of a scorer's scores is below this fraction of their mean magnitude,
/// it tells images apart by rounding alone.
const COLLAPSED_STD: f64 = 1e-4;
/// A larger fraction of exact ties means a constant or coarsely rounded scorer.
const COLLAPSED_TIES: f64 = 0.2;
/// A larger fraction of votes for one position means that the scorer looks at the position (or at
/// nothing): the images of a pair are in no particular order.
const ONE_SIDED: f64 = 0.95;
/// With fewer pairs than this nothing can be said about collapse.
const ENOUGH_PAIRS: u64 = 20;

/// The quantiles of margins that are reported.
const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// Everything `relabel inspect` prints. `--json` prints it field by field.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Rows of the file.
    pub rows: u64,
    /// Rows with votes.
    pub voted_rows: u64,
    /// Rows without.
    pub failed_rows: u64,
    /// Rows, voted on or not, for which some scorers failed and others did not.
    pub partial_rows: u64,
    /// How many rows failed, by reason.
    pub failures: BTreeMap<String, u64>,
    /// The consensus over the rows with votes.
    pub consensus: ConsensusReport,
    /// One entry per scorer, in column order.
    pub scorers: Vec<ScorerReport>,
    /// Fraction of the voted pairs on which two scorers vote alike, of those on which both vote; row
    /// and column in scorer order.
    pub agreement: Vec<Vec<f64>>,
    /// Cohen's kappa of the same.
    pub kappa: Vec<Vec<f64>>,
    /// Pairs of the voted rows with a human preference.
    pub human_pairs: u64,
    /// Pairs of the voted rows that a human labelled a tie.
    pub human_ties: u64,
    /// Pairs of the voted rows without a human label.
    pub human_missing: u64,
    /// What looks wrong, in sentences.
    pub warnings: Vec<String>,
}

/// The consensus over all rows with votes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConsensusReport {
    /// Rows decided for image 0.
    pub image_0: u64,
    /// Rows decided for image 1.
    pub image_1: u64,
    /// Rows left undecided.
    pub ties: u64,
    /// Rows whose votes summed to zero, however the tie was decided.
    pub vote_ties: u64,
    /// Rows on which all scorers agree that vote.
    pub unanimous: u64,
    /// Fraction of the decided rows with a human preference that agree with it.
    pub human_agreement: Option<f64>,
    /// The same over all rows with a human preference, an undecided one counting one half.
    pub human_agreement_ties_half: Option<f64>,
}

/// One scorer.
#[derive(Debug, Clone, Serialize)]
pub struct ScorerReport {
    /// Its name.
    pub name: String,
    /// The voted rows in which it votes.
    pub votes: u64,
    /// The partial rows in which it has no vote.
    pub failures: u64,
    /// Fraction of its votes for image 0.
    pub votes_image_0: f64,
    /// Mean of its scores.
    pub score_mean: f64,
    /// Standard deviation of its scores.
    pub score_std: f64,
    /// The 5 %, 25 %, 50 %, 75 % and 95 % quantiles of |score_0 − score_1|.
    pub margin_quantiles: [f64; 5],
    /// Pairs with exactly equal scores (votes for image 0 by Equation 6).
    pub exact_ties: u64,
    /// Fraction of the pairs with a human preference, of those on which it votes, on which it votes
    /// alike.
    pub human_agreement: Option<f64>,
}

/// Counts while batches stream by.
pub(crate) struct Counting {
    names: Vec<String>,
    report: Report,
    scores: Vec<Moments>,
    margins: Vec<Vec<f32>>,
    image_0: Vec<u64>,
    failed: Vec<u64>,
    ties: Vec<u64>,
    /// For each two scorers the rows on which both vote, on which the first of them then votes for
    /// image 0, and on which they vote alike.
    both: Vec<Vec<u64>>,
    image_0_of_both: Vec<Vec<u64>>,
    alike: Vec<Vec<u64>>,
    human_pairs: Vec<u64>,
    human_alike: Vec<u64>,
    consensus_alike: u64,
    consensus_decided: u64,
}

impl Report {
    /// Reads `labels` once, batch by batch.
    ///
    /// # Errors
    /// A file that is not a labels file, or is damaged.
    pub fn of(labels: &Path) -> Result<Self> {
        let file = LabelsFile::open(labels)?;
        let mut counting = Counting::new(file.schema().scorers());
        for batch in file.batches()? {
            counting.add(
                &batch
                    .with_context(|| format!("reading {}", locations::shown(labels).display()))?,
            );
        }
        Ok(counting.finish())
    }
}

impl Counting {
    pub(crate) fn new(scorers: &[String]) -> Self {
        let count = scorers.len();
        Self {
            names: scorers.to_vec(),
            report: Report {
                rows: 0,
                voted_rows: 0,
                failed_rows: 0,
                partial_rows: 0,
                failures: BTreeMap::new(),
                consensus: ConsensusReport::default(),
                scorers: Vec::new(),
                agreement: vec![vec![0.0; count]; count],
                kappa: vec![vec![0.0; count]; count],
                human_pairs: 0,
                human_ties: 0,
                human_missing: 0,
                warnings: Vec::new(),
            },
            scores: vec![Moments::default(); count],
            margins: vec![Vec::new(); count],
            image_0: vec![0; count],
            failed: vec![0; count],
            ties: vec![0; count],
            both: vec![vec![0; count]; count],
            image_0_of_both: vec![vec![0; count]; count],
            alike: vec![vec![0; count]; count],
            human_pairs: vec![0; count],
            human_alike: vec![0; count],
            consensus_alike: 0,
            consensus_decided: 0,
        }
    }

    pub(crate) fn add(&mut self, batch: &LabelBatch) {
        let mut votes = vec![None; self.names.len()];
        for row in 0..batch.num_rows() {
            self.report.rows += 1;
            let value = |column: &Int8Array| column.is_valid(row).then(|| column.value(row));
            for (scorer, vote) in votes.iter_mut().enumerate() {
                *vote = value(batch.votes(scorer));
            }
            let status = batch.status().value(row);
            if status == Status::Partial.as_str() {
                self.report.partial_rows += 1;
                for (failed, vote) in self.failed.iter_mut().zip(&votes) {
                    *failed += u64::from(vote.is_none());
                }
            }
            let (Some(sum), Some(consensus)) = (value(batch.vote_sum()), value(batch.consensus()))
            else {
                self.report.failed_rows += 1;
                *self.report.failures.entry(status.to_owned()).or_default() += 1;
                continue;
            };
            self.report.voted_rows += 1;
            for (scorer, vote) in votes.iter().enumerate() {
                let Some(vote) = *vote else { continue };
                self.image_0[scorer] += u64::from(vote > 0);
                for (other, voted) in votes.iter().enumerate() {
                    let Some(other_vote) = *voted else { continue };
                    self.both[scorer][other] += 1;
                    self.image_0_of_both[scorer][other] += u64::from(vote > 0);
                    self.alike[scorer][other] += u64::from(vote == other_vote);
                }
                let [first, second] = batch.scores(scorer);
                if first.is_null(row) || second.is_null(row) {
                    continue;
                }
                let (first, second) = (first.value(row), second.value(row));
                self.scores[scorer].add(f64::from(first));
                self.scores[scorer].add(f64::from(second));
                self.margins[scorer].push((first - second).abs());
                self.ties[scorer] += u64::from(first == second);
            }
            let human = batch.human_label_0();
            let human = human.is_valid(row).then(|| human.value(row));
            self.add_consensus(sum, consensus, &votes, human);
        }
    }

    fn add_consensus(&mut self, sum: i8, consensus: i8, votes: &[Option<i8>], human: Option<f64>) {
        let report = &mut self.report.consensus;
        report.image_0 += u64::from(consensus > 0);
        report.image_1 += u64::from(consensus < 0);
        report.ties += u64::from(consensus == 0);
        report.vote_ties += u64::from(sum == 0);
        let voters = votes.iter().flatten().count();
        report.unanimous += u64::from(usize::from(sum.unsigned_abs()) == voters);
        let human = match human {
            Some(label) if label > 0.5 => 1,
            Some(label) if label < 0.5 => -1,
            Some(_) => {
                self.report.human_ties += 1;
                return;
            }
            None => {
                self.report.human_missing += 1;
                return;
            }
        };
        self.report.human_pairs += 1;
        let counts = self.human_pairs.iter_mut().zip(&mut self.human_alike);
        for ((pairs, alike), vote) in counts.zip(votes) {
            *pairs += u64::from(vote.is_some());
            *alike += u64::from(*vote == Some(human));
        }
        self.consensus_decided += u64::from(consensus != 0);
        self.consensus_alike += u64::from(consensus == human);
    }

    pub(crate) fn finish(mut self) -> Report {
        let fraction = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        for scorer in 0..self.names.len() {
            for other in 0..self.names.len() {
                let both = self.both[scorer][other];
                let agreement = fraction(self.alike[scorer][other], both).unwrap_or(0.0);
                let one = fraction(self.image_0_of_both[scorer][other], both);
                let two = fraction(self.image_0_of_both[other][scorer], both);
                self.report.agreement[scorer][other] = agreement;
                self.report.kappa[scorer][other] =
                    kappa(agreement, one.unwrap_or(0.0), two.unwrap_or(0.0));
            }
            let votes = self.both[scorer][scorer];
            let scored = self.margins[scorer].len() as u64;
            let scorer = ScorerReport {
                name: self.names[scorer].clone(),
                votes,
                failures: self.failed[scorer],
                votes_image_0: fraction(self.image_0[scorer], votes).unwrap_or(0.0),
                score_mean: self.scores[scorer].mean(),
                score_std: self.scores[scorer].std(),
                margin_quantiles: quantiles(&mut self.margins[scorer]),
                exact_ties: self.ties[scorer],
                human_agreement: fraction(self.human_alike[scorer], self.human_pairs[scorer]),
            };
            self.report.warnings.extend(warning(&scorer, scored));
            self.report.scorers.push(scorer);
        }
        let undecided = self.report.human_pairs - self.consensus_decided;
        let consensus = &mut self.report.consensus;
        consensus.human_agreement = fraction(self.consensus_alike, self.consensus_decided);
        consensus.human_agreement_ties_half =
            fraction(2 * self.consensus_alike + undecided, 2 * self.report.human_pairs);
        self.report
    }
}

/// Cohen's kappa of two voters: agreement beyond chance, from their agreement and the fraction of
/// the votes of each for image 0. 1 if both always vote alike, even when chance alone explains it.
fn kappa(agreement: f64, one: f64, other: f64) -> f64 {
    let chance = one * other + (1.0 - one) * (1.0 - other);
    if chance >= 1.0 { 1.0 } else { (agreement - chance) / (1.0 - chance) }
}

/// Exact quantiles by the nearest rank; zeros if there is no value.
fn quantiles(values: &mut [f32]) -> [f64; 5] {
    values.sort_unstable_by(f32::total_cmp);
    QUANTILES.map(|quantile| {
        let rank = (quantile * (values.len() as f64 - 1.0)).round().max(0.0) as usize;
        values.get(rank).copied().map_or(0.0, f64::from)
    })
}

/// What looks wrong with a scorer, if something does: `voted` are the pairs that it scored.
fn warning(scorer: &ScorerReport, voted: u64) -> Option<String> {
    if voted < ENOUGH_PAIRS {
        return None;
    }
    let name = &scorer.name;
    let ties = scorer.exact_ties as f64 / voted as f64;
    let magnitude = scorer.score_mean.abs().max(f64::MIN_POSITIVE);
    if scorer.score_std < COLLAPSED_STD * magnitude {
        return Some(format!(
            "{name}: the scores hardly differ (standard deviation {:.1e} around {:.4}); its votes are rounding \
             noise. Is this the right checkpoint, layout and preprocessing?",
            scorer.score_std, scorer.score_mean
        ));
    }
    if ties > COLLAPSED_TIES {
        return Some(format!(
            "{name}: {:.0} % of the pairs have exactly equal scores, which count as votes for image 0. \
             Were the scores rounded?",
            100.0 * ties
        ));
    }
    if scorer.votes_image_0 > ONE_SIDED || scorer.votes_image_0 < 1.0 - ONE_SIDED {
        return Some(format!(
            "{name}: {:.0} % of its votes go to image 0; the images of a pair should be in no particular order",
            100.0 * scorer.votes_image_0
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_of_known_tables() {
        // Cohen 1960's kind of table: 70 % agreement with rates 0.6 and 0.7 → chance 0.54.
        assert!((kappa(0.7, 0.6, 0.7) - (0.7 - 0.54) / 0.46).abs() < 1e-12);
        assert_eq!(kappa(0.5, 0.5, 0.5), 0.0);
        assert_eq!(kappa(1.0, 0.5, 0.5), 1.0);
        assert_eq!(kappa(0.0, 0.5, 0.5), -1.0);
        assert_eq!(kappa(1.0, 1.0, 1.0), 1.0);
    }

    #[test]
    fn quantiles_are_values_that_occur() {
        let mut values: Vec<f32> = (0..=100u8).rev().map(f32::from).collect();
        assert_eq!(quantiles(&mut values), [5.0, 25.0, 50.0, 75.0, 95.0]);
        assert_eq!(quantiles(&mut [3.0]), [3.0; 5]);
        assert_eq!(quantiles(&mut []), [0.0; 5]);
    }

    fn scorer() -> ScorerReport {
        ScorerReport {
            name: "clip".to_owned(),
            votes: 1000,
            failures: 0,
            votes_image_0: 0.5,
            score_mean: 0.25,
            score_std: 0.05,
            margin_quantiles: [0.0; 5],
            exact_ties: 0,
            human_agreement: None,
        }
    }

    #[test]
    fn a_collapsed_or_one_sided_scorer_is_named() {
        assert_eq!(warning(&scorer(), 1000), None);
        let flat = ScorerReport { score_std: 1e-6, ..scorer() };
        assert!(warning(&flat, 1000).is_some_and(|text| text.contains("hardly differ")));
        assert_eq!(warning(&flat, 5), None);
        let rounded = ScorerReport { exact_ties: 300, ..scorer() };
        assert!(warning(&rounded, 1000).is_some_and(|text| text.contains("exactly equal")));
        let one_sided = ScorerReport { votes_image_0: 0.01, ..scorer() };
        assert!(warning(&one_sided, 1000).is_some_and(|text| text.contains("no particular order")));
    }
}
