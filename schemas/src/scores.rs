//! `scores.parquet` of an evaluation: one row for each image and metric, in the order model, set,
//! prompt, seed, metric.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, Float32Array, Int64Array};
use arrow::datatypes::{Float32Type, Int64Type};
use arrow::error::ArrowError;

use crate::columns::{Column, scores_columns};
use crate::evaluation::{Columns, Record, RecordFile, RecordWriter, categories, texts};

/// One score: the score of a metric for an image of a model, a prompt and a seed.
/// [`scores_columns`] says what each value means.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    /// The model that generated the image.
    pub model: String,
    /// The set of prompts.
    pub prompt_set: String,
    /// The name of the prompt in its set.
    pub prompt_id: String,
    /// The prompt.
    pub prompt: String,
    /// PartiPrompts' category, HPD's style.
    pub category: Option<String>,
    /// The seed of the noise.
    pub seed: i64,
    /// The scorer.
    pub metric: String,
    /// Its score; never NaN or infinite.
    pub score: Option<f32>,
    /// The image, relative to the folder of the file, or absolute.
    pub image: String,
    /// Why there is no score.
    pub error: Option<String>,
}

/// Reads `scores.parquet`.
pub type ScoresFile = RecordFile<ScoreRow>;
/// Writes `scores.parquet`.
pub type ScoresWriter = RecordWriter<ScoreRow>;

impl Record for ScoreRow {
    const SCHEMA_VERSION: u32 = 1;
    const WHAT: &'static str = "scores";
    const HINT: &'static str =
        "name the scores.parquet that `evaluate score` or `evaluate run` wrote";

    fn columns() -> Vec<Column> {
        scores_columns()
    }

    fn check(&self) -> Result<(), String> {
        match self.score {
            Some(score) if !score.is_finite() => {
                Err(format!("score is {score}, expected a number or null"))
            }
            _ => Ok(()),
        }
    }

    fn to_arrays(rows: &[Self]) -> Vec<ArrayRef> {
        vec![
            categories(rows.iter().map(|row| Some(row.model.as_str()))),
            categories(rows.iter().map(|row| Some(row.prompt_set.as_str()))),
            texts(rows.iter().map(|row| Some(row.prompt_id.as_str()))),
            texts(rows.iter().map(|row| Some(row.prompt.as_str()))),
            categories(rows.iter().map(|row| row.category.as_deref())),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.seed))),
            categories(rows.iter().map(|row| Some(row.metric.as_str()))),
            Arc::new(rows.iter().map(|row| row.score).collect::<Float32Array>()),
            texts(rows.iter().map(|row| Some(row.image.as_str()))),
            texts(rows.iter().map(|row| row.error.as_deref())),
        ]
    }

    fn from_arrays(columns: &Columns<'_>) -> Result<Vec<Self>, ArrowError> {
        let [model, prompt_set] = [columns.text("model")?, columns.text("prompt_set")?];
        let [prompt_id, prompt] = [columns.text("prompt_id")?, columns.text("prompt")?];
        let [category, error] = [columns.text("category")?, columns.text("error")?];
        let [metric, image] = [columns.text("metric")?, columns.text("image")?];
        let seed = columns.number::<Int64Type>("seed")?;
        let score = columns.number::<Float32Type>("score")?;
        let row = |index: usize| Self {
            model: model.value(index).to_owned(),
            prompt_set: prompt_set.value(index).to_owned(),
            prompt_id: prompt_id.value(index).to_owned(),
            prompt: prompt.value(index).to_owned(),
            category: category.is_valid(index).then(|| category.value(index).to_owned()),
            seed: seed.value(index),
            metric: metric.value(index).to_owned(),
            score: score.is_valid(index).then(|| score.value(index)),
            image: image.value(index).to_owned(),
            error: error.is_valid(index).then(|| error.value(index).to_owned()),
        };
        Ok((0..columns.num_rows()).map(row).collect())
    }
}
