//! `train cache`: what the encoders make of pairs, the same bytes whatever happened on the way, and
//! the same stream as from the pairs themselves.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use nn::device::Precision;
use nn::pipeline::{Pipeline, PipelineFiles};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use runkit::files::FileHashes;
use runkit::launch::Launch;
use runkit::shard::Shard;
use runkit::signals::{Signal, StopFlag};
use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
use schemas::latents::{
    CacheManifest, CaptionsFile, LatentsFile, StoredFloat, captions_name, latents_name,
};
use schemas::pairs::{PairFile, PairRow, discover};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use train::cache::{self, Config};
use train::data::{Content, Dataset, Example, Positions, Stream, StreamOptions};
use train::model::BaseModel;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/sample");
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/diffusion");
const SIDE: i64 = 32;

fn model(name: &str) -> PathBuf {
    Path::new(MODELS).join(name)
}

/// The first rows of the sample as two files of pairs, in row groups of five.
fn pairs(folder: &Path, change: impl Fn(usize, &mut PairRow)) -> PathBuf {
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
fn labels(folder: &Path, input: &Path) -> PathBuf {
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

fn sign_of(row: &LabelRow) -> Option<i8> {
    row.consensus.filter(|sign| *sign != 0)
}

fn config(name: &str, input: &Path, out: &Path) -> Config {
    Config {
        model: model(name),
        pairs: vec![input.to_owned()],
        splits: Vec::new(),
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

fn write(config: &Config) -> cache::Summary {
    match cache::write(config, &StopFlag::never()).unwrap() {
        ControlFlow::Continue(summary) => summary.unwrap(),
        ControlFlow::Break(signal) => panic!("stopped by {signal:?}"),
    }
}

fn refused(config: &Config) -> String {
    format!("{:#}", cache::write(config, &StopFlag::never()).unwrap_err())
}

fn take(dataset: Dataset<i8>, hflip: bool, count: u64) -> Vec<Example<i8>> {
    take_of_rank(dataset, Positions::ALL, hflip, count)
}

fn take_of_rank(
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
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let difference = (found - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[]).max(1e-12)
}

/// The files of a cache, without the settings, which name the folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
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

/// From pairs and from their cache: the same pairs in the same order with the same flipping, and
/// the cache holds what the encoders make of the pixels and captions.
#[test]
fn a_cache_streams_what_the_encoders_make_of_the_pairs() {
    for (name, hflip, precision, tolerance) in [
        ("sd", false, Precision::F32, 1e-5),
        ("sd", true, Precision::F32, 1e-5),
        ("sdxl", true, Precision::Bf16, 0.03),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let input = pairs(folder.path(), |_, _| {});
        let labels = labels(folder.path(), &input);
        let out = folder.path().join("latents");
        let config = Config { hflip, precision, ..config(name, &input, &out) };
        let summary = write(&config);
        assert_eq!((summary.rows, summary.failed), (40, 0));
        let stored = LatentsFile::open(out.join(latents_name(0))).unwrap().layout().stored;
        let expected = match precision {
            Precision::F32 => StoredFloat::Float32,
            _ => StoredFloat::Float16,
        };
        assert_eq!(stored, expected);

        let from_pairs =
            Dataset::open(std::slice::from_ref(&input), &[], &labels, &mut sign_of).unwrap();
        let from_cache = Dataset::open_cache(&out, &labels, &mut sign_of).unwrap();
        let (length, labels) = (from_pairs.len(), from_pairs.labels().to_vec());
        assert_eq!((from_cache.len(), from_cache.labels()), (length, &labels[..]));
        let manifest = from_cache.cache().unwrap();
        let base = BaseModel::open(&model(name), Some(SIDE)).unwrap();
        manifest.check_encoders(&base.parts(&mut FileHashes::default()).unwrap()).unwrap();
        assert_eq!(manifest.resolution, [32, 32]);

        let pipeline_files = PipelineFiles::open(&model(name), None).unwrap();
        let pipeline = Pipeline::load(&pipeline_files, Device::Cpu, precision).unwrap();
        let pairs = take(from_pairs, hflip, 2 * length);
        let cached = take(from_cache, hflip, 2 * length);
        let mut flipped = 0;
        for (pair, cached) in pairs.into_iter().zip(cached) {
            assert_eq!(pair.pair_id, cached.pair_id);
            assert_eq!((&pair.caption, pair.label), (&cached.caption, cached.label));
            assert_eq!(pair.position, cached.position);
            let Content::Pixels(pixels) = pair.content else { panic!("no pixels") };
            let Content::Latents { mean, std, text } = cached.content else { panic!("no latents") };
            for (image, pixels) in pixels.iter().enumerate() {
                let pixels = Tensor::from_slice(pixels).view([1, 3, SIDE, SIDE]);
                let posterior = pipeline.encoders.vae.encode(&pixels).unwrap();
                let expected = posterior.mean_BCHW.squeeze_dim(0);
                assert!(difference(&mean[image], &expected) < tolerance, "{name} {hflip}");
                let expected = posterior.std().unwrap().squeeze_dim(0);
                assert!(difference(&std[image], &expected) < tolerance);
                let other = pipeline.encoders.vae.encode(&pixels.flip([3])).unwrap().mean_BCHW;
                flipped += usize::from(difference(&mean[image], &other.squeeze_dim(0)) < 0.02);
            }
            let tokens = base.tokens(&[&cached.caption]).unwrap();
            let expected = pipeline.encode_prompt(&tokens).unwrap();
            assert_eq!(text.embeds_BLD.kind(), Kind::Float);
            assert!(difference(&text.embeds_BLD, &expected.embeds_BLD) < tolerance);
            assert_eq!(text.pooled_BD.is_some(), name == "sdxl");
            if let (Some(found), Some(expected)) = (&text.pooled_BD, &expected.pooled_BD) {
                assert!(difference(found, expected) < tolerance);
            }
        }
        // Were flipped images mixed up with the others, most would fit the wrong one.
        assert!(flipped < length as usize, "{flipped}");
    }
}

#[test]
fn ranks_share_the_rows_of_a_cache_micro_batch_by_micro_batch() {
    let folder = tempfile::tempdir().unwrap();
    let input = pairs(folder.path(), |_, _| {});
    let labels = labels(folder.path(), &input);
    let out = folder.path().join("latents");
    write(&config("sd", &input, &out));
    let open = || Dataset::open_cache(&out, &labels, &mut sign_of).unwrap();
    let whole = take(open(), false, 48);
    for (world, micro_batch) in [(2, 3), (3, 2), (4, 1)] {
        let mut found = Vec::new();
        for rank in 0..world {
            let positions = Positions { rank, world, micro_batch };
            let own = take_of_rank(open(), positions, false, 48 / world);
            // The stream begins at position 5.
            let is_own = |one: &Example<i8>| (one.position - 5) / micro_batch % world == rank;
            assert!(own.iter().all(is_own) && own.is_sorted_by_key(|one| one.position));
            found.extend(own);
        }
        found.sort_by_key(|one| one.position);
        assert_eq!(found.len(), whole.len());
        for (found, expected) in found.iter().zip(&whole) {
            assert_eq!((&found.pair_id, found.position), (&expected.pair_id, expected.position));
            assert_eq!((&found.caption, found.label), (&expected.caption, expected.label));
            let latents = |one: &Example<i8>| match &one.content {
                Content::Latents { mean: [first, second], std: [third, fourth], text } => {
                    [first, second, third, fourth, &text.embeds_BLD].map(Tensor::shallow_clone)
                }
                _ => panic!("no latents"),
            };
            assert_eq!(latents(found), latents(expected));
        }
    }
}

#[test]
fn every_row_is_in_it_and_what_cannot_be_encoded_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let change = |index: usize, row: &mut PairRow| match index {
        1 => row.image[1] = None,
        2 => row.image[0] = Some(b"\xff\xd8\xffno image".to_vec().into()),
        3 => row.caption = None,
        24 => row.caption = Some("x".repeat(70_000)),
        // One uid for two images: each row has the latents of its own.
        10 => row.image_uid[0] = Some("same".to_owned()),
        11 => row.image_uid[0] = Some("same".to_owned()),
        // And one image twice.
        12 => {
            row.image_uid = [Some("twin".to_owned()), Some("twin".to_owned())];
            row.image[1] = row.image[0].clone();
        }
        _ => {}
    };
    let input = pairs(folder.path(), change);
    let labels = labels(folder.path(), &input);
    let out = folder.path().join("latents");
    let summary = write(&Config { hflip: true, ..config("sd", &input, &out) });
    assert_eq!((summary.rows, summary.failed), (40, 4));
    let parts = [0, 1].map(|index| LatentsFile::open(out.join(latents_name(index))).unwrap());
    let rows: Vec<_> =
        parts.iter().flat_map(|part| part.rows().unwrap()).flat_map(Result::unwrap).collect();
    assert_eq!(rows.len(), 40);
    let status = |index: usize| (rows[index].status, rows[index].error.clone().unwrap_or_default());
    assert_eq!(status(1).0, Status::MissingImage);
    assert!(status(1).1.contains("image 1"), "{:?}", status(1));
    assert_eq!(status(2).0, Status::DecodeError);
    assert_eq!(status(3).0, Status::MissingCaption);
    assert_eq!(status(24).0, Status::CaptionTooLong);
    assert!(rows.iter().enumerate().all(|(index, row)| {
        let row_of_file = if index < 23 { index } else { index - 23 };
        row.source_row == row_of_file as i64
    }));
    let first = parts[0].moments_at(0, false, &[10, 11, 12]).unwrap();
    assert_ne!(first[0], first[1]);
    let second = parts[0].moments_at(1, false, &[12]).unwrap();
    assert_eq!(first[2], second[0]);
    let flipped = parts[0].moments_at(0, true, &[12]).unwrap();
    assert_eq!(flipped, parts[0].moments_at(1, true, &[12]).unwrap());
    assert_ne!(flipped[0], first[2]);

    // Labels call three of them fine, and the cache does not have them.
    let dataset = Dataset::open_cache(&out, &labels, &mut sign_of).unwrap();
    assert_eq!((dataset.counts().uncached, dataset.counts().failed), (3, 1));
    let count = dataset.len();
    assert_eq!(take(dataset, true, count).len() as u64, count);
}

#[test]
fn another_run_is_refused_by_the_field_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    let input = pairs(folder.path(), |_, _| {});
    let labels = labels(folder.path(), &input);
    let out = folder.path().join("latents");
    let config = config("sd", &input, &out);
    write(&config);
    let before = files(&out);
    // The same again has nothing to do.
    write(&config);
    assert_eq!(files(&out), before);
    let resolution = Config { resolution: Some(16), ..config.clone() };
    assert!(refused(&resolution).contains("resolution[0]: was 32, now 16"));
    assert!(
        refused(&Config { hflip: true, ..config.clone() }).contains("hflip: was false, now true")
    );
    let model = Config { model: model("sdxl"), ..config.clone() };
    assert!(refused(&model).contains("encoders[\"vae/"), "{}", refused(&model));
    let bf16 = Config { precision: Precision::Bf16, ..config.clone() };
    assert!(refused(&bf16).contains("dtype: was \"f32\", now \"bf16\""));
    let odd = Config { resolution: Some(33), ..config.clone() };
    assert!(refused(&odd).contains("multiple of"), "{}", refused(&odd));
    assert_eq!(files(&out), before);

    // A stream asks for what the cache has.
    let open = || Dataset::open_cache(&out, &labels, &mut sign_of);
    let options = StreamOptions {
        seed: 0,
        resolution: (SIDE, SIDE),
        random_crop: false,
        hflip: false,
        position: 0,
        positions: Positions::ALL,
        threads: 1,
        memory: 1 << 20,
    };
    let start =
        |options| Stream::start(Arc::new(open().unwrap()), options).unwrap_err().to_string();
    assert!(start(StreamOptions { hflip: true, ..options }).contains("hflip"));
    assert!(start(StreamOptions { random_crop: true, ..options }).contains("random_crop"));
    assert!(start(StreamOptions { resolution: (64, 64), ..options }).contains("32x32"));
    let other = BaseModel::open(&self::model("sdxl"), Some(SIDE)).unwrap();
    let message = open()
        .unwrap()
        .cache()
        .unwrap()
        .check_encoders(&other.parts(&mut FileHashes::default()).unwrap())
        .unwrap_err();
    assert!(message.contains("text_encoder_2"), "{message}");

    // Not complete, or not a cache.
    fs_err::remove_file(out.join(latents_name(1))).unwrap();
    let message = open().unwrap_err().to_string();
    assert!(message.contains("not complete") && message.contains("latents-00001"), "{message}");
    let message =
        Dataset::open_cache(folder.path(), &labels, &mut sign_of).unwrap_err().to_string();
    assert!(message.contains("no manifest.json"), "{message}");
    fs_err::remove_file(out.join("manifest.json")).unwrap();
    assert!(refused(&config).contains("manifest.json"));
    write(&Config { fresh: true, ..config });
    assert_eq!(files(&out), before);
}

#[test]
fn a_run_that_is_stopped_is_finished_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let input = pairs(folder.path(), |_, _| {});
    let whole = folder.path().join("whole");
    write(&config("sd", &input, &whole));
    let out = folder.path().join("stopped");
    let config = config("sd", &input, &out);
    let stop = StopFlag::never();
    stop.request(Signal::Terminate);
    assert!(matches!(cache::write(&config, &stop).unwrap(), ControlFlow::Break(Signal::Terminate)));
    assert!(!out.join(latents_name(0)).exists());
    write(&config);
    assert_eq!(files(&out), files(&whole));
}

/// Killed at each point where a file is opened, written, synced or put in its place.
#[test]
fn a_run_that_is_killed_anywhere_is_finished_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let input = pairs(folder.path(), |_, _| {});
    let run = |out: &Path, fault: Option<String>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command
            .arg("cache")
            .args([Path::new("--model"), &model("sd"), Path::new("--pairs"), &input])
            .args([Path::new("--out"), out])
            .args(["--resolution", "32", "--device", "cpu", "-q"])
            .env("OMP_NUM_THREADS", "1");
        if let Some(fault) = fault {
            command.env("RUNKIT_FAULT", fault);
        }
        command.output().unwrap()
    };
    let whole = folder.path().join("whole");
    assert!(run(&whole, None).status.success());
    // The manifest, and for each of two parts captions and latents.
    for (point, passages) in [("open", 5), ("rename", 5), ("marker", 5), ("sync", 2)] {
        for passage in 1..=passages {
            let out: TempDir = tempfile::tempdir_in(folder.path()).unwrap();
            let fault = format!("{point}:{passage}");
            assert!(!run(out.path(), Some(fault.clone())).status.success(), "{fault}");
            let output = run(out.path(), None);
            assert!(
                output.status.success(),
                "{fault}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(files(out.path()) == files(&whole), "{fault}");
            let left = fs_err::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path());
            let left: Vec<_> =
                left.filter(|path| path.to_string_lossy().ends_with("runkit-tmp")).collect();
            assert!(left.is_empty(), "{fault}: {left:?}");
        }
    }
    // A full disk: the error names the file, and what is done stays.
    let out: TempDir = tempfile::tempdir_in(folder.path()).unwrap();
    let output = run(out.path(), Some("write:9:ENOSPC".to_owned()));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("no space left"), "{message}");
    assert!(run(out.path(), None).status.success());
    assert!(files(out.path()) == files(&whole));
}

/// One file in several parts: a row group of 600 pairs.
fn long_pairs(folder: &Path, count: usize) -> PathBuf {
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

/// The latents, captions and numbers of all pairs, whatever the parts.
fn content(out: &Path) -> BTreeMap<(String, i64), (String, Vec<f32>, Vec<f32>)> {
    let manifest: CacheManifest =
        serde_json::from_slice(&fs_err::read(out.join("manifest.json")).unwrap()).unwrap();
    let mut captions = BTreeMap::new();
    for number in 0..manifest.parts.len() {
        let file = CaptionsFile::open(out.join(captions_name(number))).unwrap();
        for row in file.rows_at(&(0..file.num_rows()).collect::<Vec<_>>()).unwrap() {
            captions.insert(row.caption_index, (row.caption, row.prompt_embeds));
        }
    }
    let mut content = BTreeMap::new();
    for number in 0..manifest.parts.len() {
        let file = LatentsFile::open(out.join(latents_name(number))).unwrap();
        let numbers: Vec<i64> = (0..file.num_rows()).collect();
        let moments = file.moments_at(0, false, &numbers).unwrap();
        for (row, moments) in file.rows_at(&numbers).unwrap().into_iter().zip(moments) {
            let (caption, embeds) = &captions[&row.caption_index.unwrap()];
            assert_eq!(row.caption.as_ref(), Some(caption));
            let value = (row.pair_id, moments.mean, embeds.clone());
            assert!(content.insert((row.source_file, row.source_row), value).is_none());
        }
    }
    content
}

/// Numbers of another grouping into batches differ in the last bits.
fn assert_close(found: &Path, expected: &Path) {
    let (found, expected) = (content(found), content(expected));
    assert!(found.keys().eq(expected.keys()), "{} of {}", found.len(), expected.len());
    for (found, expected) in found.values().zip(expected.values()) {
        assert_eq!(found.0, expected.0);
        for (found, expected) in [(&found.1, &expected.1), (&found.2, &expected.2)] {
            let [found, expected] = [found, expected].map(|numbers| Tensor::from_slice(numbers));
            assert!(difference(&found, &expected) < 1e-4);
        }
    }
}

#[test]
fn shards_write_the_bytes_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_pairs(folder.path(), 600);
    let whole = folder.path().join("whole");
    let summary = write(&config("sd", &long, &whole));
    assert_eq!((summary.rows, summary.captions, summary.missing), (600, 270, 0));
    assert!(whole.join(latents_name(1)).exists() && !whole.join(latents_name(2)).exists());

    let out = folder.path().join("shards");
    let shard = |index: u64| Config {
        shard: Some(Shard::new(index, 2).unwrap()),
        ..config("sd", &long, &out)
    };
    let second = write(&shard(1));
    assert_eq!((second.rows, second.missing), (300, 1));
    assert!(!out.join(latents_name(0)).exists());
    let labels = labels(folder.path(), &long);
    let message = Dataset::open_cache(&out, &labels, &mut sign_of).unwrap_err().to_string();
    assert!(message.contains("latents-00000.parquet is missing"), "{message}");
    let fresh = Config { fresh: true, ..shard(1) };
    assert!(refused(&fresh).contains("--fresh with a shard"));
    assert_eq!(write(&shard(0)).missing, 0);
    assert_eq!(files(&out), files(&whole));
    assert_eq!(Dataset::open_cache(&out, &labels, &mut sign_of).unwrap().counts().rows, 600);
    // Any start of the same command finishes what is missing.
    fs_err::remove_file(out.join(captions_name(0))).unwrap();
    write(&shard(1));
    assert!(!out.join(captions_name(0)).exists());
    write(&config("sd", &long, &out));
    assert_eq!(files(&out), files(&whole));
}

#[test]
fn a_cache_grows_by_files_and_keeps_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let input = pairs(folder.path(), |_, _| {});
    let labels = labels(folder.path(), &input);
    let whole = folder.path().join("whole");
    write(&config("sd", &input, &whole));

    let file = |name: &str| input.join(name);
    let order = |out: &Path| -> Vec<(String, Tensor)> {
        let dataset = Dataset::open_cache(out, &labels, &mut sign_of).unwrap();
        let count = dataset.len();
        take(dataset, false, count)
            .into_iter()
            .map(|example| match example.content {
                Content::Latents { mean: [mean, _], .. } => (example.pair_id, mean),
                _ => panic!("no latents"),
            })
            .collect()
    };
    // With the new file alone, and with all files.
    for (name, more) in [("alone", file("b.parquet")), ("all", input.clone())] {
        let out = folder.path().join(name);
        assert_eq!(write(&config("sd", &file("a.parquet"), &out)).rows, 23);
        // Labels of all pairs select those that are there.
        let some = Dataset::open_cache(&out, &labels, &mut sign_of).unwrap();
        assert_eq!((some.counts().rows, some.counts().elsewhere), (23, 17));
        let before = files(&out);
        assert_eq!(write(&config("sd", &more, &out)).rows, 40);
        let after = files(&out);
        for (name, bytes) in before.iter().filter(|(name, _)| *name != "manifest.json") {
            assert!(after[name] == *bytes, "{name}");
        }
        assert_eq!(after, files(&whole), "{name}");
    }
    // The other way round the parts have other numbers; pairs, order and numbers are the same.
    let out = folder.path().join("reversed");
    write(&config("sd", &file("b.parquet"), &out));
    write(&config("sd", &input, &out));
    assert_close(&out, &whole);
    for ((found, mean), (expected, expected_mean)) in order(&out).into_iter().zip(order(&whole)) {
        assert_eq!(found, expected);
        assert!(difference(&mean, &expected_mean) < 1e-4);
    }

    // A file of the same name with other pairs is refused.
    let other = folder.path().join("other");
    fs_err::create_dir(&other).unwrap();
    fs_err::copy(file("a.parquet"), other.join("b.parquet")).unwrap();
    let before = files(&out);
    let message = refused(&config("sd", &other, &out));
    assert!(message.contains("changed or replaced") && message.contains("--fresh"), "{message}");
    // And so is a part that cannot be finished.
    fs_err::remove_file(out.join(latents_name(0))).unwrap();
    let message = refused(&config("sd", &file("a.parquet"), &out));
    assert!(message.contains("latents-00000.parquet is missing"), "{message}");
    write(&config("sd", &input, &out));
    assert_eq!(files(&out), before);
}

#[test]
fn a_limit_takes_the_first_pairs_and_may_grow() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_pairs(folder.path(), 600);
    let labels = labels(folder.path(), &long);
    let [whole, out] = ["whole", "limited"].map(|name| folder.path().join(name));
    write(&config("sd", &long, &whole));
    let limited = |limit| Config { limit: Some(limit), ..config("sd", &long, &out) };
    assert_eq!(write(&limited(310)).rows, 310);
    let before = files(&out);
    assert_eq!(before[&latents_name(0)], files(&whole)[&latents_name(0)]);
    let dataset = Dataset::open_cache(&out, &labels, &mut sign_of).unwrap();
    assert_eq!((dataset.counts().rows, dataset.counts().elsewhere), (310, 290));
    // A smaller limit takes nothing away.
    assert_eq!(write(&limited(5)).rows, 310);
    assert_eq!(files(&out), before);
    assert_eq!(write(&config("sd", &long, &out)).rows, 600);
    let after = files(&out);
    for (name, bytes) in before.iter().filter(|(name, _)| *name != "manifest.json") {
        assert!(after[name] == *bytes, "{name}");
    }
    assert_close(&out, &whole);
    let [found, expected] = [&out, &whole].map(|cache| {
        let dataset = Dataset::open_cache(cache, &labels, &mut sign_of).unwrap();
        let count = dataset.len();
        take(dataset, false, count).into_iter().map(|example| example.pair_id).collect::<Vec<_>>()
    });
    assert_eq!(found, expected);
}

/// What a run refuses, the cache of its encoders refuses as well.
#[test]
fn networks_that_do_not_fit_each_other_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let input = pairs(folder.path(), |_, _| {});
    let copy = folder.path().join("sd");
    fs_err::create_dir(&copy).unwrap();
    for entry in walk(&model("sd")) {
        let target = copy.join(entry.strip_prefix(model("sd")).unwrap());
        fs_err::create_dir_all(target.parent().unwrap()).unwrap();
        fs_err::copy(&entry, &target).unwrap();
    }
    let vae = copy.join("vae/config.json");
    let mut options: serde_json::Value =
        serde_json::from_str(&fs_err::read_to_string(&vae).unwrap()).unwrap();
    options["shift_factor"] = 0.1.into();
    fs_err::write(&vae, options.to_string()).unwrap();
    let out = folder.path().join("latents");
    let error = refused(&Config { model: copy, ..config("sd", &input, &out) });
    assert!(error.contains("shift_factor is not zero"), "{error}");
}

/// All files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
