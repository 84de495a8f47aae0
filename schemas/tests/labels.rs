//! Labels: round trip, equal bytes, the schema, and what is refused.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, Int8Array, Int64Array, NullArray, StringArray};
use common::{label_row, parquet_bytes, put};
use schemas::labels::{
    KEY_MANIFEST, KEY_SCHEMA_VERSION, LabelBatch, LabelRow, LabelsError, LabelsFile, LabelsSchema,
    LabelsWriter, ROW_GROUP_ROWS, Status,
};
use tempfile::tempdir;

fn schema() -> LabelsSchema {
    LabelsSchema::new(&["clip", "hps"]).unwrap()
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([(KEY_MANIFEST.to_owned(), "{\"a\":1}".to_owned())])
}

fn write(path: &Path, rows: &[LabelRow]) -> Result<(), LabelsError> {
    let mut writer = LabelsWriter::create(path, &schema(), &metadata())?;
    rows.iter().try_for_each(|row| writer.write(row))?;
    writer.finish()
}

fn columns_of(rows: &[LabelRow]) -> Vec<(&'static str, ArrayRef)> {
    let batch = LabelBatch::from_rows(&schema(), rows).unwrap();
    let names = [
        "pair_id",
        "source_file",
        "source_row",
        "caption",
        "image_0_uid",
        "image_1_uid",
        "human_label_0",
        "clip_score_0",
        "clip_score_1",
        "clip_vote",
        "hps_score_0",
        "hps_score_1",
        "hps_vote",
        "vote_sum",
        "consensus",
        "status",
        "error",
    ];
    names.into_iter().zip(batch.record_batch().columns().iter().cloned()).collect()
}

#[test]
fn rows_survive_the_round_trip() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    let rows: Vec<LabelRow> = (0..20_000).map(label_row).collect();
    write(&path, &rows).unwrap();
    let file = LabelsFile::open(&path).unwrap();
    assert_eq!(file.num_rows(), 20_000);
    assert_eq!(file.schema().scorers(), ["clip", "hps"]);
    assert_eq!(file.metadata()[KEY_MANIFEST], "{\"a\":1}");
    assert_eq!(file.metadata()[KEY_SCHEMA_VERSION], "1");
    assert_eq!(file.metadata().len(), 2);
    assert!(file.read_rows().unwrap() == rows);
}

#[test]
fn no_rows_are_a_valid_file() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    write(&path, &[]).unwrap();
    let file = LabelsFile::open(&path).unwrap();
    assert_eq!(file.num_rows(), 0);
    assert!(file.read_rows().unwrap().is_empty());
}

#[test]
fn equal_rows_give_equal_bytes_however_they_arrive() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // over the end of a row group, in uneven pieces
    let rows: Vec<LabelRow> = (0..ROW_GROUP_ROWS as i64 + 5000).map(label_row).collect();
    write(&at("singly"), &rows).unwrap();

    let mut writer = LabelsWriter::create(at("pieces"), &schema(), &metadata()).unwrap();
    let mut rest = rows.as_slice();
    for size in [1, 7, 5000, 1, 60_000, 3, 50_000].into_iter().cycle() {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        match size {
            3 => piece.iter().for_each(|row| writer.write(row).unwrap()),
            _ => writer.write_batch(&LabelBatch::from_rows(&schema(), piece).unwrap()).unwrap(),
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(writer.num_rows(), rows.len());
    writer.finish().unwrap();

    let mut writer = LabelsWriter::create(at("copy"), &schema(), &metadata()).unwrap();
    for batch in LabelsFile::open(at("singly")).unwrap().batches().unwrap() {
        writer.write_batch(&batch.unwrap()).unwrap();
    }
    writer.finish().unwrap();

    let bytes = |name: &str| std::fs::read(at(name)).unwrap();
    assert!(bytes("singly") == bytes("pieces"), "row by row and in pieces");
    assert!(bytes("singly") == bytes("copy"), "written and copied");
    assert!(!bytes("singly").windows(8).any(|window| window == b"hostname"));
}

#[test]
fn huge_captions_close_a_row_group_early() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    let caption = "x".repeat(64 << 20);
    let mut writer = LabelsWriter::create(&path, &schema(), &metadata()).unwrap();
    for row in 0..6 {
        writer.write(&LabelRow { caption: Some(caption.clone()), ..label_row(row) }).unwrap();
    }
    writer.finish().unwrap();
    let file = LabelsFile::open(&path).unwrap();
    let rows = file.read_rows().unwrap();
    assert!(rows.iter().all(|row| row.caption.as_ref() == Some(&caption)));
    assert_eq!(rows.len(), 6);
}

#[test]
fn decisions_are_replaced_and_the_rest_passed_on() {
    let rows: Vec<LabelRow> = (0..10).map(label_row).collect();
    let batch = LabelBatch::from_rows(&schema(), &rows).unwrap();
    let array = |value: i8| Int8Array::from(vec![value; 10]);
    let again = batch.with_decisions(vec![array(1), array(-1)], array(0), array(0)).unwrap();
    for (index, row) in rows.into_iter().enumerate() {
        let votes = vec![Some(1), Some(-1)];
        let expected = LabelRow { votes, vote_sum: Some(0), consensus: Some(0), ..row };
        assert_eq!(again.row(index).unwrap(), expected);
    }
    assert!(batch.with_decisions(vec![array(1)], array(0), array(0)).is_err());
    let short = Int8Array::from(vec![1_i8; 3]);
    assert!(batch.with_decisions(vec![array(1), array(1)], short, array(0)).is_err());
    assert!(batch.row(10).is_err());
    assert_eq!(batch.slice(8, 100).num_rows(), 2);
    assert_eq!(batch.slice(100, 1).num_rows(), 0);
}

#[test]
fn impossible_numbers_are_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    let refused = |row: LabelRow, expected: &str| {
        let error = write(&path, &[label_row(0), row]).unwrap_err();
        assert!(matches!(&error, LabelsError::Row { row: 1, .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!path.exists());
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = label_row(1);
        row.scores[1][0] = Some(value);
        refused(row, "hps_score_0");
    }
    refused(LabelRow { human_label_0: Some(f64::NAN), ..label_row(1) }, "human_label_0");
    refused(LabelRow { votes: vec![Some(1), Some(0)], ..label_row(1) }, "hps_vote is 0");
    refused(LabelRow { consensus: Some(2), ..label_row(1) }, "consensus is 2");
    let missing = LabelRow { votes: vec![Some(1)], ..label_row(1) };
    assert!(write(&path, &[missing]).is_err());
}

#[test]
fn names_of_scorers_are_names_of_columns() {
    let fails = |names: &[&str], expected: &str| {
        let error = LabelsSchema::new(names).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    fails(&[], "found 0");
    fails(&["a", "b", "a"], "\"a\" twice");
    for name in ["", "Clip", "a-b", "a b", "ü", &"x".repeat(65)] {
        fails(&[name], "a-z");
    }
    let many: Vec<String> = (0..128).map(|index| format!("s{index}")).collect();
    assert!(LabelsSchema::new(&many).is_err());
    assert!(LabelsSchema::new(&many[..127]).is_ok());
    let tricky = LabelsSchema::new(&["a_vote", "a", "a_score_0"]).unwrap();
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    LabelsWriter::create(&path, &tricky, &metadata()).unwrap().finish().unwrap();
    assert_eq!(*LabelsFile::open(&path).unwrap().schema(), tricky);
}

/// Renaming or retyping a column breaks other people's scripts: this snapshot must not change.
#[test]
fn the_schema_is_what_it_was() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    write(&path, &[label_row(1)]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let found: Vec<String> = reader
        .schema()
        .fields()
        .iter()
        .map(|f| {
            format!("{} {}{}", f.name(), f.data_type(), if f.is_nullable() { " null" } else { "" })
        })
        .collect();
    assert_eq!(
        found,
        [
            "pair_id Utf8",
            "source_file Dictionary(Int32, Utf8)",
            "source_row Int64",
            "caption Utf8 null",
            "image_0_uid Utf8 null",
            "image_1_uid Utf8 null",
            "human_label_0 Float64 null",
            "clip_score_0 Float32 null",
            "clip_score_1 Float32 null",
            "clip_vote Int8 null",
            "hps_score_0 Float32 null",
            "hps_score_1 Float32 null",
            "hps_vote Int8 null",
            "vote_sum Int8 null",
            "consensus Int8 null",
            "status Utf8",
            "error Utf8 null",
        ]
    );
    let statuses: Vec<&str> = Status::ALL.into_iter().map(Status::as_str).collect();
    assert_eq!(
        statuses,
        [
            "ok",
            "missing_image",
            "decode_error",
            "image_too_large",
            "missing_caption",
            "empty_caption",
            "caption_too_long",
            "uid_conflict",
            "non_finite",
            "partial",
        ]
    );
}

#[test]
fn files_of_other_tools_are_read() {
    let folder = tempdir().unwrap();
    let rows: Vec<LabelRow> = (0..9).map(label_row).collect();
    // other order, another column, everything nullable, no metadata
    let mut columns = columns_of(&rows);
    columns.reverse();
    columns.insert(3, ("note", Arc::new(Int64Array::from_iter_values(0..9))));
    let path = put(folder.path(), "other.parquet", &parquet_bytes(columns, 4));
    let file = LabelsFile::open(&path).unwrap();
    assert_eq!(file.schema().scorers(), ["hps", "clip"]);
    assert!(file.metadata().is_empty());
    assert_eq!(file.read_rows().unwrap(), rows);
}

#[test]
fn what_is_no_labels_file_is_refused() {
    let folder = tempdir().unwrap();
    let rows: Vec<LabelRow> = (0..3).map(label_row).collect();
    let open = |columns| {
        let path = put(folder.path(), "bad.parquet", &parquet_bytes(columns, 4));
        LabelsFile::open(path)
    };
    let error = open(common::pair_columns(3)).unwrap_err().to_string();
    assert!(error.contains("SCORER_vote"), "{error}");

    let mut columns = common::without(columns_of(&rows), "caption");
    columns = common::with(columns, "hps_score_1", Arc::new(StringArray::from(vec!["a"; 3])));
    let Err(LabelsError::Columns { problems, .. }) = open(columns) else { panic!("accepted") };
    assert_eq!(
        problems,
        [
            "column \"caption\": expected Utf8, found none",
            "column \"hps_score_1\": expected Float32, found Utf8"
        ]
    );

    let nulls = StringArray::from(vec![Some("a"), None, Some("b")]);
    let file = open(common::with(columns_of(&rows), "pair_id", Arc::new(nulls))).unwrap();
    assert!(file.read_rows().unwrap_err().to_string().contains("pair_id"));

    // pandas makes floats of votes with a gap, and a type "null" of a column without values.
    let votes = Float64Array::from(vec![Some(1.0), None, Some(-1.0)]);
    let columns = common::with(columns_of(&rows), "clip_vote", Arc::new(votes));
    let columns = common::with(columns, "error", Arc::new(NullArray::new(3)));
    let file = open(columns).unwrap();
    let found: Vec<_> = file.read_rows().unwrap().iter().map(|row| row.votes[0]).collect();
    assert_eq!(found, [Some(1), None, Some(-1)]);
    let votes = Float64Array::from(vec![Some(1.0), Some(0.5), None]);
    let file = open(common::with(columns_of(&rows), "clip_vote", Arc::new(votes))).unwrap();
    let message = file.read_rows().unwrap_err().to_string();
    assert!(message.contains("row 1 (counted from 0): clip_vote is 0.5"), "{message}");
    let human = Float64Array::from(vec![Some(1.0), None, Some(-1.0)]);
    let file = open(common::with(columns_of(&rows), "human_label_0", Arc::new(human))).unwrap();
    let message = file.read_rows().unwrap_err().to_string();
    assert!(message.contains("row 2 (counted from 0): human_label_0 is -1"), "{message}");
    assert!(message.contains("expected 1, 0.5, 0 or null"), "{message}");

    let nan = arrow::array::Float32Array::from(vec![0.0, f32::NAN, 1.0]);
    let file = open(common::with(columns_of(&rows), "clip_score_0", Arc::new(nan))).unwrap();
    assert!(file.read_rows().unwrap_err().to_string().contains("clip_score_0"));

    let path = folder.path().join("future.parquet");
    let future = BTreeMap::from([(KEY_SCHEMA_VERSION.to_owned(), "1".to_owned())]);
    LabelsWriter::create(&path, &schema(), &future).unwrap().finish().unwrap();
    assert!(LabelsFile::open(&path).is_ok());
    let bytes = common::with_version(&std::fs::read(&path).unwrap(), KEY_SCHEMA_VERSION, *b"12");
    let path = put(folder.path(), "future.parquet", &bytes);
    assert!(
        matches!(LabelsFile::open(path), Err(LabelsError::Version { found, .. }) if found == "2")
    );
}

#[test]
fn an_unfinished_file_never_appears() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("labels.parquet");
    let mut writer = LabelsWriter::create(&path, &schema(), &metadata()).unwrap();
    writer.write(&label_row(0)).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let other = LabelsSchema::new(&["clip"]).unwrap();
    let mut writer = LabelsWriter::create(&path, &other, &metadata()).unwrap();
    let batch = LabelBatch::from_rows(&schema(), &[label_row(0)]).unwrap();
    assert!(matches!(writer.write_batch(&batch), Err(LabelsError::Scorers { .. })));
    assert!(batch.caption().len() == 1);
}
