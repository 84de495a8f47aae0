//! One pass of images through the networks, in batches of the full list.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow::{Break, Continue};
use std::ops::Range;

use anyhow::Result;
use nn::distributed::DistributedError;
use runkit::prefetch::prefetch;
use runkit::progress::Progress;
use runkit::signals::{StopFlag, Stoppable};
use scorers::{DescribedScorers, ScoreFailure, ScorersConfig};

use super::external::Externals;
use super::images::{ModelImages, Subject};
use super::networks::{Captions, Decoded};
use super::store::{Key, Store};
use super::{Checksum, Config, key};
use crate::sharing::Sharing;

/// Batches decoded ahead of a GPU.
const BATCHES_AHEAD: usize = 4;

/// Images that go through the networks together.
#[derive(Debug)]
pub(super) struct Batch<'run> {
    pub(super) subjects: &'run [Subject<'run>],
    /// The checksums of the images.
    pub(super) checksums: &'run [Checksum],
    /// What identifies each score in the stores; `None` if the image cannot be read, or if the
    /// score belongs to an earlier batch, which has the same image under the same caption, or may
    /// have it.
    keys: Vec<Option<Key>>,
    /// Whether other processes have still to generate some of the images.
    is_early: bool,
}

/// The batches of a run, and how processes divide them.
#[derive(Debug)]
pub(super) struct Batches<'run> {
    all: Vec<Batch<'run>>,
    /// Batches that one process does.
    units: Vec<Range<usize>>,
}

impl<'run> Batches<'run> {
    /// Batches of `size` images of one model. A unit is one batch, or, of a model in `together`, as
    /// many batches as these images fill; the units of those models come first. If images
    /// `may_come`, a batch waits for those that are missing.
    pub(super) fn new(
        images: &'run [ModelImages<'run>],
        size: usize,
        together: &[(String, usize)],
        may_come: bool,
    ) -> Self {
        let mut all = Vec::new();
        let (mut units, mut others) = (vec![Vec::new(); together.len()], Vec::new());
        let mut owned = HashSet::new();
        for ModelImages { collection, subjects, checksums } in images {
            let first = all.len();
            // An image that comes may have the bytes of a later one with the same caption and seed,
            // whose score is then that of the first batch with either. (Images of other models
            // differ: the recipe in them names the model.)
            let mut awaited = HashSet::new();
            for (subjects, checksums) in subjects.chunks(size).zip(checksums.chunks(size)) {
                let recipe = |subject: &Subject<'run>| (subject.prompt.text.as_str(), subject.seed);
                let is_awaited =
                    |subject: &Subject<'_>| may_come && subject.path.is_none() && !subject.is_gone;
                let keys = subjects.iter().zip(checksums).map(|(subject, checksum)| {
                    if is_awaited(subject) {
                        awaited.insert(recipe(subject));
                    }
                    let key = key(checksum.as_ref().ok()?, subject.prompt);
                    (!awaited.contains(&recipe(subject)) && owned.insert(key.clone()))
                        .then_some(key)
                });
                let keys = keys.collect();
                let is_early = subjects.iter().any(is_awaited);
                all.push(Batch { subjects, checksums, keys, is_early });
            }
            let place = together.iter().position(|(model, _)| *model == collection.model);
            let step = place.map_or(1, |place| (together[place].1 / size).max(1));
            let starts = (first..all.len()).step_by(step);
            let of_model = starts.map(|start| start..(start + step).min(all.len()));
            place.map_or(&mut others, |place| &mut units[place]).extend(of_model);
        }
        units.push(others);
        Self { all, units: units.concat() }
    }

    /// How many images wait for a score, or for other processes to generate.
    pub(super) fn unfinished(&self, stores: &[Store]) -> usize {
        let waits = |batch: &&Batch<'_>| batch.is_early || batch.missing(stores).contains(&true);
        self.all.iter().filter(waits).map(|batch| batch.subjects.len()).sum()
    }
}

impl Batch<'_> {
    /// For each metric, whether the batch lacks a score of it.
    fn missing(&self, stores: &[Store]) -> Vec<bool> {
        let lacks = |store: &Store| self.keys.iter().flatten().any(|key| store.get(key).is_none());
        stores.iter().map(lacks).collect()
    }
}

/// One pass over the images: what it reads, and the stores that it fills.
pub(super) struct Pass<'run> {
    pub(super) config: &'run Config,
    pub(super) scorers: &'run ScorersConfig,
    /// The captions of all images.
    pub(super) texts: &'run [&'run str],
    pub(super) stores: &'run mut [Store],
}

impl Pass<'_> {
    /// Scores what is missing of the units of this process, and returns how many images went
    /// through the networks. Batches are formed from the full list of images, and a batch with any
    /// missing score is scored as a whole, since the last bits of a score depend on its batch: so a
    /// killed run, and several processes, end with the same bytes.
    pub(super) fn run(
        &mut self,
        batches: &Batches<'_>,
        sharing: &Sharing,
        stop: &StopFlag,
    ) -> Result<Stoppable<usize>> {
        let Batches { all, units } = batches;
        let mut wanted = vec![false; self.stores.len()];
        // The images that this process may score, by batch, and how many are before each.
        let (mut todo, mut total) = (BTreeMap::new(), 0);
        let ours = (0..units.len())
            .filter(|&unit| sharing.shard().is_none_or(|shard| shard.owns(unit as u64)));
        for index in ours.flat_map(|unit| units[unit].clone()) {
            let batch = &all[index];
            let missing = batch.missing(self.stores);
            if missing.contains(&true) && !batch.is_early {
                let pairs = wanted.iter_mut().zip(&missing);
                pairs.for_each(|(wanted, missing)| *wanted |= missing);
                todo.insert(index, total);
                total += batch.subjects.len() as u64;
            }
        }
        if todo.is_empty() {
            return Ok(Continue(0));
        }
        let mut scorers = self.scorers.clone();
        let mut kept = wanted.iter();
        scorers.scorer.retain(|_| kept.next().copied().unwrap_or(false));
        let set = DescribedScorers::of(&scorers, self.config.compute)?.load()?;
        let place = sharing.place();
        let mut externals = Externals::open(&scorers, &self.config.out, place, stop)?;
        let keeps_encoded = externals.are_there();
        let mut captions = Captions::new(&set, self.texts.iter().copied());
        let progress = Progress::new("scoring", "images", total);
        let preprocessor = set.image_preprocessor();
        let of_unit = |unit: Result<u64, DistributedError>| match unit {
            Ok(unit) => {
                let batches = units[unit as usize].clone();
                batches.filter(|index| todo.contains_key(index)).map(Ok).collect()
            }
            Err(error) => vec![Err(error)],
        };
        let decoded = sharing.units("score", units.len()).flat_map(of_unit).map(|index| {
            index.map(|index| (index, Decoded::new(&all[index], &preprocessor, keeps_encoded)))
        });
        let ahead = if self.config.compute.device.is_cuda() { BATCHES_AHEAD } else { 0 };
        let mut scored = 0;
        let stopped = prefetch(decoded, ahead, |decoded| {
            for decoded in decoded {
                let (index, decoded) = decoded?;
                self.score(&mut captions, &mut externals, &decoded, &wanted)?;
                let images = decoded.batch.subjects.len();
                scored += images;
                // Other ranks do what is before it.
                let done = todo.get(&index).map_or(0, |before| before + images as u64);
                progress.add(done.saturating_sub(progress.done()));
                if let Break(signal) = stop.flow() {
                    return Ok::<_, anyhow::Error>(Break(signal));
                }
            }
            Ok(Continue(()))
        })?;
        if stopped.is_continue() {
            progress.finish();
        }
        Ok(stopped.map_continue(|()| scored))
    }

    fn score(
        &mut self,
        captions: &mut Captions<'_>,
        externals: &mut Externals,
        decoded: &Decoded<'_>,
        wanted: &[bool],
    ) -> Result<()> {
        let (mut images, mut texts, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut encoded = Vec::new();
        let mut failed = Vec::new();
        let Batch { subjects, checksums, keys: of_batch, .. } = decoded.batch;
        let readable = checksums.iter().map(Result::is_ok);
        let of_images = subjects.iter().zip(&decoded.images).zip(of_batch).zip(readable);
        for (((subject, image), key), _) in of_images.filter(|(_, readable)| *readable) {
            match image {
                Ok(image) => {
                    images.push(&image.pixels);
                    encoded.extend(&image.encoded);
                    texts.push(subject.prompt.text.as_str());
                    keys.push(key);
                }
                Err(reason) => failed.push((key, Err(reason.clone()))),
            }
        }
        let local = captions.score(&images, &texts)?;
        let by_scorer = externals.score(&encoded, &texts, local)?;
        let stores = self.stores.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted);
        for ((store, _), scores) in stores.zip(by_scorer) {
            let failed_of = |failure: ScoreFailure| format!("the scorer {failure}");
            let scores = scores.into_iter().map(|score| score.map_err(failed_of));
            let scores = keys.iter().copied().zip(scores);
            let outcomes = scores.chain(failed.iter().cloned());
            store.add(outcomes.filter_map(|(key, outcome)| Some((key.clone()?, outcome))))?;
        }
        Ok(())
    }
}
