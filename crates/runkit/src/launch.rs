//! The launcher that started this process beside others: torchrun, srun, or the same variables set
//! by hand.
//!
//! - torchrun and accelerate set `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`,
//!   `MASTER_ADDR` and `MASTER_PORT`;
//! - `srun` sets `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` (or `SLURM_NTASKS`), `SLURM_LOCALID` and
//!   `SLURM_STEP_ID`; `MASTER_ADDR` and `MASTER_PORT` are the batch script's.
//!
//! Without `LOCAL_RANK` (nor srun's) it is the rank, and without `LOCAL_WORLD_SIZE` it is the number
//! of processes: right on one machine.
//!
//! Only `MASTER_ADDR` and `MASTER_PORT` let the processes find each other. Without them there is
//! no [`StoreAddress`], and the processes share a folder at most.

use crate::shard::{Shard, ShardError, environment, number};

/// Where a process stands among those that a launcher started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The rank of this process, from 0.
    pub rank: usize,
    /// How many processes there are, over all machines.
    pub world: usize,
    /// The rank among the processes of this machine, which chooses the GPU.
    pub local_rank: usize,
    /// How many processes there are on this machine; 1 if the launcher does not say so and they may
    /// be on several.
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

impl StoreAddress {
    /// Whether the address is one of this machine alone, so that all ranks run here.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl Launch {
    /// A process that is alone.
    pub const ALONE: Self = Self { rank: 0, world: 1, local_rank: 0, local_world: 1, store: None };

    /// The launch of this process; [`Launch::ALONE`] if no launcher started it.
    ///
    /// # Errors
    /// If the variables are incomplete, contradict each other or hold something else than numbers.
    pub fn from_environment() -> Result<Self, ShardError> {
        Self::from_lookup(environment)
    }

    /// As [`Launch::from_environment`] with any other source of variables.
    ///
    /// # Errors
    /// As there.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ShardError> {
        let shard = Shard::from_lookup(None, &lookup)?;
        if shard.is_whole() && lookup("RANK").is_none() {
            return Ok(Self::ALONE);
        }
        let number = |variable| Ok(number(variable, &lookup)?.map(size));
        let (rank, world) = (size(shard.index()), size(shard.count()));
        let text = |variable: &str| lookup(variable).filter(|value| !value.trim().is_empty());
        let store = match (text("MASTER_ADDR"), text("MASTER_PORT")) {
            (Some(host), Some(port)) => Some(StoreAddress {
                host: host.trim().to_owned(),
                port: port.trim().parse().ok().filter(|port| *port > 0).ok_or({
                    let expected = "a port, 1 to 65535";
                    ShardError::Variable { variable: "MASTER_PORT", value: port, expected }
                })?,
                is_served_by_agent: text("TORCHELASTIC_USE_AGENT_STORE")
                    .is_some_and(|value| value.eq_ignore_ascii_case("true")),
                attempt: number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0) as u64,
            }),
            _ => None,
        };
        // A batch script has SLURM_LOCALID too, and may start ranks by itself.
        let is_task = number("SLURM_PROCID")? == Some(rank);
        let slurm = |variable| if is_task { number(variable) } else { Ok(None) };
        let local_rank = match number("LOCAL_RANK")? {
            Some(local_rank) => local_rank,
            None => slurm("SLURM_LOCALID")?.unwrap_or(rank),
        };
        let local_world = match number("LOCAL_WORLD_SIZE")? {
            Some(local_world) => local_world,
            None => {
                let node = slurm("SLURM_NODEID")?;
                let tasks = text("SLURM_STEP_TASKS_PER_NODE");
                let of_node = |(node, tasks): (usize, String)| tasks_of_node(&tasks, node);
                let is_here = store.as_ref().is_some_and(StoreAddress::is_loopback);
                let known = node.zip(tasks).and_then(of_node);
                known.unwrap_or(if is_here { world } else { 1 })
            }
        };
        Ok(Self { rank, world, local_rank, local_world: local_world.max(1), store })
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

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// How many tasks a node has, by SLURM's list of all nodes: `4(x2),3` for 4, 4 and 3.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        before += nodes;
        if node < before {
            return tasks.trim().parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Launch, ShardError, StoreAddress, tasks_of_node};

    fn launch(variables: &[(&str, &str)]) -> Result<Launch, ShardError> {
        Launch::from_lookup(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_process_without_a_launcher_is_alone() {
        assert_eq!(launch(&[]).unwrap(), Launch::ALONE);
        let one = [("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "x")];
        assert_eq!(launch(&one).unwrap(), Launch::ALONE);
        let store = [("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1234")];
        let found = launch(&[&one[..3], &store].concat()).unwrap();
        assert!(found.is_alone() && found.is_first() && found.store.is_some());
    }

    #[test]
    fn ranks_share_a_machine_only_if_the_launcher_or_the_address_says_so() {
        let local_world = |host| {
            let ranks = [("RANK", "1"), ("WORLD_SIZE", "8"), ("MASTER_PORT", "29500")];
            launch(&[&ranks[..], &[("MASTER_ADDR", host)]].concat()).unwrap().local_world
        };
        // One process in each of eight pods, say.
        assert_eq!(local_world("node7"), 1);
        assert_eq!(local_world("127.0.0.1"), 8);
        assert_eq!(local_world("localhost"), 8);
    }

    #[test]
    fn torchrun_says_where_a_process_stands() {
        let found = launch(&[
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            // torchrun in a job step.
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "0"),
        ]);
        let (host, port) = ("node7".to_owned(), 29500);
        let store = StoreAddress { host, port, is_served_by_agent: true, attempt: 2 };
        assert!(!store.is_loopback());
        let store = Some(store);
        let expected = Launch { rank: 5, world: 8, local_rank: 1, local_world: 4, store };
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn bare_variables_are_enough() {
        let two = [("RANK", "1"), ("WORLD_SIZE", "2")];
        let found = launch(&two).unwrap();
        // Nothing says that they are on one machine.
        assert_eq!((found.local_rank, found.local_world), (1, 1));
        assert_eq!(found.store, None);
        for (host, is_loopback) in
            [("127.0.0.1", true), ("localhost", true), ("::1", true), ("10.0.0.1", false)]
        {
            let address = [("MASTER_ADDR", host), ("MASTER_PORT", "1234")];
            let found = launch(&[&two[..], &address].concat()).unwrap();
            let store = found.store.unwrap();
            assert_eq!((store.port, store.is_loopback()), (1234, is_loopback));
            assert!(!store.is_served_by_agent && store.attempt == 0);
        }
    }

    #[test]
    fn srun_says_where_a_task_stands() {
        let step = [
            ("SLURM_PROCID", "9"),
            ("SLURM_STEP_NUM_TASKS", "11"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29500"),
        ];
        let found = launch(&step).unwrap();
        assert_eq!((found.rank, found.world), (9, 11));
        assert_eq!((found.local_rank, found.local_world), (1, 3));
        assert_eq!(found.store.unwrap().host, "node1");
        // A batch script without srun.
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0")];
        assert!(matches!(launch(&batch), Err(ShardError::NoStep { .. })));
        // A batch script that starts ranks by itself: LOCALID is that of the script.
        let by_hand = launch(&[&batch[..], &[("RANK", "3"), ("WORLD_SIZE", "4")]].concat());
        assert_eq!(by_hand.unwrap().local_rank, 3);
    }

    #[test]
    fn odd_variables_are_refused_by_name() {
        let two = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")];
        for (variable, value) in [
            ("MASTER_PORT", "http"),
            ("MASTER_PORT", "0"),
            ("MASTER_PORT", "70000"),
            ("LOCAL_RANK", "-1"),
            ("LOCAL_WORLD_SIZE", "two"),
        ] {
            let message = launch(&[&two[..], &[(variable, value)]].concat()).unwrap_err();
            assert!(message.to_string().starts_with(variable), "{message}");
        }
    }

    #[test]
    fn the_tasks_of_a_node_are_counted() {
        for (list, node, tasks) in [
            ("2", 0, Some(2)),
            ("2", 1, None),
            ("4(x2),3", 1, Some(4)),
            ("4(x2),3", 2, Some(3)),
            ("1,2(x3),5", 3, Some(2)),
            ("4(x", 0, None),
            ("", 0, None),
        ] {
            assert_eq!(tasks_of_node(list, node), tasks, "{list} {node}");
        }
    }
}
