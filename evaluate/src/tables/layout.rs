//! The tables as grids of cells, in the layouts of the paper.

use std::collections::HashMap;

use schemas::winrates::{Statistic, WinRateRow};

use super::{ALL_SETS, MeanRow, SIGNIFICANCE, Tables};

/// A table, ready to be written in any form.
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

/// A number with what stands beside it in small type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GridCell {
    pub(super) text: String,
    pub(super) small: String,
    pub(super) bold: bool,
}

impl GridCell {
    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A dash where there is nothing.
    fn none() -> Self {
        Self::plain("–")
    }

    /// A win rate in per cent with its interval.
    fn rate(row: &WinRateRow) -> Self {
        Self {
            text: percent(row.win_rate),
            small: format!("{:.1}–{:.1}", 100.0 * row.low, 100.0 * row.high),
            bold: row.p_holm < SIGNIFICANCE,
        }
    }
}

/// A caption names up to this many pairs of models.
const NAMED_PAIRS: usize = 6;
/// What bold and small type mean, said under every table of win rates.
const READING: &str = "Ties count one half; in small type the 95 % Wilson interval; bold where the \
     exact sign test is significant at 5 % after Holm's correction.";

/// Everything that is looked up by name.
struct Cells<'a>(HashMap<Key<'a>, &'a WinRateRow>);

/// Set, model A, model B, metric, statistic, chooser; of whole sets.
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
                row.chosen_by.as_deref().filter(|_| row.statistic == Statistic::CrossSelection),
            )
        };
        Self(whole.map(|row| (key(row), row)).collect())
    }

    /// The cell of A against B, mirrored where the tables hold B against A.
    fn get(&self, set: &str, [a, b]: [&str; 2], metric: &str, by: Statistic) -> Option<WinRateRow> {
        let as_it_is = self.0.get(&(set, a, b, metric, by, None)).map(|row| (*row).clone());
        as_it_is.or_else(|| self.0.get(&(set, b, a, metric, by, None)).map(|row| mirrored(row)))
    }

    fn cross(
        &self,
        set: &str,
        [a, b]: [&str; 2],
        [chooser, metric]: [&str; 2],
    ) -> Option<WinRateRow> {
        if chooser == metric {
            return self.get(set, [a, b], metric, Statistic::BestOfN);
        }
        let key = (set, a, b, metric, Statistic::CrossSelection, Some(chooser));
        self.0.get(&key).map(|row| (*row).clone())
    }
}

/// The same comparison seen from the other model.
pub(super) fn mirrored(row: &WinRateRow) -> WinRateRow {
    let ties = row.win_rate - row.strict_rate;
    WinRateRow {
        model_a: row.model_b.clone(),
        model_b: row.model_a.clone(),
        wins: row.losses,
        losses: row.wins,
        strict_rate: (1.0 - row.win_rate - ties).max(0.0),
        win_rate: 1.0 - row.win_rate,
        low: 1.0 - row.high,
        high: 1.0 - row.low,
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
        grids.extend(self.scopes().into_iter().map(|set| self.mean_scores(set)));
        grids.extend(self.scopes().into_iter().map(|set| self.score_statistics(set)));
        grids.extend(self.scopes().into_iter().map(|set| self.details(set)));
        grids.extend(self.scopes().into_iter().map(|set| self.statistics(&cells, set)));
        if self.metrics.len() > 1 {
            grids.extend(self.scopes().into_iter().map(|set| self.cross_selection(&cells, set)));
        }
        grids.extend(self.sets.iter().map(|set| self.categories(set)));
        grids.retain(|grid| !grid.rows.is_empty());
        grids
    }

    /// The tables for the terminal: pairs × metrics of one set.
    pub(super) fn short_grids(&self) -> Vec<Grid> {
        let cells = Cells::new(self);
        let grids = self.scopes().into_iter().map(|set| Grid {
            title: format!("{set}: win rates in %, {}", self.power(set)),
            ..self.main(&cells, &[set])
        });
        grids.filter(|grid| !grid.rows.is_empty()).collect()
    }

    /// What the number of prompts of a set can show.
    pub(super) fn power(&self, set: &str) -> String {
        let of_set = |row: &&WinRateRow| row.prompt_set == set && row.category.is_none();
        let largest = self.win_rates.iter().filter(of_set).max_by_key(|row| row.prompts);
        largest.map_or_else(
            || "no prompt could be compared".to_owned(),
            |row| {
                format!(
                    "with {} prompts a difference of {:.1} points from 50 % is seen with 80 % power",
                    row.prompts,
                    100.0 * row.detectable
                )
            },
        )
    }

    /// Pairs of models in the order of the paper.
    fn pairs(&self) -> Vec<[&str; 2]> {
        let mut pairs = Vec::new();
        for (place, a) in self.models.iter().enumerate() {
            pairs.extend(self.models.iter().take(place).map(|b| [a.as_str(), b.as_str()]));
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

    /// The paper's Tables 1, 2 and 5: pairs × (sets × metrics).
    fn main(&self, cells: &Cells<'_>, sets: &[&str]) -> Grid {
        let row = |pair: [&str; 2]| GridRow {
            stubs: vec![versus(pair)],
            cells: sets
                .iter()
                .flat_map(|set| {
                    self.per_metric(|metric| {
                        let row = cells.get(set, pair, metric, Statistic::BestOfN);
                        row.map_or_else(GridCell::none, |row| GridCell::rate(&row))
                    })
                })
                .collect(),
        };
        let together = sets == [ALL_SETS] && self.sets.len() > 1;
        let (title, over) = if together {
            ("Win rates, all sets together", format!("all {} sets together", self.sets.len()))
        } else {
            ("Win rates", counted(sets, "prompt set"))
        };
        Grid {
            label: if together { "win-rates-all" } else { "win-rates" }.to_owned(),
            title: title.to_owned(),
            caption: format!(
                "Comparison of win rates (%) for {} across {over} and {}: a prompt is won by the \
                 model whose best picture has the higher score. {READING}",
                self.compared(),
                counted(&self.metrics, "metric"),
            ),
            stubs: vec!["Model".to_owned()],
            groups: sets.iter().map(|set| ((*set).to_owned(), self.metrics.clone())).collect(),
            rows: self.pairs().into_iter().map(row).collect(),
        }
    }

    /// The paper's Tables 3 and 4: models × (baselines × metrics), of one set.
    fn against(&self, cells: &Cells<'_>, set: &str) -> Grid {
        let baselines = &self.config.baselines;
        let row = |model: &String| GridRow {
            stubs: vec![model.clone()],
            cells: baselines
                .iter()
                .flat_map(|baseline| {
                    self.per_metric(|metric| {
                        let pair = [model.as_str(), baseline.as_str()];
                        let row = cells.get(set, pair, metric, Statistic::BestOfN);
                        row.map_or_else(GridCell::none, |row| GridCell::rate(&row))
                    })
                })
                .collect(),
        };
        let shown = |model: &&String| Some(*model) != baselines.first();
        Grid {
            label: format!("against-{set}"),
            title: format!("Win rates against {}, {set}", list(baselines)),
            caption: format!(
                "Ablation study on {set}: win rates (%) against {} across {}. {READING}",
                list(baselines),
                counted(&self.metrics, "metric"),
            ),
            stubs: vec!["Label preference".to_owned()],
            groups: baselines
                .iter()
                .map(|baseline| (format!("Win against {baseline}"), self.metrics.clone()))
                .collect(),
            rows: self.models.iter().filter(shown).map(row).collect(),
        }
    }

    /// The paper's Table 6: mean scores.
    fn mean_scores(&self, set: &str) -> Grid {
        let row = |model: &String| GridRow {
            stubs: vec![model.clone()],
            cells: [Statistic::BestOfN, Statistic::MeanOfN]
                .into_iter()
                .flat_map(|statistic| {
                    self.per_metric(|metric| {
                        let mean = self.mean(set, model, metric, statistic);
                        mean.map_or_else(GridCell::none, |it| GridCell::plain(number(it.mean)))
                    })
                })
                .collect(),
        };
        Grid {
            label: format!("means-{set}"),
            title: format!("Mean scores, {set}"),
            caption: format!(
                "Average scores for {} across {} on {set}: of the best picture of each prompt, and \
                 of the mean over its pictures.",
                list(&self.models),
                counted(&self.metrics, "metric"),
            ),
            stubs: vec!["Model".to_owned()],
            groups: vec![
                ("best of the pictures".to_owned(), self.metrics.clone()),
                ("mean of the pictures".to_owned(), self.metrics.clone()),
            ],
            rows: self.models.iter().map(row).collect(),
        }
    }

    /// The paper's Table 7: mean, least, largest, standard deviation.
    fn score_statistics(&self, set: &str) -> Grid {
        let shown: [(&str, fn(&MeanRow) -> f64); 4] = [
            ("Mean", |row| row.mean),
            ("Min", |row| row.min),
            ("Max", |row| row.max),
            ("Standard deviation", |row| row.std),
        ];
        let rows = self.models.iter().flat_map(|model| {
            shown.into_iter().map(move |(name, value)| GridRow {
                stubs: vec![model.clone(), name.to_owned()],
                cells: self.per_metric(|metric| {
                    let row = self.mean(set, model, metric, Statistic::BestOfN);
                    row.map_or_else(GridCell::none, |row| GridCell::plain(number(value(row))))
                }),
            })
        });
        Grid {
            label: format!("statistics-{set}"),
            title: format!("Score statistics, {set}"),
            caption: format!(
                "Statistical summary of the best score of each prompt on {set} across {}.",
                counted(&self.metrics, "metric")
            ),
            stubs: vec!["Model".to_owned(), "Statistic".to_owned()],
            groups: vec![(String::new(), self.metrics.clone())],
            rows: rows.collect(),
        }
    }

    fn mean(&self, set: &str, model: &str, metric: &str, by: Statistic) -> Option<&MeanRow> {
        self.means.iter().find(|row| {
            row.prompt_set == set
                && row.model == model
                && row.metric == metric
                && row.statistic == by
        })
    }

    /// Every number of the main table.
    fn details(&self, set: &str) -> Grid {
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
                format!("{:.2}–{:.2}", 100.0 * row.low, 100.0 * row.high),
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
            "left out",
            "wins/ties/losses",
            "strict %",
            "win rate %",
            "95 % interval",
            "p",
            "p (Holm)",
            "mean difference",
            "95 % interval of it",
        ];
        Grid {
            label: format!("details-{set}"),
            title: format!("Every cell, {set}"),
            caption: format!(
                "Best of the pictures on {set}. Strict: ties count as losses, the paper's figure. p: \
                 exact two-sided sign test without ties. Interval of the mean difference: paired \
                 bootstrap by prompt, {} resamples, seed {}.",
                self.config.bootstrap, self.config.seed
            ),
            stubs: vec!["Model".to_owned(), "Metric".to_owned()],
            groups: vec![(String::new(), columns.map(str::to_owned).to_vec())],
            rows: self.win_rates.iter().filter(shown).map(row).collect(),
        }
    }

    /// The three statistics side by side.
    fn statistics(&self, cells: &Cells<'_>, set: &str) -> Grid {
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
                "Win rates (%) on {set} by the best picture of a prompt, by the mean over its \
                 pictures, and over all pairs of a picture of either model. Comparing the best \
                 exaggerates: maxima vary less than single pictures do. {READING}"
            ),
            stubs: vec!["Model".to_owned()],
            groups: self.metrics.iter().map(|metric| (metric.clone(), columns.clone())).collect(),
            rows: self.pairs().into_iter().map(row).collect(),
        }
    }

    /// Chosen by one metric, judged by another.
    fn cross_selection(&self, cells: &Cells<'_>, set: &str) -> Grid {
        let rows = self.pairs().into_iter().flat_map(|pair| {
            self.metrics.iter().map(move |chooser| GridRow {
                stubs: vec![versus(pair), chooser.clone()],
                cells: self.per_metric(|metric| {
                    let row = cells.cross(set, pair, [chooser, metric]);
                    row.map_or_else(GridCell::none, |row| GridCell::rate(&row))
                }),
            })
        });
        Grid {
            label: format!("cross-selection-{set}"),
            title: format!("Chosen by one metric, judged by another, {set}"),
            caption: format!(
                "Win rates (%) on {set} when the metric of the row chooses the best picture of each \
                 model and the metric of the column judges the two; where both are the same it is \
                 the table of win rates. {READING}"
            ),
            stubs: vec!["Model".to_owned(), "Chosen by".to_owned()],
            groups: vec![("judged by".to_owned(), self.metrics.clone())],
            rows: rows.collect(),
        }
    }

    /// One row for each pair and category of a set.
    fn categories(&self, set: &str) -> Grid {
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

fn versus([a, b]: [&str; 2]) -> String {
    format!("{a} vs {b}")
}

/// `a, b and c`
fn list<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// `2 metrics (clip and hps)`
fn counted<S: AsRef<str>>(names: &[S], what: &str) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{} {what}{plural} ({})", names.len(), list(names))
}

fn percent(rate: f64) -> String {
    format!("{:.1}", 100.0 * rate)
}

/// Four places, which the scores of all metrics need.
fn number(value: f64) -> String {
    format!("{value:.4}")
}

fn p_value(p: f64) -> String {
    if p > 0.0 && p < 1e-4 { format!("{p:.0e}") } else { format!("{p:.4}") }
}
