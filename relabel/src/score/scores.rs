//! All parts together: the bytes in every slot, and their scores.
//!
//! A score belongs to the bytes of an image and a caption. Where the same two were scored more than
//! once (equal bytes under several uids, in several units), the first in input order counts, so
//! that they have the same score everywhere. A scorer that does not read captions has one score for
//! the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result};
use runkit::signals::StopFlag;
use schemas::labels::Status;

use super::part::{self, Found as PartFound};
use super::plan::{Digest, NO_INDEX, Plan, Unit};

/// What is known of every image and caption of a run.
pub(super) struct Scores {
    scorers: usize,
    /// For each slot, the first slot with the same bytes: the identity of the bytes. [`NO_INDEX`]
    /// if the slot has no bytes.
    content: Vec<u32>,
    /// What was scored, sorted by content and caption, each once.
    scored: Vec<Scored>,
    /// `scorers` numbers for each score that was read; NaN where a scorer failed.
    values: Vec<f32>,
    /// Why a scorer failed, by the position of its NaN.
    reasons: HashMap<usize, String>,
    /// Why bytes have no score, by content.
    failures: HashMap<u32, (Status, String)>,
    /// Why slots have no bytes, where the input says more than null.
    absent: HashMap<u32, String>,
}

/// The scores of an image with a caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Scored {
    content: u32,
    caption: u32,
    /// Which of the scores that were read.
    number: u32,
}

/// The scores of an image with a caption, by all scorers.
#[derive(Clone, Copy)]
pub(super) struct Found<'scores> {
    scores: &'scores Scores,
    /// Where they begin.
    start: usize,
}

impl<'scores> Found<'scores> {
    /// The score of a scorer, or why it failed.
    pub(super) fn of(self, scorer: usize) -> std::result::Result<f32, &'scores str> {
        let place = self.start + scorer;
        match self.scores.values.get(place) {
            Some(value) if value.is_finite() => Ok(*value),
            _ => Err(self.scores.reasons.get(&place).map_or("gave no score", String::as_str)),
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy)]
pub(super) enum Held<'scores> {
    /// No bytes, and why if the input says it.
    Missing(Option<&'scores str>),
    /// Bytes that cannot be decoded.
    Failure(Status, &'scores str),
    /// A score or a failure of each scorer.
    Scores(Found<'scores>),
    /// Bytes that were not scored with this caption.
    Gap,
}

impl Scores {
    /// Reads the parts in `folder`. `reads_captions` says of each scorer whether its score depends
    /// on the caption.
    pub(super) fn read(
        plan: &Plan,
        reads_captions: &[bool],
        scorers: &[String],
        folder: &Path,
        stop: &StopFlag,
    ) -> Result<Self> {
        let mut scores = Self {
            scorers: scorers.len(),
            content: contents(plan, scorers, folder, stop)?,
            scored: Vec::new(),
            values: Vec::new(),
            reasons: HashMap::new(),
            failures: HashMap::new(),
            absent: HashMap::new(),
        };
        // As many as there are unless bytes differ under one uid; growth by doubling would hold
        // more.
        scores.scored.reserve_exact(plan.image_caption_count());
        scores.values.reserve_exact(plan.image_caption_count() * scorers.len());
        for_each_part(plan, folder, |unit, path| {
            part::read(path, scorers, |row| {
                stop.check()?;
                let slot = unit.slots().start + row.slot;
                let content = *scores.content.get(usize::try_from(slot)?).context(FOREIGN)?;
                match row.found {
                    PartFound::Occurrence => {}
                    PartFound::Failure { error, .. } if row.content.is_none() => {
                        scores.absent.insert(u32::try_from(slot)?, error);
                    }
                    PartFound::Failure { status, error } => {
                        scores.failures.entry(content).or_insert((status, error));
                    }
                    PartFound::Scores { image_caption, scores: values } => {
                        let caption = plan.image_caption(image_caption).context(FOREIGN)?.caption;
                        let number = u32::try_from(scores.scored.len())?;
                        scores.scored.push(Scored { content, caption, number });
                        for score in values {
                            let place = scores.values.len();
                            scores.values.push(*score.as_ref().unwrap_or(&f32::NAN));
                            if let Err(failure) = score {
                                scores.reasons.insert(place, failure.reason().to_owned());
                            }
                        }
                    }
                }
                Ok(())
            })
        })?;
        scores.settle(reads_captions);
        Ok(scores)
    }

    /// Leaves one score for the same bytes and caption, and one for the same bytes by a scorer that
    /// does not read captions.
    fn settle(&mut self, reads_captions: &[bool]) {
        self.scored.sort_unstable();
        self.scored.dedup_by_key(|scored| (scored.content, scored.caption));
        let scorers = self.scorers;
        for same in self.scored.chunk_by(|one, other| one.content == other.content) {
            let numbers = same.iter().map(|scored| scored.number as usize);
            let Some(first) = numbers.clone().min() else { continue };
            for (scorer, reads) in reads_captions.iter().enumerate() {
                if !reads {
                    let from = first * scorers + scorer;
                    for number in numbers.clone().filter(|&number| number != first) {
                        let to = number * scorers + scorer;
                        self.values[to] = self.values[from];
                        if let Some(reason) = self.reasons.get(&from) {
                            self.reasons.insert(to, reason.clone());
                        }
                    }
                }
            }
        }
    }

    /// What is in `slot`; `None` if its row cannot be scored whatever its images are.
    pub(super) fn at(&self, plan: &Plan, slot: u64) -> Option<Held<'_>> {
        let caption = plan.caption_at(slot)?;
        // A slot of the plan.
        let content = self.content[slot as usize];
        if content == NO_INDEX {
            let why = u32::try_from(slot).ok().and_then(|slot| self.absent.get(&slot));
            return Some(Held::Missing(why.map(String::as_str)));
        }
        if let Some((status, error)) = self.failures.get(&content) {
            return Some(Held::Failure(*status, error));
        }
        let key = (content, caption);
        let found = self.scored.binary_search_by_key(&key, |it| (it.content, it.caption));
        Some(found.map_or(Held::Gap, |found| {
            let start = self.scored[found].number as usize * self.scorers;
            Held::Scores(Found { scores: self, start })
        }))
    }

    /// What is still to be scored: for each unit the slots and their pairs. Bytes that occur in
    /// several such slots are scored in the first.
    pub(super) fn gaps(&self, plan: &Plan) -> BTreeMap<usize, BTreeMap<u64, Vec<u32>>> {
        let mut first_slots: HashMap<u32, (usize, u64, Vec<u32>)> = HashMap::new();
        for (index, unit) in plan.units.iter().enumerate() {
            for slot in unit.slots() {
                if !matches!(self.at(plan, slot), Some(Held::Gap)) {
                    continue;
                }
                let Some(image_caption) = plan.image_caption_at(slot) else { continue };
                let content = self.content[slot as usize];
                let (_, _, wanted) =
                    first_slots.entry(content).or_insert_with(|| (index, slot, Vec::new()));
                let caption = |index: u32| plan.image_caption(index).map(|it| it.caption);
                if wanted.iter().all(|&other| caption(other) != caption(image_caption)) {
                    wanted.push(image_caption);
                }
            }
        }
        let mut gaps: BTreeMap<usize, BTreeMap<u64, Vec<u32>>> = BTreeMap::new();
        for (unit, slot, wanted) in first_slots.into_values() {
            gaps.entry(unit).or_default().insert(slot, wanted);
        }
        gaps
    }

    /// How many uids name images with different bytes. A slot without bytes does not count.
    pub(super) fn uids_with_other_bytes(&self, plan: &Plan) -> usize {
        let mut first: HashMap<u32, u32> = HashMap::new();
        let mut several = std::collections::HashSet::new();
        for (slot, &content) in (0u64..).zip(&self.content) {
            let Some(owner) = plan.owner(slot).filter(|_| content != NO_INDEX) else { continue };
            let at_owner = self.content[owner as usize];
            let of_owner = match at_owner {
                // The owner has no bytes: the first bytes of the uid are those to compare with.
                NO_INDEX => *first.entry(owner).or_insert(content),
                found => found,
            };
            if of_owner != content {
                several.insert(owner);
            }
        }
        several.len()
    }
}

/// For each slot the first slot with the same bytes, from the slots in all parts.
fn contents(plan: &Plan, scorers: &[String], folder: &Path, stop: &StopFlag) -> Result<Vec<u32>> {
    let slots = usize::try_from(2 * plan.pairs())?;
    let mut found: Vec<(Digest, u32)> = Vec::with_capacity(slots);
    for_each_part(plan, folder, |unit, path| {
        part::read(path, scorers, |row| {
            stop.check()?;
            if let (PartFound::Occurrence, Some(digest)) = (&row.found, row.content) {
                found.push((digest, u32::try_from(unit.slots().start + row.slot)?));
            }
            Ok(())
        })
    })?;
    found.sort_unstable();
    let mut contents = vec![NO_INDEX; slots];
    for same in found.chunk_by(|one, other| one.0 == other.0) {
        for &(_, slot) in same {
            *contents.get_mut(slot as usize).context(FOREIGN)? = same[0].1;
        }
    }
    Ok(contents)
}

/// Calls `each` with every part, in input order, and then with what was scored in the end.
fn for_each_part(
    plan: &Plan,
    folder: &Path,
    mut each: impl FnMut(&Unit, &Path) -> Result<()>,
) -> Result<()> {
    let count = plan.units.len();
    for path in [part::path, part::rest_path] {
        for (index, unit) in plan.units.iter().enumerate() {
            let path = path(folder, index, count);
            if path.exists() {
                each(unit, &path).with_context(|| format!("merging {}", path.display()))?;
            }
        }
    }
    Ok(())
}

const FOREIGN: &str =
    "a row does not belong to this run; hint: remove the part and run the same command again";
