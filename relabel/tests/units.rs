//! Units of work: one file is split and resumed inside, its plan and the features of its captions are
//! made once, and what another version left is refused by name.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{
    Fixture, Run, Running, captions_encoded, pairs_in_small_pages, pairs_parquet,
    pairs_with_own_captions, sample_pairs, units_scored, wait_until,
};

const OUT: &str = "out/labels.parquet";
const WORK: &str = "out/labels.parquet.work";
const PARTS: &str = "out/labels.parquet.work/parts";
const FINISHED: [&str; 2] = ["labels.config.toml", "labels.parquet"];
/// Files that a run writes before its first part: the manifest, the checksums, the plan, and the
/// features of the first captions.
const BEFORE_PARTS: usize = 4;

/// One file of 60 pairs in row groups of five, scored in units of ten.
struct OneFile {
    fixture: Fixture,
    scorers: PathBuf,
    /// What one undisturbed process makes of it.
    alone: Vec<u8>,
}

const UNITS: usize = 6;

impl OneFile {
    fn new() -> Self {
        let fixture = Fixture::with_pairs(&sample_pairs(60));
        let scorers = fixture.two_scorers();
        let mut file = Self { fixture, scorers, alone: Vec::new() };
        let run = Run::of(&mut file.command(&["-v"])).expect_code(0);
        assert_eq!(units_scored(&run), (0..UNITS).collect::<Vec<_>>());
        file.alone = file.fixture.bytes(OUT);
        file.clear();
        file
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = self.fixture.score(&self.scorers, OUT, &["--unit-pairs", "10"]);
        command.args(more);
        command
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }

    #[track_caller]
    fn assert_finished(&self) {
        assert!(self.fixture.bytes(OUT) == self.alone, "other bytes than one undisturbed process");
        assert_eq!(self.fixture.names("out"), FINISHED);
    }
}

#[test]
fn a_killed_process_loses_its_open_unit_and_nothing_else() {
    let file = OneFile::new();
    let mut killed = file.command(&[]);
    let fault = format!("rename:{}", BEFORE_PARTS + 4);
    assert!(Run::of(killed.env("RUNKIT_FAULT", fault)).was_killed());
    assert_eq!(file.fixture.names(PARTS).len(), 4);
    // It dies again in the middle of the next unit, and after it.
    let mut killed = file.command(&[]);
    assert!(Run::of(killed.env("RUNKIT_FAULT", "write:2")).was_killed());
    let is_part = |name: &&String| name.starts_with("part-");
    let parts = file.fixture.names(PARTS).iter().filter(is_part).count();
    assert!((4..UNITS).contains(&parts), "{parts}");
    let run = Run::of(&mut file.command(&["-v"])).expect_code(0);
    assert_eq!(units_scored(&run), (parts..UNITS).collect::<Vec<_>>());
    assert!(run.stderr.contains("plan of an earlier start") && !run.stderr.contains("planning"));
    assert_eq!(captions_encoded(&run), 0, "{run:#?}");
    file.assert_finished();
}

#[test]
fn shards_of_one_file_make_its_bytes_though_one_is_killed_and_started_again() {
    let file = OneFile::new();
    let shards = ["0/2", "1/2"].map(|shard| {
        let mut command = file.command(&["-v", "--shard", shard]);
        if shard == "1/2" {
            command.env("RUNKIT_FAULT", "sync:2");
        }
        Running::start(&mut command)
    });
    let [first, second] = shards.map(Running::finish);
    assert!(second.was_killed(), "{second:#?}");
    let first = first.expect_code(0);
    assert_eq!(units_scored(&first), [0, 2, 4], "every second unit");
    assert!(first.stdout.contains("shard 0/2 done; others have "), "{first:#?}");
    let again = Run::of(&mut file.command(&["-v", "--shard", "1/2"])).expect_code(0);
    assert!(units_scored(&again).iter().all(|unit| [1, 3, 5].contains(unit)), "{again:#?}");
    assert!(!again.stderr.contains("planning"), "{again:#?}");
    assert!(again.stdout.starts_with("60 pairs"), "the last unit is its own: {again:#?}");
    file.assert_finished();

    // Whoever comes without a shard finishes what is missing.
    file.clear();
    Run::of(&mut file.command(&["--shard", "1/2"])).expect_code(0);
    let run = Run::of(&mut file.command(&["-v"])).expect_code(0);
    assert_eq!(units_scored(&run), [0, 2, 4]);
    file.assert_finished();
}

#[test]
fn parts_of_whole_files_are_refused_by_name() {
    let file = OneFile::new();
    let mut killed = file.command(&[]);
    let fault = format!("rename:{}", BEFORE_PARTS + 1);
    assert!(Run::of(killed.env("RUNKIT_FAULT", fault)).was_killed());
    let part = file.fixture.bytes(&format!("{PARTS}/part-00000-of-00006.parquet"));
    file.fixture.put(&format!("{PARTS}/part-00000-of-00001.parquet"), &part);
    for more in [&[][..], &["--shard", "0/2"]] {
        let run = Run::of(&mut file.command(more));
        run.expect_error(&["part-00000-of-00001.parquet", "whole files", "--fresh"]);
    }
    Run::of(&mut file.command(&["--fresh"])).expect_code(0);
    file.assert_finished();

    // Another size of units is another run.
    let mut killed = file.command(&["--fresh"]);
    assert!(Run::of(killed.env("RUNKIT_FAULT", "rename:5")).was_killed());
    let mut other = file.fixture.score(&file.scorers, OUT, &[]);
    Run::of(&mut other).expect_error(&["unit_pairs", "another run"]);
}

#[test]
fn a_damaged_plan_and_damaged_features_are_made_again() {
    let file = OneFile::new();
    let mut killed = file.command(&[]);
    let fault = format!("rename:{}", BEFORE_PARTS + 2);
    assert!(Run::of(killed.env("RUNKIT_FAULT", fault)).was_killed());
    let features = file.fixture.names(&format!("{WORK}/captions"));
    assert_eq!(features, ["captions-00000-of-00001.features"]);
    let names = ["plan".to_owned(), format!("captions/{}", features[0])];
    for (name, says) in names.iter().zip(["planning", "damaged; its captions are encoded again"]) {
        let mut bytes = file.fixture.bytes(&format!("{WORK}/{name}"));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 16;
        file.fixture.put(&format!("{WORK}/{name}"), &bytes);
        let mut killed = file.command(&[]);
        let run = Run::of(killed.env("RUNKIT_FAULT", "rename:3"));
        assert!(run.was_killed() && run.stderr.contains(says), "{name}: {run:#?}");
    }
    Run::of(&mut file.command(&[])).expect_code(0);
    file.assert_finished();
}

#[test]
fn captions_are_encoded_once_though_shards_share_them() {
    let fixture = Fixture::with_pairs(&pairs_with_own_captions(600));
    let scorers = fixture.two_scorers();
    let units = ["-v", "--unit-pairs", "50"];
    let run = Run::of(&mut fixture.score(&scorers, "alone.parquet", &units)).expect_code(0);
    assert_eq!(captions_encoded(&run), 600);
    let shard = |shard: &str| {
        let mut command = fixture.score(&scorers, OUT, &units);
        Run::of(command.args(["--shard", shard])).expect_code(0)
    };
    // Five files of features: the first process makes those that it needs, the last one none.
    let encoded = ["0/3", "1/3", "2/3"].map(|number| captions_encoded(&shard(number)));
    assert_eq!(encoded.iter().sum::<usize>(), 600, "{encoded:?}");
    assert!(fixture.bytes(OUT) == fixture.bytes("alone.parquet"));
}

#[test]
fn a_giant_row_group_is_split_by_rows() {
    let fixture = Fixture::empty();
    let pairs = sample_pairs(40);
    fixture.put("pairs/0.parquet", &pairs_in_small_pages(&pairs));
    let scorers = fixture.two_scorers();
    let units = ["-v", "--unit-pairs", "7", "--limit", "33"];
    let run = Run::of(&mut fixture.score(&scorers, "alone.parquet", &units)).expect_code(0);
    assert_eq!(units_scored(&run), [0, 1, 2, 3]);
    let ids: Vec<String> =
        fixture.labels("alone.parquet").iter().map(|row| row.pair_id.clone()).collect();
    let expected = pairs[..33].iter().map(|pair| pair.ranking_id.unwrap().to_string());
    assert_eq!(ids, expected.collect::<Vec<_>>());
    for shard in ["1/2", "0/2"] {
        let mut command = fixture.score(&scorers, OUT, &units);
        Run::of(command.args(["--shard", shard])).expect_code(0);
    }
    assert!(fixture.bytes(OUT) == fixture.bytes("alone.parquet"));

    // Row groups or not, and units of whatever size: the same scores but for rounding.
    fixture.put("pairs/0.parquet", &pairs_parquet(&pairs));
    Run::of(&mut fixture.score(&scorers, "whole.parquet", &["--limit", "33"])).expect_code(0);
    for (one, other) in fixture.labels("alone.parquet").iter().zip(fixture.labels("whole.parquet"))
    {
        for (one, other) in one.scores.iter().flatten().zip(other.scores.iter().flatten()) {
            assert!((one.unwrap() - other.unwrap()).abs() < 1e-4, "{one:?} and {other:?}");
        }
    }
}

#[test]
fn shards_that_start_together_make_one_plan() {
    let file = OneFile::new();
    let shards = ["0/3", "1/3", "2/3"]
        .map(|shard| Running::start(&mut file.command(&["-v", "--shard", shard])));
    let runs = shards.map(|shard| shard.finish().expect_code(0));
    let planned = runs.iter().filter(|run| run.stderr.contains(" planning")).count();
    assert_eq!(planned, 1, "{runs:#?}");
    file.assert_finished();

    // One that dies while the others wait for its plan costs nothing.
    file.clear();
    let first = Running::start(&mut file.command(&["--shard", "0/3"]));
    wait_until("it works", || file.fixture.path("out/.labels.parquet.plan.lock").exists());
    first.kill();
    for shard in ["1/3", "2/3", "0/3"] {
        Run::of(&mut file.command(&["--shard", shard])).expect_code(0);
    }
    file.assert_finished();
}
