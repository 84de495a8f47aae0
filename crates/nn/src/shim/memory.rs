//! Tensors and memory: over files, on GPUs, from a seed, kept for reuse; and inference mode.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, done, take_error, tensor};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_tensor_over_memory(
        data: *mut c_void,
        sizes: *const i64,
        strides: *const i64,
        dimensions: usize,
        scalar_type: c_int,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_inference_enter(error: ErrorText) -> *mut c_void;
    fn nn_inference_leave(guard: *mut c_void);
    fn nn_reuse_memory();
    fn nn_upload(tensor: *const C_tensor, device: c_int, error: ErrorText) -> *mut C_tensor;
    fn nn_peak_device_bytes(
        device: c_int,
        allocated: *mut u64,
        reserved: *mut u64,
        error: ErrorText,
    ) -> bool;
    fn nn_has_bf16(device: c_int, answer: *mut bool, error: ErrorText) -> bool;
    fn nn_from_rows(
        rows: *const *const f32,
        count: usize,
        length: usize,
        sizes: *const i64,
        dimensions: usize,
        pinned: bool,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_set_tf32(allowed: bool, error: ErrorText) -> bool;
    fn nn_tf32(products: *mut bool, convolutions: *mut bool, error: ErrorText) -> bool;
    fn nn_normal(
        seed: u64,
        sizes: *const i64,
        dimensions: usize,
        error: ErrorText,
    ) -> *mut C_tensor;
}

/// c10::ScalarType's number for the dtypes that checkpoints hold (`c10/core/ScalarType.h`).
fn scalar_type(kind: Kind) -> c_int {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        other => unreachable!("no checkpoint format stores {other:?}"),
    }
}

/// A tensor over memory that `owner` keeps alive; no byte is copied. The owner is dropped with the
/// last tensor that shares the memory.
///
/// # Safety
///
/// For as long as `owner` lives, `data` must be readable and writable for every element that
/// `sizes` and `strides` (in elements, none negative) reach, and aligned to the element.
#[expect(unsafe_code, reason = "the caller vouches for the memory")]
pub(crate) unsafe fn tensor_over_memory(
    data: *mut u8,
    sizes: &[i64],
    strides: &[i64],
    kind: Kind,
    owner: Box<dyn Any + Send + Sync>,
) -> Result<Tensor, TchError> {
    extern "C" fn release(owner: *mut c_void) {
        // SAFETY: made by Box::into_raw below; the shim calls this exactly once.
        drop(unsafe { Box::from_raw(owner.cast::<Box<dyn Any + Send + Sync>>()) });
    }
    assert_eq!(sizes.len(), strides.len(), "sizes and strides have equal length");
    let (dimensions, kind) = (sizes.len(), scalar_type(kind));
    let (sizes, strides) = (sizes.as_ptr(), strides.as_ptr());
    // A second box, because the inner one is a fat pointer and C has room for a thin one.
    let owner = Box::into_raw(Box::new(owner)).cast::<c_void>();
    // SAFETY: sizes and strides are valid for their common length, the caller vouches for the
    // data, and the shim releases the owner exactly once, also on failure.
    unsafe {
        tensor(|error| {
            let data = data.cast();
            nn_tensor_over_memory(data, sizes, strides, dimensions, kind, release, owner, error)
        })
    }
}

/// From now on, the memory of large CPU tensors that are gone is kept for the next ones.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn reuse_memory() {
    // SAFETY: sets which allocator makes new tensors; those that are there free themselves as
    // before.
    unsafe { nn_reuse_memory() }
}

/// C's number of a GPU. One that does not fit is no GPU's.
fn gpu(index: usize) -> c_int {
    c_int::try_from(index).unwrap_or(c_int::MAX)
}

/// A CPU tensor on the GPU of this number; nothing waits for the copy.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn upload(source: &Tensor, index: usize) -> Result<Tensor, TchError> {
    // SAFETY: the tensor is borrowed for the call.
    unsafe { tensor(|error| nn_upload(source.as_ptr(), gpu(index), error)) }
}

/// The most bytes of the GPU of this number that tensors held at once, and that the driver gave for
/// them.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn peak_device_bytes(index: usize) -> Result<[u64; 2], TchError> {
    let (mut allocated, mut reserved) = (0, 0);
    // SAFETY: writes the two numbers.
    unsafe {
        done(|error| nn_peak_device_bytes(gpu(index), &mut allocated, &mut reserved, error))?;
    }
    Ok([allocated, reserved])
}

/// Whether the GPU of this number multiplies bf16 itself; true if there is no GPU to ask.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn has_bf16(index: usize) -> Result<bool, TchError> {
    let mut answer = true;
    // SAFETY: writes the answer.
    unsafe { done(|error| nn_has_bf16(gpu(index), &mut answer, error))? };
    Ok(answer)
}

/// A CPU tensor of `sizes` filled from rows of equal length; pinned for a GPU.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn from_rows(rows: &[&[f32]], sizes: &[i64], pinned: bool) -> Result<Tensor, TchError> {
    let length = rows.first().map_or(0, |row| row.len());
    if rows.iter().any(|row| row.len() != length) {
        return Err(TchError::Shape("rows of different lengths".to_owned()));
    }
    let starts: Vec<*const f32> = rows.iter().map(|row| row.as_ptr()).collect();
    // SAFETY: rows and sizes are borrowed for the call, and each row has `length` numbers.
    unsafe {
        tensor(|error| {
            let (start, count) = (starts.as_ptr(), starts.len());
            nn_from_rows(start, count, length, sizes.as_ptr(), sizes.len(), pinned, error)
        })
    }
}

/// Whether f32 products and convolutions on GPUs may round their inputs to TF32.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn set_tf32(allowed: bool) -> Result<(), TchError> {
    // SAFETY: sets two flags of the process.
    unsafe { done(|error| nn_set_tf32(allowed, error)) }
}

/// Whether f32 products, and f32 convolutions, on GPUs may round their inputs to TF32.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn tf32() -> Result<[bool; 2], TchError> {
    let (mut products, mut convolutions) = (false, false);
    // SAFETY: writes the answers.
    unsafe { done(|error| nn_tf32(&mut products, &mut convolutions, error))? };
    Ok([products, convolutions])
}

/// Standard normal noise of a CPU generator with this seed.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn normal(seed: u64, sizes: &[i64]) -> Result<Tensor, TchError> {
    // SAFETY: the sizes are borrowed for the call.
    unsafe { tensor(|error| nn_normal(seed, sizes.as_ptr(), sizes.len(), error)) }
}

/// libtorch's inference mode on this thread, until dropped.
pub(crate) struct InferenceMode {
    guard: *mut c_void,
    // The mode is a property of the thread: the guard must not leave it.
    _thread_bound: PhantomData<*const ()>,
}

impl InferenceMode {
    /// Enters the mode. Fails only if libtorch cannot allocate a few bytes; the mode is then off,
    /// which changes speed, never a value.
    #[expect(unsafe_code, reason = "calls the shim")]
    pub(crate) fn enter() -> Self {
        let mut error = std::ptr::null_mut();
        // SAFETY: the pointer to the error is valid.
        let guard = unsafe { nn_inference_enter(&mut error) };
        if guard.is_null() {
            // SAFETY: set by the call above.
            drop(unsafe { take_error(error) });
        }
        Self { guard, _thread_bound: PhantomData }
    }
}

impl Drop for InferenceMode {
    #[expect(unsafe_code, reason = "calls the shim")]
    fn drop(&mut self) {
        if !self.guard.is_null() {
            // SAFETY: made by nn_inference_enter on this thread and left once; guards nest, since
            // `device::inference` is the only maker and holds them on its stack.
            unsafe { nn_inference_leave(self.guard) };
        }
    }
}
