//! Gradient checkpointing.

use std::ffi::c_void;
use std::mem::ManuallyDrop;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, tensor};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_checkpoint(
        inputs: *const *const C_tensor,
        count: usize,
        run: extern "C" fn(*mut c_void, *const *const C_tensor, usize, ErrorText) -> *mut C_tensor,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        error: ErrorText,
    ) -> *mut C_tensor;
}

/// A part of a network from its inputs to its output. On a GPU, libtorch's own thread for the
/// device recomputes it in the backward pass, so it must be safe to call from there.
type SegmentFunction = Box<dyn Fn(&[Tensor]) -> Result<Tensor, TchError> + Send + Sync>;

/// Gradient checkpointing: runs `segment` without recording, and once more when the gradients are
/// computed, so that only its inputs take memory until then. Gradients exist only if at least one
/// input records them.
#[doc(alias = "gradient checkpointing")]
#[doc(alias = "activation checkpointing")]
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn checkpoint(inputs: &[&Tensor], segment: SegmentFunction) -> Result<Tensor, TchError> {
    extern "C" fn run(
        owner: *mut c_void,
        inputs: *const *const C_tensor,
        count: usize,
        error: ErrorText,
    ) -> *mut C_tensor {
        // SAFETY: made by Box::into_raw below, and alive until `release`.
        let segment = unsafe { &*owner.cast::<SegmentFunction>() };
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let inputs: Vec<Tensor> = (0..count)
                // SAFETY: the shim passes `count` live tensors; clones share them.
                .map(|index| unsafe { Tensor::clone_from_ptr((*inputs.add(index)).cast_mut()) })
                .collect();
            segment(&inputs)
        }));
        let problem = match attempt {
            Ok(Ok(output)) => {
                // The shim owns the tensor from now on.
                return ManuallyDrop::new(output).as_ptr().cast_mut();
            }
            Ok(Err(problem)) => problem.to_string(),
            Err(_) => "a checkpointed part of the network panicked".to_owned(),
        };
        let text = std::ffi::CString::new(problem.replace('\0', " ")).unwrap_or_default();
        // SAFETY: `error` is the shim's; strdup gives it memory that its `free` releases.
        unsafe { *error = libc::strdup(text.as_ptr()) };
        std::ptr::null_mut()
    }
    extern "C" fn release(owner: *mut c_void) {
        // SAFETY: made by Box::into_raw below; the shim calls this exactly once.
        drop(unsafe { Box::from_raw(owner.cast::<SegmentFunction>()) });
    }
    let pointers: Vec<*const C_tensor> = inputs.iter().map(|input| input.as_ptr()).collect();
    let owner = Box::into_raw(Box::new(segment)).cast::<c_void>();
    // SAFETY: the inputs are borrowed for the call, and the shim releases the owner exactly once.
    // The segment may run on a thread of libtorch's, which its type allows.
    unsafe {
        tensor(|error| nn_checkpoint(pointers.as_ptr(), pointers.len(), run, release, owner, error))
    }
}
