//! The frozen reference of a network in training computes the same bits.

#![allow(non_snake_case)]
#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::optimizer::{AdamW, AdamWConfig, Optimizer};
use nn::unet::{AddedConditions, UNet, UNetConfig, WEIGHT_FILES};
use nn::weights::Weights;
use tch::{Device, Kind, Tensor};

const NAMES: [&str; 3] = ["sd15", "sd21", "sdxl"];
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/unet")).join(name)
}

fn config(folder: &Path) -> UNetConfig {
    UNetConfig::read(&folder.join("config.json")).unwrap()
}

fn weights(folder: &Path) -> Weights {
    Weights::open_folder(folder, WEIGHT_FILES).unwrap()
}

fn trained(name: &str, precision: Precision) -> UNet {
    let folder = folder(name);
    UNet::load_for_training(&config(&folder), &weights(&folder), Device::Cpu, precision).unwrap()
}

fn reference(name: &str, precision: Precision) -> UNet {
    let folder = folder(name);
    UNet::load_reference(&config(&folder), &weights(&folder), Device::Cpu, precision).unwrap()
}

/// Batches of one and of three, with sides that halve evenly and sides that do not.
fn outputs(unet: &UNet) -> Vec<Tensor> {
    let xl = unet.config().cross_attention_dim == 12 && unet_is_xl(unet);
    [(1, 8, 8), (3, 8, 8), (2, 7, 5), (2, 16, 4)]
        .into_iter()
        .map(|(batch, height, width)| {
            let normal = |size: &[i64]| nn::rng::normal(7, size).unwrap();
            let added = xl.then(|| AddedConditions {
                pooled_BD: normal(&[batch, 10]),
                time_ids_B6: Tensor::from_slice(&[64.0_f32, 64.0, 0.0, 0.0, 64.0, 64.0])
                    .repeat([batch, 1]),
            });
            unet.forward(
                &normal(&[batch, 4, height, width]),
                &Tensor::arange_start_step(3, 3 + 300 * batch, 300, (Kind::Int64, Device::Cpu)),
                &normal(&[batch, 5, 12]),
                added.as_ref(),
            )
            .unwrap()
        })
        .collect()
}

fn unet_is_xl(unet: &UNet) -> bool {
    unet.parameters().iter().any(|(name, _)| name.starts_with("add_embedding"))
}

fn equal_bits(left: &[Tensor], right: &[Tensor]) -> bool {
    let bits = |tensors: &[Tensor]| -> Vec<u32> {
        let flat = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().view([-1])).unwrap();
        tensors.iter().flat_map(flat).map(f32::to_bits).collect()
    };
    bits(left) == bits(right)
}

/// One update that changes every weight.
fn update(unet: &mut UNet) {
    let mut optimizer = AdamW::new(unet.parameters(), AdamWConfig::default()).unwrap();
    let loss = outputs(unet).iter().map(|output| output.square().mean(Kind::Float)).sum::<Tensor>();
    loss.backward();
    optimizer.step(1e-2).unwrap();
    optimizer.zero_grad().unwrap();
    unet.cast_weights().unwrap();
}

#[test]
fn reference_and_trained_network_agree_bit_for_bit_before_and_after_a_copy() {
    for name in NAMES {
        for precision in PRECISIONS {
            let case = format!("{name}, {precision}");
            let (mut trained, mut reference) =
                (trained(name, precision), reference(name, precision));
            for checkpointing in [false, true] {
                trained.set_gradient_checkpointing(checkpointing);
                let found = outputs(&reference);
                assert!(found.iter().all(|output| !output.requires_grad()), "{case}");
                let with_gradients = outputs(&trained);
                assert!(with_gradients.iter().all(Tensor::requires_grad), "{case}");
                assert!(equal_bits(&found, &with_gradients), "{case}, {checkpointing}");
                update(&mut trained);
                assert!(!equal_bits(&found, &outputs(&trained)), "{case}, {checkpointing}");
                assert!(equal_bits(&found, &outputs(&reference)), "{case}, {checkpointing}");
                reference.copy_weights_from(&trained).unwrap();
                assert!(equal_bits(&outputs(&reference), &outputs(&trained)), "{case}, copied");
            }
        }
    }
}

#[test]
fn a_reference_holds_its_weights_in_the_compute_precision_and_apart() {
    for precision in PRECISIONS {
        let (trained, mut reference) = (trained("sd15", precision), reference("sd15", precision));
        assert_eq!(trained.parameters().len(), reference.parameters().len());
        reference.copy_weights_from(&trained).unwrap();
        for ((name, own), (other_name, other)) in
            reference.parameters().iter().zip(trained.parameters())
        {
            assert_eq!(name, other_name);
            assert_eq!(own.kind(), precision.kind(), "{name}");
            assert!(!own.requires_grad() && other.requires_grad(), "{name}");
            assert_ne!(own.data_ptr(), other.data_ptr(), "{name}");
        }
    }
}

#[test]
fn a_saved_reference_comes_back_bit_for_bit() {
    for precision in PRECISIONS {
        let (mut trained, mut reference) =
            (trained("sdxl", precision), reference("sdxl", precision));
        update(&mut trained);
        reference.copy_weights_from(&trained).unwrap();
        let saved = tempfile::tempdir().unwrap();
        reference.save(saved.path()).unwrap();
        let stored = weights(saved.path());
        assert_eq!(stored.kind("conv_in.weight"), Some(precision.kind()));
        let device = Device::Cpu;
        let loaded =
            UNet::load_reference(&config(saved.path()), &stored, device, precision).unwrap();
        assert!(equal_bits(&outputs(&loaded), &outputs(&reference)));
        // Loading did not tie it to the file: it can be refreshed, the file stays.
        let mut loaded = loaded;
        loaded.copy_weights_from(&crate::trained("sdxl", precision)).unwrap();
        assert!(!equal_bits(&outputs(&loaded), &outputs(&reference)));
        let again =
            UNet::load_reference(&config(saved.path()), &weights(saved.path()), device, precision)
                .unwrap();
        assert!(equal_bits(&outputs(&again), &outputs(&reference)));
    }
}

#[test]
fn only_a_reference_of_the_same_network_takes_weights_over() {
    let message = |receiver: &mut UNet, giver: &UNet| {
        receiver.copy_weights_from(giver).unwrap_err().to_string()
    };
    let folder = folder("sd15");
    let inference =
        UNet::load(&config(&folder), &weights(&folder), Device::Cpu, Precision::F32).unwrap();
    let sd15 = trained("sd15", Precision::F32);
    assert!(message(&mut trained("sd15", Precision::F32), &sd15).contains("reference only"));
    let mut receiver = reference("sd15", Precision::F32);
    assert!(message(&mut receiver, &inference).contains("inference"));
    assert!(message(&mut receiver, &trained("sd21", Precision::F32)).contains("tensors"));
    assert!(message(&mut receiver, &trained("sd15", Precision::Bf16)).contains("precision"));
}
