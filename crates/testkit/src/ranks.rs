//! Several processes that a launcher would start.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Run, Running, program};

/// Started ranks of a world on this machine. Dropping them kills all that run.
#[derive(Debug)]
pub struct Ranks(Vec<Running>);

impl Ranks {
    /// Starts `world` processes. `command` makes that of a rank; it gets the variables that
    /// torchrun sets for a world without an agent, with a free port.
    pub fn start(world: usize, command: impl FnMut(usize) -> Command) -> Self {
        Self::start_at(free_port(), world, command)
    }

    /// As [`Ranks::start`], with the port of the store.
    pub fn start_at(port: u16, world: usize, mut command: impl FnMut(usize) -> Command) -> Self {
        let start = |rank| {
            let mut command = command(rank);
            for (variable, value) in [
                ("RANK", rank.to_string()),
                ("LOCAL_RANK", rank.to_string()),
                ("WORLD_SIZE", world.to_string()),
                ("LOCAL_WORLD_SIZE", world.to_string()),
                ("MASTER_ADDR", "127.0.0.1".to_owned()),
                ("MASTER_PORT", port.to_string()),
            ] {
                command.env(variable, value);
            }
            Running::start(&mut command)
        };
        Self((0..world).map(start).collect())
    }

    /// One of the processes.
    pub fn rank(&mut self, rank: usize) -> &mut Running {
        &mut self.0[rank]
    }

    /// Waits for the end of all, and returns their results by rank. Kills all that run after
    /// `limit`, and fails the test.
    #[track_caller]
    pub fn finish_within(self, limit: Duration) -> Vec<Run> {
        let ids: Vec<String> = self.0.iter().map(|running| running.id().to_string()).collect();
        let threads: Vec<_> =
            self.0.into_iter().map(|running| std::thread::spawn(|| running.finish())).collect();
        let begin = Instant::now();
        let mut late = Vec::new();
        while threads.iter().any(|thread| !thread.is_finished()) {
            if begin.elapsed() > limit && late.is_empty() {
                for (rank, thread) in threads.iter().enumerate() {
                    if !thread.is_finished() {
                        late.push(rank);
                        let _ = Command::new("kill").args(["-9", &ids[rank]]).status();
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let runs: Vec<Run> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(late.is_empty(), "ranks {late:?} still ran after {limit:?}: {runs:#?}");
        runs
    }
}

/// A TCP port of this machine that nobody uses.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `torchrun --standalone FLAGS --no-python COMMAND`, with `command`'s variables, from the virtual
/// environment of the build.
pub fn torchrun(flags: &[&str], command: &Command) -> Command {
    let environment = std::env::var_os("VIRTUAL_ENV").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.venv")),
        PathBuf::from,
    );
    let path = environment.join("bin/torchrun");
    assert!(path.exists(), "{} does not exist; make setup installs it", path.display());
    let mut torchrun = program(path.to_str().unwrap(), ["--standalone"]);
    torchrun.args(flags).arg("--no-python").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => torchrun.env(name, value),
            None => torchrun.env_remove(name),
        };
    }
    torchrun
}
