//! Diffusion pipelines: from a diffusers directory to images. Texts come as token ids; the crate
//! `media` has the tokenizers.
//!
//! Behaviour follows huggingface/diffusers
//! `src/diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py` and
//! `stable_diffusion_xl/pipeline_stable_diffusion_xl.py` at v0.42.1, without safety checker and
//! watermark; pixels agree to one level of 255 in f32 (`tests/diffusion_pipeline.rs`).
//!
//! `B` batch, `L` tokens, `D` width of the text, `C` channels, `H` and `W` height and width.

mod encoders;
mod files;
mod source;

use std::ops::ControlFlow;

use tch::{Device, Kind, TchError, Tensor};

pub use encoders::{Encoders, PromptEmbeds};
pub use files::{Family, NetworkFiles, PipelineFiles};
pub use source::{FetchedPipeline, FoundPipeline, PipelineSource};

use crate::device::{Precision, inference};
use crate::error::{ModelError, NetworkError};
use crate::lora::{LoraConfig, MergedPipeline, ScaledLora};
use crate::rng;
use crate::schedule::{Sampler, SamplerKind, ScheduleConfig};
use crate::unet::{AddedConditions, UNet, UNetConfig};
use crate::vae::is_finite;
use crate::weights::Weights;

/// The name in error messages about a request.
const PIPELINE: &str = "pipeline";

/// A pipeline in memory.
#[derive(Debug)]
pub struct Pipeline {
    /// The autoencoder and the text encoders.
    pub encoders: Encoders,
    /// The network that predicts noise.
    pub unet: UNet,
    /// The noise schedule, with the corrections of the pipeline's class in diffusers.
    pub schedule: ScheduleConfig,
}

/// Which images to generate.
#[derive(Debug, Clone, Copy)]
pub struct SampleRequest<'a> {
    /// The prompts: a row for each seed, or one for all.
    pub prompt: &'a PromptEmbeds,
    /// The negative prompts: a row for each seed, or one for all. Not read without guidance.
    #[doc(alias = "negative_prompt")]
    pub negative: &'a PromptEmbeds,
    /// A seed for each image. Each image has its own CPU generator, so neither the batch nor the
    /// device changes the noise.
    pub seeds: &'a [u64],
    /// Denoising steps.
    #[doc(alias = "num_inference_steps")]
    pub steps: usize,
    /// The scale of classifier-free guidance: how far a step moves from the negative prompt's
    /// prediction through that of the prompt. With 1 or less there is no guidance, and each step
    /// costs half.
    #[doc(alias = "guidance_scale")]
    #[doc(alias = "classifier-free guidance")]
    #[doc(alias = "cfg")]
    pub guidance: f64,
    /// The sampler, a scheduler of diffusers.
    #[doc(alias = "scheduler")]
    pub sampler: SamplerKind,
    /// Height of the images in pixels, a multiple of the autoencoder's factor.
    pub height: i64,
    /// Width of the images in pixels, a multiple of the autoencoder's factor.
    pub width: i64,
}

/// An RGB image with 8 bits per channel, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height · width · 3` bytes.
    pub pixels: Vec<u8>,
}

impl Pipeline {
    /// Loads all networks for inference. In f16, the autoencoder computes in f32 if its
    /// configuration sets `force_upcast`.
    ///
    /// # Errors
    /// If a file cannot be read, a checkpoint does not fit its configuration, or the networks
    /// do not fit each other.
    pub fn load(
        files: &PipelineFiles,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        Self::load_with(files, &[], device, precision)
    }

    /// [`Pipeline::load`] with adapters, which are added to the weights in this order.
    ///
    /// # Errors
    /// As [`Pipeline::load`], and if some of a file of adapters fits no layer.
    #[doc(alias = "load_lora_weights")]
    #[doc(alias = "fuse_lora")]
    pub fn load_with(
        files: &PipelineFiles,
        loras: &[ScaledLora],
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let unet_config = files.unet_config()?;
        let MergedPipeline { unet, text_encoders, .. } = MergedPipeline::open(files, loras)?;
        let schedule = files.schedule()?;
        let encoders = Encoders::load_from(files, &unet_config, text_encoders, device, precision)?;
        let unet = UNet::load(&unet_config, &unet, device, precision)?;
        Ok(Self { encoders, unet, schedule })
    }

    /// Loads all networks, the UNet for training: its weights are f32 and record gradients; with
    /// `checkpointing`, it takes less memory ([`UNet::load_for_checkpointing`]).
    /// [`Pipeline::sample`] uses the current weights.
    pub fn load_for_training(
        files: &PipelineFiles,
        checkpointing: bool,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let unet_config = files.unet_config()?;
        let load = match checkpointing {
            true => UNet::load_for_checkpointing,
            false => UNet::load_for_training,
        };
        Self::load_around(files, &unet_config, device, precision, &|weights| {
            load(&unet_config, weights, device, precision)
        })
    }

    /// Loads all networks, the UNet for training of adapters ([`UNet::load_with_adapters`]).
    pub fn load_with_adapters(
        files: &PipelineFiles,
        lora: &LoraConfig,
        stored: Option<&Weights>,
        seed: &dyn Fn(u64) -> u64,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let unet_config = files.unet_config()?;
        Self::load_around(files, &unet_config, device, precision, &|weights| {
            UNet::load_with_adapters(&unet_config, weights, lora, stored, seed, device, precision)
        })
    }

    fn load_around(
        files: &PipelineFiles,
        unet_config: &UNetConfig,
        device: Device,
        precision: Precision,
        load_unet: &dyn Fn(&Weights) -> Result<UNet, ModelError>,
    ) -> Result<Self, ModelError> {
        let schedule = files.schedule()?;
        let encoders = Encoders::load_beside(files, unet_config, device, precision)?;
        let unet = load_unet(&Weights::open(&files.unet.weights)?)?;
        Ok(Self { encoders, unet, schedule })
    }

    /// The family of the pipeline.
    pub fn family(&self) -> Family {
        self.encoders.family
    }

    /// Its device.
    pub fn device(&self) -> Device {
        self.encoders.device()
    }

    /// See [`Encoders::encode_prompt`].
    pub fn encode_prompt(&self, tokens: &[Tensor]) -> Result<PromptEmbeds, NetworkError> {
        self.encoders.encode_prompt(tokens)
    }

    /// See [`Encoders::encode_negative_prompt`].
    pub fn encode_negative_prompt(
        &self,
        tokens: &[Tensor],
        empty: bool,
    ) -> Result<PromptEmbeds, NetworkError> {
        self.encoders.encode_negative_prompt(tokens, empty)
    }

    /// Generates an image for each seed. After each call of the UNet, `progress` receives the
    /// number of calls done and in all. If it breaks, sampling stops and returns `None`.
    ///
    /// # Errors If the request does not fit the pipeline, numbers become NaN or infinite, or memory
    /// runs out.
    pub fn sample(
        &self,
        request: &SampleRequest<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Image>>, NetworkError> {
        let Some(latents_BCHW) = inference(|| self.denoise(request, progress))? else {
            return Ok(None);
        };
        if !is_finite(&latents_BCHW)? {
            let reason = "its predictions became NaN or infinite\nhint: try --dtype f32, or check \
                          the checkpoint";
            return Err(NetworkError::Input { network: "UNet", reason: reason.to_owned() });
        }
        inference(|| {
            let config = self.encoders.vae_config();
            let unscaled_BCHW = latents_BCHW.f_div_scalar(config.scaling_factor)?;
            images(&self.encoders.vae()?.decode(&unscaled_BCHW)?)
        })
        .map(Some)
    }

    /// Denoises random latents to `[B, C, H/f, W/f]` f32; `None` if `progress` breaks.
    fn denoise(
        &self,
        request: &SampleRequest<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Tensor>, NetworkError> {
        let SampleRequest { seeds, steps, guidance, height, width, .. } = *request;
        let factor = self.encoders.vae_config().downscale();
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
            .f_to_device(self.device())?
            .f_mul_scalar(sampler.initial_noise_sigma())?;

        let rows = count(seeds.len()) * if guided { 2 } else { 1 };
        let text = self.unet.project_text(&text_BLD, rows)?;
        let timesteps = sampler.timesteps().to_vec();
        for (index, timestep) in timesteps.iter().enumerate() {
            let mut input_BCHW = sampler.scale_model_input(&latents_BCHW, index)?;
            if guided {
                input_BCHW = Tensor::f_cat(&[&input_BCHW, &input_BCHW], 0)?;
            }
            let options = (Kind::Float, self.device());
            let timestep_1 = Tensor::f_full([1], *timestep, options)?;
            let predicted_BCHW =
                self.unet.forward_projected(&input_BCHW, &timestep_1, &text, added.as_ref())?;
            let predicted_BCHW =
                if guided { guide(&predicted_BCHW, guidance)? } else { predicted_BCHW };
            latents_BCHW = sampler.step(&predicted_BCHW, index, &latents_BCHW)?;
            if progress(index + 1, timesteps.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(latents_BCHW))
    }

    /// The conditions of the UNet for each image; with guidance, those of the negative prompts come
    /// first.
    fn conditions(
        &self,
        request: &SampleRequest<'_>,
        guided: bool,
    ) -> Result<(Tensor, Option<AddedConditions>), NetworkError> {
        let batch = count(request.seeds.len());
        let texts: &[&PromptEmbeds] =
            if guided { &[request.negative, request.prompt] } else { &[request.prompt] };
        let hidden: Vec<&Tensor> = texts.iter().map(|text| &text.embeds_BLD).collect();
        let text_BLD = stack(&hidden, batch)?;
        if self.encoders.family == Family::StableDiffusion {
            return Ok((text_BLD, None));
        }
        let pooled: Option<Vec<&Tensor>> =
            texts.iter().map(|text| text.pooled_BD.as_ref()).collect();
        let pooled =
            pooled.ok_or_else(|| refused("SDXL needs pooled prompt embeddings".to_owned()))?;
        let (height, width) = (request.height as f32, request.width as f32);
        // Original size, crop, target size.
        let ids_16 = Tensor::f_from_slice(&[height, width, 0.0, 0.0, height, width])?;
        let time_ids_B6 =
            ids_16.f_view([1, 6])?.f_expand([batch * count(texts.len()), 6], false)?;
        Ok((text_BLD, Some(AddedConditions { pooled_BD: stack(&pooled, batch)?, time_ids_B6 })))
    }
}

/// Classifier-free guidance: moves from the prediction for the negative prompt to that for the
/// prompt and beyond. `[2B, C, H, W]` to `[B, C, H, W]`.
fn guide(predicted_BCHW: &Tensor, guidance: f64) -> Result<Tensor, TchError> {
    let batch = predicted_BCHW.size4()?.0 / 2;
    let negative_BCHW = predicted_BCHW.f_narrow(0, 0, batch)?;
    let prompt_BCHW = predicted_BCHW.f_narrow(0, batch, batch)?;
    negative_BCHW.f_add(&prompt_BCHW.f_sub(&negative_BCHW)?.f_mul_scalar(guidance)?)
}

/// Concatenates `parts`, each with `batch` rows or one row for all.
fn stack(parts: &[&Tensor], batch: i64) -> Result<Tensor, NetworkError> {
    let shapes: Vec<Vec<i64>> = parts.iter().map(|part| part.size()).collect();
    let rows_fit = |shape: &[i64]| shape.first().is_some_and(|rows| *rows == 1 || *rows == batch);
    let width = |shape: &[i64]| shape.get(1..).map(<[i64]>::to_vec);
    if !shapes.iter().all(|shape| rows_fit(shape) && width(shape) == width(&shapes[0])) {
        return Err(refused(format!(
            "expected prompt embeddings of {batch} rows or one, of equal shape, found {shapes:?}"
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
fn images(pixels_BCHW: &Tensor) -> Result<Vec<Image>, NetworkError> {
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
            let image = bytes_BHWC.f_get(index)?.f_reshape([height * width * channels])?;
            Ok(Image {
                width: usize::try_from(width).unwrap_or(0),
                height: usize::try_from(height).unwrap_or(0),
                pixels: Vec::<u8>::try_from(&image)?,
            })
        })
        .collect()
}

fn refused(reason: String) -> NetworkError {
    NetworkError::Input { network: PIPELINE, reason }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
