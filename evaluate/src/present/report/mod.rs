//! `report.html`: one page with all results of an evaluation, and its figures as PNG beside it.
//!
//! The page is a single file that works without a network: it holds styles, script, figures and
//! thumbnails. Its content security policy allows no request but for image files, which the page
//! shows at full size if they are beside it. Prompts and names reach it escaped; the data of the
//! gallery is JSON without `<`.

mod gallery;
mod links;
mod view;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use runkit::files::FileError;
use schemas::winrates::WinRateRow;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::present::captions::Captions;
use crate::present::figures::{FigureError, Figures};
use crate::present::render::{RenderError, Renderer};
use crate::scores_index::ScoresIndex;
use crate::tables::{MeanRow, MetricAgreement};

use gallery::{Gallery, PlainPrompt};
use links::Links;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
/// The page's name in its folder.
pub const FILE_NAME: &str = "report.html";
/// PNG figures are twice as large as those of the page, for print.
const FIGURE_SCALE: f32 = 2.0;
/// The width of their PNG in pixels.
pub const FIGURE_PIXELS: u32 = 1800;

/// What a report is made of.
#[derive(Debug, Clone, Copy)]
pub struct ReportInputs<'a> {
    /// The folder of `scores.parquet`, which images are relative to.
    pub folder: &'a Path,
    /// The scores of the models that the page shows.
    pub index: &'a ScoresIndex<'a>,
    /// The win rates.
    pub win_rates: &'a [WinRateRow],
    /// Mean scores.
    pub means: &'a [MeanRow],
    /// How far the metrics agree.
    pub agreement: &'a [MetricAgreement],
    /// Notes for the reader, a sentence each.
    pub notes: &'a [String],
    /// The `labels.parquet` of the training.
    pub labels: Option<&'a Path>,
    /// The manifest of the scores.
    pub manifest: &'a serde_json::Value,
    /// Prompts that were dropped before any image was generated.
    pub dropped: &'a [DroppedPrompt],
}

/// A prompt that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPrompt {
    /// Its set.
    pub set: String,
    /// Its id in the set.
    pub id: String,
    /// Its text.
    pub prompt: String,
    /// Why, in a few words.
    pub reason: String,
}

/// A report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A figure cannot be rendered.
    #[error(transparent)]
    Figure(#[from] FigureError),
    /// The page cannot be made.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The data cannot be written as JSON.
    #[error("the data of the gallery cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A figure cannot be encoded.
    #[error("a figure cannot be encoded: {0}")]
    Png(#[from] png::EncodingError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Serialize)]
struct Page<'a> {
    style: &'static str,
    script: &'static str,
    script_hash: String,
    models: Vec<view::ModelView<'a>>,
    metrics: &'a [&'a str],
    sets: &'a [&'a str],
    prompts: usize,
    seeds: usize,
    images: usize,
    failed: usize,
    tables: Vec<view::SetView<'a>>,
    figures: &'a Figures,
    letters: &'a [String],
    gallery: String,
    plain: Vec<PlainPrompt<'a>>,
    shown: usize,
    has_categories: bool,
    notes: &'a [String],
    dropped: &'a [DroppedPrompt],
    manifest: String,
    version: &'static str,
}

/// Writes `report.html` and `figures/*.png` below `out`, and returns where the page is.
///
/// In place of an image that cannot be read the gallery says that it is missing.
///
/// # Errors
/// When the labels cannot be read, a figure cannot be rendered or a file cannot be written.
pub fn write(inputs: &ReportInputs<'_>, out: &Path) -> Result<PathBuf, ReportError> {
    let renderer = Renderer::new()?;
    let index = inputs.index;
    let figures =
        Figures::render(&renderer, index, inputs.win_rates, inputs.agreement, inputs.labels)?;
    let folder = out.join("figures");
    runkit::files::create_folder(&folder)?;
    for figure in figures.iter() {
        let png = renderer.pixels(&figure.svg, FIGURE_SCALE)?.png()?;
        let path = folder.join(format!("{}.png", figure.name));
        runkit::files::write_atomic(path, |file| file.write_all(&png))?;
    }
    let captions = Captions::new(&index.metrics);
    let links = Links::new(out, inputs.folder);
    let gallery = Gallery::new(index, &captions, inputs.folder, &links);
    let images = || index.prompts.iter().flat_map(|prompt| &prompt.images);
    let page = Page {
        style: STYLE,
        script: SCRIPT,
        script_hash: BASE64.encode(Sha256::digest(SCRIPT)),
        models: view::models(&index.models),
        metrics: &index.metrics,
        sets: &index.sets,
        prompts: index.prompts.len(),
        seeds: images().map(Vec::len).max().unwrap_or(0),
        images: images().map(Vec::len).sum(),
        failed: index.rows.iter().filter(|row| row.score.is_none()).count(),
        tables: view::tables(&index.metrics, inputs.win_rates, inputs.means),
        figures: &figures,
        letters: captions.letters(),
        gallery: gallery.to_json()?,
        plain: gallery.plain(&captions),
        shown: gallery.len(),
        has_categories: index.prompts.iter().any(|prompt| prompt.category.is_some()),
        notes: inputs.notes,
        dropped: inputs.dropped,
        manifest: serde_json::to_string_pretty(inputs.manifest)?,
        version: env!("CARGO_PKG_VERSION"),
    };
    let html = renderer.fill("report.html", &page)?;
    let path = out.join(FILE_NAME);
    runkit::files::write_atomic(&path, |file| file.write_all(html.as_bytes()))?;
    Ok(path)
}
