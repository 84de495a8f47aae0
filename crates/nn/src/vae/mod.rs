//! `AutoencoderKL`: images to latents of an eighth of their height and width, and back.
//!
//! Behaviour follows huggingface/diffusers
//! `src/diffusers/models/autoencoders/{autoencoder_kl,vae}.py` at v0.42.1; results agree to 1e-4 of
//! their size in f32 (`tests/diffusion_vae.rs`).
//!
//! `B` batch, `C` channels, `H` and `W` height and width of an image or a latent.

mod blocks;
mod config;

use tch::{Device, Kind, TchError, Tensor};

use blocks::{DownBlock, EPSILON, MidBlock, UpBlock};
pub use config::VaeConfig;

use crate::device::{Precision, inference, upload};
use crate::error::{ModelError, NetworkError};
use crate::layers::{Conv2d, ConvSizes, GroupNorm};
use crate::shim::{self, Stride};
use crate::weights::{Loader, Weights};

/// Pixels that are computed at once; a larger batch is computed in parts. More pixels at once are
/// not faster, and take some kilobytes of memory each.
const PIXELS_AT_ONCE: i64 = 4 * 512 * 512;

/// How many images of so many pixels are computed at once, at most.
pub(super) fn at_once(pixels: i64) -> i64 {
    (PIXELS_AT_ONCE / pixels.max(1)).max(1)
}

/// The name in error messages.
const NETWORK: &str = "VAE";

/// Tensors that every such network has.
const ANCHORS: &[&str] = &["encoder.conv_in.weight", "decoder.conv_in.weight"];

/// The distribution of the latents of images: independent normal numbers, f32 on the network's
/// device.
#[derive(Debug)]
pub struct Posterior {
    /// Means, `[B, C, H/f, W/f]`, not scaled.
    pub mean_BCHW: Tensor,
    /// Logarithms of the variances, between -30 and 20, of the same shape.
    pub log_variance_BCHW: Tensor,
}

impl Posterior {
    /// The standard deviations (std), `[B, C, H/f, W/f]`.
    #[doc(alias = "standard_deviation")]
    pub fn std(&self) -> Result<Tensor, NetworkError> {
        Ok(self.log_variance_BCHW.f_mul_scalar(0.5)?.f_exp()?)
    }
}

/// An autoencoder.
#[derive(Debug)]
#[doc(alias = "AutoencoderKL")]
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    device: Device,
    precision: Precision,
}

impl Vae {
    /// Loads the network for inference, strictly. In f16 it computes in f32 if its configuration
    /// sets `force_upcast`.
    ///
    /// # Errors If the checkpoint does not fit the configuration, or the precision does not fit the
    /// device.
    pub fn load(
        config: &VaeConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        precision.check(device)?;
        let precision = match precision {
            Precision::F16 if config.force_upcast => Precision::F32,
            precision => precision,
        };
        let weights = weights.rooted(ANCHORS);
        let mut loader = Loader::new(&weights, NETWORK, device, precision).refusing_non_finite();
        let latents = config.latent_channels;
        let mut pointwise = |name: &str, channels: i64| {
            let stride = Stride { stride: 1, padding: 0 };
            let sizes = ConvSizes { input: channels, output: channels, kernel: 1, stride };
            Conv2d::load(&mut loader, name, sizes)
        };
        let quant_conv = config.use_quant_conv.then(|| pointwise("quant_conv", 2 * latents));
        let post_quant_conv =
            config.use_post_quant_conv.then(|| pointwise("post_quant_conv", latents));
        let network = Self {
            config: config.clone(),
            encoder: Encoder::load(&mut loader, config),
            quant_conv,
            post_quant_conv,
            decoder: Decoder::load(&mut loader, config),
            device,
            precision,
        };
        loader.finish(|_| false)?;
        Ok(network)
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The precision it computes in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Encodes images: `pixels_BCHW` in [-1, 1] on any device, height and width multiples of
    /// [`VaeConfig::downscale`]. The result can be used in training.
    ///
    /// # Errors
    /// If a shape does not fit, a number is not finite, or memory runs out.
    pub fn encode(&self, pixels_BCHW: &Tensor) -> Result<Posterior, NetworkError> {
        let factor = self.config.downscale();
        check_shape("pixels", pixels_BCHW, self.config.in_channels, factor)?;
        let moments_BCHW = self.sliced(pixels_BCHW, 1, |pixels_BCHW| {
            let moments_BCHW = self.encoder.forward(pixels_BCHW)?;
            match &self.quant_conv {
                None => Ok(moments_BCHW),
                Some(layer) => layer.forward(&moments_BCHW),
            }
        })?;
        check_finite(("pixels", pixels_BCHW), &moments_BCHW)?;
        let latents = self.config.latent_channels;
        // Outside of inference mode, so that the results are ordinary tensors.
        Ok(Posterior {
            mean_BCHW: moments_BCHW.f_narrow(1, 0, latents)?.f_add_scalar(0.0)?,
            log_variance_BCHW: moments_BCHW.f_narrow(1, latents, latents)?.f_clamp(-30.0, 20.0)?,
        })
    }

    /// Decodes latents `[B, C, H, W]` on any device to images `[B, C, f·H, f·W]`, f32 and about in
    /// [-1, 1]. The caller has already divided the latents by [`VaeConfig::scaling_factor`] and
    /// added [`VaeConfig::shift_factor`].
    ///
    /// The result comes from libtorch's inference mode: code outside of it must not change it in
    /// place.
    pub fn decode(&self, latents_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        check_shape("latents", latents_BCHW, self.config.latent_channels, 1)?;
        let pixels_BCHW = self.sliced(latents_BCHW, self.config.downscale(), |latents_BCHW| {
            match &self.post_quant_conv {
                None => self.decoder.forward(latents_BCHW),
                Some(layer) => self.decoder.forward(&layer.forward(latents_BCHW)?),
            }
        })?;
        check_finite(("latents", latents_BCHW), &pixels_BCHW)?;
        Ok(pixels_BCHW)
    }

    /// `compute` on a few rows of the batch at a time ([`PIXELS_AT_ONCE`]); a pixel of `x_BCHW`
    /// stands for `scale` by `scale` pixels of an image. The result is contiguous f32.
    fn sliced(
        &self,
        x_BCHW: &Tensor,
        scale: i64,
        compute: impl Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, NetworkError> {
        let (_, _, height, width) = x_BCHW.size4()?;
        let pixels = height.saturating_mul(width).saturating_mul(scale * scale);
        let rows = at_once(pixels);
        inference(|| {
            let parts = x_BCHW
                .f_split(rows, 0)?
                .iter()
                .map(|part_BCHW| {
                    let part_BCHW =
                        upload(part_BCHW, self.device)?.f_to_kind(self.precision.kind())?;
                    let result_BCHW = compute(&shim::channels_last(&part_BCHW)?)?;
                    result_BCHW.f_to_kind(Kind::Float)?.f_contiguous()
                })
                .collect::<Result<Vec<_>, TchError>>()?;
            match &parts[..] {
                [only] => Ok(only.shallow_clone()),
                parts => Ok(Tensor::f_cat(parts, 0)?),
            }
        })
    }
}

/// Images to moments.
#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn load(loader: &mut Loader<'_>, config: &VaeConfig) -> Self {
        let channels = &config.block_out_channels;
        let (first, deepest) = (config.first(), config.deepest());
        let moments = 2 * config.latent_channels;
        let groups = config.norm_num_groups;
        let befores = std::iter::once(&first).chain(channels);
        Self {
            conv_in: Conv2d::load_3x3(loader, "encoder.conv_in", config.in_channels, first),
            down_blocks: befores
                .zip(channels)
                .enumerate()
                .map(|(index, (before, after))| {
                    let name = format!("encoder.down_blocks.{index}");
                    let halves = index + 1 < channels.len();
                    DownBlock::load(loader, config, &name, [*before, *after], halves)
                })
                .collect(),
            mid_block: MidBlock::load(loader, config, "encoder.mid_block"),
            conv_norm_out: GroupNorm::load(
                loader,
                "encoder.conv_norm_out",
                groups,
                deepest,
                EPSILON,
            ),
            conv_out: Conv2d::load_3x3(loader, "encoder.conv_out", deepest, moments),
        }
    }

    fn forward(&self, pixels_BCHW: &Tensor) -> Result<Tensor, TchError> {
        let mut x_BCHW = self.conv_in.forward(pixels_BCHW)?;
        for block in &self.down_blocks {
            x_BCHW = block.forward(x_BCHW)?;
        }
        let x_BCHW = self.mid_block.forward(&x_BCHW)?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x_BCHW)?)
    }
}

/// Latents to images.
#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(loader: &mut Loader<'_>, config: &VaeConfig) -> Self {
        let channels = &config.block_out_channels;
        let (first, deepest) = (config.first(), config.deepest());
        let (latents, pixels) = (config.latent_channels, config.out_channels);
        let groups = config.norm_num_groups;
        let befores = std::iter::once(&deepest).chain(channels.iter().rev());
        Self {
            conv_in: Conv2d::load_3x3(loader, "decoder.conv_in", latents, deepest),
            mid_block: MidBlock::load(loader, config, "decoder.mid_block"),
            up_blocks: befores
                .zip(channels.iter().rev())
                .enumerate()
                .map(|(index, (before, after))| {
                    let name = format!("decoder.up_blocks.{index}");
                    let doubles = index + 1 < channels.len();
                    UpBlock::load(loader, config, &name, [*before, *after], doubles)
                })
                .collect(),
            conv_norm_out: GroupNorm::load(loader, "decoder.conv_norm_out", groups, first, EPSILON),
            conv_out: Conv2d::load_3x3(loader, "decoder.conv_out", first, pixels),
        }
    }

    fn forward(&self, latents_BCHW: &Tensor) -> Result<Tensor, TchError> {
        let mut x_BCHW = self.mid_block.forward(&self.conv_in.forward(latents_BCHW)?)?;
        for block in &self.up_blocks {
            x_BCHW = block.forward(x_BCHW)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x_BCHW)?)
    }
}

fn check_shape(what: &str, x: &Tensor, channels: i64, factor: i64) -> Result<(), NetworkError> {
    let size = x.size();
    let fits = |side: i64| side > 0 && side % factor == 0;
    match size[..] {
        [batch, found, height, width]
            if batch > 0 && found == channels && fits(height) && fits(width) =>
        {
            Ok(())
        }
        _ => {
            let sides = match factor {
                1 => String::new(),
                _ => format!(" with sides that are multiples of {factor}"),
            };
            let reason = format!("expected {what} [B, {channels}, H, W]{sides}, found {size:?}");
            Err(NetworkError::Input { network: NETWORK, reason })
        }
    }
}

/// An error if the result is not finite; it says whether the input was.
fn check_finite((what, input): (&str, &Tensor), result: &Tensor) -> Result<(), NetworkError> {
    if is_finite(result)? {
        return Ok(());
    }
    let reason = if is_finite(input)? {
        format!("finite {what} became NaN or infinite inside\nhint: try --dtype f32")
    } else {
        format!("expected finite {what}, found NaN or infinite ones")
    };
    Err(NetworkError::Input { network: NETWORK, reason })
}

/// True if no number is NaN or infinite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}
