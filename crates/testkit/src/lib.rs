//! What the tests of the three programs share: a program in an environment of its own, how a run of
//! it ended, and a temporary folder. Every function panics where it cannot do what it says: its
//! caller is a test.

#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

mod folder;
pub mod server;

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

pub use folder::Folder;

/// Every run of a test takes seconds; this is for machines that do much else.
const LONGEST_RUN: Duration = Duration::from_secs(300);

/// Variables of the caller's shell that would change what any of the programs does; those that
/// begin with the program's name are taken away too.
const FOREIGN_VARIABLES: [&str; 14] = [
    "RUNKIT_FAULT",
    "RUST_LOG",
    "RANK",
    "WORLD_SIZE",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_STEP",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
];

/// A program by its path, alone in its environment and on one thread, so that tests do not slow
/// each other.
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

/// How a run of a program ended. Making one checks what holds for every run: text in UTF-8, and no
/// panic.
#[derive(Debug)]
pub struct Run {
    /// Its end.
    pub status: ExitStatus,
    /// All it printed.
    pub stdout: String,
    /// All it reported.
    pub stderr: String,
}

impl Run {
    /// Runs the command to its end. One that hangs is killed, and the test fails saying so.
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

    /// Its exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Whether it was ended by `kill -9`.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// The run, which must have ended with this code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        self
    }

    /// The run, which must have failed with one error that says all of this.
    #[track_caller]
    pub fn expect_error(self, says: &[&str]) -> Self {
        self.expect_error_code(1, says)
    }

    /// The run, whose command line must have been refused with one error that says all of this.
    #[track_caller]
    pub fn expect_usage_error(self, says: &[&str]) -> Self {
        self.expect_error_code(2, says)
    }

    #[track_caller]
    fn expect_error_code(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{self:#?}");
        for words in says {
            assert!(self.stderr.contains(words), "{words:?} is not in {self:#?}");
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

/// A started program that is killed when the test ends, however it ends.
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

    /// Sends a signal by its name: `TERM`; `STOP` and `CONT` freeze the program and let it go on.
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
        // Already gone, where the test has waited for it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `ready` says so; half a minute at most.
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
