//! `config.json` of diffusers' `AutoencoderKL`.

use std::path::Path;

use serde_json::Value;

use crate::config::{ConfigError, Options, read_json, unsupported, without_unset};

/// The largest number of channels of any layer.
const MOST_CHANNELS: i64 = 1 << 16;

/// An autoencoder. Options that a file omits have the library's default: huggingface/diffusers
/// `src/diffusers/models/autoencoders/autoencoder_kl.py` at v0.42.1.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the images that are encoded.
    pub in_channels: i64,
    /// Channels of the images that are decoded.
    pub out_channels: i64,
    /// Channels at each level, from the pixels down; each level but the first downsamples by two.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of the normalisations.
    pub norm_num_groups: i64,
    /// The factor for latents that the UNet reads, so that their variance is about one.
    pub scaling_factor: f64,
    /// Subtracted from latents before they are scaled.
    pub shift_factor: Option<f64>,
    /// Whether activations exceed the range of f16.
    pub force_upcast: bool,
    /// Whether a convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the lowest level has attention.
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

/// The pixels of `images` of this size that are computed at once.
fn pixels_at_once(images: i64, height: i64, width: i64) -> f64 {
    let pixels = height.saturating_mul(width);
    pixels.saturating_mul(images.min(super::at_once(pixels))) as f64
}

impl VaeConfig {
    /// How many numbers encoding `images` of this size takes at once, beside the weights: in the
    /// residual blocks of the first level the stream, what a layer reads and what it writes.
    pub fn encoding_numbers(&self, images: i64, height: i64, width: i64) -> f64 {
        3.0 * self.first() as f64 * pixels_at_once(images, height, width)
    }

    /// How many numbers decoding `images` of this size takes at once, beside the weights: in the first
    /// residual block of the last level, which has the channels of the level before.
    pub fn decoding_numbers(&self, images: i64, height: i64, width: i64) -> f64 {
        let before = self.block_out_channels.get(1).copied().unwrap_or(self.first());
        (2 * before + self.first()) as f64 * pixels_at_once(images, height, width)
    }

    /// Reads `config.json`.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&without_unset(read_json(file)?), file).map_err(|error| error.in_file(file))
    }

    fn parse(json: &Value, file: &Path) -> Result<Self, ConfigError> {
        let options = Options::new(json, "");
        options.fixed("_class_name", &["\"AutoencoderKL\""], "")?;
        let activation = options.get("act_fn", "\"silu\"", "silu".to_owned())?;
        if !["silu", "swish"].contains(&activation.to_lowercase().as_str()) {
            return Err(options.refuse("act_fn", "expected \"silu\""));
        }
        options.fixed("latents_mean", &["null"], "the scaling_factor says all")?;
        options.fixed("latents_std", &["null"], "the scaling_factor says all")?;
        options.fixed("quantization_config", &["null"], "quantised weights are not read")?;
        // Options of tiling, which is not used here.
        options.of_no_effect(&["sample_size"]);
        let d = Self::default();
        let block_out_channels =
            options.get("block_out_channels", "whole numbers", d.block_out_channels)?;
        for (option, built) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types = options.get(option, "a list of names", vec![built.to_owned()])?;
            if types.len() != block_out_channels.len() || types.iter().any(|block| block != built) {
                let hint = format!("expected {built}, as often as there are block_out_channels");
                return Err(unsupported(option, &types.into(), &hint));
            }
        }
        let config = Self {
            in_channels: options.integer("in_channels", d.in_channels)?,
            out_channels: options.integer("out_channels", d.out_channels)?,
            block_out_channels,
            layers_per_block: options.integer("layers_per_block", d.layers_per_block)?,
            latent_channels: options.integer("latent_channels", d.latent_channels)?,
            norm_num_groups: options.integer("norm_num_groups", d.norm_num_groups)?,
            scaling_factor: options.number("scaling_factor", d.scaling_factor)?,
            shift_factor: options.get("shift_factor", "a number or null", d.shift_factor)?,
            force_upcast: options.flag("force_upcast", d.force_upcast)?,
            use_quant_conv: options.flag("use_quant_conv", d.use_quant_conv)?,
            use_post_quant_conv: options.flag("use_post_quant_conv", d.use_post_quant_conv)?,
            mid_block_add_attention: options
                .flag("mid_block_add_attention", d.mid_block_add_attention)?,
        };
        options.warn_of_unknown(file, "diffusers");
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are possible. [`super::Vae::load`] does it as well.
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

    /// Height and width of an image, in units of those of its latents.
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
