//! Optimizers, as the reference training uses them: [`AdamW`] of PyTorch and [`Adafactor`] of
//! `transformers`, and the clipping of gradients between the backward pass and the step.
//!
//! Weights are f32 leaves, changed in place; so are the moments, and every number of an optimizer's
//! state is an f32 tensor with a name, so that a safetensors file holds all of it. A parameter
//! without a gradient is left alone, its state too. Nothing here waits for the device.

mod adafactor;
mod adamw;

use std::fmt;
use std::str::FromStr;

use runkit::text::quoted;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use adafactor::{Adafactor, AdafactorConfig};
pub use adamw::{AdamW, AdamWConfig};

use crate::device::Precision;
use crate::error::{ModelError, NetworkError};
use crate::shim;
use crate::weights::{Loader, Weights};

/// Which optimizer updates the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// [`AdamW`] with weights and moments in f32: 8 bytes of state per weight.
    #[default]
    Adamw,
    /// [`Adafactor`] with a factored second moment: next to no state.
    Adafactor,
}

impl OptimizerKind {
    /// Every name that [`FromStr`] reads.
    pub const NAMES: [&'static str; 2] = ["adamw", "adafactor"];
}

/// The text is not the name of an optimizer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown optimizer {}, expected adamw or adafactor", quoted(.0))]
pub struct UnknownOptimizer(String);

impl FromStr for OptimizerKind {
    type Err = UnknownOptimizer;

    fn from_str(text: &str) -> Result<Self, UnknownOptimizer> {
        match text {
            "adamw" => Ok(Self::Adamw),
            "adafactor" => Ok(Self::Adafactor),
            _ => Err(UnknownOptimizer(text.to_owned())),
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Adamw => "adamw",
            Self::Adafactor => "adafactor",
        })
    }
}

/// Changes parameters by their gradients.
pub trait Optimizer {
    /// One update of every parameter that has a gradient, in place.
    ///
    /// # Errors
    /// Where libtorch refuses, most often for want of memory.
    fn step(&mut self, learning_rate: f64) -> Result<(), NetworkError>;

    /// The whole state by name, `PARAMETER.exp_avg` and so on: f32 tensors that share the optimizer's
    /// memory, so that the next step changes them.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Takes over a state as [`Optimizer::state`] gave it: strict, every tensor with its shape and
    /// finite, all differences in one error. After an error the state is as it was.
    ///
    /// # Errors
    /// Where the file is not the state of this optimizer for these parameters.
    fn load_state(&mut self, weights: &Weights) -> Result<(), ModelError>;

    /// Takes the gradients off the parameters: their memory is free until the next backward pass.
    ///
    /// # Errors
    /// Where libtorch refuses.
    fn zero_grad(&mut self) -> Result<(), NetworkError>;
}

/// The 2-norm of all gradients together, a number on their device, as
/// `torch.nn.utils.clip_grad_norm_(parameters, max_norm)` of PyTorch 2.11 computes it. Where it
/// exceeds `max_norm`, the gradients are scaled down to that in place. Without any gradient it is
/// zero.
///
/// # Errors
/// Where libtorch refuses, most often for want of memory.
pub fn clip_grad_norm(
    parameters: &[(String, Tensor)],
    max_norm: Option<f64>,
) -> Result<Tensor, NetworkError> {
    let gradients: Vec<Tensor> =
        parameters.iter().map(|(_, parameter)| parameter.grad()).filter(Tensor::defined).collect();
    if gradients.is_empty() {
        let device = parameters.first().map_or(tch::Device::Cpu, |(_, first)| first.device());
        return Ok(Tensor::f_zeros([] as [i64; 0], (Kind::Float, device))?);
    }
    Ok(shim::clip_gradients(&gradients, max_norm.unwrap_or(f64::INFINITY))?)
}

/// Refuses parameters that an optimizer would train wrongly: weights in half precision lose updates
/// of a learning rate of 1e-6 altogether.
fn check(optimizer: &'static str, parameters: &[(String, Tensor)]) -> Result<(), NetworkError> {
    match parameters.iter().find(|(_, parameter)| parameter.kind() != Kind::Float) {
        None => Ok(()),
        Some((name, parameter)) => Err(NetworkError::Input {
            network: optimizer,
            reason: format!("expected f32 parameters, found {name:?} in {:?}", parameter.kind()),
        }),
    }
}

/// The tensors of a state file, in the order of `wanted`: over the file's own memory on a CPU, so
/// that nothing is changed before everything is known to fit.
fn read_state(
    optimizer: &str,
    weights: &Weights,
    wanted: &[(String, Tensor)],
) -> Result<Vec<Tensor>, ModelError> {
    let device = wanted.first().map_or(tch::Device::Cpu, |(_, first)| first.device());
    let mut loader = Loader::new(weights, format!("state of {optimizer}"), device, Precision::F32)
        .refusing_non_finite();
    let found = wanted.iter().map(|(name, own)| loader.tensor(name, &own.size())).collect();
    loader.finish(|_| false)?;
    Ok(found)
}
