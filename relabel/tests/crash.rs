//! `kill -9` at any moment and the same command again: the bytes of an undisturbed run. Other
//! settings are refused, SIGTERM saves and says so, a finished output stays as it is.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Fixture, Run, Running, pairs_parquet, sample_pairs, scorer_entry, wait_until};
use schemas::labels::{LabelRow, Status};

const OUT: &str = "out/labels.parquet";
/// So that a case may hold a row that fails.
const ALLOW: [&str; 2] = ["--max-failed", "1"];
/// What a finished run leaves.
const FINISHED: [&str; 2] = ["labels.config.toml", "labels.parquet"];
/// The points of `runkit::fault` that every durable file passes.
const FAULT_POINTS: [&str; 5] = ["open", "write", "sync", "rename", "marker"];

/// Two files. The second shows what the first cannot score: a uid whose owner is damaged, one whose
/// owner has other bytes, and bytes with two uids.
fn fixture_with_damaged_owners() -> Fixture {
    let mut pairs = sample_pairs(4);
    for (number, pair) in pairs.iter_mut().enumerate() {
        pair.uid = [Some(format!("left {number}")), Some(format!("right {number}"))];
    }
    let sound = [pairs[0].image[0].clone(), pairs[1].image[0].clone()];
    pairs[0].image[0].as_mut().unwrap().truncate(100);
    pairs[2].uid = [pairs[0].uid[0].clone(), pairs[1].uid[0].clone()];
    pairs[2].image = [sound[0].clone(), pairs[3].image[1].clone()];
    pairs[3].image[0] = sound[1].clone();
    let fixture = Fixture::empty();
    fixture.put("pairs/0.parquet", &pairs_parquet(&pairs[..2]));
    fixture.put("pairs/1.parquet", &pairs_parquet(&pairs[2..]));
    fixture
}

/// Small inputs, a cheap configuration, and what an undisturbed run makes of them.
struct Case {
    fixture: Fixture,
    scorers: PathBuf,
    labels: Vec<u8>,
    settings: Vec<u8>,
    duration: Duration,
}

impl Case {
    fn new(rows: usize) -> Self {
        Self::of(Fixture::with_sample(rows))
    }

    /// A row that fails is no failure of the case.
    fn of(fixture: Fixture) -> Self {
        let scorers = fixture.two_scorers();
        let started = Instant::now();
        Run::of(&mut fixture.score(&scorers, OUT, &ALLOW)).expect_code(0);
        let duration = started.elapsed();
        let (labels, settings) = (fixture.bytes(OUT), fixture.bytes("out/labels.config.toml"));
        let case = Self { fixture, scorers, labels, settings, duration };
        case.clear();
        case
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = self.fixture.score(&self.scorers, OUT, &ALLOW);
        command.args(more);
        command
    }

    fn faulty(&self, fault: &str) -> Command {
        let mut command = self.command(&[]);
        command.env("RUNKIT_FAULT", fault);
        command
    }

    /// Removes everything a run left.
    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }

    /// What stands under the final name is the whole file or nothing.
    #[track_caller]
    fn assert_whole_or_absent(&self) {
        match std::fs::read(self.fixture.path(OUT)) {
            Ok(found) => assert!(found == self.labels, "half a file under the final name"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    }

    /// The run is done, with the undisturbed run's bytes and nothing lying about.
    #[track_caller]
    fn assert_finished(&self) {
        assert!(self.fixture.bytes(OUT) == self.labels, "other bytes than undisturbed");
        assert_eq!(self.fixture.bytes("out/labels.config.toml"), self.settings);
        assert_eq!(self.fixture.names("out"), FINISHED);
    }
}

/// Numbers that are the same on every run of the test (splitmix64).
struct Numbers(u64);

impl Numbers {
    /// A fraction of `whole`.
    fn part_of(&mut self, whole: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        whole.mul_f64(((number ^ (number >> 31)) >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[test]
fn killed_at_any_time_and_again_while_it_resumes_the_bytes_are_the_same() {
    let case = Case::new(12);
    let mut numbers = Numbers(2);
    let mut killed = 0;
    for _round in 0..10 {
        for _attempt in 0..2 {
            let run = Running::start(&mut case.command(&[]));
            std::thread::sleep(numbers.part_of(case.duration));
            killed += usize::from(run.kill().was_killed());
            case.assert_whole_or_absent();
        }
        Run::of(&mut case.command(&[])).expect_code(0);
        case.assert_finished();
        case.clear();
    }
    assert!(killed >= 10, "only {killed} of 20 runs were killed before their end");
}

#[test]
fn killed_at_every_passage_of_every_fault_point_the_bytes_are_the_same() {
    // The manifest of the run, the checksums, the plan, the features of the captions, its part, the
    // labels and the settings.
    killed_at_every_passage(&Case::of(Fixture::with_pairs(&sample_pairs(2))), &FAULT_POINTS, 7);
}

#[test]
fn killed_while_it_scores_what_the_owners_lack_the_bytes_are_the_same() {
    let case = Case::of(fixture_with_damaged_owners());
    // Besides: two parts, and what the second file shows to be scored nowhere.
    killed_at_every_passage(&case, &["write", "rename"], 9);
    let failed = |row: &LabelRow| row.status != Status::Ok;
    Run::of(&mut case.command(&[])).expect_code(0);
    let rows = case.fixture.labels(OUT);
    assert_eq!(rows.iter().map(failed).collect::<Vec<_>>(), [true, false, false, false]);

    // Shards make the same bytes, and so does whoever comes after a killed one.
    case.clear();
    for shard in ["1/2", "0/2"] {
        Run::of(&mut case.command(&["--shard", shard])).expect_code(0);
    }
    case.assert_finished();
    case.clear();
    Run::of(&mut case.command(&["--shard", "0/2"])).expect_code(0);
    // The part of the second shard is there, the images that are left are not.
    let mut last = case.command(&["--shard", "1/2"]);
    assert!(Run::of(last.env("RUNKIT_FAULT", "rename:1")).was_killed());
    Run::of(&mut case.command(&["--shard", "0/2"])).expect_code(0);
    case.assert_finished();
}

#[track_caller]
fn killed_at_every_passage(case: &Case, points: &[&str], files: u32) {
    for &point in points {
        let mut passages = 0;
        loop {
            let run = Run::of(&mut case.faulty(&format!("{point}:{}", passages + 1)));
            case.assert_whole_or_absent();
            if !run.was_killed() {
                run.expect_code(0);
                break;
            }
            passages += 1;
            Run::of(&mut case.command(&[])).expect_code(0);
            case.assert_finished();
            case.clear();
        }
        case.assert_finished();
        case.clear();
        let expected = if point == "write" { files..=3 * files } else { files..=files };
        assert!(expected.contains(&passages), "{point}: {passages} passages");
    }
}

#[test]
fn a_run_that_dies_after_each_file_it_finishes_comes_to_its_end() {
    let case = Case::new(6);
    let mut deaths = 0;
    while Run::of(&mut case.faulty("marker:1")).was_killed() {
        deaths += 1;
        assert!(deaths < 12, "no progress between one kill and the next");
    }
    assert_eq!(
        deaths, 9,
        "the manifest, checksums, plan, caption features, three parts, the labels and the settings"
    );
    case.assert_finished();
}

#[test]
fn an_error_of_the_disk_at_any_step_is_reported_and_the_rerun_finishes() {
    let case = Case::new(3);
    for (point, reason) in [
        ("open:2:EACCES", "ermission"),
        ("write:3:ENOSPC", "no space left"),
        ("sync:3:EIO", "nput/output"),
        ("rename:5:EIO", "nput/output"),
        ("marker:6:EROFS", "ead-only"),
    ] {
        let run = Run::of(&mut case.faulty(point));
        let folder = case.fixture.path("out").display().to_string();
        run.expect_error(&[reason, &folder]);
        case.assert_whole_or_absent();
        Run::of(&mut case.command(&[])).expect_code(0);
        case.assert_finished();
        case.clear();
    }
}

#[test]
fn sigterm_saves_and_the_rerun_finishes() {
    let case = Case::new(12);
    let slow = Fixture::with_sample(300);
    let scorers = slow.two_scorers();
    let run = Running::start(&mut slow.score(&scorers, OUT, &["--batch-size", "2"]));
    wait_until("it works", || slow.path("out/labels.parquet.work/parts").exists());
    run.signal("TERM");
    let asked = Instant::now();
    let run = run.finish().expect_code(143);
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert!(run.stderr.contains("run the same command to resume"), "{run:#?}");
    assert_eq!(slow.names("out"), ["labels.parquet.work"]);
    let leftovers = slow.names("out/labels.parquet.work/parts");
    assert!(leftovers.iter().all(|name| name.ends_with(".parquet") && !name.starts_with('.')));

    // Asked at about the end: it may as well be done.
    let run = Running::start(&mut case.command(&[]));
    wait_until("it works", || case.fixture.path("out/labels.parquet.work/parts").exists());
    run.signal("TERM");
    let code = run.finish().code();
    assert!(matches!(code, Some(143 | 0)), "{code:?}");
    Run::of(&mut case.command(&[])).expect_code(0);
    case.assert_finished();
}

/// Runs `more` against what stands in `out` and expects a refusal that names `field` and changes
/// nothing.
#[track_caller]
fn assert_refused(case: &Case, scorers: &Path, more: &[&str], field: &str) {
    let before = case.fixture.files("out");
    let run = Run::of(&mut case.fixture.score(scorers, OUT, more));
    run.expect_error(&[field, "another run", "hint: ", "--fresh"]);
    for (path, bytes) in case.fixture.files("out") {
        assert!(before.get(&path) == Some(&bytes), "{path} changed");
    }
}

fn assert_other_settings_are_refused(case: &Case) {
    let other = case.fixture.scorers("other.toml", &[scorer_entry("clip")]);
    assert_refused(case, &case.scorers, &["--batch-size", "3"], "batch_size");
    assert_refused(case, &case.scorers, &["--ties", "human"], "ties");
    assert_refused(case, &case.scorers, &["--limit", "7"], "limit");
    assert_refused(case, &case.scorers, &["--dtype", "bf16"], "dtype");
    assert_refused(case, &other, &[], "scorers");
    let file = case.fixture.bytes("pairs/1.parquet");
    let mut pairs = sample_pairs(8).split_off(4);
    pairs[1].caption = Some("another caption".to_owned());
    case.fixture.put("pairs/1.parquet", &pairs_parquet(&pairs));
    assert_refused(case, &case.scorers, &[], "input");
    case.fixture.put("pairs/1.parquet", &file);
}

#[test]
fn resuming_with_other_settings_or_inputs_is_refused_by_name() {
    let case = Case::new(12);
    assert!(Run::of(&mut case.faulty("rename:6")).was_killed());
    let parts = case.fixture.names("out/labels.parquet.work/parts");
    assert_eq!(parts, ["part-00000-of-00003.parquet", "part-00001-of-00003.parquet"]);
    assert_other_settings_are_refused(&case);
    Run::of(&mut case.command(&[])).expect_code(0);
    case.assert_finished();
}

#[test]
fn a_finished_output_is_neither_made_again_nor_overwritten() {
    let case = Case::new(12);
    Run::of(&mut case.command(&[])).expect_code(0);
    let written = std::fs::metadata(case.fixture.path(OUT)).unwrap().modified().unwrap();
    let run = Run::of(&mut case.command(&[])).expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");
    assert!(run.stdout.contains("12 pairs"), "{run:#?}");
    assert_eq!(std::fs::metadata(case.fixture.path(OUT)).unwrap().modified().unwrap(), written);
    assert_other_settings_are_refused(&case);
    case.assert_finished();

    // A file that is something else is left alone, whatever is asked for.
    case.fixture.put(OUT, b"a diary");
    for more in [&[][..], &["--fresh"]] {
        let run = Run::of(&mut case.command(more));
        run.expect_error(&["labels.parquet", "found plain text", "hint: choose another --out"]);
        assert_eq!(case.fixture.bytes(OUT), b"a diary");
    }
    std::fs::remove_file(case.fixture.path(OUT)).unwrap();
    Run::of(&mut case.command(&["--fresh"])).expect_code(0);
    case.assert_finished();
}

#[test]
fn fresh_clears_what_another_run_left() {
    let case = Case::new(12);
    let mut other = case.command(&["--batch-size", "2"]);
    assert!(Run::of(other.env("RUNKIT_FAULT", "rename:6")).was_killed());
    Run::of(&mut case.command(&[])).expect_error(&["batch_size"]);
    Run::of(&mut case.command(&["--fresh"])).expect_code(0);
    case.assert_finished();
    Run::of(&mut case.command(&["--fresh", "--ties", "first"])).expect_code(0);
    assert!(case.fixture.bytes(OUT) != case.labels, "made again with the other policy");
    Run::of(&mut case.command(&["--fresh"])).expect_code(0);
    case.assert_finished();
}
