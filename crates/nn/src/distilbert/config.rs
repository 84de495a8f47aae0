//! `config.json` of `transformers`' `DistilBertForSequenceClassification`. What a file leaves out has
//! the library's default: huggingface/transformers
//! `src/transformers/models/distilbert/configuration_distilbert.py` at v5.23.0.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, invalid, read_json, unsupported};

/// The largest size of any dimension, far above every published model.
const LARGEST: i64 = 1 << 20;
const MOST_LAYERS: i64 = 1 << 10;
const CLASS: &str = "DistilBertForSequenceClassification";
const HINT: &str = "expected the config.json of a DistilBertForSequenceClassification";

/// A classifier of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct DistilBertConfig {
    /// Number of tokens there are.
    pub vocabulary_size: i64,
    /// The most tokens of a text.
    pub context_length: i64,
    /// Width of the blocks.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads; their size is `width / heads`.
    pub heads: i64,
    /// Width inside the perceptrons.
    pub mlp_width: i64,
    /// The token that fills the shorter texts of a batch. It is not attended to.
    pub padding: i64,
    /// What the classes are called, in the order of the logits.
    pub labels: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default)]
struct File {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    vocab_size: i64,
    max_position_embeddings: i64,
    dim: i64,
    n_layers: i64,
    n_heads: i64,
    hidden_dim: i64,
    activation: String,
    pad_token_id: Option<i64>,
    problem_type: Option<String>,
    num_labels: Option<usize>,
    id2label: Option<BTreeMap<String, String>>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            model_type: None,
            architectures: None,
            vocab_size: 30522,
            max_position_embeddings: 512,
            dim: 768,
            n_layers: 6,
            n_heads: 12,
            hidden_dim: 4 * 768,
            activation: "gelu".to_owned(),
            pad_token_id: None,
            problem_type: None,
            num_labels: None,
            id2label: None,
        }
    }
}

impl DistilBertConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Where the file cannot be read, or describes another kind of network.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(json: &Value, file: &Path) -> Result<Self, ConfigError> {
        let found = File::deserialize(json).map_err(|error| invalid(file, error.to_string()))?;
        if let Some(other) = found.model_type.filter(|name| name != "distilbert") {
            return Err(unsupported("model_type", &other.into(), HINT));
        }
        if let Some(names) = found.architectures.filter(|names| !names.iter().any(|n| n == CLASS)) {
            return Err(unsupported("architectures", &names.into(), HINT));
        }
        if found.activation != "gelu" {
            return Err(unsupported("activation", &found.activation.into(), "expected gelu"));
        }
        if let Some(other) = found.problem_type.filter(|name| name != "single_label_classification")
        {
            return Err(unsupported("problem_type", &other.into(), "a text has one label here"));
        }
        let labels = match found.id2label {
            None => (0..found.num_labels.unwrap_or(2)).map(|id| format!("LABEL_{id}")).collect(),
            Some(names) => in_order(names).ok_or_else(|| {
                invalid(file, "id2label: expected the names of 0, 1 and so on".to_owned())
            })?,
        };
        let config = Self {
            vocabulary_size: found.vocab_size,
            context_length: found.max_position_embeddings,
            width: found.dim,
            layers: found.n_layers,
            heads: found.n_heads,
            mlp_width: found.hidden_dim,
            padding: found.pad_token_id.unwrap_or(0),
            labels,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::DistilBert::load`] does it as well.
    ///
    /// # Errors
    /// Where one is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let labels = i64::try_from(self.labels.len()).unwrap_or(i64::MAX);
        for (what, found, least, most) in [
            ("vocab_size", self.vocabulary_size, 1, 1 << 30),
            ("max_position_embeddings", self.context_length, 2, LARGEST),
            ("dim", self.width, 1, LARGEST),
            ("n_layers", self.layers, 1, MOST_LAYERS),
            ("n_heads", self.heads, 1, self.width),
            ("hidden_dim", self.mlp_width, 1, LARGEST),
            ("pad_token_id", self.padding, 0, self.vocabulary_size - 1),
            ("the number of labels", labels, 2, LARGEST),
        ] {
            if !(least..=most).contains(&found) {
                let expected = format!("{least} to {most}");
                return Err(ConfigError::Size { what, found, expected });
            }
        }
        if self.width % self.heads != 0 {
            let expected = format!("a multiple of the {} heads", self.heads);
            return Err(ConfigError::Size { what: "dim", found: self.width, expected });
        }
        Ok(())
    }
}

/// The names of 0, 1 and so on; none where the numbers are others.
fn in_order(mut names: BTreeMap<String, String>) -> Option<Vec<String>> {
    (0..names.len()).map(|id| names.remove(&id.to_string())).collect()
}
