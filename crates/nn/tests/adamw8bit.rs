//! AdamW in 8 bits against bitsandbytes 0.50.2: its maps, its rounding, and steps of its update
//! (`scripts/goldens/adamw8bit.py`).

#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use nn::optimizer::{AdamW, AdamW8bit, AdamWConfig, Optimizer, dynamic_map};
use nn::weights::{Weights, write_safetensors};
use serde_json::Value;
use tch::{Kind, Tensor};

const COUNT: usize = 5003;
const BLOCK: usize = 256;

fn golden() -> Value {
    serde_json::from_str(include_str!("fixtures/optimizers/adamw8bit.json")).unwrap()
}

fn list(golden: &Value, name: &str) -> Vec<f64> {
    golden[name].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Numbers of many magnitudes, the same in any language.
fn numbers(count: usize, seed: f64) -> Vec<f32> {
    let number = |place: usize| {
        let scale = 10f64.powf(-((place % 7) as f64) / 2.0);
        ((0.37 * place as f64 + seed).sin() * scale) as f32
    };
    (0..count).map(number).collect()
}

fn parameters(count: usize) -> Vec<(String, Tensor)> {
    let weights = Tensor::from_slice(&numbers(count, 1.0)).set_requires_grad(true);
    vec![("large".to_owned(), weights)]
}

fn set_gradient(parameters: &[(String, Tensor)], step: usize) {
    for (_, parameter) in parameters {
        let count = parameter.numel();
        let gradient = Tensor::from_slice(&numbers(count, 10.0 + step as f64));
        (parameter * gradient.view(parameter.size().as_slice())).sum(Kind::Float).backward();
    }
}

fn state(optimizer: &dyn Optimizer, name: &str) -> Tensor {
    optimizer.state().into_iter().find(|(found, _)| found == name).unwrap().1
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view([-1])).unwrap()
}

#[test]
fn the_maps_are_the_published_tables_bit_for_bit() {
    let golden = golden();
    for (is_signed, name) in [(true, "signed"), (false, "unsigned")] {
        let expected: Vec<u32> =
            list(&golden, name).iter().map(|number| (*number as f32).to_bits()).collect();
        let found: Vec<u32> =
            dynamic_map(is_signed).unwrap().into_iter().map(f32::to_bits).collect();
        assert_eq!(found.len(), 256);
        assert_eq!(found, expected, "{name}");
    }
}

/// After one step from zero the first moment is a tenth of the gradient, and its codes are those
/// that `quantize_blockwise` gives for the gradient itself.
#[test]
fn numbers_round_as_bitsandbytes_rounds_them() {
    let golden = golden();
    let values = numbers(1000, 3.0);
    // Beyond 4,096 numbers, so that moments have 8 bits; whole blocks first.
    let mut padded = values.clone();
    padded.resize(1024, 0.0);
    padded.resize(4096, 1.0);
    let parameter = Tensor::zeros([4096], tch::kind::FLOAT_CPU).set_requires_grad(true);
    let parameters = [("w".to_owned(), parameter)];
    let config = AdamWConfig { betas: [0.5, 0.5], ..AdamWConfig::default() };
    let mut optimizer = AdamW8bit::new(&parameters, config).unwrap();
    (&parameters[0].1 * Tensor::from_slice(&padded)).sum(Kind::Float).backward();
    optimizer.step(1e-3).unwrap();
    let codes = bytes(&state(&optimizer, "w.exp_avg"));
    let expected = list(&golden, "codes");
    for (place, expected) in expected.iter().enumerate() {
        let apart = (f64::from(codes[place]) - expected).abs();
        // On a CPU bitsandbytes looks small fractions up in a coarse table: a neighbour at most.
        assert!(apart <= 1.0, "{place}: {} for {expected}", codes[place]);
    }
    let equal = expected.iter().zip(&codes).filter(|(one, other)| **one == f64::from(**other));
    assert!(equal.count() >= 970, "of 1000");
    let largest = Vec::<f32>::try_from(state(&optimizer, "w.exp_avg_absmax")).unwrap();
    for (found, expected) in largest.iter().zip(list(&golden, "largest")) {
        assert!(
            (f64::from(*found) - 0.5 * expected).abs() < 1e-7,
            "{found} for half of {expected}"
        );
    }
}

#[test]
fn steps_are_those_of_numpy_with_the_published_maps() {
    let golden = golden();
    let parameters = parameters(COUNT);
    let mut optimizer = AdamW8bit::new(&parameters, AdamWConfig::default()).unwrap();
    let every = golden["every"].as_u64().unwrap() as usize;
    for (step, expected) in golden["weights"].as_array().unwrap().iter().enumerate() {
        set_gradient(&parameters, step + 1);
        optimizer.step(golden["rate"].as_f64().unwrap()).unwrap();
        optimizer.zero_grad().unwrap();
        let found = Vec::<f32>::try_from(parameters[0].1.detach()).unwrap();
        for (place, expected) in expected.as_array().unwrap().iter().enumerate() {
            let (found, expected) = (f64::from(found[place * every]), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 2e-5, "step {step}, {place}: {found}, {expected}");
        }
    }
    for (part, codes, largest) in
        [("exp_avg", "first", "first_largest"), ("exp_avg_sq", "second", "second_largest")]
    {
        let found = bytes(&state(&optimizer, &format!("large.{part}")));
        let expected = list(&golden, codes);
        let near = expected.iter().enumerate().filter(|(place, expected)| {
            (f64::from(found[place * every]) - **expected).abs() <= 1.0
        });
        assert_eq!(near.count(), expected.len(), "{part}");
        let found = state(&optimizer, &format!("large.{part}_absmax"));
        let found = Vec::<f32>::try_from(found).unwrap();
        assert_eq!(found.len(), COUNT.div_ceil(BLOCK));
        for (found, expected) in found.iter().zip(list(&golden, largest)) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-3, "{part}");
        }
    }
}

#[test]
fn small_tensors_keep_f32_moments_and_are_those_of_adamw() {
    let (small, plain) = (parameters(4095), parameters(4095));
    let mut optimizer = AdamW8bit::new(&small, AdamWConfig::default()).unwrap();
    let mut adamw = AdamW::new(&plain, AdamWConfig::default()).unwrap();
    for step in 0..3 {
        set_gradient(&small, step);
        set_gradient(&plain, step);
        optimizer.step(1e-2).unwrap();
        adamw.step(1e-2).unwrap();
        optimizer.zero_grad().unwrap();
        adamw.zero_grad().unwrap();
    }
    assert_eq!(small[0].1, plain[0].1);
    for ((name, found), (_, expected)) in optimizer.state().iter().zip(adamw.state()) {
        assert_eq!((found.kind(), found), (Kind::Float, &expected), "{name}");
    }
    assert_eq!(
        state(&AdamW8bit::new(&parameters(4096), AdamWConfig::default()).unwrap(), "large.exp_avg")
            .kind(),
        Kind::Uint8
    );
}

/// Near to AdamW itself: rounding costs little of the way.
#[test]
fn eight_bits_follow_adamw() {
    let (eight, plain) = (parameters(COUNT), parameters(COUNT));
    let mut optimizer = AdamW8bit::new(&eight, AdamWConfig::default()).unwrap();
    let mut adamw = AdamW::new(&plain, AdamWConfig::default()).unwrap();
    for step in 0..20 {
        for (optimizer, parameters) in
            [(&mut optimizer as &mut dyn Optimizer, &eight), (&mut adamw, &plain)]
        {
            set_gradient(parameters, step);
            optimizer.step(1e-3).unwrap();
            optimizer.zero_grad().unwrap();
        }
    }
    let start = Tensor::from_slice(&numbers(COUNT, 1.0));
    let way = (&plain[0].1 - &start).norm().double_value(&[]);
    let apart = (&eight[0].1 - &plain[0].1).norm().double_value(&[]);
    assert!(apart > 0.0 && apart < 0.1 * way, "{apart} of {way}");
}

#[test]
fn a_state_is_read_back_bit_for_bit_and_reset() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.safetensors");
    let shapes: [&[i64]; 3] = [&[70, 80], &[3], &[8, 8, 9, 9]];
    let make = || -> Vec<(String, Tensor)> {
        let one = |(index, shape): (usize, &&[i64])| {
            let count = shape.iter().product::<i64>() as usize;
            let numbers = Tensor::from_slice(&numbers(count, index as f64)).view(*shape);
            (index.to_string(), numbers.set_requires_grad(true))
        };
        shapes.iter().enumerate().map(one).collect()
    };
    let take = |optimizer: &mut dyn Optimizer, parameters: &[(String, Tensor)], step| {
        set_gradient(parameters, step);
        optimizer.step(1e-2).unwrap();
        optimizer.zero_grad().unwrap();
    };
    let parameters = make();
    let mut optimizer = AdamW8bit::new(&parameters, AdamWConfig::default()).unwrap();
    let before: Vec<Tensor> = optimizer.state().iter().map(|(_, one)| one.copy()).collect();
    (0..3).for_each(|step| take(&mut optimizer, &parameters, step));
    write_safetensors(&file, &optimizer.state()).unwrap();
    let copies = make();
    for ((_, to), (_, from)) in copies.iter().zip(&parameters) {
        to.data().copy_(&from.detach());
    }
    let mut resumed = AdamW8bit::new(&copies, AdamWConfig::default()).unwrap();
    resumed.load_state(&Weights::open(&file).unwrap()).unwrap();
    for ((name, found), (_, expected)) in resumed.state().iter().zip(optimizer.state()) {
        assert_eq!(*found, expected, "{name}");
    }
    take(&mut optimizer, &parameters, 3);
    take(&mut resumed, &copies, 3);
    for ((name, found), (_, expected)) in copies.iter().zip(&parameters) {
        assert_eq!(found, expected, "{name}");
    }
    // The state of AdamW in f32 is another one.
    let mut adamw = AdamW::new(&copies, AdamWConfig::default()).unwrap();
    assert!(adamw.load_state(&Weights::open(&file).unwrap()).is_err());
    resumed.reset().unwrap();
    for ((name, found), expected) in resumed.state().iter().zip(before) {
        assert_eq!(*found, expected, "{name}");
    }
}
