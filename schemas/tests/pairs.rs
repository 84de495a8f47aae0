//! Pairs: finding files, every variant of a column, ranges, and what is refused.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::BinaryViewArray;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray,
    Float16Array, Float32Array, Float64Array, Int32Array, Int64Array, LargeBinaryArray,
    LargeStringArray, NullArray, StringArray, StringViewArray, StructArray, UInt8Array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Int32Type};
use common::{input, open_pairs, pair_columns, parquet_bytes, put, with, without};
use half::f16;
use schemas::pairs::{NoVote, PairFile, PairRow, PairsError, discover, positional_pair_id};
use tempfile::tempdir;

fn rows(columns: Vec<(&'static str, ArrayRef)>) -> Vec<PairRow> {
    let folder = tempdir().unwrap();
    open_pairs(folder.path(), columns).rows_with_images(3).unwrap().collect_rows().unwrap()
}

fn problems(columns: Vec<(&'static str, ArrayRef)>) -> Vec<String> {
    let folder = tempdir().unwrap();
    let path = put(folder.path(), "bad.parquet", &parquet_bytes(columns, 4));
    match PairFile::open(&input(path)) {
        Err(PairsError::Columns { problems, .. }) => problems,
        other => panic!("expected a list of columns, found {other:?}"),
    }
}

#[test]
fn rows_come_whole_and_in_order() {
    let found = rows(pair_columns(10));
    assert_eq!(found.len(), 10);
    for (index, row) in found.iter().enumerate() {
        assert_eq!(row.row, index as i64);
        assert_eq!(row.pair_id, format!("{}", 1000 + index));
        assert_eq!(row.caption.as_deref(), Some(format!("caption {index}").as_str()));
        assert_eq!(row.image_uid[1].as_deref(), Some(format!("right {index}").as_str()));
        assert_eq!(row.human_label_0, Some((index % 3) as f64 / 2.0));
        let image: Vec<u8> = (0..40).map(|i| 100 + index as u8 + i).collect();
        assert_eq!(row.image[1].as_deref(), Some(image.as_slice()));
    }
}

#[test]
fn a_plan_has_no_images_and_the_same_rest() {
    let folder = tempdir().unwrap();
    let file = open_pairs(folder.path(), pair_columns(10));
    let plan = file.plan_rows().unwrap().collect_rows().unwrap();
    let full = file.rows_with_images(100).unwrap().collect_rows().unwrap();
    for (plan, full) in plan.iter().zip(full) {
        assert_eq!(plan.image, [None, None]);
        assert_eq!(*plan, PairRow { image: [None, None], ..full });
    }
    assert_eq!(plan.len(), 10);
}

#[test]
fn every_range_is_a_slice_of_the_whole() {
    let folder = tempdir().unwrap();
    let file = open_pairs(folder.path(), pair_columns(10));
    let whole = file.rows_with_images(100).unwrap().collect_rows().unwrap();
    for start in 0..=11_i64 {
        for end in 0..=12_i64 {
            let found = file.rows_with_images_in(start..end, 3).unwrap().collect_rows().unwrap();
            let expected = whole.iter().filter(|row| (start..end).contains(&row.row));
            assert_eq!(found, expected.cloned().collect::<Vec<_>>(), "{start}..{end}");
        }
    }
    assert_eq!(file.row_groups().iter().map(|g| g.first_row).collect::<Vec<_>>(), [0, 4, 8]);
    assert_eq!(file.row_groups().iter().map(|g| g.num_rows).collect::<Vec<_>>(), [4, 4, 2]);
}

#[test]
fn every_form_of_text_is_read() {
    let plain = rows(pair_columns(3));
    let words = ["caption 0", "caption 1", "caption 2"];
    let forms: [ArrayRef; 4] = [
        Arc::new(LargeStringArray::from_iter_values(words)),
        Arc::new(StringViewArray::from_iter_values(words)),
        Arc::new(words.into_iter().collect::<DictionaryArray<Int32Type>>()),
        Arc::new(StringArray::from_iter_values(words)),
    ];
    for form in forms {
        assert_eq!(rows(with(pair_columns(3), "caption", form)), plain);
    }
}

#[test]
fn every_form_of_image_is_read() {
    let plain = rows(pair_columns(3));
    let images: Vec<Vec<u8>> = plain.iter().map(|r| r.image[0].clone().unwrap().to_vec()).collect();
    let bytes = || -> ArrayRef { Arc::new(BinaryArray::from_iter_values(&images)) };
    let large: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(&images));
    let view: ArrayRef = Arc::new(BinaryViewArray::from_iter_values(&images));
    let paths: ArrayRef = Arc::new(StringArray::from(vec![None, Some("a.jpg"), None]));
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let structure: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes(), paths], None));
    for form in [bytes(), large, view, structure] {
        assert_eq!(rows(with(pair_columns(3), "jpg_0", form)), plain);
    }
}

#[test]
fn a_null_struct_or_null_bytes_are_no_image() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![
        Some(b"some bytes that are longer than a view"),
        Some(b"hidden"),
        None,
    ]));
    let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
    let nulls = NullBuffer::from(vec![true, false, true]);
    let structure: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes], Some(nulls)));
    let found = rows(with(pair_columns(3), "jpg_1", structure));
    let present: Vec<bool> = found.iter().map(|row| row.image[1].is_some()).collect();
    assert_eq!(present, [true, false, false]);
}

#[test]
fn short_and_empty_images_are_read() {
    let short: ArrayRef =
        Arc::new(BinaryArray::from_iter_values([b"".as_slice(), b"abc", b"0123456789abc"]));
    let found = rows(with(pair_columns(3), "jpg_0", short));
    let images: Vec<_> = found.iter().map(|row| row.image[0].clone().unwrap()).collect();
    assert_eq!(images, [b"".as_slice(), b"abc", b"0123456789abc"]);
}

#[test]
fn labels_of_any_number_type_are_read() {
    let labels = |form: ArrayRef| -> Vec<Option<f64>> {
        rows(with(pair_columns(3), "label_0", form)).iter().map(|row| row.human_label_0).collect()
    };
    let whole = [Some(1.0), None, Some(0.0)];
    assert_eq!(labels(Arc::new(Float64Array::from(vec![Some(1.0), None, Some(0.0)]))), whole);
    assert_eq!(
        labels(Arc::new(Float32Array::from(vec![Some(0.5), None, Some(0.0)]))),
        [Some(0.5), None, Some(0.0)]
    );
    assert_eq!(labels(Arc::new(Int64Array::from(vec![Some(1), None, Some(0)]))), whole);
    assert_eq!(labels(Arc::new(UInt8Array::from(vec![Some(1), None, Some(0)]))), whole);
    assert_eq!(labels(Arc::new(NullArray::new(3))), [None; 3]);
    let nan = Float64Array::from(vec![f64::NAN, 1.0, 0.5]);
    assert_eq!(labels(Arc::new(nan)), [None, Some(1.0), Some(0.5)]);
    assert_eq!(labels(Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))), whole);
    let half = |number| f16::from_f32(number);
    let halves = Float16Array::from(vec![half(1.0), half(0.5), half(0.0)]);
    assert_eq!(labels(Arc::new(halves)), [Some(1.0), Some(0.5), Some(0.0)]);
    let decimals = Decimal128Array::from(vec![10, 5, 0]).with_precision_and_scale(2, 1).unwrap();
    assert_eq!(labels(Arc::new(decimals)), [Some(1.0), Some(0.5), Some(0.0)]);
}

fn row_error(columns: Vec<(&'static str, ArrayRef)>) -> String {
    let folder = tempdir().unwrap();
    let file = open_pairs(folder.path(), columns);
    let plan = file.plan_rows().unwrap().collect_rows().unwrap_err();
    assert!(matches!(plan, PairsError::Value { .. }), "{plan}");
    plan.to_string()
}

/// Numbers that mean something else than who was preferred: one sentence with file, row and value.
#[test]
fn labels_of_another_meaning_are_refused() {
    let label = |labels: &[f64]| {
        row_error(with(
            pair_columns(labels.len() as i64),
            "label_0",
            Arc::new(Float64Array::from(labels.to_vec())),
        ))
    };
    for (labels, row, found) in [
        (&[1.0, -1.0, 0.0][..], 1, "-1"),
        (&[1.0, 2.0], 1, "2"),
        (&[0.0, 1.0, 7.5], 2, "7.5"),
        (&[0.0, 0.5, 100.0], 2, "100"),
        (&[0.3], 0, "0.3"),
        (&[1e9], 0, "1000000000"),
        (&[f64::INFINITY], 0, "inf"),
        (&[f64::NAN, f64::NEG_INFINITY], 1, "-inf"),
    ] {
        let message = label(labels);
        for part in [
            "pairs.parquet",
            &format!("row {row} (counted from 0)"),
            &format!("label_0 is {found}, expected 1 (image 0), 0 (image 1), 0.5 (a tie)"),
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(message.lines().count(), 1);
    }
    let ranks: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    assert!(row_error(with(pair_columns(2), "label_0", ranks)).contains("row 1"));
    // The row of the file, beyond the first batch of a plan.
    let mut many = vec![1.0; 20_000];
    many[19_000] = 3.0;
    assert!(label(&many).contains("row 19000 (counted from 0)"));
}

#[test]
fn what_is_no_vote_is_null_with_a_reason() {
    let label = |numbers: [f64; 5]| -> ArrayRef { Arc::new(Float64Array::from(numbers.to_vec())) };
    let columns = with(pair_columns(5), "label_0", label([0.0, 1.0, 0.5, f64::NAN, 1.0]));
    let columns = with(columns, "label_1", label([1.0, 0.0, 0.5, 0.0, 1.0]));
    let flags = vec![Some(false), Some(true), None, Some(true), Some(true)];
    for form in [
        Arc::new(BooleanArray::from(flags.clone())) as ArrayRef,
        Arc::new(Int64Array::from(
            flags.iter().map(|flag| flag.map(i64::from)).collect::<Vec<_>>(),
        )),
    ] {
        let found = rows(with(columns.clone(), "has_label", form));
        let votes: Vec<_> = found.iter().map(|row| (row.human_label_0, row.no_vote)).collect();
        assert_eq!(
            votes,
            [
                (None, Some(NoVote::HasLabelFalse)),
                (Some(1.0), None),
                (Some(0.5), None),
                (None, Some(NoVote::NotANumber)),
                (None, Some(NoVote::Contradiction)),
            ]
        );
    }
    // What stands there though nobody voted may be anything.
    let columns = with(pair_columns(1), "label_0", Arc::new(Float64Array::from(vec![-1.0])));
    let columns = with(columns, "has_label", Arc::new(BooleanArray::from(vec![false])));
    assert_eq!(rows(columns)[0].human_label_0, None);
    let columns = with(pair_columns(2), "has_label", Arc::new(Int64Array::from(vec![1, 2])));
    let message = row_error(columns);
    assert!(message.contains("row 1 (counted from 0): has_label is 2"), "{message}");
    // A column of another meaning beside label_0 is not ours.
    let columns = with(pair_columns(2), "label_1", Arc::new(StringArray::from(vec!["a", "b"])));
    assert_eq!(rows(columns)[0].human_label_0, Some(0.0));
}

#[test]
fn names_of_other_types_are_read_where_they_are_exact() {
    let uid = |array: ArrayRef| -> Vec<Option<String>> {
        let found = rows(with(pair_columns(array.len() as i64), "image_0_uid", array));
        found.into_iter().map(|row| row.image_uid[0].clone()).collect()
    };
    let some = |texts: [&str; 2]| texts.map(|text| Some(text.to_owned())).to_vec();
    assert_eq!(uid(Arc::new(Int64Array::from(vec![4, -5]))), some(["4", "-5"]));
    assert_eq!(uid(Arc::new(Float64Array::from(vec![4.0, 5.0]))), some(["4", "5"]));
    assert_eq!(uid(Arc::new(NullArray::new(2))), [None, None]);
    let bytes = FixedSizeBinaryArray::try_from_iter([[0x1f_u8; 16], [2; 16]].into_iter()).unwrap();
    let expected =
        some(["1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f", "02020202-0202-0202-0202-020202020202"]);
    assert_eq!(uid(Arc::new(bytes)), expected);
    let text = BinaryArray::from_iter_values(["a", "b"]);
    assert_eq!(uid(Arc::new(text)), some(["a", "b"]));
    // pandas makes floats of whole numbers with a gap.
    let gap: ArrayRef = Arc::new(Float64Array::from(vec![Some(7.0), None, Some(f64::NAN)]));
    let found = rows(with(pair_columns(3), "ranking_id", gap));
    let ids: Vec<&str> = found.iter().map(|row| row.pair_id.as_str()).collect();
    assert_eq!(ids, ["7", "pairs.parquet:1", "pairs.parquet:2"]);
    let half: ArrayRef = Arc::new(Float64Array::from(vec![7.0, 7.5]));
    let message = row_error(with(pair_columns(2), "ranking_id", half));
    assert!(message.contains("row 1 (counted from 0): ranking_id is 7.5"), "{message}");

    let captions: ArrayRef = Arc::new(BinaryArray::from_iter_values(["a fox", "\u{e9}t\u{e9}"]));
    let found = rows(with(pair_columns(2), "caption", captions));
    assert_eq!(found[1].caption.as_deref(), Some("\u{e9}t\u{e9}"));
    let latin: ArrayRef = Arc::new(BinaryArray::from_iter_values([b"\xe9t\xe9".as_slice()]));
    let message = row_error(with(pair_columns(1), "caption", latin));
    assert!(message.contains("row 0") && message.contains("expected text in UTF-8"), "{message}");
    let found = rows(with(pair_columns(2), "jpg_0", Arc::new(NullArray::new(2))));
    assert!(found[0].image[0].is_none() && found[0].image[1].is_some());
}

#[test]
fn a_pair_is_named_by_ranking_id_or_place() {
    let ids =
        |columns| -> Vec<String> { rows(columns).into_iter().map(|row| row.pair_id).collect() };
    let position = |row| positional_pair_id("pairs.parquet", row);
    assert_eq!(position(7), "pairs.parquet:7");
    assert_eq!(ids(without(pair_columns(2), "ranking_id")), [position(0), position(1)]);
    let form = |array: ArrayRef| ids(with(pair_columns(3), "ranking_id", array));
    let expected = ["7".to_owned(), position(1), "-9".to_owned()];
    assert_eq!(form(Arc::new(Int64Array::from(vec![Some(7), None, Some(-9)]))), expected);
    assert_eq!(form(Arc::new(Int32Array::from(vec![Some(7), None, Some(-9)]))), expected);
    assert_eq!(form(Arc::new(StringArray::from(vec![Some("7"), None, Some("-9")]))), expected);
    assert_eq!(form(Arc::new(StringArray::from(vec![Some("7"), Some(""), Some("-9")]))), expected);
    assert_eq!(form(Arc::new(NullArray::new(3))), [position(0), position(1), position(2)]);
}

#[test]
fn optional_columns_may_be_absent() {
    let columns = without(without(pair_columns(2), "label_0"), "ranking_id");
    let found = rows(columns.clone());
    assert_eq!((found[0].human_label_0, found[0].no_vote), (None, None));
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(false), None]));
    let found = rows(with(columns, "has_label", flags));
    assert_eq!((found[0].human_label_0, found[0].no_vote), (None, None));
}

#[test]
fn nulls_and_no_rows_are_fine() {
    let nothing: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; 2]));
    let images: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![None; 2]));
    let columns = with(with(pair_columns(2), "caption", nothing), "jpg_0", images);
    let found = rows(columns);
    assert_eq!((found[0].caption.clone(), found[1].image[0].clone()), (None, None));
    assert!(rows(pair_columns(0)).is_empty());
}

#[test]
fn one_error_lists_all_columns() {
    let columns = without(without(pair_columns(2), "caption"), "jpg_1");
    let columns = with(columns, "image_0_uid", Arc::new(BooleanArray::from(vec![true, false])));
    let columns = with(columns, "label_0", Arc::new(StringArray::from(vec!["1", "0"])));
    let columns = with(columns, "Caption ", Arc::new(StringArray::from(vec!["1", "0"])));
    assert_eq!(
        problems(columns),
        [
            "column \"caption\": expected string, found no such column; is it \"Caption \"?",
            "column \"image_0_uid\": expected string, whole number or UUID, found Boolean",
            "column \"jpg_1\": expected binary or struct{bytes, path}, found no such column",
            "column \"label_0\": expected number or bool, found text",
        ]
    );
}

#[test]
fn the_hint_is_a_line_that_mends_the_file() {
    let message = |columns| {
        let folder = tempdir().unwrap();
        let path = put(folder.path(), "it's.parquet", &parquet_bytes(columns, 4));
        PairFile::open(&input(path)).unwrap_err().to_string()
    };
    let mut columns = without(pair_columns(2), "caption");
    columns.push(("my prompt", Arc::new(StringArray::from(vec!["a", "b"]))));
    let text = message(columns.clone());
    assert!(text.contains("the file has the columns: are_different, image_0_uid"), "{text}");
    assert!(text.contains("my prompt") && !text.contains("in DuckDB"), "{text}");
    columns.push(("Prompt", Arc::new(StringArray::from(vec!["a", "b"]))));
    let columns = with(columns, "label_0", Arc::new(StringArray::from(vec!["1", "0"])));
    let text = message(columns);
    assert!(
        text.contains(
            "hint: in DuckDB COPY (SELECT * EXCLUDE (Prompt) REPLACE (CAST(label_0 AS DOUBLE) AS \
             label_0), Prompt AS caption FROM '"
        ),
        "{text}"
    );
    assert!(text.contains("it''s.parquet') TO 'pairs.parquet' (FORMAT parquet)"), "{text}");
    let paths: ArrayRef = Arc::new(StringArray::from(vec!["a.jpg", "b.jpg"]));
    let text = message(with(pair_columns(2), "jpg_0", paths));
    assert!(text.contains("found text") && text.contains("open(path, 'rb')"), "{text}");
}

#[test]
fn a_file_without_images_serves_a_plan() {
    let folder = tempdir().unwrap();
    let columns = without(without(pair_columns(3), "jpg_0"), "jpg_1");
    let path = put(folder.path(), "plan.parquet", &parquet_bytes(columns, 4));
    let error = PairFile::open(&input(path.clone())).unwrap_err().to_string();
    assert!(error.contains("jpg_0") && error.contains("jpg_1"), "{error}");
    let file = PairFile::open_without_images(&input(path)).unwrap();
    assert!(!file.has_images());
    assert_eq!(file.plan_rows().unwrap().collect_rows().unwrap().len(), 3);
}

#[test]
fn a_column_that_stands_twice_is_refused() {
    let mut columns = pair_columns(2);
    columns.push(("caption", Arc::new(StringArray::from(vec!["a", "b"]))));
    assert_eq!(problems(columns), ["column \"caption\": expected once, found 2"]);
}

#[test]
fn the_fingerprint_follows_the_content() {
    let folder = tempdir().unwrap();
    let fingerprint = |columns| open_pairs(folder.path(), columns).fingerprint();
    let first = fingerprint(pair_columns(9));
    assert_eq!(first, fingerprint(pair_columns(9)));
    let other: ArrayRef = Arc::new(StringArray::from(vec!["x"; 9]));
    assert_ne!(first, fingerprint(with(pair_columns(9), "caption", other)));
    assert_ne!(first, fingerprint(pair_columns(8)));
}

#[test]
fn a_file_replaced_while_open_is_noticed() {
    let folder = tempdir().unwrap();
    let file = open_pairs(folder.path(), pair_columns(9));
    put(folder.path(), "pairs.parquet", &parquet_bytes(pair_columns(3), 4));
    let error = file.plan_rows().unwrap_err().to_string();
    assert!(error.contains("bytes when it was opened"), "{error}");
}

#[test]
fn files_are_found_in_a_fixed_order() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in [
        "b/2.parquet",
        "b/10.parquet",
        "b/c/1.parquet",
        "b/.hidden.parquet",
        "b/notes.txt",
        "a.parquet",
    ] {
        put(folder.path(), name, b"");
    }
    let names = |inputs: &[PathBuf]| -> Vec<String> {
        discover(inputs, &[]).unwrap().files.into_iter().map(|file| file.source_file).collect()
    };
    assert_eq!(
        names(&[at("b"), at("a.parquet")]),
        ["10.parquet", "2.parquet", "c/1.parquet", "a.parquet"]
    );
    assert_eq!(names(&[at("*/*.parquet")]), ["b/10.parquet", "b/2.parquet"]);
    assert_eq!(names(&[at("b/?.parquet")]), ["2.parquet"]);
    assert_eq!(
        names(&[at("**/*.parquet")]),
        ["a.parquet", "b/10.parquet", "b/2.parquet", "b/c/1.parquet"]
    );
    assert_eq!(names(&[at("b/notes.txt")]), ["notes.txt"]);
    put(folder.path(), "_temporary/0/part.parquet", b"PAR1");
    put(folder.path(), "b/_common_metadata.parquet", b"PAR1");
    put(folder.path(), "b/labels.parquet.work/parts/part-00000-of-00001.parquet", b"PAR1");
    for input in ["", "**/*.parquet"] {
        let found = discover(&[at(input)], &[]).unwrap();
        assert_eq!((found.files.len(), found.own.len()), (4, 1), "{input}");
        // The hidden file of above is never matched by a pattern.
        assert_eq!(found.hidden, if input.is_empty() { 3 } else { 2 });
    }
    assert_eq!(names(&[at("b/_common*")]), ["_common_metadata.parquet"]);
    std::os::unix::fs::symlink(at("b"), at("b/c/again")).unwrap();
    assert_eq!(names(&[at("b")]).len(), 3);
}

#[test]
fn unusable_inputs_are_named() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    put(folder.path(), "a/1.parquet", b"");
    put(folder.path(), "b/1.parquet", b"");
    put(folder.path(), "empty/readme.md", b"");
    let error = |inputs: &[PathBuf]| discover(inputs, &[]).unwrap_err();
    assert!(matches!(error(&[]), PairsError::NoInputs));
    assert!(matches!(error(&[at("none")]), PairsError::Missing { .. }));
    assert!(matches!(error(&[at("empty")]), PairsError::Nothing { .. }));
    assert!(matches!(error(&[at("*.arrow")]), PairsError::Nothing { .. }));
    assert!(matches!(error(&[at("[")]), PairsError::Search { .. }));
    let same = error(&[at("a"), at("b")]);
    assert!(
        matches!(&same, PairsError::SameName { source_file, .. } if source_file == "1.parquet"),
        "{same}"
    );
    assert!(same.to_string().contains("a/1.parquet") && same.to_string().contains("b/1.parquet"));
    assert!(matches!(error(&[at("a"), at("a/1.parquet")]), PairsError::SameFile { .. }));
    assert_eq!(discover(&[folder.path().to_owned()], &[]).unwrap().files.len(), 2);
}

#[test]
fn several_splits_need_a_choice() {
    let folder = tempdir().unwrap();
    for name in [
        "data/train-00000-of-00002-ab12.parquet",
        "data/train-00001-of-00002-cd34.parquet",
        "data/validation_unique-00000-of-00001.parquet",
        "notes/more.parquet",
    ] {
        put(folder.path(), name, b"");
    }
    let at = |name: &str| folder.path().join(name);
    let take = |inputs: &[PathBuf], splits: &[&str]| {
        let splits: Vec<String> = splits.iter().map(|split| (*split).to_owned()).collect();
        discover(inputs, &splits)
    };
    let one = |name: &str| at(&format!("data/{name}"));
    for inputs in [
        vec![at("")],
        vec![at("data")],
        vec![at("data/*.parquet")],
        // What a shell makes of a pattern.
        vec![
            one("train-00000-of-00002-ab12.parquet"),
            one("validation_unique-00000-of-00001.parquet"),
        ],
    ] {
        let error = take(&inputs, &[]).unwrap_err();
        assert!(matches!(error, PairsError::SeveralSplits { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("train (") && message.contains("validation_unique (1 file)"));
        assert!(message.contains("--split train"), "{message}");
    }
    let found = take(&[at("")], &["train"]).unwrap();
    assert_eq!((found.files.len(), found.other_splits), (2, 2));
    assert_eq!(found.files[0].source_file, "data/train-00000-of-00002-ab12.parquet");
    assert_eq!(found.skipped().unwrap(), "skipped: 2 files of other splits");
    assert_eq!(take(&[at("")], &["train", "validation_unique"]).unwrap().files.len(), 3);
    let error = take(&[at("data")], &["validation"]).unwrap_err().to_string();
    assert!(error.contains("train (2 files), validation_unique (1 file)"), "{error}");
    let error = take(&[at("notes")], &["train"]).unwrap_err().to_string();
    assert!(error.contains("found no split"), "{error}");
    // One split, and files that name none, are no choice.
    assert_eq!(take(&[at("data/train*"), at("notes")], &[]).unwrap().files.len(), 3);
}
