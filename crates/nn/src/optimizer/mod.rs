//! The optimizers of the reference training, [`AdamW`] of PyTorch and [`Adafactor`] of
//! `transformers`, [`AdamW8bit`] of bitsandbytes for small cards, and the clipping of gradients
//! between the backward pass and the step.
//!
//! Weights are f32 tensors that steps change in place. An optimizer's state is tensors with names,
//! f32 or bytes, so that a safetensors file holds all of it. A parameter without a gradient keeps
//! its value and its state. Nothing here waits for the device.

mod adafactor;
mod adamw;
mod adamw8bit;
mod gradients;

use std::fmt;
use std::str::FromStr;

use runkit::text::quoted;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use adafactor::{Adafactor, AdafactorConfig};
pub use adamw::{AdamW, AdamWConfig};
pub use adamw8bit::{AdamW8bit, BLOCK, LEAST_NUMBERS, dynamic_map};
pub use gradients::FlatGradients;

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
    /// [`AdamW8bit`] with moments of 8 bits: 2 bytes of state per weight.
    Adamw8bit,
    /// [`Adafactor`] with a factored second moment: next to no state.
    Adafactor,
}

impl OptimizerKind {
    /// Every name that [`FromStr`] reads.
    pub const NAMES: [&'static str; 3] = ["adamw", "adamw8bit", "adafactor"];
}

/// The text is not the name of an optimizer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown optimizer {}, expected adamw, adamw8bit or adafactor", quoted(.0))]
pub struct UnknownOptimizer(String);

impl FromStr for OptimizerKind {
    type Err = UnknownOptimizer;

    fn from_str(text: &str) -> Result<Self, UnknownOptimizer> {
        match text {
            "adamw" => Ok(Self::Adamw),
            "adamw8bit" => Ok(Self::Adamw8bit),
            "adafactor" => Ok(Self::Adafactor),
            _ => Err(UnknownOptimizer(text.to_owned())),
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw8bit",
            Self::Adafactor => "adafactor",
        })
    }
}

/// Updates parameters by their gradients.
pub trait Optimizer {
    /// Updates every parameter that has a gradient, in place.
    fn step(&mut self, learning_rate: f64) -> Result<(), NetworkError>;

    /// The whole state by name, `PARAMETER.exp_avg` and so on: tensors that share the optimizer's
    /// memory, so that the next step changes them; f32, or bytes in u8.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Restores a state that [`Optimizer::state`] returned. Strict: every tensor must exist, have
    /// its shape and be finite, and one error lists all differences. After an error the state is
    /// unchanged.
    ///
    /// # Errors
    /// If the file is not the state of this optimizer for these parameters.
    fn load_state(&mut self, weights: &Weights) -> Result<(), ModelError>;

    /// Brings the state back to that before the first step.
    ///
    /// # Errors
    /// If libtorch fails.
    fn reset(&mut self) -> Result<(), NetworkError>;

    /// Drops the gradients: their memory is free until the next backward pass.
    fn zero_grad(&mut self) -> Result<(), NetworkError>;
}

/// The gradient norm, which is the 2-norm of all gradients together, as a number on their device.
/// If it exceeds `max_norm`, the gradients are scaled down to it in place. Without a gradient it is
/// zero. Computes what `torch.nn.utils.clip_grad_norm_(parameters, max_norm)` of PyTorch 2.11 does.
#[doc(alias = "gradient norm")]
#[doc(alias = "max_grad_norm")]
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

/// Drops the gradients of parameters: their memory is free until the next backward pass.
///
/// # Errors
/// If libtorch fails.
pub fn zero_grad(parameters: &[(String, Tensor)]) -> Result<(), NetworkError> {
    let parameters: Vec<Tensor> =
        parameters.iter().map(|(_, parameter)| parameter.shallow_clone()).collect();
    Ok(shim::drop_gradients(&parameters)?)
}

/// Rejects parameters that an optimizer would train wrongly: weights in half precision lose all
/// updates with a learning rate of 1e-6.
fn check(optimizer: &'static str, parameters: &[(String, Tensor)]) -> Result<(), NetworkError> {
    match parameters.iter().find(|(_, parameter)| parameter.kind() != Kind::Float) {
        None => Ok(()),
        Some((name, parameter)) => Err(NetworkError::Input {
            network: optimizer,
            reason: format!("expected f32 parameters, found {name:?} in {:?}", parameter.kind()),
        }),
    }
}

/// The tensors of a state file, in the order and in the dtypes of `wanted`. On a CPU they use the
/// file's memory, so that nothing changes before everything is known to fit.
fn read_state(
    optimizer: &str,
    weights: &Weights,
    wanted: &[(String, Tensor)],
) -> Result<Vec<Tensor>, ModelError> {
    let device = wanted.first().map_or(tch::Device::Cpu, |(_, first)| first.device());
    let mut loader = Loader::new(weights, format!("state of {optimizer}"), device, Precision::F32)
        .refusing_non_finite();
    let found =
        wanted.iter().map(|(name, own)| loader.tensor_in(name, &own.size(), own.kind())).collect();
    loader.finish(|_| false)?;
    // Bytes are indices: a number of another kind would become a wrong one without a word.
    let is_byte = |kind: Kind| kind == Kind::Uint8;
    for (name, own) in wanted {
        let stored = weights.kind(name);
        if stored.is_some_and(|stored| is_byte(stored) != is_byte(own.kind())) {
            let file = weights.files().first().cloned().unwrap_or_default();
            let reason = format!("tensor {name:?} is {stored:?}, expected {:?}", own.kind());
            return Err(crate::weights::WeightsError::Invalid { file, reason }.into());
        }
    }
    Ok(found)
}
