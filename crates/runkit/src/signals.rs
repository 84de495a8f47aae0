//! Stopping politely: the first SIGINT or SIGTERM asks, the second one ends the process at once.
//!
//! [`install`] goes to the start of `main`. Long loops look at [`StopFlag::requested`] between two
//! pieces of work, save, and return the signal's [`crate::exit::ExitStatus`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
    /// SIGTERM, which `kill`, containers and job schedulers send.
    Terminate,
}

/// Tells whether the process was asked to stop. Clones are cheap and see the same request.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    /// Number of the last signal; 0 when there was none.
    signal: Arc<AtomicUsize>,
}

impl StopFlag {
    /// A flag that no signal sets, for tests and for work that cannot be stopped.
    pub fn never() -> Self {
        Self::default()
    }

    /// The signal that asked this process to stop, if one did. Costs one atomic load.
    pub fn requested(&self) -> Option<Signal> {
        match i32::try_from(self.signal.load(Ordering::SeqCst)) {
            Ok(SIGINT) => Some(Signal::Interrupt),
            Ok(SIGTERM) => Some(Signal::Terminate),
            _ => None,
        }
    }

    /// Asks for a stop from inside the program, as `signal` would.
    pub fn request(&self, signal: Signal) {
        let number = match signal {
            Signal::Interrupt => SIGINT,
            Signal::Terminate => SIGTERM,
        };
        self.signal.store(number.unsigned_abs() as usize, Ordering::SeqCst);
    }
}

/// Installs the handlers for SIGINT and SIGTERM, and ignores SIGXFSZ so that reaching the file-size
/// limit (`ulimit -f`) is an ordinary write error with a path instead of a silent death.
///
/// After the first signal a second one, of either kind, ends the process at once with 130 or 143.
///
/// # Errors
/// When the operating system refuses a handler.
pub fn install() -> io::Result<StopFlag> {
    let stop = StopFlag::default();
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in the order of registration: the shutdown looks at what the first left.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
        let number = signal.unsigned_abs() as usize;
        flag::register_usize(signal, Arc::clone(&stop.signal), number)?;
        flag::register(signal, Arc::clone(&asked))?;
    }
    ignore_file_size_signal()?;
    Ok(stop)
}

/// Ignores SIGXFSZ, as [`install`] does, for commands that are over too soon to be stopped politely.
///
/// # Errors
/// When the operating system refuses.
pub fn ignore_file_size_signal() -> io::Result<()> {
    set_disposition(libc::SIGXFSZ, libc::SIG_IGN)
}

/// Gives SIGPIPE its default action, so that `program inspect | head` ends silently as `cat` would,
/// and not with an error about a broken pipe.
///
/// For commands whose product goes to stdout. A long run should not call it: it must survive the
/// reader of its log going away.
///
/// # Errors
/// When the operating system refuses.
pub fn quiet_broken_pipe() -> io::Result<()> {
    set_disposition(libc::SIGPIPE, libc::SIG_DFL)
}

#[allow(unsafe_code)]
fn set_disposition(signal: i32, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: `action` is SIG_IGN or SIG_DFL, no function of ours; `signal` is a valid number.
    let previous = unsafe { libc::signal(signal, action) };
    if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{Signal, StopFlag};

    #[test]
    fn clones_see_the_same_request() {
        let flag = StopFlag::never();
        let clone = flag.clone();
        assert_eq!(clone.requested(), None);
        flag.request(Signal::Terminate);
        assert_eq!(clone.requested(), Some(Signal::Terminate));
    }
}
