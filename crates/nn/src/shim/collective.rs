//! c10d of libtorch (`csrc/collective.h`): the TCP store, and process groups on Gloo.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{ErrorText, done, nn_free_text, take_error};

#[expect(unsafe_code, reason = "declarations of csrc/collective.h")]
unsafe extern "C" {
    fn nn_store_open(
        host: *const c_char,
        port: u16,
        serve: bool,
        limit_ms: i64,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_store_close(store: *mut c_void);
    fn nn_store_add(
        store: *mut c_void,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        error: ErrorText,
    ) -> bool;
    fn nn_store_set(
        store: *mut c_void,
        key: *const c_char,
        value: *const u8,
        size: usize,
        error: ErrorText,
    ) -> bool;
    fn nn_store_check(
        store: *mut c_void,
        keys: *const *const c_char,
        count: usize,
        found: *mut bool,
        error: ErrorText,
    ) -> bool;
    fn nn_store_get(
        store: *mut c_void,
        key: *const c_char,
        size: *mut usize,
        error: ErrorText,
    ) -> *mut u8;

    fn nn_gloo_open(
        store: *mut c_void,
        prefix: *const c_char,
        rank: c_int,
        world: c_int,
        interface: *const c_char,
        host: *const c_char,
        limit_ms: i64,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_gloo_close(group: *mut c_void);
    fn nn_gloo_all_reduce(
        group: *mut c_void,
        tensor: *const C_tensor,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_gloo_broadcast(
        group: *mut c_void,
        tensor: *const C_tensor,
        from: c_int,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_gloo_all_gather(
        group: *mut c_void,
        into: *const C_tensor,
        from: *const C_tensor,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_gloo_reduce_scatter(
        group: *mut c_void,
        into: *const C_tensor,
        from: *const C_tensor,
        error: ErrorText,
    ) -> *mut c_void;
    fn nn_work_wait(work: *mut c_void, limit_ms: i64, over: *mut bool, error: ErrorText) -> bool;
    fn nn_work_close(work: *mut c_void);
}

fn milliseconds(limit: Duration) -> i64 {
    // Zero would be c10d's word for no limit.
    i64::try_from(limit.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn text(value: &str) -> Result<CString, TchError> {
    CString::new(value).map_err(|_| TchError::Torch(format!("{value:?} holds a NUL")))
}

/// The handle that `call` returns, or its error.
///
/// # Safety
///
/// With null, `call` leaves the error's text null or sets it to a message of the shim.
#[expect(unsafe_code, reason = "takes a text of the shim")]
pub(super) unsafe fn handle(
    call: impl FnOnce(ErrorText) -> *mut c_void,
) -> Result<*mut c_void, TchError> {
    let mut error = std::ptr::null_mut();
    let handle = call(&mut error);
    // SAFETY: the caller vouches for the text.
    if handle.is_null() { Err(unsafe { take_error(error) }) } else { Ok(handle) }
}

/// A connection to a TCP store, and the store itself where this process serves it.
#[derive(Debug)]
pub(crate) struct TcpStore(*mut c_void);

#[expect(unsafe_code, reason = "the handle is bound to no thread")]
// SAFETY: a TCPStore locks around each operation.
unsafe impl Send for TcpStore {}

#[expect(unsafe_code, reason = "calls the shim: the handle lives as long as `self`")]
impl TcpStore {
    /// Connects, and serves the store first if `serve` is set.
    pub(crate) fn open(
        host: &str,
        port: u16,
        serve: bool,
        limit: Duration,
    ) -> Result<Self, TchError> {
        let host = text(host)?;
        // SAFETY: the text is borrowed for the call.
        let store = unsafe {
            handle(|error| nn_store_open(host.as_ptr(), port, serve, milliseconds(limit), error))?
        };
        Ok(Self(store))
    }

    /// Adds to the number under the key, which starts at 0.
    pub(crate) fn add(&self, key: &str, amount: i64) -> Result<i64, TchError> {
        let (key, mut sum) = (text(key)?, 0);
        // SAFETY: writes the sum.
        unsafe { done(|error| nn_store_add(self.0, key.as_ptr(), amount, &mut sum, error))? };
        Ok(sum)
    }

    /// Writes a value.
    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), TchError> {
        let key = text(key)?;
        // SAFETY: key and value are borrowed for the call.
        unsafe {
            done(|error| nn_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len(), error))
        }
    }

    /// Whether all keys are there.
    pub(crate) fn has<S: AsRef<str>>(&self, keys: &[S]) -> Result<bool, TchError> {
        let keys: Vec<CString> =
            keys.iter().map(|key| text(key.as_ref())).collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr()).collect();
        let mut found = false;
        // SAFETY: the keys are borrowed for the call, which writes the answer.
        unsafe {
            done(|error| {
                nn_store_check(self.0, pointers.as_ptr(), pointers.len(), &mut found, error)
            })?;
        }
        Ok(found)
    }

    /// The value, if it is there.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, TchError> {
        if !self.has(&[key])? {
            return Ok(None);
        }
        let (key, mut size, mut error) = (text(key)?, 0, std::ptr::null_mut());
        // SAFETY: writes the size; with a value, so many bytes are there, which are ours to free.
        unsafe {
            let value = nn_store_get(self.0, key.as_ptr(), &mut size, &mut error);
            if value.is_null() {
                return Err(take_error(error));
            }
            let copy = std::slice::from_raw_parts(value, size).to_vec();
            nn_free_text(value.cast());
            Ok(Some(copy))
        }
    }
}

impl Drop for TcpStore {
    #[expect(unsafe_code, reason = "calls the shim")]
    fn drop(&mut self) {
        // SAFETY: made by nn_store_open, closed once.
        unsafe { nn_store_close(self.0) }
    }
}

/// Where a process listens for its peers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listen {
    /// A network interface, if one is given.
    pub(crate) interface: String,
    /// Else an address of this machine; if it is empty too, that of the machine's name.
    pub(crate) host: String,
}

/// A process group on Gloo.
#[derive(Debug)]
pub(crate) struct GlooGroup(*mut c_void);

#[expect(unsafe_code, reason = "the handle is bound to no thread")]
// SAFETY: operations may begin on any thread, one at a time.
unsafe impl Send for GlooGroup {}

#[expect(unsafe_code, reason = "calls the shim: the handle lives as long as `self`")]
impl GlooGroup {
    /// Connects to the other ranks.
    pub(crate) fn open(
        store: &TcpStore,
        prefix: &str,
        rank: usize,
        world: usize,
        listen: &Listen,
        limit: Duration,
    ) -> Result<Self, TchError> {
        let number = |value| c_int::try_from(value).unwrap_or(c_int::MAX);
        let (rank, world) = (number(rank), number(world));
        let (prefix, interface, host) =
            (text(prefix)?, text(&listen.interface)?, text(&listen.host)?);
        // SAFETY: the store and the texts are borrowed for the call.
        let group = unsafe {
            handle(|error| {
                nn_gloo_open(
                    store.0,
                    prefix.as_ptr(),
                    rank,
                    world,
                    interface.as_ptr(),
                    host.as_ptr(),
                    milliseconds(limit),
                    error,
                )
            })?
        };
        Ok(Self(group))
    }

    /// Starts to replace the tensor by the sum over all ranks.
    pub(crate) fn all_reduce(&self, tensor: &Tensor) -> Result<GlooWork, TchError> {
        // SAFETY: c10d keeps the tensor until the work is over.
        unsafe { handle(|error| nn_gloo_all_reduce(self.0, tensor.as_ptr(), error)).map(GlooWork) }
    }

    /// Starts to overwrite the tensor by that of rank `from`.
    pub(crate) fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<GlooWork, TchError> {
        let from = c_int::try_from(from).unwrap_or(c_int::MAX);
        // SAFETY: as above.
        unsafe {
            handle(|error| nn_gloo_broadcast(self.0, tensor.as_ptr(), from, error)).map(GlooWork)
        }
    }

    /// Starts to put `from` of all ranks one after another into `into`.
    pub(crate) fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<GlooWork, TchError> {
        // SAFETY: as above.
        unsafe {
            handle(|error| nn_gloo_all_gather(self.0, into.as_ptr(), from.as_ptr(), error))
                .map(GlooWork)
        }
    }

    /// Starts to sum `from` over all ranks; each gets its part of the sum.
    pub(crate) fn reduce_scatter(
        &self,
        into: &Tensor,
        from: &Tensor,
    ) -> Result<GlooWork, TchError> {
        // SAFETY: as above.
        unsafe {
            handle(|error| nn_gloo_reduce_scatter(self.0, into.as_ptr(), from.as_ptr(), error))
                .map(GlooWork)
        }
    }
}

impl Drop for GlooGroup {
    #[expect(unsafe_code, reason = "calls the shim")]
    fn drop(&mut self) {
        // SAFETY: made by nn_gloo_open, closed once.
        unsafe { nn_gloo_close(self.0) }
    }
}

/// An operation of a [`GlooGroup`] under way.
#[derive(Debug)]
pub(crate) struct GlooWork(*mut c_void);

#[expect(unsafe_code, reason = "the handle is bound to no thread")]
// SAFETY: c10d's work locks around its state.
unsafe impl Send for GlooWork {}

impl GlooWork {
    /// Waits at most so long; whether it is over. An error if it failed.
    #[expect(unsafe_code, reason = "calls the shim")]
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool, TchError> {
        let mut over = false;
        // SAFETY: writes the answer.
        unsafe {
            done(|error| nn_work_wait(self.0, milliseconds(limit), &mut over, error))?;
        }
        Ok(over)
    }
}

impl Drop for GlooWork {
    #[expect(unsafe_code, reason = "calls the shim")]
    fn drop(&mut self) {
        // SAFETY: made by an operation above, closed once.
        unsafe { nn_work_close(self.0) }
    }
}
