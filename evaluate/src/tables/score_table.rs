//! Scores as a table of images: a row for each image, a column for each metric.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use polars::prelude::*;
use schemas::scores::ScoreRow;

use super::{TablesConfig, TablesError};

/// A prompt. Equal ids with different texts are different prompts, so they are never compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prompt {
    /// Its set, by number.
    pub(super) set: usize,
    pub(super) id: String,
    pub(super) text: String,
    /// The smallest name where scores disagree.
    pub(super) category: Option<String>,
}

/// All scores, indexed.
#[derive(Debug)]
pub(super) struct ScoreTable {
    pub(super) models: Vec<String>,
    pub(super) metrics: Vec<String>,
    pub(super) sets: Vec<String>,
    /// Sorted by set, id and text.
    pub(super) prompts: Vec<Prompt>,
    /// For each model, whether it has a row for each prompt.
    pub(super) present: Vec<Vec<bool>>,
    /// For each model its images that have a score: column `image` (prompt × seeds + seed),
    /// ascending, and a column for each metric.
    frames: Vec<DataFrame>,
    seeds: u64,
}

/// The scores of one model, or of the images that two models have, by prompt and seed.
#[derive(Debug)]
pub(super) struct Scores {
    /// The prompt of each image, ascending.
    pub(super) prompts: Vec<usize>,
    /// For each metric the score of each image.
    pub(super) metrics: Vec<Vec<Option<f32>>>,
}

impl ScoreTable {
    /// Sorts and checks the scores of the models and metrics that are asked for.
    pub(super) fn new(scores: &[ScoreRow], config: &TablesConfig) -> Result<Self, TablesError> {
        if scores.is_empty() {
            let hint = "the scores file has no row".to_owned();
            return Err(TablesError::Empty { hint });
        }
        let models =
            chosen("model", config.models.as_deref(), scores.iter().map(|row| &row.model))?;
        let metrics =
            chosen("metric", config.metrics.as_deref(), scores.iter().map(|row| &row.metric))?;
        let (model_numbers, metric_numbers) = (numbers(&models), numbers(&metrics));
        let wanted: Vec<(u32, u32, &ScoreRow)> = scores
            .iter()
            .filter_map(|row| {
                let model = *model_numbers.get(row.model.as_str())?;
                Some((model, *metric_numbers.get(row.metric.as_str())?, row))
            })
            .collect();
        if wanted.is_empty() {
            let hint = "none of the models was scored by any of the metrics".to_owned();
            return Err(TablesError::Empty { hint });
        }
        if let Some(row) =
            scores.iter().find(|row| row.score.is_some_and(|score| !score.is_finite()))
        {
            return Err(TablesError::NotFinite {
                model: row.model.clone(),
                prompt_id: row.prompt_id.clone(),
                seed: row.seed,
                metric: row.metric.clone(),
                found: row.score.unwrap_or_default(),
            });
        }
        let sets = names(wanted.iter().map(|(.., row)| &row.prompt_set));
        config.check(&models, &sets)?;
        let (prompts, prompt_of) = prompts(&wanted, &numbers(&sets));
        let mut present = vec![vec![false; prompts.len()]; models.len()];
        for ((model, ..), &prompt) in wanted.iter().zip(&prompt_of) {
            present[*model as usize][prompt as usize] = true;
        }
        let seeds: BTreeSet<i64> = wanted.iter().map(|(.., row)| row.seed).collect();
        let seed_numbers: HashMap<i64, u64> = seeds.iter().copied().zip(0..).collect();
        let count = seeds.len() as u64;
        let image = |(row, &prompt): (&ScoreRow, &u32)| {
            u64::from(prompt) * count + seed_numbers.get(&row.seed).copied().unwrap_or(0)
        };
        check_duplicates(&wanted)?;
        let mut columns = vec![vec![(Vec::new(), Vec::new()); metrics.len()]; models.len()];
        for (&(model, metric, row), prompt) in wanted.iter().zip(&prompt_of) {
            if let Some(score) = row.score {
                let (images, values) = &mut columns[model as usize][metric as usize];
                images.push(image((row, prompt)));
                values.push(score);
            }
        }
        let frames = columns.into_iter().map(frame).collect::<Result<_, _>>()?;
        Ok(Self { models, metrics, sets, prompts, present, frames, seeds: count })
    }

    /// The scores of one model.
    pub(super) fn of_model(&self, model: usize) -> Result<Scores, TablesError> {
        self.read(&self.frames[model], "")
    }

    /// The scores of two models, of the images (prompt and seed) that both have.
    pub(super) fn of_both(&self, a: usize, b: usize) -> Result<[Scores; 2], TablesError> {
        let (frame, other) = (&self.frames[a], &self.frames[b]);
        let joined = JoinArgs::new(JoinType::Inner).with_suffix(Some(OTHER.into()));
        let frame = frame.join(other, [IMAGE], [IMAGE], joined, None)?;
        let frame = frame.sort([IMAGE], SortMultipleOptions::default())?;
        Ok([self.read(&frame, "")?, self.read(&frame, OTHER)?])
    }

    /// Prompts and scores of a frame; `suffix` follows the names of the columns.
    fn read(&self, frame: &DataFrame, suffix: &str) -> Result<Scores, TablesError> {
        let images = frame.column(IMAGE)?.u64()?;
        let prompts = images.iter().flatten().map(|image| (image / self.seeds) as usize).collect();
        let metric = |metric| {
            let scores = frame.column(&format!("{}{suffix}", metric_name(metric)))?.f32()?;
            Ok::<_, TablesError>(scores.iter().collect())
        };
        let metrics = (0..self.metrics.len()).map(metric).collect::<Result<_, _>>()?;
        Ok(Scores { prompts, metrics })
    }
}

/// The column of images, and what follows the names of the second model's columns in a join.
const IMAGE: &str = "image";
const OTHER: &str = " of the other";

/// A row for each image of a model that has a score, a column for each metric, from images and
/// scores by metric.
fn frame(metrics: Vec<(Vec<u64>, Vec<f32>)>) -> Result<DataFrame, TablesError> {
    let images = Column::new(IMAGE.into(), Vec::<u64>::new());
    let mut frame = DataFrame::new(0, vec![images])?;
    for (metric, (images, scores)) in metrics.into_iter().enumerate() {
        let columns = vec![
            Column::new(IMAGE.into(), images),
            Column::new(metric_name(metric).into(), scores),
        ];
        let column = DataFrame::new_infer_height(columns)?;
        let joined = JoinArgs::new(JoinType::Full).with_coalesce(JoinCoalesce::CoalesceColumns);
        frame = frame.join(&column, [IMAGE], [IMAGE], joined, None)?;
    }
    Ok(frame.sort([IMAGE], SortMultipleOptions::default())?)
}

/// One score for each image and metric. An image is known by the id of its prompt here: a model
/// with two texts under one id was scored twice in different states.
fn check_duplicates(wanted: &[(u32, u32, &ScoreRow)]) -> Result<(), TablesError> {
    let mut known = HashSet::with_capacity(wanted.len());
    let twice = wanted.iter().find(|(model, metric, row)| {
        !known.insert((*model, *metric, &row.prompt_set, &row.prompt_id, row.seed))
    });
    match twice {
        None => Ok(()),
        Some((.., row)) => Err(TablesError::Duplicate {
            model: row.model.clone(),
            prompt_set: row.prompt_set.clone(),
            prompt_id: row.prompt_id.clone(),
            seed: row.seed,
            metric: row.metric.clone(),
        }),
    }
}

/// The prompts in order, and the number of each row's prompt.
fn prompts(wanted: &[(u32, u32, &ScoreRow)], sets: &HashMap<&str, u32>) -> (Vec<Prompt>, Vec<u32>) {
    let mut first_numbers: HashMap<(&str, &str, &str), u32> = HashMap::new();
    let mut categories: Vec<Option<&str>> = Vec::new();
    let mut of_rows = Vec::with_capacity(wanted.len());
    for (.., row) in wanted {
        let next = first_numbers.len() as u32;
        let key = (row.prompt_set.as_str(), row.prompt_id.as_str(), row.prompt.as_str());
        let number = *first_numbers.entry(key).or_insert(next);
        of_rows.push(number);
        let category = row.category.as_deref();
        match categories.get_mut(number as usize) {
            None => categories.push(category),
            Some(known) => {
                *known =
                    known.map_or(category, |known| Some(category.map_or(known, |c| c.min(known))));
            }
        }
    }
    let sorted: BTreeMap<(u32, &str, &str), u32> = first_numbers
        .into_iter()
        .map(|((set, id, text), number)| ((sets.get(set).copied().unwrap_or(0), id, text), number))
        .collect();
    let mut place_of = vec![0_u32; sorted.len()];
    let mut prompts = Vec::with_capacity(sorted.len());
    for (place, ((set, id, text), number)) in sorted.into_iter().enumerate() {
        place_of[number as usize] = place as u32;
        let category = categories.get(number as usize).copied().flatten().map(str::to_owned);
        prompts.push(Prompt {
            set: set as usize,
            id: id.to_owned(),
            text: text.to_owned(),
            category,
        });
    }
    of_rows.iter_mut().for_each(|number| *number = place_of[*number as usize]);
    (prompts, of_rows)
}

/// The names that were asked for, or all in order of appearance.
fn chosen<'a>(
    what: &'static str,
    asked: Option<&[String]>,
    found: impl Iterator<Item = &'a String>,
) -> Result<Vec<String>, TablesError> {
    let known = names(found);
    let Some(asked) = asked else { return Ok(known) };
    for (place, name) in asked.iter().enumerate() {
        if !known.contains(name) {
            return Err(TablesError::Unknown { what, name: name.clone(), known });
        }
        if asked.iter().take(place).any(|other| other == name) {
            return Err(TablesError::Twice { what, name: name.clone() });
        }
    }
    Ok(asked.to_vec())
}

/// Each name once, in order of appearance.
fn names<'a>(found: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in found {
        // Neighbours are mostly equal, and there are few names.
        if names.last() != Some(name) && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn numbers(names: &[String]) -> HashMap<&str, u32> {
    names.iter().map(String::as_str).zip(0..).collect()
}

fn metric_name(metric: usize) -> String {
    format!("metric {metric}")
}
