//! Noise schedules: how much noise a sample holds at each timestep, how noise is added for
//! training, and the samplers that take it away.
//!
//! [`ScheduleConfig`] is a `scheduler_config.json` of diffusers. [`TrainingSchedule`] noises
//! latents for training, and a [`Sampler`] is one run from noise to latents with any of the
//! [`SamplerKind`]s, whichever class the file names.
//!
//! Tables are computed in the order and the number types of huggingface/diffusers
//! `src/diffusers/schedulers/scheduling_*.py` at v0.42.1, so that they agree with its to the last
//! bits. An option that changes a number is followed, or refused by name.

mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod noise;
mod pndm;
mod sampler;
mod training;

use tch::TchError;

pub use config::{
    BetaSchedule, FinalSigmas, PredictionType, ScheduleClass, ScheduleConfig, TimestepSpacing,
};
pub use sampler::{Sampler, SamplerKind};
pub use training::TrainingSchedule;

/// A schedule cannot be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The text names no sampler.
    #[error("unknown sampler {0:?}, expected ddim, pndm, euler or dpmpp-2m")]
    UnknownSampler(String),
    /// The sampler cannot do what the configuration asks for.
    #[error(
        "the scheduler configuration sets {option} to {value}, which {sampler} does not do here\n\
         hint: {hint}"
    )]
    Unsupported {
        /// The option, as the file names it.
        option: &'static str,
        /// Its value.
        value: String,
        /// The sampler that was asked for.
        sampler: SamplerKind,
        /// What can be done instead.
        hint: &'static str,
    },
    /// The number of steps is impossible.
    #[error("{sampler} cannot take {steps} steps: {reason}")]
    Steps {
        /// The sampler that was asked for.
        sampler: SamplerKind,
        /// The number of steps.
        steps: usize,
        /// What is possible.
        reason: String,
    },
    /// The betas are no noise schedule.
    #[error("the scheduler configuration's {option} is no noise schedule: {reason}")]
    Betas {
        /// The option, as the file names it.
        option: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// A step would divide by zero.
    #[error(
        "{sampler} has no finite step at timestep {timestep}\n\
         hint: a sample that is all noise or none (rescale_betas_zero_snr, a beta of zero) needs \
         prediction_type v_prediction, another timestep_spacing, or another sampler"
    )]
    NotFinite {
        /// The sampler that was asked for.
        sampler: SamplerKind,
        /// Where.
        timestep: f64,
    },
    /// libtorch refused, most often for want of memory.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}
