//! The aesthetic head against PyTorch, from a file that was saved on a GPU.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use nn::aesthetic::AestheticHead;
use nn::weights::Weights;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Expected {
    features: Vec<Vec<f64>>,
    scores: Vec<f64>,
}

#[test]
fn scores_equal_those_of_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/aesthetic");
    let head =
        AestheticHead::load(&Weights::open(folder.join("head.pth")).unwrap(), Device::Cpu).unwrap();
    assert_eq!(head.input_width(), 12);
    let text = fs_err::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let features = Tensor::from_slice2(&expected.features).to_kind(Kind::Float);
    let scores = head.forward(&features).to_kind(Kind::Double);
    let difference = (scores - Tensor::from_slice(&expected.scores)).abs().max().double_value(&[]);
    assert!(difference < 1e-6, "{difference}");

    let wrong = Tensor::zeros([2, 13], (Kind::Float, Device::Cpu));
    assert!(head.try_forward(&wrong).unwrap_err().to_string().contains("[B, 12]"));
}

#[test]
fn another_checkpoint_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transformers");
    let error = AestheticHead::load(&Weights::open(folder).unwrap(), Device::Cpu).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("10 missing"), "{text}");
    assert!(text.contains("missing: layers.0.weight"), "{text}");
}
