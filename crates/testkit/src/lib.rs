//! Helpers of the tests: a program in a clean environment ([`program`]), its result ([`Run`],
//! [`Running`]), the ranks of a world ([`Ranks`]), a temporary folder ([`Folder`]), an HTTP server
//! ([`server`]) and servers of data ([`objects`]). Every function
//! panics if it fails, since its caller is a test.
//!
//! ```
//! use testkit::{Folder, Run, program};
//!
//! let folder = Folder::new();
//! let path = folder.put("inputs/prompts.txt", b"a red fox\n");
//! let run = Run::of(&mut program("/bin/cat", [path])).expect_code(0);
//! assert_eq!(run.stdout, "a red fox\n");
//! ```

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod folder;
pub mod objects;
mod ranks;
pub mod server;

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

pub use folder::Folder;
pub use ranks::{Ranks, free_port, torchrun};

/// Every run of a test takes seconds; busy machines take longer.
const LONGEST_RUN: Duration = Duration::from_secs(300);

/// Variables of the caller's shell that would change what a program does. Those that begin with the
/// program's name are removed too.
const FOREIGN_VARIABLES: [&str; 26] = [
    "RUNKIT_FAULT",
    "RUST_LOG",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_USE_AGENT_STORE",
    "GLOO_SOCKET_IFNAME",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MAX",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_STEP",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_NODEID",
    "SLURM_LOCALID",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
];

/// A program by its path, without the caller's variables and on one thread, so that tests do not
/// slow each other.
pub fn program<I: AsRef<OsStr>>(path: &str, arguments: impl IntoIterator<Item = I>) -> Command {
    let name = path.rsplit('/').next().unwrap().to_uppercase();
    let mut command = Command::new(path);
    command.args(arguments);
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with(&format!("{name}_")) {
            command.env_remove(variable);
        }
    }
    command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

/// The result of a run. Making one checks what holds for every run: output in UTF-8, no panic.
#[derive(Debug)]
pub struct Run {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// Runs the command to its end. Kills one that hangs, and fails the test.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let process = child.id().to_string();
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            let hangs = end.recv_timeout(LONGEST_RUN) == Err(RecvTimeoutError::Timeout);
            if hangs {
                Command::new("kill").args(["-9", &process]).status().unwrap();
            }
            hangs
        });
        let output = child.wait_with_output().unwrap();
        drop(ended);
        assert!(!watch.join().unwrap(), "{command:?} was still running after {LONGEST_RUN:?}");
        Self::from(output)
    }

    /// Its exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Whether `kill -9` ended it.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        self
    }

    /// Checks that the run failed with one error, whose message contains all of `parts`.
    #[track_caller]
    pub fn expect_error(self, parts: &[&str]) -> Self {
        self.expect_error_code(1, parts)
    }

    /// Checks that the command line was rejected with one error, whose message contains all of
    /// `parts`.
    #[track_caller]
    pub fn expect_usage_error(self, parts: &[&str]) -> Self {
        self.expect_error_code(2, parts)
    }

    #[track_caller]
    fn expect_error_code(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:#?}");
        }
        assert_eq!(self.stdout, "", "a failed command has no result");
        self
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let run = Self {
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!run.stderr.contains("panicked"), "{run:#?}");
        run
    }
}

/// A started program. Dropping it kills the program, so that none outlives its test.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts the command.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Sends a signal by its name: `TERM`, or `STOP` and `CONT`, which freeze and resume the
    /// program.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Run {
        let mut output = Output { status: ExitStatus::default(), stdout: vec![], stderr: vec![] };
        self.0.stdout.take().unwrap().read_to_end(&mut output.stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut output.stderr).unwrap();
        output.status = self.0.wait().unwrap();
        Run::from(output)
    }

    /// Kills it, as `kill -9` does, and waits for the end.
    pub fn kill(mut self) -> Run {
        self.0.kill().unwrap();
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if the test has waited for it already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `ready` returns true, at most half a minute.
#[track_caller]
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if ready() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain until {what}");
}
