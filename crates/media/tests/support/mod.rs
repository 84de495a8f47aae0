//! What the image tests share: fixtures, digests and synthetic images.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::PathBuf;

use media::decode::{Image, Mode};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    fs_err::read(path).unwrap()
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).unwrap()
}

/// The golden file and every image file it describes.
pub(crate) fn files() -> Vec<(String, Vec<u8>, Value)> {
    let golden = json("images.json");
    let files = golden["files"].as_object().unwrap();
    assert!(files.len() >= 48, "only {} files in images.json", files.len());
    let read = |(name, case): (&String, &Value)| {
        (name.clone(), fixture(&format!("images/{name}")), case.clone())
    };
    files.iter().map(read).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest as images.json shortens it.
pub(crate) fn short_sha256(bytes: &[u8]) -> String {
    sha256(bytes)[..16].to_owned()
}

pub(crate) fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The synthetic image of scripts/goldens/images.py (`formula`) and preproc_goldens.json.
pub(crate) fn formula(width: u32, height: u32) -> Image {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                pixels.push(((x * 7 + y * 13 + c * 29 + ((x * y) % 31) * 5) / (1 + c)) as u8);
            }
        }
    }
    Image::new(Mode::Rgb, width, height, pixels).unwrap()
}

/// "29x17" as numbers.
pub(crate) fn size(text: &str) -> (u32, u32) {
    let (width, height) = text.split_once('x').unwrap();
    (width.parse().unwrap(), height.parse().unwrap())
}
