//! One run from noise to latents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use super::config::ScheduleConfig;
use super::ddim::Ddim;
use super::dpm_solver::DpmSolver;
use super::euler::Euler;
use super::pndm::Pndm;
use super::{ScheduleError, noise};

/// How noise is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplerKind {
    /// Denoising diffusion implicit models without added noise (η = 0).
    #[serde(rename = "ddim")]
    Ddim,
    /// Pseudo linear multistep, fourth order; with `skip_prk_steps` one call more than steps.
    #[serde(rename = "pndm")]
    Pndm,
    /// Euler's method without churn.
    #[serde(rename = "euler")]
    Euler,
    /// DPM-Solver++, second-order multistep, midpoint.
    #[serde(rename = "dpmpp-2m")]
    DpmSolverPlusPlus2M,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ddim, Self::Pndm, Self::Euler, Self::DpmSolverPlusPlus2M];
}

impl FromStr for SamplerKind {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| ScheduleError::UnknownSampler(text.to_owned()))
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::DpmSolverPlusPlus2M => "dpmpp-2m",
        })
    }
}

#[derive(Debug)]
enum Method {
    Ddim(Ddim),
    Pndm(Pndm),
    Euler(Euler),
    DpmSolver(DpmSolver),
}

/// What a method has to say of a run before it starts.
#[derive(Debug)]
pub(super) struct Plan {
    /// The timestep of every call of the network.
    pub(super) timesteps: Vec<f64>,
    /// √((1−ᾱ)/ᾱ) at every call, then what is left at the end.
    pub(super) sigmas: Vec<f32>,
    /// What unit noise is multiplied by.
    pub(super) initial_noise_sigma: f32,
}

/// One run over a batch: start from unit noise times
/// [`initial_noise_sigma`](Self::initial_noise_sigma), and for every index of
/// [`timesteps`](Self::timesteps), in order, give the network
/// [`scale_model_input`](Self::scale_model_input) of the sample and hand what it says to
/// [`step`](Self::step).
#[derive(Debug)]
pub struct Sampler {
    plan: Plan,
    method: Method,
    next: usize,
}

impl Sampler {
    /// A run of `steps` steps. The configuration may be of another class than the sampler; what it
    /// lacks then has the default of the sampler's class.
    ///
    /// # Errors Where `steps` is 0 or more than the trained timesteps, the betas are no noise
    /// schedule, or the configuration asks for what this sampler does not do.
    pub fn new(
        config: &ScheduleConfig,
        kind: SamplerKind,
        steps: usize,
    ) -> Result<Self, ScheduleError> {
        let (plan, method) = match kind {
            SamplerKind::Ddim => {
                let (plan, method) = Ddim::new(config, steps)?;
                (plan, Method::Ddim(method))
            }
            SamplerKind::Pndm => {
                let (plan, method) = Pndm::new(config, steps)?;
                (plan, Method::Pndm(method))
            }
            SamplerKind::Euler => {
                let (plan, method) = Euler::new(config, steps)?;
                (plan, Method::Euler(method))
            }
            SamplerKind::DpmSolverPlusPlus2M => {
                let (plan, method) = DpmSolver::new(config, steps)?;
                (plan, Method::DpmSolver(method))
            }
        };
        Ok(Self { plan, method, next: 0 })
    }

    /// The timestep of every call of the network, in order: as many as steps, but for PNDM.
    pub fn timesteps(&self) -> &[f64] {
        &self.plan.timesteps
    }

    /// The noise of the sample in parts of its signal, √((1−ᾱ)/ᾱ), at every call, and what is left
    /// after the last.
    pub fn sigmas(&self) -> &[f32] {
        &self.plan.sigmas
    }

    /// What unit noise is multiplied by to start.
    pub fn initial_noise_sigma(&self) -> f64 {
        f64::from(self.plan.initial_noise_sigma)
    }

    /// What the network is given in the place of `sample` at call `index`, of the same shape.
    ///
    /// # Errors
    /// Where there is no such call, or libtorch refuses.
    pub fn scale_model_input(&self, sample: &Tensor, index: usize) -> Result<Tensor, TchError> {
        if index >= self.plan.timesteps.len() {
            return Err(TchError::Shape(format!("the sampler has no call {index}")));
        }
        match &self.method {
            Method::Euler(method) => method.scale(sample, index),
            _ => Ok(sample.shallow_clone()),
        }
    }

    /// The sample after call `index`, f32, from what the network predicted and the sample before,
    /// of equal shapes. Calls are made once each and in order; after an error the run cannot go on.
    ///
    /// # Errors
    /// Where it is another call's turn, shapes differ, or libtorch refuses.
    pub fn step(
        &mut self,
        model_output: &Tensor,
        index: usize,
        sample: &Tensor,
    ) -> Result<Tensor, TchError> {
        if index != self.next || index >= self.plan.timesteps.len() {
            return Err(TchError::Shape(format!(
                "call {index} of a sampler with {}, expected {}",
                self.plan.timesteps.len(),
                self.next
            )));
        }
        if model_output.size() != sample.size() {
            return Err(TchError::Shape(format!(
                "the network gave {:?} for a sample of {:?}",
                model_output.size(),
                sample.size()
            )));
        }
        self.next += 1;
        let model_output = &model_output.f_to_kind(Kind::Float)?;
        let sample = &sample.f_to_kind(Kind::Float)?;
        match &mut self.method {
            Method::Ddim(method) => method.step(model_output, index, sample),
            Method::Pndm(method) => method.step(model_output, index, sample),
            Method::Euler(method) => {
                let sigmas = &self.plan.sigmas;
                method.step(model_output, index, (sigmas[index], sigmas[index + 1]), sample)
            }
            Method::DpmSolver(method) => method.step(model_output, index, sample),
        }
    }
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

/// Refuses an option that is not what the sampler does.
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

    /// From a timestep to another; a negative one is the end.
    pub(super) fn between(&self, now: f64, next: f64) -> Option<Alphas> {
        let at = |timestep: f64| self.alphas.get(timestep as usize).copied();
        Some(Alphas { now: at(now)?, next: if next < 0.0 { self.last } else { at(next)? } })
    }
}

/// Refuses steps with a weight that is not finite.
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
