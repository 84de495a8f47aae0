//! Who carries out the collective operations on tensors.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runkit::launch::{Launch, StoreAddress};
use tch::{TchError, Tensor};

use super::{DistributedError, Store};
use crate::shim::{GlooGroup, GlooWork, Listen, NcclWork};

/// The collective operations on the tensors of one kind of device. Each begins one and returns the
/// work; all ranks begin the same ones in the same order.
pub(super) trait Group: Debug + Send + Sync {
    /// Replaces the tensor by the sum over all ranks.
    fn all_reduce(&self, tensor: &Tensor) -> Result<Work, TchError>;
    /// Overwrites the tensor by that of rank `from`.
    fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<Work, TchError>;
    /// Puts `from` of all ranks one after another into `into`.
    fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError>;
    /// Sums `from` over all ranks; each gets its part of the sum in `into`.
    fn reduce_scatter(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError>;
    /// Why operations that have begun will not end well, if that was found meanwhile.
    fn fault(&self) -> Option<DistributedError> {
        None
    }
}

/// An operation under way.
#[derive(Debug)]
pub(super) enum Work {
    Done,
    Gloo(GlooWork),
    Nccl(Arc<NcclWork>),
}

impl Work {
    /// Waits at most so long; whether it is over. On a GPU the stream waits.
    pub(super) fn wait(&self, limit: Duration) -> Result<bool, TchError> {
        match self {
            Self::Done => Ok(true),
            Self::Gloo(work) => work.wait(limit),
            Self::Nccl(work) => work.wait_on_stream().map(|()| true),
        }
    }
}

/// One rank.
#[derive(Debug)]
pub(super) struct Alone;

impl Group for Alone {
    fn all_reduce(&self, _: &Tensor) -> Result<Work, TchError> {
        Ok(Work::Done)
    }

    fn broadcast(&self, _: &Tensor, _: usize) -> Result<Work, TchError> {
        Ok(Work::Done)
    }

    fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
        copy(into, from)
    }

    fn reduce_scatter(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
        copy(into, from)
    }
}

fn copy(into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
    let mut into = into.detach();
    into.f_copy_(&from.f_view_as(&into)?)?;
    Ok(Work::Done)
}

/// Gloo, for tensors on the CPU.
#[derive(Debug)]
pub(super) struct Gloo(Mutex<GlooGroup>);

impl Gloo {
    /// Connects to the other ranks.
    pub(super) fn open(
        launch: &Launch,
        store: &Store,
        limit: Duration,
    ) -> Result<Self, DistributedError> {
        let listen = listen(launch, &std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default());
        let Launch { rank, world, .. } = *launch;
        let opened = store.ask_long(move |store, prefix| {
            GlooGroup::open(store, &format!("{prefix}gloo/"), rank, world, &listen, limit)
        })?;
        let group = opened.map_err(|error| {
            let reason = error.to_string();
            store
                .blame("the connection of the ranks", &super::store::Failure::Error("Gloo", reason))
        })?;
        Ok(Self(Mutex::new(group)))
    }

    fn begin(
        &self,
        operation: impl FnOnce(&GlooGroup) -> Result<GlooWork, TchError>,
    ) -> Result<Work, TchError> {
        operation(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).map(Work::Gloo)
    }
}

/// Where this process listens: at `GLOO_SOCKET_IFNAME`, as torch does; at the loopback address if
/// the store is there, since all ranks then run on this machine; else at the address of the
/// machine's name.
fn listen(launch: &Launch, interfaces: &str) -> Listen {
    let interface = interfaces.split(',').next().unwrap_or_default().to_owned();
    let is_loopback = launch.store.as_ref().is_some_and(StoreAddress::is_loopback);
    let host = if is_loopback { "127.0.0.1".to_owned() } else { String::new() };
    Listen { interface, host }
}

impl Group for Gloo {
    fn all_reduce(&self, tensor: &Tensor) -> Result<Work, TchError> {
        self.begin(|group| group.all_reduce(tensor))
    }

    fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<Work, TchError> {
        self.begin(|group| group.broadcast(tensor, from))
    }

    fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
        self.begin(|group| group.all_gather(into, from))
    }

    fn reduce_scatter(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
        self.begin(|group| group.reduce_scatter(into, from))
    }
}
