//! What the weights of a run depend on: equal manifests mean equal weights (on a CPU, bit for bit),
//! and a run is only gone on with under an equal one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Config;

/// The file in the run's folder.
pub const FILE: &str = "manifest.json";

const PROGRAM: &str = "train";

/// `manifest.json`. No time, no host, no path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The program that trained.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The pipeline's class in diffusers.
    pub pipeline: String,
    /// The SHA-256 of every file of the base model, by part.
    pub model: BTreeMap<String, String>,
    /// A checksum of which pairs are trained on.
    pub data: String,
    /// A checksum of what is thought of each of them.
    pub labels: String,
    /// Pairs that are trained on.
    pub pairs: u64,
    /// Height and width of images in pixels.
    pub resolution: i64,
    /// The type that networks compute in.
    pub dtype: String,
    /// The kind of device: `cpu` or `cuda`. Their last bits differ.
    pub device: String,
    /// Settings by name.
    pub settings: BTreeMap<String, Value>,
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
}

impl Manifest {
    /// Describes a run.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub fn new(
        config: &Config,
        pipeline: &str,
        model: BTreeMap<String, String>,
        resolution: i64,
        data: &DataFacts,
    ) -> Result<Self> {
        let given = &config.settings;
        // What moves no weight and no metric is not in it: paths, checkpoints, samples, threads.
        let settings = json!({
            "preference": config.preference,
            "ties": config.ties,
            "drop_human_ties": config.drop_human_ties,
            "reference_every": config.reference_every,
            "beta": config.beta,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "micro_batch": config.micro_batch,
            "lr": given.lr,
            "scale_lr": given.scale_lr,
            "lr_schedule": given.lr_schedule,
            "warmup_steps": given.warmup_steps,
            "optimizer": config.optimizer,
            "adam_beta1": config.adam_betas[0],
            "adam_beta2": config.adam_betas[1],
            "adam_epsilon": config.adam_epsilon,
            "weight_decay": config.weight_decay,
            "max_grad_norm": given.max_grad_norm,
            "caption_dropout": config.caption_dropout,
            "hflip": config.hflip,
            "random_crop": config.random_crop,
            "grad_checkpointing": config.grad_checkpointing,
            "seed": config.seed,
            "probe_pairs": config.probe_pairs,
            "probe_every": config.probe_every,
        });
        Ok(Self {
            program: PROGRAM.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pipeline: pipeline.to_owned(),
            model,
            data: data.fingerprint.clone(),
            labels: data.labels.clone(),
            pairs: data.pairs,
            resolution,
            dtype: config.precision.to_string(),
            device: if config.device.is_cuda() { "cuda" } else { "cpu" }.to_owned(),
            settings: serde_json::from_value(settings)?,
        })
    }

    /// A checksum of the whole.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(runkit::manifest::fingerprint(self)?)
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
    /// Naming every field that differs.
    pub fn refuse_another(&self, run: &Path) -> Result<()> {
        let Some(earlier) = Self::read(run)? else { return Ok(()) };
        let differences = runkit::manifest::differences(&earlier, &serde_json::to_value(self)?);
        if differences.is_empty() {
            return Ok(());
        }
        let fields: Vec<String> = differences.iter().map(|field| format!("\n  {field}")).collect();
        bail!(
            "{}: of another run, which differs in{}\nhint: choose another --out, or start over with --fresh",
            run.display(),
            fields.concat()
        )
    }
}
