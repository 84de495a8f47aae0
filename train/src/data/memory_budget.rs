//! A bound on the bytes that are read and not yet used.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Grants permits for bytes up to a limit, like a semaphore.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: u64,
    closed: bool,
}

/// The permission to hold some bytes; dropping it returns them.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl MemoryBudget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The numbers are valid even if another thread panicked with the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` more fit and takes them. `own` is what the caller already holds of a
    /// window that nobody can use before it is complete. If nothing else is held, waiting would
    /// never end, so the limit gives way. `None` once the budget is closed.
    pub(super) fn take(self: &Arc<Self>, bytes: u64, own: u64) -> Option<Permit> {
        let mut state = self.state();
        while !state.closed && state.held > own && state.held.saturating_add(bytes) > self.limit {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.held = state.held.saturating_add(bytes);
        Some(Permit { budget: Arc::clone(self), bytes })
    }

    /// Ends all waiting.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.state().held
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.held = state.held.saturating_sub(self.bytes);
        drop(state);
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn permits_wait_for_others_but_never_for_their_own() {
        let budget = MemoryBudget::new(10);
        let first = budget.take(8, 0).unwrap();
        // A window larger than the limit, with nothing else held, is let through.
        drop(first);
        let whole: Vec<Permit> = (0..5).map(|part| budget.take(4, part * 4).unwrap()).collect();
        assert_eq!(budget.held(), 20);
        let waiting = std::thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.take(4, 0).map(|permit| permit.bytes)
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(whole);
        assert_eq!(waiting.join().unwrap(), Some(4));
        budget.close();
        assert!(budget.take(1, 0).is_none());
    }
}
