//! ImageReward, compared with timm and transformers, and what it rejects.
//! `scripts/goldens/image_reward.py` makes the fixture.
#![expect(clippy::unwrap_used, reason = "tests")]
#![allow(non_snake_case, reason = "names of tensors carry their shape")]

use std::path::{Path, PathBuf};

use nn::ModelError;
use nn::device::Precision;
use nn::image_reward::{ImageReward, ImageRewardConfig};
use nn::weights::{Weights, write_safetensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

const SIDE: i64 = 32;

#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<i64>>,
    images: Vec<(u32, u32, u32)>,
    image_tokens: Vec<f64>,
    scores: Vec<Vec<f64>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image_reward")
}

fn expected() -> Expected {
    serde_json::from_slice(&fs_err::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn weights() -> Weights {
    Weights::open(folder().join("ImageReward.pt")).unwrap()
}

fn load(weights: &Weights, precision: Precision) -> Result<ImageReward, ModelError> {
    let config = ImageRewardConfig::read(&folder().join("med_config.json"), weights)?;
    ImageReward::load(&config, weights, Device::Cpu, precision)
}

/// The tensors of the fixture without the wrapper's prefix, as f32.
fn tensors() -> Vec<(String, Tensor)> {
    let weights = weights();
    let plain = |name: &str| name.strip_prefix("module.").unwrap().to_owned();
    let floats = |tensor: Tensor| match tensor.kind() {
        Kind::Half => tensor.to_kind(Kind::Float),
        _ => tensor,
    };
    weights.names().map(|name| (plain(name), floats(weights.tensor(name).unwrap()))).collect()
}

/// The checkpoint of these tensors as safetensors.
fn saved(tensors: &[(String, Tensor)]) -> (tempfile::TempDir, Weights) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write_safetensors(&file, tensors).unwrap();
    let weights = Weights::open(&file).unwrap();
    (folder, weights)
}

/// The first image, whose side is the network's: preprocessing only normalises it.
fn first_image(expected: &Expected) -> Tensor {
    let (width, height, seed) = expected.images[0];
    assert_eq!((i64::from(width), i64::from(height)), (SIDE, SIDE));
    let first = u64::from(seed) * 1_000_003;
    let level = |place: u64| ((first + place) * 2_654_435_761 % (1 << 32)) >> 24;
    let levels: Vec<f32> = (0..3 * 32 * 32).map(|place| level(place) as f32 / 255.0).collect();
    let pixels = Tensor::from_slice(&levels).view([SIDE, SIDE, 3]).permute([2, 0, 1]);
    let statistic = |values: [f32; 3]| Tensor::from_slice(&values).view([3, 1, 1]);
    let mean = statistic([0.481_454_66, 0.457_827_5, 0.408_210_73]);
    let std = statistic([0.268_629_54, 0.261_302_6, 0.275_777_1]);
    ((pixels - mean) / std).unsqueeze(0)
}

/// The scores of the first image with captions, together or one by one.
fn scores(network: &ImageReward, image: &Tensor, captions: &[Vec<i64>]) -> Vec<f32> {
    let tokens_1TV = network.vision.try_forward(image).unwrap();
    let tokens_BTV = tokens_1TV.expand([captions.len() as i64, -1, -1], false);
    let captions: Vec<&[i64]> = captions.iter().map(Vec::as_slice).collect();
    Vec::try_from(network.reader.try_forward(&tokens_BTV, &captions).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= bound, "{found} {expected}");
    }
}

#[test]
fn scores_equal_those_of_timm_and_transformers() {
    let expected = expected();
    let image = first_image(&expected);
    for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 5e-2)] {
        let network = load(&weights(), precision).unwrap();
        if precision == Precision::F32 {
            let tokens = network.vision.try_forward(&image).unwrap().flatten(0, -1);
            let some = Vec::<f32>::try_from(tokens).unwrap();
            let some: Vec<f32> = some.into_iter().step_by(53).collect();
            assert_close(&some, &expected.image_tokens, 1e-5);
        }
        assert_close(&scores(&network, &image, &expected.ids), &expected.scores[0], bound);
    }
}

#[test]
fn padding_changes_nothing() {
    let expected = expected();
    let (network, image) = (load(&weights(), Precision::F32).unwrap(), first_image(&expected));
    for (caption, score) in expected.ids.iter().zip(&expected.scores[0]) {
        let alone = scores(&network, &image, std::slice::from_ref(caption));
        assert_close(&alone, &[*score], 1e-5);
    }
}

/// Sizes come from the shapes; plain names and safetensors are the same network.
#[test]
fn the_wrapper_and_the_format_do_not_matter() {
    let expected = expected();
    let image = first_image(&expected);
    let tensors = tensors();
    let (_folder, plain) = saved(&tensors);
    let config = ImageRewardConfig::read(&folder().join("med_config.json"), &plain).unwrap();
    let vision = &config.vision;
    assert_eq!((vision.image_size, vision.patch_size, vision.width), (SIDE, 8, 64));
    assert_eq!((vision.layers, vision.heads, vision.mlp_width), (2, 1, 64));
    let network = load(&plain, Precision::F32).unwrap();
    let wrapped = load(&weights(), Precision::F32).unwrap();
    assert_eq!(scores(&network, &image, &expected.ids), scores(&wrapped, &image, &expected.ids));
}

/// The projections of BLIP's contrastive loss may be there or not; any other tensor is named.
#[test]
fn tensors_are_strict() {
    let is_unused = |name: &str| name.contains("_proj.") && !name.contains("blocks");
    let all = tensors();
    let unused = all.iter().filter(|(name, _)| is_unused(name)).count();
    assert_eq!(unused, 4);
    let error = |change: &dyn Fn(&mut Vec<(String, Tensor)>)| {
        let mut changed = tensors();
        change(&mut changed);
        let (_folder, weights) = saved(&changed);
        load(&weights, Precision::F32).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(error(&|all| all.retain(|(name, _)| !is_unused(name))), Ok(()));
    let query = "blip.text_encoder.encoder.layer.1.crossattention.self.query.weight";
    for (found, expected) in [
        (error(&|all| all.retain(|(name, _)| name != query)), query),
        (
            error(&|all| {
                all.push((
                    "blip.extra.weight".to_owned(),
                    Tensor::zeros([1], (Kind::Float, Device::Cpu)),
                ))
            }),
            "blip.extra.weight",
        ),
        (
            error(&|all| {
                let (_, tensor) = all.iter_mut().find(|(name, _)| name == query).unwrap();
                *tensor = tensor.narrow(0, 0, 23).contiguous();
            }),
            "[23, 24]",
        ),
        (
            error(&|all| {
                let (_, tensor) =
                    all.iter_mut().find(|(name, _)| name.ends_with("pos_embed")).unwrap();
                *tensor = Tensor::zeros([1, 0, 64], (Kind::Float, Device::Cpu));
            }),
            "a square of patches and one token, found [1, 0, 64]",
        ),
        (
            error(&|all| all.retain(|(name, _)| !name.ends_with("pos_embed"))),
            "found no blip.visual_encoder.pos_embed",
        ),
    ] {
        let found = found.unwrap_err();
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn impossible_inputs_are_errors() {
    let network = load(&weights(), Precision::F32).unwrap();
    let options = (Kind::Float, Device::Cpu);
    let error = network.vision.try_forward(&Tensor::zeros([1, 3, 31, 32], options)).unwrap_err();
    assert!(error.to_string().contains("[B, 3, 32, 32]"), "{error}");
    let tokens = Tensor::zeros([1, 17, 64], options);
    let score = |captions: &[&[i64]]| {
        network.reader.try_forward(&tokens, captions).map_err(|error| error.to_string())
    };
    for (captions, expected) in [
        (&[&[2i64, 3][..], &[2, 3]][..], "[2, T, 64]"),
        (&[&[]], "1 to 40 tokens, found 0"),
        (&[&[2, 1_000]], "found 1000"),
        (&[&[-1]], "found -1"),
    ] {
        let found = score(captions).unwrap_err();
        assert!(found.contains(expected), "{found}");
    }
}
