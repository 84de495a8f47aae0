//! `open_clip_config.json`, with its `model_cfg` or bare as in open_clip's `model_configs/`.
//! Options that a file omits have the library's default: mlfoundations/open_clip
//! `src/open_clip/model.py` (`CLIPVisionCfg`, `CLIPTextCfg`) at v3.3.0.
//!
//! An option that would change the network and is not implemented is rejected by name, unless its
//! value turns it off.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{Activation, ClipConfig, Pooling, Problem, TextConfig, VisionConfig, square};
use crate::config::unsupported;

#[derive(Deserialize)]
struct Top {
    embed_dim: i64,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: Vision,
    text_cfg: Text,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Vision {
    #[serde(default = "default_layers")]
    layers: Value,
    #[serde(default = "default_vision_width")]
    width: i64,
    #[serde(default = "default_head_width")]
    head_width: i64,
    #[serde(default = "default_ratio")]
    mlp_ratio: f64,
    #[serde(default = "default_patch_size")]
    patch_size: Value,
    #[serde(default = "default_image_size")]
    image_size: Value,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Text {
    #[serde(default = "default_pool_type")]
    pool_type: String,
    #[serde(default = "default_end")]
    eos_id: i64,
    #[serde(default = "default_context_length")]
    context_length: i64,
    #[serde(default = "default_vocabulary_size")]
    vocab_size: i64,
    #[serde(default = "default_text_width")]
    width: i64,
    #[serde(default = "default_heads")]
    heads: i64,
    #[serde(default = "default_layers")]
    layers: Value,
    #[serde(default = "default_ratio")]
    mlp_ratio: f64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn default_pool_type() -> String {
    "argmax".to_owned()
}
fn default_end() -> i64 {
    2
}
fn default_layers() -> Value {
    12.into()
}
fn default_vision_width() -> i64 {
    768
}
fn default_head_width() -> i64 {
    64
}
fn default_ratio() -> f64 {
    4.0
}
fn default_patch_size() -> Value {
    16.into()
}
fn default_image_size() -> Value {
    224.into()
}
fn default_context_length() -> i64 {
    77
}
fn default_vocabulary_size() -> i64 {
    49408
}
fn default_text_width() -> i64 {
    512
}
fn default_heads() -> i64 {
    8
}

/// Options without an effect on features: those of training and initialisation, and sizes of parts
/// that other options turn on.
const OF_NO_EFFECT: &[&str] = &[
    "attn_pooler_heads",
    "attn_pooler_queries",
    // The same network, with its text tower in a separate module.
    "custom_text",
    "hf_model_pretrained",
    "hf_pooler_type",
    "hf_proj_type",
    "init_logit_bias",
    "init_logit_scale",
    "nonscalar_logit_scale",
    "output_dict",
    "output_tokens",
    // Read only if there is a class token.
    "pad_id",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    // Read only with a tokenizer of transformers.
    "tokenizer_mode",
];

pub(super) fn read(json: &Value) -> Result<ClipConfig, Problem> {
    let top = Top::deserialize(json.get("model_cfg").unwrap_or(json))?;
    check("", &top.rest)?;
    check("vision_cfg.", &top.vision_cfg.rest)?;
    check("text_cfg.", &top.text_cfg.rest)?;
    let activation = if top.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
    let (vision, text) = (top.vision_cfg, top.text_cfg);
    let head_width = vision.head_width;
    if head_width < 1 || vision.width % head_width != 0 {
        let hint = "expected a divisor of the width";
        return Err(unsupported("vision_cfg.head_width", &head_width.into(), hint).into());
    }
    let config = ClipConfig {
        embed_dim: top.embed_dim,
        vision: VisionConfig {
            image_size: square("vision_cfg.image_size", &vision.image_size)?,
            patch_size: square("vision_cfg.patch_size", &vision.patch_size)?,
            width: vision.width,
            layers: layers("vision_cfg.layers", &vision.layers)?,
            heads: vision.width / head_width,
            mlp_width: mlp_width("vision_cfg.mlp_ratio", vision.width, vision.mlp_ratio)?,
            activation,
            layer_norm_epsilon: 1e-5,
        },
        text: TextConfig {
            context_length: text.context_length,
            vocabulary_size: text.vocab_size,
            width: text.width,
            layers: layers("text_cfg.layers", &text.layers)?,
            heads: text.heads,
            mlp_width: mlp_width("text_cfg.mlp_ratio", text.width, text.mlp_ratio)?,
            activation,
            layer_norm_epsilon: 1e-5,
        },
        pooling: match text.pool_type.as_str() {
            "argmax" => Pooling::Argmax,
            "eos" => Pooling::FirstOf(text.eos_id),
            _ => {
                let found = text.pool_type.into();
                return Err(
                    unsupported("text_cfg.pool_type", &found, "expected argmax or eos").into()
                );
            }
        },
    };
    config.validate()?;
    Ok(config)
}

/// Rejects options that have an effect and are not off.
fn check(section: &str, rest: &Map<String, Value>) -> Result<(), Problem> {
    for (option, value) in rest {
        let off = match option.as_str() {
            "pool_type" => value == "tok",
            "pos_embed_type" => value == "learnable",
            "proj_type" => value == "linear",
            "block_type" => value.is_null() || value == "default",
            "norm_kwargs" | "act_kwargs" => value.is_null() || *value == json!({}),
            "hf_tokenizer_name" => value.is_null() || value == "",
            "tokenizer_kwargs" => {
                value.is_null() || *value == json!({}) || *value == json!({"clean": "lower"})
            }
            other if OF_NO_EFFECT.contains(&other) => true,
            _ => value.is_null() || *value == json!(false),
        };
        if !off {
            let hint = match option.as_str() {
                "hf_tokenizer_name" | "tokenizer_kwargs" => {
                    "only open_clip's SimpleTokenizer with its own cleaning is implemented"
                }
                "hf_model_name" => "only open_clip's own text tower is implemented",
                "timm_model_name" => "only open_clip's own vision transformer is implemented",
                _ => "",
            };
            return Err(unsupported(&format!("{section}{option}"), value, hint).into());
        }
    }
    Ok(())
}

/// A list of layer counts describes a convolutional network.
fn layers(option: &str, value: &Value) -> Result<i64, Problem> {
    let hint = "only vision transformers are implemented, with one number of layers";
    value.as_i64().ok_or_else(|| unsupported(option, value, hint).into())
}

/// Python's `int(width * mlp_ratio)`.
fn mlp_width(option: &str, width: i64, ratio: f64) -> Result<i64, Problem> {
    let product = width as f64 * ratio;
    if (1.0..1e9).contains(&product) {
        Ok(product as i64)
    } else {
        Err(unsupported(option, &ratio.into(), "expected a small positive number").into())
    }
}
