//! Distributions of scores: a panel for each metric, in it a histogram for each model.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Heading, WIDTH, class, colour, px, subtitle, ticks, top};
use crate::present::render::text::{Ruler, Weight, clean};
use crate::present::render::{RenderError, Renderer};
use crate::scores_index::ScoresIndex;

/// Bars of a histogram.
const BINS: usize = 48;
/// The height of a histogram with the bar below it.
const ROW: f32 = 40.0;
const TALLEST: f32 = 27.0;
/// Room for the names of models, and for the medians.
const NAMES: f32 = 112.0;
const MEDIANS: f32 = 52.0;
const GAP: f32 = 24.0;
/// The title of a panel and the numbers below it.
const HEADING: f32 = 24.0;
const AXIS: f32 = 34.0;

#[derive(Serialize)]
struct Ridges<'a> {
    width: f64,
    height: f64,
    title: &'a str,
    subtitle: Vec<String>,
    panels: Vec<Panel>,
}

#[derive(Serialize)]
struct Panel {
    x: f64,
    y: f64,
    title: String,
    top: f64,
    bottom: f64,
    right: f64,
    ticks: Vec<Tick>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Tick {
    x: f64,
    label: String,
}

#[derive(Serialize)]
struct Row {
    name: String,
    base: f64,
    class: String,
    colour: &'static str,
    outline: String,
    quartiles: [f64; 3],
    median: String,
}

/// Renders every metric that has scores; `None` if no metric has.
pub(super) fn render(
    renderer: &Renderer,
    heading: Heading<'_>,
    index: &ScoresIndex<'_>,
) -> Result<Option<String>, RenderError> {
    let subtitle = subtitle(heading.caption);
    let top = top(&subtitle);
    let across = if index.metrics.len() > 1 { 2 } else { 1 };
    let width = (WIDTH - 28.0 - GAP * (across as f32 - 1.0)) / across as f32;
    let height = HEADING + AXIS + ROW * index.models.len() as f32;
    let mut panels = Vec::new();
    for metric in 0..index.metrics.len() {
        let x = 14.0 + (panels.len() % across) as f32 * (width + GAP);
        let y = top + (panels.len() / across) as f32 * height;
        panels.extend(panel(index, metric, [x, y], width));
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let lines = panels.len().div_ceil(across) as f32;
    let ridges = Ridges {
        width: px(WIDTH),
        height: px(top + lines * height + 6.0),
        title: heading.title,
        subtitle,
        panels,
    };
    renderer.fill("ridges.svg", &ridges).map(Some)
}

fn panel(index: &ScoresIndex<'_>, metric: usize, [x, y]: [f32; 2], width: f32) -> Option<Panel> {
    let mut of_models: Vec<Vec<f32>> =
        (0..index.models.len()).map(|model| index.values(model, metric)).collect();
    of_models.iter_mut().for_each(|values| values.sort_by(f32::total_cmp));
    let lowest = of_models.iter().filter_map(|values| values.first()).copied().reduce(f32::min)?;
    let highest = of_models.iter().filter_map(|values| values.last()).copied().reduce(f32::max)?;
    let (low, high) = if lowest < highest {
        (f64::from(lowest), f64::from(highest))
    } else {
        (f64::from(lowest) - 0.5, f64::from(highest) + 0.5)
    };
    let (left, right) = (x + NAMES, x + width - MEDIANS);
    let x_of = |value: f64| left + ((value - low) / (high - low)) as f32 * (right - left);
    let top = y + HEADING;
    let steps = ticks(low, high, 4);
    let decimals = decimals(high - low);
    let small = Ruler::new(Weight::Regular, 11.0);
    let row = |(model, values): (usize, &Vec<f32>)| {
        let base = top + ROW * (model as f32 + 1.0) - 9.0;
        let quartiles = [0.25, 0.5, 0.75].map(|level| quantile(values, level));
        Row {
            name: small.fit(&clean(index.models[model]), NAMES - 10.0),
            base: px(base),
            class: class(model),
            colour: colour(model),
            outline: outline(values, [low, high], [left, right], base),
            quartiles: quartiles.map(|value| px(x_of(value.unwrap_or(low)))),
            median: quartiles[1].map_or_else(String::new, |value| format!("{value:.decimals$}")),
        }
    };
    Some(Panel {
        x: px(x),
        y: px(y),
        title: Ruler::new(Weight::Bold, 12.5).fit(&clean(index.metrics[metric]), width),
        top: px(top),
        bottom: px(top + ROW * index.models.len() as f32),
        right: px(x + width),
        ticks: steps
            .iter()
            .map(|&step| Tick { x: px(x_of(step)), label: tick_label(step, &steps) })
            .collect(),
        rows: of_models
            .iter()
            .enumerate()
            .filter(|(_, values)| !values.is_empty())
            .map(row)
            .collect(),
    })
}

/// The steps of a histogram as the outline of an area, its highest step `TALLEST` pixels.
fn outline(values: &[f32], [low, high]: [f64; 2], [left, right]: [f32; 2], base: f32) -> String {
    let mut counts = [0_u32; BINS];
    for &value in values {
        let position = (f64::from(value) - low) / (high - low);
        counts[((position * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f32;
    let step = (right - left) / BINS as f32;
    let mut path = format!("M{} {}", px(left), px(base));
    for (bin, &count) in counts.iter().enumerate() {
        let y = base - TALLEST * count as f32 / most;
        // Writing to a String cannot fail.
        let _ = write!(path, "V{}H{}", px(y), px(left + step * (bin as f32 + 1.0)));
    }
    let _ = write!(path, "V{}Z", px(base));
    path
}

/// A quantile of sorted values, linear between two neighbours.
fn quantile(sorted: &[f32], level: f64) -> Option<f64> {
    let position = level * sorted.len().checked_sub(1)? as f64;
    let below = f64::from(*sorted.get(position.floor() as usize)?);
    let above = f64::from(*sorted.get(position.ceil() as usize)?);
    Some(below + (above - below) * position.fract())
}

/// As many decimals as show a hundredth of the range.
fn decimals(range: f64) -> usize {
    (2.0 - range.log10().floor()).clamp(0.0, 6.0) as usize
}

/// A number of the axis, with the decimals that its steps need.
fn tick_label(value: f64, steps: &[f64]) -> String {
    let step = steps.get(1).map_or(1.0, |second| second - steps[0]);
    let decimals = (-step.log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.25), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 8.0], 0.5), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 8.0, 16.0], 0.25), Some(2.0));
    }

    #[test]
    fn outlines_return_to_the_base() {
        let path = outline(&[0.0, 1.0, 1.0], [0.0, 1.0], [0.0, 48.0], 30.0);
        assert!(path.starts_with("M0 30V16.5H1V30H2"), "{path}");
        assert!(path.ends_with("V3H48V30Z"), "{path}");
    }

    #[test]
    fn labels_have_the_decimals_of_their_steps() {
        let steps = [0.25, 0.3, 0.35];
        assert_eq!(tick_label(0.3, &steps), "0.30");
        assert_eq!(tick_label(20.0, &[10.0, 20.0]), "20");
        assert_eq!((decimals(0.2), decimals(3.0), decimals(500.0)), (3, 2, 0));
    }
}
