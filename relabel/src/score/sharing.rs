//! How several processes share one run: which of them does what, and who goes first.
//!
//! Under a launcher the ranks get units one after the other from a counter in the launcher's store,
//! so that a fast one does more. Shards (`--shard I/N`) get every N-th unit and share nothing but
//! the work folder. What is finished is known by its part alone: a unit that has one is passed
//! over by whoever gets it.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use nn::distributed::{Deal, DistributedError, sharing_stops};
use runkit::launch::Launch;
use runkit::shard::Shard;
use runkit::signals::StopFlag;

/// The time that the ranks of a launch have to find each other.
const CONNECTING: Duration = Duration::from_secs(300);
/// How often the log repeats what a process waits for.
const WAITING: Duration = Duration::from_secs(60);

/// The key under which rank 0 says that the others can begin.
const BEGIN: &str = "relabel/begin";

/// What rank 0 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// The plan is in the work folder.
    Planned,
    /// The labels file is there.
    Complete,
}

impl Says {
    fn word(self) -> &'static [u8] {
        match self {
            Self::Planned => b"planned",
            Self::Complete => b"complete",
        }
    }
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
    deal: Deal,
    stop: &'run StopFlag,
}

impl<'run> Member<'run> {
    /// Finds the others of a launch.
    pub(super) fn join(sharing: &'run Sharing, stop: &'run StopFlag) -> Result<Self> {
        let deal = match sharing {
            Sharing::Alone => Deal::All,
            Sharing::Shard(shard) => Deal::Shard(*shard),
            Sharing::Rank(launch) => Deal::choose(None, launch, CONNECTING)?,
        };
        Ok(Self { sharing, deal, stop })
    }

    /// Whether a launcher's store deals the units.
    pub(super) fn has_store(&self) -> bool {
        self.deal.store().is_some()
    }

    /// Does the work of this process. A signal that stops any of the ranks stops all of them, and
    /// an error that ends this one ends those that wait for it.
    pub(super) fn work<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let store = self.deal.store().map(AsRef::as_ref);
        let result = sharing_stops(store, self.stop, work);
        if let (Some(store), Err(error)) = (store, &result)
            && self.stop.requested().is_none()
        {
            store.leave_words(&format!("{error:#}"));
        }
        result
    }

    /// Waits, as any rank but the first, until rank 0 has put the plan into the work folder.
    ///
    /// # Errors
    /// With the message of rank 0 if it failed; if it is gone; if a stop is asked for.
    pub(super) fn wait_for_first(&self) -> Result<Says> {
        let Some(store) = self.deal.store().filter(|_| self.follows()) else {
            return Ok(Says::Planned);
        };
        loop {
            match store.wait(BEGIN, WAITING, || self.stop.requested().is_some()) {
                Ok(Some(said)) if said == Says::Complete.word() => return Ok(Says::Complete),
                Ok(Some(_)) => return Ok(Says::Planned),
                Ok(None) => self.stop.check()?,
                Err(DistributedError::TimedOut { .. }) => {
                    tracing::info!("waiting for the plan of rank 0");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As rank 0, tells the others that they can begin.
    pub(super) fn tell_others(&self, says: Says) -> Result<()> {
        match self.deal.store() {
            Some(store) if self.is_first() => Ok(store.set(BEGIN, says.word())?),
            _ => Ok(()),
        }
    }

    /// Whether rank 0 says what came of the run.
    pub(super) fn follows(&self) -> bool {
        self.has_store() && !self.is_first()
    }

    fn is_first(&self) -> bool {
        matches!(self.sharing, Sharing::Rank(launch) if launch.is_first())
    }

    /// Deals the numbers below `count` to the processes of the run, in order; `what` names the
    /// list. Each process gets its numbers in ascending order.
    pub(super) fn deal(
        &self,
        what: &str,
        count: usize,
    ) -> impl Iterator<Item = Result<usize>> + Send + use<> {
        let units = self.deal.units(what, count as u64);
        // Below a number of type usize.
        units.map(|unit| unit.map(|unit| unit as usize).map_err(Into::into))
    }
}
