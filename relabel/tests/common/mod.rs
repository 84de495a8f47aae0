//! The world the tests run in: a temporary folder with small pair files made of `data/sample`, the
//! miniature models of `data/mini`, and the program itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod pairs;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use schemas::labels::{LabelRow, LabelsFile};
use tempfile::TempDir;

#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use pairs::{Pair, pairs_parquet, pairs_parquet_with_structs, parquet_of, sample_pairs};

/// The committed sample and models.
pub(crate) const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
pub(crate) const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini");
pub(crate) const ALL_SCORERS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// Every run of these tests takes seconds; this is for machines that do much else.
const LONGEST_RUN: Duration = Duration::from_secs(300);

/// Variables of the caller's shell that would change what the program does.
const FOREIGN_VARIABLES: [&str; 12] = [
    "RUNKIT_FAULT",
    "RUST_LOG",
    "RANK",
    "WORLD_SIZE",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_STEP",
    "RELABEL_SCORERS",
    "RELABEL_BATCH_SIZE",
    "RELABEL_DEVICE",
    "RELABEL_DTYPE",
];

/// The program, alone in its environment and on one thread, so that tests do not slow each other.
pub(crate) fn relabel<I: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = I>,
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relabel"));
    command.args(arguments);
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

/// How a run of the program ended. Making one checks what holds for every run: text in UTF-8, and no
/// panic.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Runs the command to its end. One that hangs is killed, and the test fails saying so.
    #[track_caller]
    pub(crate) fn of(command: &mut Command) -> Self {
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

    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Whether it was ended by `kill -9`.
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// The run, which must have ended with this code.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        self
    }

    /// The run, which must have failed with one error that says all of this.
    #[track_caller]
    pub(crate) fn expect_error(self, says: &[&str]) -> Self {
        assert_eq!(self.code(), Some(1), "{self:#?}");
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

/// A temporary folder with inputs, outputs and configurations.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    /// An empty world.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// `rows` pairs of the sample in three files below `pairs/`. Images recur across the files.
    pub(crate) fn with_sample(rows: usize) -> Self {
        let world = Self::empty();
        for (number, rows) in sample_pairs(rows).chunks(rows.div_ceil(3)).enumerate() {
            world.put(&format!("pairs/{number}.parquet"), &pairs_parquet(rows));
        }
        world
    }

    /// One file of these pairs, as `pairs/0.parquet`.
    pub(crate) fn with_pairs(pairs: &[Pair]) -> Self {
        let world = Self::empty();
        world.put("pairs/0.parquet", &pairs_parquet(pairs));
        world
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and the folders above it.
    #[expect(clippy::disallowed_methods, reason = "test input needs no durability")]
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The configuration `name` with these entries, as [`scorer_entry`] makes them.
    pub(crate) fn scorers(&self, name: &str, entries: &[String]) -> PathBuf {
        self.put(name, entries.concat().as_bytes())
    }

    /// The cheapest two scorers (one network serves both), for tests about files and processes.
    pub(crate) fn two_scorers(&self) -> PathBuf {
        self.scorers("two.toml", &[scorer_entry("clip"), scorer_entry("aesthetic")])
    }

    /// `relabel score` on `pairs/` into `out`.
    pub(crate) fn score(&self, scorers: &Path, out: &str, more: &[&str]) -> Command {
        let mut command = relabel(["score", "--pairs"]);
        command.arg(self.path("pairs")).arg("--scorers").arg(scorers);
        command.arg("--out").arg(self.path(out)).args(more);
        command
    }

    /// The rows of `out`.
    pub(crate) fn labels(&self, out: &str) -> Vec<LabelRow> {
        LabelsFile::open(self.path(out)).unwrap().read_rows().unwrap()
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Every file below `name` with its bytes, by path.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path(name)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    files.insert(path, bytes);
                }
            }
        }
        files
    }

    /// The names in a folder, sorted; lock files, which stay by design, left out.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }
}

/// An entry of `scorers.toml` for a miniature model, with absolute paths.
pub(crate) fn scorer_entry(name: &str) -> String {
    let text = std::fs::read_to_string(Path::new(MINI).join("scorers.toml")).unwrap();
    let entries = text.split("[[scorer]]").skip(1);
    let mut named = entries.filter(|entry| entry.contains(&format!("name = \"{name}\"")));
    let entry = named.next().unwrap_or_else(|| panic!("data/mini has no scorer {name}"));
    let absolute = |line: &str| match line.split_once(" = \"") {
        Some((key @ ("model" | "head"), value)) => format!("{key} = \"{MINI}/{value}\n"),
        _ => format!("{line}\n"),
    };
    format!("[[scorer]]\n{}\n", entry.lines().map(absolute).collect::<String>())
}

/// The miniature configuration as committed.
pub(crate) fn four_scorers() -> PathBuf {
    Path::new(MINI).join("scorers.toml")
}

/// A started program that is killed when the test ends, however it ends.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Sends a signal by its name: `TERM`; `STOP` and `CONT` freeze the program and let it go on.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Run {
        let mut output = Output { status: ExitStatus::default(), stdout: vec![], stderr: vec![] };
        self.0.stdout.take().unwrap().read_to_end(&mut output.stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut output.stderr).unwrap();
        output.status = self.0.wait().unwrap();
        Run::from(output)
    }

    /// Kills it, as `kill -9` does, and waits for the end.
    pub(crate) fn kill(mut self) -> Run {
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
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if ready() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain until {what}");
}
