//! Contact sheets in the paper's layouts: images of several models beside each other, or the
//! images of one prompt for every seed, with the scores beneath.

mod layout;

use std::fmt;
use std::path::{Path, PathBuf};

use schemas::scores::ScoreRow;

use crate::present::bitmap::Bitmap;
use crate::present::captions::Captions;
use crate::present::render::{RenderError, Renderer};
use crate::scores_index::{Choice, IndexError, IndexedPrompt, ScoresIndex, Selection};

/// Small images are enlarged to at most this side, in pixels.
const SMALL_SIDE: u32 = 128;
/// Large images are shrunk to this side.
const LARGE_SIDE: u32 = 256;
/// Prompts of a sheet by default.
const PROMPTS: usize = 8;

/// Rows and columns of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// A row for each prompt, a column for each model.
    Models,
    /// For each prompt a row for each model and a column for each seed.
    Seeds,
}

/// In which order prompts come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// That of the scores.
    Given,
    /// By how much the last model's best score by this metric is higher than the first one's, the
    /// largest margin first.
    Margin(String),
}

impl std::str::FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("margin", metric)) if !metric.is_empty() => Ok(Self::Margin(metric.to_owned())),
            None if text == "order" => Ok(Self::Given),
            _ => Err("expected order or margin:METRIC".to_owned()),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => formatter.write_str("order"),
            Self::Margin(metric) => write!(formatter, "margin:{metric}"),
        }
    }
}

/// What a sheet shows.
#[derive(Debug, Clone)]
pub struct GridConfig {
    /// Rows and columns.
    pub layout: Layout,
    /// Ids of prompts or parts of their text; empty for all.
    pub prompts: Vec<String>,
    /// Models in the order of the sheet; empty for all.
    pub models: Vec<String>,
    /// `all` for the best mean rank over all metrics, `first` for the smallest seed, or a metric.
    pub choose: String,
    /// The most prompts; by default 8, or 1 with columns of seeds.
    pub count: Option<usize>,
    /// The order of the prompts.
    pub sort: Order,
    /// The side of an image in pixels; by default it follows the size of the images.
    pub side: Option<u32>,
}

/// A sheet cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GridError {
    /// The scores cannot be indexed, or have no such model or metric.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// No prompt has this id, or holds this text.
    #[error("no prompt {0:?} among the scores; hint: give its id or a part of its text")]
    NoPrompt(String),
    /// It cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// Renders a sheet. `folder` is that of the scores, which images are relative to. An image that is
/// missing or cannot be read is an empty frame that says so.
///
/// # Errors
/// When a model, metric or prompt is asked for that is not among the scores, or the sheet is too
/// large to be rendered.
pub fn render(rows: &[ScoreRow], folder: &Path, config: &GridConfig) -> Result<Bitmap, GridError> {
    let models = (!config.models.is_empty()).then_some(&config.models[..]);
    let index = ScoresIndex::new(rows, Selection { models, metrics: None })?;
    let choice = match &*config.choose {
        "all" => Choice::MeanRank,
        "first" => Choice::First,
        metric => Choice::Metric(index.metric(metric)?),
    };
    let prompts = prompts(&index, config)?;
    let captions = Captions::new(&index.metrics);
    let cells: Vec<layout::Block> = match config.layout {
        Layout::Models => vec![layout::Block::of_models(&index, &prompts, choice, &captions)],
        Layout::Seeds => prompts
            .iter()
            .map(|prompt| layout::Block::of_seeds(&index, prompt, &captions))
            .collect(),
    };
    let images = Thumbnails { folder: folder.to_owned() };
    let sheet = layout::Sheet::new(cells, &images, config.side);
    Ok(sheet.render(&Renderer::new()?)?)
}

/// The prompts of the sheet in their order.
fn prompts<'a>(
    index: &'a ScoresIndex<'_>,
    config: &GridConfig,
) -> Result<Vec<&'a IndexedPrompt<'a>>, GridError> {
    let listed: Vec<usize> = index.listed();
    let mut shown: Vec<usize> = Vec::new();
    for wanted in &config.prompts {
        let find = |fits: &dyn Fn(&IndexedPrompt<'_>) -> bool| -> Vec<usize> {
            listed.iter().copied().filter(|&prompt| fits(&index.prompts[prompt])).collect()
        };
        let mut found = find(&|prompt| prompt.id == wanted);
        if found.is_empty() {
            let part = wanted.to_lowercase();
            found = find(&|prompt| prompt.text.to_lowercase().contains(&part));
        }
        if found.is_empty() {
            return Err(GridError::NoPrompt(wanted.clone()));
        }
        found.retain(|prompt| !shown.contains(prompt));
        shown.append(&mut found);
    }
    if config.prompts.is_empty() {
        shown = listed;
    }
    let mut prompts: Vec<&IndexedPrompt<'_>> =
        shown.into_iter().map(|prompt| &index.prompts[prompt]).collect();
    if let Order::Margin(metric) = &config.sort {
        let metric = index.metric(metric)?;
        let pair = [index.models.len() - 1, 0];
        let margin =
            |prompt: &IndexedPrompt<'_>| prompt.margin(pair, metric).unwrap_or(f32::NEG_INFINITY);
        prompts.sort_by(|one, two| margin(two).total_cmp(&margin(one)));
    }
    let usual = if config.layout == Layout::Models { PROMPTS } else { 1 };
    prompts.truncate(config.count.unwrap_or(usual));
    Ok(prompts)
}

/// Reads images.
struct Thumbnails {
    folder: PathBuf,
}

impl Thumbnails {
    /// The image, or the words of an empty frame.
    fn read(&self, image: &str) -> Result<Bitmap, &'static str> {
        let path = self.folder.join(image);
        Bitmap::read(&path).map_err(|error| {
            let shown = runkit::text::escape_for_terminal(&error.to_string()).into_owned();
            tracing::warn!("{shown}");
            if path.exists() { "unreadable" } else { "missing" }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_words() {
        assert_eq!("order".parse(), Ok(Order::Given));
        assert_eq!("margin:hps".parse(), Ok(Order::Margin("hps".to_owned())));
        for wrong in ["margin", "margin:", "hps", "order:hps"] {
            assert!(wrong.parse::<Order>().unwrap_err().contains("margin:METRIC"), "{wrong}");
        }
        assert_eq!(Order::Margin("hps".to_owned()).to_string(), "margin:hps");
    }
}
