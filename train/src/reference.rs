//! The reference model: the implicit reward of the model is measured against it.
//!
//! The paper's dynamic reference model updating (Algorithm 1): every T optimizer steps
//! (`--reference-every`) the reference model gets the current weights of the model. With T = 0 it
//! stays frozen at the base model, as in Diffusion-DPO.
//!
//! An update may go a part of the way: θ_ref ← A·θ + (1 − A)·θ_ref (`--reference-mix`), as
//! `sync_ref_model` of huggingface/trl does (`ref_model_mixup_alpha` 0.6 every
//! `ref_model_sync_steps` 512). With `--reference-ema D` it goes 1 − D of the way after every step,
//! the `--reference_ema` of jacklishufan/diffusion-kto.

use nn::NetworkError;
use nn::average::{copy_weights, move_towards};
use nn::device::Precision;
use tch::{Kind, Tensor};

use crate::loss::Objective;
use crate::model::Networks;
use crate::settings::RunSettings;

/// When the reference model is updated, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "reference model updating")]
pub struct ReferenceUpdates {
    /// Steps between updates; 0 for none.
    #[doc(alias = "ref_model_sync_steps")]
    pub every: u64,
    /// The fraction of the way to the model, above 0; 1 is a copy.
    #[doc(alias = "ref_model_mixup_alpha")]
    pub amount: f64,
}

impl ReferenceUpdates {
    /// What settings ask for.
    pub fn of(settings: &RunSettings) -> Self {
        match settings.reference_ema {
            Some(kept) => Self { every: 1, amount: 1.0 - kept },
            None => Self {
                every: settings.reference_every,
                amount: settings.reference_mix.unwrap_or(1.0),
            },
        }
    }

    /// Whether an update is due after optimizer step `step` (from 1) of `steps`. Not after the last
    /// step: nothing is measured against that update.
    pub fn is_due_after(self, step: u64, steps: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every) && step < steps
    }

    /// The updates in words.
    pub fn in_words(settings: &RunSettings) -> String {
        if !Objective::of(settings).uses_reference() {
            return "none".to_owned();
        }
        let Self { every, amount } = Self::of(settings);
        let times = || settings.steps.saturating_sub(1) / every.max(1);
        let reset = match settings.reference_reset_optimizer {
            Some(true) => "; the optimizer's moments then start anew",
            _ => "",
        };
        match (every, settings.reference_ema) {
            (0, _) => "frozen at the base model".to_owned(),
            (_, Some(kept)) => format!("a moving average that keeps {kept} of itself in each step"),
            _ if amount < 1.0 => format!(
                "updated every {every} steps, {} times, by {amount} of the way{reset}",
                times()
            ),
            _ => format!("updated every {every} steps, {} times{reset}", times()),
        }
    }

    /// Whether the reference model needs its weights in f32 beside those that it computes with: if
    /// half precision would round away a part of the way.
    pub fn need_f32(self, precision: Precision) -> bool {
        self.every > 0 && self.amount < 1.0 && precision != Precision::F32
    }

    /// Updates the reference model from the current weights of the model.
    ///
    /// # Errors
    /// If libtorch cannot copy them.
    #[doc(alias = "sync_ref_model")]
    #[doc(alias = "ema")]
    pub fn update(self, networks: &mut Networks) -> Result<(), NetworkError> {
        let Networks { pipeline, reference, reference_f32, .. } = networks;
        let Some(reference) = reference else { return Ok(()) };
        let trained = pipeline.unet.parameters();
        match reference_f32 {
            Some(whole) => {
                whole.update(trained, self.amount)?;
                copy_weights(reference.parameters(), whole.parameters())
            }
            None if self.amount < 1.0 => move_towards(reference.parameters(), trained, self.amount),
            None => reference.copy_weights_from(&pipeline.unet),
        }
    }
}

/// The distance of the model from the reference model: the 2-norm of the difference of their
/// weights, in the dtype that both compute in. It is exactly 0 right after an update, and without a
/// reference model.
///
/// # Errors
/// If the device is out of memory.
pub fn distance(networks: &Networks) -> Result<f64, NetworkError> {
    let trained = networks.pipeline.unet.parameters();
    let Some(reference) = &networks.reference else { return Ok(0.0) };
    let reference = reference.parameters();
    tch::no_grad(|| {
        let norms = trained
            .iter()
            .zip(reference)
            .map(|((_, own), (_, other))| {
                let own = own.f_to_kind(other.kind())?.f_to_kind(Kind::Float)?;
                own.f_sub(&other.f_to_kind(Kind::Float)?)?.f_norm()
            })
            .collect::<Result<Vec<_>, _>>()?;
        let norms = Tensor::f_stack(&norms, 0)?.f_to_kind(Kind::Double)?;
        Ok(norms.f_norm()?.f_double_value(&[])?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_follow_the_settings() {
        let updates = |every, amount| ReferenceUpdates { every, amount };
        let due = |updates: ReferenceUpdates, steps: u64| -> Vec<u64> {
            (1..=steps).filter(|step| updates.is_due_after(*step, steps)).collect()
        };
        assert_eq!(due(updates(3, 1.0), 9), [3, 6]);
        assert_eq!(due(updates(0, 1.0), 9), [] as [u64; 0]);
        // A moving average takes a part after every step but the last.
        assert_eq!(due(updates(1, 0.1), 4), [1, 2, 3]);
        assert!(updates(1, 0.1).need_f32(Precision::Bf16));
        assert!(!updates(1, 0.1).need_f32(Precision::F32));
        assert!(!updates(100, 1.0).need_f32(Precision::Bf16));
    }
}
