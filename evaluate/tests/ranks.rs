//! Several processes on one evaluation: shards and the ranks of a launcher make the bytes of one
//! process, also if one is killed, and another command is kept out.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use common::{Fixture, Run, Running, evaluate, model, wait_until};
use serde_json::{Value, json};
use testkit::Ranks;

const SCORERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini/paper.toml");
const PROMPTS: [&str; 4] = ["a fox", "a mill", "a hill", "a lake"];
/// A set of its own. One text is in both, so the bytes of its images are equal.
const MORE_PROMPTS: &[u8] = b"a cat\na fox\n";
/// Two models, six prompts, two images each.
const IMAGES: usize = 24;

/// Far above what ranks take.
const LIMIT: Duration = Duration::from_secs(120);

/// A folder for one evaluation, `out`.
struct Case {
    fixture: Fixture,
}

impl Case {
    fn new() -> Self {
        let fixture = Fixture::new(&PROMPTS);
        fixture.put("more.txt", MORE_PROMPTS);
        Self { fixture }
    }

    /// `evaluate run`: batches of two images, scored by four.
    fn run(&self, more: &[&str]) -> Command {
        let mut command = self.generate_as("run", more);
        command.args(["--scorers", SCORERS, "--score-batch-size", "4"]);
        command
    }

    fn generate(&self, more: &[&str]) -> Command {
        self.generate_as("generate", more)
    }

    fn generate_as(&self, name: &str, more: &[&str]) -> Command {
        let mut command = evaluate([name, "--device", "cpu", "--seeds", "2", "--batch-size", "2"]);
        command.args(["--model", &model("sd"), "--model", &model("sd").replacen("sd=", "b=", 1)]);
        command.arg("--prompts").args(self.prompts());
        command.arg("--out").arg(self.fixture.path("out")).args(more);
        if !more.contains(&"--steps") {
            command.args(["--steps", "2"]);
        }
        command
    }

    fn score(&self, more: &[&str]) -> Command {
        let mut command = evaluate(["score", "--device", "cpu", "--scorers", SCORERS]);
        command.arg("--prompts").args(self.prompts()).arg("--out").arg(self.fixture.path("out"));
        command.args(["--score-batch-size", "4"]).args(more);
        command
    }

    fn prompts(&self) -> [PathBuf; 2] {
        ["prompts.txt", "more.txt"].map(|name| self.fixture.path(name))
    }

    /// Everything that a run makes but the settings, which name the folder, and the store of
    /// scores, whose files say who computed them.
    fn results(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.fixture.files("out");
        files.retain(|name, _| name != "config.toml" && !name.starts_with("score-store/"));
        files
    }

    #[track_caller]
    fn assert_complete(&self, expected: &BTreeMap<String, Vec<u8>>) {
        let found = self.results();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, bytes) in found {
            assert!(expected[&name] == bytes, "{name} has other bytes than of one process");
        }
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }

    /// The files of the store of scores.
    fn store(&self) -> Vec<String> {
        self.fixture.names("out/score-store")
    }
}

/// What one process makes.
static EXPECTED: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let case = Case::new();
    Run::of(&mut case.run(&[])).expect_code(0);
    let files = case.results();
    for name in ["scores.parquet", "winrates.parquet", "tables.md", "report.html", "manifest.json"]
    {
        assert!(files.contains_key(name), "{name}");
    }
    assert_eq!(files.keys().filter(|name| name.starts_with("images/")).count(), IMAGES);
    files
});

fn summary(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn shards_in_any_order_make_the_bytes_of_one_process() {
    for order in [["0/2", "1/2"], ["1/2", "0/2"]] {
        let case = Case::new();
        let first = Run::of(&mut case.run(&["--shard", order[0], "--json"])).expect_code(0);
        let found = summary(&first);
        let (scored, missing) = (&found["scored"], &found["missing"]);
        assert_eq!(
            scored.as_u64().unwrap() + missing.as_u64().unwrap(),
            IMAGES as u64,
            "{first:#?}"
        );
        assert!(*scored != json!(0) && *missing != json!(0), "{first:#?}");
        assert!(!case.fixture.path("out/scores.parquet").exists());
        let second = Run::of(&mut case.run(&["--shard", order[1]])).expect_code(0);
        assert!(second.stdout.contains("b vs sd"), "the last shard reports: {second:#?}");
        case.assert_complete(&EXPECTED);
        // Every shard finds the work done, and so does one process.
        assert!(case.store().iter().any(|name| name.contains(".0-of-2.")), "{:?}", case.store());
        for more in [&["--shard", order[0]][..], &[]] {
            let again = Run::of(&mut case.run(more)).expect_code(0);
            assert_eq!(again.stderr.matches("already complete").count(), 2, "{again:#?}");
            case.assert_complete(&EXPECTED);
        }
        assert_eq!(case.store().len(), 4, "one process puts the files of a metric together");
    }
}

#[test]
fn shards_at_the_same_time_make_the_bytes_of_one_process() {
    let case = Case::new();
    for _round in 0..2 {
        let shards =
            ["0/3", "1/3", "2/3"].map(|shard| Running::start(&mut case.run(&["--shard", shard])));
        let runs = shards.map(|shard| shard.finish().expect_code(0));
        assert!(runs.iter().any(|run| run.stdout.contains("b vs sd")), "{runs:#?}");
        case.assert_complete(&EXPECTED);
        case.clear();
    }
}

#[test]
fn a_killed_shard_is_finished_by_any_later_start() {
    let case = Case::new();
    let mut kills = 0;
    for (fault, rest) in [
        ("open:1", &[&["--shard", "0/2"][..], &["--shard", "1/2"]][..]),
        ("marker:2", &[&["--shard", "1/2"], &["--shard", "0/2"]]),
        ("rename:6", &[&["--shard", "0/2"], &["--shard", "1/2"]]),
        ("rename:9", &[&[]]),
        // With other shards, what is there is skipped.
        ("rename:11", &[&["--shard", "0/3"], &["--shard", "1/3"], &["--shard", "2/3"]]),
    ] {
        let mut command = case.run(&["--shard", "0/2"]);
        kills += usize::from(Run::of(command.env("RUNKIT_FAULT", fault)).was_killed());
        for more in rest {
            Run::of(&mut case.run(more)).expect_code(0);
        }
        case.assert_complete(&EXPECTED);
        case.clear();
    }
    assert_eq!(kills, 5);
    // The last shard dies while it writes the results.
    Run::of(&mut case.run(&["--shard", "0/2"])).expect_code(0);
    let mut command = case.run(&["--shard", "1/2"]);
    let killed = Run::of(command.env("RUNKIT_FAULT", "rename:15"));
    assert!(killed.was_killed(), "{killed:#?}");
    Run::of(&mut case.run(&["--shard", "0/2"])).expect_code(0);
    case.assert_complete(&EXPECTED);
}

#[test]
fn generate_and_score_are_divided_each_by_itself() {
    let case = Case::new();
    Run::of(&mut case.generate(&[])).expect_code(0);
    let images = case.fixture.files("out");
    Run::of(&mut case.score(&[])).expect_code(0);
    let scores = case.fixture.bytes("out/scores.parquet");
    case.clear();

    let first = Run::of(&mut case.generate(&["--shard", "0/2"])).expect_code(0);
    assert!(first.stdout.starts_with("shard done, 12 images new; 12 of 24 images"), "{first:#?}");
    // A launcher without a store names the shard.
    let mut command = case.generate(&[]);
    let second = Run::of(command.env("RANK", "1").env("WORLD_SIZE", "2")).expect_code(0);
    assert!(second.stdout.starts_with("24 images, 12 of them new"), "{second:#?}");
    assert!(case.fixture.files("out") == images);

    let first = Run::of(&mut case.score(&["--shard", "1/2"])).expect_code(0);
    assert!(first.stdout.starts_with("shard done, 12 images scored; 12 images"), "{first:#?}");
    let second = Run::of(&mut case.score(&["--shard", "0/2"])).expect_code(0);
    assert!(second.stdout.starts_with("24 images, "), "{second:#?}");
    assert!(case.fixture.bytes("out/scores.parquet") == scores);
}

#[test]
fn another_command_is_kept_out_while_shards_are_at_work() {
    let case = Case::new();
    let long = ["--shard", "0/2", "--steps", "900", "--size", "64x64"];
    let first = Running::start(&mut case.generate(&long));
    wait_until("it works", || case.fixture.path("out/config.toml").exists());
    let process = format!("process {}", first.id());
    Run::of(&mut case.generate(&long[2..])).expect_error(&["is held by", &process]);
    Run::of(&mut case.generate(&long)).expect_error(&[".shard-0-of-2.lock", &process]);
    let other = [&long[2..], &["--shard", "1/2", "--guidance", "2"]].concat();
    Run::of(&mut case.generate(&other))
        .expect_error(&["another recipe", "guidance: was 7.5, now 2"]);
    Run::of(&mut case.score(&["--shard", "1/2"]))
        .expect_error(&["another command", "command: was \"generate\", now \"score\""]);
    let mut second =
        Running::start(&mut case.generate(&[&["--shard", "1/2"], &long[2..]].concat()));
    wait_until("the other shard works", || {
        case.fixture.path("out/.shard-1-of-2.lock").exists() || second.has_ended()
    });
    assert!(!second.has_ended());
    // A signal stops one shard.
    second.signal("TERM");
    second.finish().expect_code(143);
    assert!(first.kill().was_killed(), "the first shard was still at work");
    // The folder is free; its images are those of the first command.
    Run::of(&mut case.run(&["--shard", "1/2"])).expect_error(&["steps: was 900, now 2"]);
    Run::of(&mut case.generate(&["--fresh", "--shard", "1/2"]))
        .expect_usage_error(&["--fresh", "hint: remove "]);
    Run::of(&mut case.generate(&["--fresh"])).expect_code(0);
}

/// The ranks of a world with a store, to their end.
fn world(size: usize, command: impl Fn(usize) -> Command) -> Vec<Run> {
    Ranks::start(size, command).finish_within(LIMIT)
}

#[test]
fn ranks_make_the_bytes_of_one_process_and_rank_0_reports() {
    let case = Case::new();
    for size in [2, 3] {
        let runs = world(size, |_| case.run(&["--json"]));
        let mut runs = runs.into_iter().map(|run| run.expect_code(0));
        let first = summary(&runs.next().unwrap());
        assert_eq!((&first["images"], &first["scored"]), (&json!(IMAGES), &json!(IMAGES)));
        for run in runs {
            assert_eq!(run.stdout, "", "only rank 0 reports: {run:#?}");
        }
        case.assert_complete(&EXPECTED);
        // Nothing is left to do, for ranks nor for one process.
        let again = world(size, |_| case.run(&["--json"]));
        assert_eq!(summary(&again[0])["scored"], json!(0), "{again:#?}");
        let alone = Run::of(&mut case.run(&[])).expect_code(0);
        assert_eq!(alone.stderr.matches("already complete").count(), 2, "{alone:#?}");
        case.assert_complete(&EXPECTED);
        case.clear();
    }
}

#[test]
fn a_rank_that_is_killed_is_named_and_a_restarted_world_does_what_is_missing() {
    let case = Case::new();
    for (victim, fault) in [(1, "rename:2"), (0, "rename:5"), (1, "open:1")] {
        let runs = world(2, |rank| {
            let mut command = case.run(&[]);
            if rank == victim {
                command.env("RUNKIT_FAULT", fault);
            }
            command
        });
        assert!(runs[victim].was_killed(), "{runs:#?}");
        let other = &runs[1 - victim];
        assert_eq!(other.code(), Some(1), "{runs:#?}");
        assert!(other.stderr.contains("error: "), "{runs:#?}");
        if victim == 1 {
            assert!(other.stderr.contains("rank 1"), "{runs:#?}");
        }
        // A rank that is killed at its first file can end the run before there is any image.
        let begun = case.fixture.path("out/images").is_dir();
        let mut there = if begun { case.fixture.files("out/images") } else { BTreeMap::new() };
        there.retain(|name, _| !name.ends_with(".runkit-tmp"));
        assert!(there.iter().all(|(name, bytes)| EXPECTED[&format!("images/{name}")] == *bytes));
        for run in world(2, |_| case.run(&[])) {
            run.expect_code(0);
        }
        case.assert_complete(&EXPECTED);
        case.clear();
    }
}

#[test]
fn a_signal_at_one_rank_stops_all() {
    for (victim, signal, code) in [(1, "TERM", 143), (0, "INT", 130)] {
        let case = Case::new();
        let long = ["--steps", "900", "--size", "64x64"];
        let mut ranks = Ranks::start(2, |_| case.run(&long));
        wait_until("they work", || case.fixture.path("out/config.toml").exists());
        ranks.rank(victim).signal(signal);
        let runs = ranks.finish_within(LIMIT);
        assert!(runs[0].stderr.contains("run the same command to resume"), "{runs:#?}");
        runs.into_iter().for_each(|run| drop(run.expect_code(code)));
    }
}

#[test]
fn an_error_of_one_rank_ends_all_and_is_said() {
    let case = Case::new();
    let runs = world(2, |rank| {
        let mut command = case.run(&[]);
        // The second file of rank 1 does not fit.
        if rank == 1 {
            command.env("RUNKIT_FAULT", "write:2:ENOSPC");
        }
        command
    });
    for run in &runs {
        assert_eq!(run.code(), Some(1), "{runs:#?}");
        assert!(run.stderr.contains("no space left"), "{runs:#?}");
    }
    assert!(runs[0].stderr.contains("rank 1"), "{runs:#?}");
    let fresh = world(2, |_| case.run(&["--fresh"]));
    fresh.into_iter().for_each(|run| drop(run.expect_usage_error(&["--fresh", "hint: remove "])));
    // Commands that do not divide their work are of rank 0.
    world(2, |_| case.run(&[])).into_iter().for_each(|run| drop(run.expect_code(0)));
    let scores = case.fixture.path("out/scores.parquet");
    let runs = world(2, |_| evaluate(["tables", "--scores", scores.to_str().unwrap()]));
    assert!(runs[0].stdout.contains("b vs sd") && runs[1].stdout.is_empty(), "{runs:#?}");
}

/// torchrun, which comes with PyTorch.
fn torchrun() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let mut programs = std::env::split_paths(&folders).map(|folder| folder.join("torchrun"));
    programs.find(|program| program.is_file())
}

/// With torchrun's agent, which starts a dead world again.
#[test]
fn torchrun_starts_a_dead_world_again() {
    let Some(torchrun) = torchrun() else {
        return println!("there is no torchrun on this machine");
    };
    let case = Case::new();
    // Each start of rank 1 dies at its fifth file, until fewer are missing.
    let command = case.run(&[]);
    let mut launch = Command::new(torchrun);
    launch.args(["--standalone", "--nproc-per-node", "2", "--max-restarts", "9", "--no-python"]);
    launch.args(["sh", "-c", "[ $RANK = 1 ] && export RUNKIT_FAULT=rename:5; exec \"$@\"", "sh"]);
    launch.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => launch.env(name, value),
            None => launch.env_remove(name),
        };
    }
    Run::of(&mut launch).expect_code(0);
    case.assert_complete(&EXPECTED);
}
