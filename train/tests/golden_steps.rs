//! Ten training steps against the same written with diffusers and torch
//! (`scripts/goldens/train_steps.py`): both networks, the loss, gradients, clipping, AdamW, and a
//! reference that moves.

#![allow(non_snake_case)]
#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

use std::path::{Path, PathBuf};

use nn::device::Precision;
use nn::optimizer::{AdamW, AdamWConfig, Optimizer};
use nn::schedule::{ScheduleConfig, TrainingSchedule};
use nn::unet::{UNet, UNetConfig, WEIGHT_FILES};
use nn::weights::Weights;
use tch::{Device, Kind, Tensor};
use train::loss::Objective;
use train::step::{Accumulation, MicroBatch, Predictions, predict};

const MICRO_BATCHES: usize = 2;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/steps")
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/nn/tests/fixtures/diffusion/sd")
}

struct Golden(Weights);

impl Golden {
    fn get(&self, name: &str) -> Tensor {
        self.0.tensor(name).unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        Vec::try_from(self.get(name)).unwrap()
    }

    fn micro_batch(&self, micro: usize) -> MicroBatch {
        MicroBatch::from_tensors(Vec::new(), |name| {
            let name = format!("micro.{micro}.{name}");
            Ok(self.0.contains(&name).then(|| self.get(&name)))
        })
        .unwrap()
    }
}

/// The largest difference, in parts of the largest expected value and of `scale` at least.
fn difference(found: &Tensor, expected: &Tensor, scale: f64) -> f64 {
    assert_eq!(found.size(), expected.size());
    let largest = expected.abs().max().double_value(&[]).max(scale);
    let apart = found.to_kind(Kind::Double) - expected.to_kind(Kind::Double);
    apart.abs().max().double_value(&[]) / largest
}

fn load<T>(
    make: impl FnOnce(&UNetConfig, &Weights, Device, Precision) -> Result<T, nn::ModelError>,
    precision: Precision,
) -> T {
    let folder = model().join("unet");
    let config = UNetConfig::read(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(&folder, WEIGHT_FILES).unwrap();
    make(&config, &weights, Device::Cpu, precision).unwrap()
}

/// Sees a step: its number, the network, its predictions, the gradients' norm.
type Look<'a> = dyn FnMut(usize, &UNet, &[Predictions], &Tensor) + 'a;

/// What a step is made of: calls `look` with the number of the step, its predictions and the
/// gradients' norm, before the update.
fn train(golden: &Golden, precision: Precision, checkpointing: bool, look: &mut Look<'_>) -> UNet {
    let settings: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("settings.json")).unwrap()).unwrap();
    let setting = |name: &str| settings[name].as_f64().unwrap();
    let mut unet = load(UNet::load_for_training, precision);
    unet.set_gradient_checkpointing(checkpointing);
    let mut reference = load(UNet::load_reference, precision);
    let config = ScheduleConfig::read(&model().join("scheduler/scheduler_config.json")).unwrap();
    let schedule = TrainingSchedule::new(&config, Device::Cpu).unwrap();
    let weight_decay = setting("weight_decay");
    let config = AdamWConfig { weight_decay, ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(unet.parameters(), config).unwrap();
    let batches: Vec<MicroBatch> =
        (0..MICRO_BATCHES).map(|micro| golden.micro_batch(micro)).collect();
    let pairs = batches.iter().map(MicroBatch::len).sum::<i64>() as u64;
    let objective = Objective::dpo(setting("beta"));
    for (step, rate) in golden.numbers("rates").into_iter().enumerate() {
        let mut accumulation = Accumulation::new(pairs);
        let all: Vec<Predictions> = batches
            .iter()
            .map(|batch| {
                let predictions = predict(&unet, &reference, &schedule, &objective, batch).unwrap();
                accumulation.add(batch, &predictions).unwrap();
                predictions
            })
            .collect();
        let norm = accumulation.finish(unet.parameters(), Some(setting("max_norm"))).unwrap();
        look(step, &unet, &all, &norm);
        optimizer.step(rate).unwrap();
        optimizer.zero_grad().unwrap();
        unet.cast_weights().unwrap();
        if (step + 1) % setting("refresh_every") as usize == 0 {
            reference.copy_weights_from(&unet).unwrap();
        }
    }
    unet
}

fn joined(all: &[Predictions], part: fn(&Predictions) -> &Tensor) -> Tensor {
    Tensor::cat(&all.iter().map(part).collect::<Vec<_>>(), 0)
}

#[test]
fn ten_steps_are_those_of_diffusers_and_torch() {
    let golden = Golden(Weights::open(fixtures().join("golden.safetensors")).unwrap());
    let norms = golden.numbers("grad_norms");
    for checkpointing in [false, true] {
        let (mut shown, mut gradients) = (0, 0);
        let mut look = |step: usize, unet: &UNet, all: &[Predictions], norm: &Tensor| {
            // A loss is a function of z at the scale of one.
            for (name, part) in [
                ("z", (|found: &Predictions| &found.logits_P) as fn(&Predictions) -> &Tensor),
                ("loss", |found: &Predictions| &found.losses_P),
            ] {
                let expected = golden.get(&format!("step.{step}.{name}"));
                let apart = difference(&joined(all, part), &expected, 1.0);
                assert!(apart < 1e-4, "step {step}, {name}: {apart:e}");
            }
            let apart = (norm.double_value(&[]) / norms[step] - 1.0).abs();
            assert!(apart < 1e-4, "step {step}, norm: {apart:e}");
            for (name, found) in [
                ("model_pred", &all[0].model_2PCHW),
                ("ref_pred", all[0].reference_2PCHW.as_ref().unwrap()),
            ] {
                let name = format!("step.{step}.{name}");
                if golden.0.contains(&name) {
                    let apart = difference(found, &golden.get(&name), 0.0);
                    assert!(apart < 1e-4, "{name}: {apart:e}");
                    shown += 1;
                }
            }
            if step == 5 {
                for (name, parameter) in unet.parameters() {
                    let expected = golden.get(&format!("gradient_norm.{name}"));
                    let expected = expected.double_value(&[]);
                    let found = parameter.grad().norm().double_value(&[]);
                    // Of a small tensor beside a tenth of the whole norm: after five steps f32 does
                    // not give more of it, whoever computes.
                    let apart = (found - expected).abs() / expected.max(0.1 * norms[step]);
                    assert!(apart < 1e-4, "gradient of {name}: {found} for {expected}");
                    gradients += 1;
                }
            }
        };
        let unet = train(&golden, Precision::F32, checkpointing, &mut look);
        assert_eq!((shown, gradients), (6, unet.parameters().len()));
        let start = load(UNet::load_reference, Precision::F32);
        for ((name, found), (_, before)) in unet.parameters().iter().zip(start.parameters()) {
            let expected = golden.get(&format!("final.{name}"));
            let apart = difference(found, &expected, 0.0);
            assert!(apart < 1e-4, "{name}: {apart:e}");
            // Not only the weights: the way they went.
            let way = difference(&(found - before), &(expected - before), 0.0);
            assert!(way < 1e-2, "the way of {name}: {way:e}");
        }
    }
}

/// Not only near: where model and reference have the same weights, no rounding comes between them.
#[test]
fn z_is_exactly_zero_and_the_loss_exactly_ln_2_at_the_start_and_after_a_refresh() {
    let golden = Golden(Weights::open(fixtures().join("golden.safetensors")).unwrap());
    let rates = golden.numbers("rates");
    for precision in [Precision::F32, Precision::Bf16] {
        for checkpointing in [false, true] {
            let mut moved = 0;
            train(&golden, precision, checkpointing, &mut |step, _, all, _| {
                let z = joined(all, |found| &found.logits_P);
                let losses = joined(all, |found| &found.losses_P);
                // Steps 0 and 1, since the first update has the learning rate zero.
                let equal = step % 4 == 0 || rates[..step].iter().all(|rate| *rate == 0.0);
                if equal {
                    let case = format!("{precision}, {checkpointing}, step {step}");
                    assert_eq!(Vec::<f32>::try_from(z).unwrap(), [0.0; 4], "{case}");
                    let losses = Vec::<f32>::try_from(losses).unwrap();
                    assert_eq!(losses, [std::f32::consts::LN_2; 4], "{case}");
                } else {
                    moved += usize::from(z.abs().min().double_value(&[]) > 0.0);
                }
            });
            assert!(moved >= 5, "{moved}");
        }
    }
}

/// Whatever the micro-batches, the gradients are those of the weighted mean over all pairs, written
/// down as it is defined.
#[test]
fn gradients_are_those_of_the_weighted_mean() {
    let golden = Golden(Weights::open(fixtures().join("golden.safetensors")).unwrap());
    let mut unet = load(UNet::load_for_training, Precision::F32);
    let reference = load(UNet::load_reference, Precision::F32);
    let config = ScheduleConfig::read(&model().join("scheduler/scheduler_config.json")).unwrap();
    let schedule = TrainingSchedule::new(&config, Device::Cpu).unwrap();
    let batches: Vec<MicroBatch> =
        (0..MICRO_BATCHES).map(|micro| golden.micro_batch(micro)).collect();
    let weights = Tensor::from_slice(&[2.0f32, 0.5, 0.25, 1.0]);
    let whole = MicroBatch::cat(&batches).unwrap();
    let whole = MicroBatch { weight: 3.75, weight_P: weights, ..whole };
    unet.set_gradient_checkpointing(false);
    let gradients = |unet: &UNet| -> Vec<Tensor> {
        let taken = unet.parameters().iter().map(|(_, parameter)| {
            let mut gradient = parameter.grad();
            let copy = gradient.copy();
            let _ = gradient.zero_();
            copy
        });
        taken.collect()
    };
    let predictions =
        predict(&unet, &reference, &schedule, &Objective::dpo(5000.0), &whole).unwrap();
    let mean = (&predictions.losses_P * &whole.weight_P).sum(Kind::Double) / 3.75;
    mean.backward();
    let expected = gradients(&unet);
    let largest = expected.iter().map(|one| one.abs().max().double_value(&[])).fold(0.0, f64::max);
    for sizes in [vec![4], vec![3, 1], vec![1, 1, 1, 1]] {
        let mut accumulation = Accumulation::new(4);
        let mut start = 0;
        for size in &sizes {
            let batch = whole.narrow(start, *size).unwrap();
            start += size;
            let predictions =
                predict(&unet, &reference, &schedule, &Objective::dpo(5000.0), &batch).unwrap();
            accumulation.add(&batch, &predictions).unwrap();
        }
        assert_eq!(accumulation.weight(), 3.75);
        let norm = accumulation.finish(unet.parameters(), None).unwrap().double_value(&[]);
        let found = gradients(&unet);
        let mut squares = 0.0;
        for (found, expected) in found.iter().zip(&expected) {
            let apart = (found - expected).abs().max().double_value(&[]);
            assert!(apart < 1e-4 * largest, "{sizes:?}: {apart:e} of {largest:e}");
            squares += expected.square().sum(Kind::Double).double_value(&[]);
        }
        assert!((norm / squares.sqrt() - 1.0).abs() < 1e-4, "{sizes:?}: {norm}");
    }
}
