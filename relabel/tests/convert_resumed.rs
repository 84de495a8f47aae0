//! A conversion that is killed, stopped or short of disk is finished by the same command, with the
//! bytes of an undisturbed one; from object storage, from a hub and from tars as well.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Fixture, Pair, Run, Running, pairs_parquet, png_of_size, relabel, sample_pairs, tar_of,
};
use testkit::objects::{DatasetHub, ObjectStore};

/// Three inputs, `pairs/N.ENDING`, of four pairs of about 700 KB: two files of a MiB each.
struct Case {
    fixture: Fixture,
    pairs: String,
    files: BTreeMap<String, Vec<u8>>,
    duration: Duration,
}

impl Case {
    fn new(ending: &str) -> Self {
        let mut pairs = sample_pairs(12);
        for (number, image) in pairs.iter_mut().flat_map(|pair| &mut pair.image).enumerate() {
            *image = Some(png_of_size(350_000, number as u8));
        }
        let fixture = Fixture::empty();
        for (number, rows) in pairs.chunks(4).enumerate() {
            let bytes = match ending {
                "tar" => tar_of(4 * number, rows),
                _ => pairs_parquet(rows),
            };
            fixture.put(&format!("pairs/{number}.{ending}"), &bytes);
        }
        let pairs = fixture.path("pairs").to_str().unwrap().to_owned();
        let mut case = Self { fixture, pairs, files: BTreeMap::new(), duration: Duration::ZERO };
        let started = Instant::now();
        Run::of(&mut case.command("whole", &[])).expect_code(0);
        case.duration = started.elapsed();
        case.files = case.fixture.files("whole");
        assert_eq!(case.files.len(), 7, "two files an input and the manifest");
        case
    }

    fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = relabel(["convert", "--file-mib", "1", "--pairs", &self.pairs]);
        command.arg("--out").arg(self.fixture.path(out)).args(more);
        command
    }

    /// What has its name is whole.
    #[track_caller]
    fn assert_whole_or_absent(&self, out: &str) {
        if !self.fixture.path(out).exists() {
            return;
        }
        for (name, bytes) in self.fixture.files(out) {
            // A manifest knows the versions of objects.
            if let Some(expected) = self.files.get(&name).filter(|_| name != "manifest.json") {
                assert!(*expected == bytes, "{name}: half a file under its final name");
            }
        }
    }

    /// Nothing else than an undisturbed conversion leaves.
    #[track_caller]
    fn assert_finished(&self, out: &str) {
        let found = self.fixture.files(out);
        assert_eq!(found.keys().collect::<Vec<_>>(), self.files.keys().collect::<Vec<_>>());
        for (name, bytes) in &self.files {
            assert!(name == "manifest.json" || found[name] == *bytes, "{name}: other bytes");
        }
    }
}

#[test]
fn killed_at_any_point_the_bytes_are_the_same() {
    let case = Case::new("parquet");
    for point in ["open", "write", "sync", "rename", "marker"] {
        let mut starts = 0;
        // A file is written in many pieces.
        let step = if point == "write" { 9 } else { 1 };
        for passage in (1..).step_by(step) {
            let fault = format!("{point}:{passage}");
            let run = Run::of(case.command("out", &[]).env("RUNKIT_FAULT", fault));
            case.assert_whole_or_absent("out");
            if !run.was_killed() {
                run.expect_code(0);
                break;
            }
            starts += 1;
        }
        assert!(starts >= 3, "{point}: killed {starts} times");
        case.assert_finished("out");
        std::fs::remove_dir_all(case.fixture.path("out")).unwrap();
    }
}

#[test]
fn killed_at_any_time_the_bytes_are_the_same() {
    let case = Case::new("tar");
    let mut killed = 0;
    for round in 0..4 {
        for attempt in 1..4 {
            let run = Running::start(&mut case.command("out", &[]));
            std::thread::sleep(case.duration * (3 * attempt + round) / 14);
            killed += usize::from(run.kill().was_killed());
            case.assert_whole_or_absent("out");
        }
        Run::of(&mut case.command("out", &[])).expect_code(0);
        case.assert_finished("out");
        std::fs::remove_dir_all(case.fixture.path("out")).unwrap();
    }
    assert!(killed >= 4, "only {killed} of 12 runs were killed before their end");
}

#[test]
fn a_signal_stops_and_a_full_disk_says_what_is_needed() {
    let case = Case::new("parquet");
    let faulty = |fault: &str| Run::of(case.command("out", &[]).env("RUNKIT_FAULT", fault));
    let run = faulty("rename:3:TERM").expect_code(143);
    assert!(run.stderr.contains("same command"), "{run:#?}");
    case.assert_whole_or_absent("out");
    let written = case.fixture.names("out").len();
    assert!((2..7).contains(&written), "{written}");
    let told = ["no space left", "are still to be written", "MiB", "same command again"];
    faulty("write:3:ENOSPC").expect_error(&told);
    case.assert_whole_or_absent("out");
    Run::of(&mut case.command("out", &[])).expect_code(0);
    case.assert_finished("out");
}

#[test]
fn pairs_elsewhere_give_the_files_of_local_ones() {
    for ending in ["parquet", "tar"] {
        let case = Case::new(ending);
        let store = ObjectStore::start();
        store.put_folder("bucket/pairs", &case.fixture.path("pairs"));
        let hub = DatasetHub::start("me/pairs", &case.fixture.path(""), true);
        let command = |pairs: &str| {
            let mut command = relabel(["convert", "--file-mib", "1", "--pairs", pairs, "--out"]);
            command.arg(case.fixture.path("out")).envs(store.variables()).envs(hub.variables());
            command
        };
        for pairs in ["s3://bucket/pairs", "hf://datasets/me/pairs/pairs"] {
            // Killed after the first files, then finished.
            for passage in 2..4 {
                let fault = format!("rename:{passage}");
                let run = Run::of(command(pairs).env("RUNKIT_FAULT", fault));
                assert!(run.was_killed(), "{run:#?}");
                case.assert_whole_or_absent("out");
            }
            Run::of(&mut command(pairs)).expect_code(0);
            case.assert_finished("out");
            std::fs::remove_dir_all(case.fixture.path("out")).unwrap();
        }
        // What is complete is not fetched again.
        Run::of(&mut command("s3://bucket/pairs")).expect_code(0);
        let bytes = |from: usize| -> usize {
            let requests = store.server.requests();
            let ranges = requests.iter().skip(from);
            let bytes = ranges.filter_map(|one| Some(one.range_to()? + 1 - one.range_from()?));
            bytes.sum()
        };
        let before = store.server.requests().len();
        Run::of(&mut command("s3://bucket/pairs")).expect_code(0);
        // The last MiB of each of the three inputs, which holds the footer.
        let size: usize = case.files.values().map(Vec::len).sum();
        assert!(size > 8 << 20 && bytes(before) < 4 << 20, "{} of {size}", bytes(before));
        // An object that was replaced is refused by its address.
        let other: Vec<Pair> = sample_pairs(4);
        let other = if ending == "tar" { tar_of(0, &other) } else { pairs_parquet(&other) };
        store.put(&format!("bucket/pairs/1.{ending}"), &other);
        let named = format!("s3://bucket/pairs/1.{ending}: changed since the conversion");
        Run::of(&mut command("s3://bucket/pairs")).expect_error(&[&named, "--fresh"]);
        case.assert_finished("out");
    }
}
