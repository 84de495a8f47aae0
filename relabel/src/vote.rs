//! Votes, their sum and the consensus: Equations 6 and 7 of the paper, what a tie becomes, and what
//! a missing vote.
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

/// What becomes of a pair for which a scorer has no vote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It is not decided: no sum, no consensus.
    #[default]
    Drop,
    /// The voters that are there decide it.
    Vote,
}

impl Missing {
    /// Whether it is the policy of files that do not name one.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether these votes decide a row.
    fn decides(self, votes: &[Option<i8>]) -> bool {
        match self {
            Self::Drop => votes.iter().all(Option::is_some),
            Self::Vote => votes.iter().any(Option::is_some),
        }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Drop => "drop",
            Self::Vote => "vote",
        })
    }
}

/// The votes of a row, from the scores of the first and the second image by each scorer. `votes`
/// holds the votes that were given without scores, which stay if the row has none of these scores;
/// after it, every vote, `None` for a scorer that has none.
pub fn cast(scores: &[[Option<f32>; 2]], votes: &mut [Option<i8>]) {
    for (scores, cast) in scores.iter().zip(votes) {
        match *scores {
            [Some(first), Some(second)] => *cast = Some(vote(first, second)),
            [None, None] => {}
            _ => *cast = None,
        }
    }
}

/// The standard deviation of each scorer's margins, for [`TiePolicy::Margin`].
#[derive(Debug, Clone)]
pub struct MarginScale {
    missing: Missing,
    margins: Vec<Moments>,
}

impl MarginScale {
    /// With no rows yet.
    #[must_use]
    pub fn new(scorers: usize, missing: Missing) -> Self {
        Self { missing, margins: vec![Moments::default(); scorers] }
    }

    /// Adds a row: for each scorer the scores of both images, and its vote ([`cast`]). A row that
    /// is not decided by votes does not count.
    pub fn add(&mut self, scores: &[[Option<f32>; 2]], votes: &[Option<i8>]) {
        if self.missing.decides(votes) {
            for (moments, scores) in self.margins.iter_mut().zip(scores) {
                if let [Some(first), Some(second)] = *scores {
                    moments.add(f64::from(first) - f64::from(second));
                }
            }
        }
    }
}

/// Decides rows from their votes: Equation 7, one policy for ties and one for missing votes.
#[derive(Debug, Clone)]
pub struct Decider {
    ties: TiePolicy,
    missing: Missing,
    /// Standard deviation of each scorer's margins.
    margin_stds: Vec<f64>,
}

impl Decider {
    /// Decides ties by `ties`, and missing votes by the policy of `scale`. For
    /// [`TiePolicy::Margin`], `scale` has seen every row; other policies need none.
    #[must_use]
    pub fn new(ties: TiePolicy, scale: &MarginScale) -> Self {
        let stds = scale.margins.iter().map(Moments::std);
        let margin_stds = stds.map(|std| std.max(f64::MIN_POSITIVE)).collect();
        Self { ties, missing: scale.missing, margin_stds }
    }

    /// Sum and consensus of a row with these scores and votes ([`cast`]); `None` if it is not
    /// decided. A vote without scores has no margin.
    #[must_use]
    pub fn decide(
        &self,
        scores: &[[Option<f32>; 2]],
        votes: &[Option<i8>],
        human_label_0: Option<f64>,
    ) -> Option<(i8, i8)> {
        if !self.missing.decides(votes) {
            return None;
        }
        let sum = votes.iter().flatten().sum();
        let mut margin = 0.0;
        for (scores, std) in scores.iter().zip(&self.margin_stds) {
            if let [Some(first), Some(second)] = *scores {
                margin += (f64::from(first) - f64::from(second)) / std;
            }
        }
        Some((sum, self.ties.decide(sum, human_label_0, margin)))
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

    #[test]
    fn a_missing_vote_leaves_the_row_open_or_to_the_others() {
        let scores = [[Some(0.3), Some(0.1)], [None, Some(0.2)], [None, None], [None, None]];
        let mut votes = [None, Some(-1), Some(-1), None];
        cast(&scores, &mut votes);
        // The second has but one score, the third voted without scores, the fourth failed.
        assert_eq!(votes, [Some(1), None, Some(-1), None]);
        let decide = |missing, votes: &[Option<i8>]| {
            let scale = MarginScale::new(votes.len(), missing);
            Decider::new(TiePolicy::Zero, &scale).decide(&scores[..votes.len()], votes, None)
        };
        assert_eq!(decide(Missing::Drop, &votes), None);
        assert_eq!(decide(Missing::Vote, &votes), Some((0, 0)));
        assert_eq!(decide(Missing::Drop, &votes[..1]), Some((1, 1)));
        assert_eq!(decide(Missing::Vote, &[None; 4]), None);
    }

    #[test]
    fn margins_count_where_a_row_is_decided() {
        let rows =
            [[[Some(3.0), Some(1.0)], [Some(0.0), Some(9.0)]], [[Some(4.0), Some(1.0)], [None; 2]]];
        let count = |missing| {
            let mut scale = MarginScale::new(2, missing);
            for scores in rows {
                let mut votes = [None; 2];
                cast(&scores, &mut votes);
                scale.add(&scores, &votes);
            }
            scale.margins.iter().map(Moments::count).collect::<Vec<_>>()
        };
        assert_eq!((count(Missing::Drop), count(Missing::Vote)), (vec![1, 1], vec![2, 1]));
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
