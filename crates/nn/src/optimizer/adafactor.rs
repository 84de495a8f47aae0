//! Adafactor, as in huggingface/transformers `src/transformers/optimization.py` at v5.23.0 with
//! `scale_parameter=False, relative_step=False, beta1=None`: the setting of the reference training
//! for SDXL, in which the caller alone decides the learning rate.

use tch::{Device, Kind, TchError, Tensor};

use super::{Optimizer, check, read_state};
use crate::error::{ModelError, NetworkError};
use crate::shim;
use crate::weights::{Weights, WeightsError};

/// The parameters of Adafactor. The defaults are those of `transformers`; the weight decay is that
/// of the reference training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdafactorConfig {
    /// Added to the squared gradient.
    pub epsilon: f64,
    /// The root mean square above which an update is scaled down to it.
    pub clip_threshold: f64,
    /// The second moment keeps `1 − tᵈ` of itself at step t, with this d.
    pub decay_rate: f64,
    /// The fraction of a weight that a step with learning rate one removes.
    pub weight_decay: f64,
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self { epsilon: 1e-30, clip_threshold: 1.0, decay_rate: -0.8, weight_decay: 1e-2 }
    }
}

/// Adam without the first moment and with the second one as a product of two small tensors (Shazeer
/// and Stern, arXiv:1804.04235).
///
/// Its state is, for a parameter of two or more dimensions, `PARAMETER.exp_avg_sq_row` and
/// `PARAMETER.exp_avg_sq_col`, which lack the last and the last but one dimension; for any other
/// `PARAMETER.exp_avg_sq`; and `PARAMETER.step`, the updates so far.
#[derive(Debug)]
pub struct Adafactor {
    config: AdafactorConfig,
    slots: Vec<Slot>,
}

/// A parameter and its state.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    moment: Moment,
    step: u32,
    /// The same number on the CPU, for the state.
    step_tensor: Tensor,
}

/// The second moment.
#[derive(Debug)]
enum Moment {
    /// Means over the last and over the last but one dimension.
    Factored {
        row: Tensor,
        column: Tensor,
    },
    Whole(Tensor),
}

impl Adafactor {
    /// An optimizer of f32 leaves by name, before its first step.
    ///
    /// # Errors
    /// If a parameter is not f32, or memory runs out.
    pub fn new(
        parameters: &[(String, Tensor)],
        config: AdafactorConfig,
    ) -> Result<Self, NetworkError> {
        check("Adafactor", parameters)?;
        let slot = |(name, parameter): &(String, Tensor)| -> Result<Slot, TchError> {
            let zeros = |size: &[i64]| Tensor::f_zeros(size, (Kind::Float, parameter.device()));
            let size = parameter.size();
            let moment = match size[..] {
                [ref leading @ .., rows, columns] => Moment::Factored {
                    row: zeros(&[leading, &[rows]].concat())?,
                    column: zeros(&[leading, &[columns]].concat())?,
                },
                _ => Moment::Whole(zeros(&size)?),
            };
            let step_tensor = Tensor::f_zeros([] as [i64; 0], (Kind::Float, Device::Cpu))?;
            let (name, parameter) = (name.clone(), parameter.shallow_clone());
            Ok(Slot { name, parameter, moment, step: 0, step_tensor })
        };
        Ok(Self { config, slots: parameters.iter().map(slot).collect::<Result<_, _>>()? })
    }
}

impl Slot {
    fn set_step(&mut self, step: u32) -> Result<(), TchError> {
        self.step = step;
        self.step_tensor.f_fill_(f64::from(step)).map(drop)
    }

    fn update(
        &mut self,
        gradient: &Tensor,
        config: &AdafactorConfig,
        learning_rate: f64,
    ) -> Result<(), TchError> {
        self.set_step(self.step + 1)?;
        let kept = 1.0 - f64::from(self.step).powf(config.decay_rate);
        let square = gradient.f_square()?.f_add_scalar_(config.epsilon)?;
        let mut update = match &mut self.moment {
            Moment::Factored { row, column } => {
                let mean = |dimension: i64| square.f_mean_dim(dimension, false, Kind::Float);
                shim::add_scaled(&mut row.f_mul_scalar_(kept)?, &mean(-1)?, 1.0 - kept)?;
                shim::add_scaled(&mut column.f_mul_scalar_(kept)?, &mean(-2)?, 1.0 - kept)?;
                let row = row.f_div(&row.f_mean_dim(-1, true, Kind::Float)?)?.f_rsqrt_()?;
                let column = column.f_unsqueeze(-2)?.f_rsqrt()?;
                row.f_unsqueeze(-1)?.f_mul(&column)?.f_mul_(gradient)?
            }
            Moment::Whole(moment) => {
                shim::add_scaled(&mut moment.f_mul_scalar_(kept)?, &square, 1.0 - kept)?;
                moment.f_rsqrt()?.f_mul_(gradient)?
            }
        };
        drop(square);
        let root_mean_square = update.f_norm()?.f_div_scalar((update.numel() as f64).sqrt())?;
        let excess = root_mean_square.f_div_scalar(config.clip_threshold)?.f_clamp_min_(1.0)?;
        let mut update = update.f_div_(&excess)?.f_mul_scalar_(learning_rate)?;
        if config.weight_decay != 0.0 {
            let decay = -config.weight_decay * learning_rate;
            let weights = self.parameter.shallow_clone();
            shim::add_scaled(&mut self.parameter, &weights, decay)?;
        }
        shim::add_scaled(&mut self.parameter, &update.f_neg_()?, 1.0)
    }
}

impl Optimizer for Adafactor {
    fn step(&mut self, learning_rate: f64) -> Result<(), NetworkError> {
        tch::no_grad(|| {
            for slot in &mut self.slots {
                let gradient = slot.parameter.grad();
                if gradient.defined() {
                    slot.update(&gradient, &self.config, learning_rate)?;
                }
            }
            Ok(())
        })
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::with_capacity(3 * self.slots.len());
        for Slot { name, moment, step_tensor, .. } in &self.slots {
            let mut push =
                |part: &str, tensor: Tensor| state.push((format!("{name}.{part}"), tensor));
            match moment {
                Moment::Factored { row, column } => {
                    push("exp_avg_sq_row", row.shallow_clone());
                    push("exp_avg_sq_col", column.shallow_clone());
                }
                Moment::Whole(moment) => push("exp_avg_sq", moment.shallow_clone()),
            }
            push("step", step_tensor.shallow_clone());
        }
        state
    }

    fn load_state(&mut self, weights: &Weights) -> Result<(), ModelError> {
        let file = || weights.files().first().cloned().unwrap_or_default();
        let torch = |source| WeightsError::Torch { file: file(), source };
        let own = self.state();
        let found = read_state("Adafactor", weights, &own)?;
        let mut steps = Vec::with_capacity(self.slots.len());
        for ((name, _), stored) in own.iter().zip(&found) {
            if name.ends_with(".step") {
                let step = stored.f_double_value(&[]).map_err(torch)?;
                if step.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&step) {
                    let reason = format!("tensor {name:?} is {step}, expected a count of steps");
                    return Err(WeightsError::Invalid { file: file(), reason }.into());
                }
                steps.push(step as u32);
            }
        }
        for ((name, mut own), stored) in own.into_iter().zip(&found) {
            if !name.ends_with(".step") {
                own.f_copy_(stored).map_err(torch)?;
            }
        }
        for (slot, step) in self.slots.iter_mut().zip(steps) {
            slot.set_step(step).map_err(torch)?;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), NetworkError> {
        for (_, mut tensor) in self.state() {
            let _ = tensor.f_zero_()?;
        }
        for slot in &mut self.slots {
            slot.set_step(0)?;
        }
        Ok(())
    }

    fn zero_grad(&mut self) -> Result<(), NetworkError> {
        let parameters: Vec<Tensor> =
            self.slots.iter().map(|slot| slot.parameter.shallow_clone()).collect();
        Ok(shim::drop_gradients(&parameters)?)
    }
}
