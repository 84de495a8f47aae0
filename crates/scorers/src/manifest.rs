//! What a score depends on, saved with the scores: enough to tell two runs apart, but nothing that
//! differs between equal runs (no time, host or path).

use nn::clip::{Pooling, TextConfig, VisionConfig};
use serde::{Deserialize, Serialize};

/// The scorers of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScorersManifest {
    /// One record per scorer, in column order.
    pub scorers: Vec<ScorerRecord>,
    /// The dtype of the networks: `f32`, `tf32`, `bf16` or `f16`.
    pub dtype: String,
    /// The kind of device: `cpu` or `cuda`. Their last bits differ.
    pub device: String,
}

/// One scorer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScorerRecord {
    /// The column prefix.
    pub name: String,
    /// The kind, as in `scorers.toml`.
    pub kind: String,
    /// The tower that reads the image.
    pub image: ImageTowerRecord,
    /// The tower that reads the caption, if the scorer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextTowerRecord>,
    /// The aesthetic head's file, if the scorer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<WeightsRecord>,
}

/// An image tower and its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageTowerRecord {
    /// The checkpoint.
    pub weights: Vec<WeightsRecord>,
    /// The hub revision of the weights, if they came from the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `transformers` or `open_clip`.
    pub layout: String,
    /// The preprocessing as it was resolved, such as `hf-bicubic-224-alpha(white)`.
    pub preprocess: String,
    /// Length of the features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embed_dim: Option<i64>,
    /// The network as it was resolved; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<VisionConfig>,
}

/// A text tower and its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextTowerRecord {
    /// The tokenizer, with a fingerprint of all that decides the ids: vocabulary, pipeline, special
    /// tokens.
    pub tokenizer: String,
    /// The number of tokens to which captions are truncated.
    pub context_length: usize,
    /// The network as it was resolved; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<TextConfig>,
    /// The token whose hidden state becomes the feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightsRecord {
    /// The file's own name, without its folder.
    pub file: String,
    /// Its content.
    pub sha256: String,
}
