//! Group and layer normalisation.

use tch::{Device, TchError, Tensor};

use super::{cast, silu};
use crate::shim;
use crate::shim::kernels::{self, Around, Norm};
use crate::weights::{Loader, Purpose};

/// Normalisation over groups of channels.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    channels: i64,
    groups: i64,
    epsilon: f64,
    /// Whether it was loaded for inference.
    infers: bool,
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
            weight: loader.tensor_cast_at_use(&format!("{name}.weight"), &[channels]),
            bias: loader.tensor_cast_at_use(&format!("{name}.bias"), &[channels]),
            channels,
            groups,
            epsilon,
            infers: loader.purpose() == Purpose::Inference,
        }
    }

    /// True if [`GroupNorm::fused`] is available and faster for images with the dtype and on the
    /// device of this tensor. On a CPU it serves inference only: the network in training records
    /// gradients, which the CPU's kernel does not, and its reference must match it to the last bit.
    pub(crate) fn fuses(&self, like: &Tensor) -> Result<bool, TchError> {
        if !self.infers && like.device() == Device::Cpu {
            return Ok(false);
        }
        kernels::can_normalize(like, self.channels, self.groups)
    }

    /// The normalisation and what is `around` it, in two passes over memory.
    pub(crate) fn fused(&self, x_BCHW: &Tensor, around: Around<'_>) -> Result<Tensor, TchError> {
        let norm = Norm {
            weight_C: &self.weight,
            bias_C: &self.bias,
            groups: self.groups,
            epsilon: self.epsilon,
        };
        kernels::normalize(x_BCHW, norm, around)
    }

    /// `[B, C, H, W]` to the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.fuses(x)? {
            return self.fused(x, Around::default());
        }
        let (weight, bias) = (cast(&self.weight, x.kind())?, cast(&self.bias, x.kind())?);
        x.f_group_norm(self.groups, Some(weight), Some(bias), self.epsilon, true)
    }

    /// The normalisation, then `x · σ(x)`. In training the backward pass recomputes the result of
    /// the normalisation, which would be a sixth of the activations that a UNet keeps.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.fuses(x)? {
            return self.fused(x, Around { silu: true, ..Around::default() });
        }
        if !x.requires_grad() && !self.weight.requires_grad() {
            return silu(self.forward(x)?);
        }
        let (weight, bias) = (cast(&self.weight, x.kind())?, cast(&self.bias, x.kind())?);
        let (groups, epsilon) = (self.groups, self.epsilon);
        shim::checkpoint(
            &[x, &weight, &bias],
            Box::new(move |inputs| match inputs {
                [x, weight, bias] => {
                    x.f_group_norm(groups, Some(weight), Some(bias), epsilon, true)?.f_silu()
                }
                _ => Err(TchError::Torch("expected three tensors".to_owned())),
            }),
        )
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
