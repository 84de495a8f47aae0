//! Models, prompts, settings and outputs that are not right: one clear sentence each.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::{Fixture, Run, evaluate, model};
use nn::weights::{Weights, write_safetensors};

/// Runs the tiny pipeline with these settings, and expects an error and no trace of it.
#[track_caller]
fn refused(fixture: &Fixture, models: &[&str], more: &[&str], says: &[&str]) {
    let run = Run::of(&mut fixture.generate(models, more));
    run.expect_error(says);
    assert!(!fixture.path("out/images").exists());
    assert!(!fixture.path("out/manifest.json").exists());
}

#[test]
fn an_incomplete_pipeline_is_refused() {
    let fixture = Fixture::new(&["a fox"]);
    let absent = format!("sd={}", fixture.path("absent").display());
    refused(&fixture, &[&absent], &[], &["model sd", "absent", "model_index.json", "hint"]);
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        let folder = fixture.copy_pipeline("sd");
        std::fs::remove_dir_all(folder.join(part)).unwrap();
        let source = format!("mine={}", folder.display());
        refused(&fixture, &[&source], &[], &["model mine", &format!("lacks its {part}")]);
        std::fs::remove_dir_all(folder).unwrap();
    }
    let source = format!("{},unet={}", model("sd"), fixture.path("").display());
    refused(&fixture, &[&source], &[], &["model sd", "config.json"]);
    // The UNet of another family.
    let other = common::pipeline("sdxl");
    let source = format!("{},unet={}", model("sd"), other.display());
    refused(&fixture, &[&source], &[], &["model sd", "the UNet reads text of width", "hint"]);
}

#[test]
fn checkpoints_that_do_not_fit_leave_no_trace() {
    let fixture = Fixture::new(&["a fox"]);
    let folder = fixture.copy_pipeline("sd");
    let weights = "sd/unet/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(fixture.path(weights)).unwrap();
    fixture.put(weights, &bytes[..bytes.len() / 2]);
    let source = format!("sd={}", folder.display());
    refused(&fixture, &[&source], &[], &["model sd", "diffusion_pytorch_model.safetensors"]);
    // A tokenizer whose tokens the text encoder does not know.
    fixture.put(weights, &bytes);
    let tokenizer = "sd/tokenizer/tokenizer.json";
    let text = std::fs::read_to_string(fixture.path(tokenizer)).unwrap();
    fixture.put(tokenizer, text.replace("\"unused5\": 57", "\"unused5\": 5757").as_bytes());
    refused(&fixture, &[&source], &[], &["sd/tokenizer", "its text encoder reads", "hint"]);
}

#[test]
fn unsupported_and_damaged_networks_are_refused_by_their_file() {
    let fixture = Fixture::new(&["a fox"]);
    let folder = fixture.copy_pipeline("sd");
    let source = format!("sd={}", folder.display());
    let config = "sd/unet/config.json";
    let text = std::fs::read_to_string(fixture.path(config)).unwrap();
    fixture.put(config, text.replacen("CrossAttnDownBlock2D", "AttnDownBlock2D", 1).as_bytes());
    refused(&fixture, &[&source], &[], &["sd/unet/config.json", "AttnDownBlock2D", "hint: "]);
    fixture.put(config, text.as_bytes());
    let weights = folder.join("unet/diffusion_pytorch_model.safetensors");
    let whole = Weights::open(&weights).unwrap();
    let tensors: Vec<_> = whole
        .names()
        .map(|name| {
            let tensor = whole.tensor(name).unwrap();
            let spoilt = if name == "conv_out.bias" { tensor * f64::NAN } else { tensor };
            (name.to_owned(), spoilt.copy())
        })
        .collect();
    drop(whole);
    write_safetensors(&weights, &tensors).unwrap();
    refused(&fixture, &[&source], &[], &["diffusion_pytorch_model.safetensors", "conv_out.bias"]);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let fixture = Fixture::new(&["a fox"]);
    let sd = model("sd");
    let refused = |more: &[&str], says: &[&str]| refused(&fixture, &[&sd], more, says);
    refused(&["--size", "17"], &["--size 17x17", "multiples of 2", "hint: --size 18x18"]);
    refused(&["--size", "16x15"], &["multiples of 2", "hint: --size 16x16"]);
    refused(&["--steps", "1001"], &["pndm cannot take 1001 steps"]);
    let usage = |more: &[&str], says: &[&str]| {
        Run::of(&mut fixture.generate(&[&sd], more)).expect_usage_error(says);
        assert!(!fixture.path("out").exists());
    };
    usage(&["--seeds", "0"], &["--seeds must be at least 1", "hint"]);
    usage(&["--base-seed", "9223372036854775807"], &["--base-seed", "too large"]);
    usage(&["--steps", "0"], &["--steps must be at least 1", "hint"]);
    usage(&["--guidance", "-1"], &["--guidance must be 0 or more, found -1", "hint"]);
    usage(&["--guidance", "NaN"], &["--guidance", "expected a finite number"]);
    usage(&["--batch-size", "0"], &["--batch-size must be at least 1", "hint"]);
    usage(&["--limit", "0"], &["--limit must be at least 1", "hint"]);
    usage(&["--device", "gpu"], &["unknown device \"gpu\"", "did you mean cuda?"]);
    usage(&["--dtype", "fp16"], &["unknown precision \"fp16\"", "did you mean f16?"]);
    usage(&["--dtype", "f16", "--device", "cpu"], &["f16 on the CPU", "hint"]);
    let run = Run::of(&mut fixture.generate(&[&sd, &sd], &[]));
    run.expect_usage_error(&["two models are called sd", "hint"]);
    for (command, missing) in [
        ("generate", &["--model <", "--prompts <", "--out <"][..]),
        ("score", &["--scorers <", "--prompts <", "--out <"]),
        ("run", &["--model <", "--prompts <", "--scorers <", "--out <"]),
    ] {
        Run::of(&mut evaluate([command])).expect_usage_error(&[missing, &["hint: "]].concat());
    }
    let run = Run::of(&mut fixture.generate(&[&sd], &["--cfg-scale", "5"]));
    assert!(run.expect_code(2).stderr.contains("'--guidance'"));
}

#[test]
fn words_of_other_programs_are_understood() {
    let fixture = Fixture::new(&["a fox"]);
    let more = ["--num-inference-steps", "3", "--guidance-scale", "2", "--negative", "blur"];
    let mut command = evaluate(["generate", "--print-config"]);
    let run = Run::of(command.args(more).arg("--out").arg(fixture.path("out"))).expect_code(0);
    for line in ["steps = 3", "guidance = 2.0", "negative_prompt = \"blur\""] {
        assert!(run.stdout.contains(line), "{line} is not in {run:#?}");
    }
    let completions = Run::of(&mut evaluate(["completions", "bash"])).expect_code(0);
    assert!(completions.stdout.contains("filter-prompts"), "{completions:#?}");
}

#[test]
fn typos_on_the_command_line_are_usage_errors() {
    let fixture = Fixture::new(&["a fox"]);
    let sd = model("sd");
    for (more, says) in [
        (["--scheduler", "heun"], "expected ddim, pndm, euler or dpmpp-2m"),
        (["--size", "big"], "expected a height"),
        (["--model", "x"], "expected NAME=DIR"),
        (["--seeds", "-1"], "--seeds"),
        (["--sede", "1"], "--seed"),
    ] {
        let run = Run::of(&mut fixture.generate(&[&sd], &more)).expect_code(2);
        assert!(run.stderr.contains(says), "{says:?} is not in {run:#?}");
    }
    let file = fixture.put("run.toml", b"scheduler = \"eular\"\n");
    let run = Run::of(evaluate(["generate", "--config"]).arg(file));
    run.expect_error(&["run.toml:1:13", "did you mean `euler`"]);
}

#[test]
fn files_without_prompts_are_refused() {
    let fixture = Fixture::new(&[]);
    let sd = model("sd");
    let refused = |says: &[&str]| refused(&fixture, &[&sd], &[], says);
    refused(&["prompts.txt: expected a prompt in each line", "hint"]);
    fixture.put("prompts.txt", b"a fox\n\xff\xfe\n");
    refused(&["prompts.txt:2: expected UTF-8 text", "hint"]);
    std::fs::remove_file(fixture.path("prompts.txt")).unwrap();
    refused(&["cannot read", "prompts.txt"]);
}

#[test]
fn an_output_that_cannot_be_written_is_refused() {
    let fixture = Fixture::new(&["a fox"]);
    let sd = model("sd");
    fixture.put("out", b"a file");
    Run::of(&mut fixture.generate(&[&sd], &[])).expect_error(&["/out"]);
    std::fs::remove_file(fixture.path("out")).unwrap();

    fixture.put("out/images/sd/mine.png", b"somebody's image");
    for more in [&[][..], &["--fresh"]] {
        let run = Run::of(&mut fixture.generate(&[&sd], more));
        run.expect_error(&["images/sd exists", "manifest.json", "hint: choose another --out"]);
    }
    fixture.put("out/manifest.json", b"{\"name\": \"an app\"}");
    for more in [&[][..], &["--fresh"]] {
        let run = Run::of(&mut fixture.generate(&[&sd], more));
        run.expect_error(&["manifest.json: expected the manifest", "hint: choose another --out"]);
    }
    assert_eq!(fixture.files("out").len(), 2, "nothing is touched");
}

#[test]
fn one_of_several_processes_that_do_not_know_their_place_is_refused() {
    let fixture = Fixture::new(&["a fox"]);
    let mut command = fixture.generate(&[&model("sd")], &[]);
    command.env("OMPI_COMM_WORLD_SIZE", "8");
    Run::of(&mut command).expect_error(&["OMPI_COMM_WORLD_SIZE=8", "torchrun", "hint"]);
    let mut command = fixture.generate(&[&model("sd")], &[]);
    Run::of(command.env("RANK", "1")).expect_usage_error(&["WORLD_SIZE", "hint"]);
    for (shard, says) in [("3/3", "zero-based"), ("x", "INDEX/COUNT"), ("slurm", "SLURM_ARRAY")] {
        let mut command = fixture.generate(&[&model("sd")], &["--shard", shard]);
        let run = Run::of(&mut command).expect_code(2);
        assert!(run.stderr.contains(says), "{run:#?}");
    }
    assert!(!fixture.path("out").exists());
}
