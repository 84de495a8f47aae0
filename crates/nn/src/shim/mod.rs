//! Safe faces of the C++ shim (`csrc/shim.h`). All `unsafe` code of the crate is in this module and
//! in `weights/mapped.rs`.

pub(crate) mod facts;
pub(crate) mod kernels;

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_free_text(text: *mut c_char);
    fn nn_tensor_over_memory(
        data: *mut c_void,
        sizes: *const i64,
        strides: *const i64,
        dimensions: usize,
        scalar_type: c_int,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_inference_enter(error: *mut *mut c_char) -> *mut c_void;
    fn nn_inference_leave(guard: *mut c_void);
    fn nn_linear_scaled(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        scale: f64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_linear_pack(weight: *const C_tensor, rows: i64, error: *mut *mut c_char)
    -> *mut C_tensor;
    fn nn_linear_packed(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        activation: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_conv2d_pack(
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        input_size: *const i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_conv2d_packed(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_linear_upcast(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_conv2d_upcast(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_channels_last(tensor: *const C_tensor, error: *mut *mut c_char) -> *mut C_tensor;
    fn nn_reuse_memory();
    fn nn_upload(tensor: *const C_tensor, device: c_int, error: *mut *mut c_char) -> *mut C_tensor;
    fn nn_peak_device_bytes(
        device: c_int,
        allocated: *mut u64,
        reserved: *mut u64,
        error: *mut *mut c_char,
    ) -> bool;
    fn nn_has_bf16(device: c_int, answer: *mut bool, error: *mut *mut c_char) -> bool;
    fn nn_normal(
        seed: u64,
        sizes: *const i64,
        dimensions: usize,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_checkpoint(
        inputs: *const *const C_tensor,
        count: usize,
        run: extern "C" fn(
            *mut c_void,
            *const *const C_tensor,
            usize,
            *mut *mut c_char,
        ) -> *mut C_tensor,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_fused_adamw(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        first_moments: *const *const C_tensor,
        second_moments: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        error: *mut *mut c_char,
    ) -> bool;
    fn nn_clip_gradients(
        gradients: *const *const C_tensor,
        count: usize,
        max_norm: f64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    fn nn_drop_gradients(
        parameters: *const *const C_tensor,
        count: usize,
        error: *mut *mut c_char,
    ) -> bool;
    fn nn_add_scaled(
        target: *const C_tensor,
        addend: *const C_tensor,
        factor: f64,
        error: *mut *mut c_char,
    ) -> bool;
}

/// Takes the shim's message and frees it.
#[expect(unsafe_code, reason = "reads and frees a C string")]
fn take_error(text: *mut c_char) -> TchError {
    if text.is_null() {
        return TchError::Torch("libtorch failed without a message".to_owned());
    }
    // SAFETY: the shim sets the pointer only to a string made by strdup, and gives it to us.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above; freed once, not used after.
    unsafe { nn_free_text(text) };
    TchError::Torch(message)
}

/// c10::ScalarType's number for the kinds that checkpoints hold (`c10/core/ScalarType.h`).
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
    // A second box, because the inner one is a wide pointer.
    let owner = Box::into_raw(Box::new(owner)).cast::<c_void>();
    let mut error = std::ptr::null_mut();
    // SAFETY: sizes and strides are valid for their common length, the caller vouches for the
    // data, and the shim releases the owner exactly once, also on failure.
    let tensor = unsafe {
        nn_tensor_over_memory(
            data.cast(),
            sizes.as_ptr(),
            strides.as_ptr(),
            sizes.len(),
            scalar_type(kind),
            release,
            owner,
            &mut error,
        )
    };
    // SAFETY: both come from the shim's function just called.
    unsafe { adopt(tensor, error) }
}

/// What a function of the shim returned.
///
/// # Safety
///
/// `tensor` is null, or a fresh at::Tensor that nobody else owns; where it is null, `error` is null
/// or a message of the shim.
#[expect(unsafe_code, reason = "takes ownership of a tensor")]
unsafe fn adopt(tensor: *mut C_tensor, error: *mut c_char) -> Result<Tensor, TchError> {
    if tensor.is_null() {
        return Err(take_error(error));
    }
    // SAFETY: fresh, and from now on ours.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// `scale · input · weightᵀ + bias`, for an input of at least two dimensions.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_scaled(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    scale: f64,
) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call; the result is fresh or null with an error.
    unsafe {
        let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
        adopt(nn_linear_scaled(input, weight, bias, scale, &mut error), error)
    }
}

/// What a packed linear layer does to its result on the way out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum After {
    Nothing,
    /// The exact GELU.
    Gelu,
    /// `x · σ(x)`.
    Swish,
}

/// A weight `[out, in]` in oneDNN's own layout, for inputs of about `rows` rows. Only
/// [`linear_packed`] can read the result.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_pack(weight: &Tensor, rows: i64) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensor is borrowed for the call; the result is fresh or null with an error.
    unsafe { adopt(nn_linear_pack(weight.as_ptr(), rows, &mut error), error) }
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
        After::Swish => c"swish",
    };
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensors and the name are borrowed for the call, the bias may be null; the result
    // is fresh or null with an error.
    unsafe {
        let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
        let (input, weight) = (input.as_ptr(), weight.as_ptr());
        adopt(nn_linear_packed(input, weight, bias, activation.as_ptr(), &mut error), error)
    }
}

/// The weight `[O, I, K, K]` of a convolution in oneDNN's own layout, for inputs of about this
/// size. Only [`conv2d_packed`] can read the result.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn conv2d_pack(
    weight: &Tensor,
    stride: i64,
    padding: i64,
    input_size: &[i64; 4],
) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the arguments are borrowed for the call; the result is fresh or null with an error.
    unsafe {
        let size = input_size.as_ptr();
        adopt(nn_conv2d_pack(weight.as_ptr(), stride, padding, size, &mut error), error)
    }
}

/// A convolution with a weight of [`conv2d_pack`].
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn conv2d_packed(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    stride: i64,
    padding: i64,
) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the arguments are borrowed for the call; the result is fresh or null with an error.
    unsafe {
        let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
        adopt(nn_conv2d_packed(input, weight, bias, stride, padding, &mut error), error)
    }
}

/// `input · weightᵀ + bias` of bf16 numbers, computed in f32 and rounded once; with gradients. An f32
/// weight is rounded to bf16 first.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn linear_upcast(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call, the bias may be null; the result is fresh or
    // null with an error.
    unsafe {
        let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
        adopt(nn_linear_upcast(input.as_ptr(), weight.as_ptr(), bias, &mut error), error)
    }
}

/// A convolution as [`linear_upcast`] is a linear layer.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn conv2d_upcast(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    stride: i64,
    padding: i64,
) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the arguments are borrowed for the call; the result is fresh or null with an error.
    unsafe {
        let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
        adopt(nn_conv2d_upcast(input, weight, bias, stride, padding, &mut error), error)
    }
}

/// `[B, C, H, W]` with the channels last in memory; the same memory where they are.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn channels_last(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensor is borrowed for the call; the result is fresh or null with an error.
    unsafe { adopt(nn_channels_last(tensor.as_ptr(), &mut error), error) }
}

/// From now on, the memory of large CPU tensors is kept for the next ones when they are gone.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn reuse_memory() {
    // SAFETY: sets which allocator makes new tensors; those that are there free themselves as before.
    unsafe { nn_reuse_memory() }
}

/// A CPU tensor on the GPU of this number; nothing waits for the copy.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn upload(tensor: &Tensor, device: usize) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    let device = c_int::try_from(device).unwrap_or(c_int::MAX);
    // SAFETY: the tensor is borrowed for the call; the result is fresh or null with an error.
    unsafe { adopt(nn_upload(tensor.as_ptr(), device, &mut error), error) }
}

/// The most bytes of the GPU of this number that tensors held at once, and that the driver gave for them.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn peak_device_bytes(device: usize) -> Result<[u64; 2], TchError> {
    let (mut allocated, mut reserved, mut error) = (0, 0, std::ptr::null_mut());
    let device = c_int::try_from(device).unwrap_or(c_int::MAX);
    // SAFETY: writes the two numbers, and an error where it returns false.
    let done = unsafe { nn_peak_device_bytes(device, &mut allocated, &mut reserved, &mut error) };
    if done { Ok([allocated, reserved]) } else { Err(take_error(error)) }
}

/// Whether the GPU of this number multiplies bf16 itself; true where there is no GPU to ask.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn has_bf16(device: usize) -> Result<bool, TchError> {
    let (mut answer, mut error) = (true, std::ptr::null_mut());
    let device = c_int::try_from(device).unwrap_or(c_int::MAX);
    // SAFETY: writes the answer, and an error where it returns false.
    let done = unsafe { nn_has_bf16(device, &mut answer, &mut error) };
    if done { Ok(answer) } else { Err(take_error(error)) }
}

/// Unit normal numbers of a CPU generator of this seed.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn normal(seed: u64, sizes: &[i64]) -> Result<Tensor, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the sizes are borrowed for the call; the result is fresh or null with an error.
    unsafe { adopt(nn_normal(seed, sizes.as_ptr(), sizes.len(), &mut error), error) }
}

/// A part of a network from its inputs to its output. On a GPU libtorch's own thread for the device
/// runs it again in the backward pass, so it must be safe to call from there.
pub(crate) type SegmentFunction = Box<dyn Fn(&[Tensor]) -> Result<Tensor, TchError> + Send + Sync>;

/// Runs `segment` without recording, and once more where the gradients are computed: memory is
/// spent on its inputs only. One input at least must record gradients, or none come about.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn checkpoint(inputs: &[&Tensor], segment: SegmentFunction) -> Result<Tensor, TchError> {
    extern "C" fn run(
        owner: *mut c_void,
        inputs: *const *const C_tensor,
        count: usize,
        error: *mut *mut c_char,
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
                let pointer = output.as_ptr().cast_mut();
                // The shim owns it from now on.
                std::mem::forget(output);
                return pointer;
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
    let mut error = std::ptr::null_mut();
    // SAFETY: the inputs are borrowed for the call, and the shim releases the owner exactly once.
    // The segment may run on a thread of libtorch's, which its type allows.
    unsafe {
        let output =
            nn_checkpoint(pointers.as_ptr(), pointers.len(), run, release, owner, &mut error);
        adopt(output, error)
    }
}

/// What one step of AdamW reads and writes: lists of equal length and order, f32.
#[derive(Debug)]
pub(crate) struct AdamWTensors<'a> {
    pub(crate) parameters: &'a [Tensor],
    pub(crate) gradients: &'a [Tensor],
    pub(crate) first_moments: &'a [Tensor],
    pub(crate) second_moments: &'a [Tensor],
    /// One number each.
    pub(crate) steps: &'a [Tensor],
}

/// One step of AdamW by PyTorch's fused kernel; the step counts are raised by one first.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn fused_adamw(
    tensors: &AdamWTensors<'_>,
    learning_rate: f64,
    [beta1, beta2]: [f64; 2],
    weight_decay: f64,
    epsilon: f64,
) -> Result<(), TchError> {
    let count = tensors.parameters.len();
    let lists = [
        tensors.parameters,
        tensors.gradients,
        tensors.first_moments,
        tensors.second_moments,
        tensors.steps,
    ];
    assert!(lists.iter().all(|list| list.len() == count), "lists have equal length");
    let [parameters, gradients, first, second, steps] = lists.map(pointers);
    let mut error = std::ptr::null_mut();
    // SAFETY: every list holds `count` tensors that are borrowed for the call.
    let done = unsafe {
        nn_fused_adamw(
            parameters.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            steps.as_ptr(),
            count,
            learning_rate,
            beta1,
            beta2,
            weight_decay,
            epsilon,
            &mut error,
        )
    };
    if done { Ok(()) } else { Err(take_error(error)) }
}

/// The norm of all gradients together, which are scaled in place where it exceeds a finite
/// `max_norm`. At least one gradient.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn clip_gradients(gradients: &[Tensor], max_norm: f64) -> Result<Tensor, TchError> {
    let list = pointers(gradients);
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call; the result is fresh or null with an error.
    unsafe { adopt(nn_clip_gradients(list.as_ptr(), list.len(), max_norm, &mut error), error) }
}

/// Takes the gradients off the parameters.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn drop_gradients(parameters: &[Tensor]) -> Result<(), TchError> {
    let list = pointers(parameters);
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call.
    let done = unsafe { nn_drop_gradients(list.as_ptr(), list.len(), &mut error) };
    if done { Ok(()) } else { Err(take_error(error)) }
}

/// `target += factor · addend`, in place, rounded once where the processor can.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn add_scaled(
    target: &mut Tensor,
    addend: &Tensor,
    factor: f64,
) -> Result<(), TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call.
    let done = unsafe { nn_add_scaled(target.as_ptr(), addend.as_ptr(), factor, &mut error) };
    if done { Ok(()) } else { Err(take_error(error)) }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
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
            drop(take_error(error));
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

#[cfg(test)]
mod tests {
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

    /// A layer over bf16 numbers against the same one written in f32, which rounds at the same places:
    /// bit for bit, but for the order of sums.
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
    fn widened_layers_round_once_and_have_gradients() {
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
                conv2d_upcast(&leaves[0], &leaves[1], &leaves[2], stride, 1).unwrap()
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
