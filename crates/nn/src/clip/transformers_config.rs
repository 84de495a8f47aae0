//! `config.json` of `transformers`' `CLIPModel`. What a file leaves out has the library's default:
//! huggingface/transformers `src/transformers/models/clip/configuration_clip.py` at v5.23.0.

use serde::Deserialize;
use serde_json::Value;

use super::config::{Activation, ClipConfig, Problem, TextConfig, VisionConfig, square};
use crate::config::{ConfigError, unsupported};

#[derive(Deserialize)]
struct Top {
    model_type: Option<String>,
    #[serde(default = "default_projection")]
    projection_dim: i64,
    text_config: Option<Value>,
    vision_config: Option<Value>,
    /// What files from before 2023 used instead; where it stands, it wins, defaults included.
    text_config_dict: Option<Value>,
    vision_config_dict: Option<Value>,
}

fn default_projection() -> i64 {
    512
}

/// The text section, or the whole `config.json` of a `CLIPTextModel`.
#[derive(Deserialize)]
#[serde(default)]
pub(crate) struct Text {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl Text {
    /// The sizes, unchecked; `section` with its dot stands before the names in messages.
    pub(crate) fn config(self, section: &str) -> Result<TextConfig, ConfigError> {
        Ok(TextConfig {
            context_length: self.max_position_embeddings,
            vocabulary_size: self.vocab_size,
            width: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            mlp_width: self.intermediate_size,
            activation: activation(&format!("{section}hidden_act"), self.hidden_act)?,
            layer_norm_epsilon: self.layer_norm_eps,
        })
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Vision {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_channels: i64,
    image_size: Value,
    patch_size: Value,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for Vision {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224.into(),
            patch_size: 32.into(),
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

pub(super) fn read(json: &Value) -> Result<ClipConfig, Problem> {
    let top = Top::deserialize(json)?;
    if let Some(model_type) = top.model_type.filter(|model_type| model_type != "clip") {
        let hint = "expected the config.json of a CLIPModel";
        return Err(unsupported("model_type", &model_type.into(), hint).into());
    }
    let text: Text = section(top.text_config_dict.or(top.text_config))?;
    let vision: Vision = section(top.vision_config_dict.or(top.vision_config))?;
    if vision.num_channels != 3 {
        let found = vision.num_channels.into();
        return Err(unsupported("vision_config.num_channels", &found, "expected 3").into());
    }
    let config = ClipConfig {
        embed_dim: top.projection_dim,
        vision: VisionConfig {
            image_size: square("vision_config.image_size", &vision.image_size)?,
            patch_size: square("vision_config.patch_size", &vision.patch_size)?,
            width: vision.hidden_size,
            layers: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            mlp_width: vision.intermediate_size,
            activation: activation("vision_config.hidden_act", vision.hidden_act)?,
            layer_norm_epsilon: vision.layer_norm_eps,
        },
        text: text.config("text_config.")?,
    };
    config.validate()?;
    Ok(config)
}

fn section<T: for<'de> Deserialize<'de> + Default>(json: Option<Value>) -> Result<T, Problem> {
    json.map_or_else(|| Ok(T::default()), |json| Ok(serde_json::from_value(json)?))
}

fn activation(option: &str, name: String) -> Result<Activation, ConfigError> {
    match name.as_str() {
        "gelu" => Ok(Activation::Gelu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        _ => Err(unsupported(option, &name.into(), "expected gelu or quick_gelu")),
    }
}
