//! What a run is, in two parts.
//!
//! The *identity* is what the weights depend on: model, pairs, labels, loss, seed, batch and so on. A run is
//! only gone on with under an equal one. The *numerics* (micro-batch, checkpointing, kind of device, version
//! of the program) and the pairs that are skipped are noted, and may change from one start to the next: equal
//! manifests mean equal weights (on a CPU, bit for bit), other numerics the same weights but for rounding.
//! `steps` may grow.
//!
//! Every setting belongs to the identity but those named in `ELSEWHERE`, `WITHOUT_EFFECT` and
//! `NUMERICS`: a new one counts unless somebody says that it does not.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use runkit::manifest::Difference;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Config;

/// The file in the run's folder.
pub const FILE: &str = "manifest.json";

const PROGRAM: &str = "train";

/// Settings that say where something is or how it is called; the manifest says what it is.
const ELSEWHERE: [&str; 12] = [
    "recipe",
    "model",
    "pairs",
    "split",
    "cache",
    "labels",
    "out",
    "from",
    "skip_pairs",
    "resolution",
    "dtype",
    "steps",
];

/// Settings that change no weight.
const WITHOUT_EFFECT: [&str; 11] = [
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
];

/// Settings that change weights by rounding alone; of the device the kind counts.
const NUMERICS: [&str; 3] = ["micro_batch", "grad_checkpointing", "device"];

/// What is not part of the identity in `manifest.json`.
const APART: [&str; 4] = ["numerics", "steps", "result", "revision"];

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
    /// The hub's commit of the base model, where it came from a hub; equal files are one model,
    /// wherever they came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// A checksum of which pairs are trained on.
    pub data: String,
    /// A checksum of what is thought of each of them.
    pub labels: String,
    /// Pairs that are trained on.
    pub pairs: u64,
    /// The pairs of the probe, which are held out, as `FILE:ROW`.
    pub probe: Vec<String>,
    /// Height and width of images in pixels.
    pub resolution: i64,
    /// The type that networks compute in.
    pub dtype: String,
    /// The checkpoint of another run that this one began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// Settings by name.
    pub settings: BTreeMap<String, Value>,
    /// Optimizer steps, those of the checkpoint it began with included.
    pub steps: u64,
    /// How it computes.
    pub numerics: Numerics,
    /// The files of `pipeline/`, once it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<String>,
}

/// The checkpoint of another run that a run began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its step.
    pub step: u64,
    /// The pairs consumed up to it.
    pub position: u64,
    /// A checksum of the list of its files.
    pub checkpoint: String,
}

/// What is known of the data.
#[derive(Debug, Clone)]
pub struct DataFacts {
    /// A checksum of which pairs are trained on.
    pub fingerprint: String,
    /// A checksum of what is thought of each of them.
    pub labels: String,
    /// Pairs that are trained on.
    pub pairs: u64,
    /// The pairs of the probe, as `FILE:ROW`.
    pub probe: Vec<String>,
    /// The pairs that are skipped, in short.
    pub skipped: Option<String>,
}

impl Manifest {
    /// Describes a run that begins with the base model.
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
        settings.retain(|name, _| {
            let name = name.as_str();
            !(ELSEWHERE.contains(&name)
                || WITHOUT_EFFECT.contains(&name)
                || NUMERICS.contains(&name))
        });
        let device = if config.device.is_cuda() { "cuda" } else { "cpu" };
        let mut numerics = BTreeMap::from([
            ("version".to_owned(), env!("CARGO_PKG_VERSION").into()),
            ("device".to_owned(), device.into()),
            ("micro_batch".to_owned(), config.micro_batch.into()),
            ("grad_checkpointing".to_owned(), config.grad_checkpointing.into()),
        ]);
        if let Some(skipped) = data.skipped {
            numerics.insert("skip_pairs".to_owned(), skipped.into());
        }
        Ok(Self {
            program: PROGRAM.to_owned(),
            pipeline: pipeline.to_owned(),
            model,
            revision: None,
            data: data.fingerprint,
            labels: data.labels,
            pairs: data.pairs,
            probe: data.probe,
            resolution,
            dtype: config.precision.to_string(),
            from: None,
            settings,
            steps: config.steps,
            numerics,
            result: Vec::new(),
        })
    }

    /// A checksum of the identity.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(runkit::manifest::fingerprint(&identity(serde_json::to_value(self)?))?)
    }

    /// The manifest in the folder of a run, if there is one.
    ///
    /// # Errors
    /// Where the file is something else.
    pub fn read(run: &Path) -> Result<Option<Value>> {
        let file = run.join(FILE);
        if !file.exists() {
            return Ok(None);
        }
        let hint = "hint: choose another --out";
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: cannot be read", file.display()))?;
        let value: Value = serde_json::from_str(&text).with_context(|| {
            format!("{}: expected the manifest of a run; {hint}", file.display())
        })?;
        if value.get("program").and_then(Value::as_str) != Some(PROGRAM) {
            bail!("{}: written by another program; {hint}", file.display());
        }
        Ok(Some(value))
    }

    /// Refuses to go on with what another run began.
    ///
    /// # Errors
    /// Naming every field of the identity that differs.
    pub fn refuse_another(&self, run: &Path) -> Result<()> {
        let Some(earlier) = Self::read(run)? else { return Ok(()) };
        let ours = identity(serde_json::to_value(self)?);
        let differences = runkit::manifest::differences(&identity(earlier), &ours);
        if differences.is_empty() {
            return Ok(());
        }
        let fields: Vec<String> = differences.iter().map(|field| format!("\n  {field}")).collect();
        bail!(
            "{}: of another run, which differs in{}\nhint: choose another --out, where --from CHECKPOINT \
             begins with what was trained here, or start over with --fresh",
            run.display(),
            fields.concat()
        )
    }
}

/// What two starts of one run have in common.
fn identity(mut manifest: Value) -> Value {
    if let Some(fields) = manifest.as_object_mut() {
        fields.retain(|name, _| !APART.contains(&name.as_str()));
    }
    manifest
}

/// How a start computes otherwise than the one before.
pub fn other_numerics(earlier: &Numerics, now: &Numerics) -> Vec<Difference> {
    let value = |numerics: &Numerics| {
        let fields = numerics.iter().map(|(name, value)| (name.clone(), value.clone()));
        Value::Object(fields.collect::<Map<String, Value>>())
    };
    runkit::manifest::differences(&value(earlier), &value(now))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// A setting that was renamed would count from then on, or one of that name never.
    #[test]
    fn every_setting_that_does_not_count_is_one_there_is() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let names: Vec<&str> = run.get_arguments().map(|one| one.get_id().as_str()).collect();
        let mut listed = [&ELSEWHERE[..], &WITHOUT_EFFECT, &NUMERICS].concat();
        for name in &listed {
            assert!(names.contains(name), "{name} is no setting");
        }
        let count = listed.len();
        listed.sort_unstable();
        listed.dedup();
        assert_eq!(listed.len(), count, "a setting stands in two lists");
    }
}
