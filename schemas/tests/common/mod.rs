//! Small files for the tests of this crate, written with the Parquet library itself.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use schemas::labels::{LabelRow, Status};
use schemas::pairs::{InputFile, PairFile};

/// The default columns of a pairs file of `rows` rows; a test replaces what it is about.
pub(crate) fn pair_columns(rows: i64) -> Vec<(&'static str, ArrayRef)> {
    let text = |prefix: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{prefix} {row}"))))
    };
    let image = |first: u8| -> ArrayRef {
        let bytes = move |row: i64| (0..40).map(|i| first.wrapping_add((row + i) as u8)).collect();
        Arc::new(BinaryArray::from_iter_values((0..rows).map(bytes).collect::<Vec<Vec<u8>>>()))
    };
    vec![
        ("are_different", Arc::new(Int64Array::from_iter_values(0..rows))),
        ("caption", text("caption")),
        ("image_0_uid", text("left")),
        ("image_1_uid", text("right")),
        ("jpg_0", image(0)),
        ("jpg_1", image(100)),
        (
            "label_0",
            Arc::new(Float64Array::from_iter_values((0..rows).map(|r| (r % 3) as f64 / 2.0))),
        ),
        ("ranking_id", Arc::new(Int64Array::from_iter_values((0..rows).map(|row| 1000 + row)))),
    ]
}

/// `columns` with one of them replaced or added.
pub(crate) fn with(
    mut columns: Vec<(&'static str, ArrayRef)>,
    name: &'static str,
    array: ArrayRef,
) -> Vec<(&'static str, ArrayRef)> {
    match columns.iter_mut().find(|(found, _)| *found == name) {
        Some((_, position)) => *position = array,
        None => columns.push((name, array)),
    }
    columns
}

/// `columns` without one of them.
pub(crate) fn without(
    mut columns: Vec<(&'static str, ArrayRef)>,
    name: &str,
) -> Vec<(&'static str, ArrayRef)> {
    columns.retain(|(found, _)| *found != name);
    columns
}

/// The bytes of a Parquet file of these columns.
pub(crate) fn parquet_bytes(
    columns: Vec<(&'static str, ArrayRef)>,
    row_group_rows: usize,
) -> Vec<u8> {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
            .unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// Writes bytes for a test.
#[expect(clippy::disallowed_methods, reason = "test input needs no durability")]
pub(crate) fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The file as an input named `pairs.parquet`.
pub(crate) fn input(path: PathBuf) -> InputFile {
    InputFile { path, source_file: "pairs.parquet".to_owned(), layout: None }
}

/// Writes a pairs file of these columns in row groups of 4 and opens it.
pub(crate) fn open_pairs(folder: &Path, columns: Vec<(&'static str, ArrayRef)>) -> PairFile {
    let path = put(folder, "pairs.parquet", &parquet_bytes(columns, 4));
    PairFile::open(&input(path)).unwrap()
}

/// A row of labels for two scorers; every fifth failed.
pub(crate) fn label_row(row: i64) -> LabelRow {
    let failed = row % 5 == 4;
    let score = |image: i64| (!failed).then(|| ((row * 31 + image * 17) % 101) as f32 / 100.0);
    let scores = [score(0), score(1)];
    let vote = (!failed).then(|| if scores[0] >= scores[1] { 1_i8 } else { -1 });
    LabelRow {
        pair_id: format!("pair {row}"),
        source_file: format!("part-{}.parquet", row / 1000),
        source_row: row % 1000,
        caption: (row % 7 != 0).then(|| format!("a caption of pair {}", row / 3)),
        image_uid: [Some(format!("left {row}")), (row % 11 != 0).then(|| format!("right {row}"))],
        human_label_0: (row % 4 != 0).then_some((row % 3) as f64 / 2.0),
        scores: vec![scores, scores],
        votes: vec![vote, vote],
        vote_sum: vote.map(|vote| 2 * vote),
        consensus: vote,
        status: if failed { Status::DecodeError } else { Status::Ok },
        error: failed.then(|| "cut short".to_owned()),
    }
}

/// A file of this workspace that claims another version: the first digit becomes the second.
pub(crate) fn with_version(bytes: &[u8], key: &str, [from, to]: [u8; 2]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let key = key.as_bytes();
    let position = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    let digit = position + bytes[position..].iter().position(|byte| *byte == from).unwrap();
    bytes[digit] = to;
    // Without the mark of its checksums, which would reveal the change.
    let mark = bytes.windows(8).rposition(|window| window == b"BDPOSUM1").unwrap();
    bytes[mark] = 0;
    bytes
}

/// The anonymous memory of this process, in bytes: mapped files do not count.
pub(crate) fn held() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Calls `work` and gives the most that was held meanwhile, looked at every millisecond.
pub(crate) fn peak_of(work: impl FnOnce()) -> usize {
    let (peak, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(held(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
    peak.into_inner()
}
