//! Scores regrouped for looking at: by prompt, then by model, then by image.

use std::collections::HashMap;
use std::hash::Hash;

use schemas::scores::ScoreRow;

/// All scores of an evaluation. Models, metrics, sets and prompts stand in order of first appearance.
#[derive(Debug)]
pub struct Scored<'rows> {
    /// The names of the models.
    pub models: Vec<&'rows str>,
    /// The names of the metrics.
    pub metrics: Vec<&'rows str>,
    /// The names of the prompt sets.
    pub sets: Vec<&'rows str>,
    /// The prompts of all sets.
    pub prompts: Vec<ScoredPrompt<'rows>>,
}

/// A prompt with its images.
#[derive(Debug)]
pub struct ScoredPrompt<'rows> {
    /// Its set.
    pub set: &'rows str,
    /// Its id in the set.
    pub id: &'rows str,
    /// Its text.
    pub text: &'rows str,
    /// Its category, where the set has categories.
    pub category: Option<&'rows str>,
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

/// Which of a model's images of a prompt is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The one with the best mean rank over all metrics.
    MeanRank,
    /// The one with the highest score by a metric, given by its place.
    Metric(usize),
    /// The one with the smallest seed.
    First,
}

/// Names in order of first appearance, with their places.
#[derive(Debug)]
struct Places<T> {
    names: Vec<T>,
    places: HashMap<T, usize>,
}

impl<T: Copy + Eq + Hash> Places<T> {
    fn new() -> Self {
        Self { names: Vec::new(), places: HashMap::new() }
    }

    fn place(&mut self, name: T) -> usize {
        *self.places.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }
}

impl<'rows> Scored<'rows> {
    /// Regroups rows. A score that is there twice counts once, the first of them.
    pub fn new(rows: &'rows [ScoreRow]) -> Self {
        let (mut models, mut metrics) = (Places::new(), Places::new());
        let (mut sets, mut prompts) = (Places::new(), Places::new());
        for row in rows {
            models.place(&*row.model);
            metrics.place(&*row.metric);
            sets.place(&*row.prompt_set);
        }
        let mut scored: Vec<ScoredPrompt<'_>> = Vec::new();
        for row in rows {
            let place = prompts.place((&*row.prompt_set, &*row.prompt_id));
            if place == scored.len() {
                scored.push(ScoredPrompt {
                    set: &row.prompt_set,
                    id: &row.prompt_id,
                    text: &row.prompt,
                    category: row.category.as_deref(),
                    images: models.names.iter().map(|_| Vec::new()).collect(),
                });
            }
            let images = &mut scored[place].images[models.place(&row.model)];
            let found = images.iter().position(|image| image.seed == row.seed);
            let found = found.unwrap_or_else(|| {
                images.push(ScoredImage {
                    seed: row.seed,
                    image: &row.image,
                    scores: vec![None; metrics.names.len()],
                });
                images.len() - 1
            });
            let score = &mut images[found].scores[metrics.place(&row.metric)];
            *score = score.or(row.score.filter(|score| score.is_finite()));
        }
        for images in scored.iter_mut().flat_map(|prompt| &mut prompt.images) {
            images.sort_by_key(|image| image.seed);
        }
        Self { models: models.names, metrics: metrics.names, sets: sets.names, prompts: scored }
    }

    /// All scores of a model by a metric.
    pub fn values(&self, model: usize, metric: usize) -> Vec<f32> {
        let images = self.prompts.iter().filter_map(|prompt| prompt.images.get(model));
        images.flatten().filter_map(|image| *image.scores.get(metric)?).collect()
    }
}

impl<'rows> ScoredPrompt<'rows> {
    /// The image of a model that is shown; nothing where it has none with a score to choose by.
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
        let images = self.images.get(model)?.iter();
        images.filter_map(|image| *image.scores.get(metric)?).max_by(f32::total_cmp)
    }

    /// By how much the best score of model `a` is higher than that of `b`.
    pub fn margin(&self, [a, b]: [usize; 2], metric: usize) -> Option<f32> {
        Some(self.best(a, metric)? - self.best(b, metric)?)
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

/// One letter for each metric, as the paper's captions have them: P, H, C and A for PickScore, HPS,
/// CLIP and aesthetic; the first letter that is free for others.
pub fn letters(metrics: &[&str]) -> Vec<String> {
    let mut taken: Vec<String> = Vec::new();
    for metric in metrics {
        let free = |letter: &String| !taken.contains(letter);
        let letters = metric.chars().filter(|letter| letter.is_alphanumeric());
        let mut letters = letters.map(|letter| letter.to_uppercase().to_string());
        let letter = letters.find(free).unwrap_or_else(|| (*metric).to_owned());
        taken.push(letter);
    }
    taken
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

    #[test]
    fn rows_are_grouped_and_seeds_sorted() {
        let rows = rows(&[
            ("b", 1, [Some(0.5), None]),
            ("a", 7, [Some(0.1), Some(2.0)]),
            ("b", 0, [Some(0.25), Some(1.0)]),
        ]);
        let scored = Scored::new(&rows);
        assert_eq!((&*scored.models, &*scored.metrics), (&["b", "a"][..], &["clip", "hps"][..]));
        let [prompt] = &scored.prompts[..] else { panic!("{scored:?}") };
        let seeds: Vec<i64> = prompt.images[0].iter().map(|image| image.seed).collect();
        assert_eq!(seeds, [0, 1]);
        assert_eq!(prompt.best(0, 0), Some(0.5));
        assert_eq!(prompt.margin([0, 1], 0), Some(0.4));
        assert_eq!(prompt.margin([0, 1], 1), Some(-1.0));
        assert_eq!(scored.values(0, 1), [1.0]);
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
        let scored = Scored::new(&rows);
        let seed = |model, choice| Some(scored.prompts[0].chosen(model, choice)?.seed);
        assert_eq!(seed(0, Choice::First), Some(0));
        assert_eq!(seed(0, Choice::Metric(0)), Some(0));
        assert_eq!(seed(0, Choice::Metric(1)), Some(2));
        assert_eq!(seed(0, Choice::MeanRank), Some(1), "second best by both");
        assert_eq!(seed(1, Choice::Metric(0)), None);
        assert_eq!(seed(1, Choice::MeanRank), Some(4));
        assert_eq!(seed(2, Choice::First), None);
    }

    #[test]
    fn letters_are_those_of_the_paper_and_never_equal() {
        assert_eq!(letters(&["pickscore", "hps", "clip", "aesthetic"]), ["P", "H", "C", "A"]);
        assert_eq!(letters(&["clip", "clip-l", "c"]), ["C", "L", "c"]);
    }
}
