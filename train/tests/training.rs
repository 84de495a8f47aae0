//! What a run makes: the loss, the reference, gradients of any micro-batch, metrics, records,
//! sample images and a pipeline, from the program as a whole.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::Path;

use common::{Fixture, Run, pipeline};
use nn::device::Precision;
use nn::pipeline::{Pipeline, PipelineFiles};
use nn::weights::Weights;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

/// ln 2 in single precision, as numbers of steps are.
const LN_2: f64 = std::f32::consts::LN_2 as f64;

fn number(line: &Map<String, Value>, name: &str) -> f64 {
    line.get(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

fn tensor(path: &Path, name: &str) -> Tensor {
    Weights::open(path).unwrap().tensor(name).unwrap().to_kind(Kind::Float)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// The trained weights of a run's result.
fn trained(fixture: &Fixture, out: &str) -> Vec<(String, Tensor)> {
    let path = fixture.path(out).join("pipeline/unet/diffusion_pytorch_model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), weights.tensor(&name).unwrap())).collect()
}

#[test]
fn where_model_and_reference_are_equal_z_is_zero_and_the_loss_ln_2() {
    let fixture = Fixture::new(12);
    for dtype in ["f32", "bf16"] {
        for checkpointing in ["--grad-checkpointing=false", "--grad-checkpointing=true"] {
            let out = format!("out-{dtype}-{checkpointing}");
            let more = ["--dtype", dtype, "--record-steps", "9", checkpointing];
            Run::of(&mut fixture.run(&out, &more)).expect_code(0);
            let lines = fixture.metrics(&out);
            assert_eq!(lines.len(), 11, "a line of the start and of each step");
            assert!((number(&lines[0], "probe/loss") - LN_2).abs() < 1e-12);
            assert_eq!(number(&lines[0], "probe/accuracy"), 0.5);
            // The first update has no learning rate; the reference moves after steps 4 and 8.
            let equal = [1, 2, 5, 9];
            for line in &lines[1..] {
                let step = line["step"].as_u64().unwrap();
                let (loss, spread) = (number(line, "loss"), number(line, "z/std"));
                if equal.contains(&step) {
                    assert!((loss - LN_2).abs() < 1e-12, "{dtype} {step}: {loss}");
                    assert_eq!((number(line, "z/mean"), spread), (0.0, 0.0), "{dtype} {step}");
                    assert_eq!(number(line, "accuracy"), 0.5);
                    assert!(number(line, "grad_norm") > 0.0);
                } else {
                    assert!(loss != LN_2 && spread > 0.0, "{dtype} {step}: {loss}");
                }
                let moved = [(9, 8), (5, 4)].into_iter().find(|(from, _)| step >= *from);
                let expected = moved.map_or(0, |(_, step)| step);
                assert_eq!(line["reference_step"].as_u64().unwrap(), expected, "{step}");
            }
            // Every pair by itself, to the last bit.
            for step in equal {
                for micro in 0..2 {
                    let name = format!("{out}/record/step-{step:06}-micro-{micro:03}.safetensors");
                    let record = fixture.path(&name);
                    assert_eq!(largest(&tensor(&record, "z")), 0.0);
                    let loss = Vec::<f32>::try_from(&tensor(&record, "loss")).unwrap();
                    assert_eq!(loss, [std::f32::consts::LN_2; 2]);
                    for image in 0..2 {
                        let model = tensor(&record, &format!("model_pred_{image}"));
                        let reference = tensor(&record, &format!("ref_pred_{image}"));
                        assert_eq!(model, reference);
                    }
                }
            }
        }
    }
}

#[test]
fn the_micro_batch_changes_the_result_by_rounding_only() {
    let fixture = Fixture::new(12);
    let base = pipeline("sd").join("unet/diffusion_pytorch_model.safetensors");
    let flags = ["--steps", "3", "--caption-dropout", "0.5", "--record-steps", "1"];
    let mut runs = Vec::new();
    for micro in ["4", "2", "1"] {
        let more = [&flags[..], &["--micro-batch", micro]].concat();
        Run::of(&mut fixture.run(micro, &more)).expect_code(0);
        runs.push((fixture.metrics(micro), trained(&fixture, micro)));
    }
    let (lines, weights) = &runs[0];
    let mut moved = 0.0f64;
    for (name, weight) in weights {
        moved = moved.max(largest(&(weight - tensor(&base, name))));
    }
    assert!(moved > 1e-4, "trained by {moved}");
    for (other_lines, other_weights) in &runs[1..] {
        for (step, (line, other)) in lines.iter().zip(other_lines).enumerate().skip(1) {
            // The first updates of AdamW are nearly the sign of a gradient: where one is all
            // rounding, weights of later steps are apart by twice the learning rate.
            let bound = if step == 1 { 1e-4 } else { 1e-2 };
            for name in ["loss", "grad_norm", "error/model_chosen", "error/reference_rejected"] {
                let (here, there) = (number(line, name), number(other, name));
                assert!((here / there - 1.0).abs() < bound, "{step}, {name}: {here} and {there}");
            }
        }
        for ((name, weight), (_, other)) in weights.iter().zip(other_weights) {
            let difference = largest(&(weight - other));
            assert!(difference < 0.1 * moved, "{name}: {difference} of {moved}");
        }
    }
    assert_eq!(fixture.names("1/record").len(), 4);
    assert_eq!(fixture.names("4/record").len(), 1);
}

#[test]
fn records_hold_what_a_step_is_computed_from() {
    let fixture = Fixture::new(12);
    for model in ["sd", "sdxl"] {
        let folder = pipeline(model).display().to_string();
        let more = ["--model", &folder, "--record-steps", "3", "--steps", "4"];
        Run::of(&mut fixture.run(model, &more)).expect_code(0);
        assert_eq!(fixture.names(&format!("{model}/record")).len(), 6, "three steps of two");
        let path = fixture.path(model).join("record/step-000003-micro-001.safetensors");
        let weights = Weights::open(&path).unwrap();
        let mut expected = vec![
            "label_p",
            "latents_0",
            "latents_1",
            "loss",
            "model_pred_0",
            "model_pred_1",
            "noise",
            "prompt_embeds",
            "ref_pred_0",
            "ref_pred_1",
            "timesteps",
            "weight_w",
            "z",
        ];
        if model == "sdxl" {
            expected.extend(["pooled_embeds", "time_ids"]);
            expected.sort_unstable();
            let ids = Vec::<f32>::try_from(tensor(&path, "time_ids").get(0)).unwrap();
            assert_eq!(ids, [16.0, 16.0, 0.0, 0.0, 16.0, 16.0]);
        }
        assert_eq!(weights.names().collect::<Vec<_>>(), expected);
        let bytes = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes[..4000]).into_owned();
        for key in ["pair_ids", "\"lr\":\"0.001\"", "grad_norm", "\"reference_step\":\"0\""] {
            assert!(text.contains(key), "{key} is not in {text}");
        }
        // The loss of what is recorded is the one that is recorded.
        let of = |name: &str| tensor(&path, name);
        let error = |predicted: &str| {
            (of(predicted) - of("noise")).square().mean_dim(&[1i64, 2, 3][..], false, Kind::Float)
        };
        let gain = |image: i32| {
            error(&format!("model_pred_{image}")) - error(&format!("ref_pred_{image}"))
        };
        let z = (gain(0) - gain(1)) * -25.0;
        assert!(largest(&(&z - of("z"))) < 1e-4);
        let loss = z.softplus() - of("label_p") * &z;
        assert!(largest(&(loss - of("loss"))) < 1e-4);
        assert!(largest(&of("z")) > 0.0);
        let times = Vec::<f32>::try_from(of("timesteps")).unwrap();
        assert!(times.iter().all(|time| (0.0..1000.0).contains(time)) && times[0] != times[1]);
    }
}

#[test]
fn the_result_is_a_pipeline_with_a_card_and_the_rest_of_the_base_model() {
    let fixture = Fixture::new(12);
    for model in ["sd", "sdxl"] {
        let folder = pipeline(model).display().to_string();
        let run = Run::of(&mut fixture.run(model, &["--model", &folder, "--sample-every", "5"]))
            .expect_code(0);
        assert!(run.stdout.contains("probe: loss 0.6931 -> 0."), "{run:#?}");
        assert!(run.stdout.contains("pipeline: "), "{run:#?}");
        let result = fixture.path(model).join("pipeline");
        let files = PipelineFiles::open(&result, None).unwrap();
        Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap();
        for part in ["vae/config.json", "tokenizer/vocab.json", "model_index.json"] {
            let original = std::fs::read(pipeline(model).join(part)).unwrap();
            assert!(std::fs::read(result.join(part)).unwrap() == original, "{part}");
        }
        let card = std::fs::read_to_string(result.join("README.md")).unwrap();
        for words in ["library_name: diffusers", "implicit accuracy", "| beta | 50.0 |", "SHA-256"]
        {
            assert!(card.contains(words), "{words:?} is not in {card}");
        }
        let sets = fixture.names(&format!("{model}/samples"));
        assert_eq!(sets, ["step-000000", "step-000005", "step-000010"]);
        let image = fixture.path(model).join("samples/step-000010/00.png");
        let decoded =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(image).unwrap()));
        let reader = decoded.read_info().unwrap();
        assert_eq!((reader.info().width, reader.info().height), (16, 16));
        assert_eq!(fixture.names(&format!("{model}/checkpoints")), ["step-000009", "step-000010"]);
        let checkpoint = format!("{model}/checkpoints/step-000010");
        let parts = ["DONE", "optimizer.safetensors", "reference", "state.json", "unet"];
        assert_eq!(fixture.names(&checkpoint), parts);
        assert!(!fixture.names(&format!("{model}/tensorboard")).is_empty());
        assert!(fixture.path(model).join("config.toml").exists());
    }
}

#[test]
fn metrics_have_the_expected_keys() {
    let fixture = Fixture::new(12);
    Run::of(&mut fixture.run("out", &[])).expect_code(0);
    let text = std::fs::read_to_string(fixture.path("out/metrics.jsonl")).unwrap();
    let last: Map<String, Value> = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    for name in [
        "step",
        "loss",
        "accuracy",
        "lr",
        "grad_norm",
        "z/mean",
        "z/std",
        "z/q05",
        "z/q95",
        "error/model_chosen",
        "error/model_rejected",
        "error/reference_chosen",
        "error/reference_rejected",
        "reference_step",
        "probe/loss",
        "probe/accuracy",
        "probe/error_chosen",
        "probe/base_error_rejected",
        "distance",
        "time/data",
        "time/encode",
        "time/forward",
        "time/backward",
        "time/optimizer",
        "time/step",
    ] {
        assert!(number(&last, name).is_finite(), "{name}");
    }
    // Two steps of warm-up, the first at 0.
    let rates: Vec<f64> =
        fixture.metrics("out")[1..].iter().map(|line| number(line, "lr")).take(4).collect();
    assert_eq!(rates, [0.0, 5e-4, 1e-3, 1e-3]);
}

#[test]
fn an_alarm_is_raised_where_the_model_gets_worse_on_both_sides() {
    let fixture = Fixture::new(12);
    let more = ["--lr", "0.05", "--probe-every", "2", "--warmup-steps", "0"];
    let run = Run::of(&mut fixture.run("out", &more)).expect_code(0);
    assert!(run.stderr.contains("have both risen"), "{run:#?}");
    let alarmed = |line: &Map<String, Value>| line.contains_key("alarm");
    let lines = fixture.metrics("out");
    assert!(lines.iter().any(alarmed));
    // Exactly where both errors of the probe are a tenth above the base model's.
    for line in lines.iter().filter(|line| line.contains_key("probe/error_chosen")) {
        let rises = ["chosen", "rejected"].map(|side| {
            let base = number(line, &format!("probe/base_error_{side}"));
            number(line, &format!("probe/error_{side}")) / base
        });
        assert_eq!(rises.iter().all(|rise| *rise > 1.1), alarmed(line), "{line:?}");
    }
    Run::of(&mut fixture.run("calm", &[])).expect_code(0);
    assert!(!fixture.metrics("calm").iter().any(alarmed));
}

#[test]
fn preferences_change_the_labels_and_nothing_else() {
    let fixture = Fixture::new(12);
    let run = |out: &str, more: &[&str]| {
        let more = [more, &["--record-steps", "2", "--steps", "2"]].concat();
        Run::of(&mut fixture.run(out, &more)).expect_code(0);
        let all = |name: &str| {
            let records = fixture.names(&format!("{out}/record"));
            let parts: Vec<Tensor> = records
                .iter()
                .map(|record| tensor(&fixture.path(out).join("record").join(record), name))
                .collect();
            Tensor::cat(&parts, 0)
        };
        (all("label_p"), all("latents_0"), all("noise"))
    };
    let (consensus, latents, noise) = run("consensus", &[]);
    for (name, flags) in [
        ("vanilla", vec!["--preference", "vanilla"]),
        ("aesthetic", vec!["--preference", "scorer:aesthetic"]),
        ("sum", vec!["--preference", "score-sum"]),
        ("normalized", vec!["--preference", "normalized-sum"]),
        ("random", vec!["--preference", "random-scorer"]),
        ("human", vec!["--preference", "human"]),
    ] {
        let (labels, same_latents, same_noise) = run(name, &flags);
        assert_eq!((&same_latents, &same_noise), (&latents, &noise), "{name}");
        assert!(labels.min().double_value(&[]) >= 0.0 && labels.max().double_value(&[]) <= 1.0);
        if name == "vanilla" {
            assert_ne!(labels, consensus);
        }
    }
    let lines = fixture.metrics("random");
    assert!(common::SCORERS.contains(&lines[1]["scorer"].as_str().unwrap()));
}

#[test]
fn adafactor_and_a_run_of_one_step_work() {
    let fixture = Fixture::new(8);
    let more = ["--optimizer", "adafactor", "--steps", "2", "--warmup-steps", "0"];
    Run::of(&mut fixture.run("adafactor", &more)).expect_code(0);
    let base = pipeline("sd").join("unet/diffusion_pytorch_model.safetensors");
    for (name, weight) in trained(&fixture, "adafactor") {
        assert!(largest(&(weight - tensor(&base, &name))) > 0.0, "{name} did not move");
    }
    let single = ["--steps", "1", "--batch-size", "1", "--micro-batch", "1", "--probe-pairs", "0"];
    Run::of(&mut fixture.run("single", &single)).expect_code(0);
    assert_eq!(fixture.metrics("single").len(), 1);
}

#[test]
fn a_plan_shows_what_a_run_would_do_and_writes_nothing() {
    let fixture = Fixture::new(12);
    let run =
        Run::of(&mut fixture.command("plan", "out", &["--reference-every", "4"])).expect_code(0);
    for words in [
        "10 of 12 (0 failed, 0 dropped as ties or without a preference, 2 held out for the probe)",
        "10 of 4 pairs in micro-batches of 2: 4.00 epochs",
        "effective lr",
        "updated every 4 steps, 2 times",
        "peak memory",
        "0 of 12 (0.0 %), policy: drop",
        "per checkpoint",
        "loss                  dpo, β 50 with the half of z: 25 in diffusers' script for SD",
        "on a GPU",
        "cards of 6 GB and more",
        "16 x 16",
        "time",
    ] {
        assert!(run.stdout.contains(words), "{words:?} is not in {}", run.stdout);
    }
    let run = Run::of(&mut fixture.command("plan", "out", &["--json"])).expect_code(0);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&plan["pairs"]["selected"], &plan["epochs"]), (&10.into(), &4.0.into()));
    assert!(plan["seconds"][1].as_f64() > plan["seconds"][0].as_f64());
    assert_eq!(plan["gpu"]["fits_gigabytes"], serde_json::json!([6, 8, 12, 16, 24, 40, 80]));
    assert!(plan["gpu"]["memory"].is_null());
    assert!(!fixture.path("out").exists());
}

/// For a GPU that need not be here: whether the run fits, and what it would take.
#[test]
fn a_plan_for_a_named_memory_says_whether_the_run_fits() {
    let fixture = Fixture::new(12);
    let plan = |memory: &str| -> Value {
        let flags = ["--json", "--device", "cuda", "--memory", memory];
        let run = Run::of(&mut fixture.command("plan", "out", &flags)).expect_code(0);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let small = plan("6GiB");
    assert_eq!(small["gpu"]["memory"]["fits"], true);
    assert_eq!(small["gpu"]["memory"]["bytes"], 6u64 << 30);
    // The peak on a GPU holds the CUDA context alone: no flag helps.
    let never = plan("500MiB");
    assert_eq!(never["gpu"]["memory"]["fits"], false);
    assert!(never["gpu"]["memory"]["flags"].is_null());
    // A byte less than it takes: a flag helps.
    let peak = small["gpu"]["peak_memory_bytes"].as_u64().unwrap();
    let tight = plan(&format!("{}MB", (peak - 1) as f64 / 1e6));
    let flags = tight["gpu"]["memory"]["flags"].as_array().unwrap();
    assert!(!flags.is_empty(), "{tight}");
    let flags = ["--memory", "twelve"];
    Run::of(&mut fixture.command("plan", "out", &flags)).expect_code(2);
}

/// With a cache the encoders are off the device, and come back for sample images.
#[test]
fn a_cached_run_samples_the_images_of_its_pairs() {
    let fixture = Fixture::new(12);
    let cache = fixture.path("latents").display().to_string();
    let mut command = common::train(["cache", "--model"]);
    command.arg(pipeline("sd")).arg("--pairs").arg(fixture.path("pairs")).args(["--out", &cache]);
    Run::of(&mut command).expect_code(0);
    let samples = ["--sample-every", "5", "--sample-steps", "2"];
    Run::of(&mut fixture.run("streamed", &samples)).expect_code(0);
    let cached = [&samples[..], &["--cache", &cache]].concat();
    Run::of(&mut fixture.run("cached", &cached)).expect_code(0);
    let image = |out: &str, step: &str| fixture.bytes(&format!("{out}/samples/{step}/00.png"));
    // Of the base model's weights; those of later steps differ by the rounding of the cache.
    assert!(image("streamed", "step-000000") == image("cached", "step-000000"));
    for step in ["step-000005", "step-000010"] {
        assert!(image("cached", step) != image("cached", "step-000000"), "{step}");
    }
}

#[test]
fn a_model_is_exported_as_a_single_file() {
    let fixture = Fixture::new(4);
    let out = fixture.path("model.safetensors").display().to_string();
    let export = |out: &str, more: &[&str]| {
        let mut command = common::train(["export", "--format", "single-file", "--model"]);
        command.arg(pipeline("sd")).args(["--out", out]).args(more);
        Run::of(&mut command)
    };
    export(&out, &[]).expect_code(0);
    let first = fixture.bytes("model.safetensors");
    let run = export(&out, &["--dtype", "f16", "--json"]).expect_code(0);
    let half = fixture.bytes("model.safetensors");
    assert!(half.len() < first.len(), "a file that it wrote is replaced");
    let said: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(said["bytes"], half.len());
    export(&fixture.path("model.ckpt").display().to_string(), &[])
        .expect_error(&["expected the name of a .safetensors file"]);
    let theirs = pipeline("sd").join("unet/diffusion_pytorch_model.safetensors");
    std::fs::copy(theirs, fixture.path("theirs.safetensors")).unwrap();
    let before = fixture.bytes("theirs.safetensors");
    export(&fixture.path("theirs.safetensors").display().to_string(), &[])
        .expect_error(&["did not write", "another name"]);
    assert!(fixture.bytes("theirs.safetensors") == before);
}

#[test]
fn recipes_are_listed() {
    let run = Run::of(&mut common::train(["recipes"])).expect_code(0);
    assert!(run.stdout.contains("paper/balanced") && run.stdout.contains("sdxl"), "{run:#?}");
    let run = Run::of(&mut common::train(["recipes", "--json"])).expect_code(0);
    let recipes: Value = serde_json::from_str(&run.stdout).unwrap();
    let mini = recipes.as_array().unwrap().iter().find(|recipe| recipe["name"] == "mini").unwrap();
    assert_eq!(mini["settings"]["resolution"], 32);
}

#[test]
fn a_finished_run_is_summarised_as_json() {
    let fixture = Fixture::new(12);
    let run = Run::of(&mut fixture.run("out", &["--json"])).expect_code(0);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(summary["pipeline"].as_str().unwrap().ends_with("out/pipeline"));
    assert_eq!(summary["probe"]["accuracy"]["before"], 0.5);
}

#[test]
fn a_cache_gives_the_run_that_its_pairs_give() {
    let fixture = Fixture::new(12);
    let cache = fixture.path("latents").display().to_string();
    let mut command = common::train(["cache", "--model"]);
    command.arg(pipeline("sd")).arg("--pairs").arg(fixture.path("pairs")).args(["--out", &cache]);
    Run::of(&mut command).expect_code(0);
    // What it was made with is a file of settings.
    let settings = fixture.path("latents/config.toml").display().to_string();
    let again = Run::of(&mut common::train(["cache", "--config", &settings])).expect_code(0);
    assert!(again.stdout.contains("12 pairs, 0 failed"), "{again:#?}");
    let flags = ["--steps", "4", "--probe-every", "2"];
    Run::of(&mut fixture.run("pairs-run", &flags)).expect_code(0);
    let more = [&flags[..], &["--cache", &cache]].concat();
    Run::of(&mut fixture.run("cache-run", &more)).expect_code(0);
    let (pairs, cached) = (fixture.metrics("pairs-run"), fixture.metrics("cache-run"));
    assert_eq!(pairs.len(), cached.len());
    for (line, other) in pairs.iter().zip(&cached).skip(1) {
        for name in ["loss", "grad_norm", "error/model_chosen"] {
            let (here, there) = (number(line, name), number(other, name));
            assert!((here / there - 1.0).abs() < 1e-3, "{name}: {here} and {there}");
        }
    }
    // Of another model it is refused.
    let other = fixture.copy_pipeline("sd");
    let vae = other.join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&vae).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fixture.put("sd/vae/diffusion_pytorch_model.safetensors", &bytes);
    let model = other.display().to_string();
    let more = [&flags[..], &["--cache", &cache, "--model", &model]].concat();
    Run::of(&mut fixture.run("other", &more)).expect_error(&["encoders", "vae", "hint: "]);
}
