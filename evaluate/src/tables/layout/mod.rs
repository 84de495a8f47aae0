//! The tables as grids of cells, in the order of the files.

mod details;
mod paper;

use std::collections::HashMap;

use schemas::winrates::{Statistic, WinRateRow};

use super::grid::{Grid, GridCell, list, versus};
use super::{ALL_SETS, Tables, hps_v2};

/// A caption names up to this many pairs of models.
const NAMED_PAIRS: usize = 6;
/// The meaning of bold and small type, under every table of win rates.
const READING: &str = "Ties count one half. Small type: 95 % Wilson interval. Bold: significant at \
     5 % by the exact sign test after Holm's correction.";

/// Win rates of whole sets, by name.
struct Cells<'a>(HashMap<Key<'a>, &'a WinRateRow>);

/// Set, model A, model B, metric, statistic, selecting metric.
type Key<'a> = (&'a str, &'a str, &'a str, &'a str, Statistic, Option<&'a str>);

impl<'a> Cells<'a> {
    fn new(tables: &'a Tables) -> Self {
        let whole = tables.win_rates.iter().filter(|row| row.category.is_none());
        let key = |row: &'a WinRateRow| {
            (
                row.prompt_set.as_str(),
                row.model_a.as_str(),
                row.model_b.as_str(),
                row.metric.as_str(),
                row.statistic,
                row.selected_by.as_deref().filter(|_| row.statistic == Statistic::CrossSelection),
            )
        };
        Self(whole.map(|row| (key(row), row)).collect())
    }

    /// The cell of A against B, swapped if the tables hold B against A.
    fn get(&self, set: &str, [a, b]: [&str; 2], metric: &str, by: Statistic) -> Option<WinRateRow> {
        let as_it_is = self.0.get(&(set, a, b, metric, by, None)).map(|row| (*row).clone());
        as_it_is.or_else(|| self.0.get(&(set, b, a, metric, by, None)).map(|row| swapped(row)))
    }

    fn cross(
        &self,
        set: &str,
        [a, b]: [&str; 2],
        [selector, metric]: [&str; 2],
    ) -> Option<WinRateRow> {
        if selector == metric {
            return self.get(set, [a, b], metric, Statistic::BestOfN);
        }
        let key = (set, a, b, metric, Statistic::CrossSelection, Some(selector));
        self.0.get(&key).map(|row| (*row).clone())
    }
}

/// The same comparison seen from the other model.
fn swapped(row: &WinRateRow) -> WinRateRow {
    let ties = row.win_rate - row.strict_rate;
    WinRateRow {
        model_a: row.model_b.clone(),
        model_b: row.model_a.clone(),
        wins: row.losses,
        losses: row.wins,
        strict_rate: (1.0 - row.win_rate - ties).max(0.0),
        win_rate: 1.0 - row.win_rate,
        win_rate_low: 1.0 - row.win_rate_high,
        win_rate_high: 1.0 - row.win_rate_low,
        mean_difference: -row.mean_difference,
        mean_difference_low: -row.mean_difference_high,
        mean_difference_high: -row.mean_difference_low,
        ..row.clone()
    }
}

impl Tables {
    /// All tables, in the order of the files.
    pub(super) fn grids(&self) -> Vec<Grid> {
        let cells = Cells::new(self);
        let mut grids = Vec::new();
        grids.push(self.main(&cells, &self.sets.iter().map(String::as_str).collect::<Vec<_>>()));
        if self.sets.len() > 1 {
            grids.push(self.main(&cells, &[ALL_SETS]));
        }
        if !self.config.baselines.is_empty() {
            grids.extend(self.scopes().into_iter().map(|set| self.against(&cells, set)));
        }
        grids.extend(hps_v2::grids(&self.hps_v2));
        grids.extend(self.scopes().into_iter().map(|set| self.mean_scores(set)));
        grids.extend(self.scopes().into_iter().map(|set| self.score_statistics(set)));
        grids.extend(self.scopes().into_iter().map(|set| self.details(set)));
        grids.extend(self.scopes().into_iter().map(|set| self.statistics(&cells, set)));
        if self.metrics.len() > 1 {
            grids.extend(self.scopes().into_iter().map(|set| self.cross_selection(&cells, set)));
            grids.extend(self.scopes().into_iter().map(|set| self.metric_agreement(set)));
        }
        grids.extend(self.sets.iter().map(|set| self.categories(set)));
        grids.retain(|grid| !grid.rows.is_empty());
        grids
    }

    /// The tables for the terminal: pairs × metrics of one set.
    pub(super) fn short_grids(&self) -> Vec<Grid> {
        let cells = Cells::new(self);
        let grids = self.scopes().into_iter().map(|set| Grid {
            title: format!("Win rates on {set}, in %; {}", self.power(set)),
            ..self.main(&cells, &[set])
        });
        grids.filter(|grid| !grid.rows.is_empty()).collect()
    }

    /// The statistical power of a set, by its number of prompts.
    pub(super) fn power(&self, set: &str) -> String {
        let of_set = |row: &&WinRateRow| row.prompt_set == set && row.category.is_none();
        let largest = self.win_rates.iter().filter(of_set).max_by_key(|row| row.prompts);
        largest.map_or_else(
            || "no prompt could be compared".to_owned(),
            |row| {
                format!(
                    "minimum detectable effect at 80 % power: ±{:.1} points (n = {})",
                    100.0 * row.minimum_detectable_effect,
                    row.prompts
                )
            },
        )
    }

    /// Pairs of models in the order of the paper.
    fn pairs(&self) -> Vec<[&str; 2]> {
        let mut pairs = Vec::new();
        for (number, a) in self.models.iter().enumerate() {
            pairs.extend(self.models.iter().take(number).map(|b| [a.as_str(), b.as_str()]));
        }
        pairs
    }

    /// The pairs in words.
    fn compared(&self) -> String {
        let pairs: Vec<String> = self.pairs().into_iter().map(versus).collect();
        if pairs.len() > NAMED_PAIRS {
            return format!("every pair of {} models", self.models.len());
        }
        list(&pairs)
    }

    fn per_metric(&self, cell: impl Fn(&str) -> GridCell) -> Vec<GridCell> {
        self.metrics.iter().map(|metric| cell(metric)).collect()
    }
}
