//! What is known of a run before its networks are loaded: model, labels and pairs, opened, joined and
//! checked. What can be wrong with them is said here.

use std::fmt;
use std::sync::Arc;

use anyhow::{Result, ensure};
use indicatif::HumanCount;
use schemas::labels::LabelsFile;

use crate::config::{Config, Source};
use crate::data::{Counts, Dataset, StreamOptions};
use crate::manifest::{DataFacts, Manifest};
use crate::model::BaseModel;
use crate::preference::{Judge, Judgement};
use crate::samples::Sampler;

/// Everything that is known of a run before its networks are loaded.
#[derive(Debug)]
pub struct Prepared {
    /// The model.
    pub base: BaseModel,
    /// The pairs with their judgements.
    pub dataset: Arc<Dataset<Judgement>>,
    /// The scorers of the labels.
    pub scorers: Vec<String>,
    /// A checksum of all judgements.
    pub labels: String,
    /// Pairs with votes, and how many of them are ties, whatever becomes of these.
    pub ties: TieCount,
}

/// How many pairs are ties.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TieCount {
    /// Evenly split votes, or equal sums.
    pub ties: u64,
    /// Pairs with votes.
    pub pairs: u64,
}

impl fmt::Display for TieCount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.ties as f64 / self.pairs.max(1) as f64;
        write!(formatter, "{} of {} ({share:.1} %)", HumanCount(self.ties), HumanCount(self.pairs))
    }
}

/// A checksum of judgements in their order: what a run depends on of its labels.
fn digest(judgements: &[Judgement]) -> String {
    let mut hasher = blake3::Hasher::new();
    for judgement in judgements {
        match judgement {
            Judgement::Fixed { probability, weight } => {
                hasher.update(b"f").update(&probability.to_le_bytes()).update(&weight.to_le_bytes())
            }
            Judgement::ByScorer { votes } => hasher.update(b"v").update(&votes.to_le_bytes()),
        };
    }
    hasher.finalize().to_hex().to_string()
}

impl Prepared {
    /// Opens and checks model, labels and pairs. Nothing is written.
    ///
    /// # Errors
    /// Where one of them cannot be used, or they do not belong together.
    pub fn new(config: &Config) -> Result<Self> {
        let base = BaseModel::open(&config.model, config.resolution)?;
        ensure!(
            config.labels.exists(),
            "{}: expected labels, found nothing; hint: relabel score writes them",
            config.labels.display()
        );
        let labels = LabelsFile::open(&config.labels)?;
        let judge = Judge::new(&labels, &config.preference, config.ties, config.drop_human_ties)?;
        let mut ties = TieCount::default();
        let mut judgement = |row: &schemas::labels::LabelRow| {
            ties.pairs += 1;
            ties.ties += u64::from(judge.is_tie(row));
            judge.judge(row)
        };
        let dataset = match &config.source {
            Source::Pairs(pairs) => Dataset::open(pairs, &config.labels, &mut judgement)?,
            Source::Cache(folder) => Dataset::open_cache(folder, &config.labels, &mut judgement)?,
        };
        // What is wrong with a cache or with the prompts is said before anything is loaded.
        dataset.check(&stream_options(config, &base, 0))?;
        Sampler::new(config, &[], &base)?;
        Ok(Self {
            base,
            labels: digest(dataset.judgements()),
            dataset: Arc::new(dataset),
            scorers: judge.scorers().to_vec(),
            ties,
        })
    }

    /// How many pairs there are and what became of them.
    pub fn counts(&self) -> &Counts {
        self.dataset.counts()
    }

    /// Checks that a cache, if there is one, was made with the model's encoders; their files are hashed.
    ///
    /// # Errors
    /// Where it was made with others, or a file cannot be read.
    pub fn check_cache(&self) -> Result<()> {
        match self.dataset.cache() {
            Some(cache) => cache.check_encoders(&self.base.parts()?).map_err(anyhow::Error::msg),
            None => Ok(()),
        }
    }

    /// What the run is.
    ///
    /// # Errors
    /// Where a file of the model cannot be read, or a cache was made with other encoders.
    pub fn manifest(&self, config: &Config) -> Result<Manifest> {
        let data = DataFacts {
            fingerprint: self.dataset.fingerprint().to_owned(),
            labels: self.labels.clone(),
            pairs: self.counts().selected,
        };
        let base = &self.base;
        let family = base.files.family.class_name();
        let parts = base.parts()?;
        if let Some(cache) = self.dataset.cache() {
            cache.check_encoders(&parts).map_err(anyhow::Error::msg)?;
        }
        Manifest::new(config, family, parts, base.resolution, &data)
    }
}

/// How the pairs of a run are streamed from a position on.
pub(crate) fn stream_options(config: &Config, base: &BaseModel, position: u64) -> StreamOptions {
    StreamOptions {
        seed: config.seed,
        resolution: (base.resolution, base.resolution),
        random_crop: config.random_crop,
        hflip: config.hflip,
        position,
        threads: config.data_threads,
        memory: config.data_memory,
    }
}
