//! A table as cells, before it is Markdown, LaTeX or text, and how it writes numbers and names.

use schemas::winrates::WinRateRow;

use super::SIGNIFICANCE;

/// A table, ready for any form.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Grid {
    /// A short name for references.
    pub(super) label: String,
    pub(super) title: String,
    pub(super) caption: String,
    /// The names of the columns of text on the left.
    pub(super) stubs: Vec<String>,
    /// Groups of columns: a name, which may be empty, and the names of the columns.
    pub(super) groups: Vec<(String, Vec<String>)>,
    pub(super) rows: Vec<GridRow>,
}

/// A row: text on the left, then a cell for each column.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GridRow {
    pub(super) stubs: Vec<String>,
    pub(super) cells: Vec<GridCell>,
}

/// A number, with more in small type beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GridCell {
    pub(super) text: String,
    pub(super) small: String,
    pub(super) bold: bool,
}

impl GridCell {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A dash for a missing value.
    pub(super) fn none() -> Self {
        Self::plain("–")
    }

    /// A win rate in per cent with its interval.
    pub(super) fn rate(row: &WinRateRow) -> Self {
        Self {
            text: percent(row.win_rate),
            small: format!("{:.1}–{:.1}", 100.0 * row.win_rate_low, 100.0 * row.win_rate_high),
            bold: row.p_holm < SIGNIFICANCE,
        }
    }
}

pub(super) fn versus([a, b]: [&str; 2]) -> String {
    format!("{a} vs {b}")
}

/// `a, b and c`
pub(super) fn list<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// `2 metrics (clip and hps)`
pub(super) fn counted<S: AsRef<str>>(names: &[S], what: &str) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{} {what}{plural} ({})", names.len(), list(names))
}

fn percent(rate: f64) -> String {
    format!("{:.1}", 100.0 * rate)
}

/// Four decimals, which the scores of all metrics need.
pub(super) fn number(value: f64) -> String {
    format!("{value:.4}")
}

pub(super) fn p_value(p: f64) -> String {
    if p > 0.0 && p < 1e-4 { format!("{p:.0e}") } else { format!("{p:.4}") }
}
