//! Decoding, resizing and preprocessing against what Pillow, torchvision, transformers and
//! open_clip made of the same images (scripts/goldens/images.py).
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use media::decode::{Image, Limits, Mode, decode};
use media::preprocess::{Alpha, HfSteps, HpsResize, Kind, Recipe};
use media::resize::{Filter, Resizer, Window};
use serde_json::Value;
use support::{files, float_bytes, formula, json, sha256, short_sha256, size};

const RECIPES: [(&str, Kind); 5] = [
    ("hf", Kind::hf(224)),
    ("hf-drop", Kind::Hf(HfSteps { alpha: Alpha::Drop, ..HfSteps::published(224) })),
    ("open_clip", Kind::open_clip()),
    ("hps-legacy", Kind::Hps { resize: HpsResize::Legacy }),
    ("hps-antialias", Kind::Hps { resize: HpsResize::Antialias }),
];

const FILTERS: [Filter; 6] = [
    Filter::Bicubic,
    Filter::Bilinear,
    Filter::Nearest,
    Filter::Box,
    Filter::Hamming,
    Filter::Lanczos,
];

fn apply(kind: Kind, image: &Image) -> Vec<f32> {
    let recipe = Recipe::published(kind);
    let mut out = vec![f32::NAN; recipe.output_len()];
    recipe.apply(image, &mut out).unwrap();
    out
}

/// Every difference is reported, not only the first.
fn assert_none(differences: &[String]) {
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

fn resize_differences(name: &str, image: &Image, golden: &Value, differences: &mut Vec<String>) {
    let mut resizer = Resizer::new();
    let mut scalar = Resizer::scalar();
    for (what, expected) in golden.as_object().unwrap() {
        let (filter, target) = what.split_once(' ').unwrap();
        let filter = FILTERS.into_iter().find(|known| known.to_string() == filter).unwrap();
        for resizer in [&mut resizer, &mut scalar] {
            let resized = resizer.resize(image, size(target), filter).unwrap();
            if short_sha256(resized.pixels()) != *expected {
                differences.push(format!("{name} ({}) to {what}", image.mode()));
            }
        }
    }
}

fn tensor_differences(name: &str, image: &Image, golden: &Value, differences: &mut Vec<String>) {
    for (recipe, kind) in RECIPES {
        if short_sha256(&float_bytes(&apply(kind, image))) != golden[recipe] {
            differences.push(format!("{name} ({}) as {recipe}", image.mode()));
        }
    }
}

#[test]
fn decoded_pixels_equal_pillow() {
    let mut differences = Vec::new();
    for (name, bytes, golden) in files() {
        let image = match decode(&bytes, &Limits::default()) {
            Ok(image) => image,
            Err(error) => {
                differences.push(format!("{name}: {error}"));
                continue;
            }
        };
        assert_eq!(image.mode().name(), golden["mode"], "{name}");
        assert_eq!(image.width(), golden["width"].as_u64().unwrap() as u32, "{name}");
        assert_eq!(image.height(), golden["height"].as_u64().unwrap() as u32, "{name}");
        if short_sha256(image.pixels()) != golden["pixels"] {
            differences.push(format!("{name}: pixels"));
        }
        if short_sha256(image.to_rgb().pixels()) != golden["rgb"] {
            differences.push(format!("{name}: to_rgb"));
        }
        if short_sha256(image.to_rgb_on_white().pixels()) != golden["white"] {
            differences.push(format!("{name}: to_rgb_on_white"));
        }
        let differs = golden["white"] != golden["rgb"];
        assert_eq!(image.is_transparent(), differs, "{name}");
    }
    assert_none(&differences);
}

#[test]
fn every_value_at_every_alpha_is_laid_on_white_as_transformers_does() {
    let pixels = (0..=255_u8)
        .flat_map(|alpha| (0..=255_u8).flat_map(move |value| [value, 255 - value, value, alpha]));
    let image = Image::new(Mode::Rgba, 256, 256, pixels.collect()).unwrap();
    assert!(image.is_transparent());
    assert_eq!(short_sha256(image.to_rgb_on_white().pixels()), json("images.json")["on_white"]);
    let opaque = Image::new(Mode::Rgba, 1, 1, vec![3, 4, 5, 255]).unwrap();
    assert!(!opaque.is_transparent());
    assert_eq!(opaque.to_rgb_on_white().pixels(), [3, 4, 5]);
}

/// PNG files that a strict decoder refuses, and some that Pillow refuses too
/// (scripts/goldens/damaged_pngs.py).
#[test]
fn damaged_pngs_that_pillow_reads_are_read_so() {
    /// What Pillow refuses for damage that has no bearing on the pixels is read here.
    const READ_ALL_THE_SAME: [&str; 5] = [
        "adler wrong",
        "short gamma",
        "text before the data, checksum wrong",
        "text that is too big",
        "text after the data, cut",
    ];
    let mut differences = Vec::new();
    for (name, golden) in json("damaged_pngs.json")["files"].as_object().unwrap() {
        let bytes = hex(golden["hex"].as_str().unwrap());
        match (decode(&bytes, &Limits::default()), golden["pixels"].as_str()) {
            (Ok(image), Some(pixels)) => {
                let found = [
                    image.mode().name().to_owned(),
                    short_sha256(image.pixels()),
                    short_sha256(image.to_rgb().pixels()),
                    short_sha256(image.to_rgb_on_white().pixels()),
                ];
                let text = |key: &str| golden[key].as_str().unwrap().to_owned();
                if found != [text("mode"), pixels.to_owned(), text("rgb"), text("white")] {
                    differences.push(format!("{name}: other pixels, {}", image.mode()));
                }
            }
            (Ok(_), None) if READ_ALL_THE_SAME.contains(&name.as_str()) => {}
            (Err(error), None) => assert_eq!(error.reason(), "decode_error", "{name}: {error}"),
            (Ok(_), None) => differences.push(format!("{name}: read, and Pillow refuses it")),
            (Err(error), Some(_)) => differences.push(format!("{name}: {error}")),
        }
    }
    assert_none(&differences);
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |place| u8::from_str_radix(&text[place..place + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn resized_files_equal_pillow_in_every_mode() {
    let mut differences = Vec::new();
    for (name, bytes, golden) in files() {
        let image = decode(&bytes, &Limits::default()).unwrap();
        resize_differences(&name, &image, &golden["resized"], &mut differences);
    }
    assert_none(&differences);
}

#[test]
fn recipes_equal_python_on_files() {
    let mut differences = Vec::new();
    for (name, bytes, golden) in files() {
        let image = decode(&bytes, &Limits::default()).unwrap();
        tensor_differences(&name, &image, &golden["tensors"], &mut differences);
    }
    assert_none(&differences);
}

#[test]
fn extreme_shapes_equal_python() {
    let mut differences = Vec::new();
    for (name, golden) in json("images.json")["synthetic"].as_object().unwrap() {
        let (width, height) = size(name);
        let image = formula(width, height);
        resize_differences(name, &image, &golden["resized"], &mut differences);
        tensor_differences(name, &image, &golden["tensors"], &mut differences);
    }
    assert_none(&differences);
}

#[test]
fn preprocessing_goldens_pass_whole() {
    let golden = json("preproc_goldens.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let number = |value: &Value| value.as_u64().unwrap() as u32;
        let (width, height) = (number(&case["w"]), number(&case["h"]));
        let image = formula(width, height);
        assert_eq!(sha256(image.pixels()), case["src_sha256"], "{width}x{height}");

        let resized = (number(&case["resized_hw"][1]), number(&case["resized_hw"][0]));
        for (offset, digest) in [
            ("hf_crop_top_left", "hf_pil_crop_sha256"),
            ("tv_crop_top_left", "openclip_crop_sha256"),
        ] {
            let (top, left) = (number(&case[offset][0]), number(&case[offset][1]));
            let window = Window { left, top, width: 224, height: 224 };
            let crop =
                Resizer::new().resize_window(&image, resized, window, Filter::Bicubic).unwrap();
            assert_eq!(sha256(crop.pixels()), case[digest], "{width}x{height} {digest}");
        }
        let hf = apply(Kind::hf(224), &image);
        close(mean(&hf), &case["hf_pil_mean"], 1e-6);
        for (key, resize) in [("hps_noaa", HpsResize::Legacy), ("hps_aa", HpsResize::Antialias)] {
            let tensor = apply(Kind::Hps { resize }, &image);
            close(mean(&tensor), &case[key]["mean"], 1e-6);
            let minimum = tensor.iter().copied().fold(f32::INFINITY, f32::min);
            let maximum = tensor.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            equal(minimum, &case[key]["min"]);
            equal(maximum, &case[key]["max"]);
            for (place, value) in case[key]["samples"].as_object().unwrap() {
                let place: Vec<usize> =
                    place.split(',').map(|part| part.parse().unwrap()).collect();
                let found = tensor[(place[0] * 224 + place[1]) * 224 + place[2]];
                equal(found, value);
            }
        }
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}

fn close(found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "expected {expected}, found {found}");
}

fn equal(found: f32, expected: &Value) {
    assert_eq!(found.to_bits(), (expected.as_f64().unwrap() as f32).to_bits());
}

#[test]
fn a_window_is_a_crop_of_the_whole() {
    let image = formula(150, 100);
    let mut resizer = Resizer::new();
    for (size, left, top) in [((90, 60), 13, 7), ((301, 100), 0, 41), ((150, 100), 20, 30)] {
        let whole = resizer.resize(&image, size, Filter::Bicubic).unwrap();
        let window = Window { left, top, width: 40, height: 19 };
        let part = resizer.resize_window(&image, size, window, Filter::Bicubic).unwrap();
        for row in 0..19 {
            let start = ((top + row) * size.0 + left) as usize * 3;
            let expected = &whole.pixels()[start..start + 40 * 3];
            assert_eq!(&part.pixels()[row as usize * 120..][..120], expected);
        }
        let outside = Window { left: size.0 - 1, ..window };
        assert!(resizer.resize_window(&image, size, outside, Filter::Bicubic).is_err());
    }
}

#[test]
fn recipes_are_named_and_compared() {
    let names: Vec<String> =
        RECIPES.iter().map(|&(_, kind)| Recipe::published(kind).name()).collect();
    assert_eq!(
        names,
        [
            "hf-bicubic-224-alpha(white)",
            "hf-bicubic-224-alpha(drop)",
            "open_clip-bicubic-224",
            "hps-legacy-bicubic-224",
            "hps-antialias-bicubic-224"
        ]
    );
    let half = Recipe::new(Kind::hf(64), 64, [0.5; 3], [0.5; 3]).unwrap();
    assert_eq!(half.name(), "hf-bicubic-64-alpha(white)-mean(0.5,0.5,0.5)-std(0.5,0.5,0.5)");
    assert_ne!(half, Recipe::published(Kind::hf(224)));
    assert!(Recipe::new(Kind::hf(224), 0, [0.5; 3], [0.5; 3]).is_err());
    assert!(Recipe::new(Kind::hf(224), 224, [0.5; 3], [0.0; 3]).is_err());
    assert!(Recipe::new(Kind::hf(224), 224, [f32::NAN; 3], [1.0; 3]).is_err());
    assert!(half.apply(&formula(3, 3), &mut [0.0; 5]).is_err());
}
