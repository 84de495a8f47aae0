//! `train cache`: what the encoders make of pairs, the same bytes whatever happened on the way, and
//! the same stream as from the pairs themselves.

#![expect(clippy::unwrap_used, reason = "tests")]

mod caches;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nn::device::Precision;
use nn::pipeline::{Pipeline, PipelineFiles};
use runkit::files::FileHashes;
use runkit::signals::{Signal, StopFlag};
use schemas::labels::Status;
use schemas::latents::{LatentsFile, StoredFloat, latents_name};
use schemas::pairs::PairRow;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use train::cache::{self, Config};
use train::data::{Content, Dataset, Example, Positions, Stream, StreamOptions};
use train::model::BaseModel;

use self::caches::{
    SIDE, config, difference, files, labels, model, pairs, refused, sign_of, take, take_of_rank,
    write,
};

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
                let posterior = pipeline.encoders.vae().unwrap().encode(&pixels).unwrap();
                let expected = posterior.mean_BCHW.squeeze_dim(0);
                assert!(difference(&mean[image], &expected) < tolerance, "{name} {hflip}");
                let expected = posterior.std().unwrap().squeeze_dim(0);
                assert!(difference(&std[image], &expected) < tolerance);
                let other =
                    pipeline.encoders.vae().unwrap().encode(&pixels.flip([3])).unwrap().mean_BCHW;
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
