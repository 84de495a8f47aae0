//! Collective operations of NCCL on a GPU (`csrc/collective.h`).

use std::ffi::{c_int, c_void};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::collective::handle;
use super::{ErrorText, done};

/// The bytes of a ncclUniqueId.
pub(crate) const ID_BYTES: usize = 128;

#[expect(unsafe_code, reason = "declarations of csrc/collective.h")]
unsafe extern "C" {
    fn nn_nccl_unique_id(id: *mut u8, error: ErrorText) -> bool;
    fn nn_nccl_open(
        device: c_int,
        rank: c_int,
        world: c_int,
        id: *const u8,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_nccl_check(group: *mut c_void, error: ErrorText) -> bool;
    fn nn_nccl_abort(group: *mut c_void);
    fn nn_nccl_close(group: *mut c_void);
    fn nn_nccl_all_reduce(
        group: *mut c_void,
        tensor: *const C_tensor,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_nccl_broadcast(
        group: *mut c_void,
        tensor: *const C_tensor,
        from: c_int,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_nccl_all_gather(
        group: *mut c_void,
        into: *const C_tensor,
        from: *const C_tensor,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_nccl_reduce_scatter(
        group: *mut c_void,
        into: *const C_tensor,
        from: *const C_tensor,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_nccl_work_wait(work: *mut c_void, error: ErrorText) -> bool;
    fn nn_nccl_work_query(work: *mut c_void, over: *mut bool, error: ErrorText) -> bool;
    fn nn_nccl_work_close(work: *mut c_void);
}

/// The name under which the ranks of a communicator meet. Opens NCCL.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn unique_id() -> Result<[u8; ID_BYTES], TchError> {
    let mut id = [0; ID_BYTES];
    // SAFETY: writes so many bytes.
    unsafe { done(|error| nn_nccl_unique_id(id.as_mut_ptr(), error))? };
    Ok(id)
}

/// A communicator on one GPU.
#[derive(Debug)]
pub(crate) struct NcclGroup(*mut c_void);

#[expect(unsafe_code, reason = "the handle is bound to no thread")]
// SAFETY: each function of the shim sets the GPU of its thread.
unsafe impl Send for NcclGroup {}

#[expect(unsafe_code, reason = "a watching thread checks and aborts")]
// SAFETY: NCCL allows both while another thread begins operations, and no two threads begin
// operations at once: the owner locks around them.
unsafe impl Sync for NcclGroup {}

#[expect(unsafe_code, reason = "calls the shim: the handle lives as long as `self`")]
impl NcclGroup {
    /// Joins the communicator, once all ranks do.
    pub(crate) fn open(
        device: usize,
        rank: usize,
        world: usize,
        id: &[u8; ID_BYTES],
    ) -> Result<Self, TchError> {
        let number = |value| c_int::try_from(value).unwrap_or(c_int::MAX);
        let (device, rank, world) = (number(device), number(rank), number(world));
        // SAFETY: the id has so many bytes, and is borrowed for the call.
        unsafe { handle(|error| nn_nccl_open(device, rank, world, id.as_ptr(), error)).map(Self) }
    }

    /// The error that NCCL has found since, if there is one.
    pub(crate) fn check(&self) -> Result<(), TchError> {
        // SAFETY: the handle is alive.
        unsafe { done(|error| nn_nccl_check(self.0, error)) }
    }

    /// Ends operations that hang; there can be no others after.
    pub(crate) fn abort(&self) {
        // SAFETY: the handle is alive.
        unsafe { nn_nccl_abort(self.0) }
    }

    /// Starts to replace the tensor by the sum over all ranks.
    pub(crate) fn all_reduce(&self, tensor: &Tensor) -> Result<NcclWork, TchError> {
        // SAFETY: the work keeps the tensor.
        unsafe { handle(|error| nn_nccl_all_reduce(self.0, tensor.as_ptr(), error)).map(NcclWork) }
    }

    /// Starts to overwrite the tensor by that of rank `from`.
    pub(crate) fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<NcclWork, TchError> {
        let from = c_int::try_from(from).unwrap_or(c_int::MAX);
        // SAFETY: as above.
        unsafe {
            handle(|error| nn_nccl_broadcast(self.0, tensor.as_ptr(), from, error)).map(NcclWork)
        }
    }

    /// Starts to put `from` of all ranks one after another into `into`.
    pub(crate) fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<NcclWork, TchError> {
        // SAFETY: as above.
        unsafe {
            handle(|error| nn_nccl_all_gather(self.0, into.as_ptr(), from.as_ptr(), error))
                .map(NcclWork)
        }
    }

    /// Starts to sum `from` over all ranks; each gets its part of the sum.
    pub(crate) fn reduce_scatter(
        &self,
        into: &Tensor,
        from: &Tensor,
    ) -> Result<NcclWork, TchError> {
        // SAFETY: as above.
        unsafe {
            handle(|error| nn_nccl_reduce_scatter(self.0, into.as_ptr(), from.as_ptr(), error))
                .map(NcclWork)
        }
    }
}

impl Drop for NcclGroup {
    #[expect(unsafe_code, reason = "calls the shim")]
    fn drop(&mut self) {
        // SAFETY: made by nn_nccl_open, closed once.
        unsafe { nn_nccl_close(self.0) }
    }
}

/// An operation of a [`NcclGroup`] under way.
#[derive(Debug)]
pub(crate) struct NcclWork(*mut c_void);

#[expect(unsafe_code, reason = "the handle is bound to no thread")]
// SAFETY: the shim sets the GPU of its thread.
unsafe impl Send for NcclWork {}

#[expect(unsafe_code, reason = "a watching thread asks whether it is over")]
// SAFETY: both functions only read the event.
unsafe impl Sync for NcclWork {}

#[expect(unsafe_code, reason = "calls the shim: the handle lives as long as `self`")]
impl NcclWork {
    /// Lets the current stream wait for the end; the host does not.
    pub(crate) fn wait_on_stream(&self) -> Result<(), TchError> {
        // SAFETY: the handle is alive.
        unsafe { done(|error| nn_nccl_work_wait(self.0, error)) }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> Result<bool, TchError> {
        let mut over = false;
        // SAFETY: writes the answer.
        unsafe { done(|error| nn_nccl_work_query(self.0, &mut over, error))? };
        Ok(over)
    }
}

impl Drop for NcclWork {
    #[expect(unsafe_code, reason = "calls the shim")]
    fn drop(&mut self) {
        // SAFETY: made by an operation above, closed once.
        unsafe { nn_nccl_work_close(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_found_or_asked_for_and_needs_a_gpu() {
        match unique_id() {
            Ok(id) => {
                assert_ne!(id, [0; ID_BYTES]);
                if !tch::Cuda::is_available() {
                    let message = NcclGroup::open(0, 0, 1, &id).unwrap_err().to_string();
                    assert!(!message.contains('\n'), "{message}");
                }
            }
            // A libtorch without CUDA.
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("libnccl") && message.contains("pip"), "{message}");
            }
        }
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU: scripts/gpu/check.sh runs it"]
    fn operations_after_an_abort_are_refused_on_a_gpu() {
        let group = NcclGroup::open(0, 0, 1, &unique_id().unwrap()).unwrap();
        let tensor = Tensor::ones([1000], (tch::Kind::Float, tch::Device::Cuda(0)));
        let work = group.all_reduce(&tensor).unwrap();
        work.wait_on_stream().unwrap();
        while !work.is_over().unwrap() {}
        group.check().unwrap();
        group.abort();
        assert!(group.all_reduce(&tensor).unwrap_err().to_string().contains("aborted"));
    }
}
