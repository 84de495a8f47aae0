//! The processes that write one cache together: the ranks of a launch that meet in its store, or
//! shards that share the folder and nothing else.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use nn::distributed::{DistributedError, Store, World};
use runkit::launch::Launch;
use runkit::shard::Shard;
use runkit::signals::{Signal, StopFlag, Stoppable};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Device;

/// How long a rank waits for another that does not answer.
const LIMIT: Duration = Duration::from_secs(600);
/// The number of the next part that nobody took.
const NEXT: &str = "cache/next";
/// Present after a rank was stopped or failed.
const STOP: &str = "cache/stop";

/// This process among those that write the cache.
pub(super) struct Ranks<'run> {
    shard: Shard,
    /// If they meet in a store.
    world: Option<World>,
    stop: &'run StopFlag,
}

/// How a rank ended.
#[derive(Serialize, Deserialize)]
enum End {
    /// It did all there was to do, or ended because another did not.
    Done,
    /// A signal stopped it.
    Stopped {
        interrupted: bool,
    },
    Failed(String),
}

impl<'run> Ranks<'run> {
    /// Joins the others. An explicit shard needs no store.
    ///
    /// # Errors
    /// If they do not find each other.
    pub(super) fn join(
        launch: &Launch,
        shard: Option<Shard>,
        stop: &'run StopFlag,
    ) -> Result<Self> {
        let world = match (shard, &launch.store) {
            (None, Some(_)) if !launch.is_alone() => Some(World::join(launch, Device::Cpu, LIMIT)?),
            _ => None,
        };
        let of_launch = || Shard::new(launch.rank as u64, launch.world as u64);
        let shard = match shard {
            Some(shard) => shard,
            None => of_launch()?,
        };
        Ok(Self { shard, world, stop })
    }

    /// Whether no other process writes the cache.
    pub(super) fn is_alone(&self) -> bool {
        self.shard.is_whole()
    }

    /// Whether the others wait for this process where one acts for all.
    pub(super) fn meets(&self) -> bool {
        self.world.is_some()
    }

    /// Whether this process speaks for all: rank 0, or a shard, which knows of no other.
    pub(super) fn is_first(&self) -> bool {
        self.world.as_ref().is_none_or(World::is_first)
    }

    fn store(&self) -> Option<&Store> {
        self.world.as_ref().and_then(World::store)
    }

    /// What `work` of rank 0 returns; shards all do it.
    pub(super) fn by_first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let Some(world) = &self.world else { return work() };
        // The error of rank 0 keeps its own form there.
        let mut own = None;
        let shared = world.by_first(|| {
            work().map_err(|error| {
                let message = format!("{error:#}");
                own = Some(error);
                DistributedError::OtherRank { rank: 0, message }
            })
        });
        match own {
            Some(error) => Err(error),
            None => Ok(shared?),
        }
    }

    /// The part to write after `last`: the next one of all parts that no rank took, or the next
    /// one of this shard. The caller skips parts that are done.
    pub(super) fn next_part(&self, last: Option<u64>, count: u64) -> Result<Option<u64>> {
        let next = match self.store() {
            Some(store) => u64::try_from(store.add(NEXT, 1)? - 1)?,
            None => last.map_or(self.shard.index(), |last| last + self.shard.count()),
        };
        Ok((next < count).then_some(next))
    }

    /// The signal that asked this process to stop. Another rank that was stopped or failed counts
    /// as SIGTERM: [`Ranks::finish`] tells what it was.
    pub(super) fn stop_requested(&self) -> Result<Option<Signal>> {
        if let Some(signal) = self.stop.requested() {
            return Ok(Some(signal));
        }
        let Some(store) = self.store() else { return Ok(None) };
        Ok(store.get(STOP)?.map(|_| Signal::Terminate))
    }

    /// Waits for the others and returns how the work ended for all: an error or a signal at any
    /// rank ends every rank.
    pub(super) fn finish<T>(self, outcome: Result<Stoppable<T>>) -> Result<Stoppable<T>> {
        let Some(world) = &self.world else { return outcome };
        let follows = |error: &anyhow::Error| {
            matches!(error.downcast_ref(), Some(DistributedError::OtherRank { .. }))
        };
        let end = match (self.stop.requested(), &outcome) {
            (Some(signal), _) => End::Stopped { interrupted: signal == Signal::Interrupt },
            (None, Err(error)) if !follows(error) => End::Failed(format!("{error:#}")),
            _ => End::Done,
        };
        if let (Some(store), false) = (self.store(), matches!(end, End::Done)) {
            store.set(STOP, b"1")?;
        }
        let ends = match world.gather(end) {
            Ok(ends) => ends,
            // This rank's own error says more.
            Err(error) => return outcome.and(Err(error.into())),
        };
        let stopped = ends.iter().filter_map(|end| match end {
            End::Stopped { interrupted: true } => Some(Signal::Interrupt),
            End::Stopped { interrupted: false } => Some(Signal::Terminate),
            _ => None,
        });
        let stopped = stopped.max_by_key(|signal| *signal == Signal::Interrupt);
        let failed = ends.iter().enumerate().find_map(|(rank, end)| match end {
            End::Failed(message) => {
                Some(DistributedError::OtherRank { rank, message: message.clone() })
            }
            _ => None,
        });
        match (outcome, stopped, failed) {
            (Err(error), None, _) => Err(error),
            (Err(error), Some(_), _) if !follows(&error) => Err(error),
            (_, Some(signal), _) => Ok(ControlFlow::Break(signal)),
            (Ok(_), None, Some(error)) => Err(error.into()),
            (outcome, None, None) => outcome,
        }
    }
}
