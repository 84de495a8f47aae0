//! Images with adapters (`lora=`): those of diffusers, whatever the form of the file. The fixtures are
//! those of `scripts/goldens/lora.py`.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::path::{Path, PathBuf};

use common::{Fixture, Generated as _, Run, pipeline};
use nn::weights::Weights;
use serde_json::Value;

fn adapters(name: &str, file: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/nn/tests/fixtures/lora");
    Path::new(folder).join(name).join(file)
}

/// The model `named`, the tiny pipeline `name` with these files of adapters.
fn with(named: &str, name: &str, loras: &[String]) -> String {
    let mut source = format!("{named}={}", pipeline(name).display());
    for lora in loras {
        source += &format!(",lora={lora}");
    }
    source
}

fn lora(name: &str, file: &str, scale: f64) -> String {
    format!("{}:{scale}", adapters(name, file).display())
}

/// The pixels of the first image of diffusers.
fn expected(name: &str, image: &str) -> Vec<u8> {
    let weights = Weights::open(adapters(name, "expected.safetensors")).unwrap();
    Vec::<u8>::try_from(weights.tensor(image).unwrap().get(0).flatten(0, -1)).unwrap()
}

/// The recipe of that image.
const FLAGS: [&str; 12] = [
    "--seeds",
    "1",
    "--base-seed",
    "11",
    "--steps",
    "5",
    "--guidance",
    "7.5",
    "--scheduler",
    "ddim",
    "--size",
    "16x24",
];

#[test]
fn adapters_of_every_form_give_the_images_of_diffusers() {
    for name in ["sd", "sdxl"] {
        let fixture = Fixture::new(&["a red cat"]);
        let one = |file: &str| vec![lora(name, file, 1.0)];
        let models = [
            with("plain", name, &[]),
            with("new", name, &one("diffusers.safetensors")),
            with("trainer", name, &one("trainer.safetensors")),
            with("kohya", name, &one("kohya.safetensors")),
            with("peft", name, &one("peft")),
            with("half", name, &[lora(name, "kohya.safetensors", 0.5)]),
            with("both", name, &[lora(name, "peft", 0.5), lora(name, "kohya.safetensors", 0.5)]),
        ];
        let sources: Vec<&str> = models.iter().map(String::as_str).collect();
        let run = Run::of(&mut fixture.generate(&sources, &FLAGS));
        run.expect_generated(7, 7);
        let images = fixture.images();
        let image = |model: &str| {
            let mut names = images.keys().filter(|name| name.starts_with(&format!("{model}/")));
            images[names.next().unwrap()].clone()
        };
        for model in ["new", "trainer", "kohya", "peft", "both"] {
            let distance = image(model).distance(&expected(name, "1"));
            assert!(distance <= 1, "{name}, {model}: {distance} of 255");
        }
        assert!(image("half").distance(&expected(name, "0.5")) <= 1, "{name}");
        assert!(image("plain").distance(&expected(name, "1")) > 20, "{name}");
        // The recipe has the files and the scales.
        let manifest: Value =
            serde_json::from_slice(&fixture.files("out")["manifest.json"]).unwrap();
        let parts = |model: &str| manifest["models"][model]["parts"].clone();
        assert_eq!(parts("half")["lora/0/scale"], "0.5");
        assert_eq!(parts("half")["lora/0/kohya.safetensors"].as_str().unwrap().len(), 64);
        assert_eq!(parts("both")["lora/1/scale"], "0.5");
        assert!(parts("peft")["lora/0/unet/adapter_config.json"].is_string(), "{manifest}");
        assert!(parts("plain").as_object().unwrap().keys().all(|key| !key.starts_with("lora")));
        let checkpoint = |model: &str| manifest["models"][model]["checkpoint"].clone();
        assert_ne!(checkpoint("half"), checkpoint("kohya"));
        assert_ne!(checkpoint("plain"), checkpoint("kohya"));
        // Another scale under the same name is another model.
        let other = with("half", name, &[lora(name, "kohya.safetensors", 0.25)]);
        Run::of(&mut fixture.generate(&[&other], &FLAGS)).expect_error(&[
            "models.half",
            "lora/0/scale",
            "was \"0.5\", now \"0.25\"",
        ]);
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused_before_anything_is_generated() {
    let fixture = Fixture::new(&["a red cat"]);
    let refuse = |source: &str, words: &[&str]| {
        Run::of(&mut fixture.generate(&[source], &FLAGS)).expect_error(words);
        assert!(!fixture.path("out/images").exists());
    };
    let wrong = with("a", "sd", &[lora("sdxl", "kohya.safetensors", 1.0)]);
    refuse(&wrong, &["model a", "do not fit the pipeline", "kohya.safetensors"]);
    let missing = with("a", "sd", &["no/such.safetensors".to_owned()]);
    refuse(&missing, &["model a", "no/such.safetensors"]);
    let model = pipeline("sd").join("unet/diffusion_pytorch_model.safetensors");
    let whole = with("a", "sd", &[model.display().to_string()]);
    refuse(&whole, &["model a", "expected adapters of plain LoRA"]);
}
