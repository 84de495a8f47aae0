//! The effect of the dtype on training: weights that were born in f16, and the scale of the loss.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::{Fixture, Run};

const UNET: &str = "pipeline/unet/diffusion_pytorch_model.safetensors";
/// The miniature pipeline, whose files are f16.
const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini/sd");

/// The first update moves weights by the learning rate. In bf16 a fraction of the weights,
/// proportional to it, rounds to another number. When the ties of f16 were left alone it was one
/// weight in sixteen whatever the rate: a distance of 0.13 here.
#[test]
fn the_first_update_in_bf16_is_as_small_as_the_learning_rate() {
    let fixture = Fixture::new(8);
    let distance = |out: &str, dtype: &str| {
        let more = [
            "--model",
            MINI,
            "--resolution",
            "32",
            "--dtype",
            dtype,
            "--steps",
            "1",
            "--lr",
            "1e-8",
            "--warmup-steps",
            "0",
            "--reference-every",
            "0",
            "--probe-every",
            "1",
        ];
        let run = Run::of(&mut fixture.run(out, &more)).expect_code(0);
        assert_eq!(run.stderr.contains("weights were born in f16"), dtype == "bf16", "{run:#?}");
        let line = fixture.metrics(out).pop().unwrap();
        assert_eq!(line["z/mean"].as_f64().unwrap().abs(), 0.0, "{dtype}");
        assert!((line["loss"].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-7, "{dtype}");
        line["distance"].as_f64().unwrap()
    };
    let (f32, bf16) = (distance("f32", "f32"), distance("bf16", "bf16"));
    assert!((1e-5..3e-5).contains(&f32), "{f32}");
    // The root of one bf16 unit (2e-4 of these weights) over the rate is 140.
    assert!(bf16 < 250.0 * f32, "{bf16} for {f32}");
}

#[test]
fn a_fixed_loss_scale_changes_no_bit_in_f32() {
    let fixture = Fixture::new(11);
    Run::of(&mut fixture.run("plain", &[])).expect_code(0);
    Run::of(&mut fixture.run("scaled", &["--loss-scale", "1024"])).expect_code(0);
    assert!(fixture.bytes(&format!("plain/{UNET}")) == fixture.bytes(&format!("scaled/{UNET}")));
    let lines = fixture.metrics("scaled");
    assert_eq!(lines[1]["loss_scale"], 1024.0);
    assert_eq!(lines[1]["grad_norm"], fixture.metrics("plain")[1]["grad_norm"]);
    let refused = Run::of(&mut fixture.run("other", &["--loss-scale", "1000"]));
    refused.expect_usage_error(&["--loss-scale", "\"1000\"", "hint: dynamic"]);
}

#[test]
fn a_dynamic_loss_scale_falls_until_gradients_are_finite_and_is_resumed() {
    let fixture = Fixture::new(11);
    let more = ["--loss-scale", "dynamic:2^124"];
    Run::of(&mut fixture.run("whole", &more)).expect_code(0);
    let lines = fixture.metrics("whole");
    let overflows = lines.iter().filter(|line| line.contains_key("overflow")).count();
    assert!((1..8).contains(&overflows), "{overflows} steps changed no weight");
    let steps: Vec<_> = lines.iter().filter(|line| line.contains_key("loss_scale")).collect();
    assert_eq!(steps.len(), 10);
    for (index, line) in steps.iter().enumerate() {
        let halvings = i32::try_from(index.min(overflows)).unwrap();
        assert_eq!(line["loss_scale"], 2f64.powi(124 - halvings), "step {}", index + 1);
    }
    // The scale is part of a checkpoint: a killed run ends with the same bytes.
    let mut killed = fixture.run("killed", &more);
    assert!(Run::of(killed.env("RUNKIT_FAULT", "checkpoint:2")).was_killed());
    Run::of(&mut fixture.run("killed", &more)).expect_code(0);
    let last = "checkpoints/step-000010";
    for file in [UNET, &format!("{last}/state.json"), &format!("{last}/optimizer.safetensors")] {
        let (whole, killed) = (format!("whole/{file}"), format!("killed/{file}"));
        assert!(fixture.bytes(&whole) == fixture.bytes(&killed), "{file}");
    }
    assert_eq!(fixture.metrics("killed"), lines);
}
