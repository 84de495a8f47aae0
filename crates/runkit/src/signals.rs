//! Stopping politely: the first SIGINT or SIGTERM asks, the second one ends the process at once.
//!
//! [`install`] goes to the start of `main`. Long loops look at [`StopFlag::requested`] between two
//! pieces of work, save, and return the signal's [`crate::exit::ExitStatus`]. Work that has nothing
//! to save (planning, hashing, downloading, loading, merging) calls [`check`] at least once a
//! second and returns its error with `?`: [`crate::program::main`] turns a [`Stopped`] into the
//! exit code of the signal.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::ExitStatus;

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
    /// SIGTERM, which `kill`, containers and job schedulers send.
    Terminate,
}

impl fmt::Display for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// The error of work that ended early because the process was asked to stop. Everything under a
/// final name is whole; the same command resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped by {0}")]
pub struct Stopped(pub Signal);

/// What work that a signal may stop ends with: its result (`Continue`), or the signal (`Break`).
/// Work that has something to save when it stops returns this; work that has nothing to save
/// returns the error [`Stopped`].
pub type Stoppable<T = ()> = ControlFlow<Signal, T>;

/// A [`Stopped`] behind an error as a [`Stoppable`], for the boundary between work that returns the
/// error and its caller.
///
/// # Errors
/// Any other error.
pub fn stoppable<T>(result: anyhow::Result<Stoppable<T>>) -> anyhow::Result<Stoppable<T>> {
    result.or_else(|error| match Stopped::behind(error.as_ref()) {
        Some(Stopped(signal)) => Ok(ControlFlow::Break(signal)),
        None => Err(error),
    })
}

impl Stopped {
    /// Finds a stop behind an error, also if an [`io::Error`] carries it.
    #[must_use]
    pub fn behind(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(stopped) = error.downcast_ref::<Self>() {
                return Some(*stopped);
            }
            // The source of an I/O error skips the error that it was made from.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(stopped) = inner.and_then(|inner| Self::behind(inner)) {
                return Some(stopped);
            }
            cause = error.source();
        }
        None
    }
}

/// So that readers and writers that only know `io::Error` can be stopped. The kind is not
/// `Interrupted`, which the standard library would answer by trying again.
impl From<Stopped> for io::Error {
    fn from(stopped: Stopped) -> Self {
        Self::other(stopped)
    }
}

/// Tells whether the process was asked to stop. Clones are cheap and see the same request.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    /// Number of the last signal; 0 before the first.
    signal: Arc<AtomicUsize>,
}

impl StopFlag {
    /// A flag that no signal sets, for tests and for work that cannot be stopped.
    pub fn never() -> Self {
        Self::default()
    }

    /// The signal that asked this process to stop, if any. Costs one atomic load.
    pub fn requested(&self) -> Option<Signal> {
        match i32::try_from(self.signal.load(Ordering::SeqCst)) {
            Ok(SIGINT) => Some(Signal::Interrupt),
            Ok(SIGTERM) => Some(Signal::Terminate),
            _ => None,
        }
    }

    /// Returns an error if this process was asked to stop. Costs one atomic load.
    ///
    /// # Errors
    /// [`Stopped`] with the signal.
    pub fn check(&self) -> Result<(), Stopped> {
        self.requested().map_or(Ok(()), |signal| Err(Stopped(signal)))
    }

    /// `Break` if this process was asked to stop. Costs one atomic load.
    pub fn flow(&self) -> Stoppable {
        self.requested().map_or(ControlFlow::Continue(()), ControlFlow::Break)
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

static INSTALLED: OnceLock<StopFlag> = OnceLock::new();

/// The flag of the handlers that [`install`] set up in this process; one that is never set before.
#[must_use]
pub fn flag_of_process() -> StopFlag {
    INSTALLED.get().cloned().unwrap_or_default()
}

/// [`StopFlag::check`] on the flag of this process: for code far below the command that installed
/// the handlers, such as a loop that loads tensors. Before [`install`] it never returns an error,
/// and a signal ends the process at once.
///
/// # Errors
/// [`Stopped`] with the signal.
pub fn check() -> Result<(), Stopped> {
    INSTALLED.get().map_or(Ok(()), StopFlag::check)
}

/// Like [`check`], at a point where a test can ask for a stop ([`crate::fault`]).
///
/// # Errors
/// [`Stopped`] with the signal.
pub fn check_at(place: &str) -> Result<(), Stopped> {
    crate::fault::point(place);
    check()
}

/// Installs the handlers for SIGINT and SIGTERM, and ignores SIGXFSZ so that reaching the file-size
/// limit (`ulimit -f`) is an ordinary write error with a path instead of a silent death.
///
/// After the first signal a second one, of either kind, ends the process at once with 130 or 143.
///
/// # Errors
/// When the operating system refuses a handler.
pub fn install() -> io::Result<StopFlag> {
    if let Some(stop) = INSTALLED.get() {
        return Ok(stop.clone());
    }
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
    Ok(INSTALLED.get_or_init(|| stop).clone())
}

/// How long after a signal a process of [`end_soon`] lives.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Ends the process soon after a signal, whatever it is doing. For commands whose files are whole
/// at any instant: nobody waits for a network that loads, a batch or a table. Work that looks at
/// `stop` ends earlier, and politely.
///
/// # Errors
/// If the system refuses a thread.
pub fn end_soon(stop: &StopFlag) -> io::Result<()> {
    let stop = stop.clone();
    let watch = move || {
        let signal = loop {
            match stop.requested() {
                Some(signal) => break signal,
                None => std::thread::sleep(POLL),
            }
        };
        std::thread::sleep(PATIENCE);
        tracing::warn!(
            "stopped by {signal}; finished work is kept: run the same command to resume"
        );
        // Destructors of libraries that are still at work are left out.
        signal_hook::low_level::exit(i32::from(ExitStatus::from(signal).code()));
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop)
}

/// How often a signal is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Ignores SIGXFSZ, as [`install`] does, for commands that are over too soon to be stopped
/// politely.
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

impl From<Signal> for ExitStatus {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Interrupt => Self::Interrupted,
            Signal::Terminate => Self::Terminated,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::{Signal, StopFlag, Stopped, stoppable};

    #[test]
    fn clones_see_the_same_request() {
        let flag = StopFlag::never();
        let clone = flag.clone();
        assert_eq!(clone.requested(), None);
        flag.request(Signal::Terminate);
        assert_eq!(clone.requested(), Some(Signal::Terminate));
        assert_eq!(clone.check(), Err(Stopped(Signal::Terminate)));
        assert_eq!(clone.flow(), ControlFlow::Break(Signal::Terminate));
    }

    #[test]
    fn a_stop_is_a_flow_and_other_errors_stay() {
        let stopped = stoppable::<()>(Err(Stopped(Signal::Interrupt).into()));
        assert_eq!(stopped.unwrap(), ControlFlow::Break(Signal::Interrupt));
        assert_eq!(stoppable(Ok(ControlFlow::Continue(3))).unwrap(), ControlFlow::Continue(3));
        assert!(stoppable::<()>(Err(anyhow::anyhow!("no"))).is_err());
    }

    #[test]
    fn a_stop_is_found_behind_any_error() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading failed")]
        struct Outer(#[source] std::io::Error);

        let stopped = Stopped(Signal::Interrupt);
        assert_eq!(Stopped::behind(&stopped), Some(stopped));
        let wrapped = Outer(std::io::Error::other(std::io::Error::from(stopped)));
        assert_eq!(Stopped::behind(&wrapped), Some(stopped));
        assert_eq!(Stopped::behind(&Outer(std::io::Error::other("no"))), None);
    }
}
