//! Maps a row of labels to the loss targets of a pair: the probability that image 0 is the chosen
//! (preferred) one, and the weight of the pair.
//!
//! Images stay in dataset order, so one loss serves every labelling ([`crate::loss`]), and latents,
//! noise and timesteps never depend on the labels.

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
}

const PREFERENCES: &str =
    "consensus, human, scorer:NAME, random-scorer, vanilla, score-sum or normalized-sum";

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
        Ok(Self { preference: preference.clone(), ties, drop_human_ties, scorers, scorer, factors })
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
            Preference::Vanilla => {
                let votes = || row.votes.iter().map(|vote| vote.map(i64::from));
                !row.votes.is_empty() && votes().sum::<Option<i64>>() == Some(0)
            }
            _ => self.sign(row) == Some(0.0),
        }
    }

    /// Whether [`Ties`] applies to a preference. Ties of human labels and of the fraction of votes
    /// stay one half.
    pub fn has_tie_policy(preference: &Preference) -> bool {
        !matches!(preference, Preference::Human | Preference::Vanilla | Preference::RandomScorer)
    }

    /// Which image the votes or scores favour: above zero image 0, zero for a tie. `None` if the
    /// preference does not use them or they are missing.
    fn sign(&self, row: &LabelRow) -> Option<f64> {
        match &self.preference {
            Preference::Consensus => Some(f64::from(row.consensus?)),
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
        let fixed = |probability: f64| PreferenceTarget::Fixed {
            // A label is 0, ½ or 1, or a fraction of few votes: f32 is enough.
            probability: probability as f32,
            weight: 1.0,
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
                let votes = row.votes.iter().copied().collect::<Option<Vec<i8>>>()?;
                let first = votes.iter().filter(|vote| **vote > 0).count();
                (!votes.is_empty()).then(|| fixed(first as f64 / votes.len() as f64))
            }
            Preference::Consensus
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
        }
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
