//! Faults on demand, so that crash safety is tested and not hoped for.
//!
//! This is a test facility. With the environment variable `RUNKIT_FAULT` unset (always, outside
//! tests) a passage costs one atomic load. Set to
//!
//! * `NAME:N`, the process is killed with `SIGKILL` right after the N-th passage (1-based) of the
//!   point `NAME`, as a power cut or an out-of-memory kill would;
//! * `NAME:N:ERROR`, the N-th operation `NAME` fails with that error instead of being carried out;
//!   `ERROR` is one of `EIO`, `ENOSPC`, `EDQUOT`, `EFBIG`, `EACCES`, `EROFS`, `ENOSYS`, `ENOTSUP`;
//! * `NAME:*:ERROR`, every operation `NAME` fails with it;
//! * `NAME:N:TERM`, the process gets SIGTERM at the N-th passage of the point `NAME`, and continues
//!   as it does after a signal.
//!
//! [`crate::files::AtomicFile`] passes `open`, `write`, `sync`, `rename` and `marker` (the folder
//! is synced: from here on the file survives a power cut), [`crate::lock`] passes `lock`. Programs
//! add points of their own.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that asks for a fault.
pub const VARIABLE: &str = "RUNKIT_FAULT";

/// A place in the program where the process may be killed: call it right after the operation.
pub fn point(name: &str) {
    if let Some(fault) = configured()
        && fault.error.is_none()
        && fault.is_due(name)
    {
        match fault.terminates {
            true => terminate_this_process(),
            false => kill_this_process(),
        }
    }
}

/// An operation that may be made to fail: call it right before the operation, and pass its error on
/// as the operation's own.
///
/// # Errors
/// The injected error, when the environment asks for one at this passage.
pub fn error_at(name: &str) -> io::Result<()> {
    match configured() {
        Some(fault) if fault.name == name => match fault.error {
            Some(code) if fault.is_due(name) => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct Fault {
    name: String,
    /// Which passage, from 1; `None` for every one.
    passage: Option<u64>,
    error: Option<i32>,
    /// Whether the process is asked to end, rather than killed.
    terminates: bool,
    passed: AtomicU64,
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let passage = match fields.next()? {
            "*" => None,
            number => Some(number.parse().ok().filter(|&passage| passage > 0)?),
        };
        let kind = fields.next();
        let terminates = kind == Some("TERM");
        let error = match kind {
            None | Some("TERM") => None,
            Some("EIO") => Some(libc::EIO),
            Some("ENOSPC") => Some(libc::ENOSPC),
            Some("EDQUOT") => Some(libc::EDQUOT),
            Some("EFBIG") => Some(libc::EFBIG),
            Some("EACCES") => Some(libc::EACCES),
            Some("EROFS") => Some(libc::EROFS),
            Some("ENOSYS") => Some(libc::ENOSYS),
            Some("ENOTSUP") => Some(libc::ENOTSUP),
            Some(_) => return None,
        };
        let whole = fields.next().is_none() && (passage.is_some() || error.is_some());
        let passed = AtomicU64::new(0);
        whole.then_some(Self { name, passage, error, terminates, passed })
    }

    fn is_due(&self, name: &str) -> bool {
        self.name == name
            && self.passage.is_none_or(|due| self.passed.fetch_add(1, Ordering::SeqCst) + 1 == due)
    }
}

fn configured() -> Option<&'static Fault> {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    FAULT
        .get_or_init(|| {
            let text = std::env::var(VARIABLE).ok()?;
            let fault = Fault::parse(&text);
            if fault.is_none() {
                tracing::error!(
                    "{VARIABLE} is ignored: expected NAME:N or NAME:N:ERROR, found {text:?}"
                );
            }
            fault
        })
        .as_ref()
}

#[allow(unsafe_code)]
fn terminate_this_process() {
    // SAFETY: the call takes a plain number; the handler that runs is the one of this process.
    unsafe {
        libc::raise(libc::SIGTERM);
    }
}

#[allow(unsafe_code)]
fn kill_this_process() -> ! {
    // SAFETY: both calls take plain numbers; SIGKILL to oneself does not return to user code, which
    // is the purpose: no destructor and no buffer flush may run.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::Fault;

    #[test]
    fn well_formed_faults_are_read() {
        let fault = Fault::parse("write:3").unwrap();
        assert_eq!((fault.name.as_str(), fault.passage, fault.error), ("write", Some(3), None));
        assert_eq!(Fault::parse("sync:1:EIO").unwrap().error, Some(libc::EIO));
        let fault = Fault::parse("load:2:TERM").unwrap();
        assert_eq!((fault.passage, fault.error, fault.terminates), (Some(2), None, true));
    }

    #[test]
    fn malformed_faults_are_refused() {
        for text in [
            "",
            "write",
            "write:",
            "write:0",
            "write:x",
            "write:*",
            ":1",
            "write:1:EWHAT",
            "a:1:EIO:",
            "a:*:TERM",
        ] {
            assert!(Fault::parse(text).is_none(), "{text:?} was accepted");
        }
    }

    #[test]
    fn only_the_asked_passage_is_due() {
        let fault = Fault::parse("write:2").unwrap();
        let due: Vec<bool> =
            ["write", "sync", "write", "write"].iter().map(|name| fault.is_due(name)).collect();
        assert_eq!(due, [false, false, true, false]);
    }
}
