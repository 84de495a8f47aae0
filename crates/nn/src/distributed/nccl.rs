//! NCCL, for tensors on GPUs, and a thread that watches over it.
//!
//! An operation of NCCL on the GPU never ends if a rank dies on the same machine, and NCCL says
//! nothing of it. The thread ends such operations, so that the host does not wait for ever: when
//! NCCL has found an error, another rank has ended or says why it will, a rank gives no sign of
//! life, or the time limit is over.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use runkit::launch::Launch;
use tch::{TchError, Tensor};

use super::group::{Group, Work};
use super::store::Failure;
use super::{DistributedError, Store};
use crate::shim::{ID_BYTES, NcclGroup, NcclWork, nccl_unique_id};

const LOOK: Duration = Duration::from_millis(250);
/// An operation that is over within this time is not looked after.
const USUAL: Duration = Duration::from_secs(2);
/// A rank without a sign of life for so long is lost, though nothing else says so.
const SILENCE: Duration = Duration::from_secs(30);

/// A communicator of NCCL.
#[derive(Debug)]
pub(super) struct Nccl {
    shared: Arc<Shared>,
    end: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    group: NcclGroup,
    /// One operation begins at a time. Those that may still run, the oldest first.
    running: Mutex<VecDeque<Running>>,
    fault: OnceLock<DistributedError>,
}

#[derive(Debug)]
struct Running {
    what: &'static str,
    begin: Instant,
    work: Arc<NcclWork>,
}

impl Nccl {
    /// Joins the communicator of all ranks of a launch, on the GPU of this number.
    pub(super) fn open(
        launch: &Launch,
        store: &Arc<Store>,
        gpu: usize,
        limit: Duration,
    ) -> Result<Self, DistributedError> {
        let failed = |operation: &'static str, error: &TchError| {
            store.blame("the start of NCCL", &Failure::Error(operation, error.to_string()))
        };
        const ID: &str = "nccl";
        // Every rank finds out at once whether it has the library.
        let own = nccl_unique_id().map_err(|error| DistributedError::Failed {
            operation: "NCCL",
            reason: error.to_string(),
        })?;
        let id: [u8; ID_BYTES] = if launch.is_first() {
            store.set(ID, &own)?;
            own
        } else {
            let id = store.wait(ID, limit, || false)?.unwrap_or_default();
            id.try_into().unwrap_or([0; ID_BYTES])
        };
        // NCCL waits for all ranks without a limit, so another thread does.
        let Launch { rank, world, .. } = *launch;
        let (opened, open) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Fails if nobody waits any more.
            let _ = opened.send(NcclGroup::open(gpu, rank, world, &id));
        });
        let begin = Instant::now();
        let group = loop {
            match open.recv_timeout(LOOK) {
                Ok(Ok(group)) => break group,
                Ok(Err(error)) => return Err(failed("NCCL", &error)),
                Err(_) if begin.elapsed() > limit => {
                    return Err(store.blame("the start of NCCL", &Failure::Limit(limit)));
                }
                Err(_) => look_around(store, "the start of NCCL")?,
            }
        };
        let shared = Arc::new(Shared { group, running: Mutex::default(), fault: OnceLock::new() });
        let end = Arc::new(AtomicBool::new(false));
        let watcher = {
            let (shared, store, end) =
                (Arc::clone(&shared), Arc::downgrade(store), Arc::clone(&end));
            std::thread::spawn(move || {
                while !end.load(Ordering::SeqCst) && shared.fault.get().is_none() {
                    std::thread::sleep(LOOK);
                    shared.look(&store, limit);
                }
            })
        };
        Ok(Self { shared, end, watcher: Some(watcher) })
    }

    fn begin(
        &self,
        what: &'static str,
        operation: impl FnOnce(&NcclGroup) -> Result<NcclWork, TchError>,
    ) -> Result<Work, TchError> {
        let mut running = self.shared.running();
        let work = Arc::new(operation(&self.shared.group)?);
        running.push_back(Running { what, begin: Instant::now(), work: Arc::clone(&work) });
        Ok(Work::Nccl(work))
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, VecDeque<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest operation that still runs.
    fn oldest(&self) -> Result<Option<(&'static str, Instant)>, TchError> {
        let mut running = self.running();
        while let Some(first) = running.front() {
            if !first.work.is_over()? {
                return Ok(Some((first.what, first.begin)));
            }
            running.pop_front();
        }
        Ok(None)
    }

    fn look(&self, store: &Weak<Store>, limit: Duration) {
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = self.find_fault(&store, limit) {
            // First, so that who wakes up because of the abort finds it.
            let _ = self.fault.set(error);
            self.group.abort();
        }
    }

    fn find_fault(&self, store: &Store, limit: Duration) -> Result<(), DistributedError> {
        let failed = |what: &str, error: &TchError| {
            store.blame(what, &Failure::Error("NCCL", error.to_string()))
        };
        self.group.check().map_err(|error| failed("an operation of NCCL", &error))?;
        let oldest = self.oldest().map_err(|error| failed("an operation on the GPU", &error))?;
        let Some((what, begin)) = oldest else { return Ok(()) };
        if begin.elapsed() > limit {
            return Err(store.blame(what, &Failure::Limit(limit)));
        }
        if begin.elapsed() > USUAL {
            look_around(store, what)?;
        }
        Ok(())
    }
}

/// Fails if another rank has ended, says why it will, or gives no sign of life.
fn look_around(store: &Store, what: &str) -> Result<(), DistributedError> {
    store.hear_words()?;
    if store.has_one_ended()? || store.longest_silence()? > SILENCE {
        return Err(store.blame(what, &Failure::Ended));
    }
    Ok(())
}

impl Group for Nccl {
    fn all_reduce(&self, tensor: &Tensor) -> Result<Work, TchError> {
        self.begin("an all-reduce", |group| group.all_reduce(tensor))
    }

    fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<Work, TchError> {
        self.begin("a broadcast", |group| group.broadcast(tensor, from))
    }

    fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
        self.begin("an all-gather", |group| group.all_gather(into, from))
    }

    fn reduce_scatter(&self, into: &Tensor, from: &Tensor) -> Result<Work, TchError> {
        self.begin("a reduce-scatter", |group| group.reduce_scatter(into, from))
    }

    fn fault(&self) -> Option<DistributedError> {
        self.shared.fault.get().cloned()
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        // It may be in the middle of finding a lost rank, which ends by itself.
        if let Some(watcher) = self.watcher.take()
            && self.shared.fault.get().is_none()
        {
            let _ = watcher.join();
        }
    }
}
