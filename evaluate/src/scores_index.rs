//! One index of the scores of an evaluation: by prompt, then by model, then by image.
//!
//! Tables, figures, the gallery and contact sheets all read it. Only the comparison of two models
//! goes through Polars, because it joins their images: `tables/frames.rs`.

use std::collections::{HashMap, HashSet};

use schemas::scores::ScoreRow;

/// All scores of an evaluation. Models, metrics and sets are in order of first appearance, or in
/// the order of the [`Selection`].
#[derive(Debug)]
pub struct ScoresIndex<'rows> {
    /// The names of the models.
    pub models: Vec<&'rows str>,
    /// The names of the metrics.
    pub metrics: Vec<&'rows str>,
    /// The names of the prompt sets.
    pub sets: Vec<&'rows str>,
    /// The prompts of all sets, sorted by set, id and text.
    pub prompts: Vec<IndexedPrompt<'rows>>,
    /// The rows that were selected, in file order.
    pub rows: Vec<&'rows ScoreRow>,
}

/// A prompt with its images. Equal ids with different texts are different prompts, so they are
/// never compared.
#[derive(Debug)]
pub struct IndexedPrompt<'rows> {
    /// The index of its set.
    pub set: usize,
    /// Its id in the set.
    pub id: &'rows str,
    /// Its text.
    pub text: &'rows str,
    /// Its category, if the set has categories; the smallest name if rows disagree.
    pub category: Option<&'rows str>,
    /// Its position among all prompts in order of first appearance.
    pub position: usize,
    /// For each model its images, by seed from the smallest.
    pub images: Vec<Vec<ScoredImage<'rows>>>,
}

/// An image with its scores.
#[derive(Debug)]
pub struct ScoredImage<'rows> {
    /// Its seed.
    pub seed: i64,
    /// Its file, as the scores name it.
    pub image: &'rows str,
    /// For each metric its score.
    pub scores: Vec<Option<f32>>,
}

/// Which models and metrics are indexed, and their order; all of them if it is `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// The models.
    pub models: Option<&'a [String]>,
    /// The metrics.
    pub metrics: Option<&'a [String]>,
}

/// Which of a model's images of a prompt is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The one with the best mean rank over all metrics.
    MeanRank,
    /// The one with the highest score by a metric, given by its index.
    Metric(usize),
    /// The one with the smallest seed.
    First,
}

/// Scores that cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// There are no scores.
    #[error("no scores; hint: {hint}")]
    Empty {
        /// The likely reason.
        hint: &'static str,
    },
    /// An image has two scores by one metric.
    #[error(
        "the scores hold model {model:?}, set {prompt_set:?}, prompt {prompt_id:?}, seed {seed}, \
         metric {metric:?} more than once; hint: name each scores.parquet once, and give different \
         models different names"
    )]
    Duplicate {
        /// The model.
        model: String,
        /// The set.
        prompt_set: String,
        /// The prompt.
        prompt_id: String,
        /// The seed.
        seed: i64,
        /// The metric.
        metric: String,
    },
    /// A selected name that no row has.
    #[error(
        "no scores of the {what} {name:?}; hint: there are scores of {}",
        runkit::text::choices(known)
    )]
    Unknown {
        /// What was named.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A name that was given twice.
    #[error("the {what} {name:?} is named twice; hint: name each once")]
    Twice {
        /// What was named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A score that is not a finite number.
    #[error(
        "model {model:?}, prompt {prompt_id:?}, seed {seed}, metric {metric:?}: score is {found}, \
         expected a number or null"
    )]
    NotFinite {
        /// The model.
        model: String,
        /// The prompt.
        prompt_id: String,
        /// The seed.
        seed: i64,
        /// The metric.
        metric: String,
        /// The score.
        found: f32,
    },
}

impl<'rows> ScoresIndex<'rows> {
    /// Groups and checks the selected rows.
    ///
    /// # Errors
    /// When no row is selected, an image has two scores by one metric, a score is not finite, or a
    /// selected name is unknown or named twice.
    pub fn new(rows: &'rows [ScoreRow], selection: Selection<'_>) -> Result<Self, IndexError> {
        if rows.is_empty() {
            return Err(IndexError::Empty { hint: "run `evaluate score` on some images first" });
        }
        let models = selected("model", selection.models, rows.iter().map(|row| &*row.model))?;
        let metrics = selected("metric", selection.metrics, rows.iter().map(|row| &*row.metric))?;
        let (model_of, metric_of) = (positions(&models), positions(&metrics));
        let mut index =
            Self { models, metrics, sets: Vec::new(), prompts: Vec::new(), rows: Vec::new() };
        let (mut set_of, mut prompt_of) = (HashMap::new(), HashMap::new());
        let mut known = HashSet::with_capacity(rows.len());
        for row in rows {
            let model = model_of.get(&*row.model).copied();
            let metric = metric_of.get(&*row.metric).copied();
            let (Some(model), Some(metric)) = (model, metric) else { continue };
            check_score(row)?;
            let set = *set_of.entry(&*row.prompt_set).or_insert_with(|| {
                index.sets.push(&row.prompt_set);
                index.sets.len() - 1
            });
            // By the prompt's id, not its text: a model with two texts under one id was scored
            // twice in different states.
            if !known.insert((model, metric, set, &*row.prompt_id, row.seed)) {
                return Err(duplicate(row));
            }
            let position = index.prompts.len();
            let key = (set, &*row.prompt_id, &*row.prompt);
            let prompt = *prompt_of.entry(key).or_insert(position);
            if prompt == position {
                index.prompts.push(IndexedPrompt {
                    set,
                    id: &row.prompt_id,
                    text: &row.prompt,
                    category: None,
                    position,
                    images: index.models.iter().map(|_| Vec::new()).collect(),
                });
            }
            index.prompts[prompt].add(row, model, metric, index.metrics.len());
            index.rows.push(row);
        }
        if index.rows.is_empty() {
            return Err(IndexError::Empty {
                hint: "none of the models was scored by any of the metrics",
            });
        }
        index.prompts.sort_by_key(|prompt| (prompt.set, prompt.id, prompt.text));
        for images in index.prompts.iter_mut().flat_map(|prompt| &mut prompt.images) {
            images.sort_by_key(|image| image.seed);
        }
        Ok(index)
    }

    /// The indices of the prompts in order of first appearance, as the prompt list has them.
    pub fn listed(&self) -> Vec<usize> {
        let mut listed: Vec<usize> = (0..self.prompts.len()).collect();
        listed.sort_by_key(|&prompt| self.prompts[prompt].position);
        listed
    }

    /// All scores of a model by a metric.
    pub fn values(&self, model: usize, metric: usize) -> Vec<f32> {
        self.prompts.iter().flat_map(|prompt| prompt.scores(model, metric)).collect()
    }

    /// The index of a metric.
    ///
    /// # Errors
    /// When there are no scores by it.
    pub fn metric(&self, name: &str) -> Result<usize, IndexError> {
        let found = self.metrics.iter().position(|metric| *metric == name);
        found.ok_or_else(|| unknown("metric", name, &self.metrics))
    }
}

impl<'rows> IndexedPrompt<'rows> {
    fn add(&mut self, row: &'rows ScoreRow, model: usize, metric: usize, metrics: usize) {
        let category = row.category.as_deref();
        self.category = match (self.category, category) {
            (Some(known), Some(category)) => Some(known.min(category)),
            (known, category) => known.or(category),
        };
        let images = &mut self.images[model];
        let image = images.iter().rposition(|image| image.seed == row.seed);
        let image = image.unwrap_or_else(|| {
            let scores = vec![None; metrics];
            images.push(ScoredImage { seed: row.seed, image: &row.image, scores });
            images.len() - 1
        });
        images[image].scores[metric] = row.score;
    }

    /// The scores of a model's images by a metric, in the order of seeds.
    pub fn scores(&self, model: usize, metric: usize) -> impl Iterator<Item = f32> {
        let images = self.images.get(model).into_iter().flatten();
        images.filter_map(move |image| *image.scores.get(metric)?)
    }

    /// The image of a model that is shown; `None` if the model has no image to choose.
    pub fn chosen(&self, model: usize, choice: Choice) -> Option<&ScoredImage<'rows>> {
        let images = self.images.get(model)?;
        match choice {
            Choice::First => images.first(),
            Choice::Metric(metric) => highest(
                images
                    .iter()
                    .filter_map(|image| Some((f64::from((*image.scores.get(metric)?)?), image))),
            ),
            Choice::MeanRank => {
                highest(images.iter().map(|image| (-mean_rank(images, image), image)))
            }
        }
    }

    /// The best score of a model by a metric.
    pub fn best(&self, model: usize, metric: usize) -> Option<f32> {
        self.scores(model, metric).max_by(f32::total_cmp)
    }

    /// By how much the best score of model `a` is higher than that of `b`.
    pub fn margin(&self, [a, b]: [usize; 2], metric: usize) -> Option<f32> {
        Some(self.best(a, metric)? - self.best(b, metric)?)
    }
}

/// The selected names, or all in order of appearance.
fn selected<'rows>(
    what: &'static str,
    names: Option<&[String]>,
    found: impl Iterator<Item = &'rows str>,
) -> Result<Vec<&'rows str>, IndexError> {
    let mut known: Vec<&str> = Vec::new();
    for name in found {
        // Neighbours are mostly equal, and there are few names.
        if known.last() != Some(&name) && !known.contains(&name) {
            known.push(name);
        }
    }
    let Some(names) = names else { return Ok(known) };
    let mut selected: Vec<&str> = Vec::new();
    for name in names {
        let found = known.iter().find(|known| *known == name);
        let found = found.ok_or_else(|| unknown(what, name, &known))?;
        if selected.contains(found) {
            return Err(IndexError::Twice { what, name: name.clone() });
        }
        selected.push(found);
    }
    Ok(selected)
}

fn positions<'a>(names: &[&'a str]) -> HashMap<&'a str, usize> {
    names.iter().copied().zip(0..).collect()
}

fn unknown(what: &'static str, name: &str, known: &[&str]) -> IndexError {
    let known = known.iter().map(|&name| name.to_owned()).collect();
    IndexError::Unknown { what, name: name.to_owned(), known }
}

fn check_score(row: &ScoreRow) -> Result<(), IndexError> {
    match row.score {
        Some(found) if !found.is_finite() => Err(IndexError::NotFinite {
            model: row.model.clone(),
            prompt_id: row.prompt_id.clone(),
            seed: row.seed,
            metric: row.metric.clone(),
            found,
        }),
        _ => Ok(()),
    }
}

fn duplicate(row: &ScoreRow) -> IndexError {
    IndexError::Duplicate {
        model: row.model.clone(),
        prompt_set: row.prompt_set.clone(),
        prompt_id: row.prompt_id.clone(),
        seed: row.seed,
        metric: row.metric.clone(),
    }
}

/// The first of the items with the highest value.
fn highest<T>(items: impl Iterator<Item = (f64, T)>) -> Option<T> {
    let better = |best: (f64, T), item: (f64, T)| if item.0 > best.0 { item } else { best };
    items.reduce(better).map(|(_, item)| item)
}

/// The mean over the metrics of how many of the images are better; an equal one counts one half,
/// and a missing score is worse than every score.
fn mean_rank(images: &[ScoredImage<'_>], image: &ScoredImage<'_>) -> f64 {
    let rank = |(metric, score): (usize, &Option<f32>)| -> f64 {
        let others = images.iter().map(|other| other.scores.get(metric).copied().flatten());
        let count = |other: Option<f32>| match other.partial_cmp(score) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        };
        others.map(count).sum()
    };
    let ranks: f64 = image.scores.iter().enumerate().map(rank).sum();
    ranks / image.scores.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one prompt: for each model and seed the scores of metrics `clip` and `hps`.
    fn rows(scores: &[(&str, i64, [Option<f32>; 2])]) -> Vec<ScoreRow> {
        let metrics = |(model, seed, scores): &(&str, i64, [Option<f32>; 2])| {
            let row = |(metric, score): (&str, Option<f32>)| ScoreRow {
                model: (*model).to_owned(),
                prompt_set: "set".to_owned(),
                prompt_id: "1".to_owned(),
                prompt: "a fox".to_owned(),
                category: None,
                seed: *seed,
                metric: metric.to_owned(),
                score,
                image: format!("images/{model}/1/{seed}.png"),
                error: None,
            };
            ["clip", "hps"].into_iter().zip(*scores).map(row).collect::<Vec<_>>()
        };
        scores.iter().flat_map(metrics).collect()
    }

    fn index_of(rows: &[ScoreRow]) -> ScoresIndex<'_> {
        ScoresIndex::new(rows, Selection::default()).unwrap()
    }

    #[test]
    fn rows_are_grouped_and_seeds_sorted() {
        let rows = rows(&[
            ("b", 1, [Some(0.5), None]),
            ("a", 7, [Some(0.1), Some(2.0)]),
            ("b", 0, [Some(0.25), Some(1.0)]),
        ]);
        let index = index_of(&rows);
        assert_eq!((&*index.models, &*index.metrics), (&["b", "a"][..], &["clip", "hps"][..]));
        let [prompt] = &index.prompts[..] else { panic!("{index:?}") };
        let seeds: Vec<i64> = prompt.images[0].iter().map(|image| image.seed).collect();
        assert_eq!(seeds, [0, 1]);
        assert_eq!(prompt.best(0, 0), Some(0.5));
        assert_eq!(prompt.margin([0, 1], 0), Some(0.4));
        assert_eq!(prompt.margin([0, 1], 1), Some(-1.0));
        assert_eq!(index.values(0, 1), [1.0]);
    }

    #[test]
    fn the_image_is_chosen_by_rank_metric_or_seed() {
        let rows = rows(&[
            ("a", 0, [Some(0.9), Some(0.1)]),
            ("a", 1, [Some(0.8), Some(0.8)]),
            ("a", 2, [Some(0.1), Some(0.9)]),
            ("a", 3, [Some(0.2), Some(0.3)]),
            ("a", 5, [Some(0.5), None]),
            ("b", 4, [None, None]),
        ]);
        let index = index_of(&rows);
        let seed = |model, choice| Some(index.prompts[0].chosen(model, choice)?.seed);
        assert_eq!(seed(0, Choice::First), Some(0));
        assert_eq!(seed(0, Choice::Metric(0)), Some(0));
        assert_eq!(seed(0, Choice::Metric(1)), Some(2));
        assert_eq!(seed(0, Choice::MeanRank), Some(1), "second best by both");
        assert_eq!(seed(1, Choice::Metric(0)), None);
        assert_eq!(seed(1, Choice::MeanRank), Some(4));
        assert_eq!(seed(2, Choice::First), None);
    }
}
