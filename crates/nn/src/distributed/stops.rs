//! A stop signal of one rank, told to all.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use runkit::signals::{Signal, StopFlag};

use super::{DistributedError, Store};

/// The key of the store under which a rank leaves the signal that it got.
const KEY: &str = "stop";
/// How often a rank looks for it.
const POLL: Duration = Duration::from_millis(300);

/// Runs `work`, and meanwhile tells a stop signal of this process to all ranks, and sets `stop` if
/// another rank got one. So work that looks at the flag, such as hashing or generating, ends within
/// a moment at every rank. It does not end at the same place: ranks that take part in collective
/// operations still have to agree on where they stop.
pub fn sharing_stops<T>(store: Option<&Store>, stop: &StopFlag, work: impl FnOnce() -> T) -> T {
    let Some(store) = store else { return work() };
    std::thread::scope(|scope| {
        let (end, ended) = channel::<()>();
        scope.spawn(move || {
            let mut is_shared = false;
            // The sender is dropped when the work is over.
            while !is_shared && ended.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                match share(store, stop) {
                    Ok(shared) => is_shared = shared,
                    // Without a store other ranks are lost, too: collective operations say so.
                    Err(_) => break,
                }
            }
            // A signal may end the work between two looks.
            if !is_shared && stop.requested().is_some() {
                let _ = share(store, stop);
            }
        });
        let result = work();
        drop(end);
        result
    })
}

/// Whether all ranks know of a signal: that of this one, or of another.
fn share(store: &Store, stop: &StopFlag) -> Result<bool, DistributedError> {
    if let Some(signal) = stop.requested() {
        store.set(KEY, &[code(signal)])?;
        return Ok(true);
    }
    let told = store.get(KEY)?.and_then(|value| value.first().copied());
    let Some(told) = told else { return Ok(false) };
    let signals = [Signal::Interrupt, Signal::Terminate];
    let signal = signals.into_iter().find(|signal| code(*signal) == told);
    stop.request(signal.unwrap_or(Signal::Terminate));
    Ok(true)
}

fn code(signal: Signal) -> u8 {
    match signal {
        Signal::Interrupt => b'i',
        Signal::Terminate => b't',
    }
}
