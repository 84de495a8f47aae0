//! The sizes of an ImageReward model: BERT's from `med_config.json`, the vision tower's from the
//! shapes of its weights, as no file names them.

use std::path::Path;

use serde_json::Value;

use super::ANCHORS;
use crate::ModelError;
use crate::clip::transformers_config::common;
use crate::clip::{Activation, ClipConfig, Pooling, TextConfig, VisionConfig};
use crate::config::{ConfigError, Options, read_json};
use crate::weights::{Weights, WeightsError};

/// The configuration of BERT in a model folder.
pub const CONFIG_FILE: &str = "med_config.json";

/// The usual names of the weights in a model folder, the best first.
pub const WEIGHT_FILES: &[&str] =
    &["ImageReward.safetensors", "model.safetensors", "ImageReward.pt", "pytorch_model.bin"];

/// The tokens of a caption, padding included: a constant of `ImageReward.score`.
pub const CONTEXT_LENGTH: usize = 35;

/// The width of a vision head, a constant of BLIP's towers.
const HEAD_WIDTH: i64 = 64;
/// What the vision tower's normalisations add to the variance, a constant of BLIP's.
const VISION_EPSILON: f64 = 1e-6;

/// An ImageReward model.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRewardConfig {
    /// The vision tower.
    pub vision: VisionConfig,
    /// BERT. Its context is the number of its position embeddings.
    pub text: TextConfig,
}

impl ImageRewardConfig {
    /// The sizes of the model in `weights`, with the `med_config.json` in `file`.
    ///
    /// # Errors
    /// If the file names another network, or the weights are not those of an ImageReward model.
    pub fn read(file: &Path, weights: &Weights) -> Result<Self, ModelError> {
        let text = bert(&read_json(file)?, file).map_err(|error| error.in_file(file))?;
        let config = Self { vision: vision(weights)?, text };
        config.validate().map_err(|error| error.in_file(file))?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::ImageReward::load`] does it as well.
    ///
    /// # Errors
    /// If a size is impossible.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let least = CONTEXT_LENGTH as i64;
        if self.text.context_length < least {
            return Err(ConfigError::Size {
                what: "max_position_embeddings",
                found: self.text.context_length,
                expected: format!("at least the {least} tokens of a caption"),
            });
        }
        // The limits are those of CLIP's towers.
        ClipConfig {
            embed_dim: self.text.width,
            vision: self.vision.clone(),
            text: self.text.clone(),
            pooling: Pooling::default(),
        }
        .validate()
    }
}

/// `med_config.json`. Options that it omits have the default of `BertConfig`: huggingface/
/// transformers `src/transformers/models/bert/configuration_bert.py` at v5.23.0.
fn bert(json: &Value, file: &Path) -> Result<TextConfig, ConfigError> {
    let options = Options::new(json, "");
    options.fixed("model_type", &["\"bert\"", "null"], "BERT reads the caption")?;
    options.fixed("hidden_act", &["\"gelu\""], "")?;
    options.fixed("position_embedding_type", &["\"absolute\"", "null"], "")?;
    if !options.flag("add_cross_attention", false)? {
        let hint = "expected true: BERT reads the image by cross-attention";
        return Err(options.refuse("add_cross_attention", hint));
    }
    common(&options)?;
    options.of_no_effect(&[
        // Replaced by the width of the vision tower.
        "encoder_width",
        // BLIP's BERT adds no types of tokens, and dropout is for training.
        "type_vocab_size",
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "classifier_dropout",
    ]);
    let config = TextConfig {
        context_length: options.integer("max_position_embeddings", 512)?,
        vocabulary_size: options.integer("vocab_size", 30522)?,
        width: options.integer("hidden_size", 768)?,
        layers: options.integer("num_hidden_layers", 12)?,
        heads: options.integer("num_attention_heads", 12)?,
        mlp_width: options.integer("intermediate_size", 3072)?,
        activation: Activation::Gelu,
        layer_norm_epsilon: options.number("layer_norm_eps", 1e-12)?,
    };
    options.warn_of_unknown(file, "transformers");
    Ok(config)
}

/// The vision tower that the shapes describe.
fn vision(weights: &Weights) -> Result<VisionConfig, WeightsError> {
    let weights = weights.rooted(ANCHORS);
    let wrong = |reason: String| WeightsError::Invalid {
        file: weights.describe(),
        reason: format!(
            "{reason}\nhint: name a folder with ImageReward.pt, or the same tensors as safetensors"
        ),
    };
    let shape = |name: &str| {
        let name = format!("blip.visual_encoder.{name}");
        let shape = weights.shape(&name).map(<[i64]>::to_vec);
        shape.ok_or_else(|| wrong(format!("expected ImageReward's tensors, found no {name}")))
    };
    let misshapen = |name: &str, expected: &str, found: &[i64]| {
        wrong(format!("blip.visual_encoder.{name}: expected {expected}, found {found:?}"))
    };
    let position = shape("pos_embed")?;
    let [1, tokens, width] = position[..] else {
        return Err(misshapen("pos_embed", "[1, tokens, width]", &position));
    };
    let patch = shape("patch_embed.proj.weight")?;
    let [_, 3, patch_size, _] = patch[..] else {
        return Err(misshapen("patch_embed.proj.weight", "[width, 3, side, side]", &patch));
    };
    let grid = tokens.saturating_sub(1).max(0).isqrt();
    if grid < 1 || grid * grid != tokens - 1 || patch_size < 1 || width < 1 {
        return Err(misshapen("pos_embed", "a square of patches and one token", &position));
    }
    if width % HEAD_WIDTH != 0 {
        let expected = format!("a width that is a multiple of {HEAD_WIDTH}, the width of a head");
        return Err(misshapen("pos_embed", &expected, &position));
    }
    let mlp = shape("blocks.0.mlp.fc1.bias")?;
    let [mlp_width] = mlp[..] else {
        return Err(misshapen("blocks.0.mlp.fc1.bias", "[width]", &mlp));
    };
    let has =
        |block: &i64| weights.contains(&format!("blip.visual_encoder.blocks.{block}.mlp.fc1.bias"));
    Ok(VisionConfig {
        image_size: grid.saturating_mul(patch_size),
        patch_size,
        width,
        layers: (0..).take_while(has).last().map_or(0, |block: i64| block + 1),
        heads: width / HEAD_WIDTH,
        mlp_width,
        activation: Activation::Gelu,
        layer_norm_epsilon: VISION_EPSILON,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_that_change_the_network_are_refused_by_name() {
        let read = |json: Value| bert(&json, Path::new("med_config.json"));
        let published = read(json!({"add_cross_attention": true, "encoder_width": 768})).unwrap();
        assert_eq!((published.width, published.layers, published.mlp_width), (768, 12, 3072));
        for (json, expected) in [
            (json!({}), "add_cross_attention"),
            (json!({"add_cross_attention": true, "hidden_act": "relu"}), "hidden_act"),
            (
                json!({"add_cross_attention": true, "position_embedding_type": "relative_key"}),
                "position_embedding_type",
            ),
            (json!({"add_cross_attention": true, "model_type": "roberta"}), "model_type"),
            (json!({"add_cross_attention": true, "hidden_size": "wide"}), "hidden_size"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
