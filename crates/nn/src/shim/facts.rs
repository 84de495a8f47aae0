//! What libtorch, the CUDA driver and NCCL say about themselves.

use std::ffi::{CStr, c_char};

use tch::TchError;

use super::{nn_free_text, take_error};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_facts(all: bool, error: *mut *mut c_char) -> *mut c_char;
}

/// The facts by name; without `all` only the versions of the build, which takes no time.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn facts(all: bool) -> Result<Vec<(String, String)>, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the pointer to the error is valid.
    let text = unsafe { nn_facts(all, &mut error) };
    if text.is_null() {
        return Err(take_error(error));
    }
    // SAFETY: a string made by strdup, given to us.
    let lines = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above; freed once, not used after.
    unsafe { nn_free_text(text) };
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}
