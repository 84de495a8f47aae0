//! `config.json` of diffusers' `AutoencoderKL`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, invalid, read_json, unsupported};

/// The largest number of channels of any layer.
const MOST_CHANNELS: i64 = 1 << 16;

/// An autoencoder. What a file leaves out has the library's default: huggingface/diffusers
/// `src/diffusers/models/autoencoders/autoencoder_kl.py` at v0.42.1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of the pictures that are encoded.
    pub in_channels: i64,
    /// Channels of the pictures that are decoded.
    pub out_channels: i64,
    /// Channels at each level, from the pixels down; each level but the first halves the sides.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of a level on the way down; there is one more on the way up.
    pub layers_per_block: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of the normalisations.
    pub norm_num_groups: i64,
    /// What latents are multiplied by for the UNet, so that their variance is about one.
    pub scaling_factor: f64,
    /// What is taken off latents before they are multiplied.
    pub shift_factor: Option<f64>,
    /// Whether numbers inside grow beyond what f16 holds.
    pub force_upcast: bool,
    /// Whether a convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the lowest level attends.
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

/// Options of which one value is built here.
#[derive(Deserialize)]
#[serde(default)]
struct Rest {
    #[serde(rename = "_class_name")]
    class_name: String,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    act_fn: String,
    latents_mean: Value,
    latents_std: Value,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            class_name: "AutoencoderKL".to_owned(),
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            act_fn: "silu".to_owned(),
            latents_mean: Value::Null,
            latents_std: Value::Null,
        }
    }
}

impl VaeConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Where the file cannot be read, or describes another kind of network.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_json(file)?, file).map_err(|error| error.in_file(file))
    }

    fn parse(json: &Value, file: &Path) -> Result<Self, ConfigError> {
        let malformed = |error: serde_json::Error| invalid(file, error.to_string());
        let config = Self::deserialize(json).map_err(malformed)?;
        config.validate()?;
        Rest::deserialize(json).map_err(malformed)?.check(config.block_out_channels.len())?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::Vae::load`] does it as well.
    ///
    /// # Errors
    /// Where one is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let levels = i64::try_from(self.block_out_channels.len()).unwrap_or(i64::MAX);
        let all = [
            ("in_channels", self.in_channels, MOST_CHANNELS),
            ("out_channels", self.out_channels, MOST_CHANNELS),
            ("latent_channels", self.latent_channels, MOST_CHANNELS),
            ("layers_per_block", self.layers_per_block, 1 << 8),
            ("norm_num_groups", self.norm_num_groups, MOST_CHANNELS),
            ("the number of block_out_channels", levels, 16),
        ];
        let channels = self.block_out_channels.iter();
        let channels = channels.map(|count| ("block_out_channels", *count, MOST_CHANNELS));
        for (what, found, most) in all.into_iter().chain(channels) {
            if found < 1 || found > most {
                return Err(ConfigError::Size { what, found, expected: format!("1 to {most}") });
            }
        }
        let groups = self.norm_num_groups;
        if let Some(count) = self.block_out_channels.iter().find(|count| *count % groups != 0) {
            let expected = format!("a multiple of norm_num_groups, {groups}");
            return Err(ConfigError::Size { what: "block_out_channels", found: *count, expected });
        }
        if !self.scaling_factor.is_normal() {
            let hint = "expected a number other than zero";
            return Err(unsupported("scaling_factor", &self.scaling_factor.into(), hint));
        }
        Ok(())
    }

    /// Pixels of a picture's side for one of a latent's.
    pub fn downscale(&self) -> i64 {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// Channels of the lowest level.
    pub(super) fn deepest(&self) -> i64 {
        self.block_out_channels.last().copied().unwrap_or(1)
    }

    /// Channels of the first level.
    pub(super) fn first(&self) -> i64 {
        self.block_out_channels.first().copied().unwrap_or(1)
    }
}

impl Rest {
    fn check(&self, levels: usize) -> Result<(), ConfigError> {
        if self.class_name != "AutoencoderKL" {
            let hint = "expected the config.json of an AutoencoderKL";
            return Err(unsupported("_class_name", &self.class_name.as_str().into(), hint));
        }
        if self.act_fn != "silu" {
            return Err(unsupported("act_fn", &self.act_fn.as_str().into(), "expected silu"));
        }
        for (option, types, built) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            if types.len() != levels || types.iter().any(|block| block != built) {
                let hint = format!("expected {built}, as often as there are block_out_channels");
                return Err(unsupported(option, &types.as_slice().into(), &hint));
            }
        }
        for (option, value) in
            [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)]
        {
            if !value.is_null() {
                return Err(unsupported(option, value, "expected none beside the scaling_factor"));
            }
        }
        Ok(())
    }
}
