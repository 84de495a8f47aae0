//! `evaluate score`: a score of every metric for every image.
//!
//! The folder of an evaluation holds the images that `evaluate generate` drew, `score-store/` with
//! the scores computed so far, and, once all are there, `scores.parquet`. Scores are kept by what they
//! are of, an image's bytes and a caption: so a killed run goes on, and another model, metric or
//! set of prompts costs only what is new.

mod dry_run;
mod existing;
mod images;
mod networks;
mod rows;
mod scope;
mod store;

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use runkit::lock::OutputLock;
use runkit::output::refuse_input;
use runkit::progress::Progress;
use runkit::signals::{Signal, StopFlag};
use schemas::scores::ScoreRow;
use scorers::{Compute, DescribedScorers, ScorerSet, ScorersConfig};

use self::existing::{Existing, ordered};
use self::images::{Collection, Subject};
use self::networks::{Captions, Decoded};
use self::rows::Table;
use self::scope::{Scope, row};
use self::store::{Key, Store};
use crate::generate::{self, Manifest};
use crate::prompts::{self, Limits, Prompt, PromptSource};
use crate::sources::ImagesSource;

/// The file of scores in the folder of an evaluation.
pub const SCORES: &str = "scores.parquet";
const STORE: &str = "score-store";

/// A validated run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of the evaluation.
    pub out: PathBuf,
    /// Files of prompts.
    pub prompts: Vec<PromptSource>,
    /// Which of the models whose images are in `out`, in this order; all where none is named.
    pub models: Vec<String>,
    /// What stays in the scores that this run does not name.
    pub keep: Keep,
    /// Images made elsewhere.
    pub images: Vec<ImagesSource>,
    /// Which seeds of each prompt; those that are there where nothing is said.
    pub seeds: Option<Range<u64>>,
    /// How many prompts of each set.
    pub limits: Limits,
    /// The reward models.
    pub scorers: PathBuf,
    /// Images per forward.
    pub batch_size: usize,
    /// Where and in which type the networks compute.
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

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// `scores.parquet` is there.
    Done(Summary),
    /// A signal came; what is scored is kept.
    Stopped(Signal),
}

/// What a run made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Images of this command, those that are missing among them.
    pub images: usize,
    /// Those of them that went through a network now.
    pub scored: usize,
    /// Those without a score of some metric.
    pub failed: usize,
}

/// An image with the checksum of its bytes, or why there is none.
type Checked = Result<String, String>;

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with the prompts, the images' folders, the reward models or the
/// output.
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    let mut scoring = Scoring::open(config, &prompts, &[])?;
    // What is wrong with the images is found before a scorer is downloaded.
    let generated = Manifest::of_folder(&config.out)?;
    scoring.collections = Some(scoring.collections(generated.as_ref())?);
    scoring.describe()?;
    scoring.run(stop)
}

/// What [`run`] would do, in sentences. The networks are loaded and timed; nothing is written.
///
/// # Errors
/// As [`run`].
pub fn dry_run(config: &Config) -> Result<String> {
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
    /// Reads the file of scorers and the folder's earlier scores. No prompt of `dropped`, by set and
    /// id, stays in the scores.
    ///
    /// # Errors
    /// What is wrong with one of them.
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

    /// Finds the files of every scorer, downloaded where they are missing, and checks and hashes
    /// them.
    ///
    /// # Errors
    /// What is wrong with a scorer.
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
    /// What is wrong with a checkpoint.
    pub fn try_networks(&mut self) -> Result<()> {
        if let Some(described) = self.described.take() {
            described.load()?;
        }
        Ok(())
    }

    /// Scores what is not scored, and writes the scores, until it is done or stopped.
    ///
    /// # Errors
    /// What is wrong with an image's folder, a scorer or the output.
    pub fn run(mut self, stop: &StopFlag) -> Result<End> {
        let known = self.collections.take();
        let Self { config, prompts, ref scorers, .. } = self;
        let manifest = match &self.described {
            Some(described) => described.manifest().clone(),
            None => DescribedScorers::of(scorers, config.compute)?.manifest().clone(),
        };
        runkit::files::create_folder(&config.out)?;
        let _lock = OutputLock::exclusive(config.out.join(".lock"))?;
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
                "{gone} images that {SCORES} existing are not there any more and are left out of it"
            );
        }
        let checked: Vec<Vec<Checked>> =
            subjects.iter().map(|subjects| checksums(subjects, stop)).collect();
        if let Some(signal) = stop.requested() {
            return Ok(End::Stopped(signal));
        }
        let mut stores = Store::open_all(&config.out.join(STORE), &manifest)?;

        let images = subjects.iter().map(Vec::len).sum();
        let texts: Vec<&str> = scope.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let mut pass = Pass { config, scorers, texts: &texts, stores: &mut stores };
        let scored = match pass.run(&subjects, &checked, stop)? {
            Progressed::All(scored) => scored,
            Progressed::Stopped(signal) => return Ok(End::Stopped(signal)),
        };
        let of_models: Vec<(&Collection, &[Subject<'_>], &[Checked])> = (collections.iter())
            .zip(subjects.iter().zip(&checked))
            .map(|(collection, (subjects, checked))| {
                (collection, subjects.as_slice(), checked.as_slice())
            })
            .collect();
        let table =
            Table::new(&config.out, &scope, &of_models, &manifest, &stores, &self.existing)?;
        if table.outdated > 0 {
            tracing::warn!(
                "{} earlier scores are of other images than there are now and are left out of \
                 {SCORES}; hint: name their scorers to compute them again",
                table.outdated
            );
        }
        let summary = Summary { images, scored, failed: without_score(&table.rows) };
        if scored == 0 {
            tracing::info!(images = images, "already complete");
        }
        table.write(&config.out, &scope.prompts, &manifest)?;
        Ok(End::Done(summary))
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
                (Some(_), Some(_)) => bail!(
                    "two models are called {model}; hint: the name before = is the user's to choose"
                ),
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
            "{}: no images to score; hint: evaluate generate makes them, --images NAME=DIR takes \
             those made elsewhere",
            config.out.display()
        );
        Ok(collections)
    }
}

/// Leaves out of the earlier scores what must not stay.
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
        // Another id of a row that the command names: its prompt was changed.
        let is_changed = !ids.contains(&prompt)
            && row(prompt.1) != u64::MAX
            && rows.contains(&(prompt.0, row(prompt.1)));
        others
            && (models || config.models.is_empty() || named.contains(&existing.model))
            && !is_changed
            && !dropped.contains(&prompt)
    });
}

/// How many images lack a score at least.
fn without_score(rows: &[ScoreRow]) -> usize {
    let failed = rows.iter().filter(|row| row.score.is_none());
    let images: HashSet<_> = failed.map(|row| (&row.model, &row.prompt_id, row.seed)).collect();
    images.len()
}

/// The checksum of each image; those after a request to stop are left out.
fn checksums(subjects: &[Subject<'_>], stop: &StopFlag) -> Vec<Checked> {
    let of = |subject: &Subject<'_>| match stop.requested() {
        Some(_) => Err("stopped".to_owned()),
        None => checksum(subject.path.as_deref()),
    };
    subjects.par_iter().map(of).collect()
}

fn checksum(path: Option<&Path>) -> Checked {
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

enum Progressed {
    All(usize),
    Stopped(Signal),
}

/// The networks and what they work on.
struct Pass<'run> {
    config: &'run Config,
    scorers: &'run ScorersConfig,
    /// The captions of all images.
    texts: &'run [&'run str],
    stores: &'run mut [Store],
}

/// Images that go through the networks together, with their checksums.
#[derive(Debug, Clone, Copy)]
struct Batch<'run> {
    subjects: &'run [Subject<'run>],
    checked: &'run [Checked],
}

impl Pass<'_> {
    /// Scores what is not known. The batches follow from the whole list of images, and one of which
    /// a score is missing is computed as a whole: so a killed run ends with the same bytes.
    fn run(
        &mut self,
        subjects: &[Vec<Subject<'_>>],
        checked: &[Vec<Checked>],
        stop: &StopFlag,
    ) -> Result<Progressed> {
        let mut wanted = vec![false; self.stores.len()];
        let mut batches = Vec::new();
        for (subjects, checked) in subjects.iter().zip(checked) {
            let size = self.config.batch_size;
            for (subjects, checked) in subjects.chunks(size).zip(checked.chunks(size)) {
                let batch = Batch { subjects, checked };
                let missing = self.missing(&batch);
                if missing.contains(&true) {
                    wanted
                        .iter_mut()
                        .zip(&missing)
                        .for_each(|(wanted, missing)| *wanted |= missing);
                    batches.push(batch);
                }
            }
        }
        if batches.is_empty() {
            return Ok(Progressed::All(0));
        }
        let total: usize = batches.iter().map(|batch| batch.subjects.len()).sum();
        let mut scorers = self.scorers.clone();
        let mut kept = wanted.iter();
        scorers.scorer.retain(|_| kept.next().copied().unwrap_or(false));
        let set = DescribedScorers::of(&scorers, self.config.compute)?.load()?;
        let mut captions = Captions::new(&set, self.texts.iter().copied());
        let progress = Progress::new("scoring", "images", total as u64);
        let preprocessor = set.image_preprocessor();
        let ahead = self.config.compute.device.is_cuda();
        let mut stopped = None;
        networks::for_each_decoded(&batches, &preprocessor, ahead, &mut |decoded| {
            self.score(&set, &mut captions, &decoded, &wanted)?;
            progress.add(decoded.batch.subjects.len() as u64);
            stopped = stop.requested();
            Ok(stopped.is_none())
        })?;
        if let Some(signal) = stopped {
            return Ok(Progressed::Stopped(signal));
        }
        progress.finish();
        Ok(Progressed::All(total))
    }

    /// For each metric whether a picture of the batch has no score of it.
    fn missing(&self, batch: &Batch<'_>) -> Vec<bool> {
        let keys: Vec<Key> = batch
            .subjects
            .iter()
            .zip(batch.checked)
            .filter_map(|(subject, checked)| Some(key(checked.as_ref().ok()?, subject.prompt)))
            .collect();
        let lacks = |store: &Store| keys.iter().any(|key| store.get(key).is_none());
        self.stores.iter().map(lacks).collect()
    }

    fn score(
        &mut self,
        set: &ScorerSet,
        captions: &mut Captions<'_>,
        decoded: &Decoded<'_>,
        wanted: &[bool],
    ) -> Result<()> {
        let (mut images, mut texts, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut failed = Vec::new();
        let Batch { subjects, checked } = decoded.batch;
        for ((subject, image), checked) in subjects.iter().zip(&decoded.images).zip(checked) {
            let Ok(hash) = checked else { continue };
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
        let by_scorer = networks::score(set, captions, &images, &texts)?;
        let stores = self.stores.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted);
        for ((store, _), scores) in stores.zip(by_scorer) {
            let scores = keys.iter().cloned().zip(scores.into_iter().map(Ok));
            store.add(scores.chain(failed.iter().cloned()))?;
        }
        Ok(())
    }
}
