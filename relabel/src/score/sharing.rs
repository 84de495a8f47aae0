//! How several processes share one run: which of them does what, and who goes first.
//!
//! Under a launcher the ranks get units one after the other from a counter in the launcher's store,
//! so that a fast one does more. Shards (`--shard I/N`) get every N-th unit and share nothing but
//! the work folder. What is finished is known by its part alone: a unit that has one is passed
//! over by whoever gets it.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use nn::distributed::{DistributedError, Store, sharing_stops};
use runkit::launch::Launch;
use runkit::shard::Shard;
use runkit::signals::StopFlag;

/// The time that a launch has to find its store.
const CONNECTING: Duration = Duration::from_secs(300);
/// How often the log repeats what a process waits for.
const WAITING: Duration = Duration::from_secs(60);

/// The key under which rank 0 says that the plan is in the work folder, or why it is not.
const READY: &str = "relabel/ready";

/// What rank 0 says, to which a message may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// The plan is in the work folder.
    Ready = b'r' as isize,
    /// The labels file is there.
    Complete = b'c' as isize,
    /// It failed.
    Failed = b'f' as isize,
}

/// What a process does of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// All of it.
    Alone,
    /// Every N-th unit.
    Shard(Shard),
    /// What it gets from the launcher's store.
    Rank(Launch),
}

impl Sharing {
    /// Whether no other process works on the run.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        *self == Self::Alone
    }

    /// Whether the process may come to do unit `unit`.
    pub(super) fn may_do(&self, unit: usize) -> bool {
        match self {
            Self::Alone | Self::Rank(_) => true,
            Self::Shard(shard) => shard.owns(unit as u64),
        }
    }

    /// The name of the lock that keeps two processes from the same work; `None` alone.
    pub(super) fn lock_name(&self) -> Option<String> {
        match self {
            Self::Alone => None,
            Self::Shard(shard) => Some(format!("shard-{}-of-{}", shard.index(), shard.count())),
            Self::Rank(launch) => Some(format!("rank-{}-of-{}", launch.rank, launch.world)),
        }
    }
}

/// "shard 0/2", "rank 0 of 2".
impl fmt::Display for Sharing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone => formatter.write_str("the run"),
            Self::Shard(shard) => write!(formatter, "shard {shard}"),
            Self::Rank(launch) => write!(formatter, "rank {} of {}", launch.rank, launch.world),
        }
    }
}

impl From<Shard> for Sharing {
    fn from(shard: Shard) -> Self {
        if shard.is_whole() { Self::Alone } else { Self::Shard(shard) }
    }
}

/// A process among those of its run.
#[derive(Debug)]
pub(super) struct Member<'run> {
    sharing: &'run Sharing,
    /// Under a launcher.
    store: Option<Store>,
    stop: &'run StopFlag,
}

impl<'run> Member<'run> {
    /// Finds the others of a launch.
    pub(super) fn join(sharing: &'run Sharing, stop: &'run StopFlag) -> Result<Self> {
        let store = match sharing {
            Sharing::Rank(launch) => Store::connect(launch, CONNECTING)?,
            _ => None,
        };
        Ok(Self { sharing, store, stop })
    }

    /// The launcher's store.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Whether rank 0 makes what this process waits for.
    pub(super) fn follows(&self) -> bool {
        matches!(self.sharing, Sharing::Rank(launch) if !launch.is_first())
    }

    /// Waits until rank 0 has put the plan into the work folder.
    ///
    /// # Errors
    /// With the message of rank 0 if it failed; if it is gone; if a stop is asked for.
    pub(super) fn wait_for_first(&self) -> Result<Says> {
        let Some(store) = self.store.as_ref().filter(|_| self.follows()) else {
            return Ok(Says::Ready);
        };
        loop {
            let is_stopped = || self.stop.requested().is_some();
            let said = match store.wait(READY, WAITING, is_stopped) {
                Ok(Some(said)) => said,
                Ok(None) => {
                    self.stop.check()?;
                    continue;
                }
                Err(DistributedError::TimedOut { .. }) => {
                    tracing::info!("waiting for the plan of rank 0");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            return match said.split_first() {
                Some((b'r', _)) => Ok(Says::Ready),
                Some((b'c', _)) => Ok(Says::Complete),
                other => {
                    let message = other.map(|(_, message)| String::from_utf8_lossy(message));
                    bail!("rank 0: {}", message.unwrap_or_default())
                }
            };
        }
    }

    /// As rank 0, tells the others that the plan is in the work folder, that the labels are
    /// complete, or why it failed.
    pub(super) fn tell_others<T>(
        &self,
        result: Result<T>,
        is_complete: impl FnOnce(&T) -> bool,
    ) -> Result<T> {
        if let (Some(store), false) = (&self.store, self.follows()) {
            let (says, message) = match &result {
                Ok(opened) if is_complete(opened) => (Says::Complete, String::new()),
                Ok(_) => (Says::Ready, String::new()),
                Err(error) => (Says::Failed, format!("{error:#}")),
            };
            let told = store.set(READY, &[&[says as u8], message.as_bytes()].concat());
            // The own error is the one to report.
            if result.is_ok() {
                told?;
            }
        }
        result
    }

    /// Deals the numbers below `count` to the processes of the run, in order; `what` names the
    /// list. Each process gets its numbers in ascending order.
    pub(super) fn deal<'deal>(
        &'deal self,
        what: &'static str,
        count: usize,
    ) -> Box<dyn Iterator<Item = Result<usize>> + Send + 'deal> {
        let Some(store) = &self.store else {
            let sharing = self.sharing;
            return Box::new((0..count).filter(|&number| sharing.may_do(number)).map(Ok));
        };
        let key = format!("relabel/{what}");
        let mut is_over = false;
        Box::new(std::iter::from_fn(move || {
            if is_over {
                return None;
            }
            let number = match store.add(&key, 1) {
                Ok(number) => usize::try_from(number - 1).unwrap_or(usize::MAX),
                Err(error) => {
                    is_over = true;
                    return Some(Err(error.into()));
                }
            };
            is_over = number >= count;
            (!is_over).then_some(Ok(number))
        }))
    }

    /// Does `work`, and ends with the others if a signal stops any of them.
    pub(super) fn with_stops<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        sharing_stops(self.store(), self.stop, work)
    }

    /// Parts from the others: rank 0 may serve the store that they need.
    ///
    /// # Errors
    /// If the store is gone.
    pub(super) fn leave(&self) -> Result<()> {
        Ok(())
    }
}
