//! The study as tables to read.

use std::fmt::Write as _;

use runkit::logging::counted;
use runkit::program;

use super::super::text::{COLUMNS_OF_A_FILE, Grid, percent};
use super::{Rate, Voting};

impl Voting {
    /// The study as text that fits the terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let columns = program::columns_of_stdout().unwrap_or(COLUMNS_OF_A_FILE);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}: {} with votes, {} of them with a human preference",
            counted(self.rows, "pairs"),
            self.voted_rows,
            self.human_pairs
        );
        let _ = writeln!(text, "\nhuman agreement, in % [95 % Wilson interval]");
        let _ = writeln!(text, "{}", self.rule_table().to_text(columns));
        if self.rules.iter().any(|rule| rule.name == "weighted") {
            let _ = writeln!(text, "weighted: by weights of the other four of five folds");
        }
        let _ = writeln!(text, "\nvoters");
        let _ = writeln!(text, "{}", self.voter_table().to_text(columns));
        let _ = writeln!(text, "\nwho decides: pairs that another vote would change");
        let _ = writeln!(text, "{}", self.pivotal_table().to_text(columns));
        if let Some(model) = &self.dawid_skene {
            let _ = writeln!(
                text,
                "\nDawid and Skene: image 0 is the better one in {}, image 1 in {} ({} iterations)",
                percent(Some(model.class_prior[0])),
                percent(Some(model.class_prior[1])),
                model.iterations
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "\nnote: {note}");
        }
        text
    }

    fn rule_table(&self) -> Grid {
        let mut grid = Grid::new(&[
            "rule",
            "coverage",
            "ties",
            "of decided pairs",
            "ties as half",
            "on the\nmajority's ties",
            "against the\nmajority",
        ]);
        for rule in &self.rules {
            grid.rows.push(vec![
                rule.name.replace('_', "-"),
                percent(Some(rule.coverage)),
                rule.ties.to_string(),
                interval(rule.human_agreement),
                interval(rule.human_agreement_ties_half),
                of_pairs(rule.on_ties_of_the_majority),
                of_pairs(rule.against_the_majority),
            ]);
        }
        grid
    }

    fn voter_table(&self) -> Grid {
        let mut grid = Grid::new(&[
            "voter",
            "human\nagreement",
            "weight",
            "right on\nimage 0",
            "\nimage 1",
            "ties of\nthe others",
            "people agree\non them",
        ]);
        for voter in &self.voters {
            let model = self.dawid_skene.as_ref();
            let rates = model.and_then(|model| model.reliability.get(&voter.name));
            let [first, second] = rates.copied().unwrap_or_default();
            grid.rows.push(vec![
                voter.name.clone(),
                interval(voter.human_agreement),
                voter.weight.map_or_else(|| "–".to_owned(), |weight| format!("{weight:.2}")),
                percent(first),
                percent(second),
                voter.ties_of_the_others.to_string(),
                of_pairs(voter.human_agreement_on_them),
            ]);
        }
        grid
    }

    fn pivotal_table(&self) -> Grid {
        let mut header = vec!["rule"];
        header.extend(self.voters.iter().map(|voter| voter.name.as_str()));
        let mut grid = Grid::new(&header);
        for rule in &self.rules {
            let mut row = vec![rule.name.replace('_', "-")];
            let of_voter = |name: &str| percent(rule.pivotal.get(name).copied());
            row.extend(self.voters.iter().map(|voter| of_voter(&voter.name)));
            grid.rows.push(row);
        }
        grid
    }
}

fn interval(rate: Option<Rate>) -> String {
    rate.map_or_else(
        || "–".to_owned(),
        |Rate { rate, low, high, .. }| {
            format!("{:.1} [{:.1}–{:.1}]", 100.0 * rate, 100.0 * low, 100.0 * high)
        },
    )
}

fn of_pairs(rate: Option<Rate>) -> String {
    rate.map_or_else(
        || "–".to_owned(),
        |Rate { pairs, rate, .. }| format!("{:.0} of {pairs}", (rate * pairs as f64).round()),
    )
}
