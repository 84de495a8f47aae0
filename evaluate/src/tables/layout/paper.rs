//! The layouts of the paper.

use schemas::winrates::Statistic;

use super::{Cells, READING};
use crate::tables::grid::{Grid, GridCell, GridRow, counted, list, number, versus};
use crate::tables::{ALL_SETS, MeanRow, Tables};

/// One number of a row of means.
type Part = fn(&MeanRow) -> f64;

impl Tables {
    /// The paper's Tables 1, 2 and 5: pairs × (sets × metrics).
    pub(super) fn main(&self, cells: &Cells<'_>, sets: &[&str]) -> Grid {
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
                "Win rates (%) of {} across {over} and {}: the model whose best image has the higher \
                 score wins the prompt. {READING}",
                self.compared(),
                counted(&self.metrics, "metric"),
            ),
            stubs: vec!["Model".to_owned()],
            groups: sets.iter().map(|set| ((*set).to_owned(), self.metrics.clone())).collect(),
            rows: self.pairs().into_iter().map(row).collect(),
        }
    }

    /// The paper's Tables 3 and 4: models × (baselines × metrics), of one set.
    pub(super) fn against(&self, cells: &Cells<'_>, set: &str) -> Grid {
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
                "Win rates (%) on {set} against {} across {}. {READING}",
                list(baselines),
                counted(&self.metrics, "metric"),
            ),
            stubs: vec!["Model".to_owned()],
            groups: baselines
                .iter()
                .map(|baseline| (format!("over {baseline}"), self.metrics.clone()))
                .collect(),
            rows: self.models.iter().filter(shown).map(row).collect(),
        }
    }

    /// The paper's Table 6: mean scores.
    pub(super) fn mean_scores(&self, set: &str) -> Grid {
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
                "Mean scores of {} across {} on {set}: of the best image of each prompt, and of all \
                 its images.",
                list(&self.models),
                counted(&self.metrics, "metric"),
            ),
            stubs: vec!["Model".to_owned()],
            groups: vec![
                ("best image".to_owned(), self.metrics.clone()),
                ("all images".to_owned(), self.metrics.clone()),
            ],
            rows: self.models.iter().map(row).collect(),
        }
    }

    /// The paper's Table 7: mean, minimum, maximum, standard deviation.
    pub(super) fn score_statistics(&self, set: &str) -> Grid {
        let shown: [(&str, Part); 4] = [
            ("Mean", |row| row.mean),
            ("Min", |row| row.min),
            ("Max", |row| row.max),
            ("Std", |row| row.std),
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
                "Statistics of the best score of each prompt on {set} across {}.",
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
}
