//! `relabel inspect --voting`: several rules decide the pairs of one labels file. How often does
//! each agree with people, how many pairs does it leave undecided, and whose vote decides?
//!
//! Every rule decides from the votes that are there, so a row that lacks a voter counts too. The
//! file's own `consensus` is not used: a tie policy may have taken it from people.

mod ballots;
mod dawid_skene;
mod rules;
mod text;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use runkit::statistics::wilson;
use serde::Serialize;

use self::ballots::{Ballots, FOLDS, Human};
use self::rules::Rule;

/// Dawid and Skene's rates are determined by the votes of at least this many voters.
const VOTERS_OF_DAWID_SKENE: usize = 3;

/// Everything `relabel inspect --voting` prints. `--json` prints it field by field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Voting {
    /// Rows of the file.
    pub rows: u64,
    /// Rows with at least one vote: those that are decided.
    pub voted_rows: u64,
    /// Of these, rows that lack a voter.
    pub partial_rows: u64,
    /// Rows with a vote and a human preference.
    pub human_pairs: u64,
    /// The folds of the rules that are fitted to human labels.
    pub folds: u64,
    /// One entry for each rule.
    pub rules: Vec<RuleReport>,
    /// One entry for each voter, in column order.
    pub voters: Vec<VoterReport>,
    /// The fitted model of voters; `None` without votes.
    pub dawid_skene: Option<DawidSkeneReport>,
    /// What limits these numbers, in sentences.
    pub notes: Vec<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleReport {
    /// `majority`, `weighted`, `borda`, `dawid_skene` or `unanimous`.
    pub name: &'static str,
    /// Which human labels the rule has not seen.
    pub held_out: &'static str,
    /// Rows that it decides.
    pub decided: u64,
    /// Rows that it leaves undecided.
    pub ties: u64,
    /// Fraction of the rows with votes that it decides.
    pub coverage: f64,
    /// Of the rows with a human preference that it decides.
    pub human_agreement: Option<Rate>,
    /// Of all rows with a human preference; an undecided one counts one half.
    pub human_agreement_ties_half: Option<Rate>,
    /// Human agreement on rows that the majority leaves undecided and this rule decides.
    pub on_ties_of_the_majority: Option<Rate>,
    /// Human agreement on rows that this rule and the majority decide in opposite ways. Above
    /// one half, people side with this rule.
    pub against_the_majority: Option<Rate>,
    /// For each voter the fraction of the rows with votes in which the opposite vote of this voter
    /// would change the decision.
    pub pivotal: BTreeMap<String, f64>,
}

/// One voter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoterReport {
    /// Its name.
    pub name: String,
    /// Its votes.
    pub votes: u64,
    /// Of the rows with its vote and a human preference.
    pub human_agreement: Option<Rate>,
    /// The log-odds of that agreement, fitted on all rows: a value for `train --voter-weights`.
    pub weight: Option<f64>,
    /// Rows in which it votes and the votes of the others are even.
    pub ties_of_the_others: u64,
    /// Its human agreement on these.
    pub human_agreement_on_them: Option<Rate>,
}

/// A fraction with Wilson's 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// How many it is a fraction of.
    pub pairs: u64,
    /// The fraction.
    pub rate: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Dawid and Skene's model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DawidSkeneReport {
    /// The fraction of rows in which image 0 is the better one, and image 1.
    pub class_prior: [f64; 2],
    /// For each voter how often it is right where image 0 is the better one, and where image 1 is.
    pub reliability: BTreeMap<String, [Option<f64>; 2]>,
    /// The log-likelihood of the votes.
    pub log_likelihood: f64,
    /// Iterations of expectation maximisation.
    pub iterations: usize,
    /// Whether the last iteration changed the log-likelihood by less than 1e-9.
    pub converged: bool,
}

/// Counts human agreement; ties count one half.
#[derive(Debug, Clone, Copy, Default)]
struct Agreement {
    pairs: u64,
    halves: u64,
}

impl Agreement {
    fn add(&mut self, decision: i8, preferred: i8) {
        self.pairs += 1;
        self.halves += match decision {
            0 => 1,
            _ => 2 * u64::from(decision == preferred),
        };
    }

    fn rate(self) -> Option<Rate> {
        let rate = self.halves as f64 / (2 * self.pairs) as f64;
        let (low, high) = wilson(rate, self.pairs);
        (self.pairs > 0).then_some(Rate { pairs: self.pairs, rate, low, high })
    }
}

impl Voting {
    /// Reads `labels` once and decides every row by every rule.
    ///
    /// # Errors
    /// A file that is not a labels file, or is damaged.
    pub fn of(labels: &Path) -> Result<Self> {
        Ok(Self::of_ballots(&Ballots::read(labels)?))
    }

    fn of_ballots(ballots: &Ballots) -> Self {
        let rules = rules::rules(ballots);
        let is_labelled = |row: &usize| matches!(ballots.human(*row), Human::Prefers(_));
        let is_partial = |row: &usize| ballots.votes(*row).contains(&0);
        let mut study = Self {
            rows: ballots.rows,
            voted_rows: ballots.len() as u64,
            partial_rows: (0..ballots.len()).filter(is_partial).count() as u64,
            human_pairs: (0..ballots.len()).filter(is_labelled).count() as u64,
            folds: FOLDS,
            rules: rules.iter().map(|rule| of_rule(rule, ballots)).collect(),
            voters: Vec::new(),
            dawid_skene: rules.iter().find_map(|rule| of_dawid_skene(rule, &ballots.voters)),
            notes: Vec::new(),
        };
        study.voters = of_voters(ballots, study.human_pairs > 0);
        study.notes = study.notes();
        study
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.human_pairs == 0 {
            notes.push(
                "no row with votes has a human preference: human agreement and weights are \
                 unknown"
                    .to_owned(),
            );
        }
        if self.partial_rows > 0 {
            notes.push(format!(
                "{} of {} rows lack a voter; the others decide them",
                self.partial_rows, self.voted_rows
            ));
        }
        if self.voters.len() < VOTERS_OF_DAWID_SKENE {
            notes.push(format!(
                "{} voters do not determine the rates of Dawid and Skene's model; three do",
                self.voters.len()
            ));
        }
        if let Some(model) = self.dawid_skene.as_ref().filter(|model| !model.converged) {
            notes.push(format!(
                "the rates of Dawid and Skene's model still changed after {} iterations",
                model.iterations
            ));
        }
        notes
    }
}

fn of_rule(rule: &Rule, ballots: &Ballots) -> RuleReport {
    let mut decided = 0;
    let [mut on_decided, mut on_all, mut on_ties, mut opposed] = [Agreement::default(); 4];
    let mut pivotal = vec![0u64; ballots.voters.len()];
    for row in 0..ballots.len() {
        let votes = ballots.votes(row);
        let decision = rule.decide(ballots, row, votes);
        decided += u64::from(decision != 0);
        if let Human::Prefers(preferred) = ballots.human(row) {
            let majority = Rule::Majority.decide(ballots, row, votes);
            on_all.add(decision, preferred);
            if decision != 0 {
                on_decided.add(decision, preferred);
                match majority {
                    0 => on_ties.add(decision, preferred),
                    _ if majority != decision => opposed.add(decision, preferred),
                    _ => {}
                }
            }
        }
        let mut other = votes.to_vec();
        for (voter, count) in pivotal.iter_mut().enumerate() {
            let Some(vote) = other.get_mut(voter) else { continue };
            if *vote != 0 {
                *vote = -*vote;
                *count += u64::from(rule.decide(ballots, row, &other) != decision);
                if let Some(vote) = other.get_mut(voter) {
                    *vote = -*vote;
                }
            }
        }
    }
    let rows = ballots.len() as u64;
    let fraction = |count: u64| count as f64 / rows.max(1) as f64;
    RuleReport {
        name: rule.name(),
        held_out: rule.held_out(),
        decided,
        ties: rows - decided,
        coverage: fraction(decided),
        human_agreement: on_decided.rate(),
        human_agreement_ties_half: on_all.rate(),
        on_ties_of_the_majority: on_ties.rate(),
        against_the_majority: opposed.rate(),
        pivotal: ballots.voters.iter().cloned().zip(pivotal.into_iter().map(fraction)).collect(),
    }
}

fn of_voters(ballots: &Ballots, has_labels: bool) -> Vec<VoterReport> {
    let weights = has_labels.then(|| rules::weights(ballots, None));
    let of_voter = |(voter, name): (usize, &String)| {
        let (mut votes, mut ties) = (0, 0);
        let [mut agreement, mut on_ties] = [Agreement::default(); 2];
        for row in 0..ballots.len() {
            let of_row = ballots.votes(row);
            let vote = of_row.get(voter).copied().filter(|vote| *vote != 0);
            let Some(vote) = vote else { continue };
            let sum: i32 = of_row.iter().map(|vote| i32::from(*vote)).sum();
            let is_tie = sum == i32::from(vote);
            votes += 1;
            ties += u64::from(is_tie);
            if let Human::Prefers(preferred) = ballots.human(row) {
                agreement.add(vote, preferred);
                if is_tie {
                    on_ties.add(vote, preferred);
                }
            }
        }
        VoterReport {
            name: name.clone(),
            votes,
            human_agreement: agreement.rate(),
            weight: weights.as_ref().and_then(|weights| weights.get(voter).copied()),
            ties_of_the_others: ties,
            human_agreement_on_them: on_ties.rate(),
        }
    };
    ballots.voters.iter().enumerate().map(of_voter).collect()
}

fn of_dawid_skene(rule: &Rule, voters: &[String]) -> Option<DawidSkeneReport> {
    let Rule::DawidSkene(model) = rule else { return None };
    Some(DawidSkeneReport {
        class_prior: model.prior,
        reliability: voters.iter().cloned().zip(model.reliability.iter().copied()).collect(),
        log_likelihood: model.log_likelihood,
        iterations: model.iterations,
        converged: model.has_converged,
    })
}

#[cfg(test)]
mod tests {
    use super::ballots::tests::ballots;
    use super::*;

    fn rate(rate: Option<Rate>) -> (u64, f64) {
        rate.map_or((0, 0.0), |rate| (rate.pairs, rate.rate))
    }

    #[test]
    fn agreement_ties_and_pivotal_voters_are_counted() {
        let study = Voting::of_ballots(&ballots(&[
            (&[1, 1, 1, 1], Human::Prefers(1)),
            (&[1, 1, 1, -1], Human::Prefers(-1)),
            (&[1, 1, -1, -1], Human::Prefers(1)),
            (&[-1, -1, 0, 0], Human::Tie),
        ]));
        assert_eq!((study.voted_rows, study.partial_rows, study.human_pairs), (4, 1, 3));
        let [majority, .., unanimous] = &study.rules[..] else { panic!("{study:?}") };
        assert_eq!((majority.decided, majority.ties, majority.coverage), (3, 1, 0.75));
        assert_eq!(rate(majority.human_agreement), (2, 0.5));
        assert_eq!(rate(majority.human_agreement_ties_half), (3, 0.5));
        assert_eq!(majority.on_ties_of_the_majority, None);
        // In row 1 the three of the majority, in row 2 all, in row 3 both; in row 0 nobody.
        assert_eq!(majority.pivotal["clip"], 0.75);
        assert_eq!(majority.pivotal["pickscore"], 0.5);
        assert_eq!(majority.pivotal["aesthetic"], 0.25);
        assert_eq!((unanimous.decided, rate(unanimous.human_agreement)), (2, (1, 1.0)));
        assert_eq!(unanimous.pivotal["aesthetic"], 0.5, "rows 0 and 1");
        let aesthetic = &study.voters[3];
        assert_eq!((aesthetic.votes, aesthetic.ties_of_the_others), (3, 0));
        assert_eq!(rate(aesthetic.human_agreement), (3, 2.0 / 3.0));
    }

    #[test]
    fn a_fifth_voter_decides_the_ties_of_four() {
        let study = Voting::of_ballots(&ballots(&[
            (&[1, 1, -1, -1, -1], Human::Prefers(-1)),
            (&[1, -1, 1, -1, 1], Human::Prefers(-1)),
            (&[1, 1, -1, -1, 0], Human::Prefers(-1)),
            (&[1, 1, 1, -1, 1], Human::Prefers(1)),
        ]));
        let fifth = &study.voters[4];
        assert_eq!(fifth.ties_of_the_others, 2);
        assert_eq!(rate(fifth.human_agreement_on_them), (2, 0.5));
    }

    #[test]
    fn a_file_without_votes_or_labels_has_no_rates() {
        let study = Voting::of_ballots(&ballots(&[]));
        assert_eq!((study.voted_rows, study.dawid_skene), (0, None));
        let study = Voting::of_ballots(&ballots(&[(&[1, 1, -1], Human::Missing)]));
        assert!(study.rules.iter().all(|rule| rule.human_agreement.is_none()), "{study:?}");
        assert!(study.notes[0].contains("no row with votes has a human preference"));
        assert_eq!(study.voters[0].weight, None);
    }
}
