//! Which images become pairs, from the scores alone.

use std::collections::HashSet;

use schemas::pairs::{EmptyCaption, caption_problem};
use schemas::scores::ScoreRow;

use super::rank::{self, By, Choose, RankedPair};
use super::{Config, PairsError};
use crate::scores_index::{IndexError, IndexedPrompt, ScoresIndex, Selection};

/// The pairs of all prompts, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The scorers whose scores the labels hold, in the order of their columns.
    pub(super) voters: Vec<String>,
    /// The prompts with pairs, in the order of the scores.
    pub(super) prompts: Vec<PlannedPrompt>,
    pub(super) left_out: LeftOut,
}

/// What gives no pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Prompts with fewer than two images that every voter has scored.
    pub too_few_images: usize,
    /// Prompts whose images give no pair: equal in rank, or not agreed on.
    pub undecided: usize,
    /// Prompts whose text an earlier prompt has too.
    pub repeated: usize,
    /// Prompts that no reader of pairs takes for a caption: blank, or too long.
    pub not_captions: usize,
    /// Images that lack the score of a voter, or the score that ranks them.
    pub images_without_score: usize,
}

/// A prompt with its ranked images.
#[derive(Debug)]
pub(super) struct PlannedPrompt {
    pub(super) text: String,
    pub(super) images: Vec<PlannedImage>,
    pub(super) pairs: Vec<RankedPair>,
}

/// An image with the scores of the voters.
#[derive(Debug)]
pub(super) struct PlannedImage {
    pub(super) model: String,
    pub(super) seed: i64,
    /// Its file, as the scores name it.
    pub(super) file: String,
    pub(super) scores: Vec<f32>,
}

impl Plan {
    /// Ranks and chooses.
    ///
    /// # Errors
    /// If a name is unknown, the scores contradict each other, or there is no pair.
    pub(super) fn new(rows: &mut Vec<ScoreRow>, config: &Config) -> Result<Self, PairsError> {
        retain_sets(rows, config.sets.as_deref())?;
        let metrics = match (&config.voters, &config.by) {
            (Some(voters), By::Metric(metric)) if !voters.contains(metric) => {
                Some([&voters[..], std::slice::from_ref(metric)].concat())
            }
            (voters, _) => voters.clone(),
        };
        let selection = Selection { models: config.models.as_deref(), metrics: metrics.as_deref() };
        let index = ScoresIndex::new(rows, selection)?;
        let count = config.voters.as_ref().map_or(index.metrics.len(), Vec::len);
        let voters = index.metrics.iter().take(count).map(|&name| name.to_owned()).collect();
        let by = match &config.by {
            By::MeanRank => None,
            By::Metric(metric) => Some(index.metric(metric)?),
        };
        let mut plan = Self { voters, ..Self::default() };
        let mut texts = HashSet::new();
        for prompt in index.listed() {
            let prompt = &index.prompts[prompt];
            if texts.contains(prompt.text) {
                plan.left_out.repeated += 1;
            } else if caption_problem(Some(prompt.text), EmptyCaption::Refused).is_some() {
                plan.left_out.not_captions += 1;
            } else if plan.add(&index.models, prompt, by, config.choose) {
                texts.insert(prompt.text);
            }
        }
        if plan.prompts.is_empty() {
            return Err(PairsError::Empty {
                scores: config.scores.clone(),
                choose: config.choose,
                left_out: plan.left_out,
            });
        }
        Ok(plan)
    }

    /// Adds the pairs of a prompt. Returns whether it has at least two images.
    fn add(
        &mut self,
        models: &[&str],
        prompt: &IndexedPrompt<'_>,
        by: Option<usize>,
        choose: Choose,
    ) -> bool {
        let (mut images, mut ranked_by) = (Vec::new(), Vec::new());
        for (model, found) in models.iter().zip(&prompt.images) {
            for image in found {
                let voters = image.scores.iter().take(self.voters.len()).copied();
                let scores: Option<Vec<f32>> = voters.collect();
                let rank = match by {
                    Some(metric) => image.scores[metric].map(|score| vec![score]),
                    None => scores.clone(),
                };
                let (Some(scores), Some(rank)) = (scores, rank) else {
                    self.left_out.images_without_score += 1;
                    continue;
                };
                let (model, file) = ((*model).to_owned(), image.image.to_owned());
                images.push(PlannedImage { model, seed: image.seed, file, scores });
                ranked_by.push(rank);
            }
        }
        if images.len() < 2 {
            self.left_out.too_few_images += 1;
            return false;
        }
        // Where ranks are equal the lower seed comes first, then the earlier model.
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|&image| images[image].seed);
        let sorted = |rows: &dyn Fn(usize) -> Vec<f32>| -> Vec<Vec<f32>> {
            order.iter().map(|&image| rows(image)).collect()
        };
        let ranked_by = sorted(&|image| ranked_by[image].clone());
        let votes = sorted(&|image| images[image].scores.clone());
        let mut pairs = rank::pairs(choose, &ranked_by, &votes);
        for pair in &mut pairs {
            pair.images = pair.images.map(|image| order[image]);
        }
        if pairs.is_empty() {
            self.left_out.undecided += 1;
        } else {
            self.prompts.push(PlannedPrompt { text: prompt.text.to_owned(), images, pairs });
        }
        true
    }

    /// How many pairs there are.
    pub(super) fn num_pairs(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.pairs.len() as u64).sum()
    }

    /// Every pair with its prompt, in order.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&PlannedPrompt, &RankedPair)> {
        self.prompts.iter().flat_map(|prompt| prompt.pairs.iter().map(move |pair| (prompt, pair)))
    }

    /// A checksum of everything that the pairs and labels hold besides the bytes of the images.
    pub(super) fn content(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let text = |hasher: &mut blake3::Hasher, text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        for prompt in &self.prompts {
            text(&mut hasher, &prompt.text);
            for image in &prompt.images {
                text(&mut hasher, &image.model);
                hasher.update(&image.seed.to_le_bytes());
                for score in &image.scores {
                    hasher.update(&score.to_bits().to_le_bytes());
                }
            }
            hasher.update(&(prompt.pairs.len() as u64).to_le_bytes());
            for RankedPair { images, equal } in &prompt.pairs {
                for image in images {
                    hasher.update(&(*image as u64).to_le_bytes());
                }
                hasher.update(&[u8::from(*equal)]);
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Keeps the rows of the sets that were named.
fn retain_sets(rows: &mut Vec<ScoreRow>, sets: Option<&[String]>) -> Result<(), IndexError> {
    let Some(sets) = sets else { return Ok(()) };
    if let Some(name) = sets.iter().find(|set| rows.iter().all(|row| row.prompt_set != **set)) {
        let mut known: Vec<String> = Vec::new();
        for row in rows.iter() {
            if known.last() != Some(&row.prompt_set) && !known.contains(&row.prompt_set) {
                known.push(row.prompt_set.clone());
            }
        }
        return Err(IndexError::Unknown { what: "prompt set", name: name.clone(), known });
    }
    rows.retain(|row| sets.contains(&row.prompt_set));
    Ok(())
}
