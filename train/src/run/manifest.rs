//! What a run is, in two parts.
//!
//! The weights depend on the *identity*: model, pairs, labels, loss, seed, batch and so on. A run
//! resumes only under an equal identity. The *numerics* (micro-batch, number of ranks, gradient
//! checkpointing, kind of device, version of the program) and the skipped pairs are noted, and may
//! change from one start to the next: equal manifests mean equal weights (on a CPU, bit for bit), other numerics
//! the same weights up to rounding. `steps` may grow.
//!
//! Every setting belongs to the identity, except for those named in `ELSEWHERE`, `WITHOUT_EFFECT`
//! and `NUMERICS`: a new setting counts unless one of these lists says that it does not.

use std::collections::BTreeMap;

use anyhow::Result;
use runkit::manifest::Difference;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Config;

const PROGRAM: &str = "train";

/// Settings that name a place; the manifest has fields that say what is there instead.
const ELSEWHERE: [&str; 14] = [
    "recipe",
    "model",
    "pairs",
    "split",
    "layout",
    "cache",
    "labels",
    "out",
    "mirror",
    "from",
    "skip_pairs",
    "resolution",
    "dtype",
    "steps",
];

/// Settings that change no weight of the result.
const WITHOUT_EFFECT: [&str; 16] = [
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "record_steps",
    "probe_every",
    "sample_every",
    "sample_prompts",
    "sample_steps",
    "sample_guidance",
    "data_threads",
    "data_memory",
    // The same bits on each rank as with whole states.
    "shard_optimizer",
    "rank_timeout",
    // The form of the result.
    "lora_format",
    "lora_name",
    "no_merge",
];

/// Settings that change weights by rounding alone. Of the device only its kind counts.
const NUMERICS: [&str; 4] = ["micro_batch", "grad_checkpointing", "device", "ema_device"];

/// The name of the number of ranks among the numerics. A run of a version without it had one.
const RANKS: &str = "ranks";

/// Fields of `manifest.json` that are not part of the identity.
pub(super) const NOTES: [&str; 5] = ["numerics", "steps", "result", "lora", "revision"];

/// How a run computes, by name.
pub type Numerics = BTreeMap<String, Value>;

/// `manifest.json`. No time, no host, no path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The program that trained.
    pub program: String,
    /// The pipeline's class in diffusers.
    pub pipeline: String,
    /// The SHA-256 of every file of the base model, by part.
    pub model: BTreeMap<String, String>,
    /// The hub's commit of the base model, if it came from a hub. It is a note: equal files are one
    /// model, wherever they came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// A checksum of the choice of training pairs.
    pub data: String,
    /// How the images of winner-first pairs are dealt out, if there may be such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dealing: Option<String>,
    /// A checksum of their labels.
    pub labels: String,
    /// The number of training pairs.
    pub pairs: u64,
    /// The held-out pairs of the probe, as `FILE:ROW`.
    pub probe: Vec<String>,
    /// Height and width of images in pixels.
    pub resolution: i64,
    /// The dtype that networks compute in.
    pub dtype: String,
    /// The checkpoint of another run that this run started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// Settings by name.
    pub settings: BTreeMap<String, Value>,
    /// Optimizer steps, including those of the checkpoint that it started from.
    pub steps: u64,
    /// How the run computes.
    pub numerics: Numerics,
    /// The files of `pipeline/`, once it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<String>,
    /// The files of `lora/`, once it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<String>,
}

/// The checkpoint of another run that a run started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its step.
    pub step: u64,
    /// The pairs consumed up to it.
    pub position: u64,
    /// A checksum of the list of its files.
    pub checkpoint: String,
}

/// What the manifest needs to know of the data.
#[derive(Debug, Clone)]
pub struct DataFacts {
    /// A checksum of the choice of training pairs.
    pub fingerprint: String,
    /// A checksum of their labels.
    pub labels: String,
    /// The number of training pairs.
    pub pairs: u64,
    /// The pairs of the probe, as `FILE:ROW`.
    pub probe: Vec<String>,
    /// The skipped pairs: how many, and a checksum of their ids.
    pub skipped: Option<String>,
    /// How the images of winner-first pairs are dealt out, if there may be such.
    pub dealing: Option<String>,
}

impl Manifest {
    /// Describes a run that starts from the base model.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub fn new(
        config: &Config,
        pipeline: &str,
        model: BTreeMap<String, String>,
        resolution: i64,
        data: DataFacts,
    ) -> Result<Self> {
        let mut settings: BTreeMap<String, Value> =
            serde_json::from_value(serde_json::to_value(&config.settings)?)?;
        settings.retain(|name, value| {
            let name = name.as_str();
            // A setting that is not set has no entry: adding an optional setting keeps older runs.
            !(value.is_null()
                || ELSEWHERE.contains(&name)
                || WITHOUT_EFFECT.contains(&name)
                || NUMERICS.contains(&name))
        });
        let device = if config.device.is_cuda() { "cuda" } else { "cpu" };
        let mut numerics = BTreeMap::from([
            ("version".to_owned(), env!("CARGO_PKG_VERSION").into()),
            ("device".to_owned(), device.into()),
            ("micro_batch".to_owned(), config.settings.micro_batch.into()),
            ("grad_checkpointing".to_owned(), config.settings.grad_checkpointing.into()),
            (RANKS.to_owned(), config.launch.world.into()),
        ]);
        if let Some(device) = &config.settings.ema_device {
            numerics.insert("ema_device".to_owned(), device.as_str().into());
        }
        if let Some(skipped) = data.skipped {
            numerics.insert("skip_pairs".to_owned(), skipped.into());
        }
        Ok(Self {
            program: PROGRAM.to_owned(),
            pipeline: pipeline.to_owned(),
            model,
            revision: None,
            data: data.fingerprint,
            dealing: data.dealing,
            labels: data.labels,
            pairs: data.pairs,
            probe: data.probe,
            resolution,
            dtype: nn::device::dtype_name(config.precision, config.device),
            from: None,
            settings,
            steps: config.settings.steps,
            numerics,
            result: Vec::new(),
            lora: Vec::new(),
        })
    }

    /// In which fields of the identity an earlier manifest differs.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub(super) fn differences_from(&self, earlier: &Value) -> Result<Vec<Difference>> {
        let ours = identity(serde_json::to_value(self)?);
        Ok(runkit::manifest::differences(&identity(earlier.clone()), &ours))
    }

    /// A checksum of the identity.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(runkit::manifest::fingerprint(&identity(serde_json::to_value(self)?))?)
    }
}

/// Whether this program wrote a manifest.
pub(super) fn is_ours(manifest: &Value) -> bool {
    manifest.get("program").and_then(Value::as_str) == Some(PROGRAM)
}

/// The identity: what two starts of one run have in common.
fn identity(mut manifest: Value) -> Value {
    if let Some(fields) = manifest.as_object_mut() {
        fields.retain(|name, _| !NOTES.contains(&name.as_str()));
    }
    manifest
}

/// The numerics in which this start differs from an earlier one.
pub fn other_numerics(earlier: &Numerics, now: &Numerics) -> Vec<Difference> {
    let value = |numerics: &Numerics| {
        let fields = numerics.iter().map(|(name, value)| (name.clone(), value.clone()));
        let mut fields = fields.collect::<Map<String, Value>>();
        fields.entry(RANKS).or_insert_with(|| 1.into());
        Value::Object(fields)
    };
    runkit::manifest::differences(&value(earlier), &value(now))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// If a setting were renamed here alone, it would silently become part of the identity.
    #[test]
    fn every_setting_that_does_not_count_exists() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let names: Vec<&str> = run.get_arguments().map(|one| one.get_id().as_str()).collect();
        let mut listed = [&ELSEWHERE[..], &WITHOUT_EFFECT, &NUMERICS].concat();
        for name in &listed {
            assert!(names.contains(name), "there is no setting {name}");
        }
        let count = listed.len();
        listed.sort_unstable();
        listed.dedup();
        assert_eq!(listed.len(), count, "a setting is in two lists");
    }
}
