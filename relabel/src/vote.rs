//! Votes, their sum and the consensus: Equations 6 and 7 of the paper, and what a tie becomes.
//!
//! Pure functions; no file and no network is touched here.

use clap::ValueEnum;
pub use schemas::labels::{consensus, vote};
use serde::{Deserialize, Serialize};

/// What the consensus of a pair becomes when as many scorers prefer the first image as the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TiePolicy {
    /// Stay 0, as Equation 7 says; the trainer gives such pairs no weight.
    #[default]
    Zero,
    /// The human label; 0 if it is a tie or missing.
    Human,
    /// +1, the first image.
    First,
    /// −1, the second image (the paper's prose: "s = −1, otherwise").
    Second,
    /// The sign of the sum of the scorers' margins, each divided by its standard deviation.
    Margin,
}

impl std::fmt::Display for TiePolicy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Zero => "zero",
            Self::Human => "human",
            Self::First => "first",
            Self::Second => "second",
            Self::Margin => "margin",
        })
    }
}

impl TiePolicy {
    /// The consensus of a pair with the given sum of votes.
    ///
    /// `human_label_0` is the input's label of the first image: 1, 0 or 0.5. `standard_margin` is
    /// the sum over scorers of (score_0 − score_1) / (that scorer's standard deviation of margins).
    #[must_use]
    pub fn decide(self, vote_sum: i8, human_label_0: Option<f64>, standard_margin: f64) -> i8 {
        if vote_sum != 0 {
            return consensus(vote_sum);
        }
        match self {
            Self::Zero => 0,
            Self::First => 1,
            Self::Second => -1,
            Self::Human => human_label_0.map_or(0, |label| sign(label - 0.5)),
            Self::Margin => sign(standard_margin),
        }
    }
}

/// The standard deviation of each scorer's margins, for [`TiePolicy::Margin`].
#[derive(Debug, Clone)]
pub struct MarginScale(Vec<Moments>);

impl MarginScale {
    /// With no rows yet.
    #[must_use]
    pub fn new(scorers: usize) -> Self {
        Self(vec![Moments::default(); scorers])
    }

    /// Adds a row: for each scorer the scores of the first and the second image. A row that lacks a
    /// score is not decided by votes, and does not count.
    pub fn add(&mut self, scores: &[[Option<f32>; 2]]) {
        if scores.iter().flatten().all(Option::is_some) {
            for (moments, scores) in self.0.iter_mut().zip(scores) {
                if let [Some(first), Some(second)] = *scores {
                    moments.add(f64::from(first) - f64::from(second));
                }
            }
        }
    }
}

/// Decides rows from their scores: Equations 6 and 7, and one policy for ties.
#[derive(Debug, Clone)]
pub struct Decider {
    ties: TiePolicy,
    /// Standard deviation of each scorer's margins.
    margin_stds: Vec<f64>,
}

impl Decider {
    /// Decides ties by `ties`. For [`TiePolicy::Margin`], `scale` has seen every row; other
    /// policies do not use it.
    #[must_use]
    pub fn new(ties: TiePolicy, scale: &MarginScale) -> Self {
        let stds = scale.0.iter().map(Moments::std);
        Self { ties, margin_stds: stds.map(|std| std.max(f64::MIN_POSITIVE)).collect() }
    }

    /// Writes each scorer's vote, `None` if it lacks a score, and returns sum and consensus if all
    /// scorers vote.
    #[must_use]
    pub fn decide(
        &self,
        scores: &[[Option<f32>; 2]],
        human_label_0: Option<f64>,
        votes: &mut [Option<i8>],
    ) -> Option<(i8, i8)> {
        let (mut sum, mut margin, mut missing) = (0i8, 0.0, false);
        for ((scores, cast), std) in scores.iter().zip(votes).zip(&self.margin_stds) {
            *cast = match *scores {
                [Some(first), Some(second)] => {
                    let vote = vote(first, second);
                    sum += vote;
                    margin += (f64::from(first) - f64::from(second)) / std;
                    Some(vote)
                }
                _ => {
                    missing = true;
                    None
                }
            };
        }
        (!missing).then(|| (sum, self.ties.decide(sum, human_label_0, margin)))
    }
}

/// +1, 0 or −1; 0 for NaN.
fn sign(value: f64) -> i8 {
    if value > 0.0 {
        1
    } else if value < 0.0 {
        -1
    } else {
        0
    }
}

/// Mean and standard deviation of a stream of numbers, for margins (Welford's algorithm).
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Adds one number.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let difference = value - self.mean;
        self.mean += difference / self.count as f64;
        self.squares += difference * (value - self.mean);
    }

    /// How many numbers were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 before the first.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Their population standard deviation; 0 before the first.
    #[must_use]
    pub fn std(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.squares / self.count as f64).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_exact_tie_of_scores_is_a_vote_for_the_first_image() {
        assert_eq!(vote(0.25, 0.25), 1);
        assert_eq!(vote(0.0, -0.0), 1);
        assert_eq!(vote(0.2, 0.25), -1);
    }

    #[test]
    fn each_policy_decides_a_tie_its_own_way_and_leaves_majorities_alone() {
        use TiePolicy::{First, Human, Margin, Second, Zero};
        for (policy, expected) in [(Zero, 0), (Human, -1), (First, 1), (Second, -1), (Margin, 1)] {
            assert_eq!(policy.decide(0, Some(0.0), 0.1), expected, "{policy}");
            assert_eq!(policy.decide(2, Some(0.0), -9.0), 1, "{policy}");
            assert_eq!(policy.decide(-4, Some(1.0), 9.0), -1, "{policy}");
        }
        assert_eq!(Human.decide(0, Some(0.5), 1.0), 0);
        assert_eq!(Human.decide(0, None, 1.0), 0);
        assert_eq!(Margin.decide(0, None, 0.0), 0);
    }

    proptest! {
        #[test]
        fn swapping_the_images_flips_every_vote_and_the_consensus(
            scores in proptest::collection::vec((-1f32..1.0, -1f32..1.0), 1..9)
        ) {
            prop_assume!(scores.iter().all(|(a, b)| a != b));
            let sum: i8 = scores.iter().map(|&(a, b)| vote(a, b)).sum();
            let swapped: i8 = scores.iter().map(|&(a, b)| vote(b, a)).sum();
            prop_assert_eq!(sum, -swapped);
            prop_assert_eq!(consensus(sum), -consensus(swapped));
        }

        #[test]
        fn an_odd_number_of_voters_never_ties(scores in proptest::collection::vec((-1f32..1.0, -1f32..1.0), 1..9)) {
            prop_assume!(scores.len() % 2 == 1);
            let sum: i8 = scores.iter().map(|&(a, b)| vote(a, b)).sum();
            prop_assert_ne!(consensus(sum), 0);
        }

        #[test]
        fn the_order_of_the_voters_does_not_matter(mut scores in proptest::collection::vec((-1f32..1.0, -1f32..1.0), 1..9)) {
            let sum = |scores: &[(f32, f32)]| -> i8 { scores.iter().map(|&(a, b)| vote(a, b)).sum() };
            let before = sum(&scores);
            scores.reverse();
            prop_assert_eq!(before, sum(&scores));
        }

        #[test]
        fn moments_equal_the_two_pass_formula(values in proptest::collection::vec(-100f64..100.0, 1..200)) {
            let mut moments = Moments::default();
            values.iter().for_each(|&value| moments.add(value));
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
            prop_assert!((moments.mean() - mean).abs() < 1e-9);
            prop_assert!((moments.std() - variance.sqrt()).abs() < 1e-9);
        }
    }
}
