//! The report as tables for people.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::Report;

impl Report {
    /// The report as text, under 80 columns for up to five scorers with short names.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}: {} voted on, {} failed",
            pairs(self.rows),
            self.voted_rows,
            self.failed_rows
        );
        for (reason, count) in &self.failures {
            let _ = writeln!(text, "  {count} {reason}");
        }
        let consensus = &self.consensus;
        let of_voted = |count: u64| percent(Some(count as f64 / self.voted_rows.max(1) as f64));
        let _ = writeln!(
            text,
            "consensus: first {}, second {}, tie {} (votes tied {}, unanimous {})",
            of_voted(consensus.first),
            of_voted(consensus.second),
            of_voted(consensus.ties),
            of_voted(consensus.vote_ties),
            of_voted(consensus.unanimous),
        );
        if self.human_pairs > 0 {
            let _ = writeln!(
                text,
                "agreement with people: {} of decided pairs, {} with ties as half ({}, {} human {})",
                percent(consensus.human_agreement),
                percent(consensus.human_agreement_ties_half),
                pairs(self.human_pairs),
                self.human_ties,
                if self.human_ties == 1 { "tie" } else { "ties" },
            );
            if self.human_missing > 0 {
                let _ = writeln!(text, "{} without a human label", pairs(self.human_missing));
            }
        }
        let _ = writeln!(text, "\n{}", self.scorer_table());
        if self.scorers.len() > 1 {
            let _ = writeln!(text, "\nagreement (Cohen's kappa)\n{}", self.agreement_table());
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "\nwarning: {warning}");
        }
        text
    }

    fn scorer_table(&self) -> Table {
        let header =
            ["scorer", "first", "people", "mean", "spread", "margin 5 %", "50 %", "95 %", "equal"];
        let mut table = table(&header);
        for scorer in &self.scorers {
            let [low, _, middle, _, high] = scorer.margin_quantiles;
            table.add_row([
                scorer.name.clone(),
                percent(Some(scorer.first_share)),
                percent(scorer.human_agreement),
                format!("{:.4}", scorer.score_mean),
                format!("{:.4}", scorer.score_deviation),
                format!("{low:.4}"),
                format!("{middle:.4}"),
                format!("{high:.4}"),
                scorer.equal_scores.to_string(),
            ]);
        }
        align(&mut table);
        table
    }

    fn agreement_table(&self) -> Table {
        let mut header = vec![""];
        header.extend(self.scorers.iter().map(|scorer| scorer.name.as_str()));
        let mut table = table(&header);
        for (scorer, (agreement, kappa)) in
            self.scorers.iter().zip(self.agreement.iter().zip(&self.kappa))
        {
            let mut row = vec![scorer.name.clone()];
            row.extend(agreement.iter().zip(kappa).map(|(share, kappa)| {
                format!("{} ({})", percent(Some(*share)), two_digits(*kappa))
            }));
            table.add_row(row);
        }
        align(&mut table);
        table
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

/// Names to the left, numbers to the right.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn pairs(count: u64) -> String {
    format!("{count} {}", if count == 1 { "pair" } else { "pairs" })
}

/// Two digits, and no minus before a zero.
fn two_digits(number: f64) -> String {
    let text = format!("{number:.2}");
    if text == "-0.00" { "0.00".to_owned() } else { text }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::{pairs, two_digits};

    #[test]
    fn zero_has_no_sign_and_one_no_plural() {
        assert_eq!(two_digits(-0.004), "0.00");
        assert_eq!(two_digits(-0.006), "-0.01");
        assert_eq!([pairs(1), pairs(480)], ["1 pair", "480 pairs"]);
    }
}
