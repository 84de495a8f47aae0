//! Noise schedules (how much noise a sample holds at each timestep), adding noise for training, and
//! the samplers that denoise, which diffusers calls schedulers.
//!
//! [`ScheduleConfig`] is a `scheduler_config.json` of diffusers. [`TrainingSchedule`] adds noise to
//! latents for training. A [`Sampler`] is one run from noise to latents with any [`SamplerKind`],
//! whichever class the file names.
//!
//! Tables are computed in the order and the dtypes of huggingface/diffusers
//! `src/diffusers/schedulers/scheduling_*.py` at v0.42.1, and agree to the last bits. An option
//! that changes a number is implemented, or rejected by name.

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
