//! The report of an optimizer step, and its metrics.

use serde_json::{Value, json};

use crate::statistics::Summary;

/// Values by name, in the order in which they are written.
pub type Values = Vec<(&'static str, Value)>;

/// The report of an optimizer step. Errors and z are those before its update.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The optimizer step, from 1.
    pub step: u64,
    /// The weighted mean of the losses.
    pub loss: f64,
    /// Implicit accuracy: the fraction of pairs where the sign of z agrees with the label; z = 0
    /// counts one half.
    pub accuracy: f64,
    /// z.
    pub logits: Summary,
    /// The model's mean error on the chosen and on the rejected images.
    pub model_errors: [f64; 2],
    /// The reference model's; `None` if the loss has no reference model.
    pub reference_errors: Option<[f64; 2]>,
    /// The gradient norm before clipping.
    pub grad_norm: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The step whose weights the reference model had.
    pub reference_step: u64,
    /// The factor of the loss, with `--loss-scale`.
    pub loss_scale: Option<f64>,
    /// Whether the gradients overflowed at that scale; then no weight has changed.
    pub overflow: bool,
    /// β, if it adapts.
    pub beta: Option<f64>,
    /// KTO's reference point, if the loss has one.
    pub reference_point: Option<f64>,
    /// Skipped pairs of the batch.
    pub skipped: u64,
    /// The distance of the updated model from the reference model ([`crate::reference::distance`]),
    /// before an update of the reference; `None` if it was not due.
    pub distance: Option<f64>,
    /// The index of the scorer that was sampled for the step.
    pub scorer: usize,
    /// Seconds.
    pub times: Times,
}

/// Where the seconds of a step went. On a GPU, `encode`, `forward` and `backward` only launch
/// kernels; `optimizer` waits for them, since it needs the first number.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// Waiting for the next examples.
    pub data: f64,
    /// Autoencoder and text encoders.
    pub encode: f64,
    /// Model and reference model.
    pub forward: f64,
    /// The backward pass.
    pub backward: f64,
    /// Waiting for other ranks, and summing gradients with them; 0 alone.
    pub exchange: f64,
    /// Gradient clipping, the update, and an update of the reference model.
    pub optimizer: f64,
}

impl Times {
    /// The sum.
    pub fn total(&self) -> f64 {
        self.data + self.encode + self.forward + self.backward + self.exchange + self.optimizer
    }

    /// The times as metrics.
    pub fn values(&self) -> Values {
        vec![
            ("time/data", json!(self.data)),
            ("time/encode", json!(self.encode)),
            ("time/forward", json!(self.forward)),
            ("time/backward", json!(self.backward)),
            ("time/exchange", json!(self.exchange)),
            ("time/optimizer", json!(self.optimizer)),
            ("time/step", json!(self.total())),
        ]
    }
}

impl StepReport {
    /// The report as metrics, without distance, scorer and times.
    pub fn values(&self) -> Values {
        let [q05, q25, q50, q75, q95] = self.logits.quantiles;
        let mut values = vec![
            ("loss", json!(self.loss)),
            ("accuracy", json!(self.accuracy)),
            ("lr", json!(self.learning_rate)),
            ("grad_norm", json!(self.grad_norm)),
            ("z/mean", json!(self.logits.mean)),
            ("z/std", json!(self.logits.std)),
            ("z/q05", json!(q05)),
            ("z/q25", json!(q25)),
            ("z/q50", json!(q50)),
            ("z/q75", json!(q75)),
            ("z/q95", json!(q95)),
            ("error/model_chosen", json!(self.model_errors[0])),
            ("error/model_rejected", json!(self.model_errors[1])),
        ];
        if let Some([chosen, rejected]) = self.reference_errors {
            values.extend([
                ("error/reference_chosen", json!(chosen)),
                ("error/reference_rejected", json!(rejected)),
                ("reference_step", json!(self.reference_step)),
            ]);
        }
        values.extend(self.beta.map(|beta| ("beta", json!(beta))));
        values.extend(self.reference_point.map(|point| ("reference_point", json!(point))));
        if let Some(loss_scale) = self.loss_scale {
            values.push(("loss_scale", json!(loss_scale)));
        }
        if self.overflow {
            values.push(("overflow", json!(1)));
        }
        if self.skipped > 0 {
            values.push(("skipped", json!(self.skipped)));
        }
        values
    }
}
