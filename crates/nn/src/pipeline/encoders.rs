//! The encoders of a pipeline: the autoencoder for images, and the text encoders.
//!
//! `B` batch, `L` tokens, `D` width of the text.

use tch::{Device, Kind, Tensor};

use super::files::unfit;
use super::{Family, PipelineFiles, refused};
use crate::device::Precision;
use crate::error::{ModelError, NetworkError};
use crate::text::{TextEncoder, TextEncoderConfig};
use crate::unet::UNetConfig;
use crate::vae::{Vae, VaeConfig};
use crate::weights::Weights;

/// Prompt embeddings, the texts as the UNet reads them; f32, on the pipeline's device.
#[derive(Debug)]
pub struct PromptEmbeds {
    /// The features of every token, `[B, L, D]`: `prompt_embeds` of diffusers' pipelines and
    /// `encoder_hidden_states` of its UNet.
    #[doc(alias = "prompt_embeds")]
    #[doc(alias = "encoder_hidden_states")]
    pub embeds_BLD: Tensor,
    /// One vector per text, `[B, P]`, for SDXL: `pooled_prompt_embeds`.
    #[doc(alias = "pooled_prompt_embeds")]
    pub pooled_BD: Option<Tensor>,
}

/// The networks of a pipeline, apart from its UNet. Who needs them now and then only can take them
/// off the device ([`Encoders::release`]).
#[derive(Debug)]
pub struct Encoders {
    /// The family of their pipeline.
    pub family: Family,
    vae: Option<Vae>,
    vae_config: VaeConfig,
    /// The text encoder; SDXL has two. None while they are released.
    pub text_encoders: Vec<TextEncoder>,
    files: PipelineFiles,
    /// The weights of the text encoders, with what adapters add to them.
    text_weights: Vec<Weights>,
    precision: Precision,
    /// Whether SDXL replaces an empty negative prompt by zeros.
    pub force_zeros_for_empty_prompt: bool,
    device: Device,
}

impl Encoders {
    /// Loads them for inference. In f16, the autoencoder computes in f32 if its configuration sets
    /// `force_upcast`. Of the UNet only the configuration is read, because all networks must fit
    /// each other.
    ///
    /// # Errors
    /// If a file cannot be read, a checkpoint does not fit its configuration, or the networks
    /// do not fit each other.
    pub fn load(
        files: &PipelineFiles,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        Self::load_beside(files, &files.unet_config()?, device, precision)
    }

    pub(super) fn load_beside(
        files: &PipelineFiles,
        unet: &UNetConfig,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let weights = files.text_encoders.iter().map(|network| Weights::open(&network.weights));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        Self::load_from(files, unet, weights, device, precision)
    }

    /// [`Encoders::load`] with these weights of the text encoders.
    pub(super) fn load_from(
        files: &PipelineFiles,
        unet: &UNetConfig,
        text_weights: Vec<Weights>,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let vae = VaeConfig::read(&files.vae.config)?;
        let texts = files.text_configs()?;
        check_fit(files, unet, &vae, &texts)?;
        let mut encoders = Self {
            family: files.family,
            vae: None,
            vae_config: vae,
            text_encoders: Vec::new(),
            force_zeros_for_empty_prompt: files.force_zeros_for_empty_prompt,
            device,
            files: files.clone(),
            text_weights,
            precision,
        };
        encoders.load_networks()?;
        Ok(encoders)
    }

    fn load_networks(&mut self) -> Result<(), ModelError> {
        let (device, precision) = (self.device, self.precision);
        let vae_weights = Weights::open(&self.files.vae.weights)?;
        let texts = self.files.text_configs()?;
        let text_encoders = self
            .text_weights
            .iter()
            .zip(&texts)
            .map(|(weights, config)| TextEncoder::load(config, weights, device, precision))
            .collect::<Result<_, _>>()?;
        self.vae = Some(Vae::load(&self.vae_config, &vae_weights, device, precision)?);
        self.text_encoders = text_encoders;
        Ok(())
    }

    /// Takes the networks off the device: their memory is free until [`Encoders::restore`].
    pub fn release(&mut self) {
        self.vae = None;
        self.text_encoders.clear();
    }

    /// Whether the networks are off the device.
    pub fn are_released(&self) -> bool {
        self.vae.is_none()
    }

    /// Loads the networks again from their files, if they were released.
    ///
    /// # Errors
    /// If a file cannot be read, or the device is out of memory.
    pub fn restore(&mut self) -> Result<(), ModelError> {
        if !self.are_released() {
            return Ok(());
        }
        self.load_networks()
    }

    /// The autoencoder.
    ///
    /// # Errors
    /// While the networks are released.
    pub fn vae(&self) -> Result<&Vae, NetworkError> {
        self.vae.as_ref().ok_or_else(|| refused("the autoencoder is off the device".to_owned()))
    }

    /// The configuration of the autoencoder.
    pub fn vae_config(&self) -> &VaeConfig {
        &self.vae_config
    }

    /// Their device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Encodes prompts: for each text encoder the token ids of its tokenizer, `[B, 77]` i64 with
    /// their padding.
    pub fn encode_prompt(&self, tokens: &[Tensor]) -> Result<PromptEmbeds, NetworkError> {
        self.check_tokens(tokens)?;
        let mut hidden = Vec::with_capacity(tokens.len());
        let mut pooled = None;
        for (encoder, tokens_BL) in self.text_encoders.iter().zip(tokens) {
            let encoding = encoder.encode(tokens_BL)?;
            match self.family {
                Family::StableDiffusion => hidden.push(encoding.hidden_states),
                Family::StableDiffusionXl => {
                    hidden.push(encoding.penultimate);
                    pooled = encoding.pooled;
                }
            }
        }
        Ok(PromptEmbeds { embeds_BLD: Tensor::f_cat(&hidden, -1)?, pooled_BD: pooled })
    }

    /// Encodes negative prompts; `empty` says that they are empty, which SDXL replaces by zeros if
    /// [`Encoders::force_zeros_for_empty_prompt`] is set.
    pub fn encode_negative_prompt(
        &self,
        tokens: &[Tensor],
        empty: bool,
    ) -> Result<PromptEmbeds, NetworkError> {
        if !(empty && self.force_zeros_for_empty_prompt) {
            return self.encode_prompt(tokens);
        }
        let (batch, length) = self.check_tokens(tokens)?;
        let configs = || self.text_encoders.iter().map(TextEncoder::config);
        let width: i64 = configs().map(|config| config.sizes.width).sum();
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, self.device));
        Ok(PromptEmbeds {
            embeds_BLD: zeros(&[batch, length, width])?,
            pooled_BD: configs()
                .find_map(|config| config.projection)
                .map(|length| zeros(&[batch, length]))
                .transpose()?,
        })
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

/// Checks that the networks of a directory, or of two, fit each other.
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
        format!(
            "the UNet reads text of width {}, the text encoders output {width}",
            unet.cross_attention_dim
        )
    } else if (unet.in_channels, unet.out_channels) != (latents, latents) {
        format!(
            "the UNet reads {} channels and outputs {}, the autoencoder has latents of {latents}",
            unet.in_channels, unet.out_channels
        )
    } else if (vae.in_channels, vae.out_channels) != (3, 3) {
        format!(
            "the autoencoder reads images of {} channels and outputs {}, expected 3",
            vae.in_channels, vae.out_channels
        )
    } else if xl != unet.pooled_width().is_some() {
        let added = if xl { "no addition_embed_type" } else { "an addition_embed_type" };
        format!("the UNet has {added}, and the pipeline is of {}", files.family)
    } else if xl && pooled != unet.pooled_width() {
        format!(
            "the UNet reads pooled embeddings of {} numbers, the second text encoder outputs {}",
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
