//! `train merge`: the merged pipeline gives the images of diffusers with the adapters, the same
//! command resumes after a kill, and nothing else is overwritten.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Run, pipeline, train};
use nn::device::Precision;
use nn::pipeline::{Pipeline, PipelineFiles, SampleRequest};
use nn::schedule::SamplerKind;
use nn::weights::Weights;
use tch::{Device, Kind, Tensor};
use testkit::Folder;

/// Adapters of the tiny pipelines, and the images of diffusers with them
/// (`scripts/goldens/lora.py`).
fn adapters(name: &str, file: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/lora");
    Path::new(folder).join(name).join(file)
}

fn merge(model: &Path, loras: &[String], out: &Path) -> Command {
    let mut command = train(["merge"]);
    command.arg("--model").arg(model).arg("--out").arg(out);
    for lora in loras {
        command.args(["--lora", lora]);
    }
    command
}

fn lora(name: &str, file: &str) -> String {
    adapters(name, file).display().to_string()
}

/// The largest difference of the images of a pipeline's folder from those of diffusers.
fn distance(name: &str, folder: &Path, image: &str) -> u8 {
    let files = PipelineFiles::open(folder, None).unwrap();
    let pipeline_of = Pipeline::load(&files, Device::Cpu, Precision::F32).unwrap();
    let expected = Weights::open(pipeline(name).join("expected.safetensors")).unwrap();
    let tokens = |kind: &str| -> Vec<Tensor> {
        let encoders = 0..pipeline_of.encoders.text_encoders.len();
        encoders.map(|index| expected.tensor(&format!("{kind}_{index}")).unwrap()).collect()
    };
    let request = SampleRequest {
        prompt: &pipeline_of.encode_prompt(&tokens("prompt")).unwrap(),
        negative: &pipeline_of.encode_negative_prompt(&tokens("empty"), true).unwrap(),
        seeds: &[11, (1 << 40) + 3],
        steps: 5,
        guidance: 7.5,
        sampler: SamplerKind::Ddim,
        height: 16,
        width: 24,
    };
    let images = pipeline_of.sample(&request, &mut |_, _| ControlFlow::Continue(()));
    let found: Vec<u8> =
        images.unwrap().unwrap().into_iter().flat_map(|image| image.pixels).collect();
    let expected = Weights::open(adapters(name, "expected.safetensors")).unwrap();
    let expected = expected.tensor(image).unwrap().flatten(0, -1);
    let expected = Vec::<u8>::try_from(expected).unwrap();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(&expected).map(|(one, two)| one.abs_diff(*two)).max().unwrap()
}

#[test]
fn a_merged_pipeline_gives_the_images_of_diffusers_with_the_adapters() {
    let folder = Folder::new();
    for name in ["sd", "sdxl"] {
        for (out, loras, image) in [
            ("whole", vec![lora(name, "diffusers.safetensors")], "1"),
            ("half", vec![format!("{}:0.5", lora(name, "kohya.safetensors"))], "0.5"),
            (
                "two",
                vec![
                    format!("{}:0.25", lora(name, "peft")),
                    format!("{}:0.75", lora(name, "trainer.safetensors")),
                ],
                "1",
            ),
        ] {
            let out = folder.path(&format!("{name}-{out}"));
            let run = Run::of(&mut merge(&pipeline(name), &loras, &out)).expect_code(0);
            assert!(run.stdout.contains("pipeline: "), "{run:#?}");
            let distance = distance(name, &out, image);
            assert!(distance <= 1, "{}: {distance} of 255", out.display());
            // Other parts are those of the model.
            for part in ["vae/config.json", "tokenizer/vocab.json", "unet/config.json"] {
                let original = std::fs::read(pipeline(name).join(part)).unwrap();
                assert!(std::fs::read(out.join(part)).unwrap() == original, "{part}");
            }
            let encoder = Weights::open(out.join("text_encoder/model.safetensors")).unwrap();
            assert!(encoder.names().all(|name| encoder.kind(name) != Some(Kind::Half)));
        }
    }
}

#[test]
fn a_killed_merge_resumes_and_a_finished_one_is_left_alone() {
    let folder = Folder::new();
    let loras = [lora("sdxl", "kohya.safetensors")];
    let command = |out: &str| merge(&pipeline("sdxl"), &loras, &folder.path(out));
    Run::of(&mut command("whole")).expect_code(0);
    let expected = folder.files("whole");
    assert!(expected.len() > 10, "{:?}", expected.keys());
    for point in ["open", "rename"] {
        let (mut passages, mut kills) = (0, 0);
        loop {
            let mut faulty = command("out");
            faulty.env("RUNKIT_FAULT", format!("{point}:{}", passages + 1));
            let run = Run::of(&mut faulty);
            if !run.was_killed() {
                run.expect_code(0);
                break;
            }
            // Every third is enough: each costs two starts of the program.
            (passages, kills) = (passages + 3, kills + 1);
            Run::of(&mut command("out")).expect_code(0);
            let found = folder.files("out");
            assert!(found.keys().eq(expected.keys()), "{point} {passages}: {:?}", found.keys());
            assert!(found == expected, "{point} {passages}");
            std::fs::remove_dir_all(folder.path("out")).unwrap();
            assert!(passages < 100, "{point} never ends");
        }
        assert!(kills >= 4, "{point}: only {kills} kills");
        std::fs::remove_dir_all(folder.path("out")).unwrap();
    }
    let again = Run::of(&mut command("whole")).expect_code(0);
    assert!(again.stderr.contains("already complete"), "{again:#?}");
    assert!(folder.files("whole") == expected);
    // Other adapters are another merge; with --fresh it takes the place of the first.
    let others = [format!("{}:0.5", loras[0])];
    let mut other = merge(&pipeline("sdxl"), &others, &folder.path("whole"));
    Run::of(&mut other).expect_error(&["loras", "--fresh"]);
    Run::of(other.arg("--fresh")).expect_code(0);
    assert!(distance("sdxl", &folder.path("whole"), "0.5") <= 1);
}

#[test]
fn what_cannot_be_merged_is_one_sentence() {
    let folder = Folder::new();
    let out = folder.path("out");
    let refuse = |model: &Path, lora: &str, out: &Path, words: &[&str]| {
        Run::of(&mut merge(model, &[lora.to_owned()], out)).expect_error(words);
    };
    let own = lora("sd", "diffusers.safetensors");
    refuse(&pipeline("sd"), "no/such/file", &out, &["no/such/file"]);
    refuse(&folder.path("missing"), &own, &out, &["missing"]);
    let other = lora("sdxl", "kohya.safetensors");
    refuse(&pipeline("sd"), &other, &out, &["do not fit the pipeline", "lora_"]);
    assert!(!out.exists(), "nothing is written before everything fits");
    let copy = folder.copy(&pipeline("sd"), "copy");
    refuse(&copy, &own, &copy, &["--out", "the folder of the model"]);
    refuse(&copy, &own, &copy.join("merged"), &["--out", "the folder of the model"]);
    folder.put("theirs/thesis.tex", b"x");
    refuse(&pipeline("sd"), &own, &folder.path("theirs"), &["thesis.tex", "another --out"]);
}
