//! The ranks of a world and their collective operations.

use std::time::Duration;

use runkit::launch::Launch;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};

use super::{DistributedError, Store};

/// The ranks that work as one process. Every collective operation must be called by all ranks in
/// the same order; alone, it does nothing and costs nothing.
///
/// Each rank leaves a sign of life in the store. An operation that fails, or is not over within
/// the time limit, ends with [`DistributedError::LostRank`], which names the rank that died or
/// hangs.
#[derive(Debug)]
pub struct World {
    launch: Launch,
}

/// A sum on its way.
#[derive(Debug)]
#[must_use = "the sum is there after wait"]
pub struct Pending {}

impl Pending {
    /// Waits until the sum is there: on a GPU the stream waits, not the host.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn wait(self) -> Result<(), DistributedError> {
        Ok(())
    }
}

impl World {
    /// A world of one rank.
    pub fn alone() -> Self {
        Self { launch: Launch::ALONE }
    }

    /// Joins the ranks of a launch; tensors will be on `device`. An operation may take `limit`.
    ///
    /// # Errors
    /// If the ranks do not find each other within `limit`.
    pub fn join(
        launch: &Launch,
        device: Device,
        limit: Duration,
    ) -> Result<Self, DistributedError> {
        let _ = (device, limit);
        if launch.is_alone() {
            return Ok(Self::alone());
        }
        Err(DistributedError::NoStore { world: launch.world })
    }

    /// The launch.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// How many ranks there are (W).
    pub fn size(&self) -> usize {
        self.launch.world
    }

    /// Whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.launch.is_first()
    }

    /// The launcher's store; `None` alone.
    pub fn store(&self) -> Option<&Store> {
        None
    }

    /// Replaces the tensor by its sum over all ranks, with the same bits at all of them.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<(), DistributedError> {
        self.start_all_reduce(tensor)?.wait()
    }

    /// Starts [`World::all_reduce`]. Do not touch the tensor before [`Pending::wait`].
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn start_all_reduce(&self, tensor: &Tensor) -> Result<Pending, DistributedError> {
        let _ = tensor;
        Ok(Pending {})
    }

    /// Overwrites the tensor by that of rank `from`.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<(), DistributedError> {
        let _ = (tensor, from);
        Ok(())
    }

    /// Starts [`World::broadcast`]. Do not touch the tensor before [`Pending::wait`].
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn start_broadcast(
        &self,
        tensor: &Tensor,
        from: usize,
    ) -> Result<Pending, DistributedError> {
        let _ = (tensor, from);
        Ok(Pending {})
    }

    /// Waits until all ranks are here. There is no limit while all of them live.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn barrier(&self) -> Result<(), DistributedError> {
        Ok(())
    }

    /// Small values of all ranks, by rank.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        value: T,
    ) -> Result<Vec<T>, DistributedError> {
        Ok(vec![value])
    }

    /// Whether the flag is set at any rank.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn any(&self, flag: bool) -> Result<bool, DistributedError> {
        Ok(self.gather(flag)?.contains(&true))
    }

    /// What `work` of rank 0 returns, at every rank. The others wait as long as rank 0 lives; if
    /// it fails, they end with [`DistributedError::OtherRank`] and its message, and rank 0 with
    /// its own error.
    ///
    /// # Errors
    /// If `work` fails, or a rank is lost.
    pub fn by_first<T, E>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<DistributedError> + std::fmt::Display,
    {
        work()
    }
}
