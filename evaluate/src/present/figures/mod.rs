//! Figures of an evaluation, as SVG: win rates with intervals, win rates by category, selecting
//! against scoring metric, how far metrics agree, distributions of scores, and how far the scorers
//! of the training data agree.
//!
//! A colour has one meaning on the whole page: a model has its own (Okabe and Ito's), better is
//! green, worse is purple (ColorBrewer's PRGn); colour-blind people tell them apart. Metrics have
//! shapes. Classes in the SVG let a page recolour them for dark screens.

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
use crate::tables::{ALL_SETS, MetricAgreement, SIGNIFICANCE};

use forest::{Cell, Group};
use heatmap::{Matrix, Scale};

/// The colours of models: Okabe and Ito's, without green and purple, which mean better and worse,
/// and without black and yellow, which do not show on dark and on white.
const MODEL_COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#8c6d1f", "#666666"];
/// The width of every figure, in pixels.
const WIDTH: f32 = 900.0;
/// More pairs than this are shown only where one of the first models takes part.
const MOST_PAIRS: usize = 15;
/// The first models, which others are compared with: the paper has a base and one earlier method.
const BASELINES: usize = 2;
/// Categories with fewer prompts are grey and last: so few show only a landslide.
const LEAST_PROMPTS: i64 = 10;
/// Pairs with their own figures by category, and pairs of the figure of cross-selection.
const MOST_DETAILED_PAIRS: usize = 6;

/// A figure cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// It cannot be rendered.
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
    /// The set of prompts, if it is about one.
    pub set: Option<String>,
    /// What it shows, in a few words.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The SVG, with title and caption.
    #[serde(skip)]
    pub svg: String,
    /// The SVG as a part of a page, which sets title and caption as text.
    pub body: String,
}

/// An SVG without title and caption, XML namespace and fixed size.
fn body(svg: &str, caption: &str) -> Option<String> {
    let head = px(top(&subtitle(caption)) - 14.0);
    let (open, rest) = svg.split_once('>')?;
    let size = |name: &str| {
        let (_, value) = open.split_once(&format!(" {name}=\""))?;
        value.split_once('"')?.0.parse::<f64>().ok()
    };
    let (width, height) = (size("width")?, size("height")? - head);
    let label = open.split_once(" aria-label=")?.1;
    let (_, content) = rest.split_once("</g>")?;
    let view = format!("viewBox=\"0 {head} {width} {height}\"");
    Some(format!("<svg {view} font-size=\"12\" role=\"img\" aria-label={label}>{content}"))
}

/// All figures of an evaluation.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// Win rates with intervals, for each set of prompts.
    pub win_rates: Vec<Figure>,
    /// Selected by one metric, scored by another.
    pub cross_selection: Option<Figure>,
    /// How far the metrics order images alike.
    pub metric_agreement: Option<Figure>,
    /// Win rates by category, for each set with categories and the first pairs.
    pub categories: Vec<Figure>,
    /// Distributions of scores.
    pub scores: Option<Figure>,
    /// Agreement of the scorers about the training data.
    pub agreement: Option<Figure>,
}

impl Figures {
    /// Renders all figures of the tables.
    ///
    /// # Errors
    /// When a figure cannot be rendered, or the labels are given and cannot be read.
    pub fn render(
        renderer: &Renderer,
        index: &ScoresIndex<'_>,
        win_rates: &[WinRateRow],
        agreement: &[MetricAgreement],
        labels: Option<&Path>,
    ) -> Result<Self, FigureError> {
        let plots = Plots { renderer, index, win_rates };
        let sets = sets(win_rates);
        let label_agreement = match labels {
            Some(path) => Some(plots.agreement(path)?),
            None => None,
        };
        let mut figures = Self {
            scores: plots.scores()?,
            cross_selection: plots.cross_selection(sets.first().copied())?,
            metric_agreement: plots.metric_agreement(agreement)?,
            agreement: label_agreement,
            ..Self::default()
        };
        for set in &sets {
            figures.win_rates.extend(plots.win_rates(set)?);
        }
        for set in sets.iter().filter(|set| sets.len() == 1 || **set != ALL_SETS) {
            figures.categories.append(&mut plots.categories(set)?);
        }
        Ok(figures)
    }

    /// The figures in the order of the report.
    pub fn iter(&self) -> impl Iterator<Item = &Figure> {
        let shown = self.win_rates.iter().chain(&self.cross_selection);
        let shown = shown.chain(&self.metric_agreement).chain(&self.categories);
        shown.chain(&self.scores).chain(&self.agreement)
    }
}

/// Reads the labels that [`Figures::render`] will read.
///
/// # Errors
/// When the file is missing, damaged, or not a labels file.
pub fn check_labels(path: &Path) -> Result<(), LabelsError> {
    agreement::Agreement::read(path).map(drop)
}

/// The sets of prompts that have win rates: all sets together first, if there are several.
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

/// What the figures show.
struct Plots<'a> {
    renderer: &'a Renderer,
    index: &'a ScoresIndex<'a>,
    win_rates: &'a [WinRateRow],
}

impl<'a> Plots<'a> {
    /// The pairs that figures show, sorted by the second model: all pairs or, if there are many,
    /// those with one of the first models.
    fn pairs(&self) -> Vec<[&'a str; 2]> {
        let mut pairs = pairs(self.win_rates);
        let position = |name: &str| self.index.models.iter().position(|model| *model == name);
        if pairs.len() > MOST_PAIRS {
            let baseline = |name: &str| position(name).is_some_and(|position| position < BASELINES);
            pairs.retain(|[a, b]| baseline(a) || baseline(b));
            pairs.truncate(2 * MOST_PAIRS);
        }
        pairs.sort_by_key(|[a, b]| (position(b), position(a)));
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
                outcome: Outcome::of(row),
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
                faint: false,
            });
        }
        groups.retain(|group| !group.cells.is_empty());
        if groups.is_empty() {
            return Ok(None);
        }
        let title = format!("Win rates on {}", set_name(set));
        let caption = format!(
            "Prompts, in %, on which the first model's best of {} scores higher; ties count one \
             half. Bars are 95\u{a0}% Wilson intervals. {MARKERS}{}",
            count(seeds, "image"),
            self.hidden_pairs()
        );
        let heading = Heading { title: &title, caption: &caption };
        let svg = forest::render(self.renderer, heading, &self.index.metrics, &groups)?;
        let name = format!("winrates-{}", file_name(set));
        Ok(Some(figure(name, Some(set), heading, svg)))
    }

    fn hidden_pairs(&self) -> String {
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
                Group {
                    label: (*name).to_owned(),
                    below: count(prompts, "prompt"),
                    cells,
                    faint: prompts < LEAST_PROMPTS,
                }
            };
            let mut groups: Vec<Group> = names.iter().map(group).collect();
            groups.retain(|group| !group.cells.is_empty());
            groups.sort_by(|one, two| {
                one.faint.cmp(&two.faint).then(two.mean().total_cmp(&one.mean()))
            });
            if groups.is_empty() {
                continue;
            }
            let [a, b] = pair;
            let title = format!("{a} over {b} by category of {}", set_name(set));
            let caption = format!(
                "Win rates with 95\u{a0}% Wilson intervals, the categories with the highest mean \
                 first; those with fewer than {LEAST_PROMPTS} prompts are grey and last. {MARKERS}"
            );
            let heading = Heading { title: &title, caption: &caption };
            let svg = forest::render(self.renderer, heading, &self.index.metrics, &groups)?;
            let name = format!("categories-{}-{}-{}", file_name(set), file_name(a), file_name(b));
            figures.push(figure(name, Some(set), heading, svg));
        }
        Ok(figures)
    }

    /// A matrix for each pair: the metric that selects the images against the one that scores them.
    fn cross_selection(&self, set: Option<&'a str>) -> Result<Option<Figure>, FigureError> {
        let Some(set) = set else { return Ok(None) };
        let metrics = &self.index.metrics;
        let rate = |pair: [&str; 2], selector: &str, metric: &str| {
            let row = self.win_rates.iter().find(|row| {
                row.prompt_set == set
                    && row.category.is_none()
                    && [&*row.model_a, &*row.model_b] == pair
                    && row.metric == metric
                    && match row.statistic {
                        Statistic::CrossSelection => row.selected_by.as_deref() == Some(selector),
                        Statistic::BestOfN => selector == metric,
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
                .map(|selector| metrics.iter().map(|metric| rate(pair, selector, metric)).collect())
                .collect(),
        };
        let matrices: Vec<Matrix> =
            self.pairs().into_iter().take(MOST_DETAILED_PAIRS).map(matrix).collect();
        let title = format!("Selected by one metric, scored by another, on {}", set_name(set));
        let caption =
            "Win rate of the first model in %: the metric of the row selects each model's \
                       image, the metric of the column scores both. Green is above 50, purple \
                       below. If only the diagonal is green, the images please their own metric \
                       and no other."
                .to_owned();
        let axes = ["scored by", "selected by"];
        let heading = Heading { title: &title, caption: &caption };
        let svg = heatmap::render(self.renderer, heading, axes, &matrices, Scale::Outcome)?;
        let name = "cross-selection".to_owned();
        Ok(Some(figure(name, None, heading, svg)))
    }

    /// Distributions of all scores, by metric and model.
    fn scores(&self) -> Result<Option<Figure>, FigureError> {
        let title = "Scores of all images".to_owned();
        let caption = "A histogram of each model's scores. The bar below it spans the middle half \
                       of the scores; the tick, and the number on the right, is the median."
            .to_owned();
        let heading = Heading { title: &title, caption: &caption };
        let svg = ridges::render(self.renderer, heading, self.index)?;
        let name = "scores".to_owned();
        Ok(svg.map(|svg| figure(name, None, heading, svg)))
    }
}

/// What the colour of a marker means.
const MARKERS: &str = "Filled markers differ from 50\u{a0}% after Holm's correction: green if the \
     first model is better, purple if the second is. Grey is not significant.";

/// Title and caption of a figure.
#[derive(Clone, Copy)]
struct Heading<'a> {
    title: &'a str,
    caption: &'a str,
}

fn figure(name: String, set: Option<&str>, heading: Heading<'_>, svg: String) -> Figure {
    let Heading { title, caption } = heading;
    Figure {
        name,
        set: set.map(str::to_owned),
        title: title.to_owned(),
        caption: caption.to_owned(),
        body: body(&svg, caption).unwrap_or_default(),
        svg,
    }
}

/// What a win rate says, by its corrected p-value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The first model is better.
    Ahead,
    /// The second model is better.
    Behind,
    /// The difference is not significant.
    Unclear,
}

impl Outcome {
    /// The outcome of a cell.
    pub fn of(row: &WinRateRow) -> Self {
        match row.p_holm < SIGNIFICANCE {
            true if row.win_rate > 0.5 => Self::Ahead,
            true => Self::Behind,
            false => Self::Unclear,
        }
    }

    /// The class by which a page colours it.
    pub fn class(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Behind => "behind",
            Self::Unclear => "unclear",
        }
    }

    /// Its colour on white.
    fn colour(self) -> &'static str {
        match self {
            Self::Ahead => "#1b7837",
            Self::Behind => "#762a83",
            Self::Unclear => "#5f6368",
        }
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

/// Lines of text below a title, as wide as a figure.
fn subtitle(text: &str) -> Vec<String> {
    Ruler::new(Weight::Regular, 12.0).wrap(&clean(text), 0.87 * WIDTH, 4)
}

/// Where the plot starts below its title and subtitle.
fn top(subtitle: &[String]) -> f32 {
    24.0 + 17.0 * subtitle.len() as f32 + 16.0
}

/// The colour of a model.
fn colour(model: usize) -> &'static str {
    MODEL_COLOURS[model % MODEL_COLOURS.len()]
}

/// The class by which a page colours a model.
pub fn class(model: usize) -> String {
    format!("c{}", model % MODEL_COLOURS.len())
}

/// A position in tenths of a pixel.
fn px(position: f32) -> f64 {
    (f64::from(position) * 10.0).round() / 10.0
}

/// The outline of a metric's marker: circle, square, diamond, triangle up, triangle down.
fn marker(metric: usize, x: f32, y: f32) -> String {
    let [left, above] = [px(x - 3.9), px(y - 3.9)];
    match metric % 5 {
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
    fn a_page_gets_the_plot_without_its_title() {
        let heading = Heading { title: "Title <1>", caption: "How to read it." };
        let svg =
            heatmap::render(&Renderer::new().unwrap(), heading, ["", ""], &[], Scale::Fraction);
        let figure = figure("name".to_owned(), None, heading, svg.unwrap());
        assert!(figure.svg.contains(">Title &lt;1&gt;<") && figure.svg.contains("to read it"));
        let start = "<svg viewBox=\"0 43 900 ";
        assert!(figure.body.starts_with(start), "{}", figure.body);
        assert!(figure.body.contains("aria-label=\"Title &lt;1&gt;\">"), "{}", figure.body);
        assert!(!figure.body.contains("to read it") && figure.body.ends_with("</svg>"));
    }

    #[test]
    fn names_of_files_are_safe() {
        assert_eq!(file_name("../a b/é"), "---a-b--");
        assert_eq!(file_name("sd-1_5"), "sd-1_5");
    }
}
