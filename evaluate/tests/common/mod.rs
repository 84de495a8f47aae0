//! The world the tests run in: a temporary folder, the tiny pipelines with random weights that
//! `scripts/goldens/diffusion_networks.py` makes, and the program itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use tempfile::TempDir;

/// Pipelines of 16 x 16 pixels and prompts of 22 letters.
const PIPELINES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/diffusion");

/// Every run of these tests takes seconds; this is for machines that do much else.
const LONGEST_RUN: Duration = Duration::from_secs(300);

/// Variables of the caller's shell that would change what the program does.
const FOREIGN_VARIABLES: [&str; 5] =
    ["RUNKIT_FAULT", "RUST_LOG", "EVALUATE_BATCH_SIZE", "EVALUATE_DEVICE", "EVALUATE_DTYPE"];

/// The folder of a tiny pipeline: `sd` or `sdxl`.
pub(crate) fn pipeline(name: &str) -> PathBuf {
    Path::new(PIPELINES).join(name)
}

/// `--model` for a tiny pipeline.
pub(crate) fn model(name: &str) -> String {
    format!("{name}={}", pipeline(name).display())
}

/// The program, alone in its environment and on one thread, so that tests do not slow each other.
pub(crate) fn evaluate<I: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = I>,
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evaluate"));
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

    /// Whether it was ended by `kill -9`.
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// The run, which must have ended with this code.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    /// The run, which must have drawn this many pictures of these.
    #[track_caller]
    pub(crate) fn expect_drawn(self, drawn: usize, pictures: usize) -> Self {
        let expected = format!("{pictures} images, {drawn} of them new\n");
        assert!(self.stdout.starts_with(&expected), "{self:#?}");
        self.expect_code(0)
    }

    /// The run, which must have failed with one error that says all of this.
    #[track_caller]
    pub(crate) fn expect_error(self, says: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(1), "{self:#?}");
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

/// A temporary folder with inputs and outputs.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    /// A world with these prompts in `prompts.txt`.
    pub(crate) fn new(prompts: &[&str]) -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.put("prompts.txt", prompts.join("\n").as_bytes());
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

    /// A copy of a tiny pipeline, to be spoilt.
    pub(crate) fn copy_pipeline(&self, name: &str) -> PathBuf {
        let copied = Command::new("cp")
            .args(["-r".as_ref(), pipeline(name).as_os_str(), self.path(name).as_os_str()])
            .status();
        assert!(copied.unwrap().success());
        self.path(name)
    }

    /// `evaluate generate` of `models` on `prompts.txt` into `out`, in two steps unless `more` says
    /// otherwise.
    pub(crate) fn generate(&self, models: &[&str], more: &[&str]) -> Command {
        let mut command = evaluate(["generate"]);
        for source in models {
            command.arg("--model").arg(source);
        }
        command.arg("--out").arg(self.path("out")).args(more);
        if !more.contains(&"--prompts") {
            command.arg("--prompts").arg(self.path("prompts.txt"));
        }
        if !more.contains(&"--steps") {
            command.args(["--steps", "2"]);
        }
        command
    }

    /// Every file below `name` with its bytes, by path below it; lock files, which stay by design,
    /// left out.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(name);
        let mut files = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if !name.ends_with(".lock") {
                    let bytes = std::fs::read(&path).unwrap();
                    files.insert(name, bytes);
                }
            }
        }
        files
    }

    /// The pictures of `out`, by path below `images`.
    pub(crate) fn pictures(&self) -> BTreeMap<String, Picture> {
        let files = self.files("out/images").into_iter();
        files.map(|(name, bytes)| (name, Picture::decode(&bytes))).collect()
    }
}

/// A decoded PNG.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Vec<u8>,
    /// What stands in its text chunks, by key.
    pub(crate) texts: BTreeMap<String, String>,
}

impl Picture {
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let info = reader.info();
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let plain = info.uncompressed_latin1_text.iter();
        let mut texts: BTreeMap<String, String> =
            plain.map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
        for chunk in &info.utf8_text {
            texts.insert(chunk.keyword.clone(), chunk.get_text().unwrap());
        }
        Self { width: info.width, height: info.height, pixels, texts }
    }

    /// The recipe inside.
    pub(crate) fn recipe(&self) -> serde_json::Value {
        serde_json::from_str(&self.texts[evaluate::generate::RECIPE_KEY]).unwrap()
    }

    /// The largest difference of two pictures' numbers.
    pub(crate) fn distance(&self, other: &[u8]) -> u8 {
        assert_eq!(self.pixels.len(), other.len());
        self.pixels.iter().zip(other).map(|(one, two)| one.abs_diff(*two)).max().unwrap()
    }
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
