//! What a score depends on, saved with the scores: enough to tell two runs apart, but nothing that
//! differs between equal runs (no time, host or path).

use nn::clip::{Pooling, TextConfig, VisionConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::external::{VlmConfig, VlmRead};

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
    /// The tower that reads the image; absent if the scorer is outside of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageTowerRecord>,
    /// The tower that reads the caption, if the scorer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextTowerRecord>,
    /// The aesthetic head's file, if the scorer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<WeightsRecord>,
    /// The model behind an endpoint, if the scorer is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlm: Option<VlmRecord>,
    /// The program, if the scorer is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandRecord>,
}

impl ScorerRecord {
    /// Whether its score depends on the caption.
    #[must_use]
    pub fn reads_captions(&self) -> bool {
        self.text.is_some() || self.is_external()
    }

    /// Whether it scores outside of this process.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.vlm.is_some() || self.command.is_some()
    }

    /// Whether it votes on pairs and has no score for one image.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.vlm.as_ref().is_some_and(|vlm| vlm.read == VlmRead::Pair)
    }

    /// What it is, in a line.
    #[must_use]
    pub fn description(&self) -> String {
        match (&self.image, &self.vlm, &self.command) {
            (_, Some(vlm), _) => {
                format!("{} {} at {}, {}", self.kind, vlm.model, vlm.endpoint, vlm.read)
            }
            (_, _, Some(command)) => format!("{} {}", self.kind, command.command.join(" ")),
            (Some(image), ..) => format!("{} {}, {}", self.kind, image.layout, image.preprocess),
            (None, None, None) => self.kind.clone(),
        }
    }

    /// The files that its score depends on.
    pub fn files(&self) -> impl Iterator<Item = &WeightsRecord> {
        let weights = self.image.iter().flat_map(|image| &image.weights);
        weights.chain(&self.head).chain(self.command.iter().flat_map(|command| &command.files))
    }
}

/// A model behind an endpoint: what its requests hold, and how answers are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VlmRecord {
    /// The address, without what may be a secret.
    pub endpoint: String,
    /// The model, as the server calls it.
    pub model: String,
    /// What is asked; `{caption}` stands for the caption.
    pub prompt: String,
    /// `yes-no`, `number` or `pair`.
    pub read: VlmRead,
    /// What is looked for in an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Tokens of an answer at most.
    pub max_tokens: u32,
    /// Further keys of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_body: Option<Map<String, Value>>,
}

impl From<&VlmConfig> for VlmRecord {
    fn from(config: &VlmConfig) -> Self {
        Self {
            endpoint: config.shown_endpoint(),
            model: config.model.clone(),
            prompt: config.prompt.clone(),
            read: config.read,
            pattern: config.pattern_in_use(),
            max_tokens: config.tokens(),
            extra_body: config.extra_body.clone(),
        }
    }
}

/// A program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandRecord {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The files among them, as they are named there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<WeightsRecord>,
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

/// One file that a score depends on: weights, or a script.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightsRecord {
    /// The name of the file, of weights without their folder.
    pub file: String,
    /// Its content.
    pub sha256: String,
}
