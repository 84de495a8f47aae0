//! Small UNets with random weights against diffusers 0.42.1 (`scripts/goldens/unet.py`).

#![allow(non_snake_case)]
#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::unet::{AddedConditions, UNet, UNetConfig, WEIGHT_FILES};
use nn::weights::{Weights, write_safetensors};
use tch::{Device, Kind, Tensor};

const NAMES: [&str; 3] = ["sd15", "sd21", "sdxl"];

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/unet")).join(name)
}

struct Golden {
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let weights = Weights::open(folder(name).join("golden.safetensors")).unwrap();
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        let tensors =
            names.into_iter().map(|name| (name.clone(), weights.tensor(&name).unwrap())).collect();
        Self { tensors }
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn added(&self, rows: i64) -> Option<AddedConditions> {
        let (pooled, ids) = (self.tensors.get("pooled")?, self.tensors.get("time_ids")?);
        Some(AddedConditions {
            pooled_BD: pooled.narrow(0, 0, rows),
            time_ids_B6: ids.narrow(0, 0, rows),
        })
    }

    fn run(&self, unet: &UNet) -> Tensor {
        let (latents, times) = (self.get("latents"), self.get("timesteps"));
        unet.forward(latents, times, self.get("text"), self.added(2).as_ref()).unwrap()
    }

    fn gradients(&self, unet: &UNet) -> BTreeMap<String, Tensor> {
        for (_, parameter) in unet.parameters() {
            let mut gradient = parameter.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        (self.run(unet) - self.get("target")).square().mean(Kind::Float).backward();
        unet.parameters().iter().map(|(name, value)| (name.clone(), value.grad().copy())).collect()
    }
}

/// Each option of `options.json` with the weights of `sd21`.
#[test]
fn options_are_honoured_as_in_diffusers() {
    let (golden, source) = (Golden::read("sd21"), folder("sd21"));
    let weights = weights(&source);
    let read = |file: PathBuf| fs_err::read_to_string(file).unwrap();
    let plain: serde_json::Value = serde_json::from_str(&read(source.join("config.json"))).unwrap();
    let sets: Vec<serde_json::Value> = serde_json::from_str(&read(folder("options.json"))).unwrap();
    let expected = Weights::open(folder("options.safetensors")).unwrap();
    assert!(sets.len() >= 8);
    for (index, options) in sets.iter().enumerate() {
        let mut config = plain.clone();
        for (name, value) in options.as_object().unwrap() {
            config[name] = value.clone();
        }
        let file = tempfile::tempdir().unwrap();
        let file = file.path().join("config.json");
        fs_err::write(&file, config.to_string()).unwrap();
        let config = UNetConfig::read(&file).unwrap();
        let unet = UNet::load(&config, &weights, Device::Cpu, Precision::F32).unwrap();
        let apart = golden.run(&unet) - expected.tensor(&index.to_string()).unwrap();
        let apart = apart.abs().max().double_value(&[]);
        assert!(apart < 1e-4, "{options}: {apart:e}");
    }
}

fn weights(folder: &Path) -> Weights {
    Weights::open_folder(folder, WEIGHT_FILES).unwrap()
}

fn config(folder: &Path) -> UNetConfig {
    UNetConfig::read(&folder.join("config.json")).unwrap()
}

fn inference(name: &str, precision: Precision) -> UNet {
    let folder = folder(name);
    UNet::load(&config(&folder), &weights(&folder), Device::Cpu, precision).unwrap()
}

fn training(name: &str, precision: Precision) -> UNet {
    let folder = folder(name);
    UNet::load_for_training(&config(&folder), &weights(&folder), Device::Cpu, precision).unwrap()
}

/// The largest difference, in parts of the largest value.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(1e-12);
    (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[])
        / scale
}

#[test]
fn outputs_are_those_of_diffusers() {
    for name in NAMES {
        let golden = Golden::read(name);
        let unet = inference(name, Precision::F32);
        let apart = difference(&golden.run(&unet), golden.get("output"));
        assert!(apart < 1e-5, "{name}: {apart:e}");
        // Sides that do not halve evenly; one timestep for all rows.
        let odd = unet
            .forward(
                golden.get("odd_latents"),
                &Tensor::from_slice(&[500_i64]),
                &golden.get("text").narrow(0, 0, 1),
                golden.added(1).as_ref(),
            )
            .unwrap();
        let apart = difference(&odd, golden.get("odd_output"));
        assert!(apart < 1e-5, "{name}, odd sides: {apart:e}");
    }
}

#[test]
fn gradients_are_those_of_diffusers_with_and_without_checkpointing() {
    for name in NAMES {
        let golden = Golden::read(name);
        let mut unet = training(name, Precision::F32);
        let apart = difference(&golden.run(&unet), golden.get("output"));
        assert!(apart < 1e-5, "{name}: {apart:e}");
        let gradients = golden.gradients(&unet);
        let mut compared = 0;
        for (key, expected) in &golden.tensors {
            if let Some(key) = key.strip_prefix("gradient.") {
                let apart = difference(&gradients[key], expected);
                assert!(apart < 1e-4, "{name}, {key}: {apart:e}");
                compared += 1;
            }
        }
        assert!(compared >= 12, "{compared}");
        unet.set_gradient_checkpointing(true);
        for (key, again) in golden.gradients(&unet) {
            // The same numbers, added up in another order where one tensor is used by many parts.
            let apart = difference(&again, &gradients[&key]);
            assert!(apart < 1e-5, "{name}, {key}: {apart:e}");
        }
    }
}

#[test]
fn bf16_stays_near_and_training_and_inference_agree() {
    for name in NAMES {
        let golden = Golden::read(name);
        let once = golden.run(&inference(name, Precision::Bf16));
        let apart = difference(&once, golden.get("output"));
        assert!(apart < 0.05 && apart > 0.0, "{name}: {apart}");
        let trained = golden.run(&training(name, Precision::Bf16));
        assert!(trained.requires_grad());
        let apart = difference(&trained, &once);
        assert!(apart < 0.05, "{name}: {apart}");
        // Gradients arrive in f32, at every parameter, from products in bf16.
        let unet = training(name, Precision::Bf16);
        for (key, gradient) in golden.gradients(&unet) {
            assert_eq!(gradient.kind(), Kind::Float, "{key}");
            assert!(gradient.isfinite().all().int64_value(&[]) == 1, "{key}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let golden = Golden::read("sdxl");
    let unet = inference("sdxl", Precision::F32);
    let both = golden.run(&unet);
    for row in 0..2 {
        let take = |name: &str| golden.get(name).narrow(0, row, 1);
        let added = AddedConditions { pooled_BD: take("pooled"), time_ids_B6: take("time_ids") };
        let one = unet
            .forward(&take("latents"), &take("timesteps"), &take("text"), Some(&added))
            .unwrap();
        assert!(difference(&one, &both.narrow(0, row, 1)) < 1e-5);
    }
}

#[test]
fn a_prepared_text_serves_any_number_of_steps() {
    for name in NAMES {
        let (golden, added) = (Golden::read(name), Golden::read(name).added(2));
        let (latents, times) = (golden.get("latents"), golden.get("timesteps"));
        for unet in [inference(name, Precision::F32), training(name, Precision::F32)] {
            let once = golden.run(&unet);
            let text = unet.project_text(golden.get("text"), 2).unwrap();
            let pass = |latents: &Tensor| {
                unet.forward_projected(latents, times, &text, added.as_ref()).unwrap()
            };
            assert_ne!(pass(&(latents * 0.5)), once, "{name}");
            assert_eq!(pass(latents), once, "{name}");
            // A text of other rows is refused.
            let row = unet.project_text(&golden.get("text").narrow(0, 0, 1), 1).unwrap();
            assert!(unet.forward_projected(latents, times, &row, added.as_ref()).is_err());
        }
    }
}

#[test]
fn what_is_saved_is_what_was_loaded_key_for_key() {
    for name in NAMES {
        let unet = training(name, Precision::Bf16);
        let saved = tempfile::tempdir().unwrap();
        unet.save(saved.path()).unwrap();
        let (before, after) = (weights(&folder(name)), weights(saved.path()));
        assert!(before.names().eq(after.names()));
        for key in before.names() {
            assert_eq!(before.tensor(key).unwrap(), after.tensor(key).unwrap(), "{key}");
        }
        assert_eq!(config(saved.path()), config(&folder(name)));
        let error = inference(name, Precision::F32).save(saved.path()).unwrap_err();
        assert!(error.to_string().contains("hint"), "{error}");
    }
}

#[test]
fn wrong_inputs_and_weights_are_errors() {
    let golden = Golden::read("sd15");
    let unet = inference("sd15", Precision::F32);
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let time = Tensor::from_slice(&[1_i64]);
    for (latents, times, text) in [
        (zeros(&[1, 3, 8, 8]), time.shallow_clone(), zeros(&[1, 5, 12])),
        (zeros(&[4, 8, 8]), time.shallow_clone(), zeros(&[1, 5, 12])),
        (zeros(&[2, 4, 8, 8]), zeros(&[3]), zeros(&[2, 5, 12])),
        (zeros(&[1, 4, 8, 8]), time.shallow_clone(), zeros(&[1, 5, 13])),
        (zeros(&[1, 4, 0, 8]), time.shallow_clone(), zeros(&[1, 5, 12])),
    ] {
        assert!(unet.forward(&latents, &times, &text, None).is_err());
    }
    let added = Golden::read("sdxl").added(2);
    let (latents, times) = (golden.get("latents"), golden.get("timesteps"));
    assert!(unet.forward(latents, times, golden.get("text"), added.as_ref()).is_err());
    assert!(
        inference("sdxl", Precision::F32)
            .forward(latents, times, golden.get("text"), None)
            .is_err()
    );

    // The weights of another network: everything that is wrong, in one error.
    let error = UNet::load(
        &config(&folder("sd15")),
        &weights(&folder("sd21")),
        Device::Cpu,
        Precision::F32,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("missing") && error.contains("unexpected"), "{error}");

    // NaN in one tensor.
    let saved = tempfile::tempdir().unwrap();
    let mut tensors: Vec<(String, Tensor)> = training("sd15", Precision::F32)
        .parameters()
        .iter()
        .map(|(name, value)| (name.clone(), value.detach().copy()))
        .collect();
    let _ = tensors[3].1.fill_(f64::NAN);
    let file = saved.path().join("diffusion_pytorch_model.safetensors");
    write_safetensors(&file, &tensors).unwrap();
    let error =
        UNet::load(&config(&folder("sd15")), &weights(saved.path()), Device::Cpu, Precision::F32)
            .unwrap_err()
            .to_string();
    assert!(error.contains("NaN") && error.contains(&tensors[3].0), "{error}");
}
