//! One run from noise to latents.

use tch::{Kind, TchError, Tensor};

use super::config::ScheduleConfig;
use super::ddim::Ddim;
use super::dpm_solver::DpmSolver;
use super::euler::Euler;
use super::kind::{SamplerKind, ScheduleError};
use super::pndm::Pndm;
use super::steps::StepTable;

#[derive(Debug)]
enum Method {
    Ddim(Ddim),
    Pndm(Pndm),
    Euler(Euler),
    DpmSolver(DpmSolver),
}

/// One run over a batch. Start with standard normal noise times
/// [`initial_noise_sigma`](Self::initial_noise_sigma). For every index of
/// [`timesteps`](Self::timesteps), in order, call the network with
/// [`scale_model_input`](Self::scale_model_input) of the sample, and pass its output to
/// [`step`](Self::step).
#[derive(Debug)]
pub struct Sampler {
    table: StepTable,
    method: Method,
    next: usize,
}

impl Sampler {
    /// A run of `steps` steps. The configuration may be of another class than the sampler; options
    /// that it omits have the default of the sampler's class.
    ///
    /// # Errors If `steps` is 0 or more than the trained timesteps, the betas are not a noise
    /// schedule, or the configuration has an option that this sampler does not implement.
    pub fn new(
        config: &ScheduleConfig,
        kind: SamplerKind,
        steps: usize,
    ) -> Result<Self, ScheduleError> {
        let (table, method) = match kind {
            SamplerKind::Ddim => {
                let (table, method) = Ddim::new(config, steps)?;
                (table, Method::Ddim(method))
            }
            SamplerKind::Pndm => {
                let (table, method) = Pndm::new(config, steps)?;
                (table, Method::Pndm(method))
            }
            SamplerKind::Euler => {
                let (table, method) = Euler::new(config, steps)?;
                (table, Method::Euler(method))
            }
            SamplerKind::DpmSolverPlusPlus2M => {
                let (table, method) = DpmSolver::new(config, steps)?;
                (table, Method::DpmSolver(method))
            }
        };
        Ok(Self { table, method, next: 0 })
    }

    /// The timestep of every call of the network, in order: one per step, except for PNDM.
    pub fn timesteps(&self) -> &[f64] {
        &self.table.timesteps
    }

    /// The noise of the sample in units of its signal, √((1−ᾱ)/ᾱ), at every call and after the last
    /// one.
    pub fn sigmas(&self) -> &[f32] {
        &self.table.sigmas
    }

    /// The factor of the standard normal noise at the start.
    pub fn initial_noise_sigma(&self) -> f64 {
        f64::from(self.table.initial_noise_sigma)
    }

    /// The input of the network at call `index`, with the shape of `sample`.
    pub fn scale_model_input(&self, sample: &Tensor, index: usize) -> Result<Tensor, TchError> {
        if index >= self.table.timesteps.len() {
            return Err(TchError::Shape(format!("the sampler has no call {index}")));
        }
        match &self.method {
            Method::Euler(method) => method.scale(sample, index),
            _ => Ok(sample.shallow_clone()),
        }
    }

    /// The sample after call `index`, f32, from the network's prediction and the sample before,
    /// which have the same shape. Make each call once and in order; after an error the run is over.
    ///
    /// # Errors If it is another call's turn, or shapes differ.
    pub fn step(
        &mut self,
        model_output: &Tensor,
        index: usize,
        sample: &Tensor,
    ) -> Result<Tensor, TchError> {
        if index != self.next || index >= self.table.timesteps.len() {
            return Err(TchError::Shape(format!(
                "call {index} of a sampler with {}, expected {}",
                self.table.timesteps.len(),
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
                let sigmas = &self.table.sigmas;
                method.step(model_output, index, (sigmas[index], sigmas[index + 1]), sample)
            }
            Method::DpmSolver(method) => method.step(model_output, index, sample),
        }
    }
}
