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
mod kind;
mod noise;
mod pndm;
mod sampler;
mod sigmas;
mod steps;
mod training;

pub use config::{
    BetaSchedule, FinalSigmas, PredictionType, ScheduleClass, ScheduleConfig, TimestepSpacing,
};
pub use kind::{SamplerKind, ScheduleError};
pub use sampler::Sampler;
pub use training::TrainingSchedule;
