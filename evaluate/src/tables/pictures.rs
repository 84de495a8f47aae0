//! Scores as a table of pictures: a row for each picture, a column for each metric.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use polars::prelude::*;
use schemas::scores::ScoreRow;

use super::{ALL_SETS, TablesConfig, TablesError};

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
pub(super) struct Pictures {
    pub(super) models: Vec<String>,
    pub(super) metrics: Vec<String>,
    pub(super) sets: Vec<String>,
    /// Sorted by set, id and text.
    pub(super) prompts: Vec<Prompt>,
    /// For each model, whether it has a row for each prompt.
    pub(super) present: Vec<Vec<bool>>,
    /// Columns `model`, `picture` (prompt × seeds + seed) and one for each metric; rows with at least
    /// one score.
    wide: DataFrame,
    seeds: u64,
}

/// The scores of one model, or of the pictures that two models have, by prompt and seed.
#[derive(Debug)]
pub(super) struct Scores {
    /// The prompt of each picture, ascending.
    pub(super) prompts: Vec<usize>,
    /// For each metric the score of each picture.
    pub(super) metrics: Vec<Vec<Option<f32>>>,
}

impl Pictures {
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
        for (place, name) in config.baselines.iter().enumerate() {
            if !models.contains(name) {
                let (what, name, known) = ("model", name.clone(), models);
                return Err(TablesError::Unknown { what, name, known });
            }
            if config.baselines.iter().take(place).any(|other| other == name) {
                return Err(TablesError::Twice { what: "baseline", name: name.clone() });
            }
        }
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
        if sets.len() > 1 && sets.iter().any(|set| set == ALL_SETS) {
            return Err(TablesError::SetNamedAll);
        }
        let (prompts, prompt_of) = prompts(&wanted, &numbers(&sets));
        let mut present = vec![vec![false; prompts.len()]; models.len()];
        for ((model, ..), &prompt) in wanted.iter().zip(&prompt_of) {
            present[*model as usize][prompt as usize] = true;
        }
        let seeds: BTreeSet<i64> = wanted.iter().map(|(.., row)| row.seed).collect();
        let seed_numbers: HashMap<i64, u64> = seeds.iter().copied().zip(0..).collect();
        let count = seeds.len() as u64;
        let picture = |(row, &prompt): (&ScoreRow, &u32)| {
            u64::from(prompt) * count + seed_numbers.get(&row.seed).copied().unwrap_or(0)
        };
        let of_rows = || wanted.iter().map(|(.., row)| *row);
        let long = DataFrame::new(
            wanted.len(),
            vec![
                column("model", wanted.iter().map(|(model, ..)| *model).collect::<Vec<_>>()),
                column("metric", wanted.iter().map(|(_, metric, _)| *metric).collect::<Vec<_>>()),
                column("picture", of_rows().zip(&prompt_of).map(picture).collect::<Vec<_>>()),
                column("score", of_rows().map(|row| row.score).collect::<Vec<_>>()),
            ],
        )?;
        let pictures = Self {
            wide: wide(&long, metrics.len())?,
            models,
            metrics,
            sets,
            prompts,
            present,
            seeds: count,
        };
        check_duplicates(&long, &wanted, &prompt_of)?;
        Ok(pictures)
    }

    /// The scores of one model.
    pub(super) fn of_model(&self, model: usize) -> Result<Scores, TablesError> {
        let frame = self.rows_of(model).sort(["picture"], SortMultipleOptions::default());
        let frame = frame.collect()?;
        let scores = (0..self.metrics.len()).map(|metric| read(&frame, &metric_name(metric)));
        Ok(Scores { prompts: self.prompts_of(&frame)?, metrics: scores.collect::<Result<_, _>>()? })
    }

    /// The scores of two models, of the pictures (prompt and seed) that both have.
    pub(super) fn of_both(&self, a: usize, b: usize) -> Result<[Scores; 2], TablesError> {
        let frame = self
            .rows_of(a)
            .join(
                self.rows_of(b),
                [col("picture")],
                [col("picture")],
                JoinArgs::new(JoinType::Inner).with_suffix(Some("_b".into())),
            )
            .sort(["picture"], SortMultipleOptions::default())
            .collect()?;
        let side = |suffix: &str| {
            let scores = (0..self.metrics.len())
                .map(|metric| read(&frame, &format!("{}{suffix}", metric_name(metric))));
            let metrics = scores.collect::<Result<_, TablesError>>()?;
            Ok::<_, TablesError>(Scores { prompts: self.prompts_of(&frame)?, metrics })
        };
        Ok([side("")?, side("_b")?])
    }

    fn rows_of(&self, model: usize) -> LazyFrame {
        self.wide.clone().lazy().filter(col("model").eq(lit(model as u32)))
    }

    fn prompts_of(&self, frame: &DataFrame) -> Result<Vec<usize>, TablesError> {
        let pictures = frame.column("picture")?.u64()?;
        Ok(pictures.iter().flatten().map(|picture| (picture / self.seeds) as usize).collect())
    }
}

/// A row for each picture of a model that has a score, a column for each metric.
fn wide(long: &DataFrame, metrics: usize) -> Result<DataFrame, TablesError> {
    // There is one score at most: a maximum takes it, and is null without one.
    let score = |metric: usize| {
        let of_metric = col("score").filter(col("metric").eq(lit(metric as u32)));
        of_metric.max().alias(metric_name(metric))
    };
    let frame = long
        .clone()
        .lazy()
        .filter(col("score").is_not_null())
        .group_by([col("model"), col("picture")])
        .agg((0..metrics).map(score).collect::<Vec<_>>());
    Ok(frame.collect()?)
}

/// One score for each picture and metric. A picture is known by the id of its prompt here: a model
/// with two texts under one id was scored twice in different states.
fn check_duplicates(
    long: &DataFrame,
    wanted: &[(u32, u32, &ScoreRow)],
    prompt_of: &[u32],
) -> Result<(), TablesError> {
    let keys = ["model", "metric", "prompt", "seed"].map(col);
    let mut numbers: HashMap<(&str, &str), u32> = HashMap::new();
    let mut of_prompt: HashMap<u32, u32> = HashMap::new();
    for ((.., row), prompt) in wanted.iter().zip(prompt_of) {
        let next = numbers.len() as u32;
        of_prompt
            .entry(*prompt)
            .or_insert_with(|| *numbers.entry((&row.prompt_set, &row.prompt_id)).or_insert(next));
    }
    let ids = prompt_of.iter().map(|prompt| of_prompt.get(prompt).copied()).collect::<Vec<_>>();
    let rows = wanted.len() as u32;
    let twice = long
        .clone()
        .hstack(&[
            column("prompt", ids),
            column("seed", wanted.iter().map(|(.., row)| row.seed).collect::<Vec<_>>()),
            column("row", (0..rows).collect::<Vec<_>>()),
        ])?
        .lazy()
        .group_by(keys)
        .agg([len().alias("rows"), col("row").min().alias("first")])
        .filter(col("rows").gt(lit(1_u32)))
        .sort(["first"], SortMultipleOptions::default())
        .limit(1)
        .collect()?;
    let first = twice.column("first")?.u32()?.iter().flatten().next();
    match first.and_then(|first| wanted.get(first as usize)) {
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

fn column<T, C: ?Sized>(name: &str, values: T) -> Column
where
    Series: NamedFrom<T, C>,
{
    Column::new(name.into(), values)
}

fn read(frame: &DataFrame, name: &str) -> Result<Vec<Option<f32>>, TablesError> {
    Ok(frame.column(name)?.f32()?.iter().collect())
}
