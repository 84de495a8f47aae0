//! The curve of a whole run of the `mini` recipe on the tiny pipeline, bit for bit: whoever changes
//! how a step is computed without meaning to change its result, finds out here.
//!
//! Last bits differ between processors, as libraries choose kernels by what they find. So the run is
//! told to use those that every x86-64 processor has, and one thread; on another maker's processors
//! than the recorded one's the numbers must still agree to [`TOLERANCE`]. A change that is meant is taken
//! over with `TRAIN_WRITE_GOLDEN=1 cargo test -p train --test golden_curve`, and seen in review.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;

use common::{Run, World};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mini-curve.jsonl");

/// The maker of the processor that the curve was recorded on, as `/proc/cpuinfo` names it, and what it
/// had not: with AVX-512 pictures lie in memory in another order.
const RECORDED_ON: &str = "AuthenticAMD";
const RECORDED_WITHOUT: &str = "avx512f";
/// Largest difference elsewhere, in parts of the number where that is above one. Other kernels of the recorded
/// processor (AVX2 for SSE4.1) are 1.7e-3 apart.
const TOLERANCE: f64 = 5e-3;

/// Whether two lines agree to the tolerance, number by number.
fn agree(expected: &str, found: &str) -> bool {
    let parse = |line: &str| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(line).unwrap()
    };
    let (expected, found) = (parse(expected), parse(found));
    let near = |name: &String| match (expected[name].as_f64(), found[name].as_f64()) {
        (Some(one), Some(two)) => (one - two).abs() <= TOLERANCE * one.abs().max(1.0),
        _ => expected[name] == found[name],
    };
    // A share of pairs jumps where one of them is near zero.
    let mut numbers = expected.keys().filter(|name| !name.ends_with("accuracy"));
    expected.keys().eq(found.keys()) && numbers.all(near)
}

#[test]
fn a_run_of_the_mini_recipe_has_the_same_curve_as_ever() {
    let world = World::new(24);
    let model = common::pipeline("sd").display().to_string();
    let mut command = common::train(["run", "--recipe", "mini", "--resolution", "16"]);
    command.args(["--model", &model, "--device", "cpu", "--steps", "24", "--batch-size", "8"]);
    command.args(["--micro-batch", "4", "--reference-every", "10", "--sample-every", "0"]);
    // Every recipe is made for its model: the tiny one needs larger steps to move at all, and larger
    // ones still would make much of last bits.
    command.args(["--lr", "1e-5", "--seed", "11"]);
    command.arg("--pairs").arg(world.path("pairs"));
    command.arg("--labels").arg(world.path("labels.parquet"));
    command.arg("--out").arg(world.path("out"));
    command.env("ATEN_CPU_CAPABILITY", "default").env("ONEDNN_MAX_CPU_ISA", "SSE41");
    command.env("MKL_CBWR", "COMPATIBLE").env("MKL_NUM_THREADS", "1");
    Run::of(&mut command).expect_code(0);
    let found: String = world
        .metrics("out")
        .into_iter()
        .map(|line| format!("{}\n", serde_json::Value::Object(line)))
        .collect();
    if std::env::var_os("TRAIN_WRITE_GOLDEN").is_some() {
        runkit::files::write_atomic(GOLDEN, |file| file.write_all(found.as_bytes())).unwrap();
    }
    let expected = std::fs::read_to_string(Path::new(GOLDEN)).unwrap();
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let exact = processor.contains(RECORDED_ON) && !processor.contains(RECORDED_WITHOUT);
    let lines = expected.lines().zip(found.lines());
    for (step, (expected, found)) in lines.enumerate() {
        if !exact && agree(expected, found) {
            continue;
        }
        assert_eq!(found, expected, "from step {step} on");
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}
