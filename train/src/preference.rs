//! Maps a row of labels to the loss targets of a pair: the probability that image 0 is the chosen
//! (preferred) one, and the weight of the pair.
//!
//! Images stay in dataset order, so one loss serves every labelling ([`crate::loss`]), and latents,
//! noise and timesteps never depend on the labels.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use schemas::labels::{LabelRow, LabelsError, LabelsFile, Status};
use serde::{Deserialize, Serialize};

use crate::randomness::Choice;

/// What decides which image of a pair is the chosen one and which the rejected one.
#[doc(alias = "chosen")]
#[doc(alias = "rejected")]
#[doc(alias = "aggregation")]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Preference {
    /// The majority of the scorers: the labels' `consensus` (Equation 7).
    #[default]
    Consensus,
    /// The human label, `human_label_0`, as in Diffusion-DPO. A human tie (one half) stays one
    /// half.
    Human,
    /// One scorer's vote (Equation 6).
    Scorer(String),
    /// One scorer's vote; the scorer is sampled anew for every optimizer step.
    RandomScorer,
    /// One loss per scorer, summed (Equation 10): the fraction of votes for image 0.
    Vanilla,
    /// The image with the higher sum of raw scores.
    ScoreSum,
    /// The image with the higher sum of scores, after each scorer's scores are divided by their
    /// standard deviation over all scored images.
    NormalizedSum,
    /// The vote of all scorers, where they agree; other pairs are dropped.
    Unanimous,
    /// The majority of the scorers, the pair weighted by the majority's fraction of the votes.
    Margin,
}

const PREFERENCES: &str = "consensus, human, scorer:NAME, random-scorer, vanilla, score-sum, \
                           normalized-sum, unanimous or margin";

impl Preference {
    /// Whether weights of voters change it.
    pub fn has_weights(&self) -> bool {
        !matches!(self, Self::Human | Self::Scorer(_) | Self::RandomScorer)
    }
}

impl FromStr for Preference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "consensus" => Ok(Self::Consensus),
            "human" => Ok(Self::Human),
            "random-scorer" => Ok(Self::RandomScorer),
            "vanilla" => Ok(Self::Vanilla),
            "score-sum" => Ok(Self::ScoreSum),
            "normalized-sum" => Ok(Self::NormalizedSum),
            "unanimous" => Ok(Self::Unanimous),
            "margin" => Ok(Self::Margin),
            _ => text
                .strip_prefix("scorer:")
                .filter(|name| !name.is_empty())
                .map(|name| Self::Scorer(name.to_owned()))
                .ok_or_else(|| format!("expected {PREFERENCES}, found {text:?}")),
        }
    }
}

impl fmt::Display for Preference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Consensus => "consensus",
            Self::Human => "human",
            Self::Scorer(name) => return write!(formatter, "scorer:{name}"),
            Self::RandomScorer => "random-scorer",
            Self::Vanilla => "vanilla",
            Self::ScoreSum => "score-sum",
            Self::NormalizedSum => "normalized-sum",
            Self::Unanimous => "unanimous",
            Self::Margin => "margin",
        })
    }
}

impl TryFrom<String> for Preference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Preference> for String {
    fn from(preference: Preference) -> Self {
        preference.to_string()
    }
}

/// What to do with a pair whose votes are evenly split or whose sums are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// Drop the pair: it has no gradient and no position in a batch.
    #[default]
    Drop,
    /// Use the human label; drop the pair if it has none.
    Human,
    /// Choose image 0.
    First,
    /// Choose image 1: the paper's "-1 otherwise".
    Second,
    /// Choose neither: a probability of one half.
    Half,
}

/// The value of `--ties`.
impl fmt::Display for Ties {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Drop => "drop",
            Self::Human => "human",
            Self::First => "first",
            Self::Second => "second",
            Self::Half => "half",
        })
    }
}

/// The value of `--voter-weights`: the weight of each voter by name, as `clip=1,hps=2`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VoterWeights(BTreeMap<String, f64>);

impl VoterWeights {
    /// The weight of a voter: 1 if none is given.
    pub fn of(&self, voter: &str) -> f64 {
        self.0.get(voter).copied().unwrap_or(1.0)
    }

    /// Whether all weights are 1, which changes nothing.
    pub fn are_equal(&self) -> bool {
        self.0.values().all(|weight| *weight == 1.0)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromStr for VoterWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let weight = part.split_once('=').and_then(|(name, number)| {
                let number: f64 = number.trim().parse().ok()?;
                let name = name.trim();
                (!name.is_empty() && (0.0..f64::INFINITY).contains(&number))
                    .then(|| (name.to_owned(), number))
            });
            let (name, weight) = weight.ok_or_else(|| {
                format!("expected NAME=WEIGHT with a weight of 0 or more, found {part:?}")
            })?;
            if weights.insert(name.clone(), weight).is_some() {
                return Err(format!("expected one weight for each voter, found two for {name:?}"));
            }
        }
        Ok(Self(weights))
    }
}

impl fmt::Display for VoterWeights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.0.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
        formatter.write_str(&parts.join(","))
    }
}

impl TryFrom<String> for VoterWeights {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<VoterWeights> for String {
    fn from(weights: VoterWeights) -> Self {
        weights.to_string()
    }
}

/// The votes for image 0 and for image 1, each with its voter's weight.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tally {
    votes: [f64; 2],
}

impl Tally {
    /// The difference below which votes are even, beside their sum: 0.1 + 0.2 is not 0.3.
    const EVEN: f64 = 1e-9;

    fn all(self) -> f64 {
        self.votes[0] + self.votes[1]
    }

    /// 1 for image 0, −1 for image 1, 0 if the votes are even.
    fn sign(self) -> f64 {
        let difference = self.votes[0] - self.votes[1];
        if difference.abs() <= Self::EVEN * self.all() { 0.0 } else { difference.signum() }
    }

    /// The majority's fraction of the votes, one half to one.
    fn majority(self) -> f64 {
        self.votes[0].max(self.votes[1]) / self.all()
    }
}

/// The loss target of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PreferenceTarget {
    /// The same target at every step.
    Fixed {
        /// The probability that image 0 is the chosen one, 0 to 1.
        probability: f32,
        /// The pair's weight in the batch's mean, above 0.
        weight: f32,
    },
    /// The vote of the scorer that is sampled for the step.
    ByScorer {
        /// One bit per scorer, the first scorer's the lowest: set if it prefers image 0.
        votes: u128,
    },
}

impl PreferenceTarget {
    /// Probability and weight at an optimizer step. [`scorer_of_step`] samples `scorer`.
    pub fn at(self, scorer: usize) -> (f32, f32) {
        match self {
            Self::Fixed { probability, weight } => (probability, weight),
            Self::ByScorer { votes } => {
                let first = votes.checked_shr(u32::try_from(scorer).unwrap_or(u32::MAX));
                (if first.unwrap_or(0) & 1 == 1 { 1.0 } else { 0.0 }, 1.0)
            }
        }
    }
}

/// A pair's label, as a dataset keeps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLabel {
    /// The loss target.
    pub target: PreferenceTarget,
    /// Whether `--skip-pairs` gives the pair no weight.
    pub is_skipped: bool,
}

impl PreferenceTarget {
    /// The mean target over all of `scorers`, for a batch without an optimizer step.
    #[must_use]
    pub fn mean(self, scorers: usize) -> Self {
        match self {
            Self::Fixed { .. } => self,
            Self::ByScorer { votes } => Self::Fixed {
                probability: votes.count_ones() as f32 / scorers.max(1) as f32,
                weight: 1.0,
            },
        }
    }
}

/// The index of the scorer that decides at an optimizer step (from 1), out of `scorers`: a function
/// of seed and step.
pub fn scorer_of_step(seed: u64, step: u64, scorers: usize) -> usize {
    let count = u64::try_from(scorers).unwrap_or(u64::MAX);
    usize::try_from(Choice::Scorer.below(seed, step, count)).unwrap_or(0)
}

/// The labels file does not support a preference.
#[derive(Debug, thiserror::Error)]
pub enum PreferenceError {
    /// The labels hold no votes of that scorer.
    #[error("{}: expected votes of the scorer {name:?}, found those of {found}; hint: --preference scorer:NAME with one of these", path.display())]
    UnknownScorer {
        /// The labels file.
        path: std::path::PathBuf,
        /// The scorer asked for.
        name: String,
        /// The scorers of the file.
        found: String,
    },
    /// Scores that are all equal cannot be normalised.
    #[error("{}: the scores of {name:?} are all equal, so their standard deviation is 0; hint: --preference score-sum", path.display())]
    ZeroStd {
        /// The labels file.
        path: std::path::PathBuf,
        /// The scorer.
        name: String,
    },
    /// A weight is that of a voter that the labels do not have.
    #[error("{}: --voter-weights names {name:?}, and the labels have votes of {found}; hint: one of these names", path.display())]
    UnknownVoter {
        /// The labels file.
        path: std::path::PathBuf,
        /// The voter.
        name: String,
        /// The scorers of the file.
        found: String,
    },
    /// No voter counts.
    #[error("{}: --voter-weights leaves no voter of {found}; hint: a weight above 0", path.display())]
    NoVoter {
        /// The labels file.
        path: std::path::PathBuf,
        /// The scorers of the file.
        found: String,
    },
    /// The process was asked to stop.
    #[error("{0}")]
    Stopped(#[source] runkit::signals::Stopped),
    /// The labels cannot be read.
    #[error(transparent)]
    Labels(#[from] LabelsError),
}

/// Maps rows of labels to loss targets.
#[derive(Debug, Clone)]
pub struct Labeler {
    preference: Preference,
    ties: Ties,
    drop_human_ties: bool,
    scorers: Vec<String>,
    /// The index of the scorer that decides, for [`Preference::Scorer`].
    scorer: usize,
    /// The factor of each scorer's difference in a sum.
    factors: Vec<f64>,
    /// The weight of each scorer's vote, if they are not equal.
    weights: Option<Vec<f64>>,
}

impl Labeler {
    /// Makes a labeler for a labels file. For [`Preference::NormalizedSum`] this reads all scores
    /// once.
    ///
    /// `drop_human_ties` drops the pairs whose human label is one half, whatever the preference, as
    /// the published code of Diffusion-DPO does.
    ///
    /// # Errors
    /// If the file has no such scorer, a normalised sum meets a scorer whose scores are all equal,
    /// or the file cannot be read.
    pub fn new(
        labels: &LabelsFile,
        preference: &Preference,
        ties: Ties,
        drop_human_ties: bool,
    ) -> Result<Self, PreferenceError> {
        let scorers = labels.schema().scorers().to_vec();
        let scorer = match preference {
            Preference::Scorer(name) => scorers
                .iter()
                .position(|scorer| scorer == name)
                .ok_or_else(|| PreferenceError::UnknownScorer {
                    path: labels.path().to_owned(),
                    name: name.clone(),
                    found: runkit::text::choices(&scorers),
                })?,
            _ => 0,
        };
        let factors = match preference {
            Preference::NormalizedSum => inverse_stds(labels)?,
            _ => vec![1.0; scorers.len()],
        };
        let preference = preference.clone();
        Ok(Self { preference, ties, drop_human_ties, scorers, scorer, factors, weights: None })
    }

    /// Weighs the votes, or in a sum the scores, of each scorer of `labels`.
    ///
    /// # Errors
    /// If a weight is that of another scorer, or no scorer counts.
    pub fn weighted(
        mut self,
        labels: &LabelsFile,
        weights: &VoterWeights,
    ) -> Result<Self, PreferenceError> {
        let found = || runkit::text::choices(&self.scorers);
        if let Some(name) = weights.names().find(|name| !self.scorers.iter().any(|one| one == name))
        {
            let path = labels.path().to_owned();
            return Err(PreferenceError::UnknownVoter {
                path,
                name: name.to_owned(),
                found: found(),
            });
        }
        let list: Vec<f64> = self.scorers.iter().map(|name| weights.of(name)).collect();
        if list.iter().all(|weight| *weight == 0.0) {
            let path = labels.path().to_owned();
            return Err(PreferenceError::NoVoter { path, found: found() });
        }
        for (factor, weight) in self.factors.iter_mut().zip(&list) {
            *factor *= weight;
        }
        self.weights = Some(list);
        Ok(self)
    }

    /// The scorers of the labels, in the order of [`PreferenceTarget::ByScorer`]'s bits.
    pub fn scorers(&self) -> &[String] {
        &self.scorers
    }

    /// The factor of each scorer's difference: 1/std for [`Preference::NormalizedSum`], else 1.
    pub fn factors(&self) -> &[f64] {
        &self.factors
    }

    /// Whether a row is a tie under this preference: evenly split votes, equal sums, or a human
    /// label of one half. One scorer's votes are never a tie.
    pub fn is_tie(&self, row: &LabelRow) -> bool {
        match &self.preference {
            Preference::Human => row.human_label_0 == Some(0.5),
            Preference::Vanilla => self.tally(row).is_some_and(|tally| tally.sign() == 0.0),
            _ => self.sign(row) == Some(0.0),
        }
    }

    /// The weighted votes for each image; `None` if a vote that counts is missing.
    fn tally(&self, row: &LabelRow) -> Option<Tally> {
        let mut tally = Tally { votes: [0.0; 2] };
        for (index, vote) in row.votes.iter().enumerate() {
            let weight = match &self.weights {
                None => 1.0,
                Some(weights) => weights.get(index).copied()?,
            };
            if weight > 0.0 {
                tally.votes[usize::from((*vote)? < 0)] += weight;
            }
        }
        (tally.all() > 0.0).then_some(tally)
    }

    /// Whether [`Ties`] applies to a preference. Ties of human labels and of the fraction of votes
    /// stay one half.
    pub fn has_tie_policy(preference: &Preference) -> bool {
        !matches!(
            preference,
            Preference::Human
                | Preference::Vanilla
                | Preference::RandomScorer
                | Preference::Unanimous
        )
    }

    /// Which image the votes or scores favour: above zero image 0, zero for a tie. `None` if the
    /// preference does not use them or they are missing.
    fn sign(&self, row: &LabelRow) -> Option<f64> {
        match &self.preference {
            Preference::Consensus => match &self.weights {
                None => Some(f64::from(row.consensus?)),
                Some(_) => Some(self.tally(row)?.sign()),
            },
            Preference::Margin => Some(self.tally(row)?.sign()),
            // Zero stands for voters that do not agree.
            Preference::Unanimous => Some(match self.tally(row)?.votes {
                [_, 0.0] => 1.0,
                [0.0, _] => -1.0,
                _ => 0.0,
            }),
            Preference::Scorer(_) => Some(f64::from((*row.votes.get(self.scorer)?)?)),
            Preference::ScoreSum | Preference::NormalizedSum => {
                let mut sum = 0.0;
                for (scores, factor) in row.scores.iter().zip(&self.factors) {
                    let [first, second] = *scores;
                    sum += (f64::from(first?) - f64::from(second?)) * factor;
                }
                Some(sum)
            }
            Preference::Human | Preference::RandomScorer | Preference::Vanilla => None,
        }
    }

    /// The target of a row; `None` if the row is dropped.
    pub fn target(&self, row: &LabelRow) -> Option<PreferenceTarget> {
        if row.status != Status::Ok {
            return None;
        }
        let human = row.human_label_0.filter(|label| (0.0..=1.0).contains(label));
        if self.drop_human_ties && human == Some(0.5) {
            return None;
        }
        let weight = match &self.preference {
            Preference::Margin => self.tally(row)?.majority(),
            _ => 1.0,
        };
        let fixed = |probability: f64| PreferenceTarget::Fixed {
            // A label is 0, ½ or 1, or a fraction of few votes: f32 is enough.
            probability: probability as f32,
            weight: weight as f32,
        };
        let by_sign = |sign: f64| {
            if sign == 0.0 {
                let probability = match self.ties {
                    Ties::Drop => None,
                    Ties::Human => human,
                    Ties::First => Some(1.0),
                    Ties::Second => Some(0.0),
                    Ties::Half => Some(0.5),
                };
                probability.map(fixed)
            } else {
                Some(fixed(if sign > 0.0 { 1.0 } else { 0.0 }))
            }
        };
        match &self.preference {
            Preference::Human => human.map(fixed),
            Preference::RandomScorer => {
                let mut votes = 0;
                for (index, vote) in row.votes.iter().enumerate() {
                    votes |= u128::from((*vote)? > 0) << index;
                }
                Some(PreferenceTarget::ByScorer { votes })
            }
            Preference::Vanilla => {
                let tally = self.tally(row)?;
                Some(fixed(tally.votes[0] / tally.all()))
            }
            Preference::Unanimous => match self.sign(row)? {
                0.0 => None,
                sign => by_sign(sign),
            },
            Preference::Consensus
            | Preference::Margin
            | Preference::Scorer(_)
            | Preference::ScoreSum
            | Preference::NormalizedSum => by_sign(self.sign(row)?),
        }
    }
}

/// 1/std of each scorer's scores over all images of rows with votes.
fn inverse_stds(labels: &LabelsFile) -> Result<Vec<f64>, PreferenceError> {
    // Welford's method: one pass over the file, without the cancellation that a sum of squares has
    // when the mean is large beside the std.
    let mut moments = vec![(0u64, 0.0f64, 0.0f64); labels.schema().scorers().len()];
    for batch in labels.batches()? {
        runkit::signals::check().map_err(PreferenceError::Stopped)?;
        let batch = batch?;
        for index in 0..batch.num_rows() {
            let row = batch.row(index)?;
            if row.status != Status::Ok {
                continue;
            }
            for ((count, mean, squares), scores) in moments.iter_mut().zip(&row.scores) {
                for score in scores.iter().flatten().map(|score| f64::from(*score)) {
                    *count += 1;
                    let distance = score - *mean;
                    *mean += distance / *count as f64;
                    *squares += distance * (score - *mean);
                }
            }
        }
    }
    let std = |(count, _, squares): &(u64, f64, f64)| (squares / (*count).max(1) as f64).sqrt();
    moments
        .iter()
        .zip(labels.schema().scorers())
        .map(|(moments, name)| match std(moments) {
            std if std > 0.0 => Ok(1.0 / std),
            _ => {
                Err(PreferenceError::ZeroStd { path: labels.path().to_owned(), name: name.clone() })
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(votes: [i8; 4], human: Option<f64>) -> LabelRow {
        let sum: i8 = votes.iter().sum();
        LabelRow {
            pair_id: "a".to_owned(),
            source_file: "f".to_owned(),
            source_row: 0,
            caption: Some("c".to_owned()),
            image_uid: [Some("0".to_owned()), Some("1".to_owned())],
            human_label_0: human,
            scores: votes.iter().map(|vote| [Some(f32::from(*vote)), Some(0.0)]).collect(),
            votes: votes.map(Some).to_vec(),
            vote_sum: Some(sum),
            consensus: Some(sum.signum()),
            status: Status::Ok,
            error: None,
        }
    }

    fn labeler(preference: Preference, ties: Ties) -> Labeler {
        Labeler {
            preference,
            ties,
            drop_human_ties: false,
            scorers: ["clip", "hps", "pickscore", "aesthetic"].map(str::to_owned).to_vec(),
            scorer: 1,
            factors: vec![1.0; 4],
            weights: None,
        }
    }

    fn weighted(preference: Preference, weights: [f64; 4]) -> Labeler {
        Labeler { weights: Some(weights.to_vec()), ..labeler(preference, Ties::Drop) }
    }

    fn probability(labeler: &Labeler, row: &LabelRow) -> Option<f32> {
        labeler.target(row).map(|target| target.at(0).0)
    }

    const TIE: [i8; 4] = [1, -1, 1, -1];

    #[test]
    fn names_are_read_and_written() {
        for text in [
            "consensus",
            "human",
            "scorer:hps",
            "random-scorer",
            "vanilla",
            "score-sum",
            "normalized-sum",
            "unanimous",
            "margin",
        ] {
            assert_eq!(text.parse::<Preference>().unwrap().to_string(), text);
        }
        for text in ["", "scorer:", "Consensus", "hps"] {
            assert!(text.parse::<Preference>().unwrap_err().contains("scorer:NAME"), "{text}");
        }
    }

    #[test]
    fn the_majority_decides_and_ties_follow_their_policy() {
        let consensus = labeler(Preference::Consensus, Ties::Drop);
        assert_eq!(probability(&consensus, &row([1, 1, 1, -1], None)), Some(1.0));
        assert_eq!(probability(&consensus, &row([-1, -1, 1, -1], None)), Some(0.0));
        for (ties, expected) in [
            (Ties::Drop, None),
            (Ties::First, Some(1.0)),
            (Ties::Second, Some(0.0)),
            (Ties::Half, Some(0.5)),
        ] {
            let labeler = labeler(Preference::Consensus, ties);
            assert_eq!(probability(&labeler, &row(TIE, Some(1.0))), expected, "{ties:?}");
        }
        let human = labeler(Preference::Consensus, Ties::Human);
        for label in [0.0, 0.5, 1.0] {
            assert_eq!(probability(&human, &row(TIE, Some(label))), Some(label as f32));
        }
        assert_eq!(probability(&human, &row(TIE, None)), None);
    }

    #[test]
    fn failed_rows_are_dropped_under_every_preference() {
        let mut failed = row([1, 1, 1, 1], Some(1.0));
        failed.status = Status::DecodeError;
        for preference in [Preference::Consensus, Preference::Human, Preference::Vanilla] {
            assert_eq!(labeler(preference, Ties::Half).target(&failed), None);
        }
    }

    #[test]
    fn human_ties_stay_one_half_unless_they_are_dropped() {
        let mut human = labeler(Preference::Human, Ties::Drop);
        assert_eq!(probability(&human, &row(TIE, Some(0.5))), Some(0.5));
        assert_eq!(probability(&human, &row(TIE, None)), None);
        human.drop_human_ties = true;
        assert_eq!(probability(&human, &row(TIE, Some(0.5))), None);
        assert_eq!(probability(&human, &row(TIE, Some(1.0))), Some(1.0));
        let mut consensus = labeler(Preference::Consensus, Ties::Drop);
        consensus.drop_human_ties = true;
        assert_eq!(probability(&consensus, &row([1, 1, 1, 1], Some(0.5))), None);
    }

    #[test]
    fn one_scorer_a_fraction_of_votes_and_sums() {
        let one = labeler(Preference::Scorer("hps".to_owned()), Ties::Drop);
        assert_eq!(probability(&one, &row([1, -1, 1, 1], None)), Some(0.0));
        let fraction = labeler(Preference::Vanilla, Ties::Drop);
        assert_eq!(probability(&fraction, &row([1, -1, 1, 1], None)), Some(0.75));
        assert_eq!(probability(&fraction, &row(TIE, None)), Some(0.5));
        let sum = labeler(Preference::ScoreSum, Ties::Second);
        let mut scored = row(TIE, None);
        scored.scores[3] = [Some(-100.0), Some(0.0)];
        assert_eq!(probability(&sum, &scored), Some(0.0));
        let mut scaled = labeler(Preference::NormalizedSum, Ties::Second);
        scaled.factors[3] = 0.001;
        assert_eq!(probability(&scaled, &scored), Some(1.0));
        assert_eq!(probability(&sum, &row(TIE, None)), Some(0.0), "an equal sum is a tie");
    }

    #[test]
    fn ties_are_counted_under_every_preference() {
        let is_tie =
            |preference, votes, human| labeler(preference, Ties::Drop).is_tie(&row(votes, human));
        for preference in [Preference::Consensus, Preference::Vanilla] {
            assert!(is_tie(preference.clone(), TIE, None), "{preference}");
            assert!(!is_tie(preference, [1, 1, 1, -1], Some(0.5)));
        }
        assert!(is_tie(Preference::Human, [1, 1, 1, 1], Some(0.5)));
        assert!(
            !is_tie(Preference::Human, TIE, Some(1.0)) && !is_tie(Preference::Human, TIE, None)
        );
        assert!(!is_tie(Preference::RandomScorer, TIE, Some(0.5)));
    }

    #[test]
    fn unanimous_drops_every_pair_on_which_a_voter_differs() {
        let unanimous = labeler(Preference::Unanimous, Ties::Half);
        assert_eq!(probability(&unanimous, &row([1; 4], None)), Some(1.0));
        assert_eq!(probability(&unanimous, &row([-1; 4], None)), Some(0.0));
        for votes in [TIE, [1, 1, 1, -1], [-1, 1, -1, -1]] {
            assert_eq!(unanimous.target(&row(votes, Some(1.0))), None);
            assert!(unanimous.is_tie(&row(votes, None)));
        }
        let without_hps = weighted(Preference::Unanimous, [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(probability(&without_hps, &row([1, -1, 1, 1], None)), Some(1.0));
        assert_eq!(probability(&without_hps, &row([1, -1, 1, -1], None)), None);
    }

    #[test]
    fn margin_weighs_a_pair_by_the_majoritys_fraction() {
        let margin = labeler(Preference::Margin, Ties::Half);
        let target = |votes| margin.target(&row(votes, None)).unwrap().at(0);
        assert_eq!(target([1, 1, -1, 1]), (1.0, 0.75));
        assert_eq!(target([-1; 4]), (0.0, 1.0));
        assert_eq!(target(TIE), (0.5, 0.5));
        let heavy = weighted(Preference::Margin, [1.0, 5.0, 1.0, 1.0]);
        assert_eq!(heavy.target(&row([1, -1, 1, 1], None)).unwrap().at(0), (0.0, 0.625));
    }

    #[test]
    fn weights_of_voters_change_majority_fraction_and_ties() {
        let heavy = [1.0, 2.0, 1.0, 1.0];
        let consensus = weighted(Preference::Consensus, heavy);
        assert_eq!(probability(&consensus, &row(TIE, None)), Some(0.0));
        // A majority of voices, a tie of weights.
        let even = weighted(Preference::Consensus, [0.1, 0.3, 0.1, 0.1]);
        assert!(even.is_tie(&row([1, -1, 1, 1], None)));
        assert_eq!(probability(&even, &row([1, -1, 1, 1], None)), None);
        let fraction = weighted(Preference::Vanilla, heavy);
        assert_eq!(probability(&fraction, &row([-1, 1, -1, -1], None)), Some(0.4));
        // Equal weights are no weights.
        let equal = weighted(Preference::Consensus, [3.0; 4]);
        for votes in [TIE, [1, 1, 1, -1], [-1, 1, -1, -1]] {
            let plain = labeler(Preference::Consensus, Ties::Drop);
            assert_eq!(
                probability(&equal, &row(votes, None)),
                probability(&plain, &row(votes, None))
            );
        }
    }

    #[test]
    fn a_missing_vote_counts_unless_its_voter_does_not() {
        let mut missing = row([1, 1, 1, 1], None);
        missing.votes[1] = None;
        for preference in [Preference::Unanimous, Preference::Margin, Preference::Vanilla] {
            assert_eq!(labeler(preference.clone(), Ties::Half).target(&missing), None);
            let without = weighted(preference, [1.0, 0.0, 1.0, 1.0]);
            assert_eq!(probability(&without, &missing), Some(1.0));
        }
    }

    #[test]
    fn weights_are_read_and_written() {
        let weights: VoterWeights = "hps=2, clip=0.5".parse().unwrap();
        assert_eq!(weights.to_string(), "clip=0.5,hps=2");
        assert_eq!((weights.of("hps"), weights.of("pickscore")), (2.0, 1.0));
        assert!(!weights.are_equal() && "a=1,b=1".parse::<VoterWeights>().unwrap().are_equal());
        for (text, says) in [
            ("", "NAME=WEIGHT"),
            ("hps", "\"hps\""),
            ("hps=-1", "0 or more"),
            ("hps=nan", "0 or more"),
            ("=1", "\"=1\""),
            ("hps=1,hps=2", "two for \"hps\""),
        ] {
            let error = text.parse::<VoterWeights>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_random_scorer_follows_from_seed_and_step() {
        let random = labeler(Preference::RandomScorer, Ties::Drop);
        let target = random.target(&row([1, -1, -1, 1], None)).unwrap();
        let by_scorer: Vec<f32> = (0..4).map(|scorer| target.at(scorer).0).collect();
        assert_eq!(by_scorer, [1.0, 0.0, 0.0, 1.0]);
        let sampled: Vec<usize> = (1..=400).map(|step| scorer_of_step(5, step, 4)).collect();
        assert_eq!(sampled, (1..=400).map(|step| scorer_of_step(5, step, 4)).collect::<Vec<_>>());
        for scorer in 0..4 {
            let count = sampled.iter().filter(|index| **index == scorer).count();
            assert!((60..=140).contains(&count), "scorer {scorer}: {count} of 400");
        }
        assert_ne!(sampled, (1..=400).map(|step| scorer_of_step(6, step, 4)).collect::<Vec<_>>());
    }

    proptest::proptest! {
        #[test]
        fn swapping_the_images_turns_the_probability_around(
            votes in proptest::array::uniform4(proptest::bool::ANY)
        ) {
            let votes = votes.map(|first| if first { 1 } else { -1 });
            let swapped = votes.map(|vote: i8| -vote);
            for preference in [Preference::Consensus, Preference::Vanilla, Preference::ScoreSum] {
                let labeler = labeler(preference, Ties::Half);
                let here = probability(&labeler, &row(votes, None)).unwrap();
                let there = probability(&labeler, &row(swapped, None)).unwrap();
                proptest::prop_assert_eq!(here, 1.0 - there);
            }
        }
    }
}
