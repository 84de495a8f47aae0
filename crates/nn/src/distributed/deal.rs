//! Units of work for the processes that share it.

use std::sync::Arc;
use std::time::Duration;

use runkit::launch::Launch;
use runkit::shard::Shard;

use super::{DistributedError, Store};

/// How units of work 0..count get to the processes that share it. What is finished is known by its
/// result: a process skips a unit that is done, whoever did it.
#[derive(Debug, Clone)]
pub enum Deal {
    /// One process does all of them.
    All,
    /// Every N-th unit.
    Shard(Shard),
    /// The next unit to who asks first, so that a fast GPU takes more.
    Store(Arc<Store>),
}

impl Deal {
    /// `shard` if one is given; else by the launcher's store; else, if the launcher gives no
    /// address of a store, every W-th unit; all of them if the process is alone.
    ///
    /// # Errors
    /// If the ranks do not find each other within `limit`.
    pub fn choose(
        shard: Option<Shard>,
        launch: &Launch,
        limit: Duration,
    ) -> Result<Self, DistributedError> {
        if let Some(shard) = shard {
            return Ok(if shard.is_whole() { Self::All } else { Self::Shard(shard) });
        }
        if let Some(store) = Store::connect(launch, limit)? {
            return Ok(Self::Store(store));
        }
        let shard = Shard::new(launch.rank as u64, launch.world as u64);
        Ok(shard.map_or(Self::All, |shard| match shard.is_whole() {
            true => Self::All,
            false => Self::Shard(shard),
        }))
    }

    /// Whether other processes do a part of the units.
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::All)
    }

    /// The launcher's store, if it deals.
    pub fn store(&self) -> Option<&Arc<Store>> {
        match self {
            Self::Store(store) => Some(store),
            Self::All | Self::Shard(_) => None,
        }
    }

    /// The units of this process, in order. All processes use the same name and count; a name is
    /// dealt once.
    pub fn units(&self, name: &str, count: u64) -> Units {
        let key = format!("units/{name}");
        Units { deal: self.clone(), key, next: 0, count, is_over: false }
    }
}

/// The units of one process ([`Deal::units`]). After an error there are no more.
#[derive(Debug)]
pub struct Units {
    deal: Deal,
    key: String,
    next: u64,
    count: u64,
    is_over: bool,
}

impl Iterator for Units {
    type Item = Result<u64, DistributedError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let unit = match &self.deal {
            Deal::All => self.next,
            Deal::Shard(shard) => self.next * shard.count() + shard.index(),
            Deal::Store(store) => match store.add(&self.key, 1) {
                Ok(number) => u64::try_from(number - 1).unwrap_or(self.count),
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            },
        };
        self.next += 1;
        self.is_over = unit >= self.count;
        (!self.is_over).then_some(Ok(unit))
    }
}
