//! Whole pictures against diffusers' own pipelines: every solver, with guidance, a negative prompt and
//! without. The fixtures are made by `scripts/goldens/diffusion_networks.py`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::pipeline::{Pipeline, PipelineFiles, SampleRequest, TextConditions};
use nn::schedule::SamplerKind;
use nn::weights::Weights;
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
    let encoders = 0..pipeline.text_encoders.len();
    encoders.map(|index| expected.tensor(&format!("{kind}_{index}")).unwrap()).collect()
}

fn request<'a>(prompt: &'a TextConditions, negative: &'a TextConditions) -> SampleRequest<'a> {
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
fn pictures_are_those_of_diffusers_with_every_solver() {
    for name in ["sd", "sdxl"] {
        let pipeline = load(name);
        let expected = Weights::open(folder(name).join("expected.safetensors")).unwrap();
        let prompt = pipeline.encode_text(&tokens(&pipeline, &expected, "prompt")).unwrap();
        for (steps, guidance, negative) in [(5, 7.5, None), (20, 3.0, Some("blur")), (7, 1.0, None)]
        {
            let kind = if negative.is_some() { "negative" } else { "empty" };
            let negative_tokens = tokens(&pipeline, &expected, kind);
            let negative_text =
                pipeline.encode_negative(&negative_tokens, negative.is_none()).unwrap();
            for sampler in SAMPLERS {
                let request =
                    SampleRequest { steps, guidance, sampler, ..request(&prompt, &negative_text) };
                let mut calls = Vec::new();
                let drawn = pipeline
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
                let pictures = expected.tensor(&key).unwrap();
                let pictures = Vec::<u8>::try_from(pictures.flatten(0, -1)).unwrap();
                let size = (HEIGHT * WIDTH * 3) as usize;
                for (picture, expected) in drawn.iter().zip(pictures.chunks(size)) {
                    assert_eq!((picture.height, picture.width), (16, 24));
                    let pairs = picture.pixels.iter().zip(expected);
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
    let prompt = pipeline.encode_text(&tokens(&pipeline, &expected, "prompt")).unwrap();
    let mut calls = 0;
    let drawn = pipeline
        .sample(&request(&prompt, &prompt), &mut |done, _| {
            calls = done;
            if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((drawn, calls), (None, 2));
}

#[test]
fn impossible_requests_are_refused() {
    let pipeline = load("sdxl");
    let expected = Weights::open(folder("sdxl").join("expected.safetensors")).unwrap();
    let prompt_tokens = tokens(&pipeline, &expected, "prompt");
    let prompt = pipeline.encode_text(&prompt_tokens).unwrap();
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
    let error = pipeline.encode_text(&prompt_tokens[..1]).unwrap_err();
    assert!(error.to_string().contains("2 text encoders"), "{error}");
    let without = TextConditions { hidden_BLD: prompt.hidden_BLD.shallow_clone(), pooled_BD: None };
    refused(request(&without, &without), "pooled");
}

#[test]
fn parts_of_two_models_are_refused() {
    let files = PipelineFiles::open(&folder("sd"), Some(&folder("sdxl"))).unwrap();
    let error = Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("the UNet reads text of width 16") && error.contains("hint"), "{error}");
}
