//! Which optimizer follows the gradients, and its settings.

use nn::NetworkError;
use nn::optimizer::{Adafactor, AdafactorConfig, AdamW, AdamWConfig, Optimizer, OptimizerKind};
use tch::Tensor;

/// An optimizer and its settings.
#[derive(Debug, Clone, Copy)]
pub struct OptimizerConfig {
    /// Which one.
    pub kind: OptimizerKind,
    /// AdamW's decay rates of the moments.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// The weight decay, times the learning rate.
    pub weight_decay: f64,
}

impl OptimizerConfig {
    /// Makes the optimizer of `parameters`, without moments.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn build(
        self,
        parameters: &[(String, Tensor)],
    ) -> Result<Box<dyn Optimizer>, NetworkError> {
        let Self { kind, betas, epsilon, weight_decay } = self;
        Ok(match kind {
            OptimizerKind::Adamw => {
                let config = AdamWConfig { betas, epsilon, weight_decay };
                Box::new(AdamW::new(parameters, config)?)
            }
            OptimizerKind::Adafactor => {
                let config = AdafactorConfig { weight_decay, ..AdafactorConfig::default() };
                Box::new(Adafactor::new(parameters, config)?)
            }
        })
    }
}
