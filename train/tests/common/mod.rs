//! The world the tests run in: a temporary folder with pairs of `data/sample` and labels made up for
//! them, the tiny pipelines with random weights that `scripts/goldens/diffusion_networks.py` makes,
//! and the program itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::pairs::{PairFile, discover};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// The committed sample.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
/// Pipelines of 16 x 16 pixels.
const PIPELINES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/diffusion");
/// The scorers of the made-up labels.
pub(crate) const SCORERS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// Every run of these tests takes seconds; this is for machines that do much else.
const LONGEST_RUN: Duration = Duration::from_secs(300);

/// Variables of the caller's shell that would change what the program does.
const FOREIGN_VARIABLES: [&str; 6] = [
    "RUNKIT_FAULT",
    "RUST_LOG",
    "TRAIN_DEVICE",
    "TRAIN_DTYPE",
    "TRAIN_MICRO_BATCH",
    "TRAIN_DATA_THREADS",
];

/// The folder of a tiny pipeline: `sd` or `sdxl`.
pub(crate) fn pipeline(name: &str) -> PathBuf {
    Path::new(PIPELINES).join(name)
}

/// The program, alone in its environment and on one thread, so that tests do not slow each other.
pub(crate) fn train<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
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

/// One pair of the sample.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) ranking_id: i64,
    pub(crate) caption: String,
    pub(crate) uid: [String; 2],
    pub(crate) image: [Vec<u8>; 2],
    pub(crate) label_0: f64,
}

/// The first pairs of the sample.
pub(crate) fn sample_pairs(rows: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for input in discover(&[Path::new(SAMPLE).to_owned()]).unwrap() {
        for batch in PairFile::open(&input).unwrap().rows_with_images(32).unwrap() {
            for row in batch.unwrap() {
                if pairs.len() == rows {
                    return pairs;
                }
                pairs.push(Pair {
                    ranking_id: row.pair_id.parse().unwrap(),
                    caption: row.caption.unwrap(),
                    uid: row.image_uid.map(Option::unwrap),
                    image: row.image.map(|image| image.unwrap().to_vec()),
                    label_0: row.human_label_0.unwrap(),
                });
            }
        }
    }
    panic!("the sample has fewer than {rows} pairs");
}

/// A Parquet file in Pick-a-Pic's layout, in row groups of four.
pub(crate) fn pairs_parquet(pairs: &[Pair]) -> Vec<u8> {
    let text = |value: fn(&Pair) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(pairs.iter().map(value)))
    };
    let image = |place: usize| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(pairs.iter().map(|pair| &pair.image[place])))
    };
    let labels = Float64Array::from_iter_values(pairs.iter().map(|pair| pair.label_0));
    let ids = Int64Array::from_iter_values(pairs.iter().map(|pair| pair.ranking_id));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("caption", text(|pair| &pair.caption)),
        ("jpg_0", image(0)),
        ("jpg_1", image(1)),
        ("image_0_uid", text(|pair| &pair.uid[0])),
        ("image_1_uid", text(|pair| &pair.uid[1])),
        ("label_0", Arc::new(labels)),
        ("ranking_id", Arc::new(ids)),
    ];
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(4)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// What the made-up scorers think of a pair: the first three agree in most cases.
pub(crate) fn votes_of(row: usize) -> [i8; 4] {
    [[1, 1, 1, -1], [-1, -1, -1, -1], [1, 1, 1, 1], [-1, 1, -1, -1]][row % 4]
}

/// A row of labels.
pub(crate) fn label_row(pair: &Pair, file: &str, row: usize, votes: [i8; 4]) -> LabelRow {
    let sum: i8 = votes.iter().sum();
    LabelRow {
        pair_id: pair.ranking_id.to_string(),
        source_file: file.to_owned(),
        source_row: row as i64,
        caption: Some(pair.caption.clone()),
        image_uid: pair.uid.clone().map(Some),
        human_label_0: Some(pair.label_0),
        scores: votes
            .iter()
            .map(|vote| [Some(0.1 * f32::from(*vote) + 0.01 * row as f32), Some(0.01 * row as f32)])
            .collect(),
        votes: votes.map(Some).to_vec(),
        vote_sum: Some(sum),
        consensus: Some(sum.signum()),
        status: Status::Ok,
        error: None,
    }
}

/// A temporary folder with inputs and outputs.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    /// `rows` pairs of the sample in two files below `pairs/`, and `labels.parquet`.
    pub(crate) fn new(rows: usize) -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        let pairs = sample_pairs(rows);
        let mut labels = Vec::new();
        for (number, part) in pairs.chunks(rows.div_ceil(2)).enumerate() {
            let file = format!("{number}.parquet");
            world.put(&format!("pairs/{file}"), &pairs_parquet(part));
            for (row, pair) in part.iter().enumerate() {
                labels.push(label_row(pair, &file, row, votes_of(labels.len())));
            }
        }
        world.put_labels("labels.parquet", &labels);
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

    /// Writes a labels file.
    pub(crate) fn put_labels(&self, name: &str, rows: &[LabelRow]) -> PathBuf {
        let path = self.path(name);
        let schema = LabelsSchema::new(&SCORERS).unwrap();
        let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
        for row in rows {
            writer.write(row).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    /// The rows of `labels.parquet`.
    pub(crate) fn labels(&self) -> Vec<LabelRow> {
        schemas::labels::LabelsFile::open(self.path("labels.parquet")).unwrap().read_rows().unwrap()
    }

    /// A copy of a tiny pipeline, to be spoilt.
    pub(crate) fn copy_pipeline(&self, name: &str) -> PathBuf {
        let copied = Command::new("cp")
            .args(["-r".as_ref(), pipeline(name).as_os_str(), self.path(name).as_os_str()])
            .status();
        assert!(copied.unwrap().success());
        self.path(name)
    }

    /// `train COMMAND` of the tiny pipeline on the world's pairs into `out`: ten steps of four pairs
    /// in micro-batches of two, a reference that moves every four steps, no sample images, unless
    /// `more` says otherwise.
    pub(crate) fn command(&self, command: &str, out: &str, more: &[&str]) -> Command {
        let mut arguments: Vec<(&str, String)> = vec![
            ("--model", pipeline("sd").display().to_string()),
            ("--labels", self.path("labels.parquet").display().to_string()),
            ("--out", self.path(out).display().to_string()),
            ("--steps", "10".to_owned()),
            ("--batch-size", "4".to_owned()),
            ("--micro-batch", "2".to_owned()),
            ("--reference-every", "4".to_owned()),
            ("--lr", "1e-3".to_owned()),
            ("--scale-lr=false", String::new()),
            ("--warmup-steps", "2".to_owned()),
            ("--beta", "50".to_owned()),
            ("--checkpoint-every", "3".to_owned()),
            ("--probe-pairs", "2".to_owned()),
            ("--probe-every", "5".to_owned()),
            ("--sample-every", "0".to_owned()),
            ("--device", "cpu".to_owned()),
        ];
        if !more.contains(&"--cache") {
            arguments.push(("--pairs", self.path("pairs").display().to_string()));
        }
        let mut command = train([command]);
        for (flag, value) in arguments {
            if !more.contains(&flag) {
                command.arg(flag);
                if !value.is_empty() {
                    command.arg(value);
                }
            }
        }
        command.args(more);
        command
    }

    /// `train run`.
    pub(crate) fn run(&self, out: &str, more: &[&str]) -> Command {
        self.command("run", out, more)
    }

    /// The lines of a run's metrics without what a clock gave.
    pub(crate) fn metrics(&self, out: &str) -> Vec<Map<String, Value>> {
        let text = std::fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| {
                let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
                line.retain(|name, _| !name.starts_with("time/"));
                line
            })
            .collect()
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

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A started program that is killed when the test ends, however it ends.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Sends a signal by its name: `TERM`.
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
