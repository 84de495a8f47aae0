//! Pairs and labels elsewhere are those of the same files here.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray};
use common::{held, label_row, pair_columns, parquet_bytes, peak_of, put, with};
use locations::{Access, Limits, LocationError};
use runkit::signals::Stopped;
use schemas::input::InputError;
use schemas::labels::{LabelsFile, LabelsSchema, LabelsWriter};
use schemas::layouts::{Conversion, Sizes, TextStore, convert};
use schemas::pairs::{Discovered, InputFile, PairFile, PairRow, PairsError, discover};
use tempfile::tempdir;
use testkit::objects::{DatasetHub, ObjectStore, etag};
use testkit::server::{Reply, Server};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
/// The file to read, where this process is the one that is measured.
const FILE: &str = "SCHEMAS_TEST_READS_REMOTE";

/// The servers of this test, which the process is set up for.
struct World {
    store: ObjectStore,
    hub: DatasetHub,
    web: Server,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let store = ObjectStore::start();
        store.put_folder("bucket/sample", Path::new(SAMPLE));
        let hub = DatasetHub::start("owner/sample", Path::new(SAMPLE), true);
        let web = Server::start(|request| {
            let name = request.path().trim_start_matches('/');
            match std::fs::read(Path::new(SAMPLE).join(name)) {
                Ok(bytes) => Reply::new(200, &bytes).ranged(request).with("ETag", &etag(&bytes)),
                Err(_) => Reply::new(404, b""),
            }
        });
        let variables = [store.variables(), hub.variables()].concat();
        let limits = Limits {
            pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(100),
            total: Duration::from_secs(2),
            ..Limits::default()
        };
        let access = Access::new(variables, limits, runkit::signals::StopFlag::never());
        assert!(access.set_for_process());
        World { store, hub, web }
    })
}

fn found(inputs: &[&str]) -> Discovered {
    let inputs: Vec<PathBuf> = inputs.iter().map(PathBuf::from).collect();
    discover(&inputs, &[]).unwrap()
}

fn rows(files: &[InputFile], images: bool) -> Vec<(String, PairRow)> {
    let mut all = Vec::new();
    for input in files {
        let file = PairFile::open(input).unwrap();
        let rows =
            if images { file.rows_with_images(7).unwrap() } else { file.plan_rows().unwrap() };
        let rows = rows.collect_rows().unwrap();
        all.extend(rows.into_iter().map(|row| (file.source_file().to_owned(), row)));
    }
    all
}

#[test]
fn the_sample_is_the_same_from_everywhere() {
    let world = world();
    let web: Vec<String> = (0..3)
        .map(|number| format!("{}/pairs-0000{number}-of-00003.parquet", world.web.address()))
        .collect();
    let web: Vec<&str> = web.iter().map(String::as_str).collect();
    let here = found(&[SAMPLE]).files;
    let (texts, images) = (rows(&here, false), rows(&here, true));
    let prints = |files: &[InputFile]| -> Vec<String> {
        files.iter().map(|file| PairFile::open(file).unwrap().fingerprint()).collect()
    };
    for inputs in [
        &["s3://bucket/sample"][..],
        &["s3://bucket/sample/*.parquet"],
        &["hf://datasets/owner/sample"],
        &web,
    ] {
        let there = found(inputs).files;
        assert_eq!(there.len(), 3, "{inputs:?}");
        assert!(rows(&there, false) == texts, "{inputs:?}");
        assert!(rows(&there, true) == images, "{inputs:?}");
        // The labels of a run are the same bytes from everywhere.
        assert_eq!(prints(&there), prints(&here), "{inputs:?}");
    }
    assert!(!world.hub.files.requests().is_empty());
}

/// Records, tars, zips and folders of images ([`schemas::layouts`]).
#[test]
fn every_layout_is_the_same_from_object_storage() {
    let world = world();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layouts");
    world.store.put_folder("bucket/layouts", &fixtures);
    let lost = br#"{"prompt": "a", "image_0": "images/0_0.jpg", "image_1": "images/lost.jpg"}"#;
    world.store.put("bucket/layouts/records/lost.jsonl", lost);
    for name in [
        "pickapic",
        "chosen-rejected",
        "verl-omni",
        "image-reward-db",
        "hpdv2/train.json",
        "hpdv2/test.json",
        "records/hpdv3.json",
        "records/chosen.jsonl",
        "records/images.jsonl",
        "webdataset",
        "webdataset-json",
        "folder",
        "folder-rejected",
    ] {
        let here = found(&[fixtures.join(name).to_str().unwrap()]).files;
        let there = found(&[&format!("s3://bucket/layouts/{name}")]).files;
        for (here, there) in here.iter().zip(&there) {
            let [here, there] = [here, there].map(|file| PairFile::open(file).unwrap());
            assert_eq!(there.layout(), here.layout(), "{name}");
            assert_eq!(there.fingerprint(), here.fingerprint(), "{name}");
            assert_eq!(there.row_groups(), here.row_groups(), "{name}");
            let [some, others] =
                [&here, &there].map(|file| file.rows_with_images_in(4..8, 3).unwrap());
            assert!(some.collect_rows().unwrap() == others.collect_rows().unwrap(), "{name}");
        }
        assert!(rows(&there, false) == rows(&here, false), "{name}");
        assert!(rows(&there, true) == rows(&here, true), "{name}");
    }
    let lost = rows(&found(&["s3://bucket/layouts/records/lost.jsonl"]).files, true);
    let [(_, row)] = lost.as_slice() else { panic!("{lost:?}") };
    assert!(row.image[0].is_some() && row.image[1].is_none());
    assert!(row.absent[1].as_deref().unwrap().contains("no such file beside the pairs"));
}

#[test]
fn kept_texts_of_a_tar_are_those_of_the_tar_which_is_not_fetched_for_them() {
    let world = world();
    let tar = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/layouts/webdataset/00000.tar");
    world.store.put("bucket/kept/a.tar", &std::fs::read(tar).unwrap());
    let [input] = <[_; 1]>::try_from(found(&["s3://bucket/kept"]).files).unwrap();
    let scratch = tempdir().unwrap();
    let texts = TextStore::scratch(scratch.path()).unwrap();
    let whole = PairFile::open(&input).unwrap();
    let (keeping, kept) = PairFile::open_keeping(&input, &texts).unwrap();
    let kept = kept.unwrap();
    let reads =
        || world.store.server.requests().iter().filter(|it| it.path().ends_with("/a.tar")).count();
    let before = reads();
    let again = PairFile::open_kept(&input, &texts, &kept).unwrap();
    let plan = |file: &PairFile, range| file.plan_rows_in(range).unwrap().collect_rows().unwrap();
    let of_kept: Vec<_> = [&keeping, &again].map(|file| plan(file, 0..file.num_rows())).into();
    assert_eq!(reads(), before, "nothing of the tar was asked for");
    assert_eq!(of_kept[0], plan(&whole, 0..whole.num_rows()));
    assert_eq!(of_kept[1], of_kept[0]);
    assert_eq!(plan(&again, 3..5), of_kept[0][3..5]);
    assert_eq!(again.fingerprint(), whole.fingerprint());
    assert_eq!(again.row_groups(), whole.row_groups());
    // Its images are fetched from where they begin, and no further.
    let images =
        |file: &PairFile| file.rows_with_images_in(2..4, 1).unwrap().collect_rows().unwrap();
    let before = reads();
    assert_eq!(images(&again), images(&whole));
    assert!(reads() > before);
    assert_eq!(input.version().unwrap().as_deref(), kept.version());
    assert_eq!(input.bytes().unwrap(), std::fs::metadata(tar).unwrap().len());
}

/// A file whose images are too large to be one range.
fn large(rows: usize, image_bytes: usize, group_rows: usize) -> Vec<u8> {
    let image = |row: usize, side: usize| -> Vec<u8> {
        let mut state = (row * 2 + side + 1) as u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(image_bytes).collect()
    };
    let images = |side: usize| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values((0..rows).map(|row| image(row, side))))
    };
    let columns = with(with(pair_columns(rows as i64), "jpg_0", images(0)), "jpg_1", images(1));
    parquet_bytes(columns, group_rows)
}

/// Requests for a file and the bytes they asked for: other tests run at the same time.
fn asked(world: &World, name: &str) -> (usize, usize) {
    let requests = world.store.server.requests();
    let ranges = requests.iter().filter(|request| request.path().ends_with(name));
    let ranges = ranges.filter_map(|request| Some(request.range_to()? + 1 - request.range_from()?));
    ranges.fold((0, 0), |(count, sum), length| (count + 1, sum + length))
}

#[test]
fn large_row_groups_take_few_requests() {
    let world = world();
    let folder = tempdir().unwrap();
    let bytes = large(600, 60_000, 250);
    let path = put(folder.path(), "large.parquet", &bytes);
    world.store.put("bucket/large/large.parquet", &bytes);
    let here = found(&[path.to_str().unwrap()]).files;
    let there = found(&["s3://bucket/large"]).files;
    let file = PairFile::open(&there[0]).unwrap();
    let before = asked(world, "large/large.parquet");
    let read = file.rows_with_images(16).unwrap().collect_rows().unwrap();
    let after = asked(world, "large/large.parquet");
    let local = PairFile::open(&here[0]).unwrap().rows_with_images(16).unwrap();
    assert!(read == local.collect_rows().unwrap());
    let (requests, fetched) = (after.0 - before.0, after.1 - before.1);
    let size = bytes.len();
    println!("{requests} requests and {fetched} bytes for a file of {size}");
    // Pieces of 8 MiB at most, three groups of two large columns and the small ones.
    assert!(requests <= size / (8 << 20) + 3 * 4, "{requests}");
    assert!(fetched <= size + size / 50, "{fetched} of {size}");
    // The middle alone does not cost the whole.
    let before = asked(world, "large/large.parquet");
    let middle = file.rows_with_images_in(260..270, 16).unwrap().collect_rows().unwrap();
    assert!(middle == read[260..270]);
    assert!(asked(world, "large/large.parquet").1 - before.1 <= size / 2);
}

struct Silent;

impl Conversion for Silent {
    fn done(&mut self, _: u64) {}

    fn absent(&mut self, _: &PairRow) {}

    fn check(&mut self) -> Result<(), Stopped> {
        Ok(())
    }
}

/// What training reads: a few neighbouring rows here and there. Our files have small pages and an
/// index of them.
#[test]
fn a_few_rows_of_a_large_row_group_cost_their_pages() {
    let world = world();
    let folder = tempdir().unwrap();
    let path = put(folder.path(), "large.parquet", &large(600, 60_000, 250));
    let input = &found(&[path.to_str().unwrap()]).files[0];
    let out = folder.path().join("ours");
    convert(input, &out, "part", Sizes::default(), &mut Silent).unwrap();
    world.store.put_folder("bucket/ours", &out);
    let [here, there] = [out.to_str().unwrap(), "s3://bucket/ours"].map(|from| {
        let files = found(&[from]).files;
        PairFile::open(&files[0]).unwrap()
    });
    assert!(here.row_groups()[0].num_rows > 500);
    let mut before = asked(world, "ours/part-00000.parquet");
    for rows in [260..270, 3..4, 100..116, 490..520, 598..600] {
        let [one, other] =
            [&here, &there].map(|file| file.rows_with_images_in(rows.clone(), 16).unwrap());
        assert!(one.collect_rows().unwrap() == other.collect_rows().unwrap(), "{rows:?}");
        let after = asked(world, "ours/part-00000.parquet");
        let (requests, fetched) = (after.0 - before.0, after.1 - before.1);
        println!("{rows:?}: {requests} requests, {fetched} bytes");
        // Each column's pages of a megabyte, the first and the last of them in part; the texts.
        let wanted = (rows.end - rows.start) as usize * 2 * 60_000;
        assert!(fetched < wanted + (5 << 20), "{rows:?}: {fetched} bytes");
        // The index, once; two columns of images; texts before and behind them.
        assert!(requests <= 6, "{rows:?}: {requests} requests");
        before = after;
    }
}

#[test]
fn folders_elsewhere_follow_the_rules_of_folders_here() {
    let world = world();
    let folder = tempdir().unwrap();
    let pairs = parquet_bytes(pair_columns(3), 4);
    for name in [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/validation-00000-of-00001.parquet",
        "_temporary/0.parquet",
        "_temporary/1.parquet",
        ".hidden.parquet",
        "data/_SUCCESS",
        "x.parquet.work/parts/0.parquet",
        "y.work/manifest.json",
        "y.work/parts/0.parquet",
        "readme.txt",
    ] {
        put(folder.path(), name, &pairs);
    }
    let labels = folder.path().join("data/labels.parquet");
    let schema = LabelsSchema::new(&["clip", "pickscore"]).unwrap();
    let mut writer = LabelsWriter::create(&labels, &schema, &Default::default()).unwrap();
    (0..50).for_each(|row| writer.write(&label_row(row)).unwrap());
    writer.finish().unwrap();
    world.store.put_folder("bucket/tree", folder.path());
    let look = |input: &Path| {
        let several = discover(&[input.to_owned()], &[]).unwrap_err();
        assert!(matches!(several, PairsError::SeveralSplits { .. }), "{several}");
        let found = discover(&[input.to_owned()], &["train".to_owned()]).unwrap();
        let names = found.files.iter().map(|file| file.source_file.clone());
        let mut own: Vec<_> =
            found.own.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        own.sort();
        (names.collect::<Vec<_>>(), own, found.hidden, found.other_splits)
    };
    let here = look(folder.path());
    assert_eq!(here.0.len(), 2);
    assert_eq!(here, look(Path::new("s3://bucket/tree")));
    // And labels are read from there.
    let there = LabelsFile::open("s3://bucket/tree/data/labels.parquet").unwrap();
    let here = LabelsFile::open(&labels).unwrap();
    assert!(there.read_rows().unwrap() == here.read_rows().unwrap());
    let given = discover(&[PathBuf::from("s3://bucket/tree/data/labels.parquet")], &[]);
    assert!(matches!(given.unwrap_err(), PairsError::Own { .. }));
}

#[test]
fn an_error_elsewhere_has_the_name_of_the_file() {
    let world = world();
    let of = |input: &str| discover(&[PathBuf::from(input)], &[]).unwrap_err().to_string();
    assert!(of("ftp://host/x").contains("s3://, gs://"), "{}", of("ftp://host/x"));
    assert_eq!(of("s3://bucket/none"), "s3://bucket/none: not found");
    world.store.put("bucket/broken/x.parquet", &[7; 400]);
    let broken = InputFile {
        path: "s3://bucket/broken/x.parquet".into(),
        source_file: "x.parquet".to_owned(),
        layout: None,
    };
    let message = PairFile::open(&broken).unwrap_err().to_string();
    assert!(message.starts_with("s3://bucket/broken/x.parquet: expected a Parquet"), "{message}");
    // The object changes between two batches.
    world.store.put("bucket/changing/x.parquet", &large(600, 60_000, 50));
    let files = found(&["s3://bucket/changing"]).files;
    let mut batches = PairFile::open(&files[0]).unwrap().rows_with_images(8).unwrap();
    assert!(batches.next().unwrap().is_ok());
    std::thread::sleep(Duration::from_millis(500));
    world.store.put("bucket/changing/x.parquet", &large(600, 59_000, 50));
    let error = batches.find_map(Result::err).unwrap();
    let PairsError::Input(InputError::Remote(cause)) = &error else { panic!("{error:?}") };
    assert!(matches!(cause, LocationError::Changed { .. }), "{error}");
    assert!(error.to_string().starts_with("s3://bucket/changing/x.parquet: changed"), "{error}");
    // The text columns end in the same way.
    let error = PairFile::open(&files[0]).unwrap_err();
    assert!(matches!(error, PairsError::Input(InputError::Remote(_))), "{error:?}");
}

/// Not a test: reads the file that the other process serves, and prints how much more memory it
/// held meanwhile.
#[test]
fn reads_for_the_measurement() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let (before, mut bytes) = (held(), 0);
    let peak = peak_of(|| {
        let input =
            InputFile { path: path.into(), source_file: "x.parquet".to_owned(), layout: None };
        let file = PairFile::open(&input).unwrap();
        for batch in file.rows_with_images(16).unwrap() {
            let batch = batch.unwrap();
            let images = batch.iter().flat_map(|row| &row.image).flatten();
            bytes += images.fold(0, |sum, image| sum + image.len());
        }
    });
    println!("PEAK {} {bytes}", peak - before);
}

#[test]
fn memory_is_flat_in_the_size_of_the_file() {
    let world = world();
    let peak = |rows: usize| -> usize {
        let name = format!("bucket/memory/{rows}.parquet");
        world.store.put(&name, &large(rows, 100_000, 400));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "reads_for_the_measurement", "--nocapture"]);
        command.envs(world.store.variables()).env(FILE, format!("s3://{name}"));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("PEAK"))
            .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        let numbers: Vec<usize> =
            line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers[1], rows * 200_000);
        numbers[0]
    };
    let (small, large) = (peak(800), peak(2000));
    println!("{} MB of a file of 160 MB, {} MB of one of 400 MB", small >> 20, large >> 20);
    assert!(large < small + (24 << 20), "{small} {large}");
    // Two columns of images with five pieces of 8 MiB each, and what is being read of them.
    assert!(large < 128 << 20, "{large}");
}
