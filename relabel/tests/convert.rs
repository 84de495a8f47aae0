//! `relabel convert`: the copy has the pairs and labels of the original, whatever its layout; what
//! is missing is kept and named; what is not ours stays.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, BooleanArray, Float64Array, StringArray};
use common::{Fixture, Run, pairs_parquet, parquet_of, png_of_size, relabel, sample_pairs, tar_of};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use schemas::labels::{LabelRow, Status};
use schemas::pairs::{NoVote, PairFile, PairRow, discover};
use serde_json::Value;

/// Ten pairs in every layout (`scripts/goldens/layouts.py`).
const LAYOUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/tests/fixtures/layouts");

fn convert(pairs: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = relabel(["convert", "--pairs"]);
    command.arg(pairs).arg("--out").arg(out).args(more);
    command
}

/// All pairs with their images, in the order of the files.
fn rows(folder: &Path, splits: &[&str]) -> Vec<PairRow> {
    let splits: Vec<String> = splits.iter().map(|split| (*split).to_owned()).collect();
    let files = discover(&[folder.to_owned()], &splits).unwrap().files;
    let rows = |input| PairFile::open(input).unwrap().rows_with_images(7).unwrap();
    files.iter().flat_map(|input| rows(input).collect_rows().unwrap()).collect()
}

/// Without the place, which is that of the file.
fn content(rows: Vec<PairRow>) -> Vec<PairRow> {
    rows.into_iter().map(|row| PairRow { row: 0, absent: [None, None], ..row }).collect()
}

#[test]
fn labels_of_the_copy_are_those_of_the_original() {
    let fixture = Fixture::empty();
    let scorers = fixture.two_scorers();
    for (name, splits) in [
        ("chosen-rejected", &[][..]),
        ("webdataset", &[]),
        ("hpdv2", &["--split", "train"]),
        ("hpdv2", &["--split", "test"]),
        ("image-reward-db", &[]),
        ("folder", &[]),
        ("records/chosen.jsonl", &[]),
        ("records/hpdv3.json", &[]),
    ] {
        let pairs = Path::new(LAYOUTS).join(name);
        let copy = fixture.path(&format!("{name}{}", splits.concat()));
        let run = Run::of(&mut convert(&pairs, &copy, splits)).expect_code(0);
        assert!(run.stderr.contains("recognised"), "{run:#?}");
        let labels = |pairs: &Path, out: &str, splits: &[&str]| -> Vec<LabelRow> {
            let mut command = relabel(["score", "--pairs"]);
            command.arg(pairs).arg("--scorers").arg(&scorers).args(["--fresh", "--out"]);
            Run::of(command.arg(fixture.path(out)).args(splits)).expect_code(0);
            let place = |row| LabelRow { source_file: String::new(), ..row };
            fixture.labels(out).into_iter().map(place).collect()
        };
        let expected = labels(&pairs, "original.parquet", splits);
        assert!(expected.len() >= 5, "{name}");
        assert!(expected.iter().all(|row| row.status == Status::Ok && row.consensus.is_some()));
        // The split is in the names.
        assert_eq!(labels(&copy, "copy.parquet", splits), expected, "{name}");
        // A copy of the copy is not dealt out again.
        let again = copy.with_extension("again");
        Run::of(&mut convert(&copy, &again, splits)).expect_code(0);
        assert_eq!(rows(&again, &[]), rows(&copy, &[]), "{name}");
    }
}

#[test]
fn the_copy_is_small_row_groups_with_an_index_of_pages() {
    let fixture = Fixture::with_sample(60);
    let out = fixture.path("out");
    let more = ["--file-mib", "1", "--json"];
    let run = Run::of(&mut convert(&fixture.path("pairs"), &out, &more)).expect_code(0);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&summary["state"], &summary["pairs"]), (&"complete".into(), &60.into()));
    assert_eq!((&summary["new_pairs"], &summary["files"]), (&60.into(), &3.into()));
    let files = ["0-00000.parquet", "1-00000.parquet", "2-00000.parquet", "manifest.json"];
    assert_eq!(fixture.names("out"), files);
    assert_eq!(content(rows(&out, &[])), content(rows(&fixture.path("pairs"), &[])));
    for name in &files[..3] {
        let file = std::fs::File::open(out.join(name)).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let groups = reader.metadata().row_groups();
        let columns = groups.iter().flat_map(RowGroupMetaData::columns);
        assert!(columns.clone().all(|column| column.offset_index_offset().is_some()), "{name}");
        assert!(groups.iter().all(|group| group.total_byte_size() < 2 << 20), "{name}");
    }
    // The same command has nothing to do, and changes nothing.
    let before = fixture.files("out");
    let run = Run::of(&mut convert(&fixture.path("pairs"), &out, &more)).expect_code(0);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&summary["pairs"], &summary["new_pairs"]), (&60.into(), &0.into()));
    assert!(fixture.files("out") == before);
}

#[test]
fn labels_that_do_not_count_are_kept_and_do_not_count() {
    let fixture = Fixture::empty();
    let pairs = sample_pairs(5);
    let text = |value: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new((0..5).map(|row| Some(value(row))).collect::<StringArray>())
    };
    let image = |side: usize| -> ArrayRef {
        Arc::new(BinaryArray::from_iter(pairs.iter().map(|pair| pair.image[side].clone())))
    };
    let label_0 = vec![Some(1.0), Some(0.0), Some(0.5), Some(1.0), None];
    let label_1 = vec![Some(0.0), Some(1.0), Some(0.5), Some(1.0), None];
    let flags = vec![Some(true), Some(false), None, Some(true), Some(true)];
    let bytes = parquet_of(vec![
        ("caption", text(&|row| format!("caption {row}"))),
        ("image_0_uid", text(&|row| format!("left {row}"))),
        ("image_1_uid", text(&|row| format!("right {row}"))),
        ("jpg_0", image(0)),
        ("jpg_1", image(1)),
        ("label_0", Arc::new(Float64Array::from(label_0))),
        ("label_1", Arc::new(Float64Array::from(label_1))),
        ("has_label", Arc::new(BooleanArray::from(flags))),
    ]);
    fixture.put("pairs/train.parquet", &bytes);
    let out = fixture.path("out");
    Run::of(&mut convert(&fixture.path("pairs"), &out, &[])).expect_code(0);
    let found: Vec<_> = rows(&out, &[])
        .into_iter()
        .map(|row| (row.pair_id, row.human_label_0, row.no_vote, row.unused_label_0))
        .collect();
    let id = |row: usize| format!("train.parquet:{row}");
    let none = Some(NoVote::HasLabelFalse);
    assert_eq!(
        found,
        [
            (id(0), Some(1.0), None, None),
            (id(1), None, none, Some(0.0)),
            (id(2), Some(0.5), None, None),
            (id(3), None, none, Some(1.0)),
            (id(4), None, None, None),
        ]
    );
}

/// Records that name images. One image is missing.
fn with_a_missing_image(fixture: &Fixture) -> PathBuf {
    let mut lines = String::new();
    for (number, pair) in sample_pairs(3).iter().enumerate() {
        for (side, image) in pair.image.iter().enumerate() {
            if (number, side) != (1, 0) {
                fixture.put(&format!("pairs/{number}_{side}"), image.as_ref().unwrap());
            }
        }
        lines += &format!(
            "{{\"prompt\": \"a fox, {number}\", \"image_0\": \"{number}_0\", \"image_1\": \
             \"{number}_1\", \"label_0\": 1}}\n"
        );
    }
    fixture.put("pairs/pairs.jsonl", lines.as_bytes())
}

#[test]
fn a_pair_without_an_image_is_kept_counted_and_named() {
    let fixture = Fixture::empty();
    let pairs = with_a_missing_image(&fixture);
    let out = fixture.path("out");
    for (more, code, lines) in [(&[][..], 3, 1), (&["--max-failed", "1"], 0, 0)] {
        let run = Run::of(&mut convert(&pairs, &out, more)).expect_code(code);
        assert!(run.stdout.contains("3 pairs of 1 file") && run.stdout.contains("1 pair without"));
        // What was written is not read again.
        let named = "pairs.jsonl: row 1, pair pairs.jsonl:1: no image 0: ";
        assert_eq!(run.stderr.matches(named).count(), lines, "{run:#?}");
    }
    let found = rows(&out, &[]);
    let has = |row: &PairRow| row.image.each_ref().map(Option::is_some);
    assert_eq!(found.iter().map(has).collect::<Vec<_>>(), [[true; 2], [false, true], [true; 2]]);
    let scorers = fixture.two_scorers();
    let labels = |pairs: &Path, out: &str| {
        let mut command = relabel(["score", "--max-failed", "1", "--pairs"]);
        command.arg(pairs).arg("--scorers").arg(&scorers).arg("--out").arg(fixture.path(out));
        Run::of(&mut command).expect_code(0);
        let row = |row: LabelRow| (row.pair_id, row.status, row.scores, row.consensus);
        fixture.labels(out).into_iter().map(row).collect::<Vec<_>>()
    };
    let expected = labels(&pairs, "original.parquet");
    assert_eq!(expected[1].1, Status::MissingImage);
    assert_eq!(labels(&out, "copy.parquet"), expected);
}

#[test]
fn what_is_not_ours_stays_and_another_conversion_is_refused() {
    let fixture = Fixture::with_sample(6);
    let (pairs, out) = (fixture.path("pairs"), fixture.path("out"));
    let thesis = fixture.put("out/thesis.tex", b"mine");
    for more in [&[][..], &["--fresh"], &["--dry-run"]] {
        Run::of(&mut convert(&pairs, &out, more)).expect_error(&[
            "thesis.tex",
            "nothing was changed",
            "--out",
        ]);
    }
    assert_eq!(fixture.names("out"), ["thesis.tex"]);
    std::fs::remove_file(thesis).unwrap();

    Run::of(&mut convert(&pairs, &out, &["--limit", "5"])).expect_code(0);
    assert_eq!(rows(&out, &[]).len(), 5);
    let another = ["belongs to another run", "limit: was 5, now", "--fresh"];
    Run::of(&mut convert(&pairs, &out, &[])).expect_error(&another);
    Run::of(&mut convert(&pairs, &out, &["--limit", "5", "--file-mib", "2"]))
        .expect_error(&["file_mib: was 1024, now 2"]);
    // An input that changed, one that came and one that went.
    let first = fixture.bytes("pairs/0.parquet");
    fixture.put("pairs/0.parquet", &fixture.bytes("pairs/1.parquet"));
    Run::of(&mut convert(&pairs, &out, &["--limit", "5"]))
        .expect_error(&["pairs/0.parquet: changed since the conversion", "--fresh"]);
    fixture.put("pairs/0.parquet", &first);
    fixture.put("pairs/3.parquet", &first);
    Run::of(&mut convert(&pairs, &out, &["--limit", "5"]))
        .expect_error(&["pairs/3.parquet: not among the inputs"]);
    std::fs::remove_file(fixture.path("pairs/3.parquet")).unwrap();
    let named: Vec<PathBuf> = ["0", "1"].map(|name| pairs.join(format!("{name}.parquet"))).to_vec();
    let mut command = relabel(["convert", "--limit", "5", "--pairs"]);
    Run::of(command.args(&named).arg("--out").arg(&out))
        .expect_error(&["2.parquet: among the inputs", "not found now"]);
    // Another process at work.
    let lock = runkit::lock::OutputLock::exclusive(out.join(".lock")).unwrap();
    Run::of(&mut convert(&pairs, &out, &["--limit", "5"])).expect_error(&["is held by"]);
    drop(lock);
    // --fresh deletes the pairs of the earlier conversion and nothing else.
    fixture.put("out/notes.txt", b"mine");
    fixture.put("out/labels.parquet", &first);
    Run::of(&mut convert(&named[1], &out, &["--fresh"])).expect_code(0);
    let names = ["1-00000.parquet", "labels.parquet", "manifest.json", "notes.txt"];
    assert_eq!(fixture.names("out"), names);
    assert!(fixture.bytes("out/labels.parquet") == first);
    // A file of somebody else under the name of an output.
    fixture.put("out/1-00000.parquet", &first);
    Run::of(&mut convert(&named[1], &out, &[]))
        .expect_error(&["out/1-00000.parquet: expected rows of \"1.parquet\"", "another file"]);
    assert!(fixture.bytes("out/1-00000.parquet") == first);
    // Under the name of one that is still to be written, too.
    let large = Fixture::empty();
    let mut rows = sample_pairs(2);
    for image in rows.iter_mut().flat_map(|pair| &mut pair.image) {
        *image = Some(png_of_size(600_000, 1));
    }
    large.put("pairs/0.parquet", &pairs_parquet(&rows));
    let out = large.path("out");
    Run::of(&mut convert(&large.path("pairs"), &out, &["--file-mib", "1"])).expect_code(0);
    std::fs::remove_file(out.join("0-00000.parquet")).unwrap();
    large.put("out/0-00001.parquet", &first);
    Run::of(&mut convert(&large.path("pairs"), &out, &["--file-mib", "1"]))
        .expect_error(&["out/0-00001.parquet: expected rows of \"0.parquet\" from row 1"]);
    assert!(large.bytes("out/0-00001.parquet") == first);
}

#[test]
fn a_place_that_cannot_be_is_refused_before_anything_is_written() {
    let fixture = Fixture::with_sample(3);
    let pairs = fixture.path("pairs");
    for (pairs, out, expected) in [
        (&pairs, pairs.join("copy"), "found one in the input"),
        (&pairs, pairs.clone(), "a folder of something else"),
        (&pairs.join("0.parquet"), fixture.path(""), "a folder of something else"),
    ] {
        Run::of(&mut convert(pairs, &out, &[])).expect_error(&[expected, "--out"]);
    }
    let ours = fixture.path("ours");
    Run::of(&mut convert(&pairs, &ours, &[])).expect_code(0);
    Run::of(&mut convert(&ours.join("0-00000.parquet"), &ours, &[]))
        .expect_error(&["--out", "found the one of the input"]);
    Run::of(&mut convert(&pairs, Path::new("https://host/pairs?secret"), &[]))
        .expect_usage_error(&["--out https://host/pairs: expected a path", "copy"]);
    Run::of(&mut convert(&pairs, &fixture.path("out"), &["--limit", "0"]))
        .expect_usage_error(&["--limit 0"]);
    Run::of(&mut convert(Path::new("none"), &fixture.path("out"), &[]))
        .expect_error(&["none: expected a file, a folder or a pattern"]);
    let hpdv2 = Path::new(LAYOUTS).join("hpdv2");
    Run::of(&mut convert(&hpdv2, &fixture.path("out"), &[]))
        .expect_error(&["test (1 file), train (1 file)", "--split train"]);
    let run = Run::of(&mut convert(&pairs, &fixture.path("out"), &["--dry-run"])).expect_code(0);
    assert!(run.stdout.contains("3 in 3 files") && run.stdout.contains("free"), "{run:#?}");
    assert!(!fixture.path("out").exists());
    assert_eq!(fixture.names("pairs"), ["0.parquet", "1.parquet", "2.parquet"]);
}

#[test]
fn the_split_that_was_chosen_is_in_the_names() {
    let fixture = Fixture::empty();
    let pairs = sample_pairs(4);
    fixture.put("train/00000.tar", &tar_of(0, &pairs[..2]));
    fixture.put("train/00001.tar", &tar_of(2, &pairs[2..]));
    let out = fixture.path("out");
    Run::of(&mut convert(&fixture.path("train"), &out, &["--split", "train"])).expect_code(0);
    assert_eq!(fixture.names("out/train"), ["00000-00000.parquet", "00001-00000.parquet"]);
    assert_eq!(rows(&out, &["train"]).len(), 4);
    let test = discover(&[out], &["test".to_owned()]).unwrap_err().to_string();
    assert!(test.contains("found train (2 files)"), "{test}");
}
