//! What is known of a step, as metrics hold it.

use serde_json::{Value, json};

use crate::statistics::Summary;

/// Values by name, in the order in which they are written.
pub type Values = Vec<(&'static str, Value)>;

/// What is known of a step. Errors and z are those before its update.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The optimizer step, from 1.
    pub step: u64,
    /// The weighted mean of the losses.
    pub loss: f64,
    /// The share of pairs on which the model sides with the labels, ties one half.
    pub accuracy: f64,
    /// z.
    pub logits: Summary,
    /// The model's mean error on the better images and on the others.
    pub model_errors: [f64; 2],
    /// The reference's.
    pub reference_errors: [f64; 2],
    /// The norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The step whose weights the reference had.
    pub reference_step: u64,
    /// What the loss was multiplied by, with `--loss-scale`.
    pub loss_scale: Option<f64>,
    /// Whether the gradients overflowed at that scale, so that no weight changed.
    pub overflow: bool,
    /// Pairs of the batch that were skipped.
    pub skipped: u64,
    /// How far the update took the model from the reference ([`crate::reference::distance`]), before the
    /// reference may have become the model; where it was to be measured.
    pub distance: Option<f64>,
    /// The scorer whose turn it was.
    pub scorer: usize,
    /// Seconds.
    pub times: Times,
}

/// Where the seconds of a step went. On a GPU work is only begun in `encode`, `forward` and
/// `backward`, and waited for where the first number is needed, in `optimizer`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// Waiting for the next examples.
    pub data: f64,
    /// Autoencoder and text encoders.
    pub encode: f64,
    /// Both UNets.
    pub forward: f64,
    /// Gradients.
    pub backward: f64,
    /// Clipping, the update, the reference.
    pub optimizer: f64,
}

impl Times {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.data + self.encode + self.forward + self.backward + self.optimizer
    }

    /// As metrics.
    pub fn values(&self) -> Values {
        vec![
            ("time/data", json!(self.data)),
            ("time/encode", json!(self.encode)),
            ("time/forward", json!(self.forward)),
            ("time/backward", json!(self.backward)),
            ("time/optimizer", json!(self.optimizer)),
            ("time/step", json!(self.total())),
        ]
    }
}

impl StepReport {
    /// As metrics, without distance, scorer and times.
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
            ("error/reference_chosen", json!(self.reference_errors[0])),
            ("error/reference_rejected", json!(self.reference_errors[1])),
            ("reference_step", json!(self.reference_step)),
        ];
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
