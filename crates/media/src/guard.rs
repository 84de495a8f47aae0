//! Catches panics while one image is decoded and preprocessed: they cost that image, not the run.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` returns, or its message if it panics.
///
/// Unwinding is safe here: `work` borrows an image and buffers that nothing reads after a panic,
/// and the next image overwrites each buffer from its beginning.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "an error without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::panic, reason = "panics are what is caught")]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(
            caught(|| -> () { panic!("index {} out of range", 7) }).unwrap_err(),
            "index 7 out of range"
        );
        assert_eq!(caught(|| -> () { panic!("plain") }).unwrap_err(), "plain");
    }
}
