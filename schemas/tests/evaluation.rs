//! Scores and win rates: read back as written, the same bytes for the same rows, and whatever is
//! wrong refused by name.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Float64Array, Int64Array, NullArray, StringArray};
use common::{parquet_bytes, put};
use schemas::evaluation::{
    EvaluationError, KEY_MANIFEST, KEY_SCHEMA_VERSION, ROW_GROUP_ROWS, Record, RecordWriter,
};
use schemas::scores::{ScoreRow, ScoresFile, ScoresWriter};
use schemas::winrates::{Statistic, WinRateRow, WinRatesFile, WinRatesWriter};
use tempfile::tempdir;

fn score(number: usize) -> ScoreRow {
    let scored = number % 11 != 5;
    ScoreRow {
        model: format!("model {}", number % 3),
        prompt_set: "parti".to_owned(),
        prompt_id: format!("{:04}", number / 12),
        prompt: format!("a \"fox\", {}\nat night", number / 12),
        category: number.is_multiple_of(2).then(|| "Animals".to_owned()),
        seed: number as i64 % 4 - 1,
        metric: "clip".to_owned(),
        score: scored.then_some(number as f32 / 7.0),
        image: format!("images/model/{number}.png"),
        error: (!scored).then(|| "not an image".to_owned()),
    }
}

fn win_rate(statistic: Statistic) -> WinRateRow {
    WinRateRow {
        prompt_set: "all".to_owned(),
        category: None,
        model_a: "balanced".to_owned(),
        model_b: "base".to_owned(),
        metric: "hps".to_owned(),
        statistic,
        selected_by: (statistic == Statistic::CrossSelection).then(|| "clip".to_owned()),
        seeds: 5,
        prompts: 10,
        excluded: 2,
        wins: 6,
        ties: 1,
        losses: 3,
        strict_rate: 0.6,
        win_rate: 0.65,
        win_rate_low: 0.35,
        win_rate_high: 0.87,
        p_value: 0.5078125,
        p_holm: 1.0,
        mean_difference: -0.25,
        mean_difference_low: -1.5,
        mean_difference_high: 0.75,
        minimum_detectable_effect: 0.44,
    }
}

fn write<R: Record>(path: &Path, rows: Vec<R>) -> Result<(), EvaluationError> {
    let metadata = BTreeMap::from([(KEY_MANIFEST.to_owned(), "{}".to_owned())]);
    let mut writer = RecordWriter::<R>::create(path, &metadata)?;
    rows.into_iter().try_for_each(|row| writer.write(row))?;
    writer.finish()
}

#[test]
fn rows_are_read_back() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("scores.parquet");
    let rows: Vec<ScoreRow> = (0..ROW_GROUP_ROWS + 3000).map(score).collect();
    write(&path, rows.clone()).unwrap();
    let file = ScoresFile::open(&path).unwrap();
    assert_eq!((file.num_rows() as usize, file.path()), (rows.len(), path.as_path()));
    assert_eq!(
        (&file.metadata()[KEY_MANIFEST][..], &file.metadata()[KEY_SCHEMA_VERSION][..]),
        ("{}", "1")
    );
    assert!(file.read().unwrap() == rows);

    let cells = Statistic::ALL.map(win_rate).to_vec();
    write(&path, cells.clone()).unwrap();
    assert_eq!(WinRatesFile::open(&path).unwrap().read().unwrap(), cells);

    write::<ScoreRow>(&path, Vec::new()).unwrap();
    assert_eq!(ScoresFile::open(&path).unwrap().read().unwrap(), []);
}

#[test]
fn equal_rows_give_equal_bytes() {
    let folder = tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
    for path in [&first, &second] {
        write(path, (0..5000).map(score).collect()).unwrap();
    }
    assert_eq!(fs_err::read(&first).unwrap(), fs_err::read(&second).unwrap());
    assert_eq!(
        ScoresFile::open(&first).unwrap().fingerprint(),
        ScoresFile::open(&second).unwrap().fingerprint()
    );
}

#[test]
fn impossible_values_are_not_written() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("scores.parquet");
    for wrong in [f32::NAN, f32::INFINITY] {
        let error = write(&path, vec![score(0), ScoreRow { score: Some(wrong), ..score(1) }]);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("scores.parquet: row 1: score is"), "{message}");
    }
    let fine = || win_rate(Statistic::BestOfN);
    for (row, expected) in [
        (WinRateRow { win_rate_low: f64::NAN, ..fine() }, "win_rate_low is NaN"),
        (WinRateRow { p_value: 1.5, ..fine() }, "p_value is 1.5"),
        (
            WinRateRow { mean_difference_high: f64::INFINITY, ..fine() },
            "mean_difference_high is inf",
        ),
        (WinRateRow { wins: 7, ..fine() }, "do not make 10 prompts"),
        (WinRateRow { wins: i64::MAX, ..fine() }, "do not make 10 prompts"),
        (WinRateRow { wins: -1, ties: 8, ..fine() }, "do not make 10 prompts"),
    ] {
        let message = write(&path, vec![row]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert!(!path.exists());
}

#[test]
fn another_version_is_refused_by_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("winrates.parquet");
    write(&path, vec![win_rate(Statistic::BestOfN)]).unwrap();
    let message = ScoresFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("not scores"), "{message}");

    let bytes = common::with_version(&std::fs::read(&path).unwrap(), KEY_SCHEMA_VERSION, *b"21");
    let path = put(folder.path(), "old.parquet", &bytes);
    let message = WinRatesFile::open(&path).unwrap_err().to_string();
    let expected = "old.parquet: expected win rates of schema version 2, found version 1; hint:";
    assert!(message.contains(expected), "{message}");
    assert!(ScoresFile::open(&path).unwrap_err().to_string().contains("not scores"));
}

/// The columns of scores as another tool writes them: any order, plain types, one column more.
fn foreign(score: Vec<Option<f32>>) -> Vec<(&'static str, ArrayRef)> {
    let rows = score.len();
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; rows])) };
    let none = || -> ArrayRef { Arc::new(StringArray::from(vec![None::<&str>; rows])) };
    vec![
        ("score", Arc::new(Float32Array::from(score))),
        ("more", text("of it")),
        ("seed", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        ("model", text("base")),
        ("prompt_set", text("parti")),
        ("prompt_id", text("0001")),
        ("prompt", text("a fox")),
        ("category", none()),
        ("metric", text("clip")),
        ("image", text("a.png")),
        ("error", none()),
    ]
}

#[test]
fn files_of_others_are_read_and_their_faults_named() {
    let folder = tempdir().unwrap();
    let open = |columns: Vec<(&'static str, ArrayRef)>| {
        let path = put(folder.path(), "scores.parquet", &parquet_bytes(columns, 2));
        ScoresFile::open(path).and_then(|file| file.read())
    };
    let rows = open(foreign(vec![Some(0.5), None, Some(-1.0)])).unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.seed, row.score)).collect::<Vec<_>>(),
        [(0, Some(0.5)), (1, None), (2, Some(-1.0))]
    );

    let message = open(foreign(vec![Some(0.5), Some(f32::NAN)])).unwrap_err().to_string();
    assert!(message.contains("row 1: score is NaN"), "{message}");

    let mut columns = foreign(vec![Some(0.5)]);
    columns.retain(|(name, _)| *name != "prompt_id");
    columns[0].1 = Arc::new(StringArray::from(vec!["0.5"]));
    let message = open(columns).unwrap_err().to_string();
    for part in [
        "scores.parquet: not scores:",
        "column \"prompt_id\": expected Utf8, found none",
        "column \"score\": expected Float32, found Utf8",
        "hint: name the scores.parquet",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }

    // What pandas makes of them: a type "null", floats of whole numbers, double precision.
    let mut columns = foreign(vec![Some(0.5), Some(1.0)]);
    columns[0].1 = Arc::new(Float64Array::from(vec![Some(0.5), None]));
    columns[2].1 = Arc::new(Float64Array::from(vec![7.0, 8.0]));
    columns[7].1 = Arc::new(NullArray::new(2));
    columns[10].1 = Arc::new(NullArray::new(2));
    let rows = open(columns.clone()).unwrap();
    assert_eq!((rows[0].score, rows[1].score, rows[1].seed), (Some(0.5), None, 8));
    assert_eq!((&rows[0].category, &rows[1].error), (&None, &None));
    columns[0].1 = Arc::new(Float64Array::from(vec![0.5, 0.1]));
    let message = open(columns.clone()).unwrap_err().to_string();
    assert!(message.contains("row 1: score is 0.1, expected Float32"), "{message}");
    columns[0].1 = Arc::new(Float64Array::from(vec![0.5, 0.25]));
    columns[2].1 = Arc::new(Float64Array::from(vec![7.5, 8.0]));
    let message = open(columns).unwrap_err().to_string();
    assert!(message.contains("row 0: seed is 7.5, expected Int64"), "{message}");

    let mut columns = foreign(vec![Some(0.5), Some(1.0)]);
    columns[3].1 = Arc::new(StringArray::from(vec![Some("base"), None]));
    let message = open(columns).unwrap_err().to_string();
    assert!(message.contains("row 1: model is null"), "{message}");
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("scores.parquet");
    write(&path, vec![score(0)]).unwrap();
    let message = WinRatesFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("scores.parquet: not win rates"), "{message}");
    assert!(matches!(ScoresFile::open(folder.path().join("none")), Err(EvaluationError::Input(_))));
    let labels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sample");
    let pairs = labels.join("pairs-00000-of-00003.parquet");
    assert!(matches!(ScoresFile::open(pairs), Err(EvaluationError::Columns { .. })));
}

/// Every prefix of a file, and many single damaged bits: an error or rows, never a panic.
#[test]
fn damaged_files_are_errors() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("winrates.parquet");
    write(&path, [Statistic::ALL; 30].concat().into_iter().map(win_rate).collect()).unwrap();
    let whole = fs_err::read(&path).unwrap();
    let damaged = folder.path().join("damaged.parquet");
    let read = |bytes: &[u8]| {
        fs_err::write(&damaged, bytes).unwrap();
        WinRatesFile::open(&damaged).and_then(|file| file.read())
    };
    assert!(read(&whole).is_ok());
    for sixtyfourth in 0..64 {
        assert!(read(&whole[..whole.len() * sixtyfourth / 64]).is_err());
    }
    let mut position = 12_345_usize;
    for _ in 0..200 {
        position = (position * 1_103_515_245 + 12_345) % (whole.len() * 8);
        let mut bytes = whole.clone();
        bytes[position / 8] ^= 1 << (position % 8);
        let _either = read(&bytes);
    }
}

#[test]
fn writers_have_the_names_of_their_files() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file.parquet");
    let metadata = BTreeMap::new();
    let mut scores = ScoresWriter::create(&path, &metadata).unwrap();
    scores.write(score(0)).unwrap();
    drop(scores);
    assert!(!path.exists(), "nothing stands there before it is finished");
    let mut cells = WinRatesWriter::create(&path, &metadata).unwrap();
    cells.write(win_rate(Statistic::AllPairs)).unwrap();
    cells.finish().unwrap();
    assert!(path.exists());
}
