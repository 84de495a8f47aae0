//! The report as tables to read.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use runkit::logging::counted;
use runkit::program;

use super::Report;

/// Columns if stdout is not a terminal.
pub(super) const COLUMNS_OF_A_FILE: usize = 100;

impl Report {
    /// The report as text that fits the terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let columns = program::columns_of_stdout().unwrap_or(COLUMNS_OF_A_FILE);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}: {} voted on, {} failed",
            counted(self.rows, "pairs"),
            self.voted_rows,
            self.failed_rows
        );
        for (reason, count) in &self.failures {
            let _ = writeln!(text, "  {count} {reason}");
        }
        if self.partial_rows > 0 {
            let failed = self.scorers.iter().filter(|scorer| scorer.failures > 0);
            let failed: Vec<String> =
                failed.map(|scorer| format!("{} in {}", scorer.name, scorer.failures)).collect();
            let _ = writeln!(
                text,
                "{} partial, without the vote of {}",
                counted(self.partial_rows, "pairs"),
                failed.join(", ")
            );
        }
        let consensus = &self.consensus;
        let of_voted = |count: u64| percent(Some(count as f64 / self.voted_rows.max(1) as f64));
        let _ = writeln!(
            text,
            "consensus: image 0 {}, image 1 {}, tie {} (votes tied {}, unanimous {})",
            of_voted(consensus.image_0),
            of_voted(consensus.image_1),
            of_voted(consensus.ties),
            of_voted(consensus.vote_ties),
            of_voted(consensus.unanimous),
        );
        if self.human_pairs > 0 {
            let _ = writeln!(
                text,
                "human agreement: {} of decided pairs, {} with ties as half ({}, {})",
                percent(consensus.human_agreement),
                percent(consensus.human_agreement_ties_half),
                counted(self.human_pairs, "pairs"),
                counted(self.human_ties, "human ties"),
            );
            if self.human_missing > 0 {
                let _ = writeln!(
                    text,
                    "{} without a human label",
                    counted(self.human_missing, "pairs")
                );
            }
        }
        let _ = writeln!(text, "\n{}", self.scorer_table().to_text(columns));
        if self.scorers.len() > 1 {
            let table = self.agreement_table().to_text(columns);
            let _ = writeln!(text, "\nagreement (Cohen's kappa)\n{table}");
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "\nwarning: {warning}");
        }
        text
    }

    fn scorer_table(&self) -> Grid {
        let mut grid = Grid::new(&[
            "scorer",
            "votes for\nimage 0",
            "human\nagreement",
            "mean",
            "std",
            "margin\n5 %",
            "\n50 %",
            "\n95 %",
            "exact\nties",
        ]);
        for scorer in &self.scorers {
            let [low, _, middle, _, high] = scorer.margin_quantiles;
            grid.rows.push(vec![
                scorer.name.clone(),
                percent(Some(scorer.votes_image_0)),
                percent(scorer.human_agreement),
                format!("{:.4}", scorer.score_mean),
                format!("{:.4}", scorer.score_std),
                format!("{low:.4}"),
                format!("{middle:.4}"),
                format!("{high:.4}"),
                scorer.exact_ties.to_string(),
            ]);
        }
        grid
    }

    fn agreement_table(&self) -> Grid {
        let mut header = vec![""];
        header.extend(self.scorers.iter().map(|scorer| scorer.name.as_str()));
        let mut grid = Grid::new(&header);
        for (scorer, (agreement, kappa)) in
            self.scorers.iter().zip(self.agreement.iter().zip(&self.kappa))
        {
            let mut row = vec![scorer.name.clone()];
            row.extend(
                agreement.iter().zip(kappa).map(|(rate, kappa)| {
                    format!("{} ({})", percent(Some(*rate)), two_digits(*kappa))
                }),
            );
            grid.rows.push(row);
        }
        grid
    }
}

/// A table with names in the first column and numbers in the others.
pub(super) struct Grid {
    /// The header, then the rows.
    pub(super) rows: Vec<Vec<String>>,
}

impl Grid {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// The table as text. If it is wider than `most` columns of a terminal it becomes several
    /// tables, one below the other, each with the names.
    pub(super) fn to_text(&self, most: usize) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let lines = cells.flat_map(|cell| cell.lines().map(|line| line.chars().count()));
            // A space on each side.
            lines.max().unwrap_or(0) + 2
        };
        let count = self.rows.first().map_or(0, Vec::len);
        let mut tables: Vec<Vec<usize>> = Vec::new();
        let mut used = 0;
        for column in 1..count {
            match tables.last_mut() {
                Some(columns) if used + width(column) <= most => columns.push(column),
                _ => {
                    tables.push(vec![0, column]);
                    used = width(0);
                }
            }
            used += width(column);
        }
        let tables = tables.iter().map(|columns| self.table_of(columns).to_string());
        tables.collect::<Vec<_>>().join("\n\n")
    }

    fn table_of(&self, columns: &[usize]) -> Table {
        let mut rows =
            self.rows.iter().map(|row| columns.iter().filter_map(|&column| row.get(column)));
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if let Some(header) = rows.next() {
            table.set_header(header);
        }
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Two digits, and no minus before a zero.
fn two_digits(number: f64) -> String {
    let text = format!("{number:.2}");
    if text == "-0.00" { "0.00".to_owned() } else { text }
}

pub(super) fn percent(rate: Option<f64>) -> String {
    rate.map_or_else(|| "–".to_owned(), |rate| format!("{:.1} %", 100.0 * rate))
}

#[cfg(test)]
mod tests {
    use super::{Grid, two_digits};

    #[test]
    fn a_table_that_is_too_wide_becomes_several() {
        let mut grid = Grid::new(&["name", "first\nnumber", "second", "third"]);
        grid.rows.push(["clip", "1.0", "22.0", "333.0"].map(str::to_owned).to_vec());
        assert_eq!(grid.to_text(100).lines().count(), 3);
        for width in [10, 20, 24] {
            let text = grid.to_text(width);
            assert!(text.contains("333.0") && text.contains("number"), "{text}");
            assert!(text.matches("clip").count() > 1, "{text}");
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(width < 20 || widest.unwrap() <= width, "{width}: {text}");
        }
    }

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(two_digits(-0.004), "0.00");
        assert_eq!(two_digits(-0.006), "-0.01");
    }
}
