//! Copies of f32 weights in half precision, for the products of a network in training.

use tch::{Kind, TchError, Tensor};

use crate::shim;

/// The f32 weights of a network in training, and a leaf in half precision for each, which the
/// layers read.
///
/// It is as if each layer cast its weight at every use, bit for bit: a cast rounds alike whenever it
/// is done, and its gradient is the rounded gradient of the copy, which the backward pass adds to
/// the f32 gradient of the weight, as soon as it is complete. But the casts are done once an update.
#[derive(Debug, Default)]
#[doc(alias = "master weights")]
pub(crate) struct WeightCopies {
    weights: Vec<Tensor>,
    copies: Vec<Tensor>,
}

impl WeightCopies {
    /// Makes the copy of a weight, with its strides.
    pub(super) fn add(&mut self, weight: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        let copy = weight.f_detach()?.f_to_kind(kind)?.set_requires_grad(true);
        shim::route_gradient(&copy, weight)?;
        self.weights.push(weight.shallow_clone());
        self.copies.push(copy.shallow_clone());
        Ok(copy)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.copies.len()
    }

    /// Casts all weights again, after an update.
    pub(crate) fn update(&self) -> Result<(), TchError> {
        if self.copies.is_empty() {
            return Ok(());
        }
        shim::copy_all(&self.copies, &self.weights)
    }
}
