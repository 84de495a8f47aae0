//! Diffusion pipelines: a diffusers directory to pictures. Texts come as tokens; tokenizers are
//! another crate's.
//!
//! Behaviour follows huggingface/diffusers
//! `src/diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py` and
//! `stable_diffusion_xl/pipeline_stable_diffusion_xl.py` at v0.42.1, without safety checker and
//! watermark; pixels agree to one level of 255 in f32 (`tests/diffusion_pipeline.rs`).
//!
//! `B` batch, `L` tokens, `D` width of the text, `C` channels, `H` and `W` height and width.

mod files;

use std::ops::ControlFlow;

use tch::{Device, Kind, TchError, Tensor};

use files::unfit;
pub use files::{Family, NetworkFiles, PipelineFiles};

use crate::device::{Precision, inference};
use crate::error::{ModelError, NetworkError};
use crate::rng;
use crate::schedule::{Sampler, SamplerKind, ScheduleConfig};
use crate::text::{TextEncoder, TextEncoderConfig};
use crate::unet::{AddedConditions, UNet, UNetConfig};
use crate::vae::{Vae, VaeConfig, is_finite};
use crate::weights::Weights;

/// What is wrong with a request is said of this.
const PIPELINE: &str = "pipeline";

/// A pipeline in memory.
#[derive(Debug)]
pub struct Pipeline {
    /// Which pipeline it is.
    pub family: Family,
    /// The network that predicts noise.
    pub unet: UNet,
    /// The autoencoder.
    pub vae: Vae,
    /// The text encoder; two of SDXL.
    pub text_encoders: Vec<TextEncoder>,
    /// The noise schedule, as the pipeline's class in diffusers corrects it.
    pub schedule: ScheduleConfig,
    /// Whether SDXL takes zeros for an empty negative prompt.
    pub force_zeros_for_empty_prompt: bool,
    device: Device,
}

/// Texts as the UNet reads them; f32, on the pipeline's device.
#[derive(Debug)]
pub struct TextConditions {
    /// Every token's features, `[B, L, D]`.
    pub hidden_BLD: Tensor,
    /// One vector for each text, `[B, P]`, for SDXL.
    pub pooled_BD: Option<Tensor>,
}

/// Which pictures to draw.
#[derive(Debug, Clone, Copy)]
pub struct SampleRequest<'a> {
    /// What to draw: a row for each seed, or one for all.
    pub prompt: &'a TextConditions,
    /// What to keep away from: a row for each seed, or one for all. Not read without guidance.
    pub negative: &'a TextConditions,
    /// A seed for each picture, of a CPU generator of its own: neither the batch nor the device
    /// change the noise.
    pub seeds: &'a [u64],
    /// Denoising steps.
    pub steps: usize,
    /// How far to go beyond the prompt's prediction, away from the negative one's. With 1 or less
    /// there is no guidance, and each step costs half.
    pub guidance: f64,
    /// The solver.
    pub sampler: SamplerKind,
    /// Height of the pictures in pixels, a multiple of the autoencoder's factor.
    pub height: i64,
    /// Width of the pictures in pixels, a multiple of the autoencoder's factor.
    pub width: i64,
}

/// A picture: red, green and blue of 8 bits, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height · width · 3` bytes.
    pub pixels: Vec<u8>,
}

impl Pipeline {
    /// Loads all networks for inference. The autoencoder runs in f32 where f16 was asked for and
    /// its configuration says that is not enough.
    ///
    /// # Errors
    /// Where a file cannot be read, a checkpoint does not fit its configuration, or the networks
    /// do not fit each other.
    pub fn load(
        files: &PipelineFiles,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let unet_config = UNetConfig::read(&files.unet.config)?;
        Self::load_around(files, &unet_config, device, precision, |weights| {
            UNet::load(&unet_config, weights, device, precision)
        })
    }

    /// Loads all networks, the UNet for training: its weights are f32 and record gradients, and
    /// [`Pipeline::sample`] draws with the weights as they stand.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_for_training(
        files: &PipelineFiles,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let unet_config = UNetConfig::read(&files.unet.config)?;
        Self::load_around(files, &unet_config, device, precision, |weights| {
            UNet::load_for_training(&unet_config, weights, device, precision)
        })
    }

    fn load_around(
        files: &PipelineFiles,
        unet_config: &UNetConfig,
        device: Device,
        precision: Precision,
        load_unet: impl FnOnce(&Weights) -> Result<UNet, ModelError>,
    ) -> Result<Self, ModelError> {
        let vae_config = VaeConfig::read(&files.vae.config)?;
        let text_configs = files
            .text_encoders
            .iter()
            .map(|text| TextEncoderConfig::read(&text.config))
            .collect::<Result<Vec<_>, _>>()?;
        check_fit(files, unet_config, &vae_config, &text_configs)?;
        let schedule = files.schedule()?;
        let weights = |network: &NetworkFiles| Weights::open(&network.weights);
        Ok(Self {
            family: files.family,
            unet: load_unet(&weights(&files.unet)?)?,
            vae: Vae::load(&vae_config, &weights(&files.vae)?, device, precision)?,
            text_encoders: files
                .text_encoders
                .iter()
                .zip(&text_configs)
                .map(|(text, config)| TextEncoder::load(config, &weights(text)?, device, precision))
                .collect::<Result<_, _>>()?,
            schedule,
            force_zeros_for_empty_prompt: files.force_zeros_for_empty_prompt,
            device,
        })
    }

    /// The device it is on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Encodes texts: for each text encoder the tokens of its tokenizer, `[B, 77]` i64 with their
    /// padding.
    ///
    /// # Errors
    /// Where the tokens do not fit, or libtorch has not enough memory.
    pub fn encode_text(&self, tokens: &[Tensor]) -> Result<TextConditions, NetworkError> {
        self.encode_text_skipping(tokens, 0)
    }

    /// As [`Pipeline::encode_text`], with the features of `clip_skip` layers earlier.
    ///
    /// # Errors
    /// As [`Pipeline::encode_text`], and where there are not enough layers to skip.
    pub fn encode_text_skipping(
        &self,
        tokens: &[Tensor],
        clip_skip: usize,
    ) -> Result<TextConditions, NetworkError> {
        self.check_tokens(tokens)?;
        let mut hidden = Vec::with_capacity(tokens.len());
        let mut pooled = None;
        for (encoder, tokens_BL) in self.text_encoders.iter().zip(tokens) {
            let encoding = encoder.encode_skipping(tokens_BL, clip_skip)?;
            match self.family {
                Family::StableDiffusion => hidden.push(encoding.hidden_states),
                Family::StableDiffusionXl => {
                    hidden.push(encoding.penultimate);
                    pooled = encoding.pooled;
                }
            }
        }
        Ok(TextConditions { hidden_BLD: Tensor::f_cat(&hidden, -1)?, pooled_BD: pooled })
    }

    /// Encodes negative texts; `empty` says that they are the empty text, for which SDXL takes
    /// zeros where its directory says so.
    ///
    /// # Errors
    /// As [`Pipeline::encode_text`].
    pub fn encode_negative(
        &self,
        tokens: &[Tensor],
        empty: bool,
    ) -> Result<TextConditions, NetworkError> {
        if !(empty && self.force_zeros_for_empty_prompt) {
            return self.encode_text(tokens);
        }
        let (batch, length) = self.check_tokens(tokens)?;
        let configs = || self.text_encoders.iter().map(TextEncoder::config);
        let width: i64 = configs().map(|config| config.sizes.width).sum();
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, self.device));
        Ok(TextConditions {
            hidden_BLD: zeros(&[batch, length, width])?,
            pooled_BD: configs()
                .find_map(|config| config.projection)
                .map(|length| zeros(&[batch, length]))
                .transpose()?,
        })
    }

    /// Draws a picture for each seed. `progress` is told after each call of the UNet how many are
    /// done, and of how many; where it breaks, sampling ends with none.
    ///
    /// # Errors
    /// Where the request does not fit, numbers become NaN or infinite, or libtorch has not enough
    /// memory.
    pub fn sample(
        &self,
        request: &SampleRequest<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Picture>>, NetworkError> {
        let Some(latents_BCHW) = inference(|| self.denoise(request, progress))? else {
            return Ok(None);
        };
        if !is_finite(&latents_BCHW)? {
            let reason = "its predictions became NaN or infinite\nhint: try --dtype f32, or check \
                          the checkpoint";
            return Err(NetworkError::Input { network: "UNet", reason: reason.to_owned() });
        }
        inference(|| {
            let config = self.vae.config();
            let unscaled_BCHW = latents_BCHW.f_div_scalar(config.scaling_factor)?;
            pictures(&self.vae.decode(&unscaled_BCHW)?)
        })
        .map(Some)
    }

    /// Noise to latents, `[B, C, H/f, W/f]` f32; none where `progress` broke.
    fn denoise(
        &self,
        request: &SampleRequest<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Tensor>, NetworkError> {
        let SampleRequest { seeds, steps, guidance, height, width, .. } = *request;
        let factor = self.vae.config().downscale();
        if height < 1 || width < 1 || height % factor != 0 || width % factor != 0 {
            let reason = format!(
                "expected height and width to be multiples of {factor}, found {height} and {width}"
            );
            return Err(refused(reason));
        }
        if seeds.is_empty() || !guidance.is_finite() {
            let reason = "expected at least one seed, and a finite guidance".to_owned();
            return Err(refused(reason));
        }
        let mut sampler = Sampler::new(&self.schedule, request.sampler, steps)
            .map_err(|error| refused(error.to_string()))?;
        let guided = guidance > 1.0;
        let (text_BLD, added) = self.conditions(request, guided)?;

        let shape = [1, self.unet.config().in_channels, height / factor, width / factor];
        let noise = seeds
            .iter()
            .map(|seed| rng::normal(*seed, &shape))
            .collect::<Result<Vec<_>, NetworkError>>()?;
        let mut latents_BCHW = Tensor::f_cat(&noise, 0)?
            .f_to_device(self.device)?
            .f_mul_scalar(sampler.initial_noise_sigma())?;

        let rows = count(seeds.len()) * if guided { 2 } else { 1 };
        let text = self.unet.prepare_text(&text_BLD, rows)?;
        let timesteps = sampler.timesteps().to_vec();
        for (index, timestep) in timesteps.iter().enumerate() {
            let mut input_BCHW = sampler.scale_model_input(&latents_BCHW, index)?;
            if guided {
                input_BCHW = Tensor::f_cat(&[&input_BCHW, &input_BCHW], 0)?;
            }
            let options = (Kind::Float, self.device);
            let timestep_1 = Tensor::f_full([1], *timestep, options)?;
            let predicted_BCHW =
                self.unet.forward_prepared(&input_BCHW, &timestep_1, &text, added.as_ref())?;
            let predicted_BCHW =
                if guided { guide(&predicted_BCHW, guidance)? } else { predicted_BCHW };
            latents_BCHW = sampler.step(&predicted_BCHW, index, &latents_BCHW)?;
            if progress(index + 1, timesteps.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(latents_BCHW))
    }

    /// What the UNet is told, for each picture, or with guidance for the negative rows and then the
    /// others.
    fn conditions(
        &self,
        request: &SampleRequest<'_>,
        guided: bool,
    ) -> Result<(Tensor, Option<AddedConditions>), NetworkError> {
        let batch = count(request.seeds.len());
        let texts: &[&TextConditions] =
            if guided { &[request.negative, request.prompt] } else { &[request.prompt] };
        let hidden: Vec<&Tensor> = texts.iter().map(|text| &text.hidden_BLD).collect();
        let text_BLD = stack(&hidden, batch)?;
        if self.family == Family::StableDiffusion {
            return Ok((text_BLD, None));
        }
        let pooled: Option<Vec<&Tensor>> =
            texts.iter().map(|text| text.pooled_BD.as_ref()).collect();
        let pooled = pooled.ok_or_else(|| refused("SDXL needs pooled texts".to_owned()))?;
        let (height, width) = (request.height as f32, request.width as f32);
        // Original size, crop, target size.
        let ids_16 = Tensor::f_from_slice(&[height, width, 0.0, 0.0, height, width])?;
        let time_ids_B6 =
            ids_16.f_view([1, 6])?.f_expand([batch * count(texts.len()), 6], false)?;
        Ok((text_BLD, Some(AddedConditions { pooled_BD: stack(&pooled, batch)?, time_ids_B6 })))
    }

    /// The common shape of the tokens, `[B, L]`.
    fn check_tokens(&self, tokens: &[Tensor]) -> Result<(i64, i64), NetworkError> {
        let shapes: Vec<Vec<i64>> = tokens.iter().map(Tensor::size).collect();
        match shapes[..] {
            [ref first, ref rest @ ..]
                if shapes.len() == self.text_encoders.len()
                    && rest.iter().all(|other| other == first) =>
            {
                Ok(tokens[0].size2()?)
            }
            _ => {
                let encoders = self.text_encoders.len();
                Err(refused(format!(
                    "expected tokens [B, L] for {encoders} text encoders, found {shapes:?}"
                )))
            }
        }
    }
}

/// The prediction for the prompt, taken further away from the negative one: `[2B, C, H, W]` to
/// `[B, C, H, W]`.
fn guide(predicted_BCHW: &Tensor, guidance: f64) -> Result<Tensor, TchError> {
    let batch = predicted_BCHW.size4()?.0 / 2;
    let negative_BCHW = predicted_BCHW.f_narrow(0, 0, batch)?;
    let prompt_BCHW = predicted_BCHW.f_narrow(0, batch, batch)?;
    negative_BCHW.f_add(&prompt_BCHW.f_sub(&negative_BCHW)?.f_mul_scalar(guidance)?)
}

/// `parts` under each other, each with `batch` rows or one row that stands for all.
fn stack(parts: &[&Tensor], batch: i64) -> Result<Tensor, NetworkError> {
    let shapes: Vec<Vec<i64>> = parts.iter().map(|part| part.size()).collect();
    let rows_fit = |shape: &[i64]| shape.first().is_some_and(|rows| *rows == 1 || *rows == batch);
    let width = |shape: &[i64]| shape.get(1..).map(<[i64]>::to_vec);
    if !shapes.iter().all(|shape| rows_fit(shape) && width(shape) == width(&shapes[0])) {
        return Err(refused(format!(
            "expected texts of {batch} rows or one, as wide as each other, found {shapes:?}"
        )));
    }
    let rows = parts
        .iter()
        .map(|part| {
            let mut shape = part.size();
            shape[0] = batch;
            part.f_expand(shape, false)
        })
        .collect::<Result<Vec<_>, TchError>>()?;
    Ok(Tensor::f_cat(&rows, 0)?)
}

/// Numbers about in [-1, 1], `[B, 3, H, W]`, to bytes.
fn pictures(pixels_BCHW: &Tensor) -> Result<Vec<Picture>, NetworkError> {
    let (batch, channels, height, width) = pixels_BCHW.size4()?;
    let bytes_BHWC = pixels_BCHW
        .f_mul_scalar(0.5)?
        .f_add_scalar(0.5)?
        .f_clamp(0.0, 1.0)?
        .f_mul_scalar(255.0)?
        .f_round()?
        .f_to_kind(Kind::Uint8)?
        .f_permute([0, 2, 3, 1])?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?;
    (0..batch)
        .map(|index| {
            let picture = bytes_BHWC.f_get(index)?.f_reshape([height * width * channels])?;
            Ok(Picture {
                width: usize::try_from(width).unwrap_or(0),
                height: usize::try_from(height).unwrap_or(0),
                pixels: Vec::<u8>::try_from(&picture)?,
            })
        })
        .collect()
}

/// Checks that the networks of a directory, or of two, are made for each other.
fn check_fit(
    files: &PipelineFiles,
    unet: &UNetConfig,
    vae: &VaeConfig,
    texts: &[TextEncoderConfig],
) -> Result<(), ModelError> {
    let width: i64 = texts.iter().map(|text| text.sizes.width).sum();
    let pooled = texts.last().and_then(|text| text.projection);
    let xl = files.family == Family::StableDiffusionXl;
    let latents = vae.latent_channels;
    let reason = if unet.cross_attention_dim != width {
        format!("the UNet reads text of width {}, the text gives {width}", unet.cross_attention_dim)
    } else if (unet.in_channels, unet.out_channels) != (latents, latents) {
        format!(
            "the UNet takes {} channels and gives {}, the autoencoder has latents of {latents}",
            unet.in_channels, unet.out_channels
        )
    } else if vae.out_channels != 3 {
        format!("the autoencoder gives pictures of {} channels, expected 3", vae.out_channels)
    } else if xl != unet.pooled_width().is_some() {
        let added = if xl { "no addition_embed_type" } else { "an addition_embed_type" };
        format!("the UNet has {added}, and the pipeline is of {}", files.family)
    } else if xl && pooled.is_none() {
        "the second text encoder has no projection: expected \"architectures\": \
         [\"CLIPTextModelWithProjection\"] in its config.json"
            .to_owned()
    } else if xl && pooled != unet.pooled_width() {
        format!(
            "the UNet reads pooled texts of {} numbers, the second text encoder gives {}",
            unet.pooled_width().unwrap_or_default(),
            pooled.unwrap_or_default()
        )
    } else if vae.shift_factor.is_some_and(|shift| shift != 0.0) {
        "the autoencoder's shift_factor is not zero, which this family does not read".to_owned()
    } else {
        return Ok(());
    };
    let parts = format!("{reason}\nhint: the UNet is {}", files.unet.config.display());
    Err(unfit(&files.folder, parts))
}

fn refused(reason: String) -> NetworkError {
    NetworkError::Input { network: PIPELINE, reason }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
