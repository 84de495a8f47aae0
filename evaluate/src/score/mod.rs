//! `evaluate score`: a score of every metric for every image.
//!
//! The folder of an evaluation holds the images that `evaluate generate` wrote, `score-store/` with
//! the scores computed so far, and, once all are there, `scores.parquet`. The store keeps a score
//! by the bytes of the image and the caption: so a killed run resumes, and another model, metric or
//! set of prompts computes only what is new.

mod existing;
mod images;
mod networks;
mod plan;
mod rows;
mod scope;
mod store;

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow::{Break, Continue};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use runkit::output::refuse_input;
use runkit::prefetch::prefetch;
use runkit::progress::Progress;
use runkit::signals::{StopFlag, Stoppable};
use schemas::scores::ScoreRow;
use scorers::{Compute, DescribedScorers, ScorersConfig};
use serde::Serialize;

use self::existing::{Existing, ordered};
use self::images::{Collection, ModelImages, Subject};
use self::networks::{Captions, Decoded};
pub use self::plan::{ScorerPlan, ScoringPlan};
use self::rows::Table;
use self::scope::{Scope, row};
use self::store::{Key, Store};
use crate::generate::{self, Manifest};
use crate::prompts::{self, Limits, Prompt, PromptSource};
use crate::sources::ImagesSource;

/// The file of scores in the folder of an evaluation.
pub const SCORES: &str = "scores.parquet";
const STORE: &str = "score-store";
/// Batches decoded ahead of a GPU.
const BATCHES_AHEAD: usize = 4;

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of the evaluation.
    pub out: PathBuf,
    /// Files of prompts.
    pub prompts: Vec<PromptSource>,
    /// Which of the models whose images are in `out`, in this order; empty for all.
    pub models: Vec<String>,
    /// What stays in the scores that this run does not name.
    pub keep: Keep,
    /// Images made elsewhere.
    pub images: Vec<ImagesSource>,
    /// Which seeds of each prompt, if not those that are there.
    pub seeds: Option<Range<u64>>,
    /// How many prompts of each set.
    pub limits: Limits,
    /// The reward models.
    pub scorers: PathBuf,
    /// Images per forward pass.
    pub batch_size: usize,
    /// Where the networks compute, and their dtype.
    pub compute: Compute,
}

/// What of a folder's scores stays that a run does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Other models.
    pub models: bool,
    /// Other sets of prompts, prompts, seeds and metrics.
    pub others: bool,
}

/// What a run made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Images of this command, missing ones included.
    pub images: usize,
    /// How many of them went through a network in this run.
    pub scored: usize,
    /// How many of them lack a score of some metric.
    pub failed: usize,
}

/// The checksum of an image's bytes, or the reason why it has none.
type Checksum = Result<String, String>;

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with the prompts, the images' folders, the reward models or the
/// output.
pub fn run(config: &Config, stop: &StopFlag) -> Result<Stoppable<Summary>> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    let mut scoring = Scoring::open(config, &prompts, &[])?;
    // Errors of the images come before a scorer is downloaded.
    let generated = Manifest::of_folder(&config.out)?;
    scoring.collections = Some(scoring.collections(generated.as_ref())?);
    scoring.describe()?;
    scoring.run(stop)
}

/// What [`run`] would do. The networks are loaded and timed; nothing is written.
pub fn dry_run(config: &Config) -> Result<ScoringPlan> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    let mut scoring = Scoring::open(config, &prompts, &[])?;
    let generated = Manifest::of_folder(&config.out)?;
    scoring.collections = Some(scoring.collections(generated.as_ref())?);
    scoring.dry_run(generated.as_ref(), false)
}

/// What is to be scored, with everything opened that it needs. Nothing is written before
/// [`Scoring::run`].
#[derive(Debug)]
pub struct Scoring<'run> {
    config: &'run Config,
    prompts: &'run [Prompt],
    scorers: ScorersConfig,
    described: Option<DescribedScorers>,
    existing: Existing,
    /// The images, once they were looked for.
    collections: Option<Vec<Collection>>,
}

impl<'run> Scoring<'run> {
    /// Reads the file of scorers and the folder's earlier scores. Prompts of `dropped`, by set and
    /// id, leave the scores.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn open(
        config: &'run Config,
        prompts: &'run [Prompt],
        dropped: &[(String, String)],
    ) -> Result<Self> {
        crate::output::check_writable(&config.out)?;
        let scorers = ScorersConfig::read(&config.scorers)?;
        let mut inputs: Vec<&Path> =
            config.prompts.iter().map(|source| source.file.as_path()).collect();
        inputs.push(&config.scorers);
        refuse_input("--out", &config.out.join(SCORES), &inputs)?;
        let mut existing = Existing::read(&config.out)?;
        retain(&mut existing, config, prompts, dropped);
        Ok(Self { config, prompts, scorers, described: None, existing, collections: None })
    }

    /// Finds the files of every scorer, downloads missing ones, and checks and hashes all.
    ///
    /// # Errors
    /// If a scorer is unusable.
    pub fn describe(&mut self) -> Result<()> {
        let described = DescribedScorers::of(&self.scorers, self.config.compute)?;
        // A damaged file of computed scores is found now, not after the images are there.
        store::read_all(&self.config.out.join(STORE), described.manifest())?;
        self.described = Some(described);
        Ok(())
    }

    /// The models of the tables, in their order, once those of `generated` are there.
    #[must_use]
    pub fn models(&self, generated: Option<&Manifest>) -> Vec<String> {
        let named: Vec<&str> = self.config.models.iter().map(String::as_str).collect();
        let known =
            generated.into_iter().flat_map(|generated| generated.models.keys()).map(String::as_str);
        let images = self.config.images.iter().map(|source| source.name.as_str());
        let mut existing = self.existing.models();
        let mut all: Vec<&str> = if named.is_empty() {
            // All are named, in no order.
            let mut all = existing.clone();
            all.extend(known.filter(|name| !existing.contains(name)));
            all
        } else {
            if self.config.keep.models {
                let new: Vec<&str> = known.filter(|name| !existing.contains(name)).collect();
                existing.extend(new.into_iter().filter(|name| !named.contains(name)));
            }
            ordered(&named, &existing)
        };
        all.extend(images.filter(|name| !all.contains(name)).collect::<Vec<_>>());
        all.into_iter().map(str::to_owned).collect()
    }

    /// The sets of prompts of the tables.
    #[must_use]
    pub fn sets(&self) -> Vec<String> {
        let mut sets: Vec<String> = Vec::new();
        let existing = self.existing.prompts();
        for prompt in self.prompts.iter().chain(&existing) {
            if !sets.contains(&prompt.set) {
                sets.push(prompt.set.clone());
            }
        }
        sets
    }

    /// Loads the networks and drops them: a checkpoint that does not fit is found before hours of
    /// other work.
    ///
    /// # Errors
    /// If a checkpoint cannot be loaded.
    pub fn try_networks(&mut self) -> Result<()> {
        if let Some(described) = self.described.take() {
            described.load()?;
        }
        Ok(())
    }

    /// Scores what is not scored, and writes the scores, until it is done or stopped.
    ///
    /// # Errors
    /// If an image's folder or a scorer is unusable, or the output cannot be written.
    pub fn run(mut self, stop: &StopFlag) -> Result<Stoppable<Summary>> {
        let known = self.collections.take();
        let Self { config, prompts, ref scorers, .. } = self;
        let manifest = match &self.described {
            Some(described) => described.manifest().clone(),
            None => DescribedScorers::of(scorers, config.compute)?.manifest().clone(),
        };
        let _lock = generate::FOLDER.at(&config.out).lock()?;
        runkit::files::remove_stale_temporaries(&config.out)?;
        let generated = Manifest::of_folder(&config.out)?;
        let collections = match known {
            Some(collections) => collections,
            None => self.collections(generated.as_ref())?,
        };
        let existing_prompts = self.existing.prompts();
        let scope =
            Scope::new(&config.out, prompts, &existing_prompts, &collections, &self.existing);
        let (subjects, gone) = scope.subjects();
        if gone > 0 {
            tracing::warn!(
                "{SCORES} loses the scores of {gone} images that it held and that are gone"
            );
        }
        let images = collections.iter().zip(subjects).map(|(collection, subjects)| {
            let checksums = checksums(&subjects, stop);
            ModelImages { collection, subjects, checksums }
        });
        let images: Vec<ModelImages<'_>> = images.collect();
        if let Break(signal) = stop.flow() {
            return Ok(Break(signal));
        }
        let mut stores = Store::open_all(&config.out.join(STORE), &manifest)?;
        let texts: Vec<&str> = scope.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let mut pass = Pass { config, scorers, texts: &texts, stores: &mut stores };
        let scored = match pass.run(&images, stop)? {
            Continue(scored) => scored,
            Break(signal) => return Ok(Break(signal)),
        };
        let table = Table::new(&scope, &images, &manifest, &stores, &self.existing)?;
        if table.outdated > 0 {
            tracing::warn!(
                "{SCORES} drops {} earlier scores, because their images have changed; hint: name \
                 their scorers to compute them again",
                table.outdated
            );
        }
        let images = images.iter().map(|images| images.subjects.len()).sum();
        let summary = Summary { images, scored, failed: without_score(&table.rows) };
        if scored == 0 {
            tracing::info!(images = images, "already complete");
        }
        table.write(&config.out, &scope.prompts, &manifest)?;
        Ok(Continue(summary))
    }

    /// The images of each model, in the order of the tables.
    fn collections(&self, generated: Option<&Manifest>) -> Result<Vec<Collection>> {
        let config = self.config;
        let given: Option<BTreeSet<u64>> = config.seeds.clone().map(Iterator::collect);
        let known: Vec<&String> =
            generated.iter().flat_map(|generated| generated.models.keys()).collect();
        if let Some(model) = config.models.iter().find(|model| !known.contains(model)) {
            bail!(
                "{}: no images of a model {model:?}, only of {known:?}; hint: evaluate generate \
                 makes them",
                config.out.display()
            );
        }
        let mut collections: Vec<Collection> = Vec::new();
        for model in self.models(generated) {
            let source = config.images.iter().find(|source| source.name == model);
            let of_generated = generated.filter(|generated| generated.models.contains_key(&model));
            collections.push(match (source, of_generated) {
                (Some(_), Some(_)) => {
                    bail!("two models are called {model}; hint: choose another name before the =")
                }
                (Some(source), None) => {
                    Collection::made_elsewhere(source, self.prompts, given.clone())?
                }
                (None, Some(generated)) => {
                    let named = config.models.is_empty() || config.models.contains(&model);
                    let seeds = given.clone().unwrap_or_else(|| generated.seeds.clone());
                    let folder = generate::images_folder(&config.out).join(&model);
                    Collection::generated(&model, named, folder, seeds)
                }
                (None, None) => Collection::existing(&model),
            });
        }
        ensure!(
            !collections.is_empty(),
            "{}: no images to score; hint: evaluate generate makes them, or --images NAME=DIR \
             names those made elsewhere",
            config.out.display()
        );
        Ok(collections)
    }
}

/// Drops the earlier scores that must not stay.
fn retain(
    existing: &mut Existing,
    config: &Config,
    prompts: &[Prompt],
    dropped: &[(String, String)],
) {
    let Keep { models, others } = config.keep;
    let images = config.images.iter().map(|source| &source.name);
    let named: HashSet<&String> = config.models.iter().chain(images).collect();
    let ids: HashSet<(&str, &str)> =
        prompts.iter().map(|prompt| (&*prompt.set, &*prompt.id)).collect();
    let rows: HashSet<(&str, u64)> =
        prompts.iter().map(|prompt| (&*prompt.set, row(&prompt.id))).collect();
    let dropped: HashSet<(&str, &str)> = dropped.iter().map(|(set, id)| (&**set, &**id)).collect();
    existing.retain(|existing| {
        let prompt = (existing.prompt_set.as_str(), existing.prompt_id.as_str());
        // If the command names the same row with another id, the prompt of the row has changed.
        let is_changed = !ids.contains(&prompt)
            && row(prompt.1) != u64::MAX
            && rows.contains(&(prompt.0, row(prompt.1)));
        others
            && (models || config.models.is_empty() || named.contains(&existing.model))
            && !is_changed
            && !dropped.contains(&prompt)
    });
}

/// How many images lack at least one score.
fn without_score(rows: &[ScoreRow]) -> usize {
    let failed = rows.iter().filter(|row| row.score.is_none());
    let images: HashSet<_> = failed.map(|row| (&row.model, &row.prompt_id, row.seed)).collect();
    images.len()
}

/// The checksum of each image. After a request to stop, the result is of no use.
fn checksums(subjects: &[Subject<'_>], stop: &StopFlag) -> Vec<Checksum> {
    let of = |subject: &Subject<'_>| match stop.requested() {
        Some(_) => Err("stopped".to_owned()),
        None => checksum(subject.path.as_deref()),
    };
    subjects.par_iter().map(of).collect()
}

fn checksum(path: Option<&Path>) -> Checksum {
    let path = path.ok_or_else(|| "no image".to_owned())?;
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn key(image: &str, prompt: &Prompt) -> Key {
    Key {
        image: image.to_owned(),
        prompt: blake3::hash(prompt.text.as_bytes()).to_hex().to_string(),
    }
}

/// Images that go through the networks together, with their checksums.
#[derive(Debug, Clone, Copy)]
struct Batch<'run> {
    subjects: &'run [Subject<'run>],
    checksums: &'run [Checksum],
}

/// One pass over the images: what it reads, and the stores that it fills.
struct Pass<'run> {
    config: &'run Config,
    scorers: &'run ScorersConfig,
    /// The captions of all images.
    texts: &'run [&'run str],
    stores: &'run mut [Store],
}

impl Pass<'_> {
    /// Scores what is not known, and returns how many images went through the networks. Batches are
    /// formed from the full list of images, and a batch with any missing score is scored as a
    /// whole, since the last bits of a score depend on its batch: so a killed run ends with the
    /// same bytes.
    fn run(&mut self, images: &[ModelImages<'_>], stop: &StopFlag) -> Result<Stoppable<usize>> {
        let mut wanted = vec![false; self.stores.len()];
        let mut batches = Vec::new();
        let size = self.config.batch_size;
        for ModelImages { subjects, checksums, .. } in images {
            for (subjects, checksums) in subjects.chunks(size).zip(checksums.chunks(size)) {
                let batch = Batch { subjects, checksums };
                let missing = self.missing(&batch);
                if missing.contains(&true) {
                    let pairs = wanted.iter_mut().zip(&missing);
                    pairs.for_each(|(wanted, missing)| *wanted |= missing);
                    batches.push(batch);
                }
            }
        }
        if batches.is_empty() {
            return Ok(Continue(0));
        }
        let total: usize = batches.iter().map(|batch| batch.subjects.len()).sum();
        let mut scorers = self.scorers.clone();
        let mut kept = wanted.iter();
        scorers.scorer.retain(|_| kept.next().copied().unwrap_or(false));
        let set = DescribedScorers::of(&scorers, self.config.compute)?.load()?;
        let mut captions = Captions::new(&set, self.texts.iter().copied());
        let progress = Progress::new("scoring", "images", total as u64);
        let preprocessor = set.image_preprocessor();
        let decoded = batches.iter().map(|&batch| Decoded::new(batch, &preprocessor));
        let ahead = if self.config.compute.device.is_cuda() { BATCHES_AHEAD } else { 0 };
        let stopped = prefetch(decoded, ahead, |decoded| {
            for decoded in decoded {
                self.score(&mut captions, &decoded, &wanted)?;
                progress.add(decoded.batch.subjects.len() as u64);
                if let Break(signal) = stop.flow() {
                    return Ok::<_, anyhow::Error>(Break(signal));
                }
            }
            Ok(Continue(total))
        })?;
        if stopped.is_continue() {
            progress.finish();
        }
        Ok(stopped)
    }

    /// For each metric, whether an image of the batch has no score of it.
    fn missing(&self, batch: &Batch<'_>) -> Vec<bool> {
        let pairs = batch.subjects.iter().zip(batch.checksums);
        let key = |(subject, checksum): (&Subject<'_>, &Checksum)| {
            Some(key(checksum.as_ref().ok()?, subject.prompt))
        };
        let keys: Vec<Key> = pairs.filter_map(key).collect();
        let lacks = |store: &Store| keys.iter().any(|key| store.get(key).is_none());
        self.stores.iter().map(lacks).collect()
    }

    fn score(
        &mut self,
        captions: &mut Captions<'_>,
        decoded: &Decoded<'_>,
        wanted: &[bool],
    ) -> Result<()> {
        let (mut images, mut texts, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut failed = Vec::new();
        let Batch { subjects, checksums } = decoded.batch;
        for ((subject, image), checksum) in subjects.iter().zip(&decoded.images).zip(checksums) {
            let Ok(hash) = checksum else { continue };
            let key = key(hash, subject.prompt);
            match image {
                Ok(image) => {
                    images.push(image);
                    texts.push(subject.prompt.text.as_str());
                    keys.push(key);
                }
                Err(reason) => failed.push((key, Err(reason.clone()))),
            }
        }
        let by_scorer = captions.score(&images, &texts)?;
        let stores = self.stores.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted);
        for ((store, _), scores) in stores.zip(by_scorer) {
            let scores = keys.iter().cloned().zip(scores.into_iter().map(Ok));
            store.add(scores.chain(failed.iter().cloned()))?;
        }
        Ok(())
    }
}
