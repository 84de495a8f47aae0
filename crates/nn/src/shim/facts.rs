//! What libtorch, the CUDA driver and NCCL say about themselves.

use std::ffi::c_char;

use tch::TchError;

use super::{ErrorText, take_error, take_text};

#[expect(unsafe_code, reason = "declarations of csrc/shim.h")]
unsafe extern "C" {
    fn nn_facts(all: bool, error: ErrorText) -> *mut c_char;
}

/// The facts by name; without `all` only the versions of the build, which takes no time.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn facts(all: bool) -> Result<Vec<(String, String)>, TchError> {
    let mut error = std::ptr::null_mut();
    // SAFETY: the text, or with null the error, is a string of the shim's that is ours now.
    let lines = unsafe {
        let text = nn_facts(all, &mut error);
        if text.is_null() {
            return Err(take_error(error));
        }
        take_text(text)
    };
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}
