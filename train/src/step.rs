//! One micro-batch: examples become latents, noise and prompt embeddings; model and reference model
//! predict; the losses and their gradients follow.
//!
//! Both images of a pair get the same noise and the same timestep; the noise of the autoencoder's
//! posterior is sampled per image. Everything random is a function of the seed and the position of
//! the pair in the run ([`crate::randomness`]), so neither the micro-batch size nor a stop changes
//! it.
//!
//! Dimensions are named as in [`crate::micro_batch`]. A batch of `2P` holds the images 0 of all
//! pairs, then the images 1.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};
use nn::NetworkError;
use nn::device::upload;
use nn::optimizer::clip_grad_norm;
use nn::pipeline::{Family, Pipeline, PromptEmbeds};
use nn::rng;
use nn::schedule::{PredictionType, TrainingSchedule};
use nn::unet::{AddedConditions, UNet};
use tch::{Device, Kind, Tensor};

use crate::data::{Content, Example};
use crate::loss::{self, Losses, Objective, PairErrors};
pub use crate::micro_batch::MicroBatch;
use crate::model::{BaseModel, Networks};
use crate::preference::PreferenceTarget;
use crate::randomness::Choice;

/// Builds micro-batches from examples.
#[doc(alias = "collate")]
#[derive(Debug, Clone, Copy)]
pub struct MicroBatchBuilder<'run> {
    /// The model's configuration and tokenizers.
    pub base: &'run BaseModel,
    /// The seed of the run.
    pub seed: u64,
    /// The fraction of captions that are replaced by the empty one.
    pub caption_dropout: f64,
}

/// What model and reference model predict for a micro-batch.
#[derive(Debug)]
pub struct Predictions {
    /// The model's, `[2P, C, H, W]`, which may record gradients.
    pub model_2PCHW: Tensor,
    /// The reference's, `[2P, C, H, W]`; `None` if the loss has no reference model.
    pub reference_2PCHW: Option<Tensor>,
    /// Their errors.
    pub errors: PairErrors,
    /// z, `[P]`, or MaPO's logit.
    pub logits_P: Tensor,
    /// The loss of each pair, `[P]`, not weighted: for DPO softplus(z) − p·z.
    pub losses_P: Tensor,
    /// The losses of images 0 and of images 1, if the loss is one of single images.
    pub images_P: Option<[Tensor; 2]>,
}

/// What the reference model predicts for a micro-batch, `[2P, C, H, W]`, and its errors, `[2P]`.
pub type ReferencePrediction = (Tensor, Tensor);

impl MicroBatchBuilder<'_> {
    /// Builds a micro-batch for an optimizer step whose random scorer is `scorer`.
    ///
    /// # Errors
    /// If an image cannot be encoded; the error names the pairs.
    pub fn build(
        &self,
        networks: &Networks,
        examples: Vec<Example<PreferenceTarget>>,
        scorer: usize,
    ) -> Result<MicroBatch> {
        let Self { base, seed, caption_dropout } = *self;
        let device = networks.pipeline.device();
        let positions: Vec<u64> = examples.iter().map(|example| example.position).collect();
        let pair_ids: Vec<String> =
            examples.iter().map(|example| example.pair_id.clone()).collect();
        let (probability, weight): (Vec<f32>, Vec<f32>) =
            examples.iter().map(|example| example.label.at(scorer)).unzip();
        let dropped: Vec<bool> = positions
            .iter()
            .map(|position| Choice::CaptionDropout.happens(seed, *position, caption_dropout))
            .collect();
        let mut captions = Vec::with_capacity(examples.len());
        let mut contents = Vec::with_capacity(examples.len());
        for (example, dropped) in examples.into_iter().zip(&dropped) {
            captions.push((!dropped).then_some(example.caption));
            contents.push(example.content);
        }
        let naming = || format!("pairs {}", shown(&pair_ids));
        let (latents_PCHW, text) =
            self.encode(networks, &positions, contents, &captions).with_context(naming)?;
        let size = base.latent_size;
        for latents_PCHW in &latents_PCHW {
            let (expected, found) = (&size[..], latents_PCHW.size());
            ensure!(
                found.get(1..) == Some(expected),
                "pairs {}: expected latents {expected:?}, found {found:?}; hint: the cache was made at \
             another resolution",
                shown(&pair_ids)
            );
        }
        let noise_PCHW = self.standard_normal(Choice::Noise, &positions, 0, device)?;
        let count = networks.schedule.alphas_cumprod().size1()?;
        let timesteps: Vec<i64> = positions
            .iter()
            .map(|position| {
                let below =
                    Choice::Timestep.below(seed, *position, u64::try_from(count).unwrap_or(0));
                i64::try_from(below).unwrap_or(0)
            })
            .collect();
        let to_device = |numbers: &[f32]| upload(&Tensor::f_from_slice(numbers)?, device);
        Ok(MicroBatch {
            time_ids_P6: time_ids(networks, base.resolution, pair_ids.len())?,
            pair_ids,
            latents_PCHW,
            noise_PCHW,
            timesteps_P: upload(&Tensor::f_from_slice(&timesteps)?, device)?,
            text,
            probability_P: to_device(&probability)?,
            weight_P: to_device(&weight)?,
            weight: weight.iter().map(|weight| f64::from(*weight)).sum(),
        })
    }

    /// The latents of both images, and the prompt embeddings.
    fn encode(
        &self,
        networks: &Networks,
        positions: &[u64],
        contents: Vec<Content>,
        captions: &[Option<String>],
    ) -> Result<([Tensor; 2], PromptEmbeds)> {
        let base = self.base;
        let device = networks.pipeline.device();
        let resolution = base.resolution;
        let mut pixels: [Vec<Tensor>; 2] = [Vec::new(), Vec::new()];
        let mut means: [Vec<Tensor>; 2] = [Vec::new(), Vec::new()];
        let mut stds: [Vec<Tensor>; 2] = [Vec::new(), Vec::new()];
        let mut texts = Vec::new();
        for content in contents {
            match content {
                Content::Pixels(images) => {
                    for (pixels, image) in pixels.iter_mut().zip(images) {
                        let image = Tensor::f_from_slice(&image)?;
                        pixels.push(image.f_view([1, 3, resolution, resolution])?);
                    }
                }
                Content::Latents { mean, std, text } => {
                    for (all, one) in means.iter_mut().zip(mean) {
                        all.push(one.f_unsqueeze(0)?);
                    }
                    for (all, one) in stds.iter_mut().zip(std) {
                        all.push(one.f_unsqueeze(0)?);
                    }
                    texts.push(text);
                }
                Content::Skipped => bail!("a pair that is skipped cannot be encoded"),
            }
        }
        let (mean_2PCHW, std_2PCHW) = if means[0].is_empty() {
            let all: Vec<Tensor> = pixels.into_iter().flatten().collect();
            let posterior = networks.pipeline.encoders.vae()?.encode(&Tensor::f_cat(&all, 0)?)?;
            let std_2PCHW = posterior.std()?;
            (posterior.mean_BCHW, std_2PCHW)
        } else {
            let gathered = |parts: [Vec<Tensor>; 2]| {
                let all: Vec<Tensor> = parts.into_iter().flatten().collect();
                upload(&Tensor::f_cat(&all, 0)?, device)?.f_to_kind(Kind::Float)
            };
            (gathered(means)?, gathered(stds)?)
        };
        let noise = |image: u64| self.standard_normal(Choice::Posterior, positions, image, device);
        let noise_2PCHW = Tensor::f_cat(&[noise(0)?, noise(1)?], 0)?;
        let config = networks.pipeline.encoders.vae_config();
        let latents_2PCHW = mean_2PCHW
            .f_add(&std_2PCHW.f_mul(&noise_2PCHW)?)?
            .f_mul_scalar(config.scaling_factor)?;
        let pairs = i64::try_from(positions.len())?;
        let latents_PCHW =
            [latents_2PCHW.f_narrow(0, 0, pairs)?, latents_2PCHW.f_narrow(0, pairs, pairs)?];
        let text = if texts.is_empty() {
            encode_captions(base, &networks.pipeline, &networks.empty, captions)?
        } else {
            cached_captions(&networks.empty, &texts, captions)?
        };
        Ok((latents_PCHW, text))
    }

    /// Standard normal noise of each position, `[P, C, H, W]`.
    fn standard_normal(
        &self,
        choice: Choice,
        positions: &[u64],
        index: u64,
        device: Device,
    ) -> Result<Tensor> {
        let generate = |position: &u64| {
            rng::normal(choice.number(self.seed, *position, index), &self.base.latent_size)
        };
        let rows = positions.iter().map(generate).collect::<Result<Vec<_>, _>>()?;
        Ok(upload(&Tensor::f_stack(&rows, 0)?, device)?)
    }
}

/// The inputs of both networks for a micro-batch, and the target of their predictions.
#[derive(Debug)]
pub struct Inputs {
    noisy_2PCHW: Tensor,
    timesteps_2P: Tensor,
    text_2PLD: Tensor,
    added: Option<AddedConditions>,
    target_2PCHW: Tensor,
}

impl Inputs {
    /// Adds noise to the latents, and repeats what the images of a pair have in common.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn of(schedule: &TrainingSchedule, batch: &MicroBatch) -> Result<Self, NetworkError> {
        let twice = |tensor: &Tensor| Tensor::f_cat(&[tensor, tensor], 0);
        let [first_PCHW, second_PCHW] = &batch.latents_PCHW;
        let latents_2PCHW = Tensor::f_cat(&[first_PCHW, second_PCHW], 0)?;
        let noise_2PCHW = twice(&batch.noise_PCHW)?;
        let timesteps_2P = twice(&batch.timesteps_P)?;
        let noisy_2PCHW = schedule.add_noise(&latents_2PCHW, &noise_2PCHW, &timesteps_2P)?;
        let target_2PCHW = match schedule.prediction_type() {
            PredictionType::Epsilon => noise_2PCHW,
            PredictionType::VPrediction => {
                schedule.velocity(&latents_2PCHW, &noise_2PCHW, &timesteps_2P)?
            }
        };
        let added = match (&batch.text.pooled_BD, &batch.time_ids_P6) {
            (Some(pooled_PD), Some(time_ids_P6)) => Some(AddedConditions {
                pooled_BD: twice(pooled_PD)?,
                time_ids_B6: twice(time_ids_P6)?,
            }),
            _ => None,
        };
        let text_2PLD = twice(&batch.text.embeds_BLD)?;
        Ok(Self { noisy_2PCHW, timesteps_2P, text_2PLD, added, target_2PCHW })
    }

    /// A network's predictions, `[2P, C, H, W]`, and their mean squared errors, `[2P]`.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn predict(&self, network: &UNet) -> Result<(Tensor, Tensor), NetworkError> {
        let (noisy, times) = (&self.noisy_2PCHW, &self.timesteps_2P);
        let predicted_2PCHW =
            network.forward(noisy, times, &self.text_2PLD, self.added.as_ref())?;
        let errors_2P = loss::errors(&predicted_2PCHW, &self.target_2PCHW)?;
        Ok((predicted_2PCHW, errors_2P))
    }
}

/// Runs model and reference model on a micro-batch, and computes errors, logits z and losses. The
/// model's part records gradients, the reference model's does not.
///
/// # Errors
/// If a shape does not fit.
pub fn predict(
    model: &UNet,
    reference: &UNet,
    schedule: &TrainingSchedule,
    objective: &Objective,
    batch: &MicroBatch,
) -> Result<Predictions, NetworkError> {
    let inputs = Inputs::of(schedule, batch)?;
    // The reference goes first: its activations are freed before the model keeps its own for the
    // backward pass.
    let of_reference = match objective.uses_reference() {
        true => Some(inputs.predict(reference)?),
        false => None,
    };
    predict_beside(model, of_reference, &inputs, objective, batch)
}

/// [`predict`] for a reference model that has predicted already.
///
/// # Errors
/// If a shape does not fit.
pub fn predict_beside(
    model: &UNet,
    reference: Option<ReferencePrediction>,
    inputs: &Inputs,
    objective: &Objective,
    batch: &MicroBatch,
) -> Result<Predictions, NetworkError> {
    let (model_2PCHW, model_2P) = inputs.predict(model)?;
    let (reference_2PCHW, reference_2P) = match reference {
        Some((predicted_2PCHW, errors_2P)) => (Some(predicted_2PCHW), errors_2P),
        None => (None, model_2P.f_detach()?),
    };
    let errors = PairErrors::of(&model_2P, &reference_2P)?;
    let Losses { logits_P, losses_P, images_P } =
        objective.losses(&errors, &batch.probability_P)?;
    Ok(Predictions { model_2PCHW, reference_2PCHW, errors, logits_P, losses_P, images_P })
}

/// By how much the model's errors on all images of a micro-batch are below those of the reference
/// model, `[2P]`, and what the reference model predicts. Records no gradients.
///
/// # Errors
/// If a shape does not fit.
pub fn gains(
    model: &UNet,
    reference: &UNet,
    schedule: &TrainingSchedule,
    batch: &MicroBatch,
) -> Result<(Tensor, ReferencePrediction), NetworkError> {
    tch::no_grad(|| {
        let inputs = Inputs::of(schedule, batch)?;
        let of_reference = inputs.predict(reference)?;
        let (_, model_2P) = inputs.predict(model)?;
        Ok((of_reference.1.f_sub(&model_2P)?, of_reference))
    })
}

/// Gradient accumulation over the micro-batches of one optimizer step: the gradients of the
/// weighted mean of the losses of all its pairs.
///
/// ```text
/// let mut accumulation = Accumulation::new(batch_size);
/// for batch in micro_batches {
///     let predictions = predict(model, reference, schedule, objective, batch)?;
///     accumulation.add(batch, &predictions)?;
/// }
/// let norm = accumulation.finish(model.parameters(), max_grad_norm)?;
/// ```
#[doc(alias = "gradient_accumulation")]
#[doc(alias = "gradient_accumulation_steps")]
#[derive(Debug)]
pub struct Accumulation {
    /// The divisor of each loss before the backward pass: the number of pairs of the step.
    pairs: f64,
    /// The factor of each loss instead, for f16; the gradients are divided after they are summed.
    scale: Option<f64>,
    /// The sum of the pairs' weights so far.
    weight: f64,
}

impl Accumulation {
    /// An empty accumulation for a step of `batch_size` pairs.
    pub fn new(batch_size: u64) -> Self {
        Self { pairs: batch_size as f64, scale: None, weight: 0.0 }
    }

    /// Multiplies losses by `scale`. They are then not divided before the gradients are summed, so
    /// that f16 loses none of its range to the batch size.
    #[must_use]
    pub fn with_loss_scale(self, scale: f64) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// The same accumulation whose pairs, at all ranks, have this sum of weights.
    #[must_use]
    pub fn of_weight(self, weight: f64) -> Self {
        Self { weight, ..self }
    }

    /// The sum of the weights so far.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Runs the backward pass of a micro-batch, which adds to the gradients of the model's
    /// parameters.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn add(
        &mut self,
        batch: &MicroBatch,
        predictions: &Predictions,
    ) -> Result<(), NetworkError> {
        let loss = predictions.losses_P.f_mul(&batch.weight_P)?.f_sum(Kind::Float)?;
        let loss = match self.scale {
            Some(scale) => loss.f_mul_scalar(scale)?,
            None => loss.f_div_scalar(self.pairs)?,
        };
        loss.f_backward()?;
        self.weight += batch.weight;
        Ok(())
    }

    /// Brings the gradients to their final scale and clips their norm to `max_norm`, if there is
    /// one. Returns the gradient norm before clipping, a number on the device.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn finish(
        self,
        parameters: &[(String, Tensor)],
        max_norm: Option<f64>,
    ) -> Result<Tensor, NetworkError> {
        // Skipped pairs and weights other than 1 are known only now: turn the sum over `pairs` into
        // the weighted mean.
        let factor = match self.scale {
            Some(scale) => 1.0 / (scale * self.weight),
            None => self.pairs / self.weight,
        };
        if factor != 1.0 && self.weight > 0.0 {
            tch::no_grad(|| -> Result<(), NetworkError> {
                for (_, parameter) in parameters {
                    let mut gradient = parameter.grad();
                    if gradient.defined() {
                        let _ = gradient.f_mul_scalar_(factor)?;
                    }
                }
                Ok(())
            })?;
        }
        clip_grad_norm(parameters, max_norm)
    }
}

/// Encodes each distinct caption once; a dropped caption (`None`) is the empty one.
fn encode_captions(
    base: &BaseModel,
    pipeline: &Pipeline,
    empty: &PromptEmbeds,
    captions: &[Option<String>],
) -> Result<PromptEmbeds> {
    let mut distinct: Vec<&str> = Vec::new();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    // The empty caption comes after the distinct ones.
    let positions: Vec<Option<usize>> = captions
        .iter()
        .map(|caption| {
            let caption = caption.as_deref()?;
            Some(*numbers.entry(caption).or_insert_with(|| {
                distinct.push(caption);
                distinct.len() - 1
            }))
        })
        .collect();
    let encoded = match distinct.is_empty() {
        true => None,
        false => Some(pipeline.encode_prompt(&base.tokens(&distinct)?)?),
    };
    let rows: Vec<i64> = positions
        .iter()
        .map(|position| i64::try_from(position.unwrap_or(distinct.len())).unwrap_or(0))
        .collect();
    let device = pipeline.device();
    let rows = upload(&Tensor::f_from_slice(&rows)?, device)?;
    let gathered = |encoded: Option<&Tensor>, empty: &Tensor| -> Result<Tensor> {
        let parts: Vec<&Tensor> = encoded.into_iter().chain([empty]).collect();
        Ok(Tensor::f_cat(&parts, 0)?.f_index_select(0, &rows)?)
    };
    Ok(PromptEmbeds {
        embeds_BLD: gathered(encoded.as_ref().map(|text| &text.embeds_BLD), &empty.embeds_BLD)?,
        pooled_BD: match &empty.pooled_BD {
            None => None,
            Some(empty) => {
                Some(gathered(encoded.as_ref().and_then(|text| text.pooled_BD.as_ref()), empty)?)
            }
        },
    })
}

/// Prompt embeddings from a cache; a dropped caption (`None`) is the empty one.
fn cached_captions(
    empty: &PromptEmbeds,
    texts: &[PromptEmbeds],
    captions: &[Option<String>],
) -> Result<PromptEmbeds> {
    let device = empty.embeds_BLD.device();
    let rows = || {
        texts.iter().zip(captions).map(|(text, caption)| match caption {
            Some(_) => text,
            None => empty,
        })
    };
    let hidden =
        rows().map(|text| upload(&text.embeds_BLD, device)).collect::<Result<Vec<_>, _>>()?;
    let pooled = match &empty.pooled_BD {
        None => None,
        Some(_) => {
            let pooled = rows()
                .map(|text| text.pooled_BD.as_ref().map(|pooled| upload(pooled, device)))
                .collect::<Option<Result<Vec<_>, _>>>()
                .context("the cache holds no pooled prompt embeddings; hint: it was made with another model")??;
            Some(Tensor::f_cat(&pooled, 0)?)
        }
    };
    Ok(PromptEmbeds { embeds_BLD: Tensor::f_cat(&hidden, 0)?, pooled_BD: pooled })
}

/// SDXL's micro-conditioning: the resolution as original size and target size, no crop.
#[doc(alias = "add_time_ids")]
fn time_ids(networks: &Networks, resolution: i64, pairs: usize) -> Result<Option<Tensor>> {
    if networks.pipeline.family() != Family::StableDiffusionXl {
        return Ok(None);
    }
    let side = resolution as f32;
    let ids = Tensor::f_from_slice(&[side, side, 0.0, 0.0, side, side])?;
    let ids = ids.f_view([1, 6])?.f_expand([i64::try_from(pairs)?, 6], false)?;
    Ok(Some(upload(&ids.f_contiguous()?, networks.pipeline.device())?))
}

/// The first few pair ids, for messages.
pub(crate) fn shown(pair_ids: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = pair_ids.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if pair_ids.len() > SHOWN {
        text += &format!(" and {} more", pair_ids.len() - SHOWN);
    }
    text
}
