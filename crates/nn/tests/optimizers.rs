//! The optimizers against PyTorch 2.11.0 and transformers 5.23.0 (`scripts/goldens/optimizers.py`).

#![expect(clippy::unwrap_used, reason = "a test stops where something fails")]

use std::path::Path;

use nn::optimizer::{Adafactor, AdafactorConfig, AdamW, AdamWConfig, Optimizer, clip_grad_norm};
use nn::weights::{Weights, write_safetensors};
use tch::{Device, Kind, Tensor};

const NAMES: [&str; 5] = ["conv", "linear", "point", "bias", "scalar"];
const MAX_NORM: f64 = 1.0;

struct Golden(Weights);

impl Golden {
    fn read() -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/optimizers"));
        Self(Weights::open(folder.join("golden.safetensors")).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.tensor(name).unwrap()
    }

    fn rates(&self) -> Vec<f64> {
        Vec::try_from(self.get("rates")).unwrap()
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        let leaf = |name: &str| self.get(&format!("start.{name}")).copy().set_requires_grad(true);
        NAMES.iter().map(|name| ((*name).to_owned(), leaf(name))).collect()
    }

    /// Gives the parameters the gradients of a step by a backward pass.
    fn set_gradients(&self, parameters: &[(String, Tensor)], step: usize) {
        let mut loss = Tensor::zeros([] as [i64; 0], (Kind::Float, Device::Cpu));
        for (name, parameter) in parameters {
            let name = format!("gradient.{step}.{name}");
            if self.0.contains(&name) {
                loss += (parameter * self.get(&name)).sum(Kind::Float);
            }
        }
        loss.backward();
    }
}

type Make = fn(&[(String, Tensor)]) -> Box<dyn Optimizer>;

const MAKERS: [(&str, Make); 2] = [
    ("adamw", |parameters| Box::new(AdamW::new(parameters, AdamWConfig::default()).unwrap())),
    ("adafactor", |parameters| {
        Box::new(Adafactor::new(parameters, AdafactorConfig::default()).unwrap())
    }),
];

/// The largest difference, relative to the largest value.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(1e-30);
    (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[])
        / scale
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.detach().contiguous().view([-1]);
    Vec::<f32>::try_from(flat).unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn weights_and_state_are_those_of_python() {
    let golden = Golden::read();
    for (kind, make) in MAKERS {
        let parameters = golden.parameters();
        let mut optimizer = make(&parameters);
        let mut clipped = 0;
        for (step, rate) in golden.rates().into_iter().enumerate() {
            golden.set_gradients(&parameters, step);
            let norm = clip_grad_norm(&parameters, Some(MAX_NORM)).unwrap();
            let expected = golden.get(&format!("norm.{step}"));
            assert!(difference(&norm, &expected) < 1e-6, "{step}");
            clipped += usize::from(norm.double_value(&[]) > MAX_NORM);
            optimizer.step(rate).unwrap();
            optimizer.zero_grad().unwrap();
            for (name, parameter) in &parameters {
                let expected = golden.get(&format!("{kind}.{step}.{name}"));
                let apart = difference(parameter, &expected);
                assert!(apart < 1e-6, "{kind}, step {step}, {name}: {apart:e}");
            }
        }
        assert!(clipped > 0 && clipped < golden.rates().len());
        let state = optimizer.state();
        let prefix = format!("{kind}.state.");
        assert_eq!(state.len(), golden.0.names().filter(|name| name.starts_with(&prefix)).count());
        for (name, found) in state {
            assert_eq!(found.kind(), Kind::Float);
            let apart = difference(&found, &golden.get(&format!("{prefix}{name}")));
            assert!(apart < 1e-6, "{kind}, {name}: {apart:e}");
        }
    }
}

#[test]
fn a_parameter_without_gradient_stays_with_its_state() {
    let golden = Golden::read();
    for (kind, make) in MAKERS {
        let parameters = golden.parameters();
        let mut optimizer = make(&parameters);
        // Without a gradient there is nothing to do.
        optimizer.step(1.0).unwrap();
        assert_eq!(clip_grad_norm(&parameters, Some(1.0)).unwrap().double_value(&[]), 0.0);
        golden.set_gradients(&parameters, 1);
        optimizer.step(1e-3).unwrap();
        for (name, parameter) in &parameters {
            let start = golden.get(&format!("start.{name}"));
            assert_eq!(bits(parameter) == bits(&start), name == "bias", "{kind}, {name}");
        }
        let steps = optimizer.state().into_iter().filter(|(name, _)| name.ends_with(".step"));
        for (name, step) in steps {
            let expected = if name == "bias.step" { 0.0 } else { 1.0 };
            assert_eq!(step.double_value(&[]), expected, "{kind}, {name}");
        }
    }
}

#[test]
fn zero_grad_takes_the_gradients_off() {
    let golden = Golden::read();
    for (_, make) in MAKERS {
        let parameters = golden.parameters();
        let mut optimizer = make(&parameters);
        golden.set_gradients(&parameters, 0);
        assert!(parameters.iter().all(|(_, parameter)| parameter.grad().defined()));
        optimizer.zero_grad().unwrap();
        assert!(parameters.iter().all(|(_, parameter)| !parameter.grad().defined()));
        // The next pass starts without gradients.
        golden.set_gradients(&parameters, 0);
        assert_eq!(parameters[1].1.grad(), golden.get("gradient.0.linear"));
    }
}

#[test]
fn the_norm_is_known_without_clipping() {
    let golden = Golden::read();
    let parameters = golden.parameters();
    golden.set_gradients(&parameters, 4);
    let norm = clip_grad_norm(&parameters, None).unwrap();
    assert!(norm.double_value(&[]) > MAX_NORM);
    assert_eq!(parameters[1].1.grad(), golden.get("gradient.4.linear"));
    let again = clip_grad_norm(&parameters, Some(MAX_NORM)).unwrap();
    assert_eq!(norm, again);
    assert_ne!(parameters[1].1.grad(), golden.get("gradient.4.linear"));
    let after = clip_grad_norm(&parameters, None).unwrap().double_value(&[]);
    assert!((after - MAX_NORM).abs() < 1e-5, "{after}");
}

/// Through a file, bit for bit; and with a cold optimizer, which must differ.
#[test]
fn a_loaded_state_resumes_as_if_never_stopped() {
    let golden = Golden::read();
    let folder = tempfile::tempdir().unwrap();
    for (kind, make) in MAKERS {
        let rates = golden.rates();
        let run = |optimizer: &mut dyn Optimizer, parameters: &[(String, Tensor)], steps| {
            for step in steps {
                golden.set_gradients(parameters, step);
                optimizer.step(rates[step]).unwrap();
                optimizer.zero_grad().unwrap();
            }
        };
        let straight = golden.parameters();
        run(make(&straight).as_mut(), &straight, 0..rates.len());

        let before = golden.parameters();
        let mut optimizer = make(&before);
        run(optimizer.as_mut(), &before, 0..2);
        let file = folder.path().join(format!("{kind}.safetensors"));
        write_safetensors(&file, &optimizer.state()).unwrap();
        let copies = || -> Vec<(String, Tensor)> {
            let copy = |value: &Tensor| value.detach().copy().set_requires_grad(true);
            before.iter().map(|(name, value)| (name.clone(), copy(value))).collect()
        };
        let (resumed, cold) = (copies(), copies());
        let mut optimizer = make(&resumed);
        optimizer.load_state(&Weights::open(&file).unwrap()).unwrap();
        run(optimizer.as_mut(), &resumed, 2..rates.len());
        run(make(&cold).as_mut(), &cold, 2..rates.len());
        for (((name, straight), (_, resumed)), (_, cold)) in
            straight.iter().zip(&resumed).zip(&cold)
        {
            assert_eq!(bits(straight), bits(resumed), "{kind}, {name}");
            // A single number moves by the learning rate, whatever Adafactor's state holds.
            if name != "scalar" {
                assert_ne!(bits(straight), bits(cold), "{kind}, {name}");
            }
        }
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let golden = Golden::read();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("optimizer.safetensors");
    for (kind, make) in MAKERS {
        let parameters = golden.parameters();
        let mut optimizer = make(&parameters);
        golden.set_gradients(&parameters, 0);
        optimizer.step(1e-3).unwrap();
        let copies = |optimizer: &dyn Optimizer| -> Vec<(String, Tensor)> {
            optimizer.state().into_iter().map(|(name, value)| (name, value.copy())).collect()
        };
        let good = copies(optimizer.as_ref());
        let refused = |optimizer: &mut dyn Optimizer, state: &[(String, Tensor)]| {
            write_safetensors(&file, state).unwrap();
            let error = optimizer.load_state(&Weights::open(&file).unwrap()).unwrap_err();
            for ((name, value), (_, expected)) in optimizer.state().iter().zip(&good) {
                assert_eq!(bits(value), bits(expected), "{name}");
            }
            error.to_string()
        };
        let mut state = copies(optimizer.as_ref());
        state[0].0 = "other".to_owned();
        state[2].1 = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        let error = refused(optimizer.as_mut(), &state);
        for part in ["1 missing", "1 misshapen", "1 unexpected", "optimizer.safetensors"] {
            assert!(error.contains(part), "{kind}: {error}");
        }
        let mut state = copies(optimizer.as_ref());
        let _ = state[1].1.fill_(f64::NAN);
        let error = refused(optimizer.as_mut(), &state);
        assert!(error.contains("NaN") && error.contains(&state[1].0), "{kind}: {error}");
    }
    let parameters = golden.parameters();
    let mut optimizer = Adafactor::new(&parameters, AdafactorConfig::default()).unwrap();
    let mut state = optimizer.state();
    let step = state.iter_mut().find(|(name, _)| name.ends_with(".step")).unwrap();
    step.1 = Tensor::from(0.5_f32);
    write_safetensors(&file, &state).unwrap();
    let error = optimizer.load_state(&Weights::open(&file).unwrap()).unwrap_err().to_string();
    assert!(error.contains("0.5") && error.contains("count of steps"), "{error}");
}

#[test]
fn half_precision_parameters_are_refused() {
    let parameters = [(
        "weight".to_owned(),
        Tensor::zeros([2], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true),
    )];
    let error = AdamW::new(&parameters, AdamWConfig::default()).unwrap_err().to_string();
    assert!(error.contains("weight") && error.contains("f32"), "{error}");
    assert!(Adafactor::new(&parameters, AdafactorConfig::default()).is_err());
}
