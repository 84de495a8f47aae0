//! What a cache depends on: equal manifests mean equal latents.

use std::collections::BTreeMap;

use anyhow::Result;
use nn::device::Precision;
use nn::vae::VaeConfig;
use runkit::manifest::{Difference, differences};
use schemas::latents::{SCHEMA_VERSION, StoredFloat};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Config;
use super::plan::Plan;
use crate::model::{BaseModel, FileHashes};

/// What changes latents by rounding alone, and may change from one start to the next; a part notes its own.
const NUMERICS: [&str; 3] = ["crate_version", "device", "batch_size"];
/// How pixels are made of images.
const TRANSFORM: &str = "resize-bilinear-center-crop";

/// The manifest of a cache. No time, no host, no path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this program.
    pub crate_version: String,
    /// The version of the columns.
    pub schema_version: u32,
    /// The pipeline's class in diffusers.
    pub pipeline: String,
    /// The SHA-256 of each file of autoencoder and text encoders, by part and name, and for
    /// tokenizers what they are.
    pub encoders: BTreeMap<String, String>,
    /// How pixels are made of images.
    pub transform: String,
    /// Height and width of the images in pixels.
    pub resolution: [u32; 2],
    /// Whether flipped images are in it too.
    pub hflip: bool,
    /// What the encoders computed in.
    pub dtype: Precision,
    /// The number type that is stored: `float16` or `float32`.
    pub stored: String,
    /// `cpu` or `cuda`: the last bits depend on it.
    pub device: String,
    /// Images encoded at once; the last bits depend on it.
    pub batch_size: usize,
    /// Channels, height and width of latents.
    pub latent_shape: [i64; 3],
    /// What latents are to be multiplied by for the UNet; those stored are not.
    pub scaling_factor: f64,
    /// What is to be taken off latents before, where the autoencoder has it.
    pub shift_factor: Option<f64>,
    /// What was encoded.
    pub input: InputRecord,
}

/// What was encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Pairs.
    pub rows: u64,
    /// The files, in order.
    pub files: Vec<FileRecord>,
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name below the input folder, as in the column `source_file`.
    pub source_file: String,
    /// Its pairs.
    pub rows: u64,
    /// Its length and footer, hashed.
    pub fingerprint: String,
}

/// What is particular to one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Rows and uncompressed bytes of each row group of the input file: the order of training is made
    /// of them, so that it is the same from pairs and from the cache.
    pub row_groups: Vec<(u32, u64)>,
    /// The number of the first caption of this part.
    pub first_caption: i64,
}

impl Manifest {
    /// Describes a run; the files of the encoders are hashed.
    pub(super) fn new(
        config: &Config,
        base: &BaseModel,
        plan: &Plan,
        hashes: &mut FileHashes,
    ) -> Result<Self> {
        let vae = VaeConfig::read(&base.files.vae.config)?;
        let side = u32::try_from(base.resolution)?;
        Ok(Self {
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            schema_version: SCHEMA_VERSION,
            pipeline: base.files.family.class_name().to_owned(),
            encoders: encoders(&base.parts(hashes)?),
            transform: TRANSFORM.to_owned(),
            resolution: [side, side],
            hflip: config.hflip,
            dtype: config.precision,
            stored: stored(config.precision).name().to_owned(),
            device: if config.device.is_cuda() { "cuda" } else { "cpu" }.to_owned(),
            batch_size: config.batch_size,
            latent_shape: base.latent_size,
            scaling_factor: vae.scaling_factor,
            shift_factor: vae.shift_factor,
            input: InputRecord {
                rows: plan.rows(),
                files: plan
                    .files
                    .iter()
                    .map(|file| FileRecord {
                        source_file: file.input.source_file.clone(),
                        rows: file.rows,
                        fingerprint: file.fingerprint.clone(),
                    })
                    .collect(),
            },
        })
    }

    /// A checksum of what all parts of a cache have in common.
    pub(super) fn fingerprint(&self) -> Result<String> {
        let (identity, _) = split(serde_json::to_value(self)?);
        Ok(runkit::manifest::fingerprint(&identity)?)
    }

    /// How this start differs from an earlier one: in what may not differ, and in the numerics.
    pub(super) fn differences(&self, earlier: Value) -> Result<[Vec<Difference>; 2]> {
        let (earlier, before) = split(earlier);
        let (ours, now) = split(serde_json::to_value(self)?);
        Ok([differences(&earlier, &ours), differences(&before, &now)])
    }

    /// Refuses a model whose encoders are not those of the cache; `parts` is what
    /// [`BaseModel::parts`] gives.
    ///
    /// # Errors
    /// The fields that differ.
    pub fn check_encoders(&self, parts: &BTreeMap<String, String>) -> Result<(), String> {
        let ours = encoders(parts);
        let names = self.encoders.keys().chain(ours.keys());
        let differing: std::collections::BTreeSet<&String> =
            names.filter(|name| self.encoders.get(*name) != ours.get(*name)).collect();
        if differing.is_empty() {
            return Ok(());
        }
        let differing = differing.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(format!(
            "the cache was made with other encoders than the model has: {differing}; hint: name the \
             model that the cache was made with, or make another cache"
        ))
    }
}

/// What all parts of a cache have in common, and the numerics.
fn split(manifest: Value) -> (Value, Value) {
    let Value::Object(fields) = manifest else { return (manifest, Value::default()) };
    let is_numerics = |name: &str| NUMERICS.contains(&name);
    let (numerics, identity): (Map<String, Value>, Map<String, Value>) =
        fields.into_iter().partition(|(name, _)| is_numerics(name));
    (Value::Object(identity), Value::Object(numerics))
}

/// Of a model's parts those that a cache depends on.
fn encoders(parts: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ours = |name: &str| {
        let part = name.split('/').next().unwrap_or_default();
        ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"].contains(&part)
    };
    parts.iter().filter(|(name, _)| ours(name)).map(|(a, b)| (a.clone(), b.clone())).collect()
}

/// What is stored of numbers that were computed in a precision. Half precision has three bits more
/// than bf16, and latents lie far within its range.
pub(super) fn stored(precision: Precision) -> StoredFloat {
    match precision {
        Precision::F32 => StoredFloat::Float32,
        Precision::Bf16 | Precision::F16 => StoredFloat::Float16,
    }
}
