//! A model's own preprocessing, key by key, against transformers and open_clip
//! (scripts/goldens/preprocessing.py).
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use media::decode::{Image, Limits, Mode, decode};
use scorers::ImagePreprocessor;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Models, hf_entry, open_clip_entry, repository};

const HF: &str = "clip/preprocessor_config.json";
const OPEN_CLIP: &str = "hps/open_clip_config.json";

#[derive(Deserialize)]
struct Goldens {
    images: Vec<String>,
    hf: Vec<Case>,
    open_clip: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    tensors: Vec<Option<String>>,
}

fn goldens() -> Goldens {
    let file = repository("crates/scorers/tests/fixtures/preprocessing.json");
    serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap()
}

/// A fixture of crates/media, or an image of the formula of scripts/goldens/images.py.
fn image(name: &str) -> Image {
    let fixture = repository("crates/media/tests/fixtures/images").join(name);
    if fixture.is_file() {
        return decode(&fs_err::read(fixture).unwrap(), &Limits::default()).unwrap();
    }
    let (width, height) = name.split_once('x').unwrap();
    let (width, height): (u32, u32) = (width.parse().unwrap(), height.parse().unwrap());
    let value =
        |x: u32, y: u32, c: u32| ((x * 7 + y * 13 + c * 29 + ((x * y) % 31) * 5) / (1 + c)) as u8;
    let pixels = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(x, y, c))))
        .collect();
    Image::new(Mode::Rgb, width, height, pixels).unwrap()
}

fn hash(preprocessor: &ImagePreprocessor, image: &Image) -> Option<String> {
    let prepared = preprocessor.preprocess(image).ok()?;
    let bytes: Vec<u8> =
        prepared.blocks()[0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let digest = Sha256::digest(&bytes);
    Some(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Every difference is reported, not only the first.
fn differences(
    case: &Case,
    images: &[(String, Image)],
    preprocessor: &ImagePreprocessor,
) -> Vec<String> {
    let mut differences = Vec::new();
    for ((name, image), expected) in images.iter().zip(&case.tensors) {
        let found = hash(preprocessor, image);
        if found != *expected {
            differences.push(format!("{}: {name}: {found:?}, expected {expected:?}", case.name));
        }
    }
    differences
}

fn images(goldens: &Goldens) -> Vec<(String, Image)> {
    goldens.images.iter().map(|name| (name.clone(), image(name))).collect()
}

#[test]
fn a_preprocessor_config_does_what_transformers_does() {
    let goldens = goldens();
    let images = images(&goldens);
    let mut wrong = Vec::new();
    for case in &goldens.hf {
        let models = Models::new(&[("clip", "clip")]);
        models.change(HF, &case.config);
        match models.describe(&hf_entry("clip", "")) {
            Ok(described) => {
                wrong.extend(differences(case, &images, &described.image_preprocessor()));
            }
            Err(_) if case.tensors.iter().all(Option::is_none) => {}
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_preprocess_cfg_does_what_open_clip_does() {
    let goldens = goldens();
    let images = images(&goldens);
    let mut wrong = Vec::new();
    for case in &goldens.open_clip {
        let models = Models::new(&[("hps", "hps")]);
        models.change_in(OPEN_CLIP, "preprocess_cfg", &case.config);
        let entry = open_clip_entry("hps", "preprocess = \"open_clip\"");
        match models.describe(&entry) {
            Ok(described) => {
                wrong.extend(differences(case, &images, &described.image_preprocessor()));
            }
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// transformers 5 saves the image processor in `processor_config.json`, which wins.
#[test]
fn the_image_processor_of_processor_config_wins() {
    let preprocess = |content: Value| {
        let models = Models::new(&[("clip", "clip")]);
        let mut own: Value = models.read(HF).into();
        own["image_mean"] = json!([0.1, 0.2, 0.3]);
        models.write("clip/processor_config.json", &content);
        if content["image_processor"] == "own" {
            models.write("clip/processor_config.json", &json!({"image_processor": own}));
        }
        let described = models.describe(&hf_entry("clip", "")).unwrap();
        described.manifest().scorers[0].image.as_ref().unwrap().preprocess.clone()
    };
    assert_eq!(
        preprocess(json!({"image_processor": "own"})),
        "hf-bicubic-64-alpha(white)-mean(0.1,0.2,0.3)"
    );
    assert_eq!(
        preprocess(json!({"processor_class": "CLIPProcessor"})),
        "hf-bicubic-64-alpha(white)"
    );
}

#[test]
fn alpha_is_on_white_or_dropped_and_recorded() {
    let models = Models::new(&[("clip", "clip")]);
    let opaque = image("160x90");
    let transparent = image("png-rgba-8.png");
    let describe = |more: &str| models.describe(&hf_entry("clip", more)).unwrap();
    let (white, drop) = (describe("alpha = \"white\""), describe("alpha = \"drop\""));
    assert_eq!(white.manifest(), describe("").manifest());
    let name = |described: &scorers::DescribedScorers| {
        described.manifest().scorers[0].image.as_ref().unwrap().preprocess.clone()
    };
    assert_eq!(name(&white), "hf-bicubic-64-alpha(white)");
    assert_eq!(name(&drop), "hf-bicubic-64-alpha(drop)");
    let (white, drop) = (white.image_preprocessor(), drop.image_preprocessor());
    assert_eq!(hash(&white, &opaque), hash(&drop, &opaque));
    assert_ne!(hash(&white, &transparent), hash(&drop, &transparent));
    let on_white = |preprocessor: &ImagePreprocessor, image: &Image| {
        preprocessor.preprocess(image).unwrap().on_white()
    };
    assert!(on_white(&white, &transparent));
    assert!(!on_white(&drop, &transparent) && !on_white(&white, &opaque));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let hf = |keys: Value| {
        let models = Models::new(&[("clip", "clip")]);
        models.change(HF, &keys);
        models.describe(&hf_entry("clip", "")).unwrap_err().to_string()
    };
    for (keys, name) in [
        (json!({"do_pad": true}), "`do_pad`"),
        (json!({"size": {"longest_edge": 64}}), "`size`"),
        (json!({"size": {"min_pixels": 1, "max_pixels": 9}}), "`size`"),
        (json!({"size": {"height": 64}}), "`size`"),
        (json!({"size": 0}), "`size`"),
        (json!({"size": "64"}), "`size`"),
        (json!({"crop_size": 32}), "`crop_size` is 32x32 pixels, but the network needs 64x64"),
        (json!({"crop_size": {"shortest_edge": 64}}), "`crop_size`"),
        (json!({"crop_size": {"height": 64, "width": 32}}), "`crop_size`"),
        (json!({"do_center_crop": false}), "`do_center_crop` is false"),
        (json!({"do_center_crop": false, "size": {"height": 64, "width": 32}}), "`size`"),
        (json!({"do_center_crop": false, "do_resize": false}), "`do_center_crop`"),
        (json!({"resample": 6}), "`resample`"),
        (json!({"resample": "bicubic"}), "`resample`"),
        (json!({"resample": null}), "`resample`"),
        (json!({"rescale_factor": "x"}), "`rescale_factor`"),
        (json!({"do_normalize": "yes"}), "`do_normalize`"),
        (json!({"image_mean": [0.5, 0.5]}), "`image_mean`"),
        (json!({"image_std": null}), "`image_std`"),
        (json!({"image_processor_type": "SiglipImageProcessor"}), "`image_processor_type`"),
        (json!({"auto_map": {"AutoImageProcessor": "code.Own"}}), "`auto_map`"),
    ] {
        let error = hf(keys);
        assert!(
            error.contains("scorer `clip`") && error.contains("preprocessor_config.json"),
            "{error}"
        );
        assert!(error.contains(name), "{error}");
    }
    let error = hf(json!({"image_std": [0.5, 0.0, 0.5]}));
    assert!(error.contains("std finite and above 0"), "{error}");

    let open_clip = |keys: Value, recipe: &str| {
        let models = Models::new(&[("hps", "hps")]);
        models.change_in(OPEN_CLIP, "preprocess_cfg", &keys);
        let entry = open_clip_entry("hps", &format!("preprocess = \"{recipe}\""));
        models.describe(&entry).map(|_| ()).map_err(|error| error.to_string())
    };
    for (keys, recipe, name) in [
        (json!({"resize_mode": "fit"}), "open_clip", "`resize_mode`"),
        (json!({"interpolation": "lanczos"}), "open_clip", "`interpolation`"),
        (json!({"fill_color": 256}), "open_clip", "`fill_color`"),
        (json!({"fill_color": [1, 2, 3]}), "open_clip", "`fill_color`"),
        (json!({"mode": "L"}), "open_clip", "`mode`"),
        (json!({"mean": [0.5, 0.5]}), "open_clip", "`mean`"),
        // What the recipe named in scorers.toml does not follow.
        (json!({"resize_mode": "squash"}), "hps", "`resize_mode`"),
        (json!({"interpolation": "bilinear"}), "hps", "`interpolation`"),
        (json!({"fill_color": 9}), "hps", "`fill_color`"),
        (json!({"resize_mode": "longest"}), "hf", "`resize_mode`"),
    ] {
        let error = open_clip(keys, recipe).unwrap_err();
        assert!(error.contains("open_clip_config.json") && error.contains(name), "{error}");
    }
    for recipe in ["hps", "hf", "open_clip"] {
        open_clip(json!({"resize_mode": "shortest", "interpolation": "bicubic"}), recipe).unwrap();
    }
    let models = Models::new(&[("clip", "clip")]);
    models.change(HF, &json!({"resample": 2}));
    let entry = hf_entry("clip", "").replace("\"hf\"", "\"hps\"");
    let error = models.describe(&entry).unwrap_err().to_string();
    assert!(error.contains("`resample`") && error.contains("preprocess = \"hf\""), "{error}");
}
