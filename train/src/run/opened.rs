//! A run before its networks are loaded: model, labels and pairs, opened, joined and checked.
//! Errors in them are reported here.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use anyhow::{Result, ensure};
use indicatif::HumanCount;
use nn::distributed::World;
use nn::weights::Weights;
use runkit::files::FileHashes;
use schemas::labels::{LabelsFile, Status};
use serde_json::{Value, json};

use super::manifest::{DataFacts, Manifest};
use super::pair_list::PairList;
use super::samples::Sampler;
use crate::config::{Config, Source};
use crate::data::{Counts, Dataset, Positions, StreamOptions};
use crate::model::BaseModel;
use crate::preference::{Labeler, PairLabel, Preference, PreferenceTarget};
use crate::randomness::Choice;

/// At most one in this many usable pairs is held out for the probe.
const PAIRS_PER_PROBE_PAIR: u64 = 4;

/// A run before its networks are loaded.
#[derive(Debug)]
pub struct OpenedRun {
    /// The model.
    pub base: BaseModel,
    /// The training pairs with their labels.
    pub dataset: Arc<Dataset<PairLabel>>,
    /// The held-out pairs of the probe.
    #[doc(alias = "held-out")]
    pub probe: Arc<Dataset<PairLabel>>,
    /// The scorers of the labels.
    pub scorers: Vec<String>,
    /// A checksum of all loss targets.
    pub labels: String,
    /// How many pairs with votes are ties, before the policy for ties.
    pub ties: TieCount,
    /// The pairs that --skip-pairs names.
    pub skipped: PairList,
}

/// How many pairs are ties.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TieCount {
    /// Ties under the preference: evenly split votes, equal sums, or human ties.
    pub ties: u64,
    /// Pairs with votes.
    pub pairs: u64,
}

impl fmt::Display for TieCount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.ties as f64 / self.pairs.max(1) as f64;
        write!(
            formatter,
            "{} of {} ({percent:.1} %)",
            HumanCount(self.ties),
            HumanCount(self.pairs)
        )
    }
}

/// A checksum of loss targets in their order: a run depends on nothing else in the labels.
fn digest(labels: &[PairLabel]) -> String {
    let mut hasher = blake3::Hasher::new();
    for label in labels {
        match label.target {
            PreferenceTarget::Fixed { probability, weight } => {
                hasher.update(b"f").update(&probability.to_le_bytes()).update(&weight.to_le_bytes())
            }
            PreferenceTarget::ByScorer { votes } => {
                hasher.update(b"v").update(&votes.to_le_bytes())
            }
        };
    }
    hasher.finalize().to_hex().to_string()
}

impl OpenedRun {
    /// Opens and checks model, labels and pairs. Writes nothing.
    ///
    /// # Errors
    /// If one of them cannot be used, or they do not belong together.
    pub fn new(config: &Config) -> Result<Self> {
        // What is on this machine is checked before a model of the hub is downloaded.
        BaseModel::check_local(&config.model)?;
        ensure!(
            config.labels.exists() || runkit::path::is_address(&config.labels),
            "{}: expected labels, found nothing; hint: relabel score writes them",
            config.labels.display()
        );
        let skipped = config.settings.skip_pairs.as_deref().map(PairList::read).transpose()?;
        let skipped = skipped.unwrap_or_default();
        let labels = LabelsFile::open(&config.labels)?;
        let labeler = Labeler::new(
            &labels,
            &config.settings.preference,
            config.settings.ties,
            config.settings.drop_human_ties,
        )?;
        let labeler = match &config.settings.voter_weights {
            Some(weights) => labeler.weighted(&labels, weights)?,
            None => labeler,
        };
        let mut ties = TieCount::default();
        let mut known = BTreeSet::new();
        let mut label = |row: &schemas::labels::LabelRow| {
            let target = labeler.target(row);
            if row.status == Status::Partial && target.is_none() {
                return None;
            }
            ties.pairs += 1;
            ties.ties += u64::from(labeler.is_tie(row));
            let is_skipped = skipped.contains(&row.pair_id);
            if is_skipped {
                known.insert(row.pair_id.clone());
            }
            Some(PairLabel { target: target?, is_skipped })
        };
        let is_skipped = |label: &PairLabel| label.is_skipped;
        let all = match &config.source {
            Source::Pairs(inputs) => {
                Dataset::open_skipping(inputs, &config.labels, &mut label, &is_skipped)?
            }
            Source::Cache(folder) => {
                Dataset::open_cache_skipping(folder, &config.labels, &mut label, &is_skipped)?
            }
        };
        skipped.refuse_unknown(&known, &config.labels)?;
        let base = BaseModel::open(&config.model, config.settings.resolution)?;
        // Errors in a cache or in the prompts are reported before networks are loaded.
        all.check(&stream_options(config, &base, 0, &World::alone()))?;
        Sampler::new(config, &[], &base)?;
        let labels = digest(all.labels());
        let count = config.settings.probe_pairs.min(all.len() / PAIRS_PER_PROBE_PAIR);
        let (dataset, probe) =
            all.hold_out(count, Choice::Probe.number(config.settings.seed, 0, 0));
        ensure!(
            dataset.counts().skipped < dataset.len(),
            "{}: all pairs are skipped; hint: a shorter --skip-pairs",
            config.labels.display()
        );
        Ok(Self {
            base,
            labels,
            dataset: Arc::new(dataset),
            probe: Arc::new(probe),
            scorers: labeler.scorers().to_vec(),
            ties,
            skipped,
        })
    }

    /// The counts of pairs.
    pub fn counts(&self) -> &Counts {
        self.dataset.counts()
    }

    /// How many ties there are, and the policy for them.
    pub fn ties_in_words(&self, config: &Config) -> String {
        if config.settings.preference == Preference::Unanimous {
            return format!("{} on which the voters do not agree, dropped", self.ties);
        }
        if !Labeler::has_tie_policy(&config.settings.preference) {
            return format!("{}, each a preference of one half", self.ties);
        }
        format!("{}, policy: {}", self.ties, config.settings.ties)
    }

    /// A warning, if the probe has fewer pairs than asked for.
    pub fn probe_shortage(&self, config: &Config) -> Option<String> {
        let (asked, held, all) = (
            config.settings.probe_pairs,
            self.probe.len(),
            self.counts().selected + self.counts().held_out,
        );
        (held < asked).then(|| {
            format!(
                "the data set has {all} pairs to train on: {held} are held out for the probe, not \
                 {asked}, as no more than one in {PAIRS_PER_PROBE_PAIR} is"
            )
        })
    }

    /// What must be equal at all ranks. Of the model's weights, which rank 0 alone hashes, the names
    /// and lengths of files count here.
    ///
    /// # Errors
    /// If a file of the model cannot be read.
    pub fn facts(&self) -> Result<Value> {
        let base = &self.base;
        let networks =
            [&base.files.unet, &base.files.vae].into_iter().chain(&base.files.text_encoders);
        let mut model = Vec::new();
        for network in networks {
            for file in Weights::open(&network.weights)?.files() {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                model.push(json!({"file": name, "bytes": file.metadata()?.len()}));
            }
        }
        Ok(json!({
            "model": model,
            "resolution": base.resolution,
            "pairs": self.dataset.fingerprint(),
            "labels": self.labels,
            "probe": self.probe.locations().collect::<Vec<_>>(),
            "skip_pairs": self.skipped.summary(),
            "scorers": self.scorers,
        }))
    }

    /// Checks that a cache, if there is one, was made with the model's encoders. This hashes their
    /// files.
    ///
    /// # Errors
    /// If it was made with others, or a file cannot be read.
    pub fn check_cache(&self) -> Result<()> {
        match self.dataset.cache() {
            Some(cache) => {
                let parts = self.base.parts(&mut FileHashes::default())?;
                cache.check_encoders(&parts).map_err(anyhow::Error::msg)
            }
            None => Ok(()),
        }
    }

    /// The manifest of the run. `hashes` holds known hashes of the model's files; this adds the
    /// others.
    ///
    /// # Errors
    /// If a file of the model cannot be read, or a cache was made with other encoders.
    pub fn manifest(&self, config: &Config, hashes: &mut FileHashes) -> Result<Manifest> {
        let data = DataFacts {
            fingerprint: self.dataset.fingerprint().to_owned(),
            labels: self.labels.clone(),
            pairs: self.counts().selected,
            probe: self.probe.locations().collect(),
            skipped: self.skipped.summary(),
            dealing: self.dataset.dealing().map(str::to_owned),
        };
        let base = &self.base;
        let family = base.files.family.class_name();
        let parts = base.parts(hashes)?;
        if let Some(cache) = self.dataset.cache() {
            cache.check_encoders(&parts).map_err(anyhow::Error::msg)?;
        }
        let manifest = Manifest::new(config, family, parts, base.resolution, data)?;
        Ok(Manifest { revision: base.revision.clone(), ..manifest })
    }
}

/// The options of this rank's stream from a position on.
pub(crate) fn stream_options(
    config: &Config,
    base: &BaseModel,
    position: u64,
    world: &World,
) -> StreamOptions {
    StreamOptions {
        seed: config.settings.seed,
        resolution: (base.resolution, base.resolution),
        random_crop: config.settings.random_crop,
        hflip: config.settings.hflip,
        position,
        positions: Positions {
            rank: world.rank() as u64,
            world: world.size() as u64,
            micro_batch: config.settings.micro_batch,
        },
        threads: config.settings.data_threads,
        memory: config.settings.data_bytes(),
    }
}
