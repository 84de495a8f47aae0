//! Downloads from small servers on this machine that answer as the hub, its mirrors and proxies do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

mod contents;
mod fixture;
mod network;
mod processes;
