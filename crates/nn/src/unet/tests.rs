//! A network in training with copies of its weights in bf16 computes what it would if it cast them
//! at every use.

use std::path::{Path, PathBuf};

use super::*;
use crate::device::multiplying_bf16;
use crate::lora::{CALLS, LoraConfig, Targets};
use crate::optimizer::{AdamW, AdamWConfig, FlatGradients, Optimizer, clip_grad_norm, zero_grad};
use crate::shim::normal;

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/unet")).join(name)
}

fn trained(name: &str, casts_at_use: bool) -> UNet {
    let folder = folder(name);
    let weights = Weights::open_folder(&folder, WEIGHT_FILES).unwrap();
    let config = UNetConfig::read(&folder.join("config.json")).unwrap();
    let load = if casts_at_use { UNet::load_for_checkpointing } else { UNet::load_for_training };
    let unet = load(&config, &weights, Device::Cpu, Precision::Bf16).unwrap();
    assert_eq!(unet.checkpointing, casts_at_use);
    unet
}

fn output(unet: &UNet, seed: u64) -> Tensor {
    let added = unet.added_embedding.is_some().then(|| AddedConditions {
        pooled_BD: normal(seed, &[2, 10]).unwrap(),
        time_ids_B6: Tensor::from_slice(&[64.0_f32, 64.0, 0.0, 0.0, 64.0, 64.0]).repeat([2, 1]),
    });
    let latents_BCHW = normal(seed + 1, &[2, 4, 8, 8]).unwrap();
    let times_B = Tensor::from_slice(&[3_i64, 700]);
    let text_BLD = normal(seed + 2, &[2, 5, 12]).unwrap();
    unet.forward(&latents_BCHW, &times_B, &text_BLD, added.as_ref()).unwrap()
}

/// Everything that two steps of two micro-batches compute, as bits.
fn steps(mut unet: UNet, checkpointing: bool, flat: bool) -> Vec<(String, Vec<u32>)> {
    unet.set_gradient_checkpointing(checkpointing);
    let mut optimizer = AdamW::new(unet.parameters(), AdamWConfig::default()).unwrap();
    let mut found = Vec::new();
    let mut note = |name: String, tensor: &Tensor| {
        assert_eq!(tensor.kind(), Kind::Float, "{name}");
        let numbers = Vec::<f32>::try_from(tensor.detach().contiguous().view([-1])).unwrap();
        // A sum that begins with 0 has no -0.
        let bits = numbers.into_iter().map(|number| (number + 0.0).to_bits()).collect();
        found.push((name, bits));
    };
    for step in 0..2 {
        let _attached = flat.then(|| FlatGradients::attach(unet.parameters()).unwrap());
        for micro in 0..2 {
            let output = output(&unet, 10 * step + micro);
            note(format!("output {step}.{micro}"), &output);
            output.square().mean(Kind::Float).backward();
        }
        for (name, parameter) in unet.parameters() {
            note(format!("gradient of {name} at {step}"), &parameter.grad());
        }
        note(format!("norm {step}"), &clip_grad_norm(unet.parameters(), Some(0.1)).unwrap());
        optimizer.step(1e-2).unwrap();
        zero_grad(unet.parameters()).unwrap();
        unet.cast_weights().unwrap();
        for (name, parameter) in unet.parameters() {
            note(format!("{name} at {step}"), parameter);
        }
    }
    found
}

#[test]
fn copies_of_weights_give_the_bits_of_casts_at_every_use() {
    multiplying_bf16(|| {
        for name in ["sd15", "sdxl"] {
            for checkpointing in [false, true] {
                let unet = trained(name, true);
                assert_eq!(unet.copies.len(), 0);
                let expected = steps(unet, checkpointing, false);
                for flat in [false, true] {
                    let unet = trained(name, false);
                    assert!(unet.copies.len() > unet.parameters().len() / 2, "{name}");
                    let found = steps(unet, checkpointing, flat);
                    assert_eq!(found.len(), expected.len());
                    for ((what, found), (_, expected)) in found.iter().zip(&expected) {
                        assert!(found == expected, "{name}, {checkpointing}, {flat}: {what}");
                    }
                }
            }
        }
    });
}

/// Nothing records gradients before the first adapters, so their transformer has no input by which it
/// would be recomputed; without a leaf it would keep everything in it.
#[test]
fn every_adapter_is_recomputed_also_where_nothing_before_it_records() {
    let calls = || CALLS.load(std::sync::atomic::Ordering::Relaxed);
    for name in ["sd15", "sdxl"] {
        let folder = folder(name);
        let weights = Weights::open_folder(&folder, WEIGHT_FILES).unwrap();
        let config = UNetConfig::read(&folder.join("config.json")).unwrap();
        let lora = LoraConfig { rank: 2, alpha: 2.0, targets: Targets::Attention };
        let (device, precision) = (Device::Cpu, Precision::F32);
        let seed = |place: u64| place;
        let mut unet =
            UNet::load_with_adapters(&config, &weights, &lora, None, &seed, device, precision)
                .unwrap();
        let count = unet.parameters().len() / 2;
        for (checkpointing, times) in [(false, 1), (true, 2)] {
            unet.set_gradient_checkpointing(checkpointing);
            let start = calls();
            let recorded = output(&unet, 1);
            assert_eq!(calls() - start, count, "{name}");
            recorded.square().mean(Kind::Float).backward();
            assert_eq!(calls() - start, times * count, "{name}, {checkpointing}");
            // Without recording there is nothing to recompute.
            let start = calls();
            let plain = tch::no_grad(|| output(&unet, 1));
            assert!(!plain.requires_grad());
            assert_eq!(calls() - start, count, "{name}");
        }
    }
}

#[test]
fn copies_are_the_weights_of_the_reference_and_follow_an_update() {
    multiplying_bf16(|| {
        let mut unet = trained("sd15", false);
        let weights = Weights::open_folder(folder("sd15"), WEIGHT_FILES).unwrap();
        let config = unet.config().clone();
        let mut reference =
            UNet::load_reference(&config, &weights, Device::Cpu, Precision::Bf16).unwrap();
        assert_eq!(output(&unet, 1).detach(), output(&reference, 1));
        tch::no_grad(|| {
            for (_, parameter) in unet.parameters() {
                let _ = parameter.shallow_clone().f_mul_scalar_(1.01).unwrap();
            }
        });
        unet.cast_weights().unwrap();
        assert_ne!(output(&unet, 1).detach(), output(&reference, 1));
        reference.copy_weights_from(&unet).unwrap();
        assert_eq!(output(&unet, 1).detach(), output(&reference, 1));
    });
}

#[test]
fn there_are_no_copies_in_f32_or_where_bf16_is_upcast() {
    let load = |precision| {
        let weights = Weights::open_folder(folder("sd15"), WEIGHT_FILES).unwrap();
        let config = UNetConfig::read(&folder("sd15").join("config.json")).unwrap();
        UNet::load_for_training(&config, &weights, Device::Cpu, precision).unwrap()
    };
    assert_eq!(load(Precision::F32).copies.len(), 0);
    let upcasts = Precision::Bf16.upcasts_bf16(Device::Cpu);
    assert_eq!(load(Precision::Bf16).copies.len() == 0, upcasts);
}
