//! The ranks of a world and their collective operations.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use runkit::launch::Launch;
use tch::{Device, Kind, TchError, Tensor};

use super::group::{Alone, Gloo, Group, Work};
use super::nccl::Nccl;
use super::store::Failure;
use super::{DistributedError, Store};

/// A test facility: if it is set, a launch of one process with a store makes process groups too.
const GROUP_OF_ONE: &str = "NN_GROUP_OF_ONE";

/// How often a waiting rank looks for others that say why they end.
const LOOK: Duration = Duration::from_millis(500);

/// The ranks that work as one process. Every collective operation must be called by all ranks in
/// the same order; alone, it does nothing and costs nothing.
///
/// Each rank leaves a sign of life in the store. An operation that fails, or is not over within
/// the time limit, ends with [`DistributedError::LostRank`], which names the rank that died or
/// hangs.
#[derive(Debug)]
pub struct World(Arc<Ranks>);

#[derive(Debug)]
struct Ranks {
    launch: Launch,
    limit: Duration,
    store: Option<Arc<Store>>,
    cpu: Option<Box<dyn Group>>,
    /// NCCL, if tensors will be on this GPU.
    gpu: OnceLock<(Device, Box<dyn Group>)>,
    /// Operations that have begun and did not end well, or not yet.
    unfinished: AtomicUsize,
    is_broken: AtomicBool,
}

/// An operation on its way.
#[derive(Debug)]
#[must_use = "the result is there after wait"]
pub struct Pending {
    ranks: Arc<Ranks>,
    work: Work,
    what: &'static str,
}

impl Pending {
    /// Waits until the result is there: on a GPU the stream waits, not the host. If a rank is lost
    /// while the GPU computes, the next operation returns the error; numbers that were read
    /// meanwhile are not to be kept.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn wait(self) -> Result<(), DistributedError> {
        self.ranks.finish(&self.work, self.what, true)
    }

    /// As [`Pending::wait`], without a limit while all ranks live.
    pub(super) fn wait_for_ever(self) -> Result<(), DistributedError> {
        self.ranks.finish(&self.work, self.what, false)
    }
}

impl World {
    /// A world of one rank.
    pub fn alone() -> Self {
        Self(Arc::new(Ranks {
            launch: Launch::ALONE,
            limit: Duration::MAX,
            store: None,
            cpu: Some(Box::new(Alone)),
            gpu: OnceLock::new(),
            unfinished: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
        }))
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
        let is_forced = launch.store.is_some() && std::env::var_os(GROUP_OF_ONE).is_some();
        match launch.is_alone() && !is_forced {
            true => Ok(Self::alone()),
            false => Self::join_groups(launch, device, limit),
        }
    }

    fn join_groups(
        launch: &Launch,
        device: Device,
        limit: Duration,
    ) -> Result<Self, DistributedError> {
        let Some(store) = Store::open(launch, limit)? else {
            return Err(DistributedError::NoStore { world: launch.world });
        };
        let world = Self::connect(launch, device, &store, limit);
        // The others are in the middle of the same.
        world.inspect_err(|error| store.leave_words(&error.to_string()))
    }

    fn connect(
        launch: &Launch,
        device: Device,
        store: &Arc<Store>,
        limit: Duration,
    ) -> Result<Self, DistributedError> {
        let cpu = Gloo::open(launch, store, limit)?;
        let world = Self(Arc::new(Ranks {
            launch: launch.clone(),
            limit,
            store: Some(Arc::clone(store)),
            cpu: Some(Box::new(cpu)),
            gpu: OnceLock::new(),
            unfinished: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
        }));
        // First, since NCCL would wait for a rank on the CPU until the limit.
        let are_on_gpus = world.gather(device != Device::Cpu)?;
        if let Some(other) = are_on_gpus.iter().position(|is| *is != are_on_gpus[0]) {
            let place = |is_on_gpu: bool| if is_on_gpu { "a GPU" } else { "the CPU" };
            let (first, second) = (place(are_on_gpus[0]), place(are_on_gpus[other]));
            let hint = "hint: give all ranks the same kind of --device";
            let message = format!("rank 0 is on {first} and rank {other} on {second}\n{hint}");
            return Err(DistributedError::Differ(message));
        }
        if let Device::Cuda(gpu) = device {
            let nccl = Nccl::open(launch, store, gpu, limit)?;
            let _ = world.0.gpu.set((device, Box::new(nccl)));
        }
        Ok(world)
    }

    /// The launch.
    pub fn launch(&self) -> &Launch {
        &self.0.launch
    }

    /// The rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.launch.rank
    }

    /// How many ranks there are (W).
    pub fn size(&self) -> usize {
        self.0.launch.world
    }

    /// Whether there are no process groups, so that an operation does nothing.
    pub fn is_alone(&self) -> bool {
        self.0.store.is_none()
    }

    /// Whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.0.launch.is_first()
    }

    /// The launcher's store; `None` alone.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.0.store.as_ref()
    }

    /// Tells the other ranks why this one ends, so that they end with
    /// [`DistributedError::OtherRank`] and this message. An error that another rank is to blame for
    /// changes nothing.
    pub fn leave_words(&self, message: &str) {
        if let Some(store) = self.store() {
            store.leave_words(message);
        }
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
        self.start("an all-reduce", tensor, |group| group.all_reduce(tensor))
    }

    /// Overwrites the tensor by that of rank `from`.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<(), DistributedError> {
        self.start_broadcast(tensor, from)?.wait()
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
        self.start("a broadcast", tensor, |group| group.broadcast(tensor, from))
    }

    /// Puts the tensors of all ranks, which have equal sizes, one after another into `into`.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<(), DistributedError> {
        self.start("an all-gather", from, |group| group.all_gather(into, from))?.wait()
    }

    /// Sums `from` over all ranks and puts the part of this rank, of W equal ones, into `into`.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn reduce_scatter(&self, into: &Tensor, from: &Tensor) -> Result<(), DistributedError> {
        self.start("a reduce-scatter", from, |group| group.reduce_scatter(into, from))?.wait()
    }

    /// Waits until all ranks are here. There is no limit while all of them live.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn barrier(&self) -> Result<(), DistributedError> {
        let one = Tensor::ones([1], (Kind::Int64, Device::Cpu));
        self.start("a barrier", &one, |group| group.all_reduce(&one))?.wait_for_ever()
    }

    pub(super) fn start(
        &self,
        what: &'static str,
        tensor: &Tensor,
        begin: impl FnOnce(&dyn Group) -> Result<Work, TchError>,
    ) -> Result<Pending, DistributedError> {
        let ranks = Arc::clone(&self.0);
        let work = begin(ranks.group(tensor.device())?).map_err(failed(what))?;
        ranks.unfinished.fetch_add(1, Ordering::SeqCst);
        if let Some(store) = &ranks.store {
            store.begun.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Pending { ranks, work, what })
    }
}

impl Ranks {
    fn group(&self, device: Device) -> Result<&dyn Group, DistributedError> {
        self.fault()?;
        let group = match self.gpu.get() {
            Some((gpu, group)) if *gpu == device => Some(&**group),
            _ if device == Device::Cpu || self.store.is_none() => self.cpu.as_deref(),
            _ => None,
        };
        group.ok_or_else(|| DistributedError::Failed {
            operation: "a collective operation",
            reason: format!("the ranks have joined without {device:?}"),
        })
    }

    fn fault(&self) -> Result<(), DistributedError> {
        let fault = self.gpu.get().and_then(|(_, group)| group.fault());
        match fault {
            Some(fault) => {
                self.is_broken.store(true, Ordering::SeqCst);
                Err(fault)
            }
            None => Ok(()),
        }
    }

    /// Waits for the end of an operation: within the limit, or without one while all ranks live.
    fn finish(
        &self,
        work: &Work,
        what: &'static str,
        has_limit: bool,
    ) -> Result<(), DistributedError> {
        let result = self.wait(work, what, has_limit);
        match result {
            Ok(()) => self.unfinished.fetch_sub(1, Ordering::SeqCst),
            Err(_) => usize::from(self.is_broken.swap(true, Ordering::SeqCst)),
        };
        result
    }

    fn wait(
        &self,
        work: &Work,
        what: &'static str,
        has_limit: bool,
    ) -> Result<(), DistributedError> {
        let is_over = |limit: Duration| work.wait(limit);
        let Some(store) = &self.store else {
            return is_over(Duration::MAX).map(drop).map_err(failed(what));
        };
        let (begin, mut looked) = (Instant::now(), Instant::now());
        loop {
            self.fault()?;
            let left = self.limit.saturating_sub(begin.elapsed());
            let pause = if has_limit { left.min(LOOK) } else { LOOK };
            match is_over(pause) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    let failure = Failure::Error(what, error.to_string());
                    return Err(store.blame(what, &failure));
                }
            }
            store.hear_words()?;
            let mut waited = begin.elapsed();
            if !has_limit {
                // This asks for the signs of all ranks.
                let is_due = looked.elapsed() >= LOOK * 4;
                waited = if is_due { store.longest_silence()? } else { Duration::ZERO };
                looked = if is_due { Instant::now() } else { looked };
            }
            if waited >= self.limit {
                return Err(store.blame(what, &Failure::Limit(self.limit)));
            }
            // The last messages of a rank that ends well may be under way.
            if store.has_one_ended()? && !is_over(LOOK * 4).unwrap_or(false) {
                return Err(store.blame(what, &Failure::Ended));
            }
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        let is_idle = *self.unfinished.get_mut() == 0 && !*self.is_broken.get_mut();
        if is_idle {
            // Its thread uses the store.
            drop(self.gpu.take());
        } else {
            // They would wait for the end of their operations. The process ends soon.
            let _ = std::mem::ManuallyDrop::new((self.cpu.take(), self.gpu.take()));
        }
        // Says goodbye before the connections end.
        self.store = None;
    }
}

pub(super) fn failed(operation: &'static str) -> impl Fn(TchError) -> DistributedError {
    move |error| DistributedError::Failed { operation, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use runkit::launch::StoreAddress;

    use super::*;

    #[test]
    #[ignore = "needs an NVIDIA GPU: scripts/gpu/check.sh runs it"]
    fn a_rank_alone_sums_by_nccl_on_a_gpu() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let host = "127.0.0.1".to_owned();
        let store = StoreAddress { host, port, is_served_by_agent: false, attempt: 0 };
        let launch = Launch { store: Some(store), ..Launch::ALONE };
        let (device, limit) = (Device::Cuda(0), Duration::from_secs(60));
        let world = World::join_groups(&launch, device, limit).unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Int64] {
            let tensor = Tensor::arange(100_003, (Kind::Int64, device)).remainder(97).to_kind(kind);
            let expected = tensor.copy();
            let first = world.start_all_reduce(&tensor).unwrap();
            first.wait().unwrap();
            world.broadcast(&tensor, 0).unwrap();
            let copy = tensor.zeros_like();
            world.all_gather(&copy, &tensor).unwrap();
            world.reduce_scatter(&tensor, &copy).unwrap();
            assert_eq!(tensor, expected, "{kind:?}");
        }
        assert_eq!(world.gather(7).unwrap(), [7]);
        world.barrier().unwrap();
    }
}
