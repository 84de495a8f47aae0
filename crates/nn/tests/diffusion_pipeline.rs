//! Whole images, compared with diffusers' own pipelines: every sampler, with guidance, with a
//! negative prompt and without. `scripts/goldens/diffusion_networks.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::pipeline::{Encoders, Pipeline, PipelineFiles, PromptEmbeds, SampleRequest};
use nn::schedule::SamplerKind;
use nn::weights::Weights;
use serde_json::Value;
use tch::{Device, Tensor};

const SEEDS: [u64; 2] = [11, (1 << 40) + 3];
const SAMPLERS: [SamplerKind; 4] =
    [SamplerKind::Ddim, SamplerKind::Pndm, SamplerKind::Euler, SamplerKind::DpmSolverPlusPlus2M];
const HEIGHT: i64 = 16;
const WIDTH: i64 = 24;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion").join(name)
}

fn load(name: &str) -> Pipeline {
    let files = PipelineFiles::open(&folder(name), None).unwrap();
    Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap()
}

/// The tokens of each text encoder.
fn tokens(pipeline: &Pipeline, expected: &Weights, kind: &str) -> Vec<Tensor> {
    let encoders = 0..pipeline.encoders.text_encoders.len();
    encoders.map(|index| expected.tensor(&format!("{kind}_{index}")).unwrap()).collect()
}

fn request<'a>(prompt: &'a PromptEmbeds, negative: &'a PromptEmbeds) -> SampleRequest<'a> {
    SampleRequest {
        prompt,
        negative,
        seeds: &SEEDS,
        steps: 5,
        guidance: 7.5,
        sampler: SamplerKind::Ddim,
        height: HEIGHT,
        width: WIDTH,
    }
}

#[test]
fn images_are_those_of_diffusers_with_every_solver() {
    for name in ["sd", "sdxl"] {
        let pipeline = load(name);
        let expected = Weights::open(folder(name).join("expected.safetensors")).unwrap();
        let prompt = pipeline.encode_prompt(&tokens(&pipeline, &expected, "prompt")).unwrap();
        for (steps, guidance, negative) in [(5, 7.5, None), (20, 3.0, Some("blur")), (7, 1.0, None)]
        {
            let kind = if negative.is_some() { "negative" } else { "empty" };
            let negative_tokens = tokens(&pipeline, &expected, kind);
            let negative_text =
                pipeline.encode_negative_prompt(&negative_tokens, negative.is_none()).unwrap();
            for sampler in SAMPLERS {
                let request =
                    SampleRequest { steps, guidance, sampler, ..request(&prompt, &negative_text) };
                let mut calls = Vec::new();
                let sampled = pipeline
                    .sample(&request, &mut |done, all| {
                        calls.push((done, all));
                        ControlFlow::Continue(())
                    })
                    .unwrap()
                    .unwrap();
                // PNDM calls the network once more.
                let all = steps + usize::from(sampler == SamplerKind::Pndm);
                assert_eq!(calls, (1..=all).map(|done| (done, all)).collect::<Vec<_>>());
                let key = format!("{sampler}-{steps}-{guidance:?}-{}", negative.unwrap_or("none"));
                let images = expected.tensor(&key).unwrap();
                let images = Vec::<u8>::try_from(images.flatten(0, -1)).unwrap();
                let size = (HEIGHT * WIDTH * 3) as usize;
                for (image, expected) in sampled.iter().zip(images.chunks(size)) {
                    assert_eq!((image.height, image.width), (16, 24));
                    let pairs = image.pixels.iter().zip(expected);
                    let distance = pairs.map(|(one, two)| one.abs_diff(*two)).max().unwrap();
                    assert!(distance <= 1, "{name} {key}: {distance} of 255");
                }
            }
        }
    }
}

#[test]
fn sampling_ends_where_progress_breaks() {
    let pipeline = load("sd");
    let expected = Weights::open(folder("sd").join("expected.safetensors")).unwrap();
    let prompt = pipeline.encode_prompt(&tokens(&pipeline, &expected, "prompt")).unwrap();
    let mut calls = 0;
    let sampled = pipeline
        .sample(&request(&prompt, &prompt), &mut |done, _| {
            calls = done;
            if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((sampled, calls), (None, 2));
}

#[test]
fn impossible_requests_are_refused() {
    let pipeline = load("sdxl");
    let expected = Weights::open(folder("sdxl").join("expected.safetensors")).unwrap();
    let prompt_tokens = tokens(&pipeline, &expected, "prompt");
    let prompt = pipeline.encode_prompt(&prompt_tokens).unwrap();
    let refused = |request: SampleRequest<'_>, says: &str| {
        let error = pipeline.sample(&request, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    let fine = request(&prompt, &prompt);
    refused(SampleRequest { height: 17, ..fine }, "multiples of 2");
    refused(SampleRequest { width: 0, ..fine }, "multiples of 2");
    refused(SampleRequest { seeds: &[], ..fine }, "at least one seed");
    refused(SampleRequest { guidance: f64::NAN, ..fine }, "finite guidance");
    refused(SampleRequest { steps: 0, ..fine }, "steps");
    refused(SampleRequest { seeds: &[1, 2, 3], ..fine }, "rows");
    let error = pipeline.encode_prompt(&prompt_tokens[..1]).unwrap_err();
    assert!(error.to_string().contains("2 text encoders"), "{error}");
    let without = PromptEmbeds { embeds_BLD: prompt.embeds_BLD.shallow_clone(), pooled_BD: None };
    refused(request(&without, &without), "pooled");
}

#[test]
fn parts_of_two_models_are_refused() {
    let files = PipelineFiles::open(&folder("sd"), Some(&folder("sdxl"))).unwrap();
    let error = Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("the UNet reads text of width 16") && error.contains("hint"), "{error}");
}

/// A pipeline of the fixtures with the options of one case of `changed.json` set in its files.
fn changed(case: &Value) -> tempfile::TempDir {
    let source = folder(case["pipeline"].as_str().unwrap());
    let copy = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(&source).unwrap() {
        let part = entry.unwrap().path();
        let name = copy.path().join(part.file_name().unwrap());
        if part.is_dir() {
            fs_err::create_dir(&name).unwrap();
            for file in fs_err::read_dir(&part).unwrap() {
                let file = file.unwrap().path();
                fs_err::copy(&file, name.join(file.file_name().unwrap())).unwrap();
            }
        } else {
            fs_err::copy(&part, &name).unwrap();
        }
    }
    for (file, options) in case["changes"].as_object().unwrap() {
        let file = copy.path().join(file);
        let mut json: Value =
            serde_json::from_str(&fs_err::read_to_string(&file).unwrap()).unwrap();
        let json_map = json.as_object_mut().unwrap();
        for (name, value) in options.as_object().unwrap() {
            match value {
                Value::Null => drop(json_map.remove(name)),
                value if value == "null" => drop(json_map.insert(name.clone(), Value::Null)),
                value => drop(json_map.insert(name.clone(), value.clone())),
            }
        }
        fs_err::write(&file, json.to_string()).unwrap();
    }
    copy
}

/// The class in the index with the values of the file, sizes of outdated UNets, and other entries
/// of a pipeline's files, as diffusers reads them.
#[test]
fn every_file_of_a_pipeline_is_read_as_diffusers_reads_it() {
    let cases = fs_err::read_to_string(folder("changed.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() >= 15);
    let images = Weights::open(folder("changed.safetensors")).unwrap();
    for (index, case) in cases.iter().enumerate() {
        let name = case["pipeline"].as_str().unwrap();
        let copy = changed(case);
        let files = PipelineFiles::open(copy.path(), None).unwrap();
        let (height, width) = files.unet_config().unwrap().sample_size.unwrap();
        assert_eq!(serde_json::json!([height, width]), case["sample_size"], "{case}");
        let pipeline = Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap();
        assert_eq!(pipeline.schedule.class_name, case["scheduler"].as_str().unwrap(), "{case}");

        let expected = Weights::open(folder(name).join("expected.safetensors")).unwrap();
        let prompt = pipeline.encode_prompt(&tokens(&pipeline, &expected, "prompt")).unwrap();
        let empty = tokens(&pipeline, &expected, "empty");
        let negative = pipeline.encode_negative_prompt(&empty, true).unwrap();
        let sampler = pipeline.schedule.sampler_kind().unwrap();
        let request = SampleRequest { sampler, ..request(&prompt, &negative) };
        let made = pipeline.sample(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let image = images.tensor(&index.to_string()).unwrap();
        let expected = Vec::<u8>::try_from(image.flatten(0, -1)).unwrap();
        let made = made.unwrap().into_iter().flat_map(|image| image.pixels);
        let apart = made.zip(&expected).map(|(one, two)| one.abs_diff(*two)).max().unwrap();
        assert!(apart <= 1, "{case}: {apart} of 255");
    }
}

#[test]
fn what_a_pipeline_is_not_is_refused_by_name() {
    for (name, file, options, says) in [
        ("sd", "model_index.json", r#"{"unet": ["my_unet", "UNet2DConditionModel"]}"#, "unet"),
        ("sd", "model_index.json", r#"{"_class_name": ["mine", "Pipeline"]}"#, "_class_name"),
        ("sd", "model_index.json", r#"{"scheduler": ["null", "null"]}"#, "scheduler"),
        ("sd", "model_index.json", r#"{"quantization_config": {}}"#, "quantization_config"),
        ("sd", "unet/config.json", r#"{"mid_block_type": "null"}"#, "mid_block_type to null"),
        ("sd", "unet/config.json", r#"{"_diffusers_version": "new"}"#, "_diffusers_version"),
        ("sd", "vae/config.json", r#"{"shift_factor": 0.1}"#, "shift_factor is not zero"),
        ("sd", "vae/config.json", r#"{"in_channels": 4}"#, "images of 4 channels"),
        ("sdxl", "vae/config.json", r#"{"latents_std": [1, 2, 3, 4]}"#, "latents_std"),
        ("sdxl", "text_encoder_2/config.json", r#"{"projection_dim": "null"}"#, "projection_dim"),
        ("sdxl", "text_encoder/config.json", r#"{"hidden_act": "relu"}"#, "hidden_act"),
    ] {
        let options: Value = serde_json::from_str(options).unwrap();
        let copy = changed(&serde_json::json!({"pipeline": name, "changes": {file: options}}));
        let load = |encoders_alone: bool| {
            let files = PipelineFiles::open(copy.path(), None)?;
            match encoders_alone {
                true => Encoders::load(&files, Device::Cpu, Precision::F32).map(drop),
                false => Pipeline::load(&files, Device::Cpu, Precision::F32).map(drop),
            }
        };
        for encoders_alone in [false, true] {
            let error = load(encoders_alone).unwrap_err().to_string();
            assert!(error.contains(says), "{says:?} is not in {error:?}");
        }
    }
}
