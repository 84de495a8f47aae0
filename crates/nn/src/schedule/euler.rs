//! Euler's method on the probability-flow equation in the noise level: Karras et al., "Elucidating
//! the Design Space of Diffusion-Based Generative Models", algorithm 2 without churn.
//! huggingface/diffusers `src/diffusers/schedulers/scheduling_euler_discrete.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::config::{FinalSigmas, PredictionType, ScheduleConfig, TimestepSpacing};
use super::sampler::{Plan, SamplerKind, finite, require, weighted_sum};
use super::{ScheduleError, noise};

const KIND: SamplerKind = SamplerKind::Euler;

/// ᾱ of the last timestep where it would be zero: the smallest positive f16.
pub(super) const LEAST_ALPHA: f32 = 1.0 / (1 << 24) as f32;

/// Refuses noise levels that are spaced in another way than by timesteps.
pub(super) fn spaced_by_timesteps(
    config: &ScheduleConfig,
    kind: SamplerKind,
) -> Result<(), ScheduleError> {
    let hint = "set it to false";
    require(kind, "use_karras_sigmas", config.use_karras_sigmas, false, hint)?;
    require(kind, "use_exponential_sigmas", config.use_exponential_sigmas, false, hint)?;
    require(kind, "use_beta_sigmas", config.use_beta_sigmas, false, hint)
}

/// The noise levels at `timesteps`, between whole ones interpolated in f64, and the last.
pub(super) fn sigmas(
    config: &ScheduleConfig,
    kind: SamplerKind,
    alphas: &[f32],
    timesteps: &[f64],
) -> Result<Vec<f32>, ScheduleError> {
    let table = noise::sigmas(alphas)?;
    let at = |index: usize| table.get(index).or(table.last()).copied().unwrap_or(0.0);
    let interpolated = timesteps.iter().map(|timestep| {
        let below = timestep.floor() as usize;
        let (low, high) = (f64::from(at(below)), f64::from(at(below + 1)));
        ((high - low) * (timestep - below as f64) + low) as f32
    });
    let last = match config.final_sigmas_type {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => at(0),
    };
    let sigmas: Vec<f32> = interpolated.chain([last]).collect();
    for (sigma, timestep) in sigmas.iter().zip(timesteps) {
        finite(kind, *timestep, &[*sigma, sigma.recip()])?;
    }
    Ok(sigmas)
}

#[derive(Debug)]
pub(super) struct Euler {
    prediction_type: PredictionType,
    /// √(σ² + 1) at every call.
    stds: Vec<f32>,
}

/// The std of a sample at each noise level of which the latents have 1.
pub(super) fn stds(sigmas: &[f32]) -> Result<Vec<f32>, TchError> {
    let variances: Vec<f32> = sigmas.iter().map(|sigma| sigma * sigma + 1.0).collect();
    Vec::try_from(&Tensor::f_from_slice(&variances)?.f_sqrt()?)
}

impl Euler {
    pub(super) fn new(
        config: &ScheduleConfig,
        steps: usize,
    ) -> Result<(Plan, Self), ScheduleError> {
        spaced_by_timesteps(config, KIND)?;
        let interpolation = config.interpolation_type.as_str();
        require(KIND, "interpolation_type", interpolation, "linear", "set it to linear")?;
        // Read with v_prediction alone.
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
        Ok((Plan { timesteps, sigmas, initial_noise_sigma }, method))
    }

    /// A sample of variance 1 + σ² with the variance that the network knows.
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
