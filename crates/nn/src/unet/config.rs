//! `config.json` of a `UNet2DConditionModel`.
//!
//! What a file leaves out has diffusers' default (`src/diffusers/models/unets/unet_2d_condition.py`
//! at v0.42.1). Options that change the network and are not built here are refused by name.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, invalid, read_json, unsupported};
use crate::layers::ResnetSizes;

/// The largest number of channels: far above every published network.
const LARGEST: i64 = 1 << 16;
/// The most blocks and layers.
const MOST_LAYERS: usize = 64;
/// How much wider the time embedding is than the first block.
const EMBEDDING_WIDENING: i64 = 4;
/// Numbers of SDXL's `time_ids`.
const TIME_IDS: i64 = 6;

/// The sizes of the network, one entry per level from the highest resolution down where there are
/// several.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// Height and width of the latents it was made for, where the file says so.
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
    /// Waves per number and width of SDXL's further conditions.
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

#[derive(Debug, Deserialize)]
#[serde(default)]
struct File {
    _class_name: String,
    sample_size: Option<PerLevel<i64>>,
    in_channels: i64,
    out_channels: i64,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    only_cross_attention: PerLevel<bool>,
    block_out_channels: Vec<i64>,
    layers_per_block: PerLevel<usize>,
    norm_num_groups: Option<i64>,
    norm_eps: f64,
    cross_attention_dim: PerLevel<i64>,
    transformer_layers_per_block: PerLevel<i64>,
    attention_head_dim: PerLevel<i64>,
    use_linear_projection: bool,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<i64>,
    projection_class_embeddings_input_dim: Option<i64>,
    upcast_attention: Option<bool>,
}

impl Default for File {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        Self {
            _class_name: CLASS.to_owned(),
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([down, down, down, "DownBlock2D"]),
            up_block_types: names(["UpBlock2D", up, up, up]),
            only_cross_attention: PerLevel::One(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerLevel::One(2),
            norm_num_groups: Some(32),
            norm_eps: 1e-5,
            cross_attention_dim: PerLevel::One(1280),
            transformer_layers_per_block: PerLevel::One(1),
            attention_head_dim: PerLevel::One(8),
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            upcast_attention: None,
        }
    }
}

const CLASS: &str = "UNet2DConditionModel";

/// Options that change the network, with the only values built here; null and absence count as the
/// first. `act_fn` swish is another name of SiLU.
const FIXED: &[(&str, &[&str])] = &[
    ("center_input_sample", &["false"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("downsample_padding", &["1"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("dropout", &["0.0", "0"]),
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("num_attention_heads", &["null"]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("dual_cross_attention", &["false"]),
    ("class_embed_type", &["null"]),
    ("num_class_embeds", &["null"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_out_scale_factor", &["1.0", "1"]),
    ("time_embedding_type", &["\"positional\""]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("timestep_post_act", &["null"]),
    ("time_cond_proj_dim", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("attention_type", &["\"default\""]),
    ("class_embeddings_concat", &["false"]),
    ("cross_attention_norm", &["null"]),
];

impl UNetConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Where it is not the configuration of such a network, sets an option that is not built here,
    /// or gives an impossible size.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(source: Value, name: &Path) -> Result<Self, ConfigError> {
        for (option, allowed) in FIXED {
            let value = source.get(*option).unwrap_or(&Value::Null);
            if !value.is_null() && !allowed.contains(&value.to_string().as_str()) {
                let hint = format!("expected {}", allowed.join(" or "));
                return Err(unsupported(option, value, &hint));
            }
        }
        let file = File::deserialize(&source).map_err(|error| invalid(name, error.to_string()))?;
        if file._class_name != CLASS {
            let found = file._class_name;
            return Err(invalid(name, format!("_class_name is {found:?}, expected {CLASS:?}")));
        }
        let levels = file.block_out_channels.len();
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
                .map(|found| match found.as_str() {
                    found if found == plain => Ok(false),
                    found if found == attending => Ok(true),
                    other => {
                        let hint = format!("expected {plain} or {attending}");
                        Err(unsupported(option, &other.into(), &hint))
                    }
                })
                .collect::<Result<Vec<bool>, ConfigError>>()
        };
        let text = file.cross_attention_dim.spread(levels, "cross_attention_dim", name)?;
        let text_width = text.first().copied().unwrap_or(0);
        if text.iter().any(|width| *width != text_width) {
            return Err(invalid(name, "cross_attention_dim differs between blocks".to_owned()));
        }
        let only = file.only_cross_attention.spread(levels, "only_cross_attention", name)?;
        let added = match file.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => {
                match (file.addition_time_embed_dim, file.projection_class_embeddings_input_dim) {
                    (Some(waves), Some(input)) => Some((waves, input)),
                    _ => {
                        let reason = "addition_embed_type text_time needs addition_time_embed_dim \
                            and projection_class_embeddings_input_dim";
                        return Err(invalid(name, reason.to_owned()));
                    }
                }
            }
            Some(other) => {
                let hint = "expected null or text_time";
                return Err(unsupported("addition_embed_type", &other.into(), hint));
            }
        };
        let sample_size = match &file.sample_size {
            None => None,
            Some(PerLevel::One(side)) => Some((*side, *side)),
            Some(PerLevel::Each(sides)) => match sides[..] {
                [height, width] => Some((height, width)),
                _ => return Err(invalid(name, "sample_size is no height and width".to_owned())),
            },
        };
        let per_block = &file.transformer_layers_per_block;
        let config = Self {
            sample_size,
            in_channels: file.in_channels,
            out_channels: file.out_channels,
            cross_attention_dim: text_width,
            down_attends: spread(
                &file.down_block_types,
                "DownBlock2D",
                "CrossAttnDownBlock2D",
                "down_block_types",
            )?,
            up_attends: spread(
                &file.up_block_types,
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "up_block_types",
            )?,
            layers: file.layers_per_block.spread(levels, "layers_per_block", name)?,
            // What is called the width of a head is the number of heads (diffusers issue 2011).
            heads: file.attention_head_dim.spread(levels, "attention_head_dim", name)?,
            transformer_layers: per_block.spread(levels, "transformer_layers_per_block", name)?,
            only_cross_attention: only,
            use_linear_projection: file.use_linear_projection,
            upcast_attention: file.upcast_attention.unwrap_or(false),
            norm_num_groups: file.norm_num_groups.unwrap_or(32),
            norm_eps: file.norm_eps,
            flip_sin_to_cos: file.flip_sin_to_cos,
            freq_shift: file.freq_shift,
            added,
            block_out_channels: file.block_out_channels,
            source,
        };
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

    /// The file's own JSON, which [`super::UNet::save`] writes again.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Waves per number, and width of the pooled text with all waves, of SDXL's conditions.
    pub(super) fn added_sizes(&self) -> Option<(i64, i64)> {
        self.added
    }

    /// Width of SDXL's pooled text, where the network takes one.
    pub fn pooled_width(&self) -> Option<i64> {
        self.added.map(|(waves, input)| input - TIME_IDS * waves)
    }

    /// Channels at the highest resolution.
    pub(super) fn first_channels(&self) -> i64 {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// Width of the time embedding.
    pub(super) fn embedding_width(&self) -> i64 {
        EMBEDDING_WIDENING * self.first_channels()
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
