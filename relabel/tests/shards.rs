//! Several processes on one output: shards make the bytes of a single run, a refusal names who is
//! at work.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::{Fixture, Run, Running, wait_until};

const OUT: &str = "shared/labels.parquet";
const PARTS: &str = "shared/labels.parquet.work/parts";

/// A fixture of three files, and the bytes one process alone makes of them.
fn fixture() -> (Fixture, std::path::PathBuf, Vec<u8>) {
    let fixture = Fixture::with_sample(12);
    let scorers = fixture.two_scorers();
    Run::of(&mut fixture.score(&scorers, "alone/labels.parquet", &[])).expect_code(0);
    let labels = fixture.bytes("alone/labels.parquet");
    (fixture, scorers, labels)
}

#[test]
fn shards_in_any_order_make_the_bytes_of_one_run() {
    let (fixture, scorers, alone) = fixture();
    for (shard, missing) in [("2/3", "2 units"), ("0/3", "1 unit")] {
        let run = Run::of(&mut fixture.score(&scorers, OUT, &["--shard", shard])).expect_code(0);
        let says = format!("shard {shard} done; others have {missing} left");
        assert!(run.stdout.contains(&says), "{run:#?}");
        assert!(run.stdout.contains(fixture.path(OUT).to_str().unwrap()), "{run:#?}");
        assert!(!fixture.path(OUT).exists());
    }
    let run = Run::of(&mut fixture.score(&scorers, OUT, &["--shard", "1/3"])).expect_code(0);
    assert!(run.stdout.starts_with("12 pairs"), "the last shard merges: {run:#?}");
    assert!(fixture.bytes(OUT) == alone, "other bytes than one run");
    assert_eq!(fixture.names("shared"), ["labels.config.toml", "labels.parquet"]);

    // Every shard finds the work done, and so does one run for all.
    for more in [&["--shard", "0/3"][..], &[]] {
        let run = Run::of(&mut fixture.score(&scorers, OUT, more)).expect_code(0);
        assert!(run.stderr.contains("already complete"), "{run:#?}");
    }
    assert!(fixture.bytes(OUT) == alone);
}

#[test]
fn shards_at_the_same_time_make_the_bytes_of_one_run() {
    let (fixture, scorers, alone) = fixture();
    for _round in 0..3 {
        let shards = ["0/3", "1/3", "2/3"]
            .map(|shard| Running::start(&mut fixture.score(&scorers, OUT, &["--shard", shard])));
        let runs = shards.map(|shard| shard.finish().expect_code(0));
        assert!(runs.iter().any(|run| run.stdout.starts_with("12 pairs")), "{runs:#?}");
        assert!(fixture.bytes(OUT) == alone, "other bytes than one run");
        assert_eq!(fixture.names("shared"), ["labels.config.toml", "labels.parquet"]);
        std::fs::remove_dir_all(fixture.path("shared")).unwrap();
    }
}

#[test]
fn a_killed_shard_is_finished_by_its_rerun_or_by_one_run_for_all() {
    let (fixture, scorers, alone) = fixture();
    for rest in [&[&["--shard", "0/2"][..], &["--shard", "1/2"]][..], &[&[]]] {
        // Shard 0 of 2 has the first and the third file; it dies after the first, behind the manifest,
        // the checksums, the plan and the features of the captions.
        let mut command = fixture.score(&scorers, OUT, &["--shard", "0/2"]);
        assert!(Run::of(command.env("RUNKIT_FAULT", "rename:5")).was_killed());
        assert_eq!(fixture.names(PARTS), ["part-00000-of-00003.parquet"]);
        for more in rest {
            Run::of(&mut fixture.score(&scorers, OUT, more)).expect_code(0);
        }
        assert!(fixture.bytes(OUT) == alone, "other bytes than one run");
        std::fs::remove_dir_all(fixture.path("shared")).unwrap();
    }
}

#[test]
fn the_environment_of_a_launcher_names_the_shard() {
    let (fixture, scorers, alone) = fixture();
    for rank in ["1", "0"] {
        let mut command = fixture.score(&scorers, OUT, &[]);
        command.env("RANK", rank).env("WORLD_SIZE", "2");
        Run::of(&mut command).expect_code(0);
    }
    assert!(fixture.bytes(OUT) == alone, "other bytes than one run");

    let mut command = fixture.score(&scorers, "other.parquet", &[]);
    Run::of(command.env("RANK", "0")).expect_usage_error(&["WORLD_SIZE"]);
    let fresh = &["--shard", "0/2", "--fresh"];
    let run = Run::of(&mut fixture.score(&scorers, OUT, fresh));
    run.expect_usage_error(&["--fresh", "the others"]);
    assert!(fixture.bytes(OUT) == alone);
    for (shard, says) in [("3/3", "zero-based"), ("x", "INDEX/COUNT")] {
        let run = Run::of(&mut fixture.score(&scorers, OUT, &["--shard", shard])).expect_code(2);
        assert!(run.stderr.contains(says), "{run:#?}");
    }
}

#[test]
fn shards_of_another_run_are_refused() {
    let (fixture, scorers, _) = fixture();
    Run::of(&mut fixture.score(&scorers, OUT, &["--shard", "0/3"])).expect_code(0);
    let other = &["--shard", "1/3", "--batch-size", "2"];
    Run::of(&mut fixture.score(&scorers, OUT, other)).expect_error(&["batch_size", "another run"]);
}

#[test]
fn a_refused_second_run_names_the_holder() {
    let fixture = Fixture::with_sample(300);
    let scorers = fixture.two_scorers();
    let first = Running::start(&mut fixture.score(&scorers, OUT, &["--batch-size", "2"]));
    let begun = fixture.path("shared/labels.parquet.work/manifest.json");
    wait_until("the first run works", || begun.exists());
    first.signal("STOP");
    let holder = format!("process {}", first.id());
    Run::of(&mut fixture.score(&scorers, OUT, &[])).expect_error(&[
        &holder,
        "is held by",
        "labels.parquet.lock",
        "hint: ",
    ]);
    let shard = &["--shard", "0/3"];
    Run::of(&mut fixture.score(&scorers, OUT, shard)).expect_error(&[&holder, "is held by"]);
    assert!(first.kill().was_killed(), "the first run was still at work");

    // The lock of a killed run is free.
    let mut next = fixture.score(&scorers, OUT, &["--batch-size", "2", "--limit", "3"]);
    Run::of(&mut next).expect_error(&["another run", "limit"]);
    let run = ["--batch-size", "2", "--limit", "3", "--fresh"];
    Run::of(&mut fixture.score(&scorers, OUT, &run)).expect_code(0);
}
