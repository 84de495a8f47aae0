//! Layers that several networks share. Each is loaded by name from a
//! [`Loader`](crate::weights::Loader) and computes in the dtype of its input: weights in another
//! dtype, such as f32 weights in training, are cast at each call.
//!
//! Images `[B, C, H, W]` are channels last (NHWC) in memory. Convolutions and group normalisation
//! are fastest in that layout, and `[B, H·W, C]` is a view of it. Training on x86 processors uses
//! contiguous NCHW instead ([`trains_in_nchw`]). The output of a layer has the layout of its input.
//!
//! On a processor that multiplies f32 faster than bf16, products and convolutions of bf16 numbers
//! are upcast to f32 and rounded afterwards ([`upcasts`]). The results are those of bf16
//! instructions, about five times as fast as libtorch's own emulation.
//!
//! Layers write in place if no gradient can need the old values: a tensor that records no gradients
//! is not a saved input of any operation.

mod attention;
mod chain;
mod convolution;
mod linear;
mod normalization;
mod resnet;
mod sampling;

pub(crate) use attention::attention;
pub(crate) use chain::LinearChain;
pub(crate) use convolution::{Conv2d, ConvSizes, convolve, trains_in_nchw};
pub(crate) use linear::{Linear, Mlp};
pub(crate) use normalization::{GroupNorm, LayerNorm};
pub(crate) use resnet::{ResnetBlock, ResnetSizes};
pub(crate) use sampling::{Downsample, Upsample};

use tch::{Kind, TchError, Tensor};

use crate::device::Precision;

/// True for bf16 numbers on a processor that multiplies f32 faster: layers upcast them.
pub(crate) fn upcasts(x: &Tensor) -> bool {
    x.kind() == Kind::BFloat16 && Precision::Bf16.upcasts_bf16(x.device())
}

/// The tensor in another dtype; itself if it already has it.
pub(crate) fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
    if tensor.kind() == kind { Ok(tensor.shallow_clone()) } else { tensor.f_to_kind(kind) }
}

/// `stream + update` in the layout of `stream`, in the memory of the fresh `update` if gradients
/// and its layout allow.
pub(crate) fn add(stream: &Tensor, mut update: Tensor) -> Result<Tensor, TchError> {
    let records = update.requires_grad() || stream.requires_grad();
    if records || update.stride() != stream.stride() {
        stream.f_add(&update)
    } else {
        update.f_add_(stream)
    }
}

/// `x · σ(x)`, in place if gradients allow; `x` must be fresh.
pub(crate) fn silu(mut x: Tensor) -> Result<Tensor, TchError> {
    if x.requires_grad() { x.f_silu() } else { x.f_silu_() }
}
