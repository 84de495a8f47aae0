//! Linear layers: scaled, packed for oneDNN, and bf16 computed in f32.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, pointer, tensor};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_linear_scaled(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        scale: f64,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_linear_pack(weight: *const C_tensor, rows: i64, error: ErrorText) -> *mut C_tensor;
    fn nn_linear_packed(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        activation: *const c_char,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_linear_upcast(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        error: ErrorText,
    ) -> *mut C_tensor;
}

/// `scale · input · weightᵀ + bias`, for an input of at least two dimensions.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_scaled(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    scale: f64,
) -> Result<Tensor, TchError> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
    // SAFETY: the tensors are borrowed for the call.
    unsafe { tensor(|error| nn_linear_scaled(input, weight, bias, scale, error)) }
}

/// The activation that a packed linear layer applies in the same pass.
#[derive(Debug, Clone, Copy)]
pub(crate) enum After {
    Nothing,
    /// The exact GELU.
    Gelu,
    /// The GELU with the hyperbolic tangent.
    GeluTanh,
    /// `x · σ(x)`, also called SiLU.
    Swish,
}

/// A weight `[out, in]` in oneDNN's own layout, for inputs of about `rows` rows. Only
/// [`linear_packed`] can read the result.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_pack(weight: &Tensor, rows: i64) -> Result<Tensor, TchError> {
    // SAFETY: the tensor is borrowed for the call.
    unsafe { tensor(|error| nn_linear_pack(weight.as_ptr(), rows, error)) }
}

/// `input · weightᵀ + bias` with a weight of [`linear_pack`], then `after`.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_packed(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    after: After,
) -> Result<Tensor, TchError> {
    let activation = match after {
        After::Nothing => c"none",
        After::Gelu => c"gelu",
        After::GeluTanh => c"gelu_tanh",
        After::Swish => c"swish",
    };
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), pointer(bias));
    // SAFETY: the tensors and the name are borrowed for the call, the bias may be null.
    unsafe { tensor(|error| nn_linear_packed(input, weight, bias, activation.as_ptr(), error)) }
}

/// `input · weightᵀ + bias` of bf16 numbers, computed in f32 and rounded once; with gradients. An
/// f32 weight is rounded to bf16 first.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_upcast(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), pointer(bias));
    // SAFETY: the tensors are borrowed for the call, the bias may be null.
    unsafe { tensor(|error| nn_linear_upcast(input, weight, bias, error)) }
}
