//! The processes that write one cache together: the ranks of a launch that meet in its store, or
//! shards that share the folder and nothing else.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nn::distributed::{Deal, World};
use runkit::launch::Launch;
use runkit::program::message_of;
use runkit::shard::Shard;
use runkit::signals::Stopped;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Device;

use crate::run::ranks;

/// How long a rank waits for another that does not answer.
const LIMIT: Duration = Duration::from_secs(600);

/// This process among those that write the cache.
pub(super) struct Ranks {
    /// Of one rank if the processes do not meet.
    pub(super) world: World,
    /// How they share the parts.
    pub(super) deal: Deal,
}

impl Ranks {
    /// Joins the others. An explicit shard needs no store.
    ///
    /// # Errors
    /// If they do not find each other.
    pub(super) fn join(launch: &Launch, shard: Option<Shard>) -> Result<Self> {
        if shard.is_none() && launch.store.is_some() {
            let world = World::join(launch, Device::Cpu, LIMIT)?;
            let deal = world.store().map_or(Deal::All, |store| Deal::Store(Arc::clone(store)));
            return Ok(Self { world, deal });
        }
        let deal = Deal::choose(shard, launch, LIMIT)?;
        Ok(Self { world: World::alone(), deal })
    }

    /// What `work` of rank 0 returns; shards all do it.
    ///
    /// # Errors
    /// If it fails, or a rank is lost.
    pub(super) fn first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        ranks::first(&self.world, work)
    }

    /// Waits for the others. A stop signal at any of them ends all; an error ends this rank at
    /// once, and the others when they wait for it.
    ///
    /// # Errors
    /// [`Stopped`], this rank's error or that of another.
    pub(super) fn finish<T>(&self, end: Result<T>) -> Result<T> {
        if let Err(error) = &end
            && Stopped::behind(error.as_ref()).is_none()
        {
            self.world.leave_words(&message_of(error));
            return end;
        }
        ranks::agree(&self.world, end)
    }
}
