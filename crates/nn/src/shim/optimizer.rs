//! Steps of optimizers over lists of tensors, and the clipping of gradients.

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, done, pointers, tensor};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
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
        error: ErrorText,
    ) -> bool;
    fn nn_clip_gradients(
        gradients: *const *const C_tensor,
        count: usize,
        max_norm: f64,
        error: ErrorText,
    ) -> *mut C_tensor;
    fn nn_drop_gradients(
        parameters: *const *const C_tensor,
        count: usize,
        error: ErrorText,
    ) -> bool;
    fn nn_set_gradients(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        count: usize,
        error: ErrorText,
    ) -> bool;
    fn nn_route_gradient(copy: *const C_tensor, weight: *const C_tensor, error: ErrorText) -> bool;
    fn nn_copy_all(
        targets: *const *const C_tensor,
        sources: *const *const C_tensor,
        count: usize,
        error: ErrorText,
    ) -> bool;
    fn nn_add_scaled(
        target: *const C_tensor,
        addend: *const C_tensor,
        factor: f64,
        error: ErrorText,
    ) -> bool;
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

/// One step of AdamW by PyTorch's fused kernel, which first adds one to each step count.
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
    // SAFETY: every list holds `count` tensors that are borrowed for the call.
    unsafe {
        done(|error| {
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
                error,
            )
        })
    }
}

/// The gradient norm: the 2-norm of all gradients together. If it exceeds a finite `max_norm`, the
/// gradients are scaled in place. At least one gradient.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn clip_gradients(gradients: &[Tensor], max_norm: f64) -> Result<Tensor, TchError> {
    let list = pointers(gradients);
    // SAFETY: the tensors are borrowed for the call.
    unsafe { tensor(|error| nn_clip_gradients(list.as_ptr(), list.len(), max_norm, error)) }
}

/// Takes the gradients off the parameters.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn drop_gradients(parameters: &[Tensor]) -> Result<(), TchError> {
    let list = pointers(parameters);
    // SAFETY: the tensors are borrowed for the call.
    unsafe { done(|error| nn_drop_gradients(list.as_ptr(), list.len(), error)) }
}

/// Makes each tensor of `gradients` the gradient of the parameter at its place.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn set_gradients(parameters: &[Tensor], gradients: &[Tensor]) -> Result<(), TchError> {
    assert_eq!(parameters.len(), gradients.len(), "lists have equal length");
    let (owners, list) = (pointers(parameters), pointers(gradients));
    // SAFETY: both lists hold as many tensors, borrowed for the call.
    unsafe { done(|error| nn_set_gradients(owners.as_ptr(), list.as_ptr(), list.len(), error)) }
}

/// From now on the backward pass adds the gradient of `copy`, a leaf in half precision, to the
/// gradient of the f32 leaf `weight`, and leaves none at `copy`.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn route_gradient(copy: &Tensor, weight: &Tensor) -> Result<(), TchError> {
    let (copy, weight) = (copy.as_ptr(), weight.as_ptr());
    // SAFETY: the tensors are borrowed for the call; the shim keeps an owner of the weight.
    unsafe { done(|error| nn_route_gradient(copy, weight, error)) }
}

/// Copies each source into the target at its place, rounded to its dtype.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn copy_all(targets: &[Tensor], sources: &[Tensor]) -> Result<(), TchError> {
    assert_eq!(targets.len(), sources.len(), "lists have equal length");
    let (to, from) = (pointers(targets), pointers(sources));
    // SAFETY: both lists hold as many tensors, borrowed for the call.
    unsafe { done(|error| nn_copy_all(to.as_ptr(), from.as_ptr(), to.len(), error)) }
}

/// `target += factor · addend`, in place, rounded once if the processor can.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn add_scaled(
    target: &mut Tensor,
    addend: &Tensor,
    factor: f64,
) -> Result<(), TchError> {
    let (target, addend) = (target.as_ptr(), addend.as_ptr());
    // SAFETY: the tensors are borrowed for the call.
    unsafe { done(|error| nn_add_scaled(target, addend, factor, error)) }
}
