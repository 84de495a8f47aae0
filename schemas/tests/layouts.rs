//! The same ten pairs in every layout, in the form in which sets are published
//! (`scripts/goldens/layouts.py`).

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::{label_row, pair_columns, parquet_bytes, put};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use runkit::signals::{Signal, Stopped};
use schemas::labels::{LabelsSchema, LabelsWriter};
use schemas::layouts::{Conversion, ConvertError, Layout, Sizes, convert, is_swapped, names_of};
use schemas::pairs::{InputFile, PairFile, PairRow, PairsError, discover, discover_as};
use tempfile::tempdir;

/// Every fixture with the ten pairs, and whether it keeps their order.
const ALL: [(&str, Layout, bool); 12] = [
    ("pickapic/train-00000-of-00001.parquet", Layout::PickAPic, true),
    ("chosen-rejected/train-00000-of-00001.parquet", Layout::ChosenRejected, false),
    ("verl-omni/train.parquet", Layout::ChosenRejected, false),
    ("image-reward-db/metadata-train.parquet", Layout::Ranked, true),
    ("hpdv2/train.json", Layout::Ranked, true),
    ("records/hpdv3.json", Layout::Hpdv3, false),
    ("webdataset/00000.tar", Layout::WebDataset, true),
    ("webdataset-json/00000.tar", Layout::WebDataset, true),
    ("records/images.jsonl", Layout::Jsonl, true),
    ("records/chosen.jsonl", Layout::Jsonl, false),
    ("folder", Layout::Folder, false),
    ("folder-rejected", Layout::Folder, false),
];
const PAIRS: usize = 10;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layouts")
}

fn named(path: PathBuf) -> InputFile {
    let source_file = path.file_name().unwrap().to_str().unwrap().to_owned();
    InputFile { path, source_file, layout: None }
}

fn open(name: &str) -> PairFile {
    PairFile::open(&named(fixtures().join(name))).unwrap()
}

fn images(file: &PairFile) -> Vec<PairRow> {
    file.rows_with_images(3).unwrap().collect_rows().unwrap()
}

/// The preferred image and the other.
fn by_preference(row: &PairRow) -> [Bytes; 2] {
    let [first, second] = row.image.clone().map(Option::unwrap);
    match row.human_label_0.unwrap() {
        1.0 => [first, second],
        0.0 => [second, first],
        label => panic!("{label}"),
    }
}

#[test]
fn the_same_ten_pairs_come_out_of_every_layout() {
    let expected = images(&open(ALL[0].0));
    assert_eq!(expected.len(), PAIRS);
    for (name, layout, keeps_order) in ALL {
        let file = open(name);
        assert_eq!(file.layout(), layout, "{name}");
        let rows = images(&file);
        assert!(rows.len() >= PAIRS, "{name}: {}", rows.len());
        assert_eq!(rows.len() as i64, file.num_rows(), "{name}");
        for (row, expected) in rows.iter().zip(&expected) {
            let at = format!("{name} row {}", row.row);
            assert_eq!(row.caption, expected.caption, "{at}");
            assert_eq!(by_preference(row), by_preference(expected), "{at}");
            if keeps_order {
                assert_eq!(row.image, expected.image, "{at}");
            } else {
                let swapped = is_swapped(&row.pair_id);
                assert_eq!(row.human_label_0, Some(f64::from(u8::from(!swapped))), "{at}");
            }
        }
        // Neither order of the images says which is preferred.
        let firsts = rows.iter().filter(|row| row.human_label_0 == Some(1.0)).count();
        assert!((1..rows.len()).contains(&firsts), "{name}: {firsts}");
    }
}

#[test]
fn uids_and_ids_are_unique_and_belong_to_the_image() {
    for (name, ..) in ALL {
        let rows = images(&open(name));
        let ids: HashSet<&String> = rows.iter().map(|row| &row.pair_id).collect();
        assert_eq!(ids.len(), rows.len(), "{name}");
        let images: HashSet<&Bytes> = rows.iter().flat_map(|row| &row.image).flatten().collect();
        let named: HashSet<(&String, &Bytes)> = rows
            .iter()
            .flat_map(|row| row.image_uid.iter().flatten().zip(row.image.iter().flatten()))
            .collect();
        assert_eq!(named.len(), images.len(), "{name}: one uid for each image");
        if name != ALL[0].0 {
            let source = Path::new(name).file_name().unwrap().to_str().unwrap();
            assert_eq!(rows[7].pair_id, format!("{source}:7"));
        }
    }
}

#[test]
fn any_rows_and_any_batches_are_those_of_the_whole_file() {
    for (name, ..) in ALL {
        let file = open(name);
        let whole = images(&file);
        let plan = file.plan_rows().unwrap().collect_rows().unwrap();
        for (plan, full) in plan.iter().zip(&whole) {
            assert_eq!(*plan, PairRow { image: [None, None], ..full.clone() }, "{name}");
        }
        assert_eq!(plan.len(), whole.len());
        let end = file.num_rows();
        for start in 0..=end {
            for (end, batch) in [(start + 1, 1), (end - 1, 2), (end + 5, 100)] {
                let found =
                    file.rows_with_images_in(start..end, batch).unwrap().collect_rows().unwrap();
                let end = (end.max(start) as usize).min(whole.len());
                assert_eq!(found, whole[start as usize..end], "{name} {start}..{end}");
            }
        }
        let groups = file.row_groups();
        assert_eq!(groups.iter().map(|group| group.num_rows).sum::<i64>(), end, "{name}");
        assert!(groups.iter().all(|group| group.uncompressed_bytes > 0), "{name}");
        assert_eq!(file.fingerprint(), open(name).fingerprint());
    }
}

/// Four images of the ranks 2, 1, 3, 1: every pair but the equal ones, in the order of (i, j).
#[test]
fn ranked_images_give_the_pairs_of_different_rank() {
    let numbered = |uid: &Option<String>| -> u32 {
        let digits: String = uid.as_deref().unwrap().chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    for (name, first) in [("hpdv2/test.json", 0), ("image-reward-db/metadata-train.parquet", 10)] {
        let rows = images(&open(name));
        let found: Vec<_> = rows[first..]
            .iter()
            .map(|row| {
                let [one, other] = row.image_uid.each_ref().map(|uid| numbered(uid) % 10);
                (row.row, one, other, row.human_label_0.unwrap())
            })
            .collect();
        let at = first as i64;
        let expected = [
            (at, 0, 1, 0.0),
            (at + 1, 0, 2, 1.0),
            (at + 2, 0, 3, 0.0),
            (at + 3, 1, 2, 1.0),
            (at + 4, 2, 3, 0.0),
        ];
        assert_eq!(found, expected, "{name}");
        assert!(rows.iter().all(|row| row.caption.is_some() && row.image[1].is_some()));
    }
}

#[test]
fn a_folder_is_searched_for_the_first_kind_that_it_holds() {
    let found = |name: &str, splits: &[&str], layout: Option<Layout>| {
        let splits: Vec<String> = splits.iter().map(|split| (*split).to_owned()).collect();
        discover_as(&[fixtures().join(name)], &splits, layout).map(|found| {
            let names = found.files.into_iter().map(|file| {
                assert_eq!(
                    file.layout,
                    layout.or(name.starts_with("folder").then_some(Layout::Folder))
                );
                file.source_file
            });
            names.collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(found("pickapic", &[], None).unwrap(), "train-00000-of-00001.parquet");
    assert_eq!(found("webdataset", &[], None).unwrap(), "00000.tar");
    assert_eq!(found("records", &[], None).unwrap(), "chosen.jsonl images.jsonl");
    assert_eq!(found("records", &[], Some(Layout::WebDataset)).unwrap_err().to_string(), {
        let path = fixtures().join("records");
        let expected = "files of the layout webdataset (tars of KEY.jpg_0.jpg, KEY.jpg_1.jpg, \
                        KEY.original_prompt.txt)";
        let (expected, skipped) = (expected.to_owned(), String::new());
        PairsError::Nothing { path, expected, skipped }.to_string()
    });
    assert_eq!(found("hpdv2", &["test"], None).unwrap(), "test.json");
    let error = found("hpdv2", &[], None).unwrap_err().to_string();
    assert!(error.contains("--split train") && error.contains("test (1 file)"), "{error}");
    assert_eq!(found("folder", &[], None).unwrap(), "folder");
    assert_eq!(found("folder-rejected", &[], Some(Layout::Folder)).unwrap(), "folder-rejected");
    assert_eq!(found("image-reward-db", &[], None).unwrap(), "metadata-train.parquet");
}

#[test]
fn json_that_is_no_pairs_is_left_out_of_a_folder() {
    let folder = tempdir().unwrap();
    put(folder.path(), "dataset_infos.json", b"{\"default\": {}}");
    let record = br#"[{"prompt": "a", "path1": "a.jpg", "path2": "b.jpg"}]"#;
    put(folder.path(), "all.json", record);
    let found = discover(&[folder.path().to_owned()], &[]).unwrap();
    let names: Vec<_> = found.files.iter().map(|file| file.source_file.as_str()).collect();
    assert_eq!(names, ["all.json"]);
    assert_eq!(PairFile::open(&found.files[0]).unwrap().layout(), Layout::Hpdv3);
}

/// `relabel` may have written its labels beside the pairs.
#[test]
fn labels_beside_tars_do_not_hide_them() {
    let folder = tempdir().unwrap();
    let tar = std::fs::read(fixtures().join("webdataset/00000.tar")).unwrap();
    put(folder.path(), "00000.tar", &tar);
    let schema = LabelsSchema::new(&["clip", "hps"]).unwrap();
    let path = folder.path().join("labels.parquet");
    let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
    writer.write(&label_row(0)).unwrap();
    writer.finish().unwrap();
    let found = discover(&[folder.path().to_owned()], &[]).unwrap();
    assert_eq!((found.files.len(), found.own), (1, vec![path]));
    assert_eq!(PairFile::open(&found.files[0]).unwrap().layout(), Layout::WebDataset);
}

#[test]
fn what_is_in_no_layout_is_refused_with_what_was_found() {
    let folder = tempdir().unwrap();
    let numbers: arrow::array::ArrayRef =
        std::sync::Arc::new(arrow::array::Int64Array::from(vec![1, 2]));
    let table = parquet_bytes(vec![("height", numbers.clone()), ("width", numbers)], 4);
    for (name, bytes, expected) in [
        ("a.parquet", table.as_slice(), "found the columns height, width"),
        ("a.json", br#"[{"url": 1, "text": 2}]"#, "found a first record of url, text"),
        ("b.json", b"[]", "found no record"),
        ("a.tar.gz", b"\x1f\x8b", "found a compressed archive"),
        ("c.jsonl", b"hello\n", "not JSON"),
    ] {
        let path = put(folder.path(), name, bytes);
        let error = PairFile::open(&named(path)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
        let lists = error.contains("pickapic, chosen-rejected, ranked");
        assert_eq!(lists, name != "c.jsonl", "{error}");
    }
    // Columns of two layouts: ours come first, and a name decides.
    let mut columns = pair_columns(2);
    for (name, same) in [("prompt", "caption"), ("chosen", "jpg_0"), ("rejected", "jpg_1")] {
        let (_, values) = columns.iter().find(|(name, _)| *name == same).unwrap();
        columns.push((name, values.clone()));
    }
    let path = put(folder.path(), "two.parquet", &parquet_bytes(columns, 4));
    for (layout, expected) in
        [(None, Layout::PickAPic), (Some(Layout::ChosenRejected), Layout::ChosenRejected)]
    {
        let input = InputFile { layout, ..named(path.clone()) };
        assert_eq!(PairFile::open(&input).unwrap().layout(), expected);
    }
    let path = put(folder.path(), "named.jsonl", br#"{"prompt": "a", "path1": "b", "path2": "c"}"#);
    let input = InputFile { layout: Some(Layout::Hpdv3), ..named(path) };
    assert_eq!(PairFile::open(&input).unwrap().num_rows(), 1);
}

/// Stops after some batches.
struct Counting {
    rows: u64,
    absent: Vec<String>,
    batches_left: Option<u32>,
}

impl Counting {
    fn new() -> Self {
        Self { rows: 0, absent: Vec::new(), batches_left: None }
    }
}

impl Conversion for Counting {
    fn done(&mut self, rows: u64) {
        self.rows += rows;
    }

    fn absent(&mut self, row: &PairRow) {
        self.absent.push(row.pair_id.clone());
    }

    fn check(&mut self) -> Result<(), Stopped> {
        match &mut self.batches_left {
            Some(0) => Err(Stopped(Signal::Terminate)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[test]
fn every_layout_becomes_our_parquet_with_the_same_pairs() {
    let out = tempdir().unwrap();
    for (number, (name, ..)) in ALL.iter().enumerate() {
        let out = out.path().join(number.to_string());
        let input = named(fixtures().join(name));
        let names = names_of(std::slice::from_ref(&input)).unwrap();
        let mut counting = Counting::new();
        let converted = convert(&input, &out, &names[0], Sizes::default(), &mut counting).unwrap();
        let before = images(&open(name));
        assert_eq!((converted.rows, counting.rows), (before.len() as u64, before.len() as u64));
        assert_eq!((converted.files, converted.without_images), (1, 0));
        let file = out.join(format!("{}-00000.parquet", names[0]));
        let file = PairFile::open(&named(file)).unwrap();
        assert_eq!(file.layout(), Layout::PickAPic);
        assert_eq!(images(&file), before, "{name}");
    }
}

#[test]
fn a_stopped_conversion_resumes_behind_its_last_file_and_gives_the_same_bytes() {
    let folder = tempdir().unwrap();
    let source = fixtures().join("records/images/0_0.jpg");
    put(folder.path(), "a.jpg", &std::fs::read(source).unwrap());
    let record = r#"{"prompt": "a", "image_0": "a.jpg", "image_1": "a.jpg"}"#;
    let path = put(folder.path(), "pairs.jsonl", format!("{record}\n").repeat(200).as_bytes());
    let input = named(path);
    let bytes = std::fs::metadata(folder.path().join("a.jpg")).unwrap().len() as usize;
    // Three pairs a row group, nine a file.
    let sizes = Sizes { row_group: 6 * bytes, file: 18 * bytes };
    let whole = folder.path().join("whole");
    let done = convert(&input, &whole, "pairs", sizes, &mut Counting::new()).unwrap();
    assert_eq!((done.rows, done.files), (200, 200_u64.div_ceil(9)));
    let first =
        SerializedFileReader::new(std::fs::File::open(whole.join("pairs-00000.parquet")).unwrap())
            .unwrap();
    let groups: Vec<i64> =
        first.metadata().row_groups().iter().map(RowGroupMetaData::num_rows).collect();
    assert_eq!(groups, [3, 3, 3]);
    assert!(
        first.metadata().row_groups()[0]
            .columns()
            .iter()
            .all(|column| { column.offset_index_offset().is_some() })
    );
    let stopped = folder.path().join("stopped");
    let mut starts = 0;
    loop {
        let mut counting = Counting { batches_left: Some(3), ..Counting::new() };
        match convert(&input, &stopped, "pairs", sizes, &mut counting) {
            Ok(done) => {
                assert_eq!((done.rows, counting.rows), (200, 200));
                break;
            }
            Err(error) => assert!(matches!(error, ConvertError::Stopped(_)), "{error}"),
        }
        starts += 1;
    }
    assert!(starts > 3, "{starts}");
    for number in 0..done.files {
        let name = format!("pairs-{number:05}.parquet");
        let read = |folder: &Path| std::fs::read(folder.join(&name)).unwrap();
        assert!(read(&whole) == read(&stopped), "{name}");
    }
    // Another input under the same name.
    put(folder.path(), "pairs.jsonl", format!("{record}\n").repeat(300).as_bytes());
    let error = convert(&input, &whole, "pairs", sizes, &mut Counting::new()).unwrap_err();
    assert!(error.to_string().contains("found another file"), "{error}");
}

#[test]
fn two_inputs_of_one_name_are_not_converted_into_one_folder() {
    let input = |source: &str| InputFile {
        path: source.into(),
        source_file: source.to_owned(),
        layout: None,
    };
    let names = names_of(&[input("data/train/a.tar"), input("b.jsonl")]).unwrap();
    assert_eq!(names, ["data/train/a", "b"]);
    let error = names_of(&[input("x/a.tar"), input("x/a.jsonl")]).unwrap_err().to_string();
    assert!(error.contains("x/a.tar") && error.contains("x/a.jsonl"), "{error}");
}
