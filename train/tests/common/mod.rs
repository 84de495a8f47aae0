//! The fixture the tests run in: a temporary folder with pairs of `data/sample` and labels made up
//! for them, the tiny pipelines with random weights that `scripts/goldens/diffusion_networks.py`
//! makes, and the program itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod ranks;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::latents::{ImageMoments, LatentsFile, LatentsWriter, latents_name};
use schemas::pairs::{PairFile, discover};
use serde_json::{Map, Value};
use testkit::Folder;
#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use testkit::{Run, Running, wait_until};

/// The committed sample.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
/// Pipelines of 16 x 16 pixels.
const PIPELINES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/diffusion");
/// The scorers of the made-up labels.
pub(crate) const SCORERS: [&str; 4] = ["clip", "hps", "pickscore", "aesthetic"];

/// The folder of a tiny pipeline: `sd` or `sdxl`.
pub(crate) fn pipeline(name: &str) -> PathBuf {
    Path::new(PIPELINES).join(name)
}

/// The program, alone in its environment and on one thread, so that tests do not slow each other.
pub(crate) fn train<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    testkit::program(env!("CARGO_BIN_EXE_train"), arguments)
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
    for input in discover(&[Path::new(SAMPLE).to_owned()], &[]).unwrap().files {
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

/// A Parquet file in Pick-a-Pic's layout, in row groups of four; an empty image is null.
pub(crate) fn pairs_parquet(pairs: &[Pair]) -> Vec<u8> {
    let text = |value: fn(&Pair) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(pairs.iter().map(value)))
    };
    let image = |place: usize| -> ArrayRef {
        let images = pairs.iter().map(|pair| Some(&pair.image[place]));
        Arc::new(BinaryArray::from_iter(
            images.map(|image| image.filter(|image| !image.is_empty())),
        ))
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
pub(crate) struct Fixture {
    folder: Folder,
}

impl Fixture {
    /// `rows` pairs of the sample in two files below `pairs/`, and `labels.parquet`.
    pub(crate) fn new(rows: usize) -> Self {
        let fixture = Self { folder: Folder::new() };
        let pairs = sample_pairs(rows);
        let mut labels = Vec::new();
        for (number, part) in pairs.chunks(rows.div_ceil(2)).enumerate() {
            let file = format!("{number}.parquet");
            fixture.put(&format!("pairs/{file}"), &pairs_parquet(part));
            for (row, pair) in part.iter().enumerate() {
                labels.push(label_row(pair, &file, row, votes_of(labels.len())));
            }
        }
        fixture.put_labels("labels.parquet", &labels);
        fixture
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
        self.copy(&pipeline(name), name)
    }

    /// `train COMMAND` of the tiny pipeline on the fixture's pairs into `out`: ten steps of four
    /// pairs in micro-batches of two, a reference that moves every four steps, no sample images,
    /// unless `more` says otherwise.
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

    /// A cache of the pairs in which the latents of one pair lead to a loss that is infinite.
    pub(crate) fn poisoned_cache(&self, pair: &str) -> String {
        let cache = self.path("latents").display().to_string();
        let mut command = train(["cache", "--model"]);
        command.arg(pipeline("sd")).arg("--pairs").arg(self.path("pairs")).args(["--out", &cache]);
        Run::of(&mut command).expect_code(0);
        for index in 0..2 {
            let path = self.path("latents").join(latents_name(index));
            let file = LatentsFile::open(&path).unwrap();
            let rows: Vec<_> = file.rows().unwrap().flat_map(Result::unwrap).collect();
            let numbers: Vec<i64> = (0..file.num_rows()).collect();
            let moments = [0, 1].map(|image| file.moments_at(image, false, &numbers).unwrap());
            let mut writer = LatentsWriter::create(&path, file.layout(), file.metadata()).unwrap();
            for (at, row) in rows.into_iter().enumerate() {
                let is_poisoned = row.pair_id == pair;
                let images = moments.each_ref().map(|moments| {
                    let mut plain = moments[at].clone();
                    if is_poisoned {
                        plain.mean.fill(1e30);
                    }
                    Some(ImageMoments { plain, flipped: None })
                });
                writer.write(row, images).unwrap();
            }
            writer.finish().unwrap();
        }
        cache
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
}

impl Deref for Fixture {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}
