//! What may change from one start of a run to the next, what begins another run with the weights of
//! this one, and that every hint of the program works when it is followed.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{Fixture, Run, pipeline};
use nn::weights::Weights;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

const UNET: &str = "pipeline/unet/diffusion_pytorch_model.safetensors";

fn faulty(mut command: Command, fault: &str) -> Command {
    command.env("RUNKIT_FAULT", fault);
    command
}

/// The word after a flag in what the program said.
fn value_after(text: &str, flag: &str) -> String {
    let rest =
        text.split_once(&format!("{flag} ")).unwrap_or_else(|| panic!("no {flag} in {text}"));
    rest.1.split_whitespace().next().unwrap().to_owned()
}

fn state(fixture: &Fixture, checkpoint: &str) -> Value {
    serde_json::from_slice(&fixture.bytes(&format!("{checkpoint}/state.json"))).unwrap()
}

/// The weights of two files, and how far they are apart.
fn distance(one: &Path, other: &Path) -> f64 {
    let (one, other) = (Weights::open(one).unwrap(), Weights::open(other).unwrap());
    let apart = |name: &str| {
        let tensor = |weights: &Weights| weights.tensor(name).unwrap().to_kind(Kind::Double);
        (tensor(&one) - tensor(&other)).square().sum(Kind::Double).double_value(&[])
    };
    one.names().map(apart).sum::<f64>().sqrt()
}

/// The pairs of a record.
fn recorded_pairs(fixture: &Fixture, record: &str) -> Vec<String> {
    let bytes = fixture.bytes(record);
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_str(header["__metadata__"]["pair_ids"].as_str().unwrap()).unwrap()
}

/// Lines without what only some of the runs measure.
fn training_lines(fixture: &Fixture, out: &str) -> Vec<Map<String, Value>> {
    let mut lines = fixture.metrics(out);
    for line in &mut lines {
        line.retain(|name, _| !name.starts_with("probe/") && name != "distance");
    }
    lines
}

#[test]
fn numerics_may_change_and_are_noted() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("whole", &[])).expect_code(0);
    assert!(Run::of(&mut faulty(fixture.run("out", &[]), "checkpoint:1")).was_killed());
    let more = ["--micro-batch", "4", "--grad-checkpointing"];
    let run = Run::of(&mut fixture.run("out", &more)).expect_code(0);
    for words in ["micro_batch: was 2, now 4", "grad_checkpointing: was false, now true"] {
        assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
    }
    let numerics = |checkpoint: &str| state(&fixture, checkpoint)["numerics"].clone();
    assert_eq!(numerics("whole/checkpoints/step-000010")["micro_batch"], 2);
    assert_eq!(numerics("out/checkpoints/step-000010")["micro_batch"], 4);
    let lines = fixture.metrics("out");
    let changed: Vec<_> = lines.iter().filter_map(|line| line.get("changed")).collect();
    assert_eq!(changed, [&serde_json::json!({"micro_batch": 4, "grad_checkpointing": true})]);
    assert_eq!(lines[4]["changed"]["micro_batch"], 4, "the step after the checkpoint");
    // The same run but for rounding.
    let base = pipeline("sd").join("unet/diffusion_pytorch_model.safetensors");
    let (whole, out) = (fixture.path("whole").join(UNET), fixture.path("out").join(UNET));
    let (way, apart) = (distance(&whole, &base), distance(&whole, &out));
    assert!(apart > 0.0 && apart < 0.1 * way, "{apart} of {way}");
}

#[test]
fn more_steps_are_the_run_that_was_given_them_at_once() {
    let fixture = Fixture::new(11);
    let flags = ["--steps", "12", "--keep", "9"];
    Run::of(&mut fixture.run("whole", &flags)).expect_code(0);
    // It ends where the reference would be updated, were it not the last step.
    let fewer = ["--steps", "8", "--keep", "9"];
    Run::of(&mut fixture.run("out", &fewer)).expect_code(0);
    assert_eq!(state(&fixture, "out/checkpoints/step-000008")["reference_step"], 4);
    let first = fixture.bytes(&format!("out/{UNET}"));
    assert!(Run::of(&mut faulty(fixture.run("out", &flags), "metrics:2")).was_killed());
    assert!(fixture.bytes(&format!("out/{UNET}")) == first, "the result of 8 steps is gone");
    let again = Run::of(&mut fixture.run("out", &fewer)).expect_code(0);
    assert!(again.stderr.contains("already complete"), "{again:#?}");
    Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    let files = |out: &str| -> BTreeMap<String, Vec<u8>> {
        let mut files = fixture.files(out);
        files.retain(|name, _| {
            ["pipeline/", "checkpoints/step-000012/", "manifest.json"]
                .iter()
                .any(|ours| name.starts_with(ours))
        });
        files
    };
    assert!(files("out").len() > 10 && files("out") == files("whole"));
    assert_eq!(training_lines(&fixture, "out"), training_lines(&fixture, "whole"));
    // Fewer than are done are refused, and the hint works.
    let refused = Run::of(&mut fixture.run("out", &fewer));
    let hint = value_after(&refused.stderr, "hint: --steps");
    refused.expect_error(&["steps: 8 is below step 12"]);
    Run::of(&mut fixture.run("out", &["--steps", &hint, "--keep", "9"])).expect_code(0);
    // Without a checkpoint there is nothing to resume from.
    std::fs::remove_dir_all(fixture.path("out/checkpoints")).unwrap();
    Run::of(&mut fixture.run("out", &["--steps", "14"])).expect_error(&["12 steps", "are gone"]);
    assert!(fixture.bytes(&format!("out/{UNET}")) != first);
}

#[test]
fn a_falling_schedule_warns_that_it_follows_another_curve() {
    let fixture = Fixture::new(8);
    let flags = ["--lr-schedule", "cosine", "--steps", "4"];
    Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    let flags = ["--lr-schedule", "cosine", "--steps", "6"];
    let run = Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    assert!(run.stderr.contains("--steps was 4 and is 6"), "{run:#?}");
    let rates: Vec<f64> =
        fixture.metrics("out").iter().filter_map(|line| line.get("lr")?.as_f64()).collect();
    // (1 + cos(π·2/4))/2 of 1e-3 in step 5, the third of four that fall.
    assert_eq!(rates.len(), 6);
    assert!((rates[4] - 5e-4).abs() < 1e-12, "{rates:?}");
}

#[test]
fn another_run_begins_with_a_checkpoint() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("a", &["--keep", "9"])).expect_code(0);
    fixture.copy(&fixture.path("a/checkpoints/step-000006"), "six");
    let six = fixture.path("six").display().to_string();
    // With the same settings it is the same run: weights, moments, reference and position.
    let from = ["--from", &six];
    Run::of(&mut fixture.run("b", &from)).expect_code(0);
    assert!(fixture.bytes(&format!("a/{UNET}")) == fixture.bytes(&format!("b/{UNET}")));
    let (a, b) = (training_lines(&fixture, "a"), training_lines(&fixture, "b"));
    assert_eq!(b[0]["step"], 6);
    assert_eq!(b[1..], a[7..]);
    assert!(fixture.bytes("a/probe.json") == fixture.bytes("b/probe.json"));
    let probe = |out: &str| fixture.metrics(out).last().unwrap()["probe/loss"].clone();
    assert_eq!(probe("a"), probe("b"), "against the base model, not against where it began");
    // Another learning rate, another batch: steps and pairs count on.
    let other = ["--from", &six, "--lr", "1e-4", "--batch-size", "2", "--record-steps", "7"];
    assert!(Run::of(&mut faulty(fixture.run("c", &other), "checkpoint:1")).was_killed());
    // Once it has a checkpoint of its own, the other one may go.
    std::fs::remove_dir_all(fixture.path("six")).unwrap();
    Run::of(&mut fixture.run("c", &other)).expect_code(0);
    assert_eq!(state(&fixture, "c/checkpoints/step-000010")["position"], 24 + 8);
    Run::of(&mut fixture.run("d", &from)).expect_error(&["six", "expected a checkpoint", "hint: "]);
    assert!(!fixture.path("d").exists());
    // What it began with is part of what it is.
    let run = Run::of(&mut fixture.run("c", &["--lr", "1e-4", "--batch-size", "2"]));
    run.expect_error(&["from: was", "now absent"]);
    // Wrong places name right ones, and steps count from the first run's start.
    let a = fixture.path("a").display().to_string();
    let run = Run::of(&mut fixture.run("d", &["--from", &a]));
    let hint = value_after(&run.stderr, "name the folder of one, as");
    run.expect_error(&["expected a checkpoint"]);
    let few = Run::of(&mut fixture.run("d", &["--from", &hint]));
    let steps = value_after(&few.stderr, "hint: --steps");
    few.expect_error(&["--steps 10 is not above step 10"]);
    let more = ["--from", &hint, "--steps", &steps, "--optimizer", "adafactor"];
    let run = Run::of(&mut fixture.run("d", &more)).expect_code(0);
    assert!(run.stderr.contains("start at zero"), "{run:#?}");
    assert_eq!(fixture.metrics("d").len(), 11);
}

#[test]
fn skipped_pairs_have_no_weight_and_the_others_keep_their_places() {
    let fixture = Fixture::new(11);
    let flags = ["--record-steps", "9", "--steps", "6", "--probe-pairs", "0"];
    Run::of(&mut fixture.run("whole", &flags)).expect_code(0);
    let pairs = recorded_pairs(&fixture, "whole/record/step-000005-micro-001.safetensors");
    let list = fixture.put("skip.txt", format!("{}\n", pairs[1]).as_bytes()).display().to_string();
    assert!(Run::of(&mut faulty(fixture.run("out", &flags), "checkpoint:1")).was_killed());
    let with_list = [&flags[..], &["--skip-pairs", &list]].concat();
    let run = Run::of(&mut fixture.run("out", &with_list)).expect_code(0);
    assert!(run.stderr.contains("skip_pairs: was absent, now \"1 pairs, "), "{run:#?}");
    let lines = fixture.metrics("out");
    let skipped: Vec<u64> = lines[3..]
        .iter()
        .map(|line| line.get("skipped").map_or(0, |n| n.as_u64().unwrap()))
        .collect();
    assert!(skipped[1] >= 1, "step 5: {skipped:?}");
    for step in 4..=6 {
        let mut expected = Vec::new();
        let mut found = Vec::new();
        for micro in 0..2 {
            let name = format!("record/step-{step:06}-micro-{micro:03}.safetensors");
            expected.extend(recorded_pairs(&fixture, &format!("whole/{name}")));
            if fixture.path("out").join(&name).exists() {
                found.extend(recorded_pairs(&fixture, &format!("out/{name}")));
            }
        }
        expected.retain(|pair| *pair != pairs[1]);
        assert_eq!(found, expected, "step {step}");
    }
    // The mean is that of the pairs that are left.
    let mut losses = Vec::new();
    for micro in 0..2 {
        let path =
            fixture.path("out").join(format!("record/step-000005-micro-{micro:03}.safetensors"));
        let loss: Tensor = Weights::open(&path).unwrap().tensor("loss").unwrap();
        losses.extend(Vec::<f64>::try_from(loss.to_kind(Kind::Double)).unwrap());
    }
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    assert!((lines[4]["loss"].as_f64().unwrap() - mean).abs() < 1e-9);
    // A typo is refused, and so is a list that leaves no pair.
    let typo = fixture.put("typo.txt", b"77777777\n").display().to_string();
    let more = [&flags[..], &["--skip-pairs", &typo]].concat();
    Run::of(&mut fixture.run("other", &more)).expect_error(&["typo.txt", "77777777", "hint: "]);
    let ids: Vec<String> = fixture.labels().into_iter().map(|row| row.pair_id).collect();
    let all = fixture.put("all.txt", ids.join("\n").as_bytes()).display().to_string();
    let more = [&flags[..], &["--skip-pairs", &all]].concat();
    Run::of(&mut fixture.run("other", &more)).expect_error(&["all pairs are skipped"]);
    // A step without a pair changes no weight.
    let most = ids.iter().filter(|id| **id != pairs[0]).cloned().collect::<Vec<_>>().join("\n");
    let most = fixture.put("most.txt", most.as_bytes()).display().to_string();
    let more = [&flags[..], &["--skip-pairs", &most]].concat();
    Run::of(&mut fixture.run("most", &more)).expect_code(0);
    assert_eq!(fixture.metrics("most")[0]["skipped"].as_u64().unwrap() / 3, 1);
}

#[test]
fn after_a_loss_that_is_not_finite_the_hint_works() {
    let fixture = Fixture::new(11);
    let flags = ["--steps", "6", "--record-steps", "9"];
    Run::of(&mut fixture.run("whole", &flags)).expect_code(0);
    let pairs = |name: &str| {
        recorded_pairs(&fixture, &format!("whole/record/step-00000{name}.safetensors"))
    };
    let (early, late) =
        ([pairs("1-micro-000"), pairs("1-micro-001")].concat(), pairs("2-micro-001"));
    let guilty = late.iter().find(|pair| !early.contains(pair)).unwrap();
    let cache = fixture.poisoned_cache(guilty);
    let flags = ["--steps", "6", "--cache", &cache];
    let run = Run::of(&mut fixture.run("out", &flags));
    let list = value_after(&run.stderr, "--skip-pairs");
    run.expect_error(&["the 1 step done is kept", "step 2: the loss is NaN", guilty]);
    assert_eq!(std::fs::read_to_string(&list).unwrap().trim(), guilty);
    assert_eq!(fixture.names("out/checkpoints"), ["step-000001"]);
    // Without the list it ends at the same step again, with it at the last.
    Run::of(&mut fixture.run("out", &flags)).expect_error(&["step 2"]);
    let more = [&flags[..], &["--skip-pairs", &list]].concat();
    Run::of(&mut fixture.run("out", &more)).expect_code(0);
    assert_eq!(fixture.metrics("out").len(), 7);
}

#[test]
fn after_a_learning_rate_that_explodes_the_hint_works() {
    let fixture = Fixture::new(8);
    let more = ["--lr", "1e30", "--warmup-steps", "4", "--checkpoint-every", "1"];
    let more = [&more[..], &["--max-grad-norm", "0", "--probe-every", "0"]].concat();
    let run = Run::of(&mut fixture.run("out", &more));
    let from = value_after(&run.stderr, "--from");
    run.expect_error(&["NaN or infinite", "--out OTHER", "a lower --lr"]);
    Run::of(&mut fixture.run("other", &["--from", &from])).expect_code(0);
    // In the same folder it is another run, which is said.
    Run::of(&mut fixture.run("out", &[])).expect_error(&["settings.lr", "--from CHECKPOINT"]);
}

#[test]
fn where_there_is_not_enough_memory_the_hints_work() {
    let fixture = Fixture::new(8);
    let fail = |more: &[&str], passage: usize, says: &[&str]| {
        let command = fixture.run("out", more);
        let run = Run::of(&mut faulty(command, &format!("memory:{passage}:ENOSPC")));
        assert_eq!(run.code(), Some(1), "{run:#?}");
        for words in says {
            assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
        }
        run
    };
    let flags = ["--steps", "6"];
    // In the second micro-batch of the third step.
    let says = ["the 2 steps done are kept", "not enough memory for 2 pairs at once"];
    let run = fail(&flags, 6, &says);
    let micro = value_after(&run.stderr, "--micro-batch").trim_end_matches(',').to_owned();
    assert_eq!(
        (micro.as_str(), fixture.names("out/checkpoints")),
        ("1", vec!["step-000002".to_owned()])
    );
    let flags = [&flags[..], &["--micro-batch", &micro]].concat();
    fail(&flags, 6, &["the 3 steps done are kept", "--grad-checkpointing"]);
    let flags = [&flags[..], &["--grad-checkpointing"]].concat();
    let run = fail(&flags, 6, &["the 4 steps done are kept", "--optimizer adamw8bit"]);
    let from = value_after(&run.stderr, "--from");
    let more = [&flags[..], &["--from", &from, "--optimizer", "adamw8bit"]].concat();
    Run::of(&mut fixture.run("other", &more)).expect_code(0);
    Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    assert_eq!(fixture.metrics("out").len(), 7);
}

#[test]
fn a_line_that_could_not_be_written_is_not_lost_with_the_step() {
    let fixture = Fixture::new(8);
    Run::of(&mut fixture.run("whole", &[])).expect_code(0);
    let run = Run::of(&mut faulty(fixture.run("out", &[]), "metrics:6:ENOSPC"));
    run.expect_error(&["the 5 steps done are kept", "metrics.jsonl"]);
    assert_eq!(fixture.names("out/checkpoints"), ["step-000003", "step-000005"]);
    Run::of(&mut fixture.run("out", &[])).expect_code(0);
    assert_eq!(fixture.metrics("out"), fixture.metrics("whole"));
}

#[test]
fn checkpoints_by_the_clock() {
    let fixture = Fixture::new(8);
    let more = ["--checkpoint-minutes", "0.0000001", "--checkpoint-every", "99", "--keep", "99"];
    Run::of(&mut fixture.run("out", &[&more[..], &["--steps", "4"]].concat())).expect_code(0);
    assert_eq!(fixture.names("out/checkpoints").len(), 4);
    // The reference of the first four steps is one file under several names.
    use std::os::unix::fs::MetadataExt as _;
    let reference = "reference/diffusion_pytorch_model.safetensors";
    let found = fixture.path("out/checkpoints/step-000002").join(reference).metadata().unwrap();
    assert_eq!(found.nlink(), 4);
    // Where there are no such names it is written.
    let mut command = faulty(fixture.run("copied", &["--steps", "6"]), "link:*:ENOTSUP");
    Run::of(&mut command).expect_code(0);
    let found = fixture.path("copied/checkpoints/step-000006").join(reference).metadata().unwrap();
    assert_eq!(found.nlink(), 1);
    Run::of(&mut fixture.run("copied", &["--steps", "7"])).expect_code(0);
}

#[test]
fn a_signal_is_seen_wherever_a_start_is() {
    let fixture = Fixture::new(8);
    Run::of(&mut fixture.run("whole", &[])).expect_code(0);
    for place in ["labels:1", "plan:1", "hash:3", "load:9", "probe:2", "result:9", "copy:1"] {
        let run = Run::of(&mut faulty(fixture.run("out", &[]), &format!("{place}:TERM")));
        assert!(run.expect_code(143).stderr.contains("the same command to resume"), "{place}");
        assert!(!fixture.path("out/pipeline/model_index.json").exists(), "{place}");
        let trained = ["result:9", "copy:1"].contains(&place);
        assert_eq!(fixture.path("out/checkpoints").exists(), trained, "{place}");
        Run::of(&mut fixture.run("out", &[])).expect_code(0);
        assert!(fixture.bytes(&format!("out/{UNET}")) == fixture.bytes(&format!("whole/{UNET}")));
        std::fs::remove_dir_all(fixture.path("out")).unwrap();
    }
    let cache = |fault: Option<&str>| {
        let mut command = common::train(["cache", "--model"]);
        command.arg(pipeline("sd")).arg("--pairs").arg(fixture.path("pairs"));
        command.arg("--out").arg(fixture.path("latents"));
        if let Some(fault) = fault {
            command.env("RUNKIT_FAULT", fault);
        }
        Run::of(&mut command)
    };
    for place in ["plan:1:TERM", "hash:2:TERM", "load:3:TERM", "captions:1:TERM"] {
        cache(Some(place)).expect_code(143);
        assert!(!fixture.path("latents/latents-00000.parquet").exists(), "{place}");
    }
    cache(None).expect_code(0);
}

#[test]
fn processes_that_cannot_find_each_other_are_refused() {
    let fixture = Fixture::new(4);
    let torchrun = [("RANK", "1"), ("WORLD_SIZE", "2")];
    let srun = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_STEP_ID", "0")];
    let refused = |variables: &[(&str, &str)], says: &[&str]| {
        let mut command = fixture.run("out", &[]);
        command.envs(variables.iter().copied());
        let run = Run::of(&mut command);
        assert_eq!(run.code(), Some(1), "{run:#?}");
        run.expect_error(&[says, &["hint: "]].concat());
        assert!(!fixture.path("out").exists());
    };
    refused(&torchrun, &["2 processes", "MASTER_ADDR"]);
    refused(&srun, &["2 processes", "MASTER_ADDR"]);
    refused(&[("OMPI_COMM_WORLD_SIZE", "2")], &["OMPI_COMM_WORLD_SIZE"]);
    let mut alone = fixture.run("out", &["--steps", "1"]);
    Run::of(alone.env("WORLD_SIZE", "1").env("RANK", "0")).expect_code(0);
}

#[test]
fn a_folder_of_somebody_is_neither_adopted_nor_removed() {
    let fixture = Fixture::new(4);
    let theirs = ["out/pipeline/model.bin", "out/checkpoints/mine/w.bin"];
    for name in theirs {
        fixture.put(name, b"mine");
    }
    for more in [&[][..], &["--fresh"]] {
        let run = Run::of(&mut fixture.run("out", more));
        let run = run.expect_error(&["folder of something else", "pipeline", "hint: "]);
        assert!(!run.stderr.contains("--fresh"), "{run:#?}");
        assert_eq!(fixture.files("out").len(), 2);
    }
    // Of a folder of ours, what somebody put into it stays.
    Run::of(&mut fixture.run("ours", &["--steps", "2", "--sample-every", "2"])).expect_code(0);
    for name in ["ours/pipeline/model.bin", "ours/samples/best.png", "ours/notes.md"] {
        fixture.put(name, b"mine");
    }
    Run::of(&mut fixture.run("ours", &["--steps", "1", "--seed", "5", "--fresh"])).expect_code(0);
    for name in ["ours/pipeline/model.bin", "ours/samples/best.png", "ours/notes.md"] {
        assert_eq!(fixture.bytes(name), b"mine", "{name}");
    }
    assert!(!fixture.path("ours/samples/step-000000").exists());
    assert_eq!(fixture.names("ours/checkpoints"), ["step-000001"]);
    // Nor does a cache go into somebody's folder.
    let mut command = common::train(["cache", "--model"]);
    command.arg(pipeline("sd")).arg("--pairs").arg(fixture.path("pairs"));
    command.arg("--out").arg(fixture.path("pairs"));
    let before = fixture.files("pairs");
    Run::of(&mut command).expect_error(&["folder of something else", "hint: "]);
    assert!(fixture.files("pairs") == before);
}

#[test]
fn the_probe_is_held_out_with_and_without_a_cache() {
    let fixture = Fixture::new(24);
    let flags = ["--record-steps", "99", "--steps", "12", "--probe-pairs", "4"];
    Run::of(&mut fixture.run("pairs-run", &flags)).expect_code(0);
    let probe = |out: &str| -> Vec<String> {
        let names: Value =
            serde_json::from_slice(&fixture.bytes(&format!("{out}/probe.json"))).unwrap();
        let names = names["pair_ids"].as_array().unwrap().iter();
        let mut names: Vec<String> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    };
    let held = probe("pairs-run");
    assert_eq!(held.len(), 4);
    let manifest: Value =
        serde_json::from_slice(&fixture.bytes("pairs-run/manifest.json")).unwrap();
    assert_eq!((manifest["probe"].as_array().unwrap().len(), &manifest["pairs"]), (4, &20.into()));
    let trained = |out: &str| -> std::collections::BTreeSet<String> {
        let records = fixture.names(&format!("{out}/record"));
        let pairs = |name: &String| recorded_pairs(&fixture, &format!("{out}/record/{name}"));
        records.iter().flat_map(pairs).collect()
    };
    let seen = trained("pairs-run");
    assert_eq!(seen.len(), 20, "two epochs of all that are left");
    assert!(held.iter().all(|pair| !seen.contains(pair)));
    let card = String::from_utf8(fixture.bytes("pairs-run/pipeline/README.md")).unwrap();
    assert!(card.contains("On 4 pairs held out of training"), "{card}");
    let cache = fixture.path("latents").display().to_string();
    let mut command = common::train(["cache", "--model"]);
    command.arg(pipeline("sd")).arg("--pairs").arg(fixture.path("pairs")).args(["--out", &cache]);
    Run::of(&mut command).expect_code(0);
    let more = [&flags[..], &["--cache", &cache]].concat();
    Run::of(&mut fixture.run("cache-run", &more)).expect_code(0);
    assert_eq!(probe("cache-run"), held);
    assert!(trained("cache-run") == seen);
    // What is asked for and cannot be is said.
    let run = Run::of(&mut fixture.run("small", &["--steps", "1", "--probe-pairs", "16"]));
    let run = run.expect_code(0);
    assert!(run.stderr.contains("6 are held out for the probe, not 16"), "{run:#?}");
}

#[test]
fn a_run_that_ends_in_its_warm_up_gets_a_warning() {
    let fixture = Fixture::new(8);
    let flags = ["--steps", "2", "--warmup-steps", "5"];
    let run = Run::of(&mut fixture.run("out", &flags)).expect_code(0);
    assert!(run.stderr.contains("warm-up takes 5 of 2 steps"), "{run:#?}");
    let plan = Run::of(&mut fixture.command("plan", "plan", &flags)).expect_code(0);
    assert!(plan.stdout.contains("reaches 2e-4 of 1e-3"), "{plan:#?}");
}

/// The bytes that a run leaves, but for its logs.
fn results(fixture: &Fixture, out: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = fixture.files(out);
    files.retain(|name, _| {
        ["pipeline/", "checkpoints/", "manifest.json"].iter().any(|ours| name.starts_with(ours))
    });
    files
}

/// Every loss, way of updating the reference, preference and average is resumed to the same bytes,
/// and is another run than the plain one.
#[test]
fn every_option_of_losses_references_averages_and_moments_is_resumed_to_the_same_bytes() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("plain", &[])).expect_code(0);
    let plain = fixture.bytes(&format!("plain/{UNET}"));
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mini/sd");
    let mini = mini.display().to_string();
    let cases: [(&str, &[&str]); 9] = [
        ("ipo", &["--loss", "ipo"]),
        ("hinge", &["--loss", "hinge", "--label-smoothing", "0.1", "--winner-anchor", "0.5"]),
        ("mapo", &["--loss", "mapo", "--reference-every", "0"]),
        ("kto", &["--loss", "kto", "--reference-reset-optimizer"]),
        ("auto", &["--auto-beta", "0.2"]),
        ("mix", &["--reference-mix", "0.6", "--dtype", "bf16"]),
        ("follow", &["--reference-ema", "0.9", "--reference-every", "0", "--dtype", "bf16"]),
        ("ema", &["--ema", "0.9", "--ema-device", "cpu"]),
        // The tiny pipeline has no tensor of 4,096 numbers.
        ("eight", &["--optimizer", "adamw8bit", "--model", &mini, "--resolution", "32"]),
    ];
    for (name, flags) in cases {
        let (whole, out) = (format!("whole-{name}"), format!("out-{name}"));
        Run::of(&mut fixture.run(&whole, flags)).expect_code(0);
        for fault in ["checkpoint:1", "step:7"] {
            let killed = Run::of(&mut faulty(fixture.run(&out, flags), fault));
            assert!(killed.was_killed(), "{name}, {fault}: {killed:#?}");
        }
        Run::of(&mut fixture.run(&out, flags)).expect_code(0);
        let (whole, out) = (results(&fixture, &whole), results(&fixture, &out));
        assert!(whole.keys().eq(out.keys()), "{name}: {:?} and {:?}", whole.keys(), out.keys());
        for (file, bytes) in &whole {
            assert!(out[file] == *bytes, "{name}: {file} differs");
        }
        assert!(whole[UNET] != plain, "{name} changes nothing");
        assert_eq!(whole.keys().any(|file| file.contains("/ema/")), name == "ema");
        assert_eq!(whole.keys().any(|file| file.contains("/reference/")), name != "mapo");
    }
    // Another loss is another run.
    let refused = Run::of(&mut fixture.run("plain", &["--loss", "ipo"]));
    refused.expect_error(&["loss"]);
}

/// A run without a reference model leaves none; another run that starts from it has the base model.
#[test]
fn a_run_with_a_reference_starts_from_one_without() {
    let fixture = Fixture::new(11);
    let mapo = ["--loss", "mapo", "--reference-every", "0"];
    Run::of(&mut fixture.run("a", &mapo)).expect_code(0);
    let from = fixture.path("a/checkpoints/step-000010").display().to_string();
    let flags = ["--from", &from, "--steps", "14", "--reference-every", "0", "--dtype", "bf16"];
    Run::of(&mut fixture.run("b", &flags)).expect_code(0);
    let lines = fixture.metrics("b");
    // The model has left the base model, so z is not zero from its first step on.
    let first = lines.iter().find(|line| line["step"] == 11).unwrap();
    assert!(first["z/std"].as_f64().unwrap() > 0.0, "{first:?}");
    assert!(fixture.path("b/checkpoints/step-000014/reference").is_dir());
    assert!(fixture.metrics("a").iter().all(|line| !line.contains_key("error/reference_chosen")));
}

/// A default that is typed is the default run, byte for byte.
#[test]
fn typed_defaults_are_the_plain_run() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("plain", &[])).expect_code(0);
    let flags = ["--loss", "dpo", "--reference-mix", "1", "--export", "weights"];
    Run::of(&mut fixture.run("typed", &flags)).expect_code(0);
    let (plain, typed) = (results(&fixture, "plain"), results(&fixture, "typed"));
    assert!(plain == typed);
    assert!(!String::from_utf8(plain["manifest.json"].clone()).unwrap().contains("\"loss\""));
}

/// The result has the moving average, or with `--export weights` the weights of the last step,
/// which the average does not change.
#[test]
fn the_moving_average_is_exported_and_changes_no_weight() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("plain", &[])).expect_code(0);
    Run::of(&mut fixture.run("average", &["--ema", "0.9"])).expect_code(0);
    let flags = ["--ema", "0.9", "--export", "weights"];
    Run::of(&mut fixture.run("weights", &flags)).expect_code(0);
    let result = |out: &str| fixture.bytes(&format!("{out}/{UNET}"));
    assert!(result("weights") == result("plain"));
    assert!(result("average") != result("plain"));
    let part = |part: &str| {
        let file = "diffusion_pytorch_model.safetensors";
        fixture.bytes(&format!("average/checkpoints/step-000010/{part}/{file}"))
    };
    assert!(part("unet") == result("plain") && part("ema") == result("average"));
    // It lags behind: nearer to the start than the weights are.
    let base = pipeline("sd").join("unet/diffusion_pytorch_model.safetensors");
    let way = |out: &str| distance(&fixture.path(out).join(UNET), &base);
    assert!(way("average") > 0.0 && way("average") < way("plain"));
}

/// With no fraction kept, the reference model that follows is the copy after every step.
#[test]
fn a_reference_that_keeps_nothing_is_updated_every_step() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("every", &["--reference-every", "1"])).expect_code(0);
    Run::of(&mut fixture.run("follow", &["--reference-ema", "0", "--reference-every", "0"]))
        .expect_code(0);
    assert!(fixture.bytes(&format!("every/{UNET}")) == fixture.bytes(&format!("follow/{UNET}")));
    for line in fixture.metrics("follow").iter().skip(2) {
        assert_eq!(line["loss"], std::f64::consts::LN_2 as f32, "{line:?}");
    }
}
