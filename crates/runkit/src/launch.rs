//! The launcher that started this process beside others: torchrun, srun, or the same variables set
//! by hand.
//!
//! - torchrun and accelerate set `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`,
//!   `MASTER_ADDR` and `MASTER_PORT`;
//! - `srun` sets `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` (or `SLURM_NTASKS`), `SLURM_LOCALID` and
//!   `SLURM_STEP_ID`; `MASTER_ADDR` and `MASTER_PORT` are the batch script's.
//!
//! Only `MASTER_ADDR` and `MASTER_PORT` let the processes find each other. Without them there is
//! no [`StoreAddress`], and the processes share a folder at most.

use crate::shard::{Shard, ShardError};

/// Where a process stands among those that a launcher started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The rank of this process, from 0.
    pub rank: usize,
    /// How many processes there are, over all machines.
    pub world: usize,
    /// The rank among the processes of this machine, which chooses the GPU.
    pub local_rank: usize,
    /// How many processes there are on this machine.
    pub local_world: usize,
    /// Where the processes meet, if the launcher says so.
    pub store: Option<StoreAddress>,
}

/// The address of the TCP store by which the processes of a launch find each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreAddress {
    /// `MASTER_ADDR`.
    pub host: String,
    /// `MASTER_PORT`.
    pub port: u16,
    /// Whether torchrun's agent serves the store (`TORCHELASTIC_USE_AGENT_STORE`); else rank 0
    /// does.
    pub is_served_by_agent: bool,
    /// How often the launcher has restarted the world (`TORCHELASTIC_RESTART_COUNT`): keys of a
    /// dead world are not those of this one.
    pub attempt: u64,
}

impl Launch {
    /// A process that is alone.
    pub const ALONE: Self = Self { rank: 0, world: 1, local_rank: 0, local_world: 1, store: None };

    /// The launch of this process; [`Launch::ALONE`] if no launcher started it.
    ///
    /// # Errors
    /// If the variables are incomplete, contradict each other or hold something else than numbers.
    pub fn from_environment() -> Result<Self, ShardError> {
        Self::from_lookup(|name| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    /// As [`Launch::from_environment`] with any other source of variables.
    ///
    /// # Errors
    /// As there.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ShardError> {
        let shard = Shard::from_lookup(None, &lookup)?;
        let number = |names: &[&str]| {
            names.iter().find_map(|name| lookup(name)?.trim().parse::<usize>().ok())
        };
        let (rank, world) = (shard.index() as usize, shard.count() as usize);
        let local_rank = number(&["LOCAL_RANK", "SLURM_LOCALID"]).unwrap_or(rank);
        let local_world = number(&["LOCAL_WORLD_SIZE"]).unwrap_or(world);
        let store = (|| {
            Some(StoreAddress {
                host: lookup("MASTER_ADDR").filter(|host| !host.is_empty())?,
                port: lookup("MASTER_PORT")?.trim().parse().ok()?,
                is_served_by_agent: lookup("TORCHELASTIC_USE_AGENT_STORE").as_deref()
                    == Some("True"),
                attempt: number(&["TORCHELASTIC_RESTART_COUNT"]).unwrap_or(0) as u64,
            })
        })();
        Ok(Self { rank, world, local_rank, local_world, store })
    }

    /// Whether no other process works with this one.
    pub fn is_alone(&self) -> bool {
        self.world == 1
    }

    /// Whether this is rank 0, which writes what all ranks have in common.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }
}
