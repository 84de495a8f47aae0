//! Convolutions: packed for oneDNN, and bf16 computed in f32; and the channels-last layout.

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, tensor};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_conv2d_pack(
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        input_size: *const i64,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_conv2d_packed(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_conv2d_upcast(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_channels_last(tensor: *const C_tensor, error: ErrorText) -> *mut C_tensor;
}

/// How a kernel moves over an image, the same in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stride {
    /// Pixels from one position to the next.
    pub(crate) stride: i64,
    /// Zeros on each side of the image.
    pub(crate) padding: i64,
}

/// The weight `[O, I, K, K]` of a convolution in oneDNN's own layout, for inputs of about this
/// size. Only [`conv2d_packed`] can read the result.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn conv2d_pack(
    weight: &Tensor,
    Stride { stride, padding }: Stride,
    input_size: &[i64; 4],
) -> Result<Tensor, TchError> {
    let (weight, size) = (weight.as_ptr(), input_size.as_ptr());
    // SAFETY: the arguments are borrowed for the call.
    unsafe { tensor(|error| nn_conv2d_pack(weight, stride, padding, size, error)) }
}

/// A convolution with a weight of [`conv2d_pack`].
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn conv2d_packed(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    Stride { stride, padding }: Stride,
) -> Result<Tensor, TchError> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
    // SAFETY: the arguments are borrowed for the call.
    unsafe { tensor(|error| nn_conv2d_packed(input, weight, bias, stride, padding, error)) }
}

/// A convolution of bf16 numbers, computed as [`super::linear_upcast`] computes a linear layer.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn conv2d_upcast(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    Stride { stride, padding }: Stride,
) -> Result<Tensor, TchError> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
    // SAFETY: the arguments are borrowed for the call.
    unsafe { tensor(|error| nn_conv2d_upcast(input, weight, bias, stride, padding, error)) }
}

/// `[B, C, H, W]` with the channels last in memory (NHWC); the same memory if they are.
#[doc(alias = "NHWC")]
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn channels_last(image: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: the tensor is borrowed for the call.
    unsafe { tensor(|error| nn_channels_last(image.as_ptr(), error)) }
}
