//! The rules: each maps the votes of a row to +1, −1 or 0, a tie. Pure functions.

use super::ballots::{Ballots, FOLDS, Human};
use super::dawid_skene::DawidSkene;

/// The difference below which weighted votes are even, beside their sum: 0.1 + 0.2 is not 0.3.
const EVEN: f64 = 1e-9;

/// A way to decide a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rule {
    /// The sign of the sum of votes (Equation 7).
    Majority,
    /// The sign of the sum of votes, each times the weight of its voter; weights by fold.
    Weighted(Vec<Vec<f64>>),
    /// The sign of the sum of votes, each times the rank of its margin among those of its voter.
    Borda(Vec<f64>),
    /// The likelier image.
    DawidSkene(DawidSkene),
    /// The vote of all, where they agree.
    Unanimous,
}

impl Rule {
    /// Its name in reports.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Majority => "majority",
            Self::Weighted(_) => "weighted",
            Self::Borda(_) => "borda",
            Self::DawidSkene(_) => "dawid_skene",
            Self::Unanimous => "unanimous",
        }
    }

    /// What is held out when it is compared with people.
    pub(super) fn held_out(&self) -> &'static str {
        match self {
            Self::Majority | Self::Unanimous => "nothing is fitted",
            Self::Weighted(_) => {
                "weights are fitted on the human labels of the other four of five folds; pairs of \
                 one caption are in one fold"
            }
            Self::Borda(_) => "ranks are taken over all rows; no human label is used",
            Self::DawidSkene(_) => "rates are fitted on all rows; no human label is used",
        }
    }

    /// Decides the votes (+1, −1, 0 for none) of a row. They may differ from what the row holds: the
    /// study asks what another vote would change.
    pub(super) fn decide(&self, ballots: &Ballots, row: usize, votes: &[i8]) -> i8 {
        match self {
            Self::Majority => {
                // At most 127 scorers.
                votes.iter().map(|vote| i32::from(*vote)).sum::<i32>().signum() as i8
            }
            Self::Weighted(weights) => {
                let of_fold = weights.get(ballots.fold(row)).map_or(&[][..], Vec::as_slice);
                sign(votes, of_fold)
            }
            Self::Borda(sizes) => {
                let start = row * votes.len();
                sign(votes, sizes.get(start..start + votes.len()).unwrap_or_default())
            }
            Self::DawidSkene(model) => model.decide(votes),
            Self::Unanimous => {
                let mut cast = votes.iter().copied().filter(|vote| *vote != 0);
                let first = cast.next().unwrap_or(0);
                if cast.all(|vote| vote == first) { first } else { 0 }
            }
        }
    }
}

/// The sign of a weighted sum of votes.
fn sign(votes: &[i8], weights: &[f64]) -> i8 {
    let (mut sum, mut all) = (0.0, 0.0);
    for (vote, weight) in votes.iter().zip(weights) {
        sum += f64::from(*vote) * weight;
        all += f64::from(vote.abs()) * weight;
    }
    if sum.abs() <= EVEN * all {
        0
    } else if sum > 0.0 {
        1
    } else {
        -1
    }
}

/// The weights of voters by their human agreement: the log-odds ln(p / (1 − p)), which make
/// the sum of votes the likelier image if voters err independently of each other (S. Nitzan and J.
/// Paroush, "Optimal decision rules in uncertain dichotomous choice situations", International
/// Economic Review 23, 1982). p = (alike + 1) / (pairs + 2), so that no weight is infinite; a voter
/// that does not agree more often than chance has no weight. `without` leaves a fold out.
pub(super) fn weights(ballots: &Ballots, without: Option<usize>) -> Vec<f64> {
    let mut counts = vec![[0u64; 2]; ballots.voters.len()];
    for row in (0..ballots.len()).filter(|row| without != Some(ballots.fold(*row))) {
        let Human::Prefers(preferred) = ballots.human(row) else { continue };
        for (vote, [alike, pairs]) in ballots.votes(row).iter().zip(&mut counts) {
            *pairs += u64::from(*vote != 0);
            *alike += u64::from(*vote == preferred);
        }
    }
    let weight =
        |[alike, pairs]: [u64; 2]| ((alike + 1) as f64 / (pairs - alike + 1) as f64).ln().max(0.0);
    counts.into_iter().map(weight).collect()
}

/// All rules for these ballots. Without human labels there are no weights.
pub(super) fn rules(ballots: &Ballots) -> Vec<Rule> {
    let has_labels = (0..ballots.len()).any(|row| matches!(ballots.human(row), Human::Prefers(_)));
    let by_fold = || (0..FOLDS as usize).map(|fold| weights(ballots, Some(fold))).collect();
    let mut rules = vec![Rule::Majority];
    rules.extend(has_labels.then(|| Rule::Weighted(by_fold())));
    rules.push(Rule::Borda(ballots.sizes()));
    rules.extend(DawidSkene::fit(&ballots.patterns()).map(Rule::DawidSkene));
    rules.push(Rule::Unanimous);
    rules
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ballots::tests::ballots;
    use super::*;

    #[test]
    fn each_rule_decides_its_own_way() {
        let ballots = ballots(&[(&[1, 1, -1, -1], Human::Missing)]);
        let decide = |rule: &Rule, votes: [i8; 4]| rule.decide(&ballots, 0, &votes);
        assert_eq!(decide(&Rule::Majority, [1, 1, -1, -1]), 0);
        assert_eq!(decide(&Rule::Majority, [1, 0, -1, -1]), -1);
        let weighted = Rule::Weighted(vec![vec![0.1, 0.2, 0.3, 0.0]; FOLDS as usize]);
        assert_eq!(decide(&weighted, [1, 1, -1, -1]), 0, "0.1 + 0.2 is 0.3");
        assert_eq!(decide(&weighted, [1, 1, -1, 1]), 0, "the last has no weight");
        assert_eq!(decide(&weighted, [1, -1, 1, -1]), 1);
        let borda = Rule::Borda(vec![1.0, 0.25, 0.5, 0.5]);
        assert_eq!(decide(&borda, [1, 1, -1, -1]), 1);
        assert_eq!(decide(&Rule::Unanimous, [1, 1, 0, 1]), 1);
        assert_eq!(decide(&Rule::Unanimous, [-1, 1, -1, -1]), 0);
    }

    #[test]
    fn weights_are_log_odds_of_human_agreement() {
        let rows: Vec<(&[i8], Human)> = vec![
            (&[1, 1, -1], Human::Prefers(1)),
            (&[-1, 1, 1], Human::Prefers(-1)),
            (&[1, 0, -1], Human::Prefers(1)),
            (&[1, 1, 1], Human::Tie),
            (&[1, 1, 1], Human::Missing),
        ];
        let found = weights(&ballots(&rows), None);
        assert!((found[0] - 4f64.ln()).abs() < 1e-12, "3 of 3: {found:?}");
        assert_eq!(found[1..], [0.0, 0.0], "1 of 2, and 0 of 3");
        let unlabelled = ballots(&[(&[1, 1, -1], Human::Missing)]);
        assert_eq!(weights(&unlabelled, None), [0.0; 3]);
        assert!(!rules(&unlabelled).iter().any(|rule| matches!(rule, Rule::Weighted(_))));
    }

    proptest! {
        #[test]
        fn swapping_the_images_turns_every_decision_around(
            votes in proptest::collection::vec(proptest::array::uniform5(-1i8..=1), 1..40)
        ) {
            let of = |sign: i8| -> Vec<Vec<i8>> {
                votes.iter().map(|row| row.iter().map(|vote| vote * sign).collect()).collect()
            };
            let (here, there) = (of(1), of(-1));
            let study = |rows: &[Vec<i8>], preferred: i8| {
                let rows: Vec<(&[i8], Human)> = rows.iter()
                    .filter(|row| row.iter().any(|vote| *vote != 0))
                    .map(|row| (&row[..], Human::Prefers(preferred))).collect();
                let ballots = ballots(&rows);
                // The last bits of a fit depend on the order of its sums.
                let exact = |rule: &&Rule| !matches!(rule, Rule::DawidSkene(_));
                rules(&ballots).iter().filter(exact).map(|rule| -> Vec<i8> {
                    (0..ballots.len()).map(|row| rule.decide(&ballots, row, ballots.votes(row))).collect()
                }).collect::<Vec<_>>()
            };
            prop_assume!(votes.iter().flatten().any(|vote| *vote != 0));
            for (one, other) in study(&here, 1).iter().zip(study(&there, -1)) {
                let turned: Vec<i8> = other.iter().map(|decision| -decision).collect();
                prop_assert_eq!(one, &turned);
            }
        }
    }
}
