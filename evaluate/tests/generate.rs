//! The images that `evaluate generate` makes, how it names them, and what it writes into them.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;

use common::{DecodedImage, Fixture, Generated as _, Run, evaluate, model, pipeline};
use nn::weights::Weights;
use serde_json::{Value, json};

#[test]
fn every_model_prompt_and_seed_has_its_image_with_its_recipe() {
    let fixture = Fixture::new(&["a red cat", "", "ein grüner Käfer"]);
    let (sd, sdxl) = (model("sd"), model("sdxl"));
    let run = Run::of(&mut fixture.generate(
        &[&sd, &sdxl],
        &["--seeds", "2", "--base-seed", "3", "--negative-prompt", "blur"],
    ));
    let run = run.expect_generated(8, 8);
    assert!(run.stdout.ends_with("/out/images\n"), "{run:#?}");
    // Denoising steps of images: PNDM has three calls for two steps, Euler two.
    let steps = "generating: 20 of 20 steps, ";
    assert!(run.stderr.contains(steps) && run.stderr.contains("8 of 8 images"), "{run:#?}");

    let manifest: Value = serde_json::from_slice(&fixture.files("out")["manifest.json"]).unwrap();
    assert_eq!((&manifest["program"], &manifest["steps"]), (&json!("evaluate"), &json!(2)));
    assert_eq!(
        (&manifest["negative_prompt"], &manifest["seeds"]),
        (&json!("blur"), &json!([3, 4]))
    );
    let prompts: BTreeMap<String, String> =
        serde_json::from_value(manifest["prompts"]["prompts"].clone()).unwrap();
    assert_eq!(prompts.values().collect::<Vec<_>>(), ["a red cat", "ein grüner Käfer"]);

    let images = fixture.images();
    assert_eq!(images.len(), 8);
    for (name, guidance, scheduler) in [("sd", 7.5, "pndm"), ("sdxl", 5.0, "euler")] {
        let record = &manifest["models"][name];
        assert_eq!(record["guidance"], guidance);
        assert_eq!(record["scheduler"], scheduler);
        assert_eq!(record["size"], "16x16");
        assert_eq!(record["parts"]["unet/config.json"].as_str().unwrap().len(), 64);
        for (id, text) in &prompts {
            for seed in [3, 4] {
                let image = &images[&format!("{name}/{id}/{seed}.png")];
                assert_eq!((image.width, image.height), (16, 16));
                let expected = json!({
                    "prompt": text, "negative": "blur", "seed": seed, "steps": 2,
                    "guidance": guidance, "scheduler": scheduler, "size": "16x16", "model": name,
                    "checkpoint": record["checkpoint"], "dtype": "f32", "device": "cpu",
                    "program": "evaluate", "version": env!("CARGO_PKG_VERSION"),
                });
                assert_eq!(image.recipe(), expected);
                let parameters = &image.texts["parameters"];
                let begins = format!("{text}\nNegative prompt: blur\nSteps: 2, Sampler: ");
                assert!(parameters.starts_with(&begins), "{parameters}");
            }
        }
    }
    let pixels: std::collections::HashSet<&[u8]> =
        images.values().map(|image| image.pixels.as_slice()).collect();
    assert_eq!(pixels.len(), 8, "no two are the same");
}

/// The whole way from a prompt in a file to a PNG gives the image of diffusers' own pipeline.
#[test]
fn images_are_those_of_diffusers() {
    const SEEDS: [u64; 2] = [11, (1 << 40) + 3];
    let fixture = Fixture::new(&["a red cat", "old mill by the sea"]);
    let settings = [("20", "3.0", Some("blur")), ("5", "7.5", None), ("7", "1.0", None)];
    for (name, (steps, guidance, negative)) in
        [("sd", settings[0]), ("sd", settings[2]), ("sdxl", settings[0]), ("sdxl", settings[1])]
    {
        let expected = Weights::open(pipeline(name).join("expected.safetensors")).unwrap();
        for scheduler in ["ddim", "dpmpp-2m"] {
            let key = format!("{scheduler}-{steps}-{guidance}-{}", negative.unwrap_or("none"));
            let expected = Vec::<u8>::try_from(expected.tensor(&key).unwrap().flatten(0, -1));
            let expected = expected.unwrap();
            for (row, seed) in SEEDS.into_iter().enumerate() {
                let _ = std::fs::remove_dir_all(fixture.path("out"));
                let seed = seed.to_string();
                let mut more = vec!["--seeds", "1", "--base-seed", &seed, "--size", "16x24"];
                more.extend(["--steps", steps, "--guidance", guidance, "--scheduler", scheduler]);
                more.extend(negative.iter().flat_map(|text| ["--negative-prompt", text]));
                Run::of(&mut fixture.generate(&[&model(name)], &more)).expect_generated(2, 2);
                let images: Vec<DecodedImage> = fixture.images().into_values().collect();
                let image = &expected[row * 16 * 24 * 3..][..16 * 24 * 3];
                let distance = images[row].distance(image);
                assert!(distance <= 1, "{name} {key} seed {seed}: {distance} of 255");
            }
        }
    }
}

#[test]
fn noise_does_not_depend_on_the_batch() {
    let fixture = Fixture::new(&["a fox", "a mill"]);
    let generate = |batch: &str| {
        let _ = std::fs::remove_dir_all(fixture.path("out"));
        let more = ["--seeds", "3", "--batch-size", batch, "--steps", "4"];
        Run::of(&mut fixture.generate(&[&model("sd")], &more)).expect_generated(6, 6);
        fixture.images()
    };
    let alone = generate("1");
    for batch in ["4", "64"] {
        for (name, image) in generate(batch) {
            assert!(image.distance(&alone[&name].pixels) <= 1, "{name} in batches of {batch}");
        }
    }
}

#[test]
fn a_folder_grows_by_models_prompts_and_seeds() {
    let fixture = Fixture::new(&["a fox"]);
    let (sd, sdxl) = (model("sd"), model("sdxl"));
    Run::of(&mut fixture.generate(&[&sd], &["--seeds", "2"])).expect_generated(2, 2);
    let first = fixture.files("out/images");
    Run::of(&mut fixture.generate(&[&sd, &sdxl], &["--seeds", "2"])).expect_generated(2, 4);
    fixture.put("prompts.txt", b"a fox\na mill\n");
    Run::of(&mut fixture.generate(&[&sd, &sdxl], &["--seeds", "2"])).expect_generated(4, 8);
    Run::of(&mut fixture.generate(&[&sd], &["--seeds", "3"])).expect_generated(2, 6);
    let run =
        Run::of(&mut fixture.generate(&[&sd, &sdxl], &["--seeds", "2"])).expect_generated(0, 8);
    assert!(!run.stderr.contains("loading_seconds"), "{run:#?}");
    let run = Run::of(&mut fixture.generate(&[&sd], &["--seeds", "2", "--json"])).expect_code(0);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&summary["images"], &summary["generated"]), (&json!(4), &json!(0)), "{summary}");
    let all = fixture.files("out/images");
    assert_eq!(all.len(), 10);
    assert!(first.iter().all(|(name, bytes)| all[name] == *bytes));
    let manifest: Value = serde_json::from_slice(&fixture.files("out")["manifest.json"]).unwrap();
    assert_eq!(manifest["models"].as_object().unwrap().len(), 2);
    assert_eq!(manifest["prompts"]["prompts"].as_object().unwrap().len(), 2);
    assert_eq!(manifest["seeds"], json!([0, 1, 2]));
}

#[test]
fn another_recipe_is_refused_by_name_and_fresh_starts_over() {
    let fixture = Fixture::new(&["a fox"]);
    let sd = model("sd");
    Run::of(&mut fixture.generate(&[&sd], &["--seeds", "1"])).expect_generated(1, 1);
    let before = fixture.files("out");
    let sdxl_as_sd = format!("sd={}", pipeline("sdxl").display());
    let refused = |models: &[&str], more: &[&str], field: &str| {
        let run = Run::of(&mut fixture.generate(models, more));
        run.expect_error(&["another recipe", field, "hint: ", "--fresh"]);
        assert_eq!(fixture.files("out"), before);
    };
    refused(&[&sd], &["--steps", "3"], "steps: was 2, now 3");
    refused(&[&sd], &["--negative-prompt", "blur"], "negative_prompt: was null, now \"blur\"");
    refused(&[&sd], &["--guidance", "3"], "models.sd.guidance: was 7.5, now 3.0");
    refused(&[&sd], &["--scheduler", "ddim"], "models.sd.scheduler: was \"pndm\", now \"ddim\"");
    refused(&[&sd], &["--size", "16x24"], "models.sd.size: was \"16x16\", now \"16x24\"");
    refused(&[&sd], &["--dtype", "bf16"], "dtype: was \"f32\", now \"bf16\"");
    refused(&[&sdxl_as_sd], &[], "models.sd.pipeline");
    fixture.put("prompts.txt", b"a box");
    refused(&[&sd], &[], "prompts.prompts.00001: was \"a fox\", now \"a box\"");

    Run::of(&mut fixture.generate(&[&sd], &["--seeds", "1", "--fresh"])).expect_generated(1, 1);
    let images = fixture.images();
    assert_eq!(images.len(), 1, "the fox is gone");
    assert_eq!(images.values().next().unwrap().recipe()["prompt"], "a box");
}

#[test]
fn the_truncated_part_of_a_prompt_is_logged_once() {
    let long = "a fox in the snow by the mill and the sea";
    let fixture = Fixture::new(&["a fox", long]);
    let other = format!("other={}", pipeline("sd").display());
    let run = Run::of(&mut fixture.generate(&[&model("sd"), &other], &["--seeds", "2"]));
    let run = run.expect_generated(8, 8);
    let said: Vec<&str> = run.stderr.lines().filter(|line| line.contains("too long")).collect();
    // 22 letters are read.
    assert_eq!(said.len(), 1, "{run:#?}");
    assert!(
        said[0].contains("00002-") && said[0].contains("\"lland the sea\"")
            || said[0].contains("and the sea"),
        "{said:?}"
    );
}

#[test]
fn a_unet_alone_stands_in_for_the_pipelines() {
    let fixture = Fixture::new(&["a fox"]);
    let sd = pipeline("sd");
    let folder = sd.display().to_string();
    for (name, unet) in [("whole", folder.clone()), ("part", format!("{folder}/unet"))] {
        let source = format!("{name}={folder},unet={unet}");
        Run::of(&mut fixture.generate(&[&source], &["--seeds", "1"])).expect_generated(1, 1);
    }
    let images: Vec<DecodedImage> = fixture.images().into_values().collect();
    assert_eq!(images[0].pixels, images[1].pixels);
}

#[test]
fn a_scheduler_that_is_not_built_here_is_named_and_another_stands_in() {
    let fixture = Fixture::new(&["a fox"]);
    let folder = fixture.copy_pipeline("sd");
    for name in ["sd/scheduler/scheduler_config.json", "sd/model_index.json"] {
        let text = std::fs::read_to_string(fixture.path(name)).unwrap();
        let text = text.replace("PNDMScheduler", "UniPCMultistepScheduler");
        assert!(text.contains("UniPC"), "{text}");
        fixture.put(name, text.as_bytes());
    }
    let source = format!("sd={}", folder.display());
    let run = Run::of(&mut fixture.generate(&[&source], &["--seeds", "1"]));
    run.expect_error(&["UniPCMultistepScheduler", "is not supported", "hint: --scheduler ddim"]);
    Run::of(&mut fixture.generate(&[&source], &["--seeds", "1", "--scheduler", "ddim"]))
        .expect_generated(1, 1);
    let there = fixture.images();
    Run::of(
        &mut fixture.generate(&[&model("sd")], &["--seeds", "1", "--scheduler", "ddim", "--fresh"]),
    )
    .expect_generated(1, 1);
    let pixels = |images: &BTreeMap<String, DecodedImage>| {
        images.values().map(|image| image.pixels.clone()).collect::<Vec<_>>()
    };
    assert_eq!(pixels(&there), pixels(&fixture.images()), "the noise is that of the file");
}

#[test]
fn settings_come_from_flags_environment_and_file() {
    let fixture = Fixture::new(&["a fox"]);
    fixture.put(
        "run.toml",
        format!(
            "model = [\"sd={}\"]\nprompts = [\"prompts.txt\"]\nout = \"out\"\nseeds = 2\nsteps = 9\n\
             scheduler = \"ddim\"\nsize = \"16x24\"\nbatch_size = 7\n",
            pipeline("sd").display()
        )
        .as_bytes(),
    );
    let file = fixture.path("run.toml");
    let mut command = evaluate(["generate", "--print-config", "--steps", "3", "--config"]);
    let run = Run::of(command.arg(&file).env("EVALUATE_BATCH_SIZE", "2")).expect_code(0);
    for line in [
        "steps = 3",
        "seeds = 2",
        "base_seed = 0",
        "scheduler = \"ddim\"",
        "size = \"16x24\"",
        "batch_size = 2",
        "device = \"auto\"",
        "dtype = \"auto\"",
    ] {
        assert!(run.stdout.lines().any(|found| found == line), "{line} is not in {run:#?}");
    }
    assert!(!fixture.path("out").exists());

    let mut command = evaluate(["generate", "--steps", "3", "--config"]);
    Run::of(command.arg(&file)).expect_generated(2, 2);
    let before = fixture.files("out");
    // What is saved beside the output is a configuration itself, from any folder.
    let mut command = evaluate(["generate", "--config"]);
    command.arg(fixture.path("out/config.toml")).current_dir("/");
    Run::of(&mut command).expect_generated(0, 2);
    assert_eq!(fixture.files("out"), before);
}

/// The scheduler is the one that `model_index.json` names; an unsupported one serves with
/// `--scheduler`; and a UNet from before diffusers 0.9 is of 64 latents a side.
#[test]
fn a_pipeline_is_read_as_diffusers_reads_it() {
    let fixture = Fixture::new(&["a fox"]);
    let folder = fixture.copy_pipeline("sd");
    let source = format!("sd={}", folder.display());
    let change = |file: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(fixture.path(file)).unwrap();
        assert!(text.contains(from), "{text}");
        fixture.put(file, text.replace(from, to).as_bytes());
    };
    let scheduler = |more: &[&str]| {
        let _ = std::fs::remove_dir_all(fixture.path("out"));
        let more = [&["--seeds", "1"], more].concat();
        Run::of(&mut fixture.generate(&[&source], &more)).expect_generated(1, 1);
        let manifest: Value =
            serde_json::from_slice(&fixture.files("out")["manifest.json"]).unwrap();
        let record = &manifest["models"]["sd"];
        (record["scheduler"].as_str().unwrap().to_owned(), record["size"].clone())
    };
    change("sd/model_index.json", "PNDMScheduler", "DDIMScheduler");
    assert_eq!(scheduler(&[]), ("ddim".to_owned(), json!("16x16")));
    change("sd/model_index.json", "DDIMScheduler", "MyOwnScheduler");
    let run = Run::of(&mut fixture.generate(&[&source], &["--fresh"]));
    run.expect_error(&["MyOwnScheduler", "hint: --scheduler ddim"]);
    assert_eq!(scheduler(&["--scheduler", "euler"]).0, "euler");

    let config = "sd/unet/config.json";
    change(config, "\"_diffusers_version\": \"0.42.1\"", "\"_diffusers_version\": \"0.8.0\"");
    assert_eq!(scheduler(&["--scheduler", "euler", "--steps", "1"]).1, "128x128");
}
