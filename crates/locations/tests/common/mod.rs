//! Helpers of the tests of locations.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use locations::{Access, Limits, Location};
use runkit::signals::StopFlag;

/// Limits that make a test of patience short.
pub(crate) fn short() -> Limits {
    Limits {
        connect: Duration::from_secs(1),
        idle: Duration::from_millis(600),
        window: Duration::from_millis(400),
        least_bytes: 1000,
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(100),
        total: Duration::from_secs(2),
    }
}

/// An access with these variables.
pub(crate) fn access(variables: Vec<(String, String)>) -> Access {
    Access::new(variables, short(), StopFlag::never())
}

/// A location.
pub(crate) fn at(access: &Access, text: &str) -> Location {
    Location::parse_with(access, Path::new(text)).unwrap()
}

/// Bytes that differ everywhere.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}
