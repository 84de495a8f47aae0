//! `evaluate score`: every picture judged by every metric.
//!
//! The folder of an evaluation holds the pictures that `evaluate generate` drew, `score-store/` with
//! the scores computed so far, and, once all are there, `scores.parquet`. Scores are kept by what they
//! are of, a picture's bytes and a caption: so a killed run goes on, and another model, metric or
//! set of prompts costs only what is new.

mod networks;
mod pictures;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use runkit::lock::OutputLock;
use runkit::progress::Progress;
use runkit::signals::{Signal, StopFlag};
use schemas::evaluation::{KEY_FINGERPRINT, KEY_MANIFEST};
use schemas::scores::{ScoreRow, ScoresWriter};
use scorers::{Compute, ScorerSet, ScorersConfig, ScorersManifest};
use serde_json::json;

use self::networks::{Captions, Decoded};
pub use self::pictures::ImagesSource;
use self::pictures::{Collection, Subject};
use self::store::{Key, Store};
use crate::generate;
use crate::prompts::{self, Limits, Prompt, PromptSource};

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
    /// Which of the models whose pictures are in `out`, in this order; all where none is named.
    pub models: Vec<String>,
    /// Pictures made elsewhere.
    pub images: Vec<ImagesSource>,
    /// Which seeds of each prompt; those that are there where nothing is said.
    pub seeds: Option<Range<u64>>,
    /// How many prompts of each set.
    pub limits: Limits,
    /// The reward models.
    pub scorers: PathBuf,
    /// Pictures per forward.
    pub batch_size: usize,
    /// Where and in which type the networks compute.
    pub compute: Compute,
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
    /// Pictures of this command, those that are missing among them.
    pub pictures: usize,
    /// Those of them that went through a network now.
    pub scored: usize,
    /// Those without a score of some metric.
    pub failed: usize,
}

/// A picture with the checksum of its bytes, or why there is none.
type Checked = Result<String, String>;

/// Runs `config` until it is done or stopped.
///
/// # Errors
/// One sentence about what is wrong with the prompts, the pictures' folders, the reward models or the
/// output.
pub fn run(config: &Config, stop: &StopFlag) -> Result<End> {
    let prompts = prompts::read_limited(&config.prompts, config.limits)?;
    run_on(config, &prompts, stop)
}

/// As [`run`], of prompts that are read already.
///
/// # Errors
/// As [`run`].
pub fn run_on(config: &Config, prompts: &[Prompt], stop: &StopFlag) -> Result<End> {
    let scorers = ScorersConfig::read(&config.scorers)?;
    let manifest = ScorerSet::describe(&scorers, config.compute)?.manifest().clone();
    let collections = collections(config, prompts)?;
    runkit::files::create_folder(&config.out)?;
    let _lock = OutputLock::exclusive(config.out.join(".lock"))?;

    let mut seen = HashSet::new();
    let distinct: Vec<&Prompt> =
        prompts.iter().filter(|prompt| seen.insert(prompt.id.as_str())).collect();
    let subjects: Vec<Vec<Subject<'_>>> =
        collections.iter().map(|collection| collection.subjects(&distinct)).collect();
    let checked: Vec<Vec<Checked>> = subjects
        .iter()
        .map(|subjects| {
            subjects.par_iter().map(|subject| checksum(subject.path.as_deref())).collect()
        })
        .collect();
    let mut stores = Store::open_all(&config.out.join(STORE), &manifest)?;

    let pictures = subjects.iter().map(Vec::len).sum();
    let mut judged = Judged { config, scorers: &scorers, prompts: &distinct, stores: &mut stores };
    let scored = match judged.run(&subjects, &checked, stop)? {
        Progressed::All(scored) => scored,
        Progressed::Stopped(signal) => return Ok(End::Stopped(signal)),
    };
    let rows = rows(config, prompts, &subjects, &checked, &manifest, &stores);
    let summary = Summary { pictures, scored, failed: without_score(&rows) };
    write(config, rows, prompts, &manifest)?;
    Ok(End::Done(summary))
}

/// How many pictures lack a score at least.
fn without_score(rows: &[ScoreRow]) -> usize {
    let failed = rows.iter().filter(|row| row.score.is_none());
    let pictures: HashSet<_> = failed.map(|row| (&row.model, &row.prompt_id, row.seed)).collect();
    pictures.len()
}

/// The pictures of each model, in the order of the tables.
fn collections(config: &Config, prompts: &[Prompt]) -> Result<Vec<Collection>> {
    let given: Option<BTreeSet<u64>> = config.seeds.clone().map(Iterator::collect);
    let drawn = generate::Manifest::of_folder(&config.out)?;
    let mut collections = Vec::new();
    let known = drawn.iter().flat_map(|manifest| manifest.models.keys());
    let known: Vec<&String> = known.collect();
    let wanted: Vec<&String> =
        if config.models.is_empty() { known.clone() } else { config.models.iter().collect() };
    for model in wanted {
        let Some(manifest) = drawn.as_ref().filter(|_| known.contains(&model)) else {
            bail!(
                "{}: no pictures of a model {model:?}, only of {known:?}; hint: evaluate generate \
                 draws them",
                config.out.display()
            );
        };
        let seeds = given.clone().unwrap_or_else(|| manifest.seeds.clone());
        let folder = generate::images_folder(&config.out).join(model);
        collections.push(Collection::drawn(model, folder, seeds));
    }
    for source in &config.images {
        ensure!(
            collections.iter().all(|collection| collection.model != source.name),
            "two models are called {}; hint: the name before = is the user's to choose",
            source.name
        );
        collections.push(Collection::made_elsewhere(source, prompts, given.clone())?);
    }
    ensure!(
        !collections.is_empty(),
        "{}: no pictures to score; hint: evaluate generate draws them, --images NAME=DIR takes those \
         made elsewhere",
        config.out.display()
    );
    Ok(collections)
}

fn checksum(path: Option<&Path>) -> Checked {
    let path = path.ok_or_else(|| "no picture".to_owned())?;
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
struct Judged<'run> {
    config: &'run Config,
    scorers: &'run ScorersConfig,
    prompts: &'run [&'run Prompt],
    stores: &'run mut [Store],
}

impl Judged<'_> {
    /// Scores what is not known. The batches follow from the whole list of pictures, and one of which
    /// a score is missing is computed as a whole: so a killed run ends with the same bytes.
    fn run(
        &mut self,
        subjects: &[Vec<Subject<'_>>],
        checked: &[Vec<Checked>],
        stop: &StopFlag,
    ) -> Result<Progressed> {
        let mut wanted = vec![false; self.stores.len()];
        let mut batches = Vec::new();
        let mut hashes = HashMap::new();
        for (subjects, checked) in subjects.iter().zip(checked) {
            let size = self.config.batch_size;
            for (batch, checked) in subjects.chunks(size).zip(checked.chunks(size)) {
                let missing = self.missing(batch, checked);
                if missing.contains(&true) {
                    wanted
                        .iter_mut()
                        .zip(&missing)
                        .for_each(|(wanted, missing)| *wanted |= missing);
                    hashes.insert(batch.as_ptr(), checked);
                    batches.push(batch);
                }
            }
        }
        if batches.is_empty() {
            return Ok(Progressed::All(0));
        }
        let total: usize = batches.iter().map(|batch| batch.len()).sum();
        let mut scorers = self.scorers.clone();
        let mut kept = wanted.iter();
        scorers.scorer.retain(|_| kept.next().copied().unwrap_or(false));
        let set = ScorerSet::describe(&scorers, self.config.compute)?.load()?;
        let mut captions =
            Captions::new(&set, self.prompts.iter().map(|prompt| prompt.text.as_str()));
        let progress = Progress::new("scoring", "images", total as u64);
        let preparation = set.image_preparation();
        let ahead = self.config.compute.device.is_cuda();
        let mut stopped = None;
        networks::for_each_decoded(&batches, &preparation, ahead, &mut |decoded| {
            let Some(checked) = hashes.get(&decoded.batch.as_ptr()) else { return Ok(true) };
            self.score(&set, &mut captions, &decoded, checked, &wanted)?;
            progress.add(decoded.batch.len() as u64);
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
    fn missing(&self, batch: &[Subject<'_>], checked: &[Checked]) -> Vec<bool> {
        let keys: Vec<Key> = batch
            .iter()
            .zip(checked)
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
        checked: &[Checked],
        wanted: &[bool],
    ) -> Result<()> {
        let (mut images, mut texts, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut failed = Vec::new();
        for ((subject, image), checked) in decoded.batch.iter().zip(&decoded.images).zip(checked) {
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

/// The rows of `scores.parquet`: by model, prompt of a set, seed and metric.
fn rows(
    config: &Config,
    prompts: &[Prompt],
    subjects: &[Vec<Subject<'_>>],
    checked: &[Vec<Checked>],
    manifest: &ScorersManifest,
    stores: &[Store],
) -> Vec<ScoreRow> {
    let mut rows = Vec::new();
    for (subjects, checked) in subjects.iter().zip(checked) {
        let mut of_prompt = HashMap::<&str, Vec<(&Subject<'_>, &Checked)>>::new();
        for (subject, checked) in subjects.iter().zip(checked) {
            of_prompt.entry(&subject.prompt.id).or_default().push((subject, checked));
        }
        for prompt in prompts {
            for (subject, checked) in of_prompt.get(prompt.id.as_str()).into_iter().flatten() {
                for (record, store) in manifest.scorers.iter().zip(stores) {
                    let (score, error) = outcome(subject, checked, store);
                    rows.push(ScoreRow {
                        model: subject.model.to_owned(),
                        prompt_set: prompt.set.clone(),
                        prompt_id: prompt.id.clone(),
                        prompt: prompt.text.clone(),
                        category: prompt.category.clone(),
                        seed: i64::try_from(subject.seed).unwrap_or(i64::MAX),
                        metric: record.name.clone(),
                        score,
                        image: image(config, subject),
                        error,
                    });
                }
            }
        }
    }
    rows
}

/// A score, or why there is none.
fn outcome(
    subject: &Subject<'_>,
    checked: &Checked,
    store: &Store,
) -> (Option<f32>, Option<String>) {
    let outcome = match checked {
        Err(reason) => Err(reason.as_str()),
        Ok(hash) => match store.get(&key(hash, subject.prompt)) {
            Some(outcome) => outcome.as_ref().copied().map_err(String::as_str),
            None => Err("not scored"),
        },
    };
    (outcome.ok(), outcome.err().map(str::to_owned))
}

/// Where a picture is, from the folder of the scores.
fn image(config: &Config, subject: &Subject<'_>) -> String {
    let drawn = || {
        let name = format!("{}.png", subject.seed);
        generate::images_folder(Path::new(""))
            .join(subject.model)
            .join(&subject.prompt.id)
            .join(name)
    };
    let path = match &subject.path {
        None => drawn(),
        Some(path) => match path.strip_prefix(&config.out) {
            Ok(inside) => inside.to_owned(),
            Err(_) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        },
    };
    path.to_string_lossy().into_owned()
}

/// Writes the file, with what its scores depend on.
fn write(
    config: &Config,
    rows: Vec<ScoreRow>,
    prompts: &[Prompt],
    scorers: &ScorersManifest,
) -> Result<()> {
    let mut sets = BTreeMap::<&str, Vec<(&str, &str)>>::new();
    for prompt in prompts {
        sets.entry(&prompt.set).or_default().push((&prompt.id, &prompt.text));
    }
    let mut hashes = serde_json::Map::new();
    for (set, prompts) in &sets {
        let digest = runkit::manifest::fingerprint(prompts)?;
        hashes.insert((*set).to_owned(), json!({ "prompts": prompts.len(), "digest": digest }));
    }
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "judges": scorers,
        "prompt_sets": hashes,
        "pictures": generate::Manifest::of_folder(&config.out)?,
    });
    let metadata = BTreeMap::from([
        (KEY_FINGERPRINT.to_owned(), runkit::manifest::fingerprint(&manifest)?),
        (KEY_MANIFEST.to_owned(), runkit::manifest::canonical_json(&manifest)?),
    ]);
    let mut writer = ScoresWriter::create(config.out.join(SCORES), &metadata)?;
    rows.into_iter().try_for_each(|row| writer.write(row))?;
    Ok(writer.finish()?)
}
