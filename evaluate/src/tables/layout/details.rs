//! Tables that the paper does not have: details, other statistics, categories.

use std::collections::HashMap;

use schemas::winrates::{Statistic, WinRateRow};

use super::{Cells, READING};
use crate::tables::agreement::ALMOST_PERFECT;
use crate::tables::grid::{Grid, GridCell, GridRow, number, p_value, versus};
use crate::tables::{MetricAgreement, Tables};

impl Tables {
    /// Every number of the main table.
    pub(super) fn details(&self, set: &str) -> Grid {
        let shown = |row: &&WinRateRow| {
            row.prompt_set == set && row.category.is_none() && row.statistic == Statistic::BestOfN
        };
        let row = |row: &WinRateRow| GridRow {
            stubs: vec![versus([&row.model_a, &row.model_b]), row.metric.clone()],
            cells: [
                row.prompts.to_string(),
                row.excluded.to_string(),
                format!("{}/{}/{}", row.wins, row.ties, row.losses),
                format!("{:.2}", 100.0 * row.strict_rate),
                format!("{:.2}", 100.0 * row.win_rate),
                format!("{:.2}–{:.2}", 100.0 * row.win_rate_low, 100.0 * row.win_rate_high),
                p_value(row.p_value),
                p_value(row.p_holm),
                number(row.mean_difference),
                format!(
                    "{} to {}",
                    number(row.mean_difference_low),
                    number(row.mean_difference_high)
                ),
            ]
            .into_iter()
            .map(GridCell::plain)
            .collect(),
        };
        let columns = [
            "prompts",
            "excluded",
            "wins/ties/losses",
            "strict win rate %",
            "win rate %",
            "95 % interval",
            "p",
            "p (Holm)",
            "mean difference",
            "its 95 % interval",
        ];
        Grid {
            label: format!("details-{set}"),
            title: format!("Every cell, {set}"),
            caption: format!(
                "Best image of each prompt on {set}. Strict: ties count as losses, as in the paper. \
                 p: exact two-sided sign test without ties. Interval of the mean difference: \
                 paired bootstrap by prompt, {} resamples, seed {}.",
                self.config.bootstrap, self.config.seed
            ),
            stubs: vec!["Model".to_owned(), "Metric".to_owned()],
            groups: vec![(String::new(), columns.map(str::to_owned).to_vec())],
            rows: self.win_rates.iter().filter(shown).map(row).collect(),
        }
    }

    /// The three statistics side by side.
    pub(super) fn statistics(&self, cells: &Cells<'_>, set: &str) -> Grid {
        let shown = [Statistic::BestOfN, Statistic::MeanOfN, Statistic::AllPairs];
        let row = |pair: [&str; 2]| GridRow {
            stubs: vec![versus(pair)],
            cells: self
                .metrics
                .iter()
                .flat_map(|metric| shown.map(|by| cells.get(set, pair, metric, by)))
                .map(|row| row.map_or_else(GridCell::none, |row| GridCell::rate(&row)))
                .collect(),
        };
        let columns = ["best", "mean", "all pairs"].map(str::to_owned).to_vec();
        Grid {
            label: format!("best-mean-pairs-{set}"),
            title: format!("Best, mean and all pairs, {set}"),
            caption: format!(
                "Win rates (%) on {set} by the best image of a prompt, by the mean over its \
                 images, and over all pairs of an image of each model. Comparing the best \
                 exaggerates: maxima vary less than single images do. {READING}"
            ),
            stubs: vec!["Model".to_owned()],
            groups: self.metrics.iter().map(|metric| (metric.clone(), columns.clone())).collect(),
            rows: self.pairs().into_iter().map(row).collect(),
        }
    }

    /// Selected by one metric, scored by another.
    pub(super) fn cross_selection(&self, cells: &Cells<'_>, set: &str) -> Grid {
        let rows = self.pairs().into_iter().flat_map(|pair| {
            self.metrics.iter().map(move |selector| GridRow {
                stubs: vec![versus(pair), selector.clone()],
                cells: self.per_metric(|metric| {
                    let row = cells.cross(set, pair, [selector, metric]);
                    row.map_or_else(GridCell::none, |row| GridCell::rate(&row))
                }),
            })
        });
        Grid {
            label: format!("cross-selection-{set}"),
            title: format!("Selected by one metric, scored by another, {set}"),
            caption: format!(
                "Win rates (%) on {set}: the metric of the row selects the best image of each model, \
                 the metric of the column scores both. If both are the same metric, the cell is \
                 that of the win rates. {READING}"
            ),
            stubs: vec!["Model".to_owned(), "Selected by".to_owned()],
            groups: vec![("scored by".to_owned(), self.metrics.clone())],
            rows: rows.collect(),
        }
    }

    /// How far every two metrics order images alike.
    pub(super) fn metric_agreement(&self, set: &str) -> Grid {
        let cell = |one: &String, other: &String| {
            let of_both = |row: &&MetricAgreement| {
                row.prompt_set == set
                    && [[&row.metric_a, &row.metric_b], [&row.metric_b, &row.metric_a]]
                        .contains(&[one, other])
            };
            let cell = |row: &MetricAgreement| GridCell {
                text: format!("{:.2}", row.kappa),
                small: format!("{:.1} %", 100.0 * row.agreement),
                bold: row.kappa > ALMOST_PERFECT,
            };
            self.agreement.iter().find(of_both).map_or_else(GridCell::none, cell)
        };
        let rows = self.metrics.iter().map(|one| GridRow {
            stubs: vec![one.clone()],
            cells: self.metrics.iter().map(|other| cell(one, other)).collect(),
        });
        let is_compared = self.agreement.iter().any(|row| row.prompt_set == set);
        Grid {
            label: format!("metric-agreement-{set}"),
            title: format!("Agreement of the metrics, {set}"),
            caption: format!(
                "Cohen's kappa of two metrics on {set}: which of two images of a prompt scores \
                 higher, over all pairs of images whoever made them. 0: by chance, 1: always alike. \
                 Small type: pairs that both order alike. Bold: above {ALMOST_PERFECT}, two columns \
                 that say nearly the same."
            ),
            stubs: vec!["Metric".to_owned()],
            groups: vec![(String::new(), self.metrics.clone())],
            rows: rows.filter(|_| is_compared).collect(),
        }
    }

    /// One row for each pair and category of a set.
    pub(super) fn categories(&self, set: &str) -> Grid {
        let mut rows: Vec<GridRow> = Vec::new();
        let of_set = |row: &&WinRateRow| row.prompt_set == set && row.category.is_some();
        let mut found: HashMap<(&str, &str, &str, &str), &WinRateRow> = HashMap::new();
        let mut categories: Vec<&str> = Vec::new();
        for row in self.win_rates.iter().filter(of_set) {
            let category = row.category.as_deref().unwrap_or_default();
            found.insert((&row.model_a, &row.model_b, category, &row.metric), row);
            if !categories.contains(&category) {
                categories.push(category);
            }
        }
        for [a, b] in self.pairs() {
            for category in &categories {
                let of = |metric: &str| found.get(&(a, b, *category, metric)).copied();
                let prompts = self.metrics.iter().filter_map(|metric| of(metric));
                let prompts = prompts.map(|row| row.prompts).max().unwrap_or(0);
                let mut cells = vec![GridCell::plain(prompts.to_string())];
                cells.extend(
                    self.per_metric(|metric| {
                        of(metric).map_or_else(GridCell::none, GridCell::rate)
                    }),
                );
                rows.push(GridRow { stubs: vec![versus([a, b]), (*category).to_owned()], cells });
            }
        }
        let columns = std::iter::once("prompts".to_owned()).chain(self.metrics.iter().cloned());
        Grid {
            label: format!("categories-{set}"),
            title: format!("By category, {set}"),
            caption: format!("Win rates (%) in the categories of {set}. {READING}"),
            stubs: vec!["Model".to_owned(), "Category".to_owned()],
            groups: vec![(String::new(), columns.collect())],
            rows,
        }
    }
}
