//! Win rates with intervals: a band for each group, in it a line for each metric.

use serde::Serialize;

use super::{Heading, Outcome, WIDTH, marker, px, subtitle, top};
use crate::present::render::text::{Ruler, Weight, clean};
use crate::present::render::{RenderError, Renderer};

/// Where the columns start, in pixels.
const LABELS: f32 = 14.0;
const METRICS: f32 = 236.0;
const PLOT: f32 = 330.0;
const NUMBERS: f32 = 752.0;
/// The height of a line and of the space around a band.
const LINE: f32 = 17.0;
const PADDING: f32 = 7.0;
/// Two lines of label need this height.
const LEAST_BAND: f32 = 36.0;
/// Room for the numbers of the axis.
const AXIS: f32 = 22.0;

/// What is compared, with a cell for each metric.
pub(super) struct Group {
    /// Its name.
    pub(super) label: String,
    /// Smaller words below it.
    pub(super) below: String,
    /// The win rates.
    pub(super) cells: Vec<Cell>,
    /// Whether it is greyed.
    pub(super) faint: bool,
}

impl Group {
    /// The mean win rate.
    pub(super) fn mean(&self) -> f64 {
        let rates: f64 = self.cells.iter().map(|cell| cell.rate).sum();
        rates / self.cells.len().max(1) as f64
    }
}

/// A win rate with its interval, from 0 to 1.
pub(super) struct Cell {
    /// The index of the metric.
    pub(super) metric: usize,
    /// The win rate.
    pub(super) rate: f64,
    /// The lower end of its interval.
    pub(super) low: f64,
    /// The upper end.
    pub(super) high: f64,
    /// Its colour and marker.
    pub(super) outcome: Outcome,
}

#[derive(Serialize)]
struct Forest<'a> {
    width: f64,
    height: f64,
    title: &'a str,
    subtitle: Vec<String>,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    ticks: Vec<Tick>,
    bands: Vec<Band>,
}

#[derive(Serialize)]
struct Tick {
    x: f64,
    label: String,
    middle: bool,
}

#[derive(Serialize)]
struct Band {
    y: f64,
    height: f64,
    shaded: bool,
    faint: bool,
    label: String,
    below: String,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    y: f64,
    metric: String,
    class: &'static str,
    colour: &'static str,
    low: f64,
    high: f64,
    marker: String,
    filled: bool,
    numbers: String,
}

/// Renders the groups from top to bottom.
pub(super) fn render(
    renderer: &Renderer,
    heading: Heading<'_>,
    metrics: &[&str],
    groups: &[Group],
) -> Result<String, RenderError> {
    let subtitle = subtitle(heading.caption);
    let top = top(&subtitle) + AXIS;
    let (low, high) = range(groups);
    let right = NUMBERS - 14.0;
    let x = |rate: f64| PLOT + ((rate - low) / (high - low)) as f32 * (right - PLOT);

    let (bold, small) = (Ruler::new(Weight::Bold, 12.5), Ruler::new(Weight::Regular, 11.0));
    let mut y = top;
    let mut bands = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let lines = LINE * group.cells.len() as f32;
        let height = lines.max(LEAST_BAND) + 2.0 * PADDING;
        let first = y + (height - lines) / 2.0 + LINE / 2.0;
        let line = |(index, cell): (usize, &Cell)| {
            let y = first + LINE * index as f32;
            let outcome = if group.faint { Outcome::Unclear } else { cell.outcome };
            Line {
                y: px(y),
                metric: small.fit(&clean(metrics[cell.metric]), PLOT - METRICS - 12.0),
                class: outcome.class(),
                colour: outcome.colour(),
                low: px(x(cell.low)),
                high: px(x(cell.high)),
                marker: marker(cell.metric, x(cell.rate), y),
                filled: outcome != Outcome::Unclear,
                numbers: format!(
                    "{:.1} %  [{:.1}, {:.1}]",
                    100.0 * cell.rate,
                    100.0 * cell.low,
                    100.0 * cell.high
                ),
            }
        };
        bands.push(Band {
            y: px(y),
            height: px(height),
            shaded: number % 2 == 0,
            faint: group.faint,
            label: bold.fit(&clean(&group.label), METRICS - LABELS - 16.0),
            below: small.fit(&clean(&group.below), METRICS - LABELS - 16.0),
            lines: group.cells.iter().enumerate().map(line).collect(),
        });
        y += height;
    }
    let tick = |rate: f64| Tick {
        x: px(x(rate)),
        label: format!("{:.0} %", 100.0 * rate),
        middle: (rate - 0.5).abs() < 1e-9,
    };
    let forest = Forest {
        width: px(WIDTH),
        height: px(y + AXIS + 22.0),
        title: &clean(heading.title),
        subtitle,
        left: px(PLOT),
        right: px(right),
        top: px(top),
        bottom: px(y),
        ticks: ticks(low, high).map(tick).collect(),
        bands,
    };
    renderer.fill("forest.svg", &forest)
}

/// Ticks of the axis; one half is one of them.
fn ticks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let step = if high - low > 0.45 { 10 } else { 5 };
    let percent = (0..=100).step_by(step).map(|percent| f64::from(percent) / 100.0);
    percent.filter(move |rate| (low - 1e-9..=high + 1e-9).contains(rate))
}

/// The part of 0 to 1 that is shown: every interval and 50 %, in steps of five points.
fn range(groups: &[Group]) -> (f64, f64) {
    let cells = || groups.iter().flat_map(|group| &group.cells);
    let low = cells().map(|cell| cell.low).fold(0.4, f64::min);
    let high = cells().map(|cell| cell.high).fold(0.6, f64::max);
    ((low * 20.0 - 0.1).floor().max(0.0) / 20.0, (high * 20.0 + 0.1).ceil().min(20.0) / 20.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(low: f64, high: f64) -> Group {
        let outcome = Outcome::Unclear;
        let cell = Cell { metric: 0, rate: (low + high) / 2.0, low, high, outcome };
        Group { label: String::new(), below: String::new(), cells: vec![cell], faint: false }
    }

    #[test]
    fn one_half_is_always_shown() {
        let shown = |low, high| {
            let (least, most) = range(&[group(low, high)]);
            assert!(least <= low && high <= most && least >= 0.0 && most <= 1.0, "{least} {most}");
            let ticks: Vec<f64> = ticks(least, most).collect();
            assert!(ticks.contains(&0.5) && ticks.len() > 3 && ticks.len() < 12, "{ticks:?}");
        };
        shown(0.49, 0.51);
        shown(0.0, 1.0);
        shown(0.9, 0.99);
        shown(0.101, 0.3);
    }
}
