//! Runs of adapters (LoRA): what they leave, what they keep frozen, and that they resume, share their
//! work among ranks and refuse checkpoints of another kind as runs of all weights do.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Fixture, Run, pipeline};
use nn::device::Precision;
use nn::lora::{MergedPipeline, Part, ScaledLora};
use nn::pipeline::{Pipeline, PipelineFiles};
use nn::weights::Weights;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use testkit::Ranks;

const UNET: &str = "pipeline/unet/diffusion_pytorch_model.safetensors";
const LORA: &str = "lora/pytorch_lora_weights.safetensors";
const LAST: &str = "checkpoints/step-000010";
/// A run takes about four seconds on two cores that nobody else uses.
const LIMIT: Duration = Duration::from_secs(120);

/// The flags of these runs, and more.
fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--adapter", "lora", "--rank", "4", "--lr", "1e-2"][..], more].concat()
}

fn lora(fixture: &Fixture, out: &str, more: &[&str]) -> Command {
    fixture.run(out, &flags(more))
}

fn faulty(mut command: Command, fault: &str) -> Command {
    command.env("RUNKIT_FAULT", fault);
    command
}

/// The largest difference of two tensors.
fn apart(one: &Tensor, other: &Tensor) -> f64 {
    let float = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    (float(one) - float(other)).abs().max().double_value(&[])
}

fn metadata(file: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(file).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_value(header["__metadata__"].clone()).unwrap()
}

/// The files that a run leaves, without those that name a clock or a start.
fn results(fixture: &Fixture, out: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = fixture.files(out);
    files.retain(|name, _| {
        !name.starts_with("tensorboard/") && name != "metrics.jsonl" && name != "config.toml"
    });
    files
}

#[test]
fn a_run_leaves_its_adapters_and_a_pipeline_with_them() {
    let fixture = Fixture::new(12);
    for model in ["sd", "sdxl"] {
        let folder = pipeline(model).display().to_string();
        let more = ["--model", &folder, "--sample-every", "5", "--lora-format", "diffusers,kohya"];
        let named = [&more[..], &["--lora-name", "style", "--targets", "attention+ff"]].concat();
        let run = Run::of(&mut lora(&fixture, model, &named)).expect_code(0);
        assert!(run.stdout.contains("lora: ") && run.stdout.contains("pipeline: "), "{run:#?}");
        let names = fixture.names(&format!("{model}/lora"));
        assert_eq!(names, ["pytorch_lora_weights.safetensors", "style.safetensors"]);
        let file = fixture.path(model).join(LORA);
        let adapters = Weights::open(&file).unwrap();
        let keys: Vec<&str> = adapters.names().collect();
        let is_key = |key: &&str| {
            key.starts_with("unet.")
                && (key.ends_with(".lora_A.weight") || key.ends_with(".lora_B.weight"))
        };
        assert!(keys.iter().all(is_key) && keys.len() > 20, "{keys:?}");
        let entries = metadata(&file);
        let config: Value = serde_json::from_str(&entries["lora_adapter_metadata"]).unwrap();
        assert_eq!((&config["unet.r"], &config["unet.lora_alpha"]), (&4.into(), &4.into()));
        assert_eq!(entries["format"], "pt");
        let entries = metadata(&fixture.path(model).join("lora/style.safetensors"));
        assert_eq!(entries["ss_network_dim"], "4");
        // Programs that list files by their version know this one.
        let version = entries.get("ss_base_model_version").is_some_and(|v| v.starts_with("sdxl_"));
        assert_eq!(version, model == "sdxl");
        // The pipeline is the base model with the adapters in it.
        let files = PipelineFiles::open(Path::new(&folder), None).unwrap();
        let base = Weights::open(&files.unet.weights).unwrap();
        let result = Weights::open(fixture.path(model).join(UNET)).unwrap();
        assert!(result.names().eq(base.names()));
        for source in [LORA, "lora/style.safetensors"] {
            let path = fixture.path(model).join(source);
            let merged = MergedPipeline::open(&files, &[ScaledLora { path, scale: 1.0 }]).unwrap();
            assert_eq!(merged.changed.iter().collect::<Vec<_>>(), [&Part::Unet]);
            let mut moved = 0;
            for name in base.names() {
                let found = result.tensor(name).unwrap();
                let expected = merged.unet.tensor(name).unwrap();
                assert!(apart(&found, &expected) < 1e-6, "{name}");
                let is_target = [".to_", ".ff."].iter().any(|part| name.contains(part));
                let difference = apart(&found, &base.tensor(name).unwrap());
                match is_target && name.ends_with(".weight") {
                    true => moved += usize::from(difference > 1e-6),
                    false => assert_eq!(difference, 0.0, "{name} is frozen"),
                }
            }
            assert_eq!(moved, keys.len() / 2, "every adapter has moved its layer");
        }
        let files = PipelineFiles::open(&fixture.path(model).join("pipeline"), None).unwrap();
        Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap();
        let card = std::fs::read_to_string(files.folder.join("README.md")).unwrap();
        for words in ["LoRA of rank 4, alpha 4, on attention+ff", "| adapter | lora |"] {
            assert!(card.contains(words), "{words:?} is not in {card}");
        }
        // A checkpoint holds the adapters, and none of the frozen weights.
        let checkpoint = format!("{model}/{LAST}");
        for part in ["unet", "reference"] {
            let names = fixture.names(&format!("{checkpoint}/{part}"));
            assert_eq!(names, ["adapters.safetensors"], "{part}");
        }
        let saved = fixture.path(&checkpoint).join("unet/adapters.safetensors");
        let saved = Weights::open(&saved).unwrap();
        assert!(saved.names().map(|name| format!("unet.{name}")).eq(adapters.names()));
        for name in saved.names() {
            let exported = adapters.tensor(&format!("unet.{name}")).unwrap();
            assert_eq!(saved.tensor(name).unwrap(), exported, "alpha is the rank");
        }
        let state = fixture.path(&checkpoint).join("optimizer.safetensors");
        let names = Weights::open(&state).unwrap();
        let moments = names.names().filter(|name| name.ends_with(".exp_avg")).count();
        assert_eq!(moments, keys.len());
    }
}

#[test]
fn the_scale_is_in_the_exported_file_and_beside_the_saved_one() {
    let fixture = Fixture::new(8);
    let more = ["--alpha", "2", "--targets", "to_q,conv1", "--steps", "3", "--no-merge"];
    let run = Run::of(&mut lora(&fixture, "out", &more)).expect_code(0);
    assert!(run.stdout.contains("lora: ") && !run.stdout.contains("pipeline: "), "{run:#?}");
    assert!(!fixture.path("out/pipeline").exists());
    let names = fixture.names("out/lora");
    assert_eq!(names, ["README.md", "pytorch_lora_weights.safetensors"]);
    let card = std::fs::read_to_string(fixture.path("out/lora/README.md")).unwrap();
    assert!(card.contains("load_lora_weights"), "{card}");
    let exported = Weights::open(fixture.path("out").join(LORA)).unwrap();
    let saved = "out/checkpoints/step-000003/unet/adapters.safetensors";
    let saved = Weights::open(fixture.path(saved)).unwrap();
    assert!(saved.names().any(|name| name.ends_with("resnets.0.conv1.lora_A.weight")));
    for name in saved.names() {
        let (own, found) = (saved.tensor(name), exported.tensor(&format!("unet.{name}")));
        let factor = if name.ends_with(".lora_B.weight") { 0.5 } else { 1.0 };
        assert_eq!(own.unwrap() * factor, found.unwrap(), "{name}");
    }
    // Both add the same to the base model.
    let files = PipelineFiles::open(&pipeline("sd"), None).unwrap();
    let merged = |path: &str| {
        let loras = [ScaledLora { path: fixture.path(path), scale: 1.0 }];
        MergedPipeline::open(&files, &loras).unwrap().unet
    };
    let (one, other) = (merged(&format!("out/{LORA}")), merged("out/checkpoints/step-000003/unet"));
    for name in one.names() {
        assert!(apart(&one.tensor(name).unwrap(), &other.tensor(name).unwrap()) < 1e-6, "{name}");
    }
}

#[test]
fn z_is_exactly_zero_where_the_adapters_are_equal() {
    let fixture = Fixture::new(12);
    for (out, more) in [
        ("plain", &[][..]),
        ("checkpointed", &["--grad-checkpointing", "--targets", "all-linear"]),
        ("half", &["--dtype", "bf16", "--targets", "attention+ff"]),
    ] {
        Run::of(&mut lora(&fixture, out, more)).expect_code(0);
        let mut zeros = Vec::new();
        for line in fixture.metrics(out).iter().filter(|line| line.contains_key("z/mean")) {
            let number = |name: &str| line[name].as_f64().unwrap();
            if ["z/mean", "z/std", "z/q05", "z/q95"].iter().all(|name| number(name) == 0.0) {
                assert_eq!(number("loss") as f32, std::f32::consts::LN_2, "{out}");
                zeros.push(line["step"].as_u64().unwrap());
            }
        }
        // The first step has a learning rate of 0; the reference is updated after steps 4 and 8.
        assert_eq!(zeros, [1, 2, 5, 9], "{out}");
    }
}

#[test]
fn a_killed_run_of_adapters_ends_with_the_same_bytes() {
    let fixture = Fixture::new(11);
    let more = ["--sample-every", "5", "--lora-format", "kohya,diffusers", "--lora-name", "x"];
    let averaged = ["--ema", "0.9", "--reference-mix", "0.6", "--grad-checkpointing"];
    for (case, extra, faults) in [
        ("copied", &[][..], &["checkpoint:1", "metrics:8"][..]),
        ("averaged", &averaged, &["checkpoint:2", "checkpoint:4"]),
        ("factored", &["--optimizer", "adafactor", "--dtype", "bf16"], &["checkpoint:3"]),
    ] {
        let more = [&more[..], extra].concat();
        let whole = format!("whole-{case}");
        Run::of(&mut lora(&fixture, &whole, &more)).expect_code(0);
        let expected = results(&fixture, &whole);
        for fault in faults {
            let out = format!("{case}-{}", fault.replace(':', "-"));
            let killed = Run::of(&mut faulty(lora(&fixture, &out, &more), fault));
            assert!(killed.was_killed(), "{case}, {fault}: {killed:#?}");
            Run::of(&mut lora(&fixture, &out, &more)).expect_code(0);
            let found = results(&fixture, &out);
            assert!(found.keys().eq(expected.keys()), "{case}, {fault}");
            for (name, bytes) in &expected {
                assert!(found.get(name) == Some(bytes), "{case}, {fault}: {name} differs");
            }
            assert_eq!(fixture.metrics(&out), fixture.metrics(&whole));
        }
        let has_average = expected.contains_key(&format!("{LAST}/ema/adapters.safetensors"));
        assert_eq!(has_average, case == "averaged", "{:?}", expected.keys());
    }
}

#[test]
fn ranks_share_a_run_of_adapters_with_whole_and_with_sharded_states() {
    let fixture = Fixture::new(8);
    for (out, more) in [("whole", &[][..]), ("sharded", &["--shard-optimizer"])] {
        let runs = Ranks::start(2, |_| lora(&fixture, out, more)).finish_within(LIMIT);
        runs.into_iter().for_each(|run| drop(run.expect_code(0)));
    }
    for file in [LORA, UNET] {
        let bytes = |out: &str| fixture.bytes(&format!("{out}/{file}"));
        assert!(bytes("whole") == bytes("sharded"), "{file}");
    }
    assert_eq!(fixture.metrics("whole"), fixture.metrics("sharded"));
    let states = fixture.names(&format!("sharded/{LAST}"));
    let shards = states.iter().filter(|name| name.starts_with("optimizer-")).count();
    assert_eq!(shards, 2, "{states:?}");
    // One process takes the same steps but for rounding.
    Run::of(&mut lora(&fixture, "alone", &[])).expect_code(0);
    let open = |out: &str| Weights::open(fixture.path(out).join(LORA)).unwrap();
    let (one, two) = (open("alone"), open("whole"));
    let (mut way, mut distance) = (0.0, 0.0);
    for name in one.names().filter(|name| name.ends_with(".lora_B.weight")) {
        let (one, two) = (one.tensor(name).unwrap(), two.tensor(name).unwrap());
        let square = |tensor: Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
        distance += square(&one - two);
        // It begins with zeros.
        way += square(one);
    }
    assert!(way > 0.0 && distance < 0.01 * way, "{distance} of {way}");
}

#[test]
fn a_checkpoint_of_another_kind_or_rank_is_refused_by_name() {
    let fixture = Fixture::new(8);
    Run::of(&mut lora(&fixture, "lora", &[])).expect_code(0);
    Run::of(&mut fixture.run("full", &[])).expect_code(0);
    let [of_lora, of_full] =
        ["lora", "full"].map(|out| fixture.path(out).join(LAST).display().to_string());
    let from = |out: &str, more: &[&str]| Run::of(&mut fixture.run(out, more));
    let steps = ["--steps", "12"];
    from("a", &[&steps[..], &["--from", &of_lora]].concat())
        .expect_error(&["a checkpoint of adapters", "--adapter lora"]);
    from("b", &flags(&[&steps[..], &["--from", &of_full]].concat()))
        .expect_error(&["a checkpoint of all weights", "leave out --adapter"]);
    let other = ["--adapter", "lora", "--rank", "3", "--steps", "12", "--from", &of_lora];
    from("c", &other).expect_error(&["do not fit the targets and the rank", "expected [3, "]);
    let same = flags(&[&steps[..], &["--from", &of_lora]].concat());
    from("d", &same).expect_code(0);
    assert!(fixture.path("d").join(LORA).exists());
    // A run of other adapters, or of none, is another run.
    Run::of(&mut fixture.run("lora", &[])).expect_error(&["another --out", "adapter"]);
    let ranked = ["--adapter", "lora", "--rank", "2", "--lr", "1e-2"];
    Run::of(&mut fixture.run("lora", &ranked)).expect_error(&["settings.rank", "was 4, now 2"]);
    Run::of(&mut lora(&fixture, "e", &["--targets", "to_x"]))
        .expect_error(&["\"to_x\" fits no layer", "to_q"]);
}

#[test]
fn another_form_of_the_result_is_written_without_training_again() {
    let fixture = Fixture::new(8);
    let start = |more: &[&str]| Run::of(&mut lora(&fixture, "out", more)).expect_code(0);
    start(&[]);
    let expected = results(&fixture, "out");
    let lines = fixture.metrics("out").len();
    assert!(start(&[]).stderr.contains("already complete"));
    start(&["--lora-format", "kohya", "--lora-name", "x", "--no-merge"]);
    assert_eq!(fixture.names("out/lora"), ["README.md", "x.safetensors"]);
    assert!(!fixture.path("out").join(UNET).exists(), "the earlier pipeline is gone");
    assert!(
        start(&["--lora-format", "kohya", "--lora-name", "x", "--no-merge"])
            .stderr
            .contains("already complete")
    );
    start(&[]);
    assert!(results(&fixture, "out") == expected);
    assert_eq!(fixture.metrics("out").len(), lines, "no step was taken");
    let run = Run::of(&mut lora(&fixture, "out", &["--fresh"])).expect_code(0);
    assert!(!run.stderr.contains("already complete"));
    assert!(results(&fixture, "out") == expected);
}

#[test]
fn a_plan_counts_what_is_trained() {
    let fixture = Fixture::new(8);
    let plan = |more: &[&str]| -> Value {
        let more = [more, &["--json"]].concat();
        let run = Run::of(&mut fixture.command("plan", "out", &more)).expect_code(0);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let (full, lora) = (plan(&[]), plan(&flags(&[])));
    assert_eq!(full["parameters"], lora["parameters"]);
    assert_eq!(full["trained_parameters"], full["parameters"]);
    let trained = lora["trained_parameters"].as_u64().unwrap();
    // The adapters of the run itself.
    Run::of(&mut fixture.run("out", &flags(&[]))).expect_code(0);
    let adapters = Weights::open(fixture.path("out").join(LORA)).unwrap();
    let count = |name: &str| adapters.shape(name).unwrap().iter().product::<i64>();
    assert_eq!(trained, adapters.names().map(count).sum::<i64>() as u64);
    let bytes = |plan: &Value, what: &str| plan["memory_bytes"][what].as_u64().unwrap();
    assert_eq!(bytes(&lora, "gradients"), 4 * trained);
    assert_eq!(bytes(&lora, "optimizer"), 8 * trained);
    assert_eq!(bytes(&lora, "reference"), 4 * trained);
    assert!(bytes(&lora, "optimizer") < bytes(&full, "optimizer"));
}
