//! Matrices of rates, side by side, with the number in each cell.

use serde::Serialize;

use super::{Heading, WIDTH, px, subtitle, top};
use crate::present::render::text::{Ruler, Weight, clean};
use crate::present::render::{RenderError, Renderer};

/// The colours of [`Outcome`](super::Outcome), and a grey without such a meaning.
const ABOVE: [f64; 3] = [27.0, 120.0, 55.0];
const BELOW: [f64; 3] = [118.0, 42.0, 131.0];
const GREY: [f64; 3] = [70.0, 75.0, 82.0];
/// The distance from one half that has the full colour.
const FULL_COLOUR: f64 = 0.45;

/// The size of a cell, of the names beside the rows, and of title and names above the cells.
const CELL: [f32; 2] = [53.0, 30.0];
const ROW_NAMES: f32 = 68.0;
const ABOVE_CELLS: f32 = 60.0;
const GAP: f32 = 16.0;

/// How the cells are coloured.
#[derive(Clone, Copy)]
pub(super) enum Scale {
    /// Win rates: white at one half.
    Outcome,
    /// Fractions: white at 0, grey at 1.
    Fraction,
}

/// A matrix with the names of its rows and columns.
pub(super) struct Matrix {
    /// Its title.
    pub(super) title: String,
    /// The names of the rows.
    pub(super) rows: Vec<String>,
    /// The names of the columns.
    pub(super) columns: Vec<String>,
    /// Rates from 0 to 1, row by row.
    pub(super) values: Vec<Vec<Option<f64>>>,
}

#[derive(Serialize)]
struct Heatmap<'a> {
    width: f64,
    height: f64,
    title: &'a str,
    subtitle: Vec<String>,
    axes: [&'a str; 2],
    cell: [f64; 2],
    panels: Vec<Panel>,
}

#[derive(Serialize)]
struct Panel {
    x: f64,
    y: f64,
    cells_x: f64,
    cells_y: f64,
    title: String,
    rows: Vec<Name>,
    columns: Vec<Name>,
    cells: Vec<CellBox>,
}

#[derive(Serialize)]
struct Name {
    at: f64,
    name: String,
}

#[derive(Serialize)]
struct CellBox {
    x: f64,
    y: f64,
    fill: String,
    ink: &'static str,
    text: String,
}

/// Renders the matrices, as many beside each other as fit; `axes` names what columns and rows are.
pub(super) fn render(
    renderer: &Renderer,
    heading: Heading<'_>,
    axes: [&str; 2],
    matrices: &[Matrix],
    scale: Scale,
) -> Result<String, RenderError> {
    let subtitle = subtitle(heading.caption);
    let top = top(&subtitle);
    let columns = matrices.iter().map(|matrix| matrix.columns.len()).max().unwrap_or(0);
    let rows = matrices.iter().map(|matrix| matrix.rows.len()).max().unwrap_or(0);
    let width = ROW_NAMES + columns as f32 * CELL[0];
    let height = ABOVE_CELLS + rows as f32 * CELL[1];
    let across = (((WIDTH - 28.0 + GAP) / (width + GAP)) as usize).max(1);
    let panel = |(number, matrix): (usize, &Matrix)| {
        let x = 14.0 + (number % across) as f32 * (width + GAP);
        let y = top + (number / across) as f32 * (height + GAP);
        panel_of(matrix, [x, y], width, scale)
    };
    let lines = matrices.len().div_ceil(across) as f32;
    let heatmap = Heatmap {
        width: px(WIDTH.max(width + 28.0)),
        height: px(top + lines * (height + GAP)),
        title: &clean(heading.title),
        subtitle,
        axes,
        cell: CELL.map(px),
        panels: matrices.iter().enumerate().map(panel).collect(),
    };
    renderer.fill("heatmap.svg", &heatmap)
}

fn panel_of(matrix: &Matrix, [x, y]: [f32; 2], width: f32, scale: Scale) -> Panel {
    let small = Ruler::new(Weight::Regular, 10.0);
    let (left, top) = (x + ROW_NAMES, y + ABOVE_CELLS);
    let name = |name: &str, width| small.fit(&clean(name), width);
    let rows = matrix.rows.iter().enumerate().map(|(row, text)| Name {
        at: px(top + (row as f32 + 0.5) * CELL[1]),
        name: name(text, ROW_NAMES - 6.0),
    });
    let columns = matrix.columns.iter().enumerate().map(|(column, text)| Name {
        at: px(left + (column as f32 + 0.5) * CELL[0]),
        name: name(text, CELL[0]),
    });
    let cell = |row: usize, column: usize, rate: Option<f64>| {
        let (fill, ink) = colour(rate, scale);
        CellBox {
            x: px(left + column as f32 * CELL[0]),
            y: px(top + row as f32 * CELL[1]),
            fill,
            ink,
            text: rate.map_or_else(|| "–".to_owned(), |rate| format!("{:.1}", 100.0 * rate)),
        }
    };
    let row = |(row, rates): (usize, &Vec<Option<f64>>)| {
        let cells = rates.iter().enumerate();
        cells.map(|(column, rate)| cell(row, column, *rate)).collect::<Vec<_>>()
    };
    Panel {
        x: px(x),
        y: px(y),
        cells_x: px(left + matrix.columns.len() as f32 * CELL[0] / 2.0),
        cells_y: px(top),
        title: Ruler::new(Weight::Bold, 12.5).fit(&clean(&matrix.title), width),
        rows: rows.collect(),
        columns: columns.collect(),
        cells: matrix.values.iter().enumerate().flat_map(row).collect(),
    }
}

/// The colour of a cell, and of the number in it.
fn colour(rate: Option<f64>, scale: Scale) -> (String, &'static str) {
    let Some(rate) = rate else { return ("#eeeeee".to_owned(), "#5f6368") };
    let (full, depth) = match scale {
        Scale::Fraction => (GREY, rate),
        Scale::Outcome if rate >= 0.5 => (ABOVE, (rate - 0.5) / FULL_COLOUR),
        Scale::Outcome => (BELOW, (0.5 - rate) / FULL_COLOUR),
    };
    let depth = depth.min(1.0);
    let [red, green, blue] = full.map(|level| 255.0 + (level - 255.0) * depth);
    let bright = 0.299 * red + 0.587 * green + 0.114 * blue > 150.0;
    let fill = format!("#{:02x}{:02x}{:02x}", red as u8, green as u8, blue as u8);
    (fill, if bright { "#222222" } else { "#ffffff" })
}

#[cfg(test)]
mod tests {
    use super::{Scale, colour};

    #[test]
    fn one_half_is_white_and_numbers_stay_legible() {
        let outcome = |rate| colour(Some(rate), Scale::Outcome);
        assert_eq!(outcome(0.5), ("#ffffff".to_owned(), "#222222"));
        assert_eq!(outcome(1.0), ("#1b7837".to_owned(), "#ffffff"));
        assert_eq!(outcome(0.0), ("#762a83".to_owned(), "#ffffff"));
        assert_eq!(outcome(0.55).1, "#222222");
        assert_eq!(colour(Some(0.0), Scale::Fraction), ("#ffffff".to_owned(), "#222222"));
        assert_eq!(colour(Some(1.0), Scale::Fraction).1, "#ffffff");
    }
}
