//! Scorers outside of this process: what they are asked of batches, and which scores are theirs.

use std::collections::HashMap;

use anyhow::Result;
use bytes::Bytes;
use scorers::{Comparison, EncodedImage, ExternalScorer, Question, Score, ScorerConfig, Workplace};

use super::plan::Plan;
use super::{Requests, Run};

/// What batches must hold for external scorers, besides pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// The encoded images that are scored.
    pub(crate) images: bool,
    /// The encoded images of every pair.
    pub(crate) pairs: bool,
}

/// The images of a row, for scorers that compare them.
#[derive(Debug)]
pub(crate) struct PairImages {
    /// The row, counted over the run.
    pub(crate) row: u64,
    pub(crate) images: [Bytes; 2],
    pub(crate) caption: u32,
}

/// The scorers of a run that are outside of this process.
#[derive(Debug)]
pub(crate) struct Externals {
    /// For each scorer of the run, the one outside that it is.
    scorers: Vec<Option<ExternalScorer>>,
}

/// Where the external scorers of a run keep what they need: in the work folder.
fn workplace(run: &Run<'_>) -> Workplace {
    Workplace {
        answers: run.output.answers(),
        images: run.output.images(),
        place: run.config.sharing.lock_name(),
        stop: run.stop.clone(),
    }
}

/// What a run would send to each external scorer. Sends and writes nothing.
///
/// # Errors
/// If there is no API key or program.
pub(super) fn rehearse(run: &Run<'_>) -> Result<Vec<Requests>> {
    let workplace = workplace(run);
    let mut requests = Vec::new();
    for (number, entry) in run.scorers.scorer.iter().enumerate() {
        if entry.kind.is_external() {
            let sending = ExternalScorer::rehearse(run.scorers, entry, &workplace)?;
            let most = most_requests(run, number, entry.compares());
            let most = most.saturating_sub(sending.answered as u64);
            requests.push(Requests { scorer: entry.name.clone(), most, sending });
        }
    }
    Ok(requests)
}

/// How many requests a run sends to a scorer at most, without further attempts: one for each
/// distinct image with each of its captions, or two for each pair, of units whose scores are not
/// taken over.
fn most_requests(run: &Run<'_>, scorer: usize, compares: bool) -> u64 {
    let plan = &run.plan;
    let is_wanted = |unit: &usize| {
        let wanted = &run.group_of(*unit).scorers;
        wanted.get(scorer).copied().unwrap_or(true)
    };
    let units = (0..plan.units.len()).filter(is_wanted).map(|unit| plan.units[unit].slots());
    match compares {
        true => units.map(|slots| slots.end - slots.start).sum(),
        false => {
            let owners = units
                .flatten()
                .filter_map(|slot| plan.owner(slot).filter(|&owner| u64::from(owner) == slot));
            owners.map(|owner| plan.image_captions_of(owner).len() as u64).sum()
        }
    }
}

impl Externals {
    /// Opens the external scorers of a run, with the answers that they have given.
    pub(super) fn open(run: &Run<'_>) -> Result<Self> {
        let workplace = workplace(run);
        let open = |entry: &ScorerConfig| match entry.kind.is_external() {
            true => ExternalScorer::open(run.scorers, entry, &workplace).map(Some),
            false => Ok(None),
        };
        Ok(Self { scorers: run.scorers.scorer.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Those that are wanted, each `None` for one inside of this process.
    fn wanted<'run>(
        &'run mut self,
        wanted: &'run [bool],
    ) -> impl Iterator<Item = &'run mut Option<ExternalScorer>> {
        self.scorers.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted).map(|(it, _)| it)
    }

    /// What batches must hold for those that are wanted.
    pub(crate) fn wants(&mut self, wanted: &[bool]) -> Wants {
        let mut wants = Wants::default();
        for scorer in self.wanted(wanted).flatten() {
            wants.images = true;
            wants.pairs |= scorer.compares();
        }
        wants
    }

    /// How many questions are worth asking together; 0 if there is nobody to ask.
    pub(crate) fn together(&mut self, wanted: &[bool]) -> usize {
        let scorers = self.wanted(wanted).flatten();
        scorers.map(|scorer| scorer.together()).max().unwrap_or(0)
    }

    /// The scores of the wanted scorers for images with captions: those of the networks are `local`,
    /// one vector for each question. A scorer that compares has 0 for each, which means nothing.
    pub(crate) fn score(
        &mut self,
        plan: &Plan,
        wanted: &[bool],
        questions: &[(&EncodedImage, u32)],
        local: Vec<Vec<Score>>,
    ) -> Result<Vec<Vec<Score>>> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let captions = Captions::of(plan, questions.iter().map(|(_, caption)| *caption))?;
        let questions: Vec<Question<'_>> = questions
            .iter()
            .map(|&(image, caption)| Question { image, caption: captions.get(caption) })
            .collect();
        let mut local: Vec<_> = local.into_iter().map(Vec::into_iter).collect();
        let mut all = vec![Vec::new(); questions.len()];
        for scorer in self.wanted(wanted) {
            let scores = match scorer {
                Some(scorer) if scorer.compares() => vec![Ok(0.0); questions.len()],
                Some(scorer) => scorer.score(&questions)?,
                None => local.iter_mut().filter_map(Iterator::next).collect(),
            };
            all.iter_mut().zip(scores).for_each(|(all, score)| all.push(score));
        }
        Ok(all)
    }

    /// The votes on pairs, one vector with a number for each wanted scorer for each pair: +1 or -1 of
    /// a scorer that compares, 0 of the others, which means nothing.
    pub(crate) fn compare(
        &mut self,
        plan: &Plan,
        wanted: &[bool],
        pairs: &[PairImages],
    ) -> Result<Vec<Vec<Score>>> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let captions = Captions::of(plan, pairs.iter().map(|pair| pair.caption))?;
        let images: Vec<[EncodedImage; 2]> =
            pairs.iter().map(|pair| pair.images.clone().map(EncodedImage::new)).collect();
        let comparisons: Vec<Comparison<'_>> = pairs
            .iter()
            .zip(&images)
            .map(|(pair, images)| Comparison {
                images: images.each_ref(),
                caption: captions.get(pair.caption),
            })
            .collect();
        let mut all = vec![Vec::new(); pairs.len()];
        for scorer in self.wanted(wanted) {
            let votes: Vec<Score> = match scorer {
                Some(scorer) if scorer.compares() => {
                    let votes = scorer.compare(&comparisons)?.into_iter();
                    votes.map(|vote| vote.map(f32::from)).collect()
                }
                _ => vec![Ok(0.0); pairs.len()],
            };
            all.iter_mut().zip(votes).for_each(|(all, vote)| all.push(vote));
        }
        Ok(all)
    }
}

/// The texts of some captions.
struct Captions(HashMap<u32, String>);

impl Captions {
    fn of(plan: &Plan, captions: impl Iterator<Item = u32>) -> Result<Self> {
        let mut texts = HashMap::new();
        for caption in captions {
            if let std::collections::hash_map::Entry::Vacant(entry) = texts.entry(caption) {
                entry.insert(plan.captions.get(caption as usize)?);
            }
        }
        Ok(Self(texts))
    }

    fn get(&self, caption: u32) -> &str {
        self.0.get(&caption).map_or("", String::as_str)
    }
}
