//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models":
//! second order, multistep, midpoint. huggingface/diffusers
//! `src/diffusers/schedulers/scheduling_dpmsolver_multistep.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::config::{FinalSigmas, PredictionType, ScheduleConfig};
use super::kind::{SamplerKind, ScheduleError};
use super::noise;
use super::sigmas::{LEAST_ALPHA, sigmas, spaced_by_timesteps, stds};
use super::steps::{StepTable, finite, require, weighted_sum};

const KIND: SamplerKind = SamplerKind::DpmSolverPlusPlus2M;

/// `lower_order_final` has an effect below this number of steps.
const FEW_STEPS: usize = 15;

#[derive(Debug)]
pub(super) struct DpmSolver {
    steps: Vec<Step>,
    prediction_type: PredictionType,
    /// The latents that the previous call predicted.
    before: Option<Tensor>,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    /// √ᾱ and √(1−ᾱ) at the call.
    signal: f32,
    noise: f32,
    /// The weights of the sample and of the predicted latents.
    keep: f32,
    change: f32,
    /// The length of this step in units of the previous one; `None` for a first-order step.
    growth: Option<f32>,
}

impl DpmSolver {
    pub(super) fn new(
        config: &ScheduleConfig,
        steps: usize,
    ) -> Result<(StepTable, Self), ScheduleError> {
        refuse_others(config)?;
        let alphas = noise::alphas_cumprod_numbers(config, true, Some(LEAST_ALPHA))?;
        let timesteps = noise::timesteps(config, KIND, steps, visited(config, &alphas)?)?;
        let sigmas = sigmas(config, KIND, &alphas, &timesteps)?;
        let table = StepTable { timesteps, sigmas, initial_noise_sigma: 1.0 };
        let steps = Self::steps(config, &table)?;
        Ok((table, Self { steps, prediction_type: config.prediction_type, before: None }))
    }

    fn steps(config: &ScheduleConfig, table: &StepTable) -> Result<Vec<Step>, ScheduleError> {
        let signals: Vec<f32> = stds(&table.sigmas)?.into_iter().map(f32::recip).collect();
        let noises: Vec<f32> =
            table.sigmas.iter().zip(&signals).map(|(sigma, signal)| sigma * signal).collect();
        // libtorch computes the logarithm and the exponential: the standard library's differ in the
        // last bits.
        let lambdas = Tensor::f_from_slice(&signals)?
            .f_log()?
            .f_sub(&Tensor::f_from_slice(&noises)?.f_log()?)?;
        let lengths =
            lambdas.f_slice(0, 1, None::<i64>, 1)?.f_sub(&lambdas.f_slice(0, 0, -1, 1)?)?;
        let decays = Vec::<f32>::try_from(&lengths.f_neg()?.f_exp()?)?;
        let lengths = Vec::<f32>::try_from(&lengths)?;
        let count = table.timesteps.len();
        let first_order_at_end = config.euler_at_final
            || (config.lower_order_final && count < FEW_STEPS)
            || config.final_sigmas_type == FinalSigmas::Zero;
        (0..count)
            .map(|index| {
                let growth = if index == 0 || (index + 1 == count && first_order_at_end) {
                    None
                } else {
                    Some(1.0 / (lengths[index - 1] / lengths[index]))
                };
                let step = Step {
                    signal: signals[index],
                    noise: noises[index],
                    keep: noises[index + 1] / noises[index],
                    change: signals[index + 1] * (decays[index] - 1.0),
                    growth,
                };
                let weights = [step.keep, step.change, growth.unwrap_or(0.0)];
                finite(KIND, table.timesteps[index], &weights)?;
                Ok(step)
            })
            .collect()
    }

    pub(super) fn step(
        &mut self,
        model_output: &Tensor,
        index: usize,
        sample: &Tensor,
    ) -> Result<Tensor, TchError> {
        let step = self.steps[index];
        let original = match self.prediction_type {
            PredictionType::Epsilon => weighted_sum((1.0, sample), &[(-step.noise, model_output)])?
                .f_div_scalar(f64::from(step.signal))?,
            PredictionType::VPrediction => {
                weighted_sum((step.signal, sample), &[(-step.noise, model_output)])?
            }
        };
        let before = self.before.replace(original.shallow_clone());
        let first_order = [(-step.change, &original)];
        match (step.growth, before) {
            (Some(growth), Some(before)) => {
                let slope = original.f_sub(&before)?.f_mul_scalar(f64::from(growth))?;
                let [first] = first_order;
                weighted_sum((step.keep, sample), &[first, (-0.5 * step.change, &slope)])
            }
            _ => weighted_sum((step.keep, sample), &first_order),
        }
    }
}

fn refuse_others(config: &ScheduleConfig) -> Result<(), ScheduleError> {
    spaced_by_timesteps(config, KIND)?;
    let hint = "set it to false";
    require(KIND, "use_lu_lambdas", config.use_lu_lambdas, false, hint)?;
    require(KIND, "use_flow_sigmas", config.use_flow_sigmas, false, hint)?;
    require(KIND, "thresholding", config.thresholding, false, hint)?;
    require(KIND, "solver_order", config.solver_order, 2, "set it to 2")?;
    let algorithm = config.algorithm_type.as_str();
    require(KIND, "algorithm_type", algorithm, "dpmsolver++", "set it to dpmsolver++")?;
    // diffusers reads the names that DEIS and UniPC use as this one.
    let solver = match config.solver_type.as_str() {
        "logrho" | "bh1" | "bh2" => "midpoint",
        other => other,
    };
    require(KIND, "solver_type", solver, "midpoint", "set it to midpoint")?;
    match config.variance_type.as_deref() {
        Some(learned @ ("learned" | "learned_range")) => {
            let hint = "networks that predict variances are not implemented";
            require(KIND, "variance_type", learned, "", hint)
        }
        _ => Ok(()),
    }
}

/// How many timesteps remain without those of the lowest signal.
fn visited(config: &ScheduleConfig, alphas: &[f32]) -> Result<usize, ScheduleError> {
    let alphas = Tensor::f_from_slice(alphas)?;
    let signal = alphas.f_sqrt()?.f_log()?;
    let noise = alphas.f_rsub_scalar(1.0)?.f_sqrt()?.f_log()?;
    let lambdas = Vec::<f32>::try_from(&signal.f_sub(&noise)?)?;
    let least = config.lambda_min_clipped as f32;
    let visited = lambdas.iter().filter(|lambda| **lambda >= least).count();
    if visited == 0 {
        return Err(ScheduleError::Unsupported {
            option: "lambda_min_clipped",
            value: config.lambda_min_clipped.to_string(),
            sampler: KIND,
            hint: "no timestep is left; remove it",
        });
    }
    Ok(visited)
}
