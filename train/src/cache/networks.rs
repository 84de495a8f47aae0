//! The encoders of a model: the autoencoder and the text encoders, without the UNet.

use anyhow::{Context as _, Result};
use nn::NetworkError;
use nn::device::Precision;
use nn::pipeline::{Family, TextConditions};
use nn::text::{TextEncoder, TextEncoderConfig};
use nn::vae::{Vae, VaeConfig};
use nn::weights::Weights;
use schemas::latents::Moments;
use tch::{Device, TchError, Tensor};

use crate::model::BaseModel;

/// The encoders in memory.
pub(super) struct Encoders {
    vae: Vae,
    texts: Vec<TextEncoder>,
    family: Family,
}

impl Encoders {
    pub(super) fn load(base: &BaseModel, device: Device, precision: Precision) -> Result<Self> {
        let files = &base.files;
        let context = || format!("loading the encoders of {}", files.folder.display());
        let vae = VaeConfig::read(&files.vae.config)?;
        let weights = Weights::open(&files.vae.weights)?;
        let vae = Vae::load(&vae, &weights, device, precision).with_context(context)?;
        let texts = files.text_encoders.iter().map(|text| {
            let config = TextEncoderConfig::read(&text.config)?;
            let weights = Weights::open(&text.weights)?;
            Ok(TextEncoder::load(&config, &weights, device, precision)?)
        });
        let texts = texts.collect::<Result<Vec<_>>>().with_context(context)?;
        Ok(Self { vae, texts, family: files.family })
    }

    /// The latents of images, each of `[3, height, width]` numbers; with `flipped` of the images
    /// mirrored left to right.
    pub(super) fn latents(
        &self,
        images: &[&[f32]],
        (height, width): (i64, i64),
        flipped: bool,
    ) -> Result<Vec<Moments>, NetworkError> {
        let images = images
            .iter()
            .map(|image| Tensor::f_from_slice(image)?.f_view([3, height, width]))
            .collect::<Result<Vec<_>, TchError>>()?;
        let mut pixels_BCHW = Tensor::f_stack(&images, 0)?;
        if flipped {
            pixels_BCHW = pixels_BCHW.f_flip([3])?;
        }
        let posterior = self.vae.encode(&pixels_BCHW)?;
        let deviation_BCHW = posterior.standard_deviation()?;
        let mean_BCHW = posterior.mean_BCHW;
        (0..mean_BCHW.size4()?.0)
            .map(|index| {
                Ok(Moments {
                    mean: row(&mean_BCHW, index)?,
                    standard_deviation: row(&deviation_BCHW, index)?,
                })
            })
            .collect()
    }

    /// Texts as the UNet reads them, from the tokens of each text encoder, as
    /// [`nn::pipeline::Pipeline::encode_text`] encodes them.
    pub(super) fn texts(&self, tokens: &[Tensor]) -> Result<TextConditions, NetworkError> {
        let mut hidden = Vec::with_capacity(tokens.len());
        let mut pooled = None;
        for (encoder, tokens_BL) in self.texts.iter().zip(tokens) {
            let encoding = encoder.encode(tokens_BL)?;
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
}

/// The numbers of one row, on the CPU.
pub(super) fn row(batch: &Tensor, index: i64) -> Result<Vec<f32>, TchError> {
    let row = batch.f_get(index)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    Vec::<f32>::try_from(&row.f_flatten(0, -1)?)
}
