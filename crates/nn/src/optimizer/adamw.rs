//! AdamW, as in pytorch/pytorch `torch/optim/adamw.py` at v2.11.0 with `fused=True`: decoupled
//! weight decay, and one pass over weights and moments.

use tch::{Kind, Tensor};

use super::{Optimizer, check, read_state};
use crate::error::{ModelError, NetworkError};
use crate::shim::{self, AdamWTensors};
use crate::weights::{Weights, WeightsError};

/// The parameters of AdamW. The defaults are those of the reference training and of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// The fraction of the first and of the second moment that a step keeps.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The fraction of a weight that a step with learning rate one removes.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 1e-2 }
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).
///
/// Its state is `PARAMETER.exp_avg` and `PARAMETER.exp_avg_sq` of the parameter's shape, and
/// `PARAMETER.step`, the updates so far.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first_moments: Vec<Tensor>,
    second_moments: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl AdamW {
    /// An optimizer of f32 leaves by name, before its first step.
    ///
    /// # Errors
    /// If a parameter is not f32, or memory runs out.
    pub fn new(parameters: &[(String, Tensor)], config: AdamWConfig) -> Result<Self, NetworkError> {
        check("AdamW", parameters)?;
        let zeros = || {
            let like = |(_, parameter): &(String, Tensor)| parameter.f_detach()?.f_zeros_like();
            parameters.iter().map(like).collect::<Result<Vec<_>, _>>()
        };
        let count = |(_, parameter): &(String, Tensor)| {
            Tensor::f_zeros([] as [i64; 0], (Kind::Float, parameter.device()))
        };
        Ok(Self {
            config,
            names: parameters.iter().map(|(name, _)| name.clone()).collect(),
            parameters: parameters.iter().map(|(_, value)| value.shallow_clone()).collect(),
            first_moments: zeros()?,
            second_moments: zeros()?,
            steps: parameters.iter().map(count).collect::<Result<_, _>>()?,
        })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, learning_rate: f64) -> Result<(), NetworkError> {
        let mut with_gradients: [Vec<Tensor>; 5] = Default::default();
        for index in 0..self.parameters.len() {
            let gradient = self.parameters[index].grad();
            if gradient.defined() {
                let tensors = [
                    self.parameters[index].shallow_clone(),
                    gradient,
                    self.first_moments[index].shallow_clone(),
                    self.second_moments[index].shallow_clone(),
                    self.steps[index].shallow_clone(),
                ];
                for (list, tensor) in with_gradients.iter_mut().zip(tensors) {
                    list.push(tensor);
                }
            }
        }
        let [parameters, gradients, first_moments, second_moments, steps] = &with_gradients;
        if parameters.is_empty() {
            return Ok(());
        }
        let tensors = AdamWTensors { parameters, gradients, first_moments, second_moments, steps };
        let AdamWConfig { betas, epsilon, weight_decay } = self.config;
        Ok(shim::fused_adamw(&tensors, learning_rate, betas, weight_decay, epsilon)?)
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::with_capacity(3 * self.names.len());
        for (index, name) in self.names.iter().enumerate() {
            for (part, tensors) in [
                ("exp_avg", &self.first_moments),
                ("exp_avg_sq", &self.second_moments),
                ("step", &self.steps),
            ] {
                state.push((format!("{name}.{part}"), tensors[index].shallow_clone()));
            }
        }
        state
    }

    fn load_state(&mut self, weights: &Weights) -> Result<(), ModelError> {
        let state = self.state();
        let found = read_state("AdamW", weights, &state)?;
        for ((_, mut own), stored) in state.into_iter().zip(&found) {
            own.f_copy_(stored).map_err(|source| {
                let file = weights.files().first().cloned().unwrap_or_default();
                WeightsError::Torch { file, source }
            })?;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), NetworkError> {
        for (_, mut tensor) in self.state() {
            let _ = tensor.f_zero_()?;
        }
        Ok(())
    }

    fn zero_grad(&mut self) -> Result<(), NetworkError> {
        Ok(shim::drop_gradients(&self.parameters)?)
    }
}
