//! Group and layer normalisation.

use tch::{TchError, Tensor};

use super::{cast, silu};
use crate::weights::Loader;

/// Normalisation over groups of channels.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    epsilon: f64,
}

impl GroupNorm {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        groups: i64,
        channels: i64,
        epsilon: f64,
    ) -> Self {
        Self {
            weight: loader.tensor(&format!("{name}.weight"), &[channels]),
            bias: loader.tensor(&format!("{name}.bias"), &[channels]),
            groups,
            epsilon,
        }
    }

    /// `[B, C, H, W]` to the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (cast(&self.weight, x.kind())?, cast(&self.bias, x.kind())?);
        x.f_group_norm(self.groups, Some(weight), Some(bias), self.epsilon, true)
    }

    /// The normalisation, then `x · σ(x)`.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor, TchError> {
        silu(self.forward(x)?)
    }
}

/// Normalisation over the last dimension.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    pub(crate) fn load(loader: &mut Loader<'_>, name: &str, width: i64, epsilon: f64) -> Self {
        Self {
            weight: loader.tensor(&format!("{name}.weight"), &[width]),
            bias: loader.tensor(&format!("{name}.bias"), &[width]),
            epsilon,
        }
    }

    /// `[.., W]` to the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (cast(&self.weight, x.kind())?, cast(&self.bias, x.kind())?);
        x.f_layer_norm(self.weight.size(), Some(&weight), Some(&bias), self.epsilon, true)
    }
}
