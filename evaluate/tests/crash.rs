//! `kill -9` at any moment and the same command again: the bytes of an undisturbed run. Signals
//! stop cleanly, and two runs do not write one folder.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Fixture, Generated as _, Run, Running, model, wait_until};

/// Six images in batches of four, and what an undisturbed run makes of them.
struct Case {
    fixture: Fixture,
    expected: BTreeMap<String, Vec<u8>>,
}

impl Case {
    fn new() -> Self {
        let fixture = Fixture::new(&["a fox", "a mill"]);
        let mut case = Self { fixture, expected: BTreeMap::new() };
        Run::of(&mut case.command()).expect_generated(6, 6);
        case.expected = case.fixture.files("out");
        assert_eq!(case.expected.len(), 8, "six images, the manifest and the settings");
        case.clear();
        case
    }

    fn command(&self) -> Command {
        let more = ["--seeds", "3", "--batch-size", "4"];
        self.fixture.generate(&[&model("sd")], &more)
    }

    fn faulty(&self, fault: &str) -> Command {
        let mut command = self.command();
        command.env("RUNKIT_FAULT", fault);
        command
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }

    /// What stands under a final name is the whole file.
    #[track_caller]
    fn assert_whole_files(&self) {
        if self.fixture.path("out").exists() {
            for (name, bytes) in self.fixture.files("out") {
                if !name.ends_with(".runkit-tmp") {
                    assert!(self.expected[&name] == bytes, "{name} is not whole");
                }
            }
        }
    }

    #[track_caller]
    fn assert_finished(&self) {
        let found = self.fixture.files("out");
        assert_eq!(found.keys().collect::<Vec<_>>(), self.expected.keys().collect::<Vec<_>>());
        for (name, bytes) in found {
            assert!(self.expected[&name] == bytes, "{name} has other bytes than undisturbed");
        }
    }
}

#[test]
fn killed_at_every_file_the_bytes_are_the_same() {
    let case = Case::new();
    for point in ["open", "rename"] {
        let mut passages = 0;
        loop {
            let run = Run::of(&mut case.faulty(&format!("{point}:{}", passages + 1)));
            case.assert_whole_files();
            if !run.was_killed() {
                run.expect_generated(6, 6);
                break;
            }
            passages += 1;
            Run::of(&mut case.command()).expect_code(0);
            case.assert_finished();
            case.clear();
        }
        case.assert_finished();
        case.clear();
        assert_eq!(passages, 8, "{point}");
    }
}

#[test]
fn a_run_that_dies_after_each_file_comes_to_its_end() {
    let case = Case::new();
    let mut deaths = 0;
    while Run::of(&mut case.faulty("marker:1")).was_killed() {
        deaths += 1;
        case.assert_whole_files();
        assert!(deaths < 12, "no progress between one kill and the next");
    }
    assert_eq!(deaths, 8);
    case.assert_finished();
}

#[test]
fn an_error_of_the_disk_is_reported_and_the_rerun_finishes() {
    let case = Case::new();
    for (fault, reason) in [
        ("open:1:EACCES", "ermission"),
        ("write:4:ENOSPC", "no space left"),
        ("sync:5:EIO", "nput/output"),
    ] {
        Run::of(&mut case.faulty(fault)).expect_error(&[reason, "/out/"]);
        case.assert_whole_files();
        Run::of(&mut case.command()).expect_code(0);
        case.assert_finished();
        case.clear();
    }
}

#[test]
fn signals_stop_and_the_rerun_resumes() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let fixture = Fixture::new(&["a fox", "a mill"]);
        // An endless run: the second batch takes the program much longer than the test.
        let long = ["--seeds", "400", "--steps", "500", "--batch-size", "1"];
        let run = Running::start(&mut fixture.generate(&[&model("sd")], &long));
        wait_until("it works", || fixture.path("out/manifest.json").exists());
        run.signal(signal);
        let asked = Instant::now();
        let run = run.finish().expect_code(code);
        assert!(asked.elapsed() < Duration::from_secs(30));
        assert!(run.stderr.contains("run the same command to resume"), "{run:#?}");
        assert!(fixture.files("out").keys().all(|name| !name.ends_with(".runkit-tmp")));
    }
}

/// A call of the UNet that takes much longer is not waited for.
#[test]
fn signals_are_seen_within_a_batch() {
    let fixture = Fixture::new(&["a fox"]);
    let long = ["--seeds", "64", "--batch-size", "64", "--size", "128x128", "--steps", "20"];
    let run = Running::start(&mut fixture.generate(&[&model("sd")], &long));
    wait_until("it works", || fixture.path("out/config.toml").exists());
    std::thread::sleep(Duration::from_millis(500));
    run.signal("TERM");
    let asked = Instant::now();
    let run = run.finish().expect_code(143);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(run.stderr.contains("run the same command to resume"), "{run:#?}");
    // What is there already costs nothing; the rest is generated as if nothing had been.
    Run::of(
        &mut fixture
            .generate(&[&model("sd")], &["--seeds", "1", "--size", "128x128", "--steps", "20"]),
    )
    .expect_generated(1, 1);
}

#[test]
fn a_second_run_learns_who_holds_the_folder() {
    let fixture = Fixture::new(&["a fox"]);
    let long = ["--seeds", "400", "--steps", "500", "--batch-size", "1"];
    let first = Running::start(&mut fixture.generate(&[&model("sd")], &long));
    wait_until("it works", || fixture.path("out/manifest.json").exists());
    let process = format!("process {}", first.id());
    let run = Run::of(&mut fixture.generate(&[&model("sd")], &long));
    run.expect_error(&["is held by", &process, "hint: wait for it"]);
}
