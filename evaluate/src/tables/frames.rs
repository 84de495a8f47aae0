//! Scores as Polars frames: for each model a row for each image, a column for each metric.
//!
//! Two models are compared on the images, prompt and seed, that both have: an inner join.

use polars::prelude::*;

use super::TablesError;
use crate::scores_index::{ScoredImage, ScoresIndex};

/// The key columns of an image.
const KEY: [&str; 2] = ["prompt", "seed"];
/// What follows the names of the second model's columns in a join.
const OTHER: &str = " of the other";

/// A frame for each model.
#[derive(Debug)]
pub(super) struct Frames {
    of_models: Vec<DataFrame>,
    metrics: usize,
}

/// The scores of one model, by prompt and seed.
#[derive(Debug)]
pub(super) struct Scores {
    /// The prompt of each image, ascending.
    pub(super) prompts: Vec<usize>,
    /// For each metric the score of each image.
    pub(super) metrics: Vec<Vec<Option<f32>>>,
}

impl Frames {
    pub(super) fn new(index: &ScoresIndex<'_>) -> Result<Self, TablesError> {
        let models = 0..index.models.len();
        let of_models = models.map(|model| frame(index, model)).collect::<Result<_, _>>()?;
        Ok(Self { of_models, metrics: index.metrics.len() })
    }

    /// The scores of two models on the images that both have.
    pub(super) fn of_both(&self, models: [usize; 2]) -> Result<[Scores; 2], TablesError> {
        let [frame, other] = models.map(|model| &self.of_models[model]);
        let join = JoinArgs::new(JoinType::Inner).with_suffix(Some(OTHER.into()));
        let frame = frame.join(other, KEY, KEY, join, None)?;
        // A join promises no order, and the order decides which of two equal images comes first.
        let frame = frame.sort(KEY, SortMultipleOptions::default())?;
        Ok([self.read(&frame, "")?, self.read(&frame, OTHER)?])
    }

    /// Prompts and scores of a frame; `suffix` follows the names of the columns.
    fn read(&self, frame: &DataFrame, suffix: &str) -> Result<Scores, TablesError> {
        let prompts = frame.column(KEY[0])?.u64()?.iter().flatten();
        let metric = |metric| {
            let scores = frame.column(&format!("{}{suffix}", metric_name(metric)))?.f32()?;
            Ok::<_, TablesError>(scores.iter().collect())
        };
        Ok(Scores {
            prompts: prompts.map(|prompt| prompt as usize).collect(),
            metrics: (0..self.metrics).map(metric).collect::<Result<_, _>>()?,
        })
    }
}

fn frame(index: &ScoresIndex<'_>, model: usize) -> Result<DataFrame, PolarsError> {
    let of_prompt = |prompt: usize| index.prompts[prompt].images[model].iter();
    let images: Vec<(u64, &ScoredImage<'_>)> = (0..index.prompts.len())
        .flat_map(|prompt| of_prompt(prompt).map(move |image| (prompt as u64, image)))
        .collect();
    let prompts: Vec<u64> = images.iter().map(|(prompt, _)| *prompt).collect();
    let seeds: Vec<i64> = images.iter().map(|(_, image)| image.seed).collect();
    let mut columns = vec![Column::new(KEY[0].into(), prompts), Column::new(KEY[1].into(), seeds)];
    columns.extend((0..index.metrics.len()).map(|metric| {
        let scores: Vec<Option<f32>> =
            images.iter().map(|(_, image)| image.scores.get(metric).copied().flatten()).collect();
        Column::new(metric_name(metric).into(), scores)
    }));
    DataFrame::new_infer_height(columns)
}

fn metric_name(metric: usize) -> String {
    format!("metric {metric}")
}
