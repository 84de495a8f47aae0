//! The reference model: the implicit reward of the model is measured against it.
//!
//! The paper's dynamic reference model updating (Algorithm 1): every T optimizer steps
//! (`--reference-every`) the reference model gets the current weights of the model. With T = 0 it
//! stays frozen at the base model, as in Diffusion-DPO.

use nn::NetworkError;
use tch::{Kind, Tensor};

use crate::model::Networks;

/// Whether the reference model is updated after optimizer step `step` (from 1), every `every` steps
/// (0: never) of `steps`. Not after the last step: nothing is measured against that update.
#[doc(alias = "reference model updating")]
#[doc(alias = "ref_model_sync_steps")]
pub fn is_updated_after(step: u64, every: u64, steps: u64) -> bool {
    every > 0 && step.is_multiple_of(every) && step < steps
}

/// Updates the reference model: it gets the current weights of the model.
///
/// # Errors
/// If libtorch cannot copy them.
#[doc(alias = "sync_ref_model")]
#[doc(alias = "ema")]
pub fn update(networks: &mut Networks) -> Result<(), NetworkError> {
    networks.reference.copy_weights_from(&networks.pipeline.unet)
}

/// The distance of the model from the reference model: the 2-norm of the difference of their
/// weights, in the dtype that both compute in. It is exactly 0 right after an update.
///
/// # Errors
/// If the device is out of memory.
pub fn distance(networks: &Networks) -> Result<f64, NetworkError> {
    let trained = networks.pipeline.unet.parameters();
    let reference = networks.reference.parameters();
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
