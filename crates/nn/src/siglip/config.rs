//! `config.json` of `transformers`' `SiglipModel`, which SigLIP 2 of a fixed resolution uses as
//! well. Options that a file omits have the library's default: huggingface/transformers
//! `src/transformers/models/siglip/configuration_siglip.py` at v5.23.0.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clip::config::{features, square};
use crate::clip::transformers_config::common;
use crate::clip::{Activation, TextConfig, VisionConfig};
use crate::config::{ConfigError, Options, read_json};

/// A SigLIP model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiglipConfig {
    /// The vision tower. Its features have its width.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// Length of the text features.
    pub projection: i64,
}

impl SiglipConfig {
    /// Reads `config.json`.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(json: &Value, file: &Path) -> Result<Self, ConfigError> {
        let top = Options::new(json, "");
        let hint = "the config.json of a SiglipModel; SigLIP 2 of any resolution (NaFlex) is another \
                    network";
        top.fixed("model_type", &["\"siglip\""], hint)?;
        if top.value("model_type").is_none() {
            return Err(top.refuse("model_type", &format!("expected \"siglip\"; {hint}")));
        }
        common(&top)?;
        let section = |name: &'static str| match top.value(name) {
            Some(section) if !section.is_object() && !section.is_null() => {
                Err(top.refuse(name, "expected a section with options of its own"))
            }
            section => Ok(section.unwrap_or(&Value::Null)),
        };
        let text = Options::new(section("text_config")?, "text_config.");
        let vision = Options::new(section("vision_config")?, "vision_config.");
        let of_text = TextConfig {
            context_length: text.integer("max_position_embeddings", 64)?,
            vocabulary_size: text.integer("vocab_size", 32_000)?,
            width: text.integer("hidden_size", 768)?,
            layers: text.integer("num_hidden_layers", 12)?,
            heads: text.integer("num_attention_heads", 12)?,
            mlp_width: text.integer("intermediate_size", 3072)?,
            activation: activation(&text)?,
            layer_norm_epsilon: text.number("layer_norm_eps", 1e-6)?,
        };
        let projection = text.get("projection_size", "a whole number or null", None::<i64>)?;
        let config = Self {
            vision: vision_tower(&vision)?,
            projection: projection.unwrap_or(of_text.width),
            text: of_text,
        };
        for options in [&text, &vision] {
            common(options)?;
            options.of_no_effect(&["eos_token_id"]);
        }
        for options in [&top, &text, &vision] {
            options.warn_of_unknown(file, "transformers");
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::SiglipModel::load`] does it as well.
    pub fn validate(&self) -> Result<(), ConfigError> {
        features("projection_size", self.projection)?;
        self.vision.validate()?;
        self.text.validate()
    }
}

fn vision_tower(options: &Options<'_>) -> Result<VisionConfig, ConfigError> {
    options.fixed("num_channels", &["3"], "")?;
    options.fixed("vision_use_head", &["true"], "a score needs the pooled feature of an image")?;
    let side = |name: &str, default: i64| match options.value(name) {
        None => Ok(default),
        Some(value) => square(&format!("vision_config.{name}"), value),
    };
    Ok(VisionConfig {
        image_size: side("image_size", 224)?,
        patch_size: side("patch_size", 16)?,
        width: options.integer("hidden_size", 768)?,
        layers: options.integer("num_hidden_layers", 12)?,
        heads: options.integer("num_attention_heads", 12)?,
        mlp_width: options.integer("intermediate_size", 3072)?,
        activation: activation(options)?,
        layer_norm_epsilon: options.number("layer_norm_eps", 1e-6)?,
    })
}

fn activation(options: &Options<'_>) -> Result<Activation, ConfigError> {
    match options.get("hidden_act", "a name", "gelu_pytorch_tanh".to_owned())?.as_str() {
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        _ => Err(options.refuse("hidden_act", "expected gelu_pytorch_tanh, gelu or quick_gelu")),
    }
}
