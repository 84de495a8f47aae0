//! The curve of a whole run of the `mini` recipe on the tiny pipeline, bit for bit: whoever changes
//! how a step is computed without meaning to change its result, finds out here.
//!
//! Last bits differ between processors, since libraries choose kernels by processor. So the run
//! uses the kernels that every x86-64 processor has, and there is one curve for each kind of
//! processor that recorded one; on others the numbers must still agree to [`TOLERANCE`]. An
//! intended change is recorded on each kind with `TRAIN_WRITE_GOLDEN=1 cargo test --workspace
//! --test golden_curve`, and is visible in review.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;

use common::{Fixture, Run};
use serde_json::{Map, Value};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
/// Largest difference elsewhere, in parts of the number where that is above one. Other kernels of
/// one processor (AVX2 for SSE4.1) are 1.7e-3 apart, the two curves 1.7e-3.
const TOLERANCE: f64 = 5e-3;

/// A kind of processor whose curve is kept, by what its `/proc/cpuinfo` has and lacks. Blocks of a
/// convolution, and so the order of sums, follow the size of the caches.
struct Kind {
    name: &'static str,
    has: &'static [&'static str],
    lacks: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind { name: "amd", has: &["AuthenticAMD"], lacks: "avx512f" },
    Kind {
        name: "intel",
        has: &["GenuineIntel", "model\t\t: 207\n", "cache size\t: 266240 KB\n"],
        lacks: "AuthenticAMD",
    },
];

impl Kind {
    fn is_of(&self, processor: &str) -> bool {
        self.has.iter().all(|word| processor.contains(word)) && !processor.contains(self.lacks)
    }
}

/// Whether two lines agree to the tolerance, number by number.
fn agree(expected: &Map<String, Value>, found: &Map<String, Value>) -> bool {
    let near = |name: &String| match (expected[name].as_f64(), found[name].as_f64()) {
        (Some(one), Some(two)) => (one - two).abs() <= TOLERANCE * one.abs().max(1.0),
        _ => expected[name] == found[name],
    };
    // An accuracy jumps if z of one pair is near zero.
    let mut numbers = expected.keys().filter(|name| !name.ends_with("accuracy"));
    expected.keys().eq(found.keys()) && numbers.all(near)
}

#[test]
fn a_run_of_the_mini_recipe_has_the_same_curve_as_ever() {
    let fixture = Fixture::new(24);
    let model = common::pipeline("sd").display().to_string();
    let mut command = common::train(["run", "--recipe", "mini", "--resolution", "16"]);
    command.args(["--model", &model, "--device", "cpu", "--steps", "24", "--batch-size", "8"]);
    command.args(["--micro-batch", "4", "--reference-every", "10", "--sample-every", "0"]);
    // Every recipe is made for its model: the tiny one needs larger steps to move at all, and
    // larger ones still would make much of last bits.
    command.args(["--lr", "1e-5", "--seed", "11", "--probe-pairs", "0"]);
    command.arg("--pairs").arg(fixture.path("pairs"));
    command.arg("--labels").arg(fixture.path("labels.parquet"));
    command.arg("--out").arg(fixture.path("out"));
    command.env("ATEN_CPU_CAPABILITY", "default").env("ONEDNN_MAX_CPU_ISA", "SSE41");
    command.env("MKL_CBWR", "COMPATIBLE").env("MKL_NUM_THREADS", "1");
    Run::of(&mut command).expect_code(0);
    let found = fixture.metrics("out");
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let kind = KINDS.iter().find(|kind| kind.is_of(&processor));
    let golden = |name: &str| Path::new(FIXTURES).join(format!("mini-curve-{name}.jsonl"));
    if let (Some(kind), Some(_)) = (kind, std::env::var_os("TRAIN_WRITE_GOLDEN")) {
        let lines = found.iter().map(|line| format!("{}\n", Value::Object(line.clone())));
        let text: String = lines.collect();
        runkit::files::write_atomic(golden(kind.name), |file| file.write_all(text.as_bytes()))
            .unwrap();
    }
    for recorded in &KINDS {
        let text = std::fs::read_to_string(golden(recorded.name)).unwrap();
        let expected: Vec<Map<String, Value>> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found.len(), expected.len());
        let exact = kind.is_some_and(|kind| kind.name == recorded.name);
        // What is measured of a step, and not what it is made of, may be looked at in another
        // order.
        let steps_of = |line: &Map<String, Value>| {
            let mut line = line.clone();
            line.remove("distance");
            line
        };
        for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let equal = !exact || steps_of(expected) == steps_of(found);
            assert!(
                equal && agree(expected, found),
                "{} from step {step} on: expected {expected:?}, found {found:?}",
                recorded.name
            );
        }
    }
}
