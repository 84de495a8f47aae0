//! The aesthetic head, compared with PyTorch, from a file that was saved on a GPU.

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

/// The published head: `AESTHETIC_HEAD=sac+logos+ava1-l14-linearMSE.pth cargo test -- --ignored`.
#[test]
#[ignore = "needs the published file, named by AESTHETIC_HEAD"]
fn the_published_head_gives_its_known_scores() {
    let file = std::env::var("AESTHETIC_HEAD").unwrap();
    let head = AestheticHead::load(&Weights::open(file).unwrap(), Device::Cpu).unwrap();
    let zeros = || Tensor::zeros([768], (Kind::Float, Device::Cpu));
    let unit = |place: i64| {
        let unit = zeros();
        drop(unit.get(place).fill_(1.0));
        unit
    };
    let ramp = Tensor::arange(768, (Kind::Float, Device::Cpu)) - 383.5;
    let ramp = &ramp / ramp.norm();
    let flat = zeros() + 1.0 / 768f64.sqrt();
    let features = Tensor::stack(&[zeros(), flat, unit(0), unit(767), ramp], 0);
    let scores = Vec::<f32>::try_from(head.forward(&features)).unwrap();
    println!("{scores:?}");
    for (score, known) in
        scores.iter().zip([5.236_645_7, 4.883_284_6, 4.545_052_5, 5.451_654_4, 4.215_948_6])
    {
        assert!((score - known).abs() < 2e-6, "{score} is not {known}");
    }
}
