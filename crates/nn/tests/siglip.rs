//! A small random SigLIP model, compared with transformers: features of both towers, the score, the
//! aesthetic head. `scripts/goldens/siglip.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use nn::aesthetic::{AestheticHead, HeadNames};
use nn::clip::ClipParts;
use nn::device::Precision;
use nn::siglip::{SiglipConfig, SiglipLogits, SiglipModel};
use nn::weights::Weights;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Expected {
    tokens: Vec<Vec<i64>>,
    lengths: Vec<i64>,
    image_features: Vec<Vec<f64>>,
    text_features: Vec<Vec<f64>>,
    masked_text_features: Vec<Vec<f64>>,
    scores: Vec<Vec<f64>>,
    aesthetic_scores: Vec<f64>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/siglip")
}

fn expected() -> Expected {
    serde_json::from_slice(&fs_err::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn weights() -> Weights {
    Weights::open(folder().join("model.safetensors")).unwrap()
}

fn load(parts: ClipParts, precision: Precision) -> SiglipModel {
    let config = SiglipConfig::read(&folder().join("config.json")).unwrap();
    SiglipModel::load(&config, &weights(), parts, Device::Cpu, precision).unwrap()
}

/// Like `pixels` of the script.
fn pixels() -> Tensor {
    let values: Vec<f32> = (0..3 * 3 * 22 * 22_i64)
        .map(|place| {
            let bits = place * 2_654_435_761 % (1 << 32) / 256;
            (f64::from(i32::try_from(bits).unwrap()) / f64::from(1 << 22) - 2.0) as f32
        })
        .collect();
    Tensor::from_slice(&values).view([3, 3, 22, 22])
}

fn largest_difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    assert_eq!(found.kind(), Kind::Float);
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[])
}

fn unit(features: &Tensor) -> Tensor {
    features / features.norm_scalaropt_dim(2.0, -1, true)
}

#[test]
fn features_and_scores_equal_those_of_transformers() {
    let (expected, model) = (expected(), load(ClipParts::BOTH, Precision::F32));
    let (vision, text) = (model.vision.unwrap(), model.text.unwrap());
    let tokens = Tensor::from_slice2(&expected.tokens);
    let lengths = Tensor::from_slice(&expected.lengths);
    let image = vision.try_forward(&pixels()).unwrap();
    let caption = text.try_forward(&tokens, None).unwrap();
    let masked = text.try_forward(&tokens, Some(&lengths)).unwrap();
    let cosines = unit(&image).matmul(&unit(&caption).transpose(0, 1));
    let scores = SiglipLogits::load(&weights()).unwrap().scores(&cosines).unwrap();
    let head = Weights::open(folder().join("head.pth")).unwrap();
    let head = AestheticHead::load_named(&head, HeadNames::V2_5, Device::Cpu).unwrap();
    let aesthetic = head.forward(&unit(&image));
    for (name, found, wanted) in [
        ("image", image, Tensor::from_slice2(&expected.image_features)),
        ("text", caption, Tensor::from_slice2(&expected.text_features)),
        ("masked text", masked, Tensor::from_slice2(&expected.masked_text_features)),
        ("scores", scores, Tensor::from_slice2(&expected.scores)),
        ("aesthetic", aesthetic, Tensor::from_slice(&expected.aesthetic_scores)),
    ] {
        let difference = largest_difference(&found, &wanted);
        println!("{name}: {difference:.1e}");
        assert!(difference < 1e-5, "{name} differ by {difference}");
    }
}

/// bf16 keeps the direction of the features, not the digits; a wrong fused activation would show.
#[test]
fn bf16_points_the_same_way() {
    let (expected, model) = (expected(), load(ClipParts::BOTH, Precision::Bf16));
    let tokens = Tensor::from_slice2(&expected.tokens);
    for (found, wanted) in [
        (model.vision.unwrap().try_forward(&pixels()).unwrap(), expected.image_features),
        (model.text.unwrap().try_forward(&tokens, None).unwrap(), expected.text_features),
    ] {
        assert_eq!(found.kind(), Kind::Float);
        let found = found.to_kind(Kind::Double);
        let wanted = Tensor::from_slice2(&wanted);
        let cosine = Tensor::cosine_similarity(&found, &wanted, 1, 1e-12).min().double_value(&[]);
        println!("cosine {cosine:.6}");
        assert!(cosine > 0.998, "cosine {cosine}");
    }
}

#[test]
fn one_tower_alone_computes_the_same() {
    let both = load(ClipParts::BOTH, Precision::F32);
    let (vision, text) =
        (load(ClipParts::VISION, Precision::F32), load(ClipParts::TEXT, Precision::F32));
    assert!(vision.text.is_none() && text.vision.is_none());
    let tokens = Tensor::from_slice2(&expected().tokens);
    let image = |model: SiglipModel| model.vision.unwrap().try_forward(&pixels()).unwrap();
    let caption = |model: SiglipModel| model.text.unwrap().try_forward(&tokens, None).unwrap();
    assert!(image(vision).equal(&both.vision.as_ref().unwrap().try_forward(&pixels()).unwrap()));
    assert!(caption(text).equal(&both.text.unwrap().try_forward(&tokens, None).unwrap()));
}

#[test]
fn impossible_inputs_are_errors() {
    let model = load(ClipParts::BOTH, Precision::F32);
    let (vision, text) = (model.vision.unwrap(), model.text.unwrap());
    let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
    let error = vision.try_forward(&zeros(&[1, 3, 21, 22], Kind::Float)).unwrap_err().to_string();
    assert!(error.contains("[B, 3, 22, 22]"), "{error}");
    assert_eq!(vision.try_forward(&zeros(&[0, 3, 22, 22], Kind::Float)).unwrap().size(), [0, 10]);
    assert_eq!(text.try_forward(&zeros(&[0, 64], Kind::Int64), None).unwrap().size(), [0, 10]);
    let failed = |tokens: &Tensor, lengths: Option<&Tensor>| {
        text.try_forward(tokens, lengths).unwrap_err().to_string()
    };
    let tokens = zeros(&[2, 64], Kind::Int64);
    assert!(failed(&zeros(&[1, 65], Kind::Int64), None).contains("at most 64"));
    assert!(failed(&(&tokens + 700), None).contains("0 to 699"));
    assert!(
        failed(&tokens, Some(&Tensor::from_slice(&[0_i64, 64]))).contains("lengths from 1 to 64")
    );
    assert!(failed(&tokens, Some(&Tensor::from_slice(&[3_i64]))).contains("lengths [2]"));
}

#[test]
fn another_network_is_refused_by_name() {
    let read = |change: &dyn Fn(&mut Value)| {
        let file = fs_err::read(folder().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&file).unwrap();
        change(&mut config);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        fs_err::write(&file, config.to_string()).unwrap();
        SiglipConfig::read(&file).map_err(|error| error.to_string())
    };
    let plain = read(&|_| {}).unwrap();
    assert_eq!((plain.vision.grid(), plain.projection, plain.text.context_length), (3, 10, 64));
    for (pointer, value) in [
        ("/model_type", json!("siglip2")),
        ("/vision_config/vision_use_head", json!(false)),
        ("/vision_config/hidden_act", json!("silu")),
        ("/vision_config/num_attention_heads", json!(4)),
        ("/text_config/projection_size", json!(0)),
    ] {
        let error = read(&|config| *config.pointer_mut(pointer).unwrap() = value.clone());
        let error = error.unwrap_err();
        assert!(error.contains("config.json"), "{error}");
    }
    // The sizes of the file are others.
    let config = read(&|config| config["text_config"]["num_hidden_layers"] = 3.into()).unwrap();
    let error =
        SiglipModel::load(&config, &weights(), ClipParts::BOTH, Device::Cpu, Precision::F32);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("text_model.encoder.layers.2"), "{error}");
    // LAION's head has other names.
    let laion = folder().parent().unwrap().join("aesthetic/head.pth");
    let laion = Weights::open(laion).unwrap();
    assert!(AestheticHead::load_named(&laion, HeadNames::V2_5, Device::Cpu).is_err());
}

/// google/siglip-so400m-patch14-384, as its `config.json` describes it.
#[test]
fn the_published_configuration_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let config = json!({
        "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
        "text_config": {"hidden_size": 1152, "intermediate_size": 4304,
            "model_type": "siglip_text_model", "num_attention_heads": 16, "num_hidden_layers": 27},
        "torch_dtype": "float32", "transformers_version": "4.37.0.dev0",
        "vision_config": {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
            "model_type": "siglip_vision_model", "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14}
    });
    fs_err::write(&file, config.to_string()).unwrap();
    let config = SiglipConfig::read(&file).unwrap();
    assert_eq!((config.vision.grid(), config.projection), (27, 1152));
    assert_eq!((config.text.context_length, config.text.vocabulary_size), (64, 32_000));
}
