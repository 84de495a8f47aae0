//! Safe faces of the C++ shim (`csrc/shim.h`), one file per topic: what a file calls is declared in
//! it. All `unsafe` code of the crate is in this folder and in `weights/mapped.rs`.

mod checkpoint;
mod collective;
mod convolution;
pub(crate) mod facts;
pub(crate) mod kernels;
mod linear;
mod memory;
mod nccl;
mod optimizer;

use std::ffi::{CStr, c_char};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

pub(crate) use checkpoint::checkpoint;
pub(crate) use collective::{GlooGroup, GlooWork, Listen, TcpStore};
pub(crate) use convolution::{Stride, channels_last, conv2d_pack, conv2d_packed, conv2d_upcast};
pub(crate) use linear::{After, linear_pack, linear_packed, linear_scaled, linear_upcast};
pub(crate) use memory::{
    InferenceMode, from_rows, has_bf16, normal, peak_device_bytes, reuse_memory, set_tf32,
    tensor_over_memory, tf32, upload,
};
pub(crate) use nccl::{ID_BYTES, NcclGroup, NcclWork, unique_id as nccl_unique_id};
pub(crate) use optimizer::{
    AdamWTensors, add_scaled, clip_gradients, copy_all, drop_gradients, fused_adamw,
    route_gradient, set_gradients,
};

/// Where a function of the shim puts its message.
type ErrorText = *mut *mut c_char;

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_free_text(text: *mut c_char);
}

/// Takes a text of the shim and frees it.
///
/// # Safety
///
/// `text` is a string made by strdup that nobody else owns.
#[expect(unsafe_code, reason = "reads and frees a C string")]
unsafe fn take_text(text: *mut c_char) -> String {
    // SAFETY: the caller vouches for the string.
    let copy = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above; freed once, not used after.
    unsafe { nn_free_text(text) };
    copy
}

/// The error with the shim's message.
///
/// # Safety
///
/// `text` is null, or as for [`take_text`].
#[expect(unsafe_code, reason = "takes a text of the shim")]
unsafe fn take_error(text: *mut c_char) -> TchError {
    if text.is_null() {
        return TchError::Torch("libtorch failed without a message".to_owned());
    }
    // SAFETY: the caller vouches for the string.
    TchError::Torch(unsafe { take_text(text) })
}

/// The tensor that `call` returns, or its error.
///
/// # Safety
///
/// `call` returns a fresh at::Tensor that nobody else owns, or null; with null it leaves the
/// error's text null or sets it to a message of the shim.
#[expect(unsafe_code, reason = "takes ownership of a tensor")]
unsafe fn tensor(call: impl FnOnce(ErrorText) -> *mut C_tensor) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    let tensor = call(&mut error);
    if tensor.is_null() {
        // SAFETY: the caller vouches for the text.
        return Err(unsafe { take_error(error) });
    }
    // SAFETY: fresh, and from now on ours.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// Nothing if `call` returns true, else its error.
///
/// # Safety
///
/// With false, `call` leaves the error's text null or sets it to a message of the shim.
#[expect(unsafe_code, reason = "takes a text of the shim")]
unsafe fn done(call: impl FnOnce(ErrorText) -> bool) -> Result<(), TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the caller vouches for the text.
    if call(&mut error) { Ok(()) } else { Err(unsafe { take_error(error) }) }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(std::ptr::null(), Tensor::as_ptr)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn normal_of(seed: u64, sizes: &[i64], kind: Kind) -> Tensor {
        normal(seed, sizes).unwrap().to_kind(kind)
    }

    /// Output, and gradients of a weighted sum of it, which must be there.
    fn with_gradients(inputs: &[&Tensor], layer: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
        let leaves: Vec<Tensor> =
            inputs.iter().map(|input| input.detach().set_requires_grad(true)).collect();
        let output = layer(&leaves);
        let factors = normal_of(9, &output.size(), Kind::Float);
        let loss = (output.to_kind(Kind::Float) * factors).sum(Kind::Float);
        let mut found = Tensor::run_backward(&[&loss], &leaves, false, false);
        assert!(found.iter().zip(&leaves).all(|(gradient, leaf)| gradient.kind() == leaf.kind()));
        found.push(output.detach());
        found
    }

    /// A layer over bf16 numbers against the same one written in f32, which rounds at the same
    /// places: bit for bit, but for the order of sums.
    fn assert_agree(found: &[Tensor], expected: &[Tensor]) {
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.size(), expected.size());
            let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
            let largest = expected.abs().max().double_value(&[]);
            let apart = (found - expected).abs().max().double_value(&[]);
            assert!(apart <= 4e-3 * largest, "{apart} of {largest}");
        }
    }

    #[test]
    fn upcast_layers_round_once_and_have_gradients() {
        let (f32, bf16) = (Kind::Float, Kind::BFloat16);
        let rounded = |tensor: &Tensor| tensor.to_kind(bf16).to_kind(f32);
        let input = normal_of(1, &[2, 5, 24], bf16);
        let (weight, bias) = (normal_of(2, &[8, 24], f32), normal_of(3, &[8], f32));
        let found = with_gradients(&[&input, &weight, &bias], |leaves| {
            linear_upcast(&leaves[0], &leaves[1], Some(&leaves[2])).unwrap()
        });
        let expected = with_gradients(&[&input, &weight, &bias], |leaves| {
            let (weight, bias) = (rounded(&leaves[1]), rounded(&leaves[2]));
            leaves[0].to_kind(f32).linear(&weight, Some(&bias)).to_kind(bf16)
        });
        assert_agree(&found, &expected);
        let found = with_gradients(&[&input, &weight], |leaves| {
            linear_upcast(&leaves[0], &leaves[1], None).unwrap()
        });
        let expected = with_gradients(&[&input, &weight], |leaves| {
            leaves[0].to_kind(f32).linear(&rounded(&leaves[1]), None::<&Tensor>).to_kind(bf16)
        });
        assert_agree(&found, &expected);
        // A weight that was rounded before gives the same bits.
        let once = linear_upcast(&input, &weight.to_kind(bf16), Some(&bias.to_kind(bf16))).unwrap();
        assert_eq!(once, linear_upcast(&input, &weight, Some(&bias)).unwrap());

        let input = normal_of(4, &[2, 16, 9, 7], bf16);
        let (weight, bias) = (normal_of(5, &[8, 16, 3, 3], f32), normal_of(6, &[8], f32));
        for stride in [1, 2] {
            let found = with_gradients(&[&input, &weight, &bias], |leaves| {
                conv2d_upcast(&leaves[0], &leaves[1], &leaves[2], Stride { stride, padding: 1 })
                    .unwrap()
            });
            let expected = with_gradients(&[&input, &weight, &bias], |leaves| {
                let (weight, bias) = (rounded(&leaves[1]), rounded(&leaves[2]));
                let input = leaves[0].to_kind(f32);
                input.conv2d(&weight, Some(&bias), stride, 1, 1, 1).to_kind(bf16)
            });
            assert_agree(&found, &expected);
        }
    }
}
