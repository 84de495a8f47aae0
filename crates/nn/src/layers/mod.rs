//! Layers that several networks share. Each is loaded by name from a [`Loader`](crate::weights::Loader),
//! and computes in the number format of its input: weights kept in another one, as those being
//! trained are, are cast on the way.
//!
//! Images `[B, C, H, W]` are kept channels last in memory, the layout in which convolutions and
//! group normalisation are fastest and in which `[B, H·W, C]` is a view; in training on x86 processors
//! in rows ([`trains_in_nchw`]). Every layer gives the layout that it is given.
//!
//! bf16 on a processor that multiplies f32 faster is widened for products and convolutions to f32 and rounded
//! after them ([`upcasts`]): what instructions for bf16 would give, some five times as fast as libtorch does
//! it where there are none.
//!
//! Results are written in place where no gradient can need what was there: a tensor that records
//! none is nobody's saved input.

mod attention;
mod convolution;
mod linear;
mod normalization;
mod resnet;
mod sampling;

pub(crate) use attention::attention;
pub(crate) use convolution::{Conv2d, trains_in_nchw};
pub(crate) use linear::{Linear, Mlp};
pub(crate) use normalization::{GroupNorm, LayerNorm};
pub(crate) use resnet::{ResnetBlock, ResnetSizes};
pub(crate) use sampling::{Downsample, Upsample};

use tch::{Kind, TchError, Tensor};

use crate::device::Precision;

/// True for bf16 on a processor that multiplies f32 faster.
fn upcasts(x: &Tensor) -> bool {
    x.kind() == Kind::BFloat16 && Precision::Bf16.upcasts_bf16(x.device())
}

/// The tensor in another number format; itself where it has that format.
pub(crate) fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
    if tensor.kind() == kind { Ok(tensor.shallow_clone()) } else { tensor.f_to_kind(kind) }
}

/// `stream + update` in the layout of `stream`, into the memory of the fresh `update` where gradients
/// and its layout allow.
pub(crate) fn add(stream: &Tensor, mut update: Tensor) -> Result<Tensor, TchError> {
    let records = update.requires_grad() || stream.requires_grad();
    if records || update.stride() != stream.stride() {
        stream.f_add(&update)
    } else {
        update.f_add_(stream)
    }
}

/// `x · σ(x)`, in place where gradients allow; `x` must be fresh.
pub(crate) fn silu(mut x: Tensor) -> Result<Tensor, TchError> {
    if x.requires_grad() { x.f_silu() } else { x.f_silu_() }
}
