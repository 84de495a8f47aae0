//! All parts together: the bytes in every slot, and their scores.
//!
//! A score belongs to the bytes of an image and a caption. Where the same two were scored more than
//! once (equal bytes under several uids, in several units), the first in input order counts, so
//! that they have the same score everywhere. A scorer that does not read captions has one score for
//! the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use runkit::signals::StopFlag;
use schemas::labels::Status;
use scorers::ScorerRecord;

use super::part::{self, Found as PartFound, ScorerKey};
use super::plan::{Digest, NO_INDEX, Plan, Unit};
use super::reuse::Reuse;

/// What is known of every image and caption of a run.
pub(super) struct Scores {
    scorers: usize,
    /// For each slot, the first slot with the same bytes: the identity of the bytes. [`NO_INDEX`]
    /// if the slot has no bytes.
    content: Vec<u32>,
    /// What was scored, sorted by content and caption, each once.
    scored: Vec<Scored>,
    /// `scorers` numbers for each score that was read; NaN where a scorer failed, or has not scored.
    values: Vec<f32>,
    /// Why a scorer failed, by the position of its NaN. A NaN without a reason is a missing score.
    reasons: HashMap<usize, String>,
    /// Of scorers that compare the images of a row: the place of each among them.
    comparing: Vec<Option<usize>>,
    /// How many those are.
    compared: usize,
    /// Their votes, row by row: 1, -1, or 0 for none.
    votes: Vec<i8>,
    /// Why there is no vote, by the position of its 0.
    vote_reasons: HashMap<usize, String>,
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
    /// Reads the parts of a run, and the scores of an earlier run that it takes over.
    pub(super) fn read(parts: &Parts<'_>, stop: &StopFlag) -> Result<Self> {
        let plan = parts.plan;
        let (mut comparing, mut compared) = (Vec::new(), 0);
        for record in parts.records {
            comparing.push(record.compares().then_some(compared));
            compared += usize::from(record.compares());
        }
        let mut scores = Self {
            scorers: parts.scorers.len(),
            content: contents(parts, stop)?,
            scored: Vec::new(),
            values: Vec::new(),
            reasons: HashMap::new(),
            comparing,
            compared,
            votes: vec![0; usize::try_from(plan.pairs())? * compared],
            vote_reasons: HashMap::new(),
            failures: HashMap::new(),
            absent: HashMap::new(),
        };
        // As many as there are unless bytes differ under one uid; growth by doubling would hold
        // more.
        scores.scored.reserve_exact(plan.image_caption_count());
        scores.values.reserve_exact(plan.image_caption_count() * parts.scorers.len());
        parts.for_each(&[part::path], |unit, path, scorers, columns| {
            scores.add_part(unit, path, scorers, columns, stop)
        })?;
        // Before later units may give a score that the first one takes over.
        if let Some(reuse) = parts.reuse {
            scores.scored.sort_unstable();
            scores.take_over(plan, reuse, stop)?;
            scores.take_over_votes(parts.records, reuse, stop)?;
        }
        parts.for_each(&[part::rest_path, part::more_path], |unit, path, scorers, columns| {
            scores.add_part(unit, path, scorers, columns, stop)
        })?;
        scores.join_same();
        scores.settle(parts.records);
        Ok(scores)
    }

    /// Adds the rows of a part. `columns` says of each of its scorers which scorer of the run it is.
    fn add_part(
        &mut self,
        unit: &Unit,
        path: &Path,
        scorers: &[ScorerKey],
        columns: &[Option<usize>],
        stop: &StopFlag,
    ) -> Result<()> {
        part::read(path, scorers, |row| {
            stop.check()?;
            let slot = unit.slots().start + row.slot;
            let content = *self.content.get(usize::try_from(slot)?).context(FOREIGN)?;
            match row.found {
                PartFound::Occurrence => {}
                PartFound::Failure { error, .. } if row.content.is_none() => {
                    self.absent.insert(u32::try_from(slot)?, error);
                }
                PartFound::Failure { status, error } => {
                    self.failures.entry(content).or_insert((status, error));
                }
                PartFound::Votes(votes) => {
                    for (vote, column) in votes.into_iter().zip(columns) {
                        if let Some(column) = column {
                            self.set_vote(slot / 2, *column, vote.map_err(|it| it.to_string()))?;
                        }
                    }
                }
                PartFound::Scores { caption, scores } => {
                    let start = self.values.len();
                    let number = u32::try_from(start / self.scorers)?;
                    self.scored.push(Scored { content, caption, number });
                    self.values.resize(start + self.scorers, f32::NAN);
                    for (score, column) in scores.into_iter().zip(columns) {
                        let Some(column) = column else { continue };
                        match score {
                            Ok(score) => self.values[start + column] = score,
                            Err(failure) => {
                                let reason = failure.reason().to_owned();
                                self.reasons.insert(start + column, reason);
                            }
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// Whether the scorer of a value has neither a score nor a failure there. A scorer that compares
    /// has no scores.
    fn is_missing(&self, place: usize) -> bool {
        self.values[place].is_nan()
            && !self.reasons.contains_key(&place)
            && !self.compares(place % self.scorers)
    }

    /// Whether a scorer compares the images of a row. It then has a vote and no scores.
    pub(super) fn compares(&self, scorer: usize) -> bool {
        self.comparing.get(scorer).is_some_and(Option::is_some)
    }

    /// Where the vote of a scorer that compares is; `None` for others.
    fn place_of_vote(&self, row: u64, scorer: usize) -> Option<usize> {
        let place = self.comparing.get(scorer).copied().flatten()?;
        Some(usize::try_from(row).ok()? * self.compared + place)
    }

    /// Sets the vote of a scorer that compares, or why it has none.
    fn set_vote(
        &mut self,
        row: u64,
        scorer: usize,
        vote: std::result::Result<f32, String>,
    ) -> Result<()> {
        let Some(place) = self.place_of_vote(row, scorer) else { return Ok(()) };
        let held = self.votes.get_mut(place).context(FOREIGN)?;
        match vote {
            Ok(vote) => *held = if vote > 0.0 { 1 } else { -1 },
            Err(reason) => {
                self.vote_reasons.insert(place, reason);
            }
        }
        Ok(())
    }

    /// The vote of a scorer that compares the images of a row, or why it has none.
    pub(super) fn vote(&self, row: u64, scorer: usize) -> std::result::Result<i8, &str> {
        let place = self.place_of_vote(row, scorer).unwrap_or(usize::MAX);
        match self.votes.get(place) {
            Some(0) | None => {
                Err(self.vote_reasons.get(&place).map_or("gave no vote", String::as_str))
            }
            Some(vote) => Ok(*vote),
        }
    }

    /// Fills in the votes that an earlier run has, also those that failed: the same question would
    /// have the same answer.
    fn take_over_votes(
        &mut self,
        records: &[ScorerRecord],
        reuse: &Reuse,
        stop: &StopFlag,
    ) -> Result<()> {
        let comparing: Vec<(usize, &str)> = records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.compares())
            .map(|(scorer, record)| (scorer, record.name.as_str()))
            .collect();
        if comparing.is_empty() {
            return Ok(());
        }
        reuse.for_each_vote(&comparing, |row, scorer, vote| {
            stop.check()?;
            let Some(place) = self.place_of_vote(row, scorer) else { return Ok(()) };
            let is_open = self.votes.get(place) == Some(&0);
            match is_open && !self.vote_reasons.contains_key(&place) {
                true => self.set_vote(row, scorer, vote.map(f32::from)),
                false => Ok(()),
            }
        })
    }

    /// Gives a value to another place.
    fn copy(&mut self, from: usize, to: usize) {
        self.values[to] = self.values[from];
        if let Some(reason) = self.reasons.get(&from) {
            self.reasons.insert(to, reason.clone());
        }
    }

    /// Leaves one score for the same bytes and caption: of each scorer the first that is there.
    fn join_same(&mut self) {
        self.scored.sort_unstable();
        let scored = std::mem::take(&mut self.scored);
        for same in
            scored.chunk_by(|one, two| (one.content, one.caption) == (two.content, two.caption))
        {
            let first = same[0].number as usize * self.scorers;
            for other in &same[1..] {
                let other = other.number as usize * self.scorers;
                for scorer in 0..self.scorers {
                    if self.is_missing(first + scorer) && !self.is_missing(other + scorer) {
                        self.copy(other + scorer, first + scorer);
                    }
                }
            }
        }
        self.scored = scored;
        self.scored.dedup_by_key(|scored| (scored.content, scored.caption));
    }

    /// Fills in the scores that an earlier run has for the same bytes and caption.
    fn take_over(&mut self, plan: &Plan, reuse: &Reuse, stop: &StopFlag) -> Result<()> {
        reuse.for_each_row(|row, score_of| {
            stop.check()?;
            for position in [0, 1] {
                let slot = 2 * row + position as u64;
                let Some(caption) = plan.caption_at(slot) else { continue };
                let content = *self.content.get(usize::try_from(slot)?).context(FOREIGN)?;
                let key = (content, caption);
                let first = self.scored.partition_point(|it| (it.content, it.caption) < key);
                let found = self.scored.get(first);
                let Some(found) = found.filter(|it| (it.content, it.caption) == key) else {
                    continue;
                };
                let start = found.number as usize * self.scorers;
                for scorer in 0..self.scorers {
                    if self.is_missing(start + scorer)
                        && let Some(score) = score_of(scorer, position)
                    {
                        self.values[start + scorer] = score;
                    }
                }
            }
            Ok(())
        })
    }

    /// Leaves one score for the same bytes by a scorer that does not read captions: the first.
    fn settle(&mut self, records: &[ScorerRecord]) {
        let scored = std::mem::take(&mut self.scored);
        for same in scored.chunk_by(|one, other| one.content == other.content) {
            let mut numbers: Vec<usize> = same.iter().map(|it| it.number as usize).collect();
            numbers.sort_unstable();
            let without = records.iter().enumerate().filter(|(_, it)| !it.reads_captions());
            for (scorer, _) in without {
                let scorers = self.scorers;
                let mut places = numbers.iter().map(|number| number * scorers + scorer);
                let Some(first) = places.find(|&place| !self.is_missing(place)) else { continue };
                for to in numbers.iter().map(|number| number * scorers + scorer) {
                    if to != first {
                        self.copy(first, to);
                    }
                }
            }
        }
        self.scored = scored;
    }

    /// The scorers that have neither a score nor a failure somewhere, and for each unit the slots and
    /// the pairs where it is so.
    pub(super) fn missing(&self, plan: &Plan) -> (Vec<bool>, Slots) {
        let mut scorers = vec![false; self.scorers];
        let mut missing = Slots::new();
        let mut seen = std::collections::HashSet::new();
        for (index, unit) in plan.units.iter().enumerate() {
            for slot in unit.slots() {
                let Some(Held::Scores(found)) = self.at(plan, slot) else { continue };
                let places = found.start..found.start + self.scorers;
                let here: Vec<bool> = places.map(|place| self.is_missing(place)).collect();
                if !here.contains(&true) || !seen.insert(found.start) {
                    continue;
                }
                scorers.iter_mut().zip(here).for_each(|(scorer, here)| *scorer |= here);
                let Some(image_caption) = plan.image_caption_at(slot) else { continue };
                missing.entry(index).or_default().insert(slot, vec![image_caption]);
            }
        }
        (scorers, missing)
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
    pub(super) fn gaps(&self, plan: &Plan) -> Slots {
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
        let mut gaps = Slots::new();
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
fn contents(parts: &Parts<'_>, stop: &StopFlag) -> Result<Vec<u32>> {
    let slots = usize::try_from(2 * parts.plan.pairs())?;
    let mut found: Vec<(Digest, u32)> = Vec::with_capacity(slots);
    parts.for_each(&[part::path], |unit, path, scorers, _| {
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

/// For units the slots, and for these the image-caption pairs.
pub(super) type Slots = BTreeMap<usize, BTreeMap<u64, Vec<u32>>>;

/// Where a kind of parts lies, by folder, unit and number of units.
type PathOf = fn(&Path, usize, usize) -> PathBuf;

/// The parts of a run, and what belongs to them.
#[derive(Clone, Copy)]
pub(super) struct Parts<'run> {
    pub(super) plan: &'run Plan,
    /// The key of each unit.
    pub(super) units: &'run [String],
    /// The scorers, in column order.
    pub(super) scorers: &'run [ScorerKey],
    /// What they are.
    pub(super) records: &'run [ScorerRecord],
    pub(super) folder: &'run Path,
    /// The earlier run whose scores are taken over.
    pub(super) reuse: Option<&'run Reuse>,
}

impl Parts<'_> {
    /// Calls `each` with every part of these kinds, in input order: its unit, its file, its scorers,
    /// and which of the run's scorers each of them is.
    fn for_each(
        &self,
        kinds: &[PathOf],
        mut each: impl FnMut(&Unit, &Path, &[ScorerKey], &[Option<usize>]) -> Result<()>,
    ) -> Result<()> {
        let count = self.plan.units.len();
        for kind in kinds {
            for (index, unit) in self.plan.units.iter().enumerate() {
                let path = kind(self.folder, index, count);
                let Some(key) = part::key(&path)?.filter(|key| key.unit == self.units[index])
                else {
                    continue;
                };
                let of_run = |found: &ScorerKey| self.scorers.iter().position(|it| it == found);
                let columns: Vec<Option<usize>> = key.scorers.iter().map(of_run).collect();
                each(unit, &path, &key.scorers, &columns)
                    .with_context(|| format!("merging {}", path.display()))?;
            }
        }
        Ok(())
    }
}

const FOREIGN: &str =
    "a row does not belong to this run; hint: remove the part and run the same command again";
