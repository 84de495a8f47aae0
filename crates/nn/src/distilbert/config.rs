//! `config.json` of `transformers`' `DistilBertForSequenceClassification`. Options that a file
//! omits have the library's default: huggingface/transformers
//! `src/transformers/models/distilbert/configuration_distilbert.py` at v5.23.0.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::clip::transformers_config::common;
use crate::config::{ConfigError, Options, invalid, read_json};

/// The largest size of any dimension, far above every published model.
const LARGEST: i64 = 1 << 20;
const MOST_LAYERS: i64 = 1 << 10;
const CLASS: &str = "DistilBertForSequenceClassification";
const HINT: &str = "expected the config.json of a DistilBertForSequenceClassification";

/// A classifier of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct DistilBertConfig {
    /// Size of the vocabulary.
    pub vocabulary_size: i64,
    /// The most tokens of a text.
    pub context_length: i64,
    /// Width of the blocks.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads; their size is `width / heads`.
    pub heads: i64,
    /// Width inside the MLPs.
    pub mlp_width: i64,
    /// The token that pads the shorter texts of a batch. No token attends to it.
    pub padding: i64,
    /// The names of the classes, in the order of the logits.
    pub labels: Vec<String>,
}

impl DistilBertConfig {
    /// Reads `config.json`.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(json: &Value, file: &Path) -> Result<Self, ConfigError> {
        let options = Options::new(json, "");
        options.fixed("model_type", &["\"distilbert\"", "null"], HINT)?;
        let classes = options.get("architectures", "a list of names", None::<Vec<String>>)?;
        if classes.is_some_and(|names| !names.iter().any(|name| name == CLASS)) {
            return Err(options.refuse("architectures", HINT));
        }
        options.fixed("activation", &["\"gelu\""], "")?;
        let hint = "a text has one label here";
        options.fixed("problem_type", &["\"single_label_classification\"", "null"], hint)?;
        let names = options.get(
            "id2label",
            "the names of 0, 1 and so on",
            None::<BTreeMap<String, String>>,
        )?;
        let count = options.get("num_labels", "a whole number or null", None::<usize>)?;
        let labels = match names {
            None => (0..count.unwrap_or(2)).map(|id| format!("LABEL_{id}")).collect(),
            Some(names) if count.is_some_and(|count| count != names.len()) => {
                let hint = format!("id2label names {} labels", names.len());
                return Err(options.refuse("num_labels", &hint));
            }
            Some(names) => in_order(names).ok_or_else(|| {
                invalid(file, "id2label: expected the names of 0, 1 and so on".to_owned())
            })?,
        };
        common(&options)?;
        // Options of training, and the initial values of the position embeddings, which the weights
        // replace.
        options.of_no_effect(&[
            "eos_token_id",
            "qa_dropout",
            "seq_classif_dropout",
            "sinusoidal_pos_embds",
            "tie_weights_",
        ]);
        // The library also writes these if they are set.
        let renamed = |name: &str, other: &str, default: i64| {
            let found = options.integer(name, default)?;
            options.integer(other, found)
        };
        let config = Self {
            vocabulary_size: options.integer("vocab_size", 30522)?,
            context_length: options.integer("max_position_embeddings", 512)?,
            width: renamed("dim", "hidden_size", 768)?,
            layers: renamed("n_layers", "num_hidden_layers", 6)?,
            heads: renamed("n_heads", "num_attention_heads", 12)?,
            mlp_width: options.integer("hidden_dim", 4 * 768)?,
            padding: options.get("pad_token_id", "a token or null", Some(0))?.unwrap_or(0),
            labels,
        };
        options.warn_of_unknown(file, "transformers");
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::DistilBert::load`] does it as well.
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

/// The names of 0, 1 and so on; `None` if the keys are other numbers.
fn in_order(mut names: BTreeMap<String, String>) -> Option<Vec<String>> {
    (0..names.len()).map(|id| names.remove(&id.to_string())).collect()
}
