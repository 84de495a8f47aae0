//! Noise levels σ = √((1−ᾱ)/ᾱ), in which Euler and DPM-Solver++ make their steps.

use tch::{TchError, Tensor};

use super::config::{FinalSigmas, ScheduleConfig};
use super::kind::{SamplerKind, ScheduleError};
use super::noise;
use super::steps::{finite, require};

/// Replaces an ᾱ of zero at the last timestep: the smallest positive f16.
pub(super) const LEAST_ALPHA: f32 = 1.0 / (1 << 24) as f32;

/// Rejects noise levels with another spacing than that of the timesteps.
pub(super) fn spaced_by_timesteps(
    config: &ScheduleConfig,
    kind: SamplerKind,
) -> Result<(), ScheduleError> {
    let hint = "set it to false";
    require(kind, "use_karras_sigmas", config.use_karras_sigmas, false, hint)?;
    require(kind, "use_exponential_sigmas", config.use_exponential_sigmas, false, hint)?;
    require(kind, "use_beta_sigmas", config.use_beta_sigmas, false, hint)
}

/// The noise levels at `timesteps`, interpolated in f64 between whole ones, and the last one.
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

/// The std of a sample at each noise level, for latents with a std of 1.
pub(super) fn stds(sigmas: &[f32]) -> Result<Vec<f32>, TchError> {
    let variances: Vec<f32> = sigmas.iter().map(|sigma| sigma * sigma + 1.0).collect();
    Vec::try_from(&Tensor::f_from_slice(&variances)?.f_sqrt()?)
}
