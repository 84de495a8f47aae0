//! Features of small random models in every published layout, compared with the libraries that
//! published them. `scripts/goldens/clip_towers.py` makes the fixtures.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use nn::clip::{ClipConfig, ClipLayout, ClipModel, ClipParts, ClipSource};
use nn::device::Precision;
use nn::weights::Weights;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Expected {
    tokens: Vec<Vec<i64>>,
    end_index: Vec<i64>,
    image_features: Vec<Vec<f64>>,
    text_features: Vec<Vec<f64>>,
}

struct Case {
    folder: &'static str,
    layout: ClipLayout,
    file: &'static str,
}

const CASES: [Case; 5] = [
    Case { folder: "transformers", layout: ClipLayout::Transformers, file: "model.safetensors" },
    Case {
        folder: "transformers_sharded",
        layout: ClipLayout::Transformers,
        file: "model.safetensors.index.json",
    },
    Case {
        folder: "transformers_bin",
        layout: ClipLayout::Transformers,
        file: "pytorch_model.bin",
    },
    Case { folder: "open_clip_pt", layout: ClipLayout::OpenClip, file: "model.pt" },
    Case {
        folder: "open_clip_bin",
        layout: ClipLayout::OpenClip,
        file: "open_clip_pytorch_model.bin",
    },
];

impl Case {
    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(self.folder)
    }

    fn config(&self) -> ClipConfig {
        ClipConfig::read(&self.path().join(self.layout.config_file()), self.layout).unwrap()
    }

    fn load(&self, parts: ClipParts, precision: Precision) -> ClipModel {
        let weights = Weights::open(self.path().join(self.file)).unwrap();
        ClipModel::load(
            ClipSource { config: &self.config(), layout: self.layout, weights: &weights },
            parts,
            Device::Cpu,
            precision,
        )
        .unwrap()
    }

    fn expected(&self) -> Expected {
        let text = fs_err::read_to_string(self.path().join("expected.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// Like `pixels` of the script.
fn pixels(side: i64) -> Tensor {
    let values: Vec<f32> = (0..3 * 3 * side * side)
        .map(|place| {
            let bits = place * 2_654_435_761 % (1 << 32) / 256;
            (f64::from(i32::try_from(bits).unwrap()) / f64::from(1 << 22) - 2.0) as f32
        })
        .collect();
    Tensor::from_slice(&values).view([3, 3, side, side])
}

fn matrix(rows: &[Vec<f64>]) -> Tensor {
    Tensor::from_slice2(rows)
}

fn largest_difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    assert_eq!(found.kind(), Kind::Float);
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[])
}

fn text_features(case: &Case, model: &ClipModel) -> Tensor {
    let expected = case.expected();
    let tokens = Tensor::from_slice2(&expected.tokens);
    model.text.as_ref().unwrap().forward(&tokens, &Tensor::from_slice(&expected.end_index))
}

#[test]
fn features_equal_those_of_the_libraries() {
    for case in &CASES {
        let model = case.load(ClipParts::BOTH, Precision::F32);
        let expected = case.expected();
        let vision = model.vision.as_ref().unwrap();
        let image = vision.forward(&pixels(vision.image_size()));
        let image = largest_difference(&image, &matrix(&expected.image_features));
        let text =
            largest_difference(&text_features(case, &model), &matrix(&expected.text_features));
        println!("{}: image {image:.1e}, text {text:.1e}", case.folder);
        assert!(image < 1e-5, "{}: image features differ by {image}", case.folder);
        assert!(text < 1e-5, "{}: text features differ by {text}", case.folder);
    }
}

/// bf16 has eight bits: it keeps the direction of the features, not the digits. The cases include
/// both activations, so a wrong fused one would show.
#[test]
fn bf16_points_the_same_way() {
    for case in &CASES {
        let model = case.load(ClipParts::BOTH, Precision::Bf16);
        let expected = case.expected();
        let vision = model.vision.as_ref().unwrap();
        for (found, wanted) in [
            (vision.forward(&pixels(vision.image_size())), matrix(&expected.image_features)),
            (text_features(case, &model), matrix(&expected.text_features)),
        ] {
            assert_eq!(found.kind(), Kind::Float);
            let cosine =
                Tensor::cosine_similarity(&found.to_kind(Kind::Double), &wanted, 1, 1e-12).min();
            let cosine = cosine.double_value(&[]);
            println!("{}: cosine {cosine:.6}", case.folder);
            assert!(cosine > 0.998, "{}: cosine {cosine}", case.folder);
        }
    }
}

#[test]
fn a_batch_does_not_change_its_members() {
    // Directions, because scores depend on them only.
    let direction = |features: Tensor| &features / features.norm_scalaropt_dim(2.0, 1, true);
    for case in &CASES {
        let model = case.load(ClipParts::BOTH, Precision::F32);
        let expected = case.expected();
        let (vision, text) = (model.vision.as_ref().unwrap(), model.text.as_ref().unwrap());
        let pixels = pixels(vision.image_size());
        let tokens = Tensor::from_slice2(&expected.tokens);
        let ends = Tensor::from_slice(&expected.end_index);
        let image = |first, count| direction(vision.forward(&pixels.narrow(0, first, count)));
        let text = |first, count| {
            direction(text.forward(&tokens.narrow(0, first, count), &ends.narrow(0, first, count)))
        };
        let (images, texts) = (image(0, 3), text(0, 4));
        for index in 0..3 {
            for (alone, together) in [(image(index, 1), &images), (text(index, 1), &texts)] {
                let difference = (alone - together.narrow(0, index, 1)).abs().max();
                let difference = difference.double_value(&[]);
                assert!(difference < 1e-6, "{}: {index} differs by {difference}", case.folder);
            }
        }
    }
}

/// Tokens after the end token must not matter, nor whether there are any.
#[test]
fn padding_is_of_no_effect() {
    let case = &CASES[0];
    let model = case.load(ClipParts::TEXT, Precision::F32);
    let text = model.text.as_ref().unwrap();
    let ends = Tensor::from_slice(&[3i64]);
    let features = |row: &[i64]| text.forward(&Tensor::from_slice(row).unsqueeze(0), &ends);
    let short = features(&[29, 5, 6, 30]);
    for row in [[29, 5, 6, 30, 0, 0, 0], [29, 5, 6, 30, 30, 30, 30], [29, 5, 6, 30, 7, 1, 12]] {
        let difference = (features(&row) - &short).abs().max().double_value(&[]);
        assert!(difference < 1e-7, "{row:?} differs by {difference}");
    }
}

#[test]
fn one_tower_may_be_loaded_alone() {
    for case in &CASES {
        let vision = case.load(ClipParts::VISION, Precision::F32);
        assert!(vision.text.is_none());
        let text = case.load(ClipParts::TEXT, Precision::F32);
        assert!(text.vision.is_none());
        let expected = matrix(&case.expected().text_features);
        assert!(largest_difference(&text_features(case, &text), &expected) < 1e-5);
    }
}

#[test]
fn impossible_inputs_are_errors() {
    let model = CASES[0].load(ClipParts::BOTH, Precision::F32);
    let (vision, text) = (model.vision.as_ref().unwrap(), model.text.as_ref().unwrap());
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    for shape in [&[1, 3, 21, 22][..], &[3, 22, 22], &[1, 4, 22, 22], &[1, 22, 22, 3]] {
        let error = vision.try_forward(&zeros(shape)).unwrap_err().to_string();
        assert!(error.contains("[B, 3, 22, 22]"), "{error}");
    }
    assert_eq!(vision.forward(&zeros(&[0, 3, 22, 22])).size(), [0, 12]);

    let tokens = |values: &[i64]| Tensor::from_slice(values).unsqueeze(0);
    let end = |place: i64| Tensor::from_slice(&[place]);
    for (tokens, end, reason) in [
        (tokens(&[1, 2, 31]), end(0), "tokens from 0 to 30"),
        (tokens(&[1, -2, 3]), end(0), "tokens from 0 to 30"),
        (tokens(&[1, 2, 3]), end(3), "ends from 0 to 2"),
        (tokens(&[1, 2, 3]), end(-1), "ends from 0 to 2"),
        (tokens(&[1; 10]), end(3), "L ≤ 9"),
        (tokens(&[]), end(0), "at least one token"),
        (Tensor::from_slice(&[1i64, 2]), end(0), "[B, L]"),
    ] {
        let error = text.try_forward(&tokens, &end).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_every_difference() {
    let case = &CASES[0];
    let weights = Weights::open(case.path()).unwrap();
    let mut config = case.config();
    // One block too many, one wrong dimension, and text names that the file cannot have.
    config.vision.layers = 2;
    config.text.layers = 4;
    config.embed_dim = 13;
    let (parts, device) = (ClipParts::BOTH, Device::Cpu);
    let error = ClipModel::load(
        ClipSource { config: &config, layout: case.layout, weights: &weights },
        parts,
        device,
        Precision::F32,
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("16 missing, 2 misshapen, 16 unexpected"), "{text}");
    for part in [
        "missing: text_model.encoder.layers.3.layer_norm1.weight",
        "missing: … and 6 more",
        "misshapen: visual_projection.weight: expected [13, 15], found [12, 15]",
        "misshapen: text_projection.weight: expected [13, 10], found [12, 10]",
        "unexpected: vision_model.encoder.layers.2.layer_norm1.bias",
        "unexpected: … and 6 more",
        "model.safetensors",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    // The other layout shares no name: all of it is missing and all of it unexpected.
    let error = ClipModel::load(
        ClipSource { config: &case.config(), layout: ClipLayout::OpenClip, weights: &weights },
        parts,
        device,
        Precision::F32,
    );
    assert!(error.unwrap_err().to_string().contains("missing: visual.conv1.weight"));
    // Half precision on a CPU would look like a hang.
    let error = ClipModel::load(
        ClipSource { config: &case.config(), layout: case.layout, weights: &weights },
        parts,
        device,
        Precision::F16,
    );
    assert!(error.unwrap_err().to_string().contains("bf16"));
}
