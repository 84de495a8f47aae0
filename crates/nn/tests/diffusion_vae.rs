//! The autoencoder, compared with diffusers, and what it rejects.
//! `scripts/goldens/diffusion_networks.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::vae::{Vae, VaeConfig};
use nn::weights::Weights;
use tch::{Device, Kind, Tensor};

const NAMES: [&str; 3] = ["vae", "vae_bare", "vae_former"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion").join(name)
}

fn load(name: &str, precision: Precision) -> Vae {
    let config = VaeConfig::read(&folder(name).join("config.json")).unwrap();
    let weights = Weights::open(folder(name).join("diffusion_pytorch_model.safetensors")).unwrap();
    Vae::load(&config, &weights, Device::Cpu, precision).unwrap()
}

fn expected(name: &str) -> impl Fn(&str) -> Tensor {
    let weights = Weights::open(folder(name).join("expected.safetensors")).unwrap();
    move |name| weights.tensor(name).unwrap()
}

/// The largest difference, relative to the largest number expected.
#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, bound: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    assert_eq!(found.kind(), Kind::Float, "{what}");
    let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    let error = largest(&(found - expected)) / largest(expected);
    assert!(error <= bound, "{what}: {error}");
}

#[test]
fn both_ways_equal_diffusers() {
    for name in NAMES {
        let expected = expected(name);
        for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 6e-2)] {
            let vae = load(name, precision);
            let what = |part: &str| format!("{name} {precision} {part}");
            let posterior = vae.encode(&expected("pixels")).unwrap();
            assert_close(&posterior.mean_BCHW, &expected("mean"), bound, &what("mean"));
            let variance = &posterior.log_variance_BCHW;
            assert_close(variance, &expected("log_variance"), bound, &what("log-variance"));
            if precision == Precision::F32 {
                let noise = posterior.std().unwrap() * expected("noise");
                let sample = &posterior.mean_BCHW + noise;
                assert_close(&sample, &expected("sample"), 1e-4, &what("sample"));
            }
            let pixels = vae.decode(&expected("latents")).unwrap();
            assert_close(&pixels, &expected("decoded"), bound, &what("decoded"));
        }
    }
}

#[test]
fn large_batches_are_cut_and_give_the_same() {
    let vae = load("vae", Precision::F32);
    // More pixels than are computed at once.
    let pixels = Tensor::rand([5, 3, 512, 512], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
    let all = vae.encode(&pixels).unwrap().mean_BCHW;
    let last = vae.encode(&pixels.narrow(0, 4, 1)).unwrap().mean_BCHW;
    assert_close(&all.narrow(0, 4, 1), &last, 1e-5, "cut batch");
}

#[test]
fn posteriors_may_be_trained_on() {
    let vae = load("vae", Precision::F32);
    let expected = expected("vae");
    let posterior = vae.encode(&expected("pixels")).unwrap();
    let weight = Tensor::ones([6, 6], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let sample = &posterior.mean_BCHW + posterior.std().unwrap() * expected("noise");
    for latents in [&sample, &posterior.mean_BCHW, &posterior.log_variance_BCHW] {
        latents.matmul(&weight).sum(Kind::Float).backward();
    }
    assert!(weight.grad().isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn published_configurations_are_read() {
    let sdxl = read(
        r#"{"_class_name": "AutoencoderKL", "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
                                 "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D",
                               "UpDecoderBlock2D", "UpDecoderBlock2D"],
            "force_upcast": true, "latent_channels": 4, "layers_per_block": 2,
            "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.13025}"#,
    )
    .unwrap();
    assert_eq!((sdxl.downscale(), sdxl.scaling_factor, sdxl.force_upcast), (8, 0.13025, true));
    // Files of Stable Diffusion 1.5 have no scaling factor.
    assert_eq!(read(r#"{"norm_num_groups": 32}"#).unwrap().scaling_factor, 0.18215);
    // Null is false, as in Python.
    assert!(!read(r#"{"force_upcast": null}"#).unwrap().force_upcast);
    for (json, word) in [
        (r#"{"_class_name": "AutoencoderTiny"}"#, "AutoencoderTiny"),
        (r#"{"act_fn": "gelu"}"#, "act_fn"),
        (r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#, "AttnDownEncoderBlock2D"),
        (r#"{"up_block_types": []}"#, "up_block_types"),
        (r#"{"block_out_channels": []}"#, "block_out_channels"),
        (r#"{"block_out_channels": [40]}"#, "a multiple of norm_num_groups, 32"),
        (r#"{"latent_channels": -4}"#, "latent_channels"),
        (r#"{"scaling_factor": 0}"#, "scaling_factor"),
        (r#"{"latents_mean": [0, 0, 0, 0]}"#, "latents_mean"),
        (r#"{"layers_per_block": "two"}"#, "config.json"),
        (r#"{"layers_per_block": "two"}"#, "layers_per_block to"),
        (r#"{"norm_num_groups": null}"#, "norm_num_groups to null"),
        (r#"{"shift_factor": "none"}"#, "shift_factor to"),
        (r#"{"latents_std": [1, 1, 1, 1]}"#, "latents_std"),
        (r#"{"force_upcast": 1}"#, "force_upcast to 1"),
        ("nothing", "config.json"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn read(json: &str) -> Result<VaeConfig, nn::config::ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    fs_err::write(&file, json).unwrap();
    VaeConfig::read(&file)
}

#[test]
fn unfit_inputs_are_refused() {
    let vae = load("vae", Precision::F32);
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    for (shape, word) in [
        (vec![1, 3, 8, 10], "multiples of 4"),
        (vec![1, 4, 8, 8], "found [1, 4, 8, 8]"),
        (vec![3, 8, 8], "found [3, 8, 8]"),
        (vec![0, 3, 8, 8], "found [0, 3, 8, 8]"),
    ] {
        let error = vae.encode(&zeros(&shape)).unwrap_err().to_string();
        assert!(error.starts_with("VAE: expected pixels") && error.contains(word), "{error}");
    }
    assert!(vae.decode(&zeros(&[1, 3, 8, 8])).unwrap_err().to_string().contains("latents"));
    let error = vae.encode(&zeros(&[1, 3, 8, 8]).fill_(f64::NAN)).unwrap_err().to_string();
    assert_eq!(error, "VAE: expected finite pixels, found NaN or infinite ones");
    let error = vae.decode(&zeros(&[1, 4, 2, 2]).fill_(1e38)).unwrap_err().to_string();
    assert!(error.contains("finite latents became NaN or infinite inside"), "{error}");
}

#[test]
fn unfit_weights_are_refused() {
    let config = VaeConfig::read(&folder("vae").join("config.json")).unwrap();
    let other = Weights::open(folder("vae_bare").join("diffusion_pytorch_model.safetensors"));
    let error = Vae::load(&config, &other.unwrap(), Device::Cpu, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("does not fit the VAE"), "{error}");

    let source = Weights::open(folder("vae").join("diffusion_pytorch_model.safetensors")).unwrap();
    let mut tensors: HashMap<&str, Tensor> =
        source.names().map(|name| (name, source.tensor(name).unwrap().copy())).collect();
    let _ = tensors.get_mut("decoder.conv_in.bias").unwrap().fill_(f64::NAN);
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("weights.safetensors");
    let pairs: Vec<(&str, &Tensor)> =
        tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    Tensor::write_safetensors(&pairs, &file).unwrap();
    let weights = Weights::open(&file).unwrap();
    let error = Vae::load(&config, &weights, Device::Cpu, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("decoder.conv_in.bias") && error.contains("NaN"), "{error}");
}
