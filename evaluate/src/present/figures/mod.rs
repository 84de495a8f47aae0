//! Figures of an evaluation, as SVG: win rates with intervals, distributions of scores, who chooses
//! against who judges, categories, and how scorers agree about the training data.
//!
//! Colours are Okabe and Ito's, which colour-blind people tell apart; every metric has a shape of its
//! own as well. Classes in the drawings let a page recolour them for dark screens.

mod agreement;
mod forest;
mod heatmap;
mod ridges;

use std::path::Path;

use schemas::labels::LabelsError;
use schemas::winrates::{Statistic, WinRateRow};
use serde::Serialize;

use crate::present::render::text::{Ruler, Weight, clean};
use crate::present::render::{RenderError, Renderer};
use crate::scores_index::ScoresIndex;
use crate::tables::{ALL_SETS, SIGNIFICANCE};

use forest::{Cell, Group};
use heatmap::Matrix;

/// Okabe and Ito's colours without black and yellow, which do not show on dark and on white.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#8c6d1f"];
/// The width of every figure, in pixels.
const WIDTH: f32 = 900.0;
/// More pairs than this are shown only where one of the first models takes part.
const MOST_PAIRS: usize = 15;
/// The first models, which others are compared with: the paper has a base and one earlier method.
const BASELINES: usize = 2;
/// Pairs with figures of their own about categories, and pairs of a figure about choice.
const MOST_DETAILED_PAIRS: usize = 6;

/// A figure cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// It cannot be drawn.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The labels cannot be read.
    #[error(transparent)]
    Labels(#[from] LabelsError),
}

/// A figure with its words.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The name of its file, without extension.
    pub name: String,
    /// The set of prompts, where it is about one.
    pub set: Option<String>,
    /// What it shows, in a few words.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The drawing.
    pub svg: String,
}

/// All figures of an evaluation.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// Win rates with intervals, for each set of prompts.
    pub win_rates: Vec<Figure>,
    /// Chosen by one metric, judged by another.
    pub cross_selection: Option<Figure>,
    /// Win rates by category, for each set with categories and the first pairs.
    pub categories: Vec<Figure>,
    /// Distributions of scores.
    pub scores: Option<Figure>,
    /// Agreement of the scorers about the training data.
    pub agreement: Option<Figure>,
}

impl Figures {
    /// Draws everything that the tables hold.
    ///
    /// # Errors
    /// When a drawing fails, or the labels are given and cannot be read.
    pub fn draw(
        renderer: &Renderer,
        index: &ScoresIndex<'_>,
        win_rates: &[WinRateRow],
        labels: Option<&Path>,
    ) -> Result<Self, FigureError> {
        let drawing = Drawing { renderer, index, win_rates };
        let sets = sets(win_rates);
        let agreement = match labels {
            Some(path) => Some(drawing.agreement(path)?),
            None => None,
        };
        let mut figures = Self {
            scores: drawing.scores()?,
            cross_selection: drawing.cross_selection(sets.first().copied())?,
            agreement,
            ..Self::default()
        };
        for set in &sets {
            figures.win_rates.extend(drawing.win_rates(set)?);
        }
        for set in sets.iter().filter(|set| sets.len() == 1 || **set != ALL_SETS) {
            figures.categories.append(&mut drawing.categories(set)?);
        }
        Ok(figures)
    }

    /// The figures in the order of the report.
    pub fn iter(&self) -> impl Iterator<Item = &Figure> {
        let shown = self.win_rates.iter().chain(&self.cross_selection).chain(&self.categories);
        shown.chain(&self.scores).chain(&self.agreement)
    }

    /// Changes every figure.
    pub fn each(&mut self, change: fn(&mut Figure)) {
        let many = self.win_rates.iter_mut().chain(&mut self.categories);
        let single = [&mut self.cross_selection, &mut self.scores, &mut self.agreement];
        many.chain(single.into_iter().flatten()).for_each(change);
    }
}

/// Reads the labels that [`Figures::draw`] will read.
///
/// # Errors
/// As it: the file is missing, damaged, or no labels.
pub fn check_labels(path: &Path) -> Result<(), LabelsError> {
    agreement::Agreement::read(path).map(drop)
}

/// The sets of prompts that have win rates: all sets together first, where there are several.
pub fn sets(win_rates: &[WinRateRow]) -> Vec<&str> {
    let mut sets: Vec<&str> = Vec::new();
    for row in win_rates {
        if !sets.contains(&&*row.prompt_set) {
            sets.push(&row.prompt_set);
        }
    }
    sets.sort_by_key(|set| *set != ALL_SETS);
    sets
}

/// The pairs of models that have win rates, in order of first appearance.
pub fn pairs(win_rates: &[WinRateRow]) -> Vec<[&str; 2]> {
    let mut pairs: Vec<[&str; 2]> = Vec::new();
    for row in win_rates {
        let pair = [&*row.model_a, &*row.model_b];
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    pairs
}

/// What figures are drawn of.
struct Drawing<'a> {
    renderer: &'a Renderer,
    index: &'a ScoresIndex<'a>,
    win_rates: &'a [WinRateRow],
}

impl<'a> Drawing<'a> {
    /// The pairs that figures show: all of them or, where there are many, those with one of the first
    /// models; sorted by the second model.
    fn pairs(&self) -> Vec<[&'a str; 2]> {
        let mut pairs = pairs(self.win_rates);
        let place = |name: &str| self.index.models.iter().position(|model| *model == name);
        if pairs.len() > MOST_PAIRS {
            let baseline = |name: &str| place(name).is_some_and(|place| place < BASELINES);
            pairs.retain(|[a, b]| baseline(a) || baseline(b));
            pairs.truncate(2 * MOST_PAIRS);
        }
        pairs.sort_by_key(|[a, b]| (place(b), place(a)));
        pairs
    }

    /// The rows of a set by the paper's statistic, of one category or of the whole set.
    fn rows(
        &self,
        set: &'a str,
        category: Option<&'a str>,
        pair: [&'a str; 2],
    ) -> impl Iterator<Item = &'a WinRateRow> {
        self.win_rates.iter().filter(move |row| {
            row.statistic == Statistic::BestOfN
                && row.prompt_set == set
                && row.category.as_deref() == category
                && [&*row.model_a, &*row.model_b] == pair
        })
    }

    fn cells<'row>(&self, rows: impl Iterator<Item = &'row WinRateRow>) -> Vec<Cell> {
        let metric = |row: &WinRateRow| self.index.metrics.iter().position(|m| *m == row.metric);
        let cell = |row: &WinRateRow| {
            Some(Cell {
                metric: metric(row)?,
                rate: row.win_rate,
                low: row.win_rate_low,
                high: row.win_rate_high,
                significant: row.p_holm < SIGNIFICANCE,
            })
        };
        let mut cells: Vec<Cell> = rows.filter(|row| row.prompts > 0).filter_map(cell).collect();
        cells.sort_by_key(|cell| cell.metric);
        cells
    }

    /// Win rates of a set: a group for each pair of models.
    fn win_rates(&self, set: &'a str) -> Result<Option<Figure>, FigureError> {
        let mut groups = Vec::new();
        let mut seeds = 0;
        for pair in self.pairs() {
            let rows: Vec<&WinRateRow> = self.rows(set, None, pair).collect();
            let prompts = rows.iter().map(|row| row.prompts).max().unwrap_or(0);
            seeds = rows.iter().map(|row| row.seeds).fold(seeds, i64::max);
            groups.push(Group {
                label: pair[0].to_owned(),
                below: format!("over {} · {}", pair[1], count(prompts, "prompt")),
                cells: self.cells(rows.into_iter()),
            });
        }
        groups.retain(|group| !group.cells.is_empty());
        if groups.is_empty() {
            return Ok(None);
        }
        let title = format!("Win rates on {}", set_name(set));
        let caption = format!(
            "Share of prompts on which the first model's best of {} scores higher; ties count one \
             half. Bars are 95\u{a0}% Wilson intervals; a filled marker differs from 50\u{a0}% after Holm's \
             correction.{}",
            count(seeds, "image"),
            self.left_out()
        );
        let svg = forest::draw(self.renderer, &title, &caption, &self.index.metrics, &groups)?;
        let name = format!("winrates-{}", file_name(set));
        Ok(Some(Figure { name, set: Some(set.to_owned()), title, caption, svg }))
    }

    fn left_out(&self) -> String {
        let (shown, all) = (self.pairs().len(), pairs(self.win_rates).len());
        if shown == all { String::new() } else { format!(" {shown} of {all} pairs are shown.") }
    }

    /// Win rates by category: a figure for each pair, a group for each category.
    fn categories(&self, set: &'a str) -> Result<Vec<Figure>, FigureError> {
        let mut figures = Vec::new();
        for pair in self.pairs().into_iter().take(MOST_DETAILED_PAIRS) {
            let mut names: Vec<&str> = Vec::new();
            for category in self.win_rates.iter().filter(|row| row.prompt_set == set) {
                if let Some(name) = &category.category
                    && !names.contains(&&**name)
                {
                    names.push(name);
                }
            }
            let group = |name: &&'a str| {
                let rows: Vec<&WinRateRow> = self.rows(set, Some(*name), pair).collect();
                let prompts = rows.iter().map(|row| row.prompts).max().unwrap_or(0);
                let cells = self.cells(rows.into_iter());
                Group { label: (*name).to_owned(), below: count(prompts, "prompt"), cells }
            };
            let mut groups: Vec<Group> = names.iter().map(group).collect();
            groups.retain(|group| !group.cells.is_empty());
            groups.sort_by(|one, two| two.mean().total_cmp(&one.mean()));
            if groups.is_empty() {
                continue;
            }
            let [a, b] = pair;
            let title = format!("{a} over {b} by category of {}", set_name(set));
            let caption = "Win rates with 95\u{a0}% Wilson intervals, the categories with the highest \
                           mean first; a filled marker differs from 50\u{a0}% after Holm's correction."
                .to_owned();
            let svg = forest::draw(self.renderer, &title, &caption, &self.index.metrics, &groups)?;
            let name = format!("categories-{}-{}-{}", file_name(set), file_name(a), file_name(b));
            figures.push(Figure { name, set: Some(set.to_owned()), title, caption, svg });
        }
        Ok(figures)
    }

    /// A matrix for each pair: the metric that chose the images against the one that judges them.
    fn cross_selection(&self, set: Option<&'a str>) -> Result<Option<Figure>, FigureError> {
        let Some(set) = set else { return Ok(None) };
        let metrics = &self.index.metrics;
        let rate = |pair: [&str; 2], chosen_by: &str, metric: &str| {
            let row = self.win_rates.iter().find(|row| {
                row.prompt_set == set
                    && row.category.is_none()
                    && [&*row.model_a, &*row.model_b] == pair
                    && row.metric == metric
                    && match row.statistic {
                        Statistic::CrossSelection => row.selected_by.as_deref() == Some(chosen_by),
                        Statistic::BestOfN => chosen_by == metric,
                        _ => false,
                    }
            });
            row.filter(|row| row.prompts > 0).map(|row| row.win_rate)
        };
        let crossed = |row: &WinRateRow| row.statistic == Statistic::CrossSelection;
        if metrics.len() < 2 || !self.win_rates.iter().any(crossed) {
            return Ok(None);
        }
        let names: Vec<String> = metrics.iter().map(|metric| (*metric).to_owned()).collect();
        let matrix = |pair: [&str; 2]| Matrix {
            title: format!("{} over {}", pair[0], pair[1]),
            rows: names.clone(),
            columns: names.clone(),
            values: metrics
                .iter()
                .map(|chosen_by| metrics.iter().map(|judge| rate(pair, chosen_by, judge)).collect())
                .collect(),
        };
        let matrices: Vec<Matrix> =
            self.pairs().into_iter().take(MOST_DETAILED_PAIRS).map(matrix).collect();
        let title = format!("Chosen by one metric, judged by another, on {}", set_name(set));
        let caption =
            "Win rate in % of the first model where the row's metric chooses each model's \
                       image and the column's metric judges the two. A win that only the choosing \
                       metric sees (the diagonal) is no better image."
                .to_owned();
        let axes = ["judged by", "chosen by"];
        let svg = heatmap::draw(self.renderer, &title, &caption, axes, &matrices)?;
        let name = "cross-selection".to_owned();
        Ok(Some(Figure { name, set: None, title, caption, svg }))
    }

    /// Distributions of all scores, by metric and model.
    fn scores(&self) -> Result<Option<Figure>, FigureError> {
        let title = "Scores of all images".to_owned();
        let caption = "Each shape is the histogram of one model's scores; the bar below spans the \
                       middle half of them, the tick is the median, and the number says it."
            .to_owned();
        let svg = ridges::draw(self.renderer, &title, &caption, self.index)?;
        let name = "scores".to_owned();
        Ok(svg.map(|svg| Figure { name, set: None, title, caption, svg }))
    }

    /// How often scorers agree about the pairs of the training data.
    fn agreement(&self, labels: &Path) -> Result<Figure, FigureError> {
        let agreement = agreement::Agreement::read(labels)?;
        let title = "Agreement of the scorers about the training pairs".to_owned();
        let caption = agreement.caption();
        let matrix = agreement.matrix();
        let svg = heatmap::draw(self.renderer, &title, &caption, ["", ""], &[matrix])?;
        let name = "label-agreement".to_owned();
        Ok(Figure { name, set: None, title, caption, svg })
    }
}

/// A set as a sentence names it.
fn set_name(set: &str) -> &str {
    if set == ALL_SETS { "all prompts" } else { set }
}

/// The name in a file name: letters, digits, `-`, `_` and `.` stay.
fn file_name(name: &str) -> String {
    let safe = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    name.chars().map(|letter| if safe(letter) { letter } else { '-' }).collect()
}

/// `1 prompt`, `2 prompts`.
fn count(number: i64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Lines of text below a title, as wide as a figure; a page may set them in wider letters.
fn subtitle(text: &str) -> Vec<String> {
    Ruler::new(Weight::Regular, 12.0).wrap(&clean(text), 0.87 * WIDTH, 4)
}

/// Where a drawing starts below its title and subtitle.
fn top(subtitle: &[String]) -> f32 {
    24.0 + 17.0 * subtitle.len() as f32 + 16.0
}

/// A colour for a metric or a model, by its place.
fn colour(place: usize) -> &'static str {
    COLOURS[place % COLOURS.len()]
}

/// The class by which a page recolours it.
fn class(place: usize) -> String {
    format!("c{}", place % COLOURS.len())
}

/// A position as a drawing needs it: tenths of a pixel.
fn px(position: f32) -> f64 {
    (f64::from(position) * 10.0).round() / 10.0
}

/// The outline of a marker: circle, square, diamond, triangle up, triangle down, by its place.
fn marker(place: usize, x: f32, y: f32) -> String {
    let [left, above] = [px(x - 3.9), px(y - 3.9)];
    match place % 5 {
        0 => format!("M{} {}a4.4 4.4 0 1 0 8.8 0a4.4 4.4 0 1 0 -8.8 0Z", px(x - 4.4), px(y)),
        1 => format!("M{left} {above}h7.8v7.8h-7.8Z"),
        2 => format!("M{} {}l5.4 5.4l-5.4 5.4l-5.4 -5.4Z", px(x), px(y - 5.4)),
        3 => format!("M{} {}l4.9 8.6h-9.8Z", px(x), px(y - 5.2)),
        _ => format!("M{} {}l4.9 -8.6h-9.8Z", px(x), px(y + 5.2)),
    }
}

/// Round numbers from `low` to `high`, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let text = |low, high, count| {
            let ticks = ticks(low, high, count);
            ticks.iter().map(|tick| format!("{tick:.2}")).collect::<Vec<_>>()
        };
        assert_eq!(text(0.0, 1.0, 5), ["0.00", "0.20", "0.40", "0.60", "0.80", "1.00"]);
        assert_eq!(text(0.31, 0.74, 4), ["0.40", "0.60"]);
        assert_eq!(text(3.0, 3.0, 4), ["3.00"]);
        assert_eq!(text(-0.05, 0.05, 2), ["-0.05", "0.00", "0.05"]);
    }

    #[test]
    fn names_of_files_are_safe() {
        assert_eq!(file_name("../a b/é"), "---a-b--");
        assert_eq!(file_name("sd-1_5"), "sd-1_5");
    }
}
