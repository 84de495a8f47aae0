//! Euler's method on the probability-flow equation in the noise level: Karras et al., "Elucidating
//! the Design Space of Diffusion-Based Generative Models", algorithm 2 without churn.
//! huggingface/diffusers `src/diffusers/schedulers/scheduling_euler_discrete.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::config::{PredictionType, ScheduleConfig, TimestepSpacing};
use super::kind::{SamplerKind, ScheduleError};
use super::noise;
use super::sigmas::{LEAST_ALPHA, sigmas, spaced_by_timesteps, stds};
use super::steps::{StepTable, require, weighted_sum};

const KIND: SamplerKind = SamplerKind::Euler;

#[derive(Debug)]
pub(super) struct Euler {
    prediction_type: PredictionType,
    /// √(σ² + 1) at every call.
    stds: Vec<f32>,
}

impl Euler {
    pub(super) fn new(
        config: &ScheduleConfig,
        steps: usize,
    ) -> Result<(StepTable, Self), ScheduleError> {
        spaced_by_timesteps(config, KIND)?;
        let interpolation = config.interpolation_type.as_str();
        require(KIND, "interpolation_type", interpolation, "linear", "set it to linear")?;
        // diffusers reads it with v_prediction only.
        if config.prediction_type == PredictionType::VPrediction {
            let timestep_type = config.timestep_type.as_str();
            require(KIND, "timestep_type", timestep_type, "discrete", "set it to discrete")?;
        }
        let timesteps = noise::timesteps(config, KIND, steps, config.num_train_timesteps)?;
        let alphas = noise::alphas_cumprod_numbers(config, true, Some(LEAST_ALPHA))?;
        let sigmas = sigmas(config, KIND, &alphas, &timesteps)?;
        let most = sigmas.iter().copied().fold(0.0, f32::max);
        let initial_noise_sigma = match config.timestep_spacing {
            Some(TimestepSpacing::Leading) => {
                let [std] = noise::sqrt([most * most + 1.0])?;
                std
            }
            _ => most,
        };
        let stds = stds(&sigmas)?;
        let method = Self { prediction_type: config.prediction_type, stds };
        Ok((StepTable { timesteps, sigmas, initial_noise_sigma }, method))
    }

    /// Scales a sample of variance 1 + σ² to the variance that the network was trained on.
    pub(super) fn scale(&self, sample: &Tensor, index: usize) -> Result<Tensor, TchError> {
        sample.f_div_scalar(f64::from(self.stds[index]))
    }

    pub(super) fn step(
        &self,
        model_output: &Tensor,
        index: usize,
        (now, next): (f32, f32),
        sample: &Tensor,
    ) -> Result<Tensor, TchError> {
        let original = match self.prediction_type {
            PredictionType::Epsilon => weighted_sum((1.0, sample), &[(-now, model_output)])?,
            PredictionType::VPrediction => model_output
                .f_mul_scalar(f64::from(-now / self.stds[index]))?
                .f_add(&sample.f_div_scalar(f64::from(now * now + 1.0))?)?,
        };
        let derivative = sample.f_sub(&original)?.f_div_scalar(f64::from(now))?;
        weighted_sum((1.0, sample), &[(next - now, &derivative)])
    }
}
