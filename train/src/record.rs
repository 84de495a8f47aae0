//! Records of steps: everything needed to compute a step again in another framework.
//!
//! `record/step-000001-micro-000.safetensors`, one file per micro-batch. Predictions are separate
//! for images 0 and images 1; prompt embeddings, noise and timesteps are stored once per pair. A loss
//! of single images also has those of images 0 and images 1.

use std::path::Path;

use anyhow::Result;
use nn::weights::write_safetensors_with_metadata;
use tch::{Device, TchError, Tensor};

use crate::step::{MicroBatch, Predictions};

/// The folder of a run's records.
pub const FOLDER: &str = "record";

/// One micro-batch, copied to the CPU.
#[derive(Debug)]
pub struct Record {
    pair_ids: Vec<String>,
    tensors: Vec<(String, Tensor)>,
}

/// What is known of a step once its gradients are.
#[derive(Debug, Clone, Copy)]
pub struct StepFacts {
    /// The optimizer step, from 1.
    pub step: u64,
    /// The learning rate of its update.
    pub learning_rate: f64,
    /// The gradient norm of the whole step, before clipping.
    pub grad_norm: f64,
    /// The step whose weights the reference model has.
    pub reference_step: u64,
    /// β, if it adapts.
    pub beta: Option<f64>,
    /// KTO's reference point, if the loss has one.
    pub reference_point: Option<f64>,
}

impl Record {
    /// Copies a micro-batch and its predictions to the CPU.
    ///
    /// # Errors
    /// If libtorch is out of memory.
    pub fn of(batch: &MicroBatch, predictions: &Predictions) -> Result<Self, TchError> {
        let pairs = batch.len();
        let half = |both: &Tensor, image: i64| both.f_narrow(0, image * pairs, pairs);
        let mut tensors = batch.to_tensors();
        tensors.extend([
            ("model_pred_0", half(&predictions.model_2PCHW, 0)?),
            ("model_pred_1", half(&predictions.model_2PCHW, 1)?),
        ]);
        if let Some(reference_2PCHW) = &predictions.reference_2PCHW {
            tensors.extend([
                ("ref_pred_0", half(reference_2PCHW, 0)?),
                ("ref_pred_1", half(reference_2PCHW, 1)?),
            ]);
        }
        tensors.extend([
            ("z", predictions.logits_P.shallow_clone()),
            ("loss", predictions.losses_P.shallow_clone()),
        ]);
        if let Some([first_P, second_P]) = &predictions.images_P {
            tensors.extend([
                ("loss_0", first_P.shallow_clone()),
                ("loss_1", second_P.shallow_clone()),
            ]);
        }
        let copied = |(name, tensor): (&str, Tensor)| {
            let copy = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
            Ok((name.to_owned(), copy))
        };
        let tensors = tensors.into_iter().map(copied).collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self { pair_ids: batch.pair_ids.clone(), tensors })
    }

    /// Writes the record as that of micro-batch `micro` of the step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, run: &Path, facts: &StepFacts, micro: usize) -> Result<()> {
        let folder = run.join(FOLDER);
        runkit::files::create_folder(&folder)?;
        let path = folder.join(format!("step-{:06}-micro-{micro:03}.safetensors", facts.step));
        let mut metadata = vec![
            ("pair_ids", serde_json::to_string(&self.pair_ids)?),
            ("lr", facts.learning_rate.to_string()),
            ("grad_norm", facts.grad_norm.to_string()),
            ("reference_step", facts.reference_step.to_string()),
        ];
        for (name, number) in [("beta", facts.beta), ("reference_point", facts.reference_point)] {
            metadata.extend(number.map(|number| (name, number.to_string())));
        }
        write_safetensors_with_metadata(&path, &self.tensors, &metadata)?;
        Ok(())
    }
}
