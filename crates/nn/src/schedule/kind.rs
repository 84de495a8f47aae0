//! The samplers by name, and the errors of schedules.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::TchError;

/// A sampler: the method of denoising, which diffusers calls a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[doc(alias = "scheduler")]
pub enum SamplerKind {
    /// Denoising diffusion implicit models without added noise (η = 0).
    #[serde(rename = "ddim")]
    Ddim,
    /// Pseudo linear multistep of fourth order; with `skip_prk_steps` it makes one call more than
    /// steps.
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

/// A schedule or sampler cannot be built from a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The text is not the name of a sampler.
    #[error("unknown sampler {0:?}, expected ddim, pndm, euler or dpmpp-2m")]
    UnknownSampler(String),
    /// The sampler does not implement an option of the configuration.
    #[error(
        "the scheduler configuration sets {option} to {value}, which {sampler} does not do here\n\
         hint: {hint}"
    )]
    Unsupported {
        /// The option, as the file names it.
        option: &'static str,
        /// Its value.
        value: String,
        /// The sampler.
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
    /// The betas are not a noise schedule.
    #[error("the scheduler configuration's {option} is not a noise schedule: {reason}")]
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
    /// libtorch failed, most often because memory ran out.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}
