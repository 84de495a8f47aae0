//! Song et al., "Denoising Diffusion Implicit Models", with η = 0.
//! huggingface/diffusers `src/diffusers/schedulers/scheduling_ddim.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::config::{PredictionType, ScheduleConfig};
use super::kind::{SamplerKind, ScheduleError};
use super::noise;
use super::steps::{AlphaTable, Alphas, StepTable, finite, require, weighted_sum};

const KIND: SamplerKind = SamplerKind::Ddim;

#[derive(Debug)]
pub(super) struct Ddim {
    steps: Vec<Step>,
    prediction_type: PredictionType,
    clip: Option<f64>,
}

/// √ᾱ and √(1−ᾱ) at the call and after the step.
#[derive(Debug, Clone, Copy)]
struct Step {
    signal: f32,
    noise: f32,
    next_signal: f32,
    next_noise: f32,
}

impl Ddim {
    pub(super) fn new(
        config: &ScheduleConfig,
        steps: usize,
    ) -> Result<(StepTable, Self), ScheduleError> {
        require(KIND, "thresholding", config.thresholding, false, "set it to false")?;
        let trained = config.num_train_timesteps;
        let alpha_table = AlphaTable::new(config, true, config.set_alpha_to_one.unwrap_or(true))?;
        let timesteps = noise::timesteps(config, KIND, steps, trained)?;
        let stride = (trained / steps) as f64;
        let alphas: Vec<Alphas> = timesteps
            .iter()
            .map(|timestep| {
                let error = ScheduleError::NotFinite { sampler: KIND, timestep: *timestep };
                let alphas = alpha_table.between(*timestep, timestep - stride).ok_or(error)?;
                if config.prediction_type == PredictionType::Epsilon {
                    finite(KIND, *timestep, &[alphas.now.recip()])?;
                }
                Ok(alphas)
            })
            .collect::<Result<_, ScheduleError>>()?;
        let levels: Vec<f32> = alphas.iter().map(|alphas| alphas.now).collect();
        let levels =
            [levels, alphas.last().map(|alphas| alphas.next).into_iter().collect()].concat();
        let table =
            StepTable { timesteps, sigmas: noise::sigmas(&levels)?, initial_noise_sigma: 1.0 };
        let steps = alphas.into_iter().map(|Alphas { now, next }| {
            let [signal, noise, next_signal, next_noise] =
                noise::sqrt([now, 1.0 - now, next, 1.0 - next])?;
            Ok(Step { signal, noise, next_signal, next_noise })
        });
        let steps = steps.collect::<Result<_, TchError>>()?;
        let clip = config.clip_sample.then_some(config.clip_sample_range);
        Ok((table, Self { steps, prediction_type: config.prediction_type, clip }))
    }

    pub(super) fn step(
        &self,
        model_output: &Tensor,
        index: usize,
        sample: &Tensor,
    ) -> Result<Tensor, TchError> {
        let Step { signal, noise, next_signal, next_noise } = self.steps[index];
        let (mut original, epsilon) = match self.prediction_type {
            PredictionType::Epsilon => {
                let scaled = weighted_sum((1.0, sample), &[(-noise, model_output)])?;
                (scaled.f_div_scalar(f64::from(signal))?, model_output.shallow_clone())
            }
            PredictionType::VPrediction => (
                weighted_sum((signal, sample), &[(-noise, model_output)])?,
                weighted_sum((signal, model_output), &[(noise, sample)])?,
            ),
        };
        if let Some(range) = self.clip {
            original = original.f_clamp(-range, range)?;
        }
        weighted_sum((next_signal, &original), &[(next_noise, &epsilon)])
    }
}
