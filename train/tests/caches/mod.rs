//! What the tests of `train cache` share: pairs of the sample, made-up labels, and the tiny
//! pipelines.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use nn::device::Precision;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use runkit::launch::Launch;
use runkit::signals::StopFlag;
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::pairs::{PairFile, PairRow, discover};
use tch::{Device, Tensor};
use train::cache::{self, Config};
use train::data::{Dataset, Example, Positions, Stream, StreamOptions};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/diffusion");
pub(crate) const SIDE: i64 = 32;

pub(crate) fn model(name: &str) -> PathBuf {
    Path::new(MODELS).join(name)
}

/// The first rows of the sample as two files of pairs, in row groups of five.
pub(crate) fn pairs(folder: &Path, change: impl Fn(usize, &mut PairRow)) -> PathBuf {
    let input = folder.join("pairs");
    fs_err::create_dir_all(&input).unwrap();
    let sample = discover(&[PathBuf::from(SAMPLE)], &[]).unwrap().files;
    let mut rows: Vec<PairRow> =
        PairFile::open(&sample[0]).unwrap().rows_with_images(64).unwrap().next().unwrap().unwrap();
    rows.truncate(40);
    rows.iter_mut().enumerate().for_each(|(index, row)| change(index, row));
    for (name, rows) in [("a.parquet", &rows[..23]), ("b.parquet", &rows[23..])] {
        let text = |value: fn(&PairRow) -> Option<&str>| -> ArrayRef {
            Arc::new(rows.iter().map(value).collect::<StringArray>())
        };
        let image = |place: usize| -> ArrayRef {
            Arc::new(rows.iter().map(|row| row.image[place].as_deref()).collect::<BinaryArray>())
        };
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("caption", text(|row| row.caption.as_deref())),
            ("image_0_uid", text(|row| row.image_uid[0].as_deref())),
            ("image_1_uid", text(|row| row.image_uid[1].as_deref())),
            ("jpg_0", image(0)),
            ("jpg_1", image(1)),
            ("ranking_id", text(|row| Some(&row.pair_id))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(5)).build();
        let file = fs_err::File::create(input.join(name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
    input
}

/// Labels of all pairs; every seventh is a tie.
pub(crate) fn labels(folder: &Path, input: &Path) -> PathBuf {
    let path = folder.join("labels.parquet");
    let schema = LabelsSchema::new(&["clip"]).unwrap();
    let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
    for file in discover(&[input.to_owned()], &[]).unwrap().files {
        for row in PairFile::open(&file).unwrap().plan_rows().unwrap().collect_rows().unwrap() {
            let fine = row.caption.is_some();
            let sign = [0, 1, -1, 1, 1, -1, 1][(row.row % 7) as usize];
            let label = LabelRow {
                pair_id: row.pair_id,
                source_file: file.source_file.clone(),
                source_row: row.row,
                caption: row.caption,
                image_uid: row.image_uid,
                human_label_0: None,
                scores: vec![[None, None]],
                votes: vec![None],
                vote_sum: fine.then_some(sign),
                consensus: fine.then_some(sign),
                status: if fine { Status::Ok } else { Status::MissingCaption },
                error: None,
            };
            writer.write(&label).unwrap();
        }
    }
    writer.finish().unwrap();
    path
}

pub(crate) fn sign_of(row: &LabelRow) -> Option<i8> {
    row.consensus.filter(|sign| *sign != 0)
}

pub(crate) fn config(name: &str, input: &Path, out: &Path) -> Config {
    Config {
        model: model(name),
        inputs: train::data::PairInputs {
            pairs: vec![input.to_owned()],
            ..train::data::PairInputs::default()
        },
        out: out.to_owned(),
        resolution: Some(SIDE),
        hflip: false,
        device: Device::Cpu,
        precision: Precision::F32,
        batch_size: 8,
        limit: None,
        shard: None,
        launch: Launch::ALONE,
        fresh: false,
    }
}

pub(crate) fn write(config: &Config) -> cache::Summary {
    match cache::write(config, &StopFlag::never()).unwrap() {
        ControlFlow::Continue(summary) => summary.unwrap(),
        ControlFlow::Break(signal) => panic!("stopped by {signal:?}"),
    }
}

pub(crate) fn refused(config: &Config) -> String {
    format!("{:#}", cache::write(config, &StopFlag::never()).unwrap_err())
}

pub(crate) fn take(dataset: Dataset<i8>, hflip: bool, count: u64) -> Vec<Example<i8>> {
    take_of_rank(dataset, Positions::ALL, hflip, count)
}

pub(crate) fn take_of_rank(
    dataset: Dataset<i8>,
    positions: Positions,
    hflip: bool,
    count: u64,
) -> Vec<Example<i8>> {
    let options = StreamOptions {
        seed: 11,
        resolution: (SIDE, SIDE),
        random_crop: false,
        hflip,
        position: 5,
        positions,
        threads: 1,
        memory: 1 << 20,
    };
    let mut stream = Stream::start(Arc::new(dataset), options).unwrap();
    (0..count).map(|_| stream.next().unwrap()).collect()
}

/// The largest difference, relative to the largest number.
pub(crate) fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let difference = (found - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[]).max(1e-12)
}

/// The files of a cache, without the settings, which name the folder.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs_err::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter(|entry| entry.file_name() != "config.toml")
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs_err::read(entry.path()).unwrap())
        })
        .collect()
}

/// One file in several parts: a row group of 600 pairs.
pub(crate) fn long_pairs(folder: &Path, count: usize) -> PathBuf {
    let input = pairs(folder, |_, _| {});
    let file = discover(&[input.join("a.parquet")], &[]).unwrap().files.remove(0);
    let rows = PairFile::open(&file).unwrap().rows_with_images(64).unwrap();
    let rows: Vec<PairRow> = rows.flat_map(Result::unwrap).collect();
    let of = |index: usize| &rows[index % 3];
    let text = |value: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new((0..count).map(|index| Some(value(index))).collect::<StringArray>())
    };
    let image = |place: usize| -> ArrayRef {
        Arc::new((0..count).map(|index| of(index).image[place].as_deref()).collect::<BinaryArray>())
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("caption", text(&|index| format!("caption {}", index % 270))),
        ("image_0_uid", text(&|index| format!("{}", index % 3))),
        ("image_1_uid", text(&|index| format!("{}", 3 + index % 3))),
        ("jpg_0", image(0)),
        ("jpg_1", image(1)),
        ("ranking_id", text(&|index| format!("{}", 1000 + index))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let long = folder.join("long.parquet");
    let mut writer =
        ArrowWriter::try_new(fs_err::File::create(&long).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    long
}
