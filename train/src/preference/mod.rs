//! Maps a row of labels to the loss targets of a pair: the probability that image 0 is the chosen
//! (preferred) one, and the weight of the pair.
//!
//! Images stay in dataset order, so one loss serves every labelling ([`crate::loss`]), and latents,
//! noise and timesteps never depend on the labels.

#[cfg(test)]
mod tests;
mod voters;

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use schemas::labels::{LabelRow, LabelsError, LabelsFile, Status};
use serde::{Deserialize, Serialize};

use self::voters::Tally;
pub use self::voters::VoterWeights;
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

    /// The target of a row; `None` if the row is dropped. A partial row, for which a scorer failed, has
    /// a target if the preference needs nothing that is missing: a consensus if the labels decided it
    /// (`relabel --missing vote`), the vote of the scorer that decides, or the human label.
    pub fn target(&self, row: &LabelRow) -> Option<PreferenceTarget> {
        if !matches!(row.status, Status::Ok | Status::Partial) {
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
