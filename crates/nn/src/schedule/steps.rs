//! Tools of all methods: the table of a run's steps, ᾱ at their ends, checks and weighted sums.

use std::fmt;

use tch::{TchError, Tensor};

use super::config::ScheduleConfig;
use super::kind::{SamplerKind, ScheduleError};
use super::noise;

/// What is known of a run before it starts.
#[derive(Debug)]
pub(super) struct StepTable {
    /// The timestep of every call of the network.
    pub(super) timesteps: Vec<f64>,
    /// √((1−ᾱ)/ᾱ) at every call, then at the end.
    pub(super) sigmas: Vec<f32>,
    /// The factor of the standard normal noise at the start.
    pub(super) initial_noise_sigma: f32,
}

/// `weight`·`tensor`, and the further terms added in order.
pub(super) fn weighted_sum(
    (weight, tensor): (f32, &Tensor),
    further: &[(f32, &Tensor)],
) -> Result<Tensor, TchError> {
    let first = tensor.f_mul_scalar(f64::from(weight))?;
    further.iter().try_fold(first, |sum, (weight, tensor)| {
        sum.f_add(&tensor.f_mul_scalar(f64::from(*weight))?)
    })
}

/// Rejects an option that the sampler does not implement.
pub(super) fn require<T: Copy + PartialEq + fmt::Display>(
    sampler: SamplerKind,
    option: &'static str,
    found: T,
    expected: T,
    hint: &'static str,
) -> Result<(), ScheduleError> {
    if found == expected {
        return Ok(());
    }
    Err(ScheduleError::Unsupported { option, value: found.to_string(), sampler, hint })
}

/// ᾱ at a call of the network and at the end of the step that follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Alphas {
    pub(super) now: f32,
    pub(super) next: f32,
}

/// ᾱ of all timesteps for DDIM and PNDM, whose last step ends at `last`.
pub(super) struct AlphaTable {
    alphas: Vec<f32>,
    last: f32,
}

impl AlphaTable {
    pub(super) fn new(
        config: &ScheduleConfig,
        zero_snr: bool,
        alpha_one: bool,
    ) -> Result<Self, ScheduleError> {
        let alphas = noise::alphas_cumprod_numbers(config, zero_snr, None)?;
        let last = if alpha_one { 1.0 } else { alphas.first().copied().unwrap_or(1.0) };
        Ok(Self { alphas, last })
    }

    /// ᾱ at two timesteps; a negative one is the end.
    pub(super) fn between(&self, now: f64, next: f64) -> Option<Alphas> {
        let at = |timestep: f64| self.alphas.get(timestep as usize).copied();
        Some(Alphas { now: at(now)?, next: if next < 0.0 { self.last } else { at(next)? } })
    }
}

/// Rejects steps with a weight that is not finite.
pub(super) fn finite(
    sampler: SamplerKind,
    timestep: f64,
    weights: &[f32],
) -> Result<(), ScheduleError> {
    if weights.iter().all(|weight| weight.is_finite()) {
        Ok(())
    } else {
        Err(ScheduleError::NotFinite { sampler, timestep })
    }
}
