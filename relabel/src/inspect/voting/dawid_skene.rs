//! Dawid and Skene's model of voters: which image is the better one is unknown, and each voter is
//! right with a rate of its own for each of the two answers. Expectation maximisation finds rates
//! and answers together, without human labels.
//!
//! A. P. Dawid and A. M. Skene, "Maximum likelihood estimation of observer error-rates using the EM
//! algorithm", Applied Statistics 28 (1979), Equations 2.3 to 2.5. Here the classes are image 0 and
//! image 1, a voter votes at most once a row, and rows with the same votes are counted together.

use std::collections::BTreeMap;

/// The fit ends when an iteration changes the log-likelihood of all rows by less than this.
const LEAST_CHANGE: f64 = 1e-9;
/// And after this many iterations in any case.
const MOST_ITERATIONS: usize = 10_000;
/// A probability this near to one half is a tie.
const EVEN: f64 = 1e-9;

/// The fitted model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DawidSkene {
    /// The fraction of rows in which image 0 is the better one, and image 1.
    pub(super) prior: [f64; 2],
    /// For each voter how often it is right where image 0 is better, and where image 1 is; `None`
    /// if it never voted there.
    pub(super) reliability: Vec<[Option<f64>; 2]>,
    /// Of all votes under these numbers, natural logarithm.
    pub(super) log_likelihood: f64,
    /// Iterations until it changed no more.
    pub(super) iterations: usize,
    /// Whether it changed no more.
    pub(super) has_converged: bool,
}

impl DawidSkene {
    /// Fits the model to how many rows have each pattern of votes (+1, −1, 0 for none). The start is
    /// the majority: image 0 is the better one with the fraction of the votes for it. Rates are not
    /// smoothed. `None` without a row.
    pub(super) fn fit(patterns: &BTreeMap<&[i8], u64>) -> Option<Self> {
        let voters = patterns.keys().next()?.len();
        let rows: Vec<(&[i8], f64)> =
            patterns.iter().map(|(votes, count)| (*votes, *count as f64)).collect();
        let mut posteriors: Vec<f64> = rows.iter().map(|(votes, _)| fraction(votes)).collect();
        let mut before = f64::NEG_INFINITY;
        let mut iterations = 0;
        loop {
            iterations += 1;
            let mut model = Self::of(&rows, &posteriors, voters);
            let mut log_likelihood = 0.0;
            for ((votes, count), posterior) in rows.iter().zip(&mut posteriors) {
                let logs = model.logs(votes);
                let sum = log_sum(logs);
                log_likelihood += count * sum;
                *posterior = (logs[0] - sum).exp();
            }
            // The first comparison is with −∞.
            let has_converged = (log_likelihood - before).abs() < LEAST_CHANGE;
            if has_converged || iterations == MOST_ITERATIONS {
                model.log_likelihood = log_likelihood;
                model.iterations = iterations;
                model.has_converged = has_converged;
                return Some(model);
            }
            before = log_likelihood;
        }
    }

    /// The rates of greatest likelihood if image 0 is the better one with these probabilities.
    fn of(rows: &[(&[i8], f64)], posteriors: &[f64], voters: usize) -> Self {
        let mut totals = [0.0; 2];
        let mut voted = vec![[0.0; 2]; voters];
        let mut right = vec![[0.0; 2]; voters];
        for ((votes, count), posterior) in rows.iter().zip(posteriors) {
            for (class, weight) in [*posterior, 1.0 - posterior].into_iter().enumerate() {
                totals[class] += count * weight;
                let counted = votes.iter().zip(voted.iter_mut().zip(&mut right));
                for (vote, (voted, right)) in counted.filter(|(vote, _)| **vote != 0) {
                    voted[class] += count * weight;
                    right[class] += if is_right(*vote, class) { count * weight } else { 0.0 };
                }
            }
        }
        let all = totals[0] + totals[1];
        let rate = |right: f64, voted: f64| (voted > 0.0).then(|| right / voted);
        let rates = right.iter().zip(&voted);
        Self {
            prior: totals.map(|total| total / all),
            reliability: rates
                .map(|(right, voted)| [rate(right[0], voted[0]), rate(right[1], voted[1])])
                .collect(),
            log_likelihood: 0.0,
            iterations: 0,
            has_converged: false,
        }
    }

    /// The logarithm of the probability of these votes and image 0, and of them and image 1.
    fn logs(&self, votes: &[i8]) -> [f64; 2] {
        let mut logs = self.prior.map(f64::ln);
        for (vote, rates) in votes.iter().zip(&self.reliability).filter(|(vote, _)| **vote != 0) {
            for (class, log) in logs.iter_mut().enumerate() {
                if let Some(rate) = rates[class] {
                    *log += if is_right(*vote, class) { rate.ln() } else { (1.0 - rate).ln() };
                }
            }
        }
        logs
    }

    /// What the model decides: +1, −1, or 0 where both images are equally likely, and where the
    /// model cannot explain such votes.
    pub(super) fn decide(&self, votes: &[i8]) -> i8 {
        let logs = self.logs(votes);
        let first = (logs[0] - log_sum(logs)).exp();
        if first > 0.5 + EVEN {
            1
        } else if first < 0.5 - EVEN {
            -1
        } else {
            0
        }
    }
}

/// The fraction of votes for image 0.
fn fraction(votes: &[i8]) -> f64 {
    let count = |sign: i8| votes.iter().filter(|vote| vote.signum() == sign).count() as f64;
    count(1) / (count(1) + count(-1))
}

/// Whether a vote is right if the better image is the one of this class: 0 or 1.
fn is_right(vote: i8, class: usize) -> bool {
    (vote > 0) == (class == 0)
}

/// The logarithm of the sum of two numbers, from their logarithms.
fn log_sum([first, second]: [f64; 2]) -> f64 {
    let most = first.max(second);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + ((first - most).exp() + (second - most).exp()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(patterns: &[(&[i8], u64)]) -> DawidSkene {
        DawidSkene::fit(&patterns.iter().copied().collect()).unwrap()
    }

    #[test]
    fn expected_counts_of_known_rates_give_the_rates_back() {
        let (prior, rates) = (0.6, [[0.9, 0.8], [0.7, 0.75], [0.85, 0.6], [0.8, 0.9]]);
        let patterns: Vec<(Vec<i8>, u64)> = (0..16u8)
            .map(|bits| {
                let votes: Vec<i8> =
                    (0..4).map(|voter| if bits >> voter & 1 == 1 { 1 } else { -1 }).collect();
                let of_class = |class: usize, prior: f64| {
                    let right = |(vote, rates): (&i8, &[f64; 2])| match is_right(*vote, class) {
                        true => rates[class],
                        false => 1.0 - rates[class],
                    };
                    prior * votes.iter().zip(&rates).map(right).product::<f64>()
                };
                let probability = of_class(0, prior) + of_class(1, 1.0 - prior);
                (votes, (probability * 1e9).round() as u64)
            })
            .collect();
        let patterns: Vec<(&[i8], u64)> =
            patterns.iter().map(|(votes, count)| (&votes[..], *count)).collect();
        let model = fit(&patterns);
        assert!((model.prior[0] - prior).abs() < 1e-3, "{model:?}");
        for (found, expected) in model.reliability.iter().zip(rates) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found.unwrap() - expected).abs() < 1e-3, "{model:?}");
            }
        }
    }

    #[test]
    fn voters_that_always_agree_are_always_right_and_the_empty_class_has_no_rate() {
        let model = fit(&[(&[1, 1, 1], 7)]);
        assert_eq!(model.prior, [1.0, 0.0]);
        assert_eq!(model.reliability, [[Some(1.0), None]; 3]);
        assert!(model.has_converged && model.log_likelihood == 0.0, "{model:?}");
        assert_eq!(model.decide(&[1, 1, 1]), 1);
        assert_eq!(model.decide(&[-1, 1, 1]), 0, "such votes have no probability");
    }

    #[test]
    fn a_voter_without_votes_has_no_rate_and_changes_nothing() {
        let three =
            fit(&[(&[1, 1, -1], 5), (&[-1, -1, -1], 4), (&[1, 1, 1], 3), (&[-1, 1, -1], 2)]);
        let four = fit(&[
            (&[1, 0, 1, -1], 5),
            (&[-1, 0, -1, -1], 4),
            (&[1, 0, 1, 1], 3),
            (&[-1, 0, 1, -1], 2),
        ]);
        assert_eq!(four.reliability[1], [None; 2]);
        assert_eq!(three.prior, four.prior);
        assert_eq!(three.log_likelihood, four.log_likelihood);
        assert_eq!(DawidSkene::fit(&BTreeMap::new()), None);
    }
}
