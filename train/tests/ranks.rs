//! Several ranks train what one process trains, with equal bytes for equal W; what one of them
//! meets, a stop, an error or its death, ends all of them in order; and the same command resumes.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;
use std::process::Command;

use common::ranks::{LIMIT, assert_done, assert_same, comparable, wait_until};
use common::{Fixture, Run, pipeline};
use nn::weights::Weights;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use testkit::{Ranks, torchrun};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
/// Sixteen pairs, two of them held out: a step takes twelve, six micro-batches, which 1, 2 and 3
/// ranks share.
const PAIRS: usize = 16;
const FLAGS: [&str; 6] = ["--batch-size", "12", "--sample-every", "5", "--caption-dropout", "0.3"];

/// `train run` on several ranks; `special` may give a rank what the others do not have.
fn start(
    fixture: &Fixture,
    world: usize,
    out: &str,
    more: &[&str],
    special: impl FnMut(usize, &mut Command),
) -> Ranks {
    let own = FLAGS.chunks(2).filter(|flag| !more.contains(&flag[0])).flatten().copied();
    let flags: Vec<&str> = own.chain(more.iter().copied()).collect();
    fixture.start_ranks(world, out, &flags, special)
}

fn run(fixture: &Fixture, world: usize, out: &str, more: &[&str]) -> Vec<Run> {
    start(fixture, world, out, more, |_, _| {}).finish_within(LIMIT)
}

/// A run in which a rank meets a fault.
fn faulty(fixture: &Fixture, out: &str, more: &[&str], rank: usize, fault: &str) -> Vec<Run> {
    let special = |this: usize, command: &mut Command| {
        if this == rank {
            command.env("RUNKIT_FAULT", fault);
        }
    };
    start(fixture, 2, out, more, special).finish_within(LIMIT)
}

/// The 2-norm of the difference of two files of weights, and of the first.
fn apart(one: &Path, other: &Path) -> [f64; 2] {
    let (one, other) = (Weights::open(one).unwrap(), Weights::open(other).unwrap());
    let tensor =
        |weights: &Weights, name: &str| weights.tensor(name).unwrap().to_kind(Kind::Double);
    let square = |tensor: Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
    let mut sums = [0.0; 2];
    for name in one.names() {
        sums[0] += square(tensor(&one, name) - tensor(&other, name));
        sums[1] += square(tensor(&one, name));
    }
    sums.map(f64::sqrt)
}

/// The bounds between runs of different W in f32: the sum of gradients is grouped by rank.
#[track_caller]
fn assert_near(fixture: &Fixture, expected: &str, out: &str) {
    let trained = |out: &str| fixture.path(out).join("pipeline").join(UNET);
    let [difference, norm] = apart(&trained(expected), &trained(out));
    let [way, _] = apart(&trained(expected), &pipeline("sd").join(UNET));
    assert!(difference < 1e-5 * norm && difference < 1e-4 * way, "{difference} of {norm}, {way}");
    let (lines, others) = (fixture.metrics(expected), fixture.metrics(out));
    assert_eq!(lines.len(), others.len());
    for (line, other) in lines.iter().zip(&others) {
        let keys = |line: &Map<String, Value>| -> Vec<String> {
            line.keys().filter(|key| *key != "changed").cloned().collect()
        };
        assert_eq!(keys(line), keys(other));
        assert_eq!(line["step"], other["step"]);
        for (name, value) in line {
            let (Some(here), Some(there)) =
                (value.as_f64(), other.get(name).and_then(Value::as_f64))
            else {
                continue;
            };
            let bound = match name.as_str() {
                "loss" | "probe/loss" => 5e-5,
                "grad_norm" | "distance" => 2e-4 * here.abs(),
                name if name.contains("/z_") || name.starts_with("z/") => 5e-4,
                name if name.starts_with("error/") || name.contains("error_") => 1e-4 * here.abs(),
                // An accuracy jumps if z of one pair is near zero.
                name if name.ends_with("accuracy") => continue,
                _ => 0.0,
            };
            assert!((here - there).abs() <= bound, "{name}: {here} and {there} in {line:?}");
        }
    }
}

#[test]
fn ranks_train_what_one_process_trains_and_resume_it() {
    let fixture = Fixture::new(PAIRS);
    // At ten times this rate another micro-batch in one process moves the gradient norm by 1e-3.
    let rate = ["--lr", "1e-4"];
    let recorded = [&rate[..], &["--record-steps", "2"]].concat();
    let alone = [&FLAGS[..], &recorded].concat();
    Run::of(&mut fixture.run("one", &alone)).expect_code(0);
    for world in [2, 3] {
        let out = format!("ranks-{world}");
        assert_done(&run(&fixture, world, &out, &recorded));
        assert_near(&fixture, "one", &out);
        // Probe, sample images and records do not depend on W before the weights do.
        for name in ["probe.json", "probe.safetensors", "samples/step-000000/00.png"] {
            let [one, other] =
                ["one", out.as_str()].map(|out| fixture.bytes(&format!("{out}/{name}")));
            assert!(one == other, "{name}");
        }
        assert_eq!(fixture.metrics("one")[0], fixture.metrics(&out)[0]);
        assert_eq!(fixture.names("one/record"), fixture.names(&format!("{out}/record")));
        assert_eq!(fixture.names("one/samples"), fixture.names(&format!("{out}/samples")));
        let state = fixture.bytes(&format!("{out}/checkpoints/step-000010/state.json"));
        let state: Value = serde_json::from_slice(&state).unwrap();
        assert_eq!(state["numerics"]["ranks"], world);
    }
    // From two ranks to one, and to three.
    assert!(
        faulty(&fixture, "out", &rate, 1, "step:5:TERM").iter().all(|run| run.code() == Some(143))
    );
    assert_eq!(fixture.names("out/checkpoints"), ["step-000003", "step-000004"]);
    let mut one = fixture.run("out", &[&FLAGS[..], &rate].concat());
    let one = Run::of(one.env("RUNKIT_FAULT", "step:3:TERM")).expect_code(143);
    assert!(one.stderr.contains("ranks: was 2, now 1"), "{one:#?}");
    let runs = run(&fixture, 3, "out", &rate);
    assert_done(&runs);
    assert!(runs[0].stderr.contains("ranks: was 1, now 3"), "{runs:#?}");
    assert_near(&fixture, "one", "out");
    let lines = fixture.metrics("out");
    let changed: Vec<(&Value, &Value)> =
        lines.iter().filter_map(|line| Some((&line["step"], line.get("changed")?))).collect();
    let expected = [1, 3].map(|ranks| serde_json::json!({ "ranks": ranks }));
    assert_eq!(changed, [(&5.into(), &expected[0]), (&7.into(), &expected[1])]);
}

/// What depends on the whole batch, and averages of the weights, is shared by the ranks.
#[test]
fn losses_of_a_batch_and_averages_are_those_of_one_process() {
    let fixture = Fixture::new(PAIRS);
    for (name, more) in [
        ("kto", &["--lr", "1e-4", "--loss", "kto", "--ema", "0.9"][..]),
        ("auto", &["--lr", "1e-4", "--auto-beta", "0.2", "--reference-mix", "0.6"]),
    ] {
        let [one, two, again] = ["one", "two", "again"].map(|ranks| format!("{name}-{ranks}"));
        Run::of(&mut fixture.run(&one, &[&FLAGS[..], more].concat())).expect_code(0);
        assert_done(&run(&fixture, 2, &two, more));
        // Equal bytes for equal W, also after a death in the middle of a step.
        let runs = faulty(&fixture, &again, more, 1, "micro-batch:14");
        assert!(runs[1].was_killed(), "{runs:#?}");
        assert_done(&run(&fixture, 2, &again, more));
        assert_same(&fixture, &two, &again);
        let trained = |out: &str| fixture.path(out).join("pipeline").join(UNET);
        let [difference, norm] = apart(&trained(&one), &trained(&two));
        let [way, _] = apart(&trained(&one), &pipeline("sd").join(UNET));
        assert!(difference < 1e-5 * norm && difference < 1e-3 * way, "{difference} of {way}");
        let number = if name == "kto" { "reference_point" } else { "beta" };
        for (line, other) in fixture.metrics(&one)[1..].iter().zip(&fixture.metrics(&two)[1..]) {
            let [here, there] = [line, other].map(|line| line[number].as_f64().unwrap());
            assert!((here - there).abs() <= 1e-3 * here.abs().max(1e-4), "{here} and {there}");
        }
    }
}

#[test]
fn equal_ranks_give_equal_bytes_whatever_ends_them_on_the_way() {
    let fixture = Fixture::new(PAIRS);
    assert_done(&run(&fixture, 2, "whole", &[]));
    // Sharded states are the same run in other files.
    assert_done(&run(&fixture, 2, "sharded", &["--shard-optimizer"]));
    let without_states = |out: &str| {
        let mut files = comparable(&fixture, out);
        files.retain(|name, _| !name.contains("optimizer") && !name.ends_with("DONE"));
        files
    };
    assert!(without_states("sharded") == without_states("whole"));
    assert_eq!(fixture.metrics("sharded"), fixture.metrics("whole"));
    // A rank dies in the middle of a step: the other names it and keeps what is done.
    let runs = faulty(&fixture, "out", &[], 1, "step:5");
    assert!(runs[1].was_killed(), "{runs:#?}");
    assert_eq!(runs[0].code(), Some(1), "{runs:#?}");
    let found = errors(&runs[0]);
    for words in ["error: rank 1 of 2", "the 4 steps done are kept", "hint: "] {
        assert!(found.len() == 1 && found[0].contains(words), "{words:?} is not in {runs:#?}");
    }
    assert_eq!(fixture.names("out/checkpoints"), ["step-000003", "step-000004"]);
    // Rank 0 dies: the other cannot save, and still names it.
    let runs = faulty(&fixture, "out", &[], 0, "step:2");
    assert!(runs[0].was_killed() && runs[1].code() == Some(1), "{runs:#?}");
    assert!(runs[1].stderr.starts_with("rank 1: error: rank 0 of 2"), "{runs:#?}");
    assert_eq!(runs[1].stderr.lines().count(), 1, "{runs:#?}");
    // With sharded states part of them dies with the rank.
    let runs = faulty(&fixture, "out", &["--shard-optimizer"], 1, "step:2");
    assert!(runs[0].stderr.contains("rank 1 of 2"), "{runs:#?}");
    assert_eq!(fixture.names("out/checkpoints"), ["step-000003", "step-000004"]);
    // SIGTERM and SIGINT at either rank end both, with a checkpoint.
    for (rank, more) in [(0, &[][..]), (1, &["--shard-optimizer"])] {
        let runs = faulty(&fixture, "out", more, rank, "step:2:TERM");
        for run in &runs {
            assert_eq!(run.code(), Some(143), "{runs:#?}");
        }
        assert_eq!(runs[0].stderr.matches("stopped by SIGTERM").count(), 1, "{runs:#?}");
        assert_eq!(runs[1].stderr, "", "{runs:#?}");
    }
    assert_eq!(fixture.names("out/checkpoints"), ["step-000005", "step-000006"]);
    assert_done(&run(&fixture, 2, "out", &[]));
    assert_same(&fixture, "whole", "out");
    // A finished run ends all ranks at once.
    let runs = run(&fixture, 2, "out", &[]);
    assert_done(&runs);
    assert!(runs[0].stderr.contains("already complete"), "{runs:#?}");
}

#[test]
fn a_stop_at_any_rank_and_place_ends_all_and_the_bytes_are_the_same() {
    let fixture = Fixture::new(PAIRS);
    let flags = ["--steps", "4"];
    assert_done(&run(&fixture, 2, "whole", &flags));
    for (rank, fault) in [
        (1, "plan:1:TERM"),
        (0, "hash:2:TERM"),
        (1, "load:3:TERM"),
        (0, "probe:1:TERM"),
        (1, "sample:1:TERM"),
        (0, "sample:2:TERM"),
        (0, "result:1:TERM"),
    ] {
        let runs = faulty(&fixture, "out", &flags, rank, fault);
        for run in &runs {
            assert_eq!(run.code(), Some(143), "{fault} at rank {rank}: {runs:#?}");
        }
    }
    assert_done(&run(&fixture, 2, "out", &flags));
    assert_same(&fixture, "whole", "out");
}

#[test]
fn torchrun_starts_the_ranks_again_and_the_bytes_are_the_same() {
    let fixture = Fixture::new(PAIRS);
    assert_done(&run(&fixture, 2, "whole", &[]));
    // Each start but the last ends with kill -9 of a rank.
    let program = fixture.put(
        "start.sh",
        b"case \"$TORCHELASTIC_RESTART_COUNT $RANK\" in\n\
          '0 1') export RUNKIT_FAULT=step:5 ;;\n\
          '1 0') export RUNKIT_FAULT=checkpoint:1 ;;\n\
          '2 1') export RUNKIT_FAULT=load:3 ;;\n\
          esac\nexec \"$@\"\n",
    );
    // Ranks that are started again resume, --fresh or not.
    let train = fixture.run("out", &[&FLAGS[..], &["--fresh"]].concat());
    let mut command = testkit::program("/bin/sh", [program.as_os_str(), train.get_program()]);
    command.args(train.get_args());
    let flags = ["--nproc-per-node", "2", "--max-restarts", "3"];
    let run = Run::of(&mut torchrun(&flags, &command)).expect_code(0);
    assert_same(&fixture, "whole", "out");
    for words in ["error: rank 1 of 2", "rank 1: error: rank 0 of 2", "resuming from"] {
        assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
    }
    // SIGTERM to the launcher ends all ranks in order.
    let mut launcher = common::Running::start(&mut torchrun(&flags, &{
        let flags = [&FLAGS[..], &["--steps", "5000"]].concat();
        fixture.run("long", &flags)
    }));
    wait_until("there is a checkpoint", || {
        fixture.path("long/checkpoints/step-000003/DONE").exists()
    });
    launcher.signal("TERM");
    wait_until("the launcher has ended", || launcher.has_ended());
    let run = launcher.finish();
    assert_eq!(run.stderr.matches("stopped by SIGTERM").count(), 1, "{run:#?}");
    assert!(!run.stderr.contains("error: rank"), "{run:#?}");
}

#[test]
fn a_rank_that_hangs_is_named_within_the_time_limit() {
    let fixture = Fixture::new(PAIRS);
    let flags = ["--steps", "5000", "--rank-timeout", "4"];
    let mut ranks = start(&fixture, 2, "out", &flags, |_, _| {});
    wait_until("there is a checkpoint", || {
        fixture.path("out/checkpoints/step-000003/DONE").exists()
    });
    ranks.rank(1).signal("STOP");
    wait_until("rank 0 has ended", || ranks.rank(0).has_ended());
    ranks.rank(1).signal("KILL");
    let runs = ranks.finish_within(LIMIT);
    assert_eq!(runs[0].code(), Some(1), "{runs:#?}");
    for words in ["error: rank 1 of 2", "steps done are kept", "hint: "] {
        assert!(runs[0].stderr.contains(words), "{words:?} is not in {runs:#?}");
    }
}

/// The errors that a rank ended with.
fn errors(run: &Run) -> Vec<&str> {
    let begins = |line: &str| {
        let line = line
            .split_once(": ")
            .filter(|(rank, _)| rank.starts_with("rank "))
            .map_or(line, |(_, rest)| rest);
        line.starts_with("error: ")
    };
    let mut from = 0;
    let mut found = Vec::new();
    for line in run.stderr.split_inclusive('\n') {
        if begins(line) {
            found.push(&run.stderr[from..]);
        }
        from += line.len();
    }
    found
}

/// The ranks end with 1 and one error each: `guilty` with `says`, the others with the same words and
/// its name.
#[track_caller]
fn assert_told(runs: &[Run], guilty: usize, says: &[&str]) {
    for (rank, run) in runs.iter().enumerate() {
        assert_eq!((run.code(), errors(run).len()), (Some(1), 1), "{runs:#?}");
        let (_, error) = errors(run)[0].split_once("error: ").unwrap();
        for words in says {
            assert!(error.contains(words), "{words:?} is not in {runs:#?}");
        }
        let name = format!("rank {guilty}: ");
        assert_eq!(error.contains(&name), rank != guilty, "{runs:#?}");
    }
}

#[test]
fn an_error_at_one_rank_ends_all_of_them() {
    let fixture = Fixture::new(PAIRS);
    let steps = ["--steps", "5"];
    // Rank 1 is out of memory in the third micro-batch of the second step.
    let runs = faulty(&fixture, "memory", &steps, 1, "memory:6:ENOSPC");
    assert_told(&runs, 1, &["out of memory"]);
    assert!(runs[1].stderr.contains("--micro-batch 1"), "{runs:#?}");
    assert!(runs[0].stderr.contains("the 1 step done is kept"), "{runs:#?}");
    assert_eq!(fixture.names("memory/checkpoints"), ["step-000001"]);
    // Rank 0 cannot write.
    let runs = faulty(&fixture, "full", &steps, 0, "metrics:3:ENOSPC");
    assert_told(&runs, 0, &["metrics.jsonl", "no space left on the disk"]);
    assert_done(&run(&fixture, 2, "full", &steps));
    // An input that cannot be used is rank 0's fault to report.
    let runs = run(&fixture, 2, "none", &["--labels", "nowhere.parquet"]);
    assert_told(&runs, 0, &["nowhere.parquet", "hint: "]);
    assert!(!fixture.path("none").exists());
    // Ranks with other settings are not one run.
    let special = |rank: usize, command: &mut Command| {
        if rank == 1 {
            command.args(["--seed", "5"]);
        }
    };
    let runs = start(&fixture, 2, "none", &steps, special).finish_within(LIMIT);
    for run in &runs {
        assert_eq!(run.code(), Some(1), "{runs:#?}");
        assert!(run.stderr.contains("settings.seed is 0 at rank 0 and 5 at rank 1"), "{runs:#?}");
    }
    assert!(!fixture.path("none").exists());
}

#[test]
fn a_damaged_image_at_one_rank_ends_all_and_names_the_pair() {
    let fixture = Fixture::new(PAIRS);
    let mut pairs = common::sample_pairs(PAIRS);
    pairs[3].image[1].truncate(200);
    let id = pairs[3].ranking_id.to_string();
    for (number, part) in pairs.chunks(PAIRS.div_ceil(2)).enumerate() {
        fixture.put(&format!("pairs/{number}.parquet"), &common::pairs_parquet(part));
    }
    let runs = run(&fixture, 2, "out", &["--probe-pairs", "0", "--sample-every", "0"]);
    let guilty = usize::from(runs[0].stderr.contains("error: rank 1: "));
    assert_told(&runs, guilty, &[&id]);
}

#[test]
fn a_loss_that_is_not_finite_at_one_rank_changes_nothing_at_any() {
    let fixture = Fixture::new(PAIRS);
    let id = fixture.labels()[3].pair_id.clone();
    let cache = fixture.poisoned_cache(&id);
    let flags = ["--cache", &cache, "--probe-pairs", "0", "--sample-every", "0"];
    let runs = run(&fixture, 2, "out", &flags);
    for run in &runs {
        assert_eq!(run.code(), Some(1), "{runs:#?}");
        assert!(run.stderr.contains("the loss is NaN") && run.stderr.contains(&id), "{runs:#?}");
    }
    assert!(runs[0].stderr.contains("--skip-pairs") && !runs[1].stderr.contains("--skip-pairs"));
    let list =
        fixture.names("out").into_iter().find(|name| name.starts_with("not-finite-")).unwrap();
    assert_eq!(fixture.bytes(&format!("out/{list}")), format!("{id}\n").into_bytes());
    let list = fixture.path("out").join(list).display().to_string();
    assert_done(&run(&fixture, 2, "out", &[&flags[..], &["--skip-pairs", &list]].concat()));
}

#[test]
fn a_plan_knows_the_ranks() {
    let fixture = Fixture::new(PAIRS);
    let plan = |more: &[&str]| -> Value {
        let flags = [&FLAGS[..], more, &["--json"]].concat();
        let run = Run::of(&mut fixture.command("plan", "out", &flags)).expect_code(0);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let (one, three) = (plan(&[]), plan(&["--ranks", "3"]));
    let number = |plan: &Value, path: &str| plan.pointer(path).unwrap().as_f64().unwrap();
    assert_eq!((&one["ranks"], &one["micro_batches_per_rank"]), (&1.into(), &6.into()));
    assert_eq!((&three["ranks"], &three["micro_batches_per_rank"]), (&3.into(), &2.into()));
    assert_eq!(number(&one, "/communication/sent_bytes_per_step"), 0.0);
    let gradients = 4.0 * number(&three, "/parameters");
    let sent = number(&three, "/communication/sent_bytes_per_step");
    assert!((sent - gradients * 4.0 / 3.0).abs() < 2.0, "{three:#}");
    // Each rank keeps a third of the two moments, and on a CPU a sixteenth on top for reuse.
    let [whole, sharded] = ["whole", "sharded"]
        .map(|kind| number(&three, &format!("/peak_memory_bytes_by_optimizer/{kind}")));
    let spared = gradients * 4.0 / 3.0 * (1.0 + 1.0 / 16.0);
    assert!((whole - sharded - spared).abs() < 4.0, "{three:#}");
    assert_eq!(plan(&["--ranks", "3", "--shard-optimizer"])["peak_memory_bytes"], sharded as u64);
    // Under a launcher rank 0 plans for all.
    let flags = [&FLAGS[..], &["--json"]].concat();
    let runs = Ranks::start(2, |_| fixture.command("plan", "out", &flags)).finish_within(LIMIT);
    let planned: Value = serde_json::from_str(&runs[0].stdout).unwrap();
    assert_eq!(planned["ranks"], 2);
    assert!(runs[1].stdout.is_empty() && runs.iter().all(|run| run.code() == Some(0)), "{runs:#?}");
    // What cannot be shared is refused with what can.
    let flags = ["--batch-size", "10", "--ranks", "3"];
    let run = Run::of(&mut fixture.command("plan", "out", &flags));
    run.expect_usage_error(&["3 ranks", "--batch-size 9 or 12", "2 ranks"]);
}
