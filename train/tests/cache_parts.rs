//! The parts of `train cache`: shared by ranks and shards, grown by files, and the same bytes as one
//! process writes.

#![expect(clippy::unwrap_used, reason = "tests")]

mod caches;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use runkit::shard::Shard;
use schemas::latents::{CacheManifest, CaptionsFile, LatentsFile, captions_name, latents_name};
use tch::Tensor;
use testkit::Ranks;
use train::cache::Config;
use train::data::{Content, Dataset};

use self::caches::{
    config, difference, files, labels, long_pairs, model, pairs, refused, sign_of, take, write,
};

/// The id, the latents and the prompt embeddings of a pair.
type Cached = (String, Vec<f32>, Vec<f32>);

/// What a cache holds of each pair, by file and row, whatever the parts.
fn content(out: &Path) -> BTreeMap<(String, i64), Cached> {
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

/// `train cache` as a program.
fn program(pairs: &Path, out: &Path) -> Command {
    let mut command = testkit::program(env!("CARGO_BIN_EXE_train"), ["cache", "--model"]);
    command.arg(model("sd")).arg("--pairs").arg(pairs).arg("--out").arg(out);
    command.args(["--resolution", "32", "--device", "cpu"]);
    command
}

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn ranks_write_the_bytes_of_one_process_also_after_one_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_pairs(folder.path(), 1_100);
    let whole = folder.path().join("whole");
    testkit::Run::of(&mut program(&long, &whole)).expect_code(0);
    assert!(whole.join(latents_name(2)).exists());

    let out = folder.path().join("ranks");
    let runs = Ranks::start(2, |_| program(&long, &out)).finish_within(LIMIT);
    for (rank, run) in runs.into_iter().enumerate() {
        let run = run.expect_code(0);
        // Rank 0 speaks for both.
        assert_eq!(run.stdout.contains("1,100 pairs, 0 failed, 270 captions"), rank == 0);
    }
    assert!(files(&out) == files(&whole));

    // Rank 1 dies before its first part is there. Rank 0 writes the others, and says what is lost.
    let out = folder.path().join("killed");
    let killed = |rank: usize| {
        let mut command = program(&long, &out);
        if rank == 1 {
            command.env("RUNKIT_FAULT", "sync:1");
        }
        command
    };
    let mut runs = Ranks::start(2, killed).finish_within(LIMIT).into_iter();
    let (first, second) = (runs.next().unwrap(), runs.next().unwrap());
    assert!(second.was_killed());
    first.expect_error(&["rank 1"]);
    let missing = |number: &usize| !out.join(latents_name(*number)).exists();
    assert_eq!((0..3).filter(missing).count(), 1);
    let runs = Ranks::start(2, |_| program(&long, &out)).finish_within(LIMIT);
    runs.into_iter().for_each(|run| drop(run.expect_code(0)));
    assert!(files(&out) == files(&whole));
}

#[test]
fn a_signal_or_an_error_at_one_rank_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_pairs(folder.path(), 1_100);
    let with = |name: &str, fault: &'static str| {
        let (long, out) = (&long, folder.path().join(name));
        move |rank: usize| {
            let mut command = program(long, &out);
            if rank == 1 {
                command.env("RUNKIT_FAULT", fault);
            }
            command
        }
    };
    // The first file that rank 1 opens, whichever part it gets.
    let runs = Ranks::start(2, with("stopped", "open:1:TERM")).finish_within(LIMIT);
    runs.into_iter().for_each(|run| drop(run.expect_code(143)));
    let mut runs = Ranks::start(2, with("full", "write:1:ENOSPC")).finish_within(LIMIT).into_iter();
    runs.next().unwrap().expect_error(&["rank 1", "no space left"]);
    runs.next().unwrap().expect_error(&["no space left"]);
    for out in ["stopped", "full"].map(|name| folder.path().join(name)) {
        let runs = Ranks::start(2, |_| program(&long, &out)).finish_within(LIMIT);
        runs.into_iter().for_each(|run| drop(run.expect_code(0)));
    }
}

#[test]
fn without_a_store_ranks_are_shards() {
    let folder = tempfile::tempdir().unwrap();
    let long = long_pairs(folder.path(), 600);
    let out = folder.path().join("shards");
    let mut first = program(&long, &out);
    first.env("RANK", "0").env("WORLD_SIZE", "2");
    let first = testkit::Run::of(&mut first).expect_code(0);
    assert!(first.stdout.contains("300 pairs") && first.stdout.contains("1 part left to other"));
    let mut second = program(&long, &out);
    second.args(["--shard", "1/2"]);
    let second = testkit::Run::of(&mut second).expect_code(0);
    assert!(second.stdout.contains("600 pairs") && !second.stdout.contains("left to other"));
}
