//! A stop signal is seen within two seconds in every phase of a run, and costs nothing that is
//! done.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Fixture, MINI, Run, Running, pairs_without_images, relabel, scorer_entry, wait_until,
};

const OUT: &str = "out/labels.parquet";
/// What is promised.
const SOON: Duration = Duration::from_secs(2);

/// The same command with its log in a file.
fn logged(command: &Command, log: &Path) -> Command {
    let mut shell = relabel([""; 0]);
    let mut logged = Command::new("sh");
    logged.arg("-c").arg("exec \"$0\" \"$@\" 2>\"$LOG\"").env("LOG", log);
    logged.arg(shell.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => logged.env(name, value),
            None => logged.env_remove(name),
        };
    }
    shell = logged;
    shell
}

/// Starts the command, waits until its log has `phase`, asks for a stop, and returns the log.
#[track_caller]
fn stopped_in(fixture: &Fixture, command: &Command, phase: &str) -> String {
    let log = fixture.put("log", b"");
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut run = Running::start(&mut logged(command, &log));
    wait_until(phase, || read().contains(phase));
    assert!(!run.has_ended(), "it was over too soon: {}", read());
    run.signal("TERM");
    let asked = Instant::now();
    let run = run.finish();
    assert!(asked.elapsed() < SOON, "{:?} after the signal\n{}", asked.elapsed(), read());
    let log = read();
    assert_eq!(run.code(), Some(143), "{run:#?}\n{log}");
    assert!(log.contains("run the same command to resume"), "{log}");
    log
}

/// So many pairs without images in files of 100,000: each row fails, and no network is asked.
fn many_pairs(rows: usize) -> Fixture {
    let fixture = Fixture::empty();
    for first in (0..rows).step_by(100_000) {
        let name = format!("pairs/{:04}.parquet", first / 100_000);
        fixture.put(&name, &pairs_without_images(first, 100_000.min(rows - first)));
    }
    fixture
}

#[test]
fn a_stop_while_planning_comes_before_anything_is_loaded() {
    let fixture = many_pairs(600_000);
    let scorers = fixture.two_scorers();
    let log = stopped_in(&fixture, &fixture.score(&scorers, OUT, &[]), "planning");
    assert!(!log.contains("scoring"), "{log}");
    assert_eq!(fixture.names("out"), [""; 0]);

    let mut check = relabel(["check", "--pairs"]);
    check.arg(fixture.path("pairs")).arg("--scorers").arg(&scorers);
    check.arg("--out").arg(fixture.path(OUT));
    stopped_in(&fixture, &check, "planning");
    assert_eq!(fixture.names("out"), [""; 0]);
}

#[test]
fn a_stop_while_merging_leaves_the_parts() {
    let fixture = many_pairs(300_000);
    let scorers = fixture.two_scorers();
    // The manifest, the checksums, the plan and 97 parts of each file are there, the labels are not.
    let mut killed = fixture.score(&scorers, OUT, &[]);
    assert!(Run::of(killed.env("RUNKIT_FAULT", "rename:294")).was_killed());
    stopped_in(&fixture, &fixture.score(&scorers, OUT, &[]), "merging");
    assert_eq!(fixture.names("out"), ["labels.parquet.work"], "no half a file");
    assert_eq!(fixture.names("out/labels.parquet.work/parts").len(), 291);
    Run::of(&mut fixture.score(&scorers, OUT, &["--max-failed", "300000"])).expect_code(0);
    assert_eq!(fixture.labels(OUT).len(), 300_000);
}

#[test]
fn a_stop_while_checkpoints_are_hashed_is_seen() {
    let fixture = Fixture::with_sample(3);
    fixture.copy(Path::new(&format!("{MINI}/pickscore")), "model");
    let entry = scorer_entry("pickscore");
    let entry =
        entry.replace(&format!("{MINI}/pickscore"), fixture.path("model").to_str().unwrap());
    // As long as the largest published checkpoint twice over; a hole in the disk takes no room.
    let weights =
        std::fs::File::options().write(true).open(fixture.path("model/model.safetensors"));
    weights.unwrap().set_len(24 << 30).unwrap();
    let scorers = fixture.scorers("scorers.toml", &[entry]);
    let log =
        stopped_in(&fixture, &fixture.score(&scorers, OUT, &["-v"]), "checksums of the weights");
    assert!(!log.contains("loading"), "{log}");
    assert_eq!(fixture.names("out"), [""; 0]);
}

#[test]
fn a_stop_while_networks_are_loaded_is_seen() {
    let fixture = Fixture::with_sample(3);
    let entry = scorer_entry("pickscore");
    let entries: Vec<String> = (0..60)
        .map(|number| {
            let folder =
                fixture.copy(Path::new(&format!("{MINI}/pickscore")), &format!("m{number}"));
            let entry = entry.replace(&format!("{MINI}/pickscore"), folder.to_str().unwrap());
            entry.replace("name = \"pickscore\"", &format!("name = \"p{number}\""))
        })
        .collect();
    let scorers = fixture.scorers("scorers.toml", &entries);
    let log = stopped_in(&fixture, &fixture.score(&scorers, OUT, &["-v"]), "loading scorer");
    let loaded = log.lines().filter(|line| line.contains("loading scorer")).count();
    assert!(loaded < 60, "all networks were loaded");
    assert_eq!(fixture.names("out"), [""; 0]);
}
