//! Low-rank products that are added to a tensor when it is read: adapters merged into weights.

use std::collections::BTreeMap;

use tch::{Kind, TchError, Tensor};

use super::{Stored, Weights, WeightsError, safetensors};

/// A tensor of a file, by itself.
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor(Box<Stored>);

impl StoredTensor {
    /// Its shape.
    pub(crate) fn shape(&self) -> &[i64] {
        &self.0.shape
    }
}

/// `scale · up · down`, to be added to a weight.
#[derive(Debug, Clone)]
pub(crate) struct Delta {
    /// `[r, in]` or `[r, in, K, K]`.
    pub(crate) down: StoredTensor,
    /// `[out, r]` or `[out, r, 1, 1]`.
    pub(crate) up: StoredTensor,
    /// The factor.
    pub(crate) scale: f64,
}

impl Delta {
    /// `tensor + scale · up · down`, for a tensor in f32 of the shape `[out, in]` or `[out, in, K, K]`.
    fn add_to(&self, tensor: &Tensor) -> Result<Tensor, WeightsError> {
        let torch = |source| WeightsError::Torch { file: self.up.0.file.path().to_owned(), source };
        let (down, up) = (self.down.0.tensor()?, self.up.0.tensor()?);
        let matrix = |tensor: &Tensor| -> Result<Tensor, TchError> {
            let rows = tensor.size().first().copied().unwrap_or(0);
            tensor.f_to_kind(Kind::Float)?.f_reshape([rows, -1])
        };
        let sum = || {
            let product = matrix(&up)?.f_mm(&matrix(&down)?)?.f_mul_scalar(self.scale)?;
            tensor.f_add(&product.f_reshape(&tensor.size()[..])?)
        };
        sum().map_err(torch)
    }
}

impl Stored {
    /// The tensor over the mapped file; with deltas a new one, f32.
    pub(super) fn tensor(&self) -> Result<Tensor, WeightsError> {
        let stored = self.file.tensor(self.offset, self.kind, &self.shape, &self.strides)?;
        if self.deltas.is_empty() {
            return Ok(stored);
        }
        let file = || self.file.path().to_owned();
        let torch = |source| WeightsError::Torch { file: file(), source };
        let stored = stored.f_to_kind(Kind::Float).map_err(torch)?;
        self.deltas.iter().try_fold(stored, |sum, delta| delta.add_to(&sum))
    }
}

impl Weights {
    /// A tensor of the file, which stays readable without the others.
    pub(crate) fn stored_tensor(&self, name: &str) -> Option<StoredTensor> {
        self.tensors.get(name).map(|stored| StoredTensor(Box::new(stored.clone())))
    }

    /// Adds a product to a tensor, whenever it is read from now on. The caller has checked that the
    /// shapes fit.
    pub(crate) fn add_delta(&mut self, name: &str, delta: Delta) {
        if let Some(stored) = self.tensors.get_mut(name) {
            stored.deltas.push(delta);
        }
    }

    /// The entries of the metadata of a safetensors file; none for other files.
    pub(crate) fn metadata(&self) -> BTreeMap<String, String> {
        let first = self.tensors.values().next();
        first.map_or_else(BTreeMap::new, |stored| safetensors::metadata(&stored.file))
    }
}
