//! `kill -9` at any moment and the same command again, SIGTERM, several resumes, a damaged
//! checkpoint, a full disk: on the CPU the weights, the metrics and all else are those of the run
//! that was never stopped, bit for bit. Another run's folder is refused by name.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Fixture, Run, Running, pipeline, wait_until};
use nn::weights::{Weights, write_safetensors};
use serde_json::{Map, Value};

/// Eleven pairs, two held out for the probe: an epoch of nine ends in the third step of four, and
/// in the middle of a micro-batch.
const PAIRS: usize = 11;
/// The flags that the cases of this file share.
const FLAGS: [&str; 6] = ["--record-steps", "2", "--sample-every", "5", "--caption-dropout", "0.3"];

/// Inputs, and what an undisturbed run makes of them.
struct Case {
    fixture: Fixture,
    files: BTreeMap<String, Vec<u8>>,
    metrics: Vec<Map<String, Value>>,
    duration: Duration,
}

impl Case {
    fn new(more: &[&str]) -> Self {
        let fixture = Fixture::new(PAIRS);
        let flags = [&FLAGS[..], more].concat();
        let started = Instant::now();
        Run::of(&mut fixture.run("whole", &flags)).expect_code(0);
        let duration = started.elapsed();
        let (files, metrics) = (comparable(&fixture, "whole"), fixture.metrics("whole"));
        assert!(files.len() > 20 && metrics.len() == 11, "{:?}", files.keys());
        Self { fixture, files, metrics, duration }
    }

    fn command(&self, more: &[&str]) -> Command {
        self.fixture.run("out", &[&FLAGS[..], more].concat())
    }

    fn faulty(&self, fault: &str, more: &[&str]) -> Command {
        let mut command = self.command(more);
        command.env("RUNKIT_FAULT", fault);
        command
    }

    /// The run is done, with the undisturbed run's bytes and nothing lying about.
    #[track_caller]
    fn assert_finished(&self) {
        let found = comparable(&self.fixture, "out");
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&self.files));
        for (name, bytes) in &self.files {
            assert!(found.get(name) == Some(bytes), "{name} differs");
        }
        assert_eq!(self.fixture.metrics("out"), self.metrics);
    }

    fn clear(&self) {
        std::fs::remove_dir_all(self.fixture.path("out")).unwrap();
    }
}

/// A run's files without those that a clock or the number of starts is in: metrics are compared
/// line by line, TensorBoard has a file for each start, and the settings name the folder.
fn comparable(fixture: &Fixture, out: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = fixture.files(out);
    files.retain(|name, _| {
        !name.starts_with("tensorboard/") && name != "metrics.jsonl" && name != "config.toml"
    });
    files
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
fn killed_at_any_time_and_again_after_a_resume_the_bytes_are_the_same() {
    let case = Case::new(&[]);
    let mut numbers = Numbers(4);
    let mut killed = 0;
    for _round in 0..6 {
        for _attempt in 0..3 {
            let run = Running::start(&mut case.command(&[]));
            std::thread::sleep(numbers.part_of(case.duration));
            killed += usize::from(run.kill().was_killed());
        }
        Run::of(&mut case.command(&[])).expect_code(0);
        case.assert_finished();
        case.clear();
    }
    assert!(killed >= 6, "only {killed} of 18 runs were killed before their end");
}

#[test]
fn killed_at_every_durable_file_the_bytes_are_the_same() {
    let case = Case::new(&[]);
    // Every marker is a file that appeared; every checkpoint and every line of metrics besides.
    for point in ["open", "rename", "marker", "metrics", "checkpoint"] {
        let mut passages = 0;
        loop {
            let run = Run::of(&mut case.faulty(&format!("{point}:{}", passages + 1), &[]));
            if !run.was_killed() {
                run.expect_code(0);
                break;
            }
            // Not every one of some sixty files.
            passages += if matches!(point, "metrics" | "checkpoint") { 2 } else { 9 };
            Run::of(&mut case.command(&[])).expect_code(0);
            case.assert_finished();
            case.clear();
        }
        case.assert_finished();
        case.clear();
        let expected = match point {
            "metrics" => 10..=12,
            "checkpoint" => 4..=5,
            _ => 40..=90,
        };
        assert!(expected.contains(&passages), "{point}: {passages} passages");
    }
}

#[test]
fn whatever_a_run_is_made_of_it_comes_to_the_same_end() {
    let cached = Fixture::new(PAIRS);
    let cache = cached.path("latents").display().to_string();
    let mut command = common::train(["cache", "--hflip", "--model"]);
    command.arg(pipeline("sd")).arg("--pairs").arg(cached.path("pairs")).args(["--out", &cache]);
    Run::of(&mut command).expect_code(0);
    let sdxl = pipeline("sdxl").display().to_string();
    let of_pairs = ["--model", &sdxl, "--dtype", "bf16", "--optimizer", "adafactor"];
    let more = ["--grad-checkpointing", "--hflip", "--random-crop"];
    let of_pairs = [&of_pairs[..], &more, &["--preference", "random-scorer"]].concat();
    let of_cache = vec!["--cache", &cache, "--hflip", "--lr-schedule", "cosine"];
    for flags in [of_pairs, of_cache] {
        let case = Case::new(&flags);
        // After the first checkpoint, in the second epoch, and after the reference moved.
        for fault in ["checkpoint:1", "metrics:6", "metrics:3"] {
            assert!(Run::of(&mut case.faulty(fault, &flags)).was_killed(), "{fault} {flags:?}");
        }
        Run::of(&mut case.command(&flags)).expect_code(0);
        case.assert_finished();
    }
}

#[test]
fn a_run_that_dies_after_every_checkpoint_comes_to_the_same_end() {
    let case = Case::new(&[]);
    let mut deaths = 0;
    while Run::of(&mut case.faulty("checkpoint:1", &[])).was_killed() {
        deaths += 1;
        assert!(deaths < 10, "no progress between one kill and the next");
    }
    assert_eq!(deaths, 4, "after steps 3, 6, 9 and 10");
    case.assert_finished();
}

#[test]
fn sigterm_saves_in_the_middle_of_a_step_and_the_rerun_finishes() {
    let case = Case::new(&["--micro-batch", "1"]);
    let more = ["--micro-batch", "1"];
    for steps in [1, 2, 5] {
        let run = Running::start(&mut case.command(&more));
        let metrics = case.fixture.path("out/metrics.jsonl");
        let lines = || std::fs::read_to_string(&metrics).unwrap_or_default().lines().count();
        wait_until("it trains", || lines() > steps);
        run.signal("TERM");
        let asked = Instant::now();
        let run = run.finish();
        assert!(asked.elapsed() < Duration::from_secs(30));
        // Asked near the end it may as well be done.
        if run.status.code() != Some(0) {
            let run = run.expect_code(143);
            assert!(run.stderr.contains("run the same command to resume"), "{run:#?}");
            let saved = case.fixture.names("out/checkpoints");
            assert!(!saved.is_empty(), "nothing was saved");
            for checkpoint in saved {
                let folder = format!("out/checkpoints/{checkpoint}");
                assert!(case.fixture.names(&folder).contains(&"DONE".to_owned()), "{checkpoint}");
            }
        }
        Run::of(&mut case.command(&more)).expect_code(0);
        // Checkpoints stand where it was stopped; the rest is the same.
        let (mut found, mut expected) = (comparable(&case.fixture, "out"), case.files.clone());
        for files in [&mut found, &mut expected] {
            files.retain(|name, _| {
                !name.starts_with("checkpoints/") || name.starts_with("checkpoints/step-000010/")
            });
        }
        assert!(found == expected, "stopped after {steps} steps");
        assert_eq!(case.fixture.metrics("out"), case.metrics);
        case.clear();
    }
}

/// Without this the tests above could pass with an optimizer that is not restored at all.
#[test]
fn a_cold_optimizer_would_give_another_result() {
    let case = Case::new(&[]);
    assert!(Run::of(&mut case.faulty("checkpoint:1", &[])).was_killed());
    let checkpoint = case.fixture.path("out/checkpoints/step-000003");
    let path = checkpoint.join("optimizer.safetensors");
    let weights = Weights::open(&path).unwrap();
    let state: Vec<_> = weights
        .names()
        .map(|name| {
            let tensor = weights.tensor(name).unwrap();
            let cold = if name.ends_with("exp_avg") { tensor.zeros_like() } else { tensor.copy() };
            (name.to_owned(), cold)
        })
        .collect();
    let warm = std::fs::read(&path).unwrap();
    write_safetensors(&path, &state).unwrap();
    assert!(std::fs::read(&path).unwrap() != warm, "the moments are zero already");
    // The mark is made to fit, so that it is the state that makes the difference.
    let marker = checkpoint.join("DONE");
    let mut records: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(&marker).unwrap()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    records["optimizer.safetensors"]["blake3"] =
        Value::String(blake3::hash(&bytes).to_hex().to_string());
    records["optimizer.safetensors"]["bytes"] = bytes.len().into();
    runkit::files::write_json_atomic(&marker, &records).unwrap();
    Run::of(&mut case.command(&[])).expect_code(0);
    let unet = "pipeline/unet/diffusion_pytorch_model.safetensors";
    assert!(comparable(&case.fixture, "out")[unet] != case.files[unet], "moments do not matter");
    assert_eq!(case.fixture.metrics("out")[..4], case.metrics[..4]);
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning() {
    let case = Case::new(&[]);
    for file in ["unet/diffusion_pytorch_model.safetensors", "state.json", "DONE"] {
        assert!(Run::of(&mut case.faulty("checkpoint:2", &[])).was_killed());
        let path = format!("out/checkpoints/step-000006/{file}");
        let bytes = std::fs::read(case.fixture.path(&path)).unwrap();
        case.fixture.put(&path, &bytes[..bytes.len() / 2]);
        let run = Run::of(&mut case.command(&[])).expect_code(0);
        for words in ["step-000006", "using the checkpoint before it", "step-000003"] {
            assert!(run.stderr.contains(words), "{file}: {words:?} is not in {run:#?}");
        }
        case.assert_finished();
        case.clear();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let case = Case::new(&[]);
    // In the probe, in a checkpoint's weights, before its mark, and between two.
    let faults = ["write:40:ENOSPC", "write:900:ENOSPC", "sync:20:EIO", "rename:24:ENOSPC"];
    let mut spoilt = 0;
    for fault in faults.into_iter().chain(["metrics:7:ENOSPC"]) {
        let run = Run::of(&mut case.faulty(fault, &[]));
        run.expect_error(&["error: "]);
        if !case.fixture.path("out/checkpoints").exists() {
            Run::of(&mut case.command(&[])).expect_code(0);
            case.assert_finished();
            case.clear();
            continue;
        }
        spoilt += 1;
        for checkpoint in case.fixture.names("out/checkpoints") {
            let folder = format!("out/checkpoints/{checkpoint}");
            let names = case.fixture.names(&folder);
            assert!(
                !names.contains(&"DONE".to_owned()) || names.len() == 5,
                "{fault}: {checkpoint} has {names:?}"
            );
        }
        Run::of(&mut case.command(&[])).expect_code(0);
        case.assert_finished();
        case.clear();
    }
    assert!(spoilt >= 3, "{spoilt} faults were in or after a checkpoint");
}

#[test]
fn resuming_as_another_run_is_refused_by_name() {
    let case = Case::new(&[]);
    assert!(Run::of(&mut case.faulty("checkpoint:1", &[])).was_killed());
    let other = case.fixture.copy_pipeline("sd");
    let config = std::fs::read_to_string(other.join("scheduler/scheduler_config.json")).unwrap();
    let config = config.replace("0.012", "0.013");
    case.fixture.put("sd/scheduler/scheduler_config.json", config.as_bytes());
    let other = other.display().to_string();
    let before = case.fixture.files("out");
    for (flags, field) in [
        (vec!["--beta", "51"], "settings.beta"),
        (vec!["--batch-size", "2"], "settings.batch_size"),
        (vec!["--probe-pairs", "1"], "probe[1]"),
        (vec!["--seed", "1"], "settings.seed"),
        (vec!["--reference-every", "5"], "settings.reference_every"),
        (vec!["--lr", "1e-4"], "settings.lr"),
        (vec!["--optimizer", "adafactor"], "settings.optimizer"),
        (vec!["--dtype", "bf16"], "dtype"),
        (vec!["--resolution", "32"], "resolution"),
        (vec!["--preference", "vanilla"], "settings.preference"),
        (vec!["--model", &other], "model[\"scheduler/scheduler_config.json\"]"),
    ] {
        let run = Run::of(&mut case.command(&flags));
        run.expect_error(&[field, "another run", "hint: ", "--fresh"]);
    }
    let mut labels = case.fixture.labels();
    labels[0].votes = [-1, -1, -1, -1].map(Some).to_vec();
    labels[0].vote_sum = Some(-4);
    labels[0].consensus = Some(-1);
    let relabelled = case.fixture.put_labels("relabelled.parquet", &labels).display().to_string();
    Run::of(&mut case.command(&["--labels", &relabelled]))
        .expect_error(&["labels: was", "another run"]);
    assert!(case.fixture.files("out") == before, "a refused run changed something");
    // What does not change the result may change.
    Run::of(&mut case.command(&["--keep", "1", "--checkpoint-every", "4"])).expect_code(0);
    assert_eq!(case.fixture.names("out/checkpoints"), ["step-000010"]);
    assert_eq!(case.fixture.metrics("out"), case.metrics);
    // Done is done, unless it is to be made again.
    let written = || case.fixture.path("out/pipeline/README.md").metadata().unwrap().modified();
    let first = written().unwrap();
    let run = Run::of(&mut case.command(&["--keep", "1"])).expect_code(0);
    assert!(run.stderr.contains("already complete"), "{run:#?}");
    assert_eq!(written().unwrap(), first);
    Run::of(&mut case.command(&["--beta", "51"])).expect_error(&["settings.beta"]);
    Run::of(&mut case.command(&["--fresh"])).expect_code(0);
    case.assert_finished();
}

#[test]
fn a_run_that_never_came_to_a_checkpoint_is_not_in_the_way() {
    let case = Case::new(&[]);
    let other = case.faulty("metrics:2", &["--beta", "51", "--seed", "9"]).output().unwrap();
    assert!(Run::from(other).was_killed());
    assert!(case.fixture.path("out/probe.json").exists());
    let run = Run::of(&mut case.command(&[])).expect_code(0);
    assert!(run.stderr.contains("before its first checkpoint"), "{run:#?}");
    case.assert_finished();
}

#[test]
fn two_runs_of_one_folder_do_not_mix() {
    let fixture = Fixture::new(PAIRS);
    let first = Running::start(&mut fixture.run("out", &["--steps", "500"]));
    wait_until("it trains", || fixture.path("out/metrics.jsonl").exists());
    Run::of(&mut fixture.run("out", &["--steps", "500"])).expect_error(&["run.lock", "process"]);
    first.kill();
}
