//! The ranking of a prompt's images, and which two of them become a pair. Pure functions.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// Which images of a prompt become pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choose {
    /// The first and the last in rank: one pair a prompt, none if the two are equal.
    BestWorst,
    /// Every two images.
    All,
    /// Every two neighbours in rank.
    Adjacent,
    /// Every two images that all voters order alike, by different scores.
    Unanimous,
}

/// What images are ranked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The mean over the voters of an image's rank among its prompt's images.
    MeanRank,
    /// The score by one metric.
    Metric(String),
}

const MEAN_RANK: &str = "mean-rank";

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err(format!("expected {MEAN_RANK} or a metric")),
            // Names of scorers have no hyphen.
            MEAN_RANK => Ok(Self::MeanRank),
            metric => Ok(Self::Metric(metric.to_owned())),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::MeanRank => MEAN_RANK,
            Self::Metric(metric) => metric,
        })
    }
}

/// Two images of a prompt by their indices, that of the better rank first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RankedPair {
    pub(super) images: [usize; 2],
    /// Whether they have the same rank.
    pub(super) equal: bool,
}

/// The pairs of a prompt's images, in order of rank. `ranked_by` and `votes` hold for each image the
/// scores that rank it and those of the voters; images are in the order of their seeds, which
/// decides where ranks are equal.
pub(super) fn pairs(choose: Choose, ranked_by: &[Vec<f32>], votes: &[Vec<f32>]) -> Vec<RankedPair> {
    let sums = rank_sums(ranked_by);
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by_key(|&image| sums[image]);
    let pair = |first: usize, second: usize| {
        let images = [order[first], order[second]];
        RankedPair { images, equal: sums[images[0]] == sums[images[1]] }
    };
    let count = order.len();
    if count < 2 {
        return Vec::new();
    }
    match choose {
        Choose::BestWorst => {
            let pair = pair(0, count - 1);
            if pair.equal { Vec::new() } else { vec![pair] }
        }
        Choose::Adjacent => (1..count).map(|second| pair(second - 1, second)).collect(),
        Choose::All | Choose::Unanimous => {
            let every = (0..count)
                .flat_map(|first| (first + 1..count).map(move |second| (first, second)))
                .map(|(first, second)| pair(first, second));
            let is_chosen = |pair: &RankedPair| {
                let [one, other] = pair.images;
                choose == Choose::All || agree(&votes[one], &votes[other])
            };
            every.filter(is_chosen).collect()
        }
    }
}

/// For each image twice the sum of its ranks, from which the mean rank follows: an image has, by
/// each column of scores, one rank for every better image and half of one for every equal image.
/// Whole numbers, so that equal ranks are equal.
fn rank_sums(scores: &[Vec<f32>]) -> Vec<u64> {
    let columns = scores.first().map_or(0, Vec::len);
    let mut sums = vec![0_u64; scores.len()];
    for column in 0..columns {
        for (sum, image) in sums.iter_mut().zip(scores) {
            for other in scores {
                *sum += match other[column].partial_cmp(&image[column]) {
                    Some(Ordering::Greater) => 2,
                    // The image itself counts for all alike.
                    Some(Ordering::Equal) => 1,
                    _ => 0,
                };
            }
        }
    }
    sums
}

/// Whether every voter gives the same one of two images the higher score.
pub(super) fn agree(one: &[f32], other: &[f32]) -> bool {
    let all = |holds: fn(&f32, &f32) -> bool| one.iter().zip(other).all(|(a, b)| holds(a, b));
    all(|a, b| a > b) || all(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn images(scores: &[&[f32]]) -> Vec<Vec<f32>> {
        scores.iter().map(|scores| scores.to_vec()).collect()
    }

    fn chosen(choose: Choose, scores: &[Vec<f32>]) -> Vec<[usize; 2]> {
        pairs(choose, scores, scores).iter().map(|pair| pair.images).collect()
    }

    #[test]
    fn each_choice_takes_its_pairs() {
        // Mean ranks 2, 1.5, 2.5, 4; all voters agree on 0, 1, 2 against 3 and on 1 against 2.
        let scores = images(&[&[0.9, 0.2], &[0.8, 0.8], &[0.2, 0.7], &[0.1, 0.1]]);
        assert_eq!(rank_sums(&scores), [6, 4, 8, 14]);
        assert_eq!(chosen(Choose::BestWorst, &scores), [[1, 3]]);
        assert_eq!(chosen(Choose::Adjacent, &scores), [[1, 0], [0, 2], [2, 3]]);
        let all = [[1, 0], [1, 2], [1, 3], [0, 2], [0, 3], [2, 3]];
        assert_eq!(chosen(Choose::All, &scores), all);
        assert_eq!(chosen(Choose::Unanimous, &scores), [[1, 2], [1, 3], [0, 3], [2, 3]]);
    }

    #[test]
    fn ties_have_the_mean_rank_and_the_earlier_image_comes_first() {
        let scores = images(&[&[0.5], &[0.5], &[0.7], &[0.5]]);
        assert_eq!(rank_sums(&scores), [5, 5, 1, 5]);
        assert_eq!(chosen(Choose::BestWorst, &scores), [[2, 3]]);
        assert_eq!(chosen(Choose::Adjacent, &scores), [[2, 0], [0, 1], [1, 3]]);
        // Equal scores are no agreement, though Equation 6 makes a vote of them.
        assert_eq!(chosen(Choose::Unanimous, &scores), [[2, 0], [2, 1], [2, 3]]);
        let equal = images(&[&[0.5, 0.1], &[0.1, 0.5]]);
        assert_eq!(chosen(Choose::BestWorst, &equal), [[0usize; 2]; 0]);
        assert_eq!(chosen(Choose::All, &equal), [[0, 1]]);
        assert!(pairs(Choose::Adjacent, &equal, &equal)[0].equal);
    }

    #[test]
    fn fewer_than_two_images_give_no_pair() {
        for choose in Choose::value_variants() {
            assert_eq!(chosen(*choose, &[]), [[0usize; 2]; 0]);
            assert_eq!(chosen(*choose, &images(&[&[0.5]])), [[0usize; 2]; 0]);
        }
    }

    #[test]
    fn a_metric_and_the_mean_rank_are_read_and_written() {
        for (text, by) in [("mean-rank", By::MeanRank), ("hps", By::Metric("hps".to_owned()))] {
            assert_eq!(text.parse::<By>().unwrap(), by);
            assert_eq!(by.to_string(), text);
        }
        assert!("".parse::<By>().unwrap_err().contains("mean-rank or a metric"));
    }

    /// The mean rank as it is stated: ranks from 1, ties get the mean of theirs.
    fn mean_rank(scores: &[Vec<f32>], image: usize) -> f64 {
        let voters = scores[0].len();
        let rank = |voter: usize| {
            let mut column: Vec<f32> = scores.iter().map(|scores| scores[voter]).collect();
            column.sort_by(|a, b| b.total_cmp(a));
            let places = column.iter().enumerate();
            let equal: Vec<usize> = places
                .filter(|(_, score)| **score == scores[image][voter])
                .map(|(place, _)| place + 1)
                .collect();
            equal.iter().sum::<usize>() as f64 / equal.len() as f64
        };
        (0..voters).map(rank).sum::<f64>() / voters as f64
    }

    proptest! {
        #[test]
        fn sums_order_images_as_mean_ranks_do(
            scores in proptest::collection::vec(proptest::collection::vec(0u8..5, 3), 2..8)
        ) {
            let scores: Vec<Vec<f32>> = scores
                .iter()
                .map(|scores| scores.iter().map(|&score| f32::from(score)).collect())
                .collect();
            let sums = rank_sums(&scores);
            for (one, other) in (0..scores.len()).flat_map(|i| (0..scores.len()).map(move |j| (i, j))) {
                let difference = mean_rank(&scores, one) - mean_rank(&scores, other);
                let expected = if difference.abs() < 1e-9 {
                    Ordering::Equal
                } else if difference < 0.0 {
                    Ordering::Less
                } else {
                    Ordering::Greater
                };
                prop_assert_eq!(sums[one].cmp(&sums[other]), expected);
            }
        }

        #[test]
        fn the_better_rank_comes_first_and_a_pair_once(
            scores in proptest::collection::vec(proptest::collection::vec(-1f32..1.0, 2), 2..9)
        ) {
            let sums = rank_sums(&scores);
            for choose in Choose::value_variants() {
                let found = chosen(*choose, &scores);
                for &[first, second] in &found {
                    prop_assert!(sums[first] <= sums[second] && first != second);
                    prop_assert!(!found.contains(&[second, first]));
                }
            }
        }
    }
}
