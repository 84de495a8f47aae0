//! What a cache was made with: equal manifests mean equal latents.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::pairs::InputRecord;

/// The parts of a pipeline that a cache depends on.
const ENCODER_PARTS: [&str; 5] =
    ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"];

/// The manifest of a cache. It holds no time, host or path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the program.
    pub crate_version: String,
    /// The version of the columns.
    pub schema_version: u32,
    /// The pipeline's class in diffusers.
    pub pipeline: String,
    /// The SHA-256 of each file of the autoencoder and the text encoders, by part and name, and for
    /// tokenizers what they are.
    pub encoders: BTreeMap<String, String>,
    /// How images become pixels.
    pub transform: String,
    /// Height and width of the images in pixels.
    pub resolution: [u32; 2],
    /// Whether the cache also holds horizontally flipped images.
    pub hflip: bool,
    /// The dtype that the encoders compute in: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// The dtype of the stored numbers: `float16` or `float32`.
    pub stored: String,
    /// `cpu` or `cuda`: the last bits depend on it.
    pub device: String,
    /// Images in one batch; the last bits depend on it.
    pub batch_size: usize,
    /// Channels, height and width of latents.
    pub latent_shape: [i64; 3],
    /// The factor that scales latents for the UNet; the stored latents are not scaled.
    pub scaling_factor: f64,
    /// The number to subtract from latents before scaling, if the autoencoder has one.
    pub shift_factor: Option<f64>,
    /// The pairs that were encoded.
    pub input: InputRecord,
}

impl Manifest {
    /// Checks that a model has the encoders of this cache; `parts` are the hashes of all its files.
    ///
    /// # Errors
    /// The fields that differ.
    pub fn check_encoders(&self, parts: &BTreeMap<String, String>) -> Result<(), String> {
        let ours = encoders(parts);
        let names = self.encoders.keys().chain(ours.keys());
        let differing: BTreeSet<&str> = names
            .filter(|name| self.encoders.get(*name) != ours.get(*name))
            .map(String::as_str)
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "the cache was made with other encoders than the model has: {}; hint: name the model \
             that the cache was made with, or make another cache",
            differing.into_iter().collect::<Vec<_>>().join(", ")
        ))
    }
}

/// Those of a model's files that a cache depends on.
pub fn encoders(parts: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_encoder = |name: &str| ENCODER_PARTS.contains(&name.split('/').next().unwrap_or(""));
    parts.iter().filter(|(name, _)| is_encoder(name)).map(|(a, b)| (a.clone(), b.clone())).collect()
}

/// `manifest.json` of a cache: what it was made with, and its parts in order of their numbers. It
/// grows by files and parts; a part that it lists never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheManifest {
    /// What all parts were made with, and the files with the rows of each that the cache holds, in
    /// the order of training.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// The parts.
    pub parts: Vec<PartPlan>,
}

/// Which pairs a part holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartPlan {
    /// The input file.
    pub source_file: String,
    /// Its first row.
    pub first_row: u64,
    /// How many rows.
    pub rows: u64,
    /// The number of the first caption that no earlier part has.
    pub first_caption: i64,
    /// How many such captions.
    pub captions: i64,
}

impl PartPlan {
    /// Its rows in the input file.
    pub fn file_rows(&self) -> Range<i64> {
        let row = |row: u64| i64::try_from(row).unwrap_or(i64::MAX);
        row(self.first_row)..row(self.first_row.saturating_add(self.rows))
    }
}

/// What a part says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Rows and uncompressed bytes of each row group of the input file. Training derives its order
    /// from them, so that it is the same from pairs and from the cache.
    pub row_groups: Vec<(u32, u64)>,
    /// The row of the input file that is the part's first.
    pub first_row: u64,
    /// The number of the first caption of this part.
    pub first_caption: i64,
}
