//! `config.json` of a `UNet2DConditionModel`.
//!
//! Options that a file omits have diffusers' default
//! (`src/diffusers/models/unets/unet_2d_condition.py` at v0.42.1). Options that change the network
//! and are not implemented are rejected by name.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, Options, invalid, read_json, unsupported, without_unset};
use crate::layers::ResnetSizes;

/// The largest number of channels: far above every published network.
const LARGEST: i64 = 1 << 16;
/// The most blocks and layers.
const MOST_LAYERS: usize = 64;
/// How much wider the time embedding is than the first block.
const EMBEDDING_EXPANSION: i64 = 4;
/// Numbers of SDXL's `time_ids`.
const TIME_IDS: i64 = 6;

/// The sizes of the network. A list has one entry per level, from the highest resolution down.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// Height and width of the latents it was trained on, if the file says so.
    pub sample_size: Option<(i64, i64)>,
    /// Channels of the latents.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Channels of each level.
    pub block_out_channels: Vec<i64>,
    /// Width of the text.
    pub cross_attention_dim: i64,
    pub(super) down_attends: Vec<bool>,
    pub(super) up_attends: Vec<bool>,
    pub(super) layers: Vec<usize>,
    pub(super) heads: Vec<i64>,
    pub(super) transformer_layers: Vec<i64>,
    pub(super) only_cross_attention: Vec<bool>,
    pub(super) use_linear_projection: bool,
    pub(super) upcast_attention: bool,
    pub(super) norm_num_groups: i64,
    pub(super) norm_eps: f64,
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f64,
    /// Waves per number and input width of SDXL's added conditions.
    added: Option<(i64, i64)>,
    source: Value,
}

/// One value for all levels, or one for each.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PerLevel<T> {
    One(T),
    Each(Vec<T>),
}

impl<T: Copy> PerLevel<T> {
    fn spread(&self, levels: usize, option: &str, file: &Path) -> Result<Vec<T>, ConfigError> {
        match self {
            Self::One(value) => Ok(vec![*value; levels]),
            Self::Each(values) if values.len() == levels => Ok(values.clone()),
            Self::Each(values) => {
                let reason = format!("{option} has {} entries for {levels} blocks", values.len());
                Err(invalid(file, reason))
            }
        }
    }
}

const CLASS: &str = "UNet2DConditionModel";

/// Options that change the network, with the only values that are implemented. Null is valid if it
/// is in the list.
const FIXED: &[(&str, &[&str], &str)] = &[
    ("center_input_sample", &["false", "null"], ""),
    (
        "mid_block_type",
        &["\"UNetMidBlock2DCrossAttn\""],
        "networks without a middle block, such as small distilled ones, are not implemented",
    ),
    ("downsample_padding", &["1"], ""),
    ("mid_block_scale_factor", &["1"], ""),
    ("dropout", &["0"], "dropout in training is not implemented"),
    ("num_attention_heads", &["null"], "diffusers rejects it too: set attention_head_dim"),
    ("reverse_transformer_layers_per_block", &["null"], ""),
    ("encoder_hid_dim", &["null"], ""),
    ("encoder_hid_dim_type", &["null"], ""),
    ("dual_cross_attention", &["false", "null"], ""),
    ("class_embed_type", &["null"], ""),
    ("num_class_embeds", &["null"], ""),
    ("resnet_time_scale_shift", &["\"default\""], ""),
    ("time_embedding_type", &["\"positional\""], ""),
    ("time_embedding_dim", &["null", "0"], ""),
    ("time_embedding_act_fn", &["null"], ""),
    ("timestep_post_act", &["null"], ""),
    (
        "time_cond_proj_dim",
        &["null"],
        "networks that read their guidance scale are not implemented",
    ),
    ("conv_in_kernel", &["3"], ""),
    ("conv_out_kernel", &["3"], ""),
    ("attention_type", &["\"default\"", "null"], ""),
    ("class_embeddings_concat", &["false", "null"], ""),
    ("quantization_config", &["null"], "quantised weights are not read"),
];

/// Options that only blocks and embeddings read that are not implemented.
const OF_NO_EFFECT: &[&str] = &[
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "cross_attention_norm",
    "mid_block_only_cross_attention",
    "projection_class_embeddings_input_dim",
    "resnet_out_scale_factor",
    "resnet_skip_time_act",
];

impl UNetConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors If it is not the configuration of such a network, sets an option that is not
    /// implemented, or has an impossible size.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(source: Value, name: &Path) -> Result<Self, ConfigError> {
        if !source.is_object() {
            return Err(invalid(name, "expected a JSON object".to_owned()));
        }
        let json = without_unset(source.clone());
        let options = Options::new(&json, "");
        let class = options.get("_class_name", "a name", CLASS.to_owned())?;
        if class != CLASS {
            return Err(invalid(name, format!("_class_name is {class:?}, expected {CLASS:?}")));
        }
        for (option, allowed, why) in FIXED {
            options.fixed(option, allowed, why)?;
        }
        options.of_no_effect(OF_NO_EFFECT);
        let activation = options.get("act_fn", "\"silu\"", "silu".to_owned())?;
        // Two names of one function; diffusers ignores their case.
        if !["silu", "swish"].contains(&activation.to_lowercase().as_str()) {
            return Err(options.refuse("act_fn", "expected \"silu\" or \"swish\""));
        }
        let names = |option: &str, default: [&str; 4]| {
            let default = default.map(str::to_owned).to_vec();
            options.get::<Vec<String>>(option, "a list of names", default)
        };
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        let down_block_types = names("down_block_types", [down, down, down, "DownBlock2D"])?;
        let up_block_types = names("up_block_types", ["UpBlock2D", up, up, up])?;
        let block_out_channels =
            options.get("block_out_channels", "whole numbers", vec![320_i64, 640, 1280, 1280])?;
        let levels = block_out_channels.len();
        if levels == 0 || levels > MOST_LAYERS {
            let found = i64::try_from(levels).unwrap_or(i64::MAX);
            let expected = format!("1 to {MOST_LAYERS}");
            return Err(ConfigError::Size { what: "the number of blocks", found, expected });
        }
        let spread = |types: &[String], plain: &str, attending: &str, option: &str| {
            if types.len() != levels {
                let reason = format!("{option} has {} entries for {levels} blocks", types.len());
                return Err(invalid(name, reason));
            }
            types
                .iter()
                // diffusers ignores this older prefix.
                .map(|found| match found.strip_prefix("UNetRes").unwrap_or(found) {
                    found if found == plain => Ok(false),
                    found if found == attending => Ok(true),
                    other => {
                        let hint = format!("expected {plain} or {attending}");
                        Err(unsupported(option, &other.into(), &hint))
                    }
                })
                .collect::<Result<Vec<bool>, ConfigError>>()
        };
        let sizes = |option: &str, default: i64| {
            let expected = "a whole number, or one for each block";
            options.get(option, expected, PerLevel::One(default))?.spread(levels, option, name)
        };
        let text = sizes("cross_attention_dim", 1280)?;
        let text_width = text.first().copied().unwrap_or(0);
        if text.iter().any(|width| *width != text_width) {
            let hint = "expected the same for all blocks: there is one text";
            return Err(options.refuse("cross_attention_dim", hint));
        }
        let only_cross_attention = options
            .get("only_cross_attention", "true or false, or one for each", PerLevel::One(false))?
            .spread(levels, "only_cross_attention", name)?;
        let embedding =
            options.get("addition_embed_type", "null or \"text_time\"", None::<String>)?;
        let added = match embedding.as_deref() {
            None => None,
            Some("text_time") => {
                let size = |option: &str| {
                    let size = options.get(option, "a whole number", None::<i64>)?;
                    size.ok_or_else(|| {
                        let reason = format!("addition_embed_type text_time needs {option}");
                        invalid(name, reason)
                    })
                };
                let waves = size("addition_time_embed_dim")?;
                Some((waves, size("projection_class_embeddings_input_dim")?))
            }
            Some(_) => {
                let hint = "expected null or \"text_time\"";
                return Err(options.refuse("addition_embed_type", hint));
            }
        };
        let expected = "a whole number, or a height and a width";
        let sample_size = match options.get("sample_size", expected, None)? {
            None => None,
            Some(PerLevel::One(side)) => Some((side, side)),
            Some(PerLevel::Each(sides)) => match sides[..] {
                [height, width] => Some((height, width)),
                _ => return Err(options.refuse("sample_size", &format!("expected {expected}"))),
            },
        };
        let layers = sizes("layers_per_block", 2)?;
        let config = Self {
            sample_size,
            in_channels: options.integer("in_channels", 4)?,
            out_channels: options.integer("out_channels", 4)?,
            cross_attention_dim: text_width,
            down_attends: spread(&down_block_types, "DownBlock2D", down, "down_block_types")?,
            up_attends: spread(&up_block_types, "UpBlock2D", up, "up_block_types")?,
            layers: layers.iter().map(|count| usize::try_from(*count).unwrap_or(0)).collect(),
            // The option named the width of a head is the number of heads (diffusers issue 2011).
            heads: sizes("attention_head_dim", 8)?,
            transformer_layers: sizes("transformer_layers_per_block", 1)?,
            only_cross_attention,
            use_linear_projection: options.flag("use_linear_projection", false)?,
            upcast_attention: options.flag("upcast_attention", false)?,
            norm_num_groups: options.integer("norm_num_groups", 32)?,
            norm_eps: options.number("norm_eps", 1e-5)?,
            flip_sin_to_cos: options.flag("flip_sin_to_cos", true)?,
            freq_shift: options.number("freq_shift", 0.0)?,
            added,
            block_out_channels,
            source: Value::Null,
        };
        options.warn_of_unknown(name, "diffusers");
        let config = Self { source, ..config };
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let size = |what: &'static str, found: i64, most: i64| {
            if (1..=most).contains(&found) {
                Ok(())
            } else {
                Err(ConfigError::Size { what, found, expected: format!("1 to {most}") })
            }
        };
        size("in_channels", self.in_channels, LARGEST)?;
        size("out_channels", self.out_channels, LARGEST)?;
        size("cross_attention_dim", self.cross_attention_dim, LARGEST)?;
        size("norm_num_groups", self.norm_num_groups, LARGEST)?;
        if let Some((height, width)) = self.sample_size {
            size("sample_size", height, LARGEST)?;
            size("sample_size", width, LARGEST)?;
        }
        let multiple = |what: &'static str, found: i64, of: i64| {
            if found % of == 0 {
                Ok(())
            } else {
                Err(ConfigError::Size { what, found, expected: format!("a multiple of {of}") })
            }
        };
        let most_layers = MOST_LAYERS as i64;
        for (level, channels) in self.block_out_channels.iter().enumerate() {
            size("block_out_channels", *channels, LARGEST)?;
            multiple("block_out_channels", *channels, self.norm_num_groups)?;
            size("attention_head_dim", self.heads[level], *channels)?;
            multiple("block_out_channels", *channels, self.heads[level])?;
            let layers = i64::try_from(self.layers[level]).unwrap_or(i64::MAX);
            size("layers_per_block", layers, most_layers)?;
            size("transformer_layers_per_block", self.transformer_layers[level], most_layers)?;
        }
        multiple("the first of block_out_channels", self.first_channels(), 2)?;
        if let Some((waves, input)) = self.added {
            size("addition_time_embed_dim", waves, LARGEST)?;
            multiple("addition_time_embed_dim", waves, 2)?;
            let least = TIME_IDS * waves + 1;
            if !(least..=LARGEST).contains(&input) {
                let what = "projection_class_embeddings_input_dim";
                let expected = format!("{least} to {LARGEST}");
                return Err(ConfigError::Size { what, found: input, expected });
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let hint = "expected a small positive number";
            return Err(unsupported("norm_eps", &self.norm_eps.into(), hint));
        }
        Ok(())
    }

    /// The JSON of the file, which [`super::UNet::save`] writes unchanged.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// For SDXL's added conditions: the waves per number, and the width of the pooled text with all
    /// waves.
    pub(super) fn added_sizes(&self) -> Option<(i64, i64)> {
        self.added
    }

    /// Width of SDXL's pooled text, if the network reads one.
    pub fn pooled_width(&self) -> Option<i64> {
        self.added.map(|(waves, input)| input - TIME_IDS * waves)
    }

    /// Channels at the highest resolution.
    pub(super) fn first_channels(&self) -> i64 {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// Width of the time embedding.
    pub(super) fn embedding_width(&self) -> i64 {
        EMBEDDING_EXPANSION * self.first_channels()
    }

    pub(super) fn resnet_sizes(&self, input: i64, output: i64) -> ResnetSizes {
        ResnetSizes {
            input,
            output,
            embedding: Some(self.embedding_width()),
            groups: self.norm_num_groups,
            epsilon: self.norm_eps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(source: Value) -> Result<UNetConfig, String> {
        UNetConfig::parse(source, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_absent_has_the_default_of_diffusers() {
        let config = parse(json!({})).unwrap();
        assert_eq!(config.block_out_channels, [320, 640, 1280, 1280]);
        assert_eq!(config.down_attends, [true, true, true, false]);
        assert_eq!(config.up_attends, [false, true, true, true]);
        assert_eq!(config.heads, [8; 4]);
        assert_eq!(config.pooled_width(), None);
        let unset = parse(json!({"in_channels": 9, "_use_default_values": ["in_channels"]}));
        assert_eq!(unset.unwrap().in_channels, 4);
    }

    #[test]
    fn every_option_of_diffusers_is_known() {
        // The arguments of `UNet2DConditionModel.__init__` at v0.42.1 with their defaults:
        let all = r#"{
            "sample_size": null, "in_channels": 4, "out_channels": 4, "center_input_sample": false,
            "flip_sin_to_cos": true, "freq_shift": 0,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                                 "CrossAttnDownBlock2D", "DownBlock2D"],
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "up_block_types": ["UNetResUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                               "CrossAttnUpBlock2D"],
            "only_cross_attention": false, "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2, "downsample_padding": 1, "mid_block_scale_factor": 1.0,
            "dropout": 0.0, "act_fn": "SiLU", "norm_num_groups": 32, "norm_eps": 1e-5,
            "cross_attention_dim": 1280, "transformer_layers_per_block": 1,
            "reverse_transformer_layers_per_block": null, "encoder_hid_dim": null,
            "encoder_hid_dim_type": null, "attention_head_dim": 8, "num_attention_heads": null,
            "dual_cross_attention": false, "use_linear_projection": false,
            "class_embed_type": null, "addition_embed_type": null,
            "addition_time_embed_dim": null, "num_class_embeds": null, "upcast_attention": null,
            "resnet_time_scale_shift": "default", "resnet_skip_time_act": false,
            "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional",
            "time_embedding_dim": null, "time_embedding_act_fn": null, "timestep_post_act": null,
            "time_cond_proj_dim": null, "conv_in_kernel": 3, "conv_out_kernel": 3,
            "projection_class_embeddings_input_dim": null, "attention_type": "default",
            "class_embeddings_concat": false, "mid_block_only_cross_attention": null,
            "cross_attention_norm": null, "addition_embed_type_num_heads": 64
        }"#;
        let found = parse(serde_json::from_str(all).unwrap()).unwrap();
        assert_eq!(UNetConfig { source: json!({}), ..found }, parse(json!({})).unwrap());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (source, says) in [
            (
                json!({"down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]}),
                "AttnDownBlock2D",
            ),
            (json!({"class_embed_type": "timestep"}), "class_embed_type"),
            (json!({"addition_embed_type": "image"}), "addition_embed_type"),
            (json!({"addition_embed_type": "text_time"}), "addition_time_embed_dim"),
            (json!({"mid_block_type": null}), "mid_block_type to null"),
            (json!({"time_cond_proj_dim": 256}), "time_cond_proj_dim to 256"),
            (json!({"resnet_time_scale_shift": "scale_shift"}), "resnet_time_scale_shift"),
            (json!({"norm_num_groups": null}), "norm_num_groups to null"),
            (json!({"sample_size": "big"}), "sample_size"),
            (json!({"attention_head_dim": [8, null, 8, 8]}), "attention_head_dim"),
            (json!({"transformer_layers_per_block": [[1], [1], [1], [1]]}), "transformer_layers"),
            (json!({"cross_attention_dim": [768, 768, 768, 1024]}), "cross_attention_dim"),
            (json!({"act_fn": "gelu"}), "act_fn"),
            (json!({"in_channels": -4, "_use_default_values": ["sample_size"]}), "in_channels"),
            (json!({"num_attention_heads": 8}), "num_attention_heads"),
            (json!({"conv_in_kernel": 1}), "conv_in_kernel"),
            (json!({"quantization_config": {"load_in_8bit": true}}), "quantization_config"),
            (json!({"dual_cross_attention": true}), "dual_cross_attention"),
            (json!({"_class_name": "UNet2DModel"}), "UNet2DModel"),
            (json!({"block_out_channels": [320, 640]}), "entries for 2 blocks"),
            (json!({"norm_num_groups": 7}), "multiple of 7"),
            (json!({"in_channels": -1}), "in_channels"),
            (json!({"attention_head_dim": 0}), "attention_head_dim"),
            (json!({"norm_eps": 0.0}), "norm_eps"),
            (json!([1]), "not a valid model configuration"),
        ] {
            let error = parse(source).unwrap_err();
            assert!(error.contains(says), "{says:?} is not in {error:?}");
        }
    }
}
