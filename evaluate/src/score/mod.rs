//! `evaluate score`: a score of every metric for every image.
//!
//! The folder of an evaluation holds the images that `evaluate generate` wrote, `score-store/` with
//! the scores computed so far, and, once all are there, `scores.parquet`. The store keeps a score
//! by the bytes of the image and the caption: so a killed run resumes, and another model, metric or
//! set of prompts computes only what is new; and several processes divide the batches
//! ([`crate::sharing`]).

mod existing;
mod external;
mod images;
mod networks;
mod pass;
mod plan;
mod rows;
mod scope;
mod scored;
mod store;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow::{Break, Continue};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use runkit::output::refuse_input;
use runkit::signals::{StopFlag, Stoppable};
use schemas::scores::ScoreRow;
use scorers::{Compute, DescribedScorers, ScorersConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::existing::{Existing, ordered};
pub use self::external::RequestsPlan;
use self::images::{Collection, ModelImages, Subject};
use self::pass::{Batches, Pass};
pub use self::plan::{ScorerPlan, ScoringPlan};
use self::rows::Table;
use self::scope::{Scope, row};
pub(crate) use self::scored::{ScoredBytes, scorers_of};
use self::store::{Key, Store};
use crate::generate::{self, Manifest};
use crate::prompts::{self, Limits, Prompt, PromptSource};
use crate::sharing::{Held, Sharing};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Images of this command, missing ones included.
    pub images: usize,
    /// How many of them went through a network in this run: at all ranks together, or in this
    /// shard.
    pub scored: usize,
    /// How many of them lack a score of some metric.
    pub failed: usize,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The scores are written.
    Done(Summary),
    /// This shard is done; the scores are not written.
    ShardDone {
        /// Images that it scored.
        scored: usize,
        /// Images that other shards have still to generate or score; 0 if another one writes the
        /// scores just now.
        missing: usize,
    },
}

/// The checksum of an image's bytes, or the reason why it has none.
type Checksum = Result<String, String>;

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with the prompts, the images' folders, the reward models or the
/// output.
///
/// The process that writes the scores calls `finish` before another command may have the folder.
pub fn run(
    config: &Config,
    sharing: &Sharing,
    stop: &StopFlag,
    finish: &mut dyn FnMut(&Summary) -> Result<()>,
) -> Result<Stoppable<End>> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    let mut scoring = Scoring::open(config, &prompts, &[])?;
    // Errors of the images come before a scorer is downloaded.
    let generated = Manifest::of_folder(&config.out)?;
    scoring.collections = Some(scoring.collections(generated.as_ref())?);
    scoring.describe()?;
    let command = json!({ "command": "score", "scores": scoring.command()? });
    let held = sharing.enter(&config.out, &command)?;
    scoring.run(&held, None, stop, finish)
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
/// `Scoring::run`.
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
        external::refuse_comparing(&scorers)?;
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
        external::rehearse(&self.scorers, &self.config.out, 0)?;
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

    /// Everything that the scores depend on besides the images, for [`Sharing::enter`].
    pub(crate) fn command(&self) -> Result<Value> {
        let Config { models, images, seeds, batch_size, keep, .. } = self.config;
        let prompts: Vec<(&str, &str)> =
            self.prompts.iter().map(|prompt| (&*prompt.set, &*prompt.id)).collect();
        Ok(json!({
            "scorers": self.described.as_ref().map(DescribedScorers::manifest),
            "prompts": runkit::manifest::fingerprint(&prompts)?,
            "models": models,
            "images": images.iter().map(|source| &source.name).collect::<Vec<_>>(),
            "seeds": seeds,
            "batch_size": batch_size,
            "keep": [keep.models, keep.others],
        }))
    }

    /// Scores what is missing of the units of this process, until it is done or stopped. The last
    /// process writes the scores and calls `finish`.
    ///
    /// If `generated` is given, shards generate the images, and it says how many images of each
    /// model are in one unit of a shard: those that are missing are waited for.
    ///
    /// # Errors
    /// If an image's folder or a scorer is unusable, or the output cannot be written.
    pub(crate) fn run(
        mut self,
        held: &Held<'_>,
        generated: Option<&[(String, usize)]>,
        stop: &StopFlag,
        finish: &mut dyn FnMut(&Summary) -> Result<()>,
    ) -> Result<Stoppable<End>> {
        let known = self.collections.take();
        let Self { config, prompts, ref scorers, .. } = self;
        let sharing = held.sharing;
        let manifest = match &self.described {
            Some(described) => described.manifest().clone(),
            None => DescribedScorers::of(scorers, config.compute)?.manifest().clone(),
        };
        if sharing.is_alone() {
            runkit::files::remove_stale_temporaries(&config.out)?;
        }
        let of_folder = Manifest::of_folder(&config.out)?;
        let collections = match known {
            Some(collections) => collections,
            None => self.collections(of_folder.as_ref())?,
        };
        let existing_prompts = self.existing.prompts();
        let scope =
            Scope::new(&config.out, prompts, &existing_prompts, &collections, &self.existing);
        let texts: Vec<&str> = scope.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let open =
            || Store::open_all(&config.out.join(STORE), &manifest, sharing.place().as_deref());
        let generated = generated.filter(|_| sharing.shard().is_some());
        let together = generated.unwrap_or_default();
        let (mut scored, mut checksums) = (0, HashMap::new());
        loop {
            let (subjects, gone) = scope.subjects();
            add_checksums(&mut checksums, &subjects, stop);
            if let Break(signal) = stop.flow() {
                return Ok(Break(signal));
            }
            let images = collections.iter().zip(subjects).map(|(collection, subjects)| {
                let checksums = subjects.iter().map(|subject| checksum(&checksums, subject));
                ModelImages { collection, checksums: checksums.collect(), subjects }
            });
            let images: Vec<ModelImages<'_>> = images.collect();
            let mut stores = open()?;
            let batches = Batches::new(&images, config.batch_size, together, generated.is_some());
            let mut pass = Pass { config, scorers, texts: &texts, stores: &mut stores };
            match pass.run(&batches, sharing, stop)? {
                Break(signal) => return Ok(Break(signal)),
                // Other shards were at work meanwhile: look again before the count.
                Continue(now) if now > 0 && sharing.shard().is_some() => {
                    scored += now;
                    continue;
                }
                Continue(now) => scored += sharing.sum(now)?,
            }
            if sharing.shard().is_some() {
                let missing = batches.unfinished(&stores);
                if missing > 0 {
                    return Ok(Continue(End::ShardDone { scored, missing }));
                }
            }
            // Who has it has found nothing missing, and so writes the scores.
            let Some(_last) = held.last()? else {
                return Ok(Continue(End::ShardDone { scored, missing: 0 }));
            };
            let write = || {
                let stores = if sharing.store().is_some() { open()? } else { stores };
                let missing = batches.unfinished(&stores);
                ensure!(
                    missing == 0,
                    "{}: {missing} images have no scores, although all ranks are done; hint: --out \
                     must be one folder that all machines share",
                    config.out.display()
                );
                warn_gone(gone);
                let table = Table::new(&scope, &images, &manifest, &stores, &self.existing)?;
                table.warn_outdated();
                let images = images.iter().map(|images| images.subjects.len()).sum();
                let summary = Summary { images, scored, failed: without_score(&table.rows) };
                if scored == 0 {
                    tracing::info!(images = images, "already complete");
                }
                if !sharing.is_alone() {
                    runkit::files::remove_stale_temporaries(&config.out)?;
                }
                table.write(&config.out, &scope.prompts, &manifest)?;
                finish(&summary)?;
                held.tidy()?;
                Ok(summary)
            };
            return Ok(Continue(End::Done(sharing.by_first(write)?)));
        }
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

/// Warns that the scores lose rows.
fn warn_gone(gone: usize) {
    if gone > 0 {
        tracing::warn!("{SCORES} loses the scores of {gone} images that it held and that are gone");
    }
}

/// Adds the checksum of each image that has none yet. After a request to stop, the result is of no
/// use.
fn add_checksums(
    known: &mut HashMap<PathBuf, Checksum>,
    subjects: &[Vec<Subject<'_>>],
    stop: &StopFlag,
) {
    let paths = subjects.iter().flatten().filter_map(|subject| subject.path.as_ref());
    let new: Vec<&PathBuf> = paths.filter(|path| !known.contains_key(*path)).collect();
    let of = |path: &&PathBuf| match stop.requested() {
        Some(_) => ((*path).clone(), Err("stopped".to_owned())),
        None => ((*path).clone(), checksum_of_file(path)),
    };
    known.extend(new.par_iter().map(of).collect::<Vec<_>>());
}

fn checksum(known: &HashMap<PathBuf, Checksum>, subject: &Subject<'_>) -> Checksum {
    let found = subject.path.as_ref().and_then(|path| known.get(path)).cloned();
    found.unwrap_or_else(|| Err("no image".to_owned()))
}

fn checksum_of_file(path: &Path) -> Checksum {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn key(image: &str, prompt: &Prompt) -> Key {
    Key {
        image: image.to_owned(),
        prompt: blake3::hash(prompt.text.as_bytes()).to_hex().to_string(),
    }
}
