//! Mean scores of each model (the paper's Tables 6 and 7).

use schemas::winrates::Statistic;

use super::ALL_SETS;
use super::comparison::{best, mean};
use crate::scores_index::{IndexedPrompt, ScoresIndex};

/// Scores of one model on one set by one metric, one number a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct MeanRow {
    /// The set of prompts; `all` is all sets together.
    pub prompt_set: String,
    /// The model.
    pub model: String,
    /// The metric.
    pub metric: String,
    /// The value of a prompt: `best_of_n` or `mean_of_n`.
    pub statistic: Statistic,
    /// Prompts with a score.
    pub prompts: i64,
    /// Their mean.
    pub mean: f64,
    /// Their minimum.
    pub min: f64,
    /// Their maximum.
    pub max: f64,
    /// Their standard deviation (n − 1); 0 for a single prompt.
    pub std: f64,
}

/// Means of every model, set and metric that has a score, by set, statistic, model and metric.
pub(super) fn means(index: &ScoresIndex<'_>) -> Vec<MeanRow> {
    let all = (index.sets.len() > 1).then_some((None, ALL_SETS));
    let sets = index.sets.iter().enumerate().map(|(set, name)| (Some(set), *name));
    let mut rows = Vec::new();
    for (set, prompt_set) in sets.chain(all) {
        let inside = |prompt: &&IndexedPrompt<'_>| set.is_none_or(|set| prompt.set == set);
        for statistic in [Statistic::BestOfN, Statistic::MeanOfN] {
            let of_prompt = if statistic == Statistic::BestOfN { best } else { mean };
            for (model, model_name) in index.models.iter().enumerate() {
                for (metric, metric_name) in index.metrics.iter().enumerate() {
                    let value = |prompt: &IndexedPrompt<'_>| {
                        let scores: Vec<f32> = prompt.scores(model, metric).collect();
                        (!scores.is_empty()).then(|| of_prompt(&scores))
                    };
                    let values: Vec<f64> =
                        index.prompts.iter().filter(inside).filter_map(value).collect();
                    if !values.is_empty() {
                        rows.push(row([prompt_set, model_name, metric_name], statistic, &values));
                    }
                }
            }
        }
    }
    rows
}

fn row([prompt_set, model, metric]: [&str; 3], statistic: Statistic, values: &[f64]) -> MeanRow {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    MeanRow {
        prompt_set: prompt_set.to_owned(),
        model: model.to_owned(),
        metric: metric.to_owned(),
        statistic,
        prompts: values.len() as i64,
        mean,
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        std: (squares / (count - 1.0).max(1.0)).sqrt(),
    }
}
