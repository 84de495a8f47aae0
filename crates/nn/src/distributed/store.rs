//! The launcher's TCP store.

use std::time::Duration;

use runkit::launch::Launch;

use super::DistributedError;

/// A client of the TCP store in which the processes of a launch meet. Its operations are atomic.
/// Keys belong to the launch and its restart: a restarted world starts with none.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Connects to the store of a launch. Rank 0 serves it if no agent does, until the process
    /// ends. `None` if the process is alone, or the launcher gives no address.
    ///
    /// # Errors
    /// If no store answers within `limit`.
    pub fn connect(launch: &Launch, limit: Duration) -> Result<Option<Self>, DistributedError> {
        let _ = (launch, limit);
        Ok(None)
    }

    /// Adds `amount` to the number under `key`, which starts at 0, and returns the sum.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, DistributedError> {
        let _ = (key, amount);
        unimplemented!()
    }

    /// Writes a value.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), DistributedError> {
        let _ = (key, value);
        unimplemented!()
    }

    /// The value under `key`, if it is there.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        let _ = key;
        unimplemented!()
    }

    /// The value under `key`; polls until it is there, `limit` has passed, or `stop` says so
    /// (then `None`).
    ///
    /// # Errors
    /// If the store is gone, or the time is up.
    pub fn wait(
        &self,
        key: &str,
        limit: Duration,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Vec<u8>>, DistributedError> {
        let _ = (key, limit, stop);
        unimplemented!()
    }
}
