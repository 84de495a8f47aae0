//! `preprocess_cfg` of `open_clip_config.json`.
//!
//! Source: mlfoundations/open_clip (3.3.0) `src/open_clip/transform.py` (`PreprocessCfg`,
//! `merge_preprocess_dict`, `image_transform`), `factory.py` (`create_model`).

use media::preprocess::{CLIP_MEAN, CLIP_STD, OpenClipSteps, ResizeMode};
use media::resize::Filter;
use serde_json::{Map, Value, json};

use super::{Problem, Statistics, channels, expected, get};

/// Every key that open_clip reads. It replaces `size` by the network's own.
pub(super) const KNOWN: &[&str] =
    &["size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"];

/// The steps, with mean and standard deviation.
pub(super) fn read(keys: &Map<String, Value>) -> Result<(OpenClipSteps, Statistics), Problem> {
    if let Some(mode) = get(keys, "mode").filter(|mode| *mode != "RGB") {
        return Err(expected("mode", "\"RGB\"", mode));
    }
    let mode = match get(keys, "resize_mode").map(|mode| (mode, mode.as_str())) {
        None | Some((_, Some("shortest" | ""))) => ResizeMode::Shortest,
        Some((_, Some("longest"))) => ResizeMode::Longest,
        Some((_, Some("squash"))) => ResizeMode::Squash,
        Some((other, _)) => {
            return Err(expected("resize_mode", "shortest, longest or squash", other));
        }
    };
    let filter = match get(keys, "interpolation").map(|name| (name, name.as_str())) {
        // "random" is for training; scoring uses the default.
        None | Some((_, Some("bicubic" | "random" | ""))) => Filter::Bicubic,
        Some((_, Some("bilinear"))) => Filter::Bilinear,
        Some((other, _)) => {
            return Err(expected("interpolation", "bicubic, bilinear or random", other));
        }
    };
    let fill = match get(keys, "fill_color") {
        None => 0,
        Some(value) => {
            let fill = value.as_u64().and_then(|fill| u8::try_from(fill).ok());
            fill.ok_or_else(|| expected("fill_color", "a whole number from 0 to 255", value))?
        }
    };
    // Python's `mean or default`: zero and an empty list mean the default.
    let statistic = |key: &str, default: [f32; 3]| match get(keys, key) {
        None => Ok(default),
        Some(value) if value.as_f64() == Some(0.0) || *value == json!([]) => Ok(default),
        Some(value) => channels(key, value, true),
    };
    let statistics = (statistic("mean", CLIP_MEAN)?, statistic("std", CLIP_STD)?);
    Ok((OpenClipSteps { mode, filter, fill }, statistics))
}

/// The first key that a recipe of another library does not follow. HPS always resizes the longer
/// side and pads with black, so it follows both `longest` and the default.
pub(super) fn check(steps: &OpenClipSteps, hps: bool) -> Result<(), &'static str> {
    let mode = steps.mode == ResizeMode::Shortest || (hps && steps.mode == ResizeMode::Longest);
    for (fits, key) in [
        (mode, "resize_mode"),
        (steps.filter == Filter::Bicubic, "interpolation"),
        (steps.mode != ResizeMode::Longest || steps.fill == 0, "fill_color"),
    ] {
        if !fits {
            return Err(key);
        }
    }
    Ok(())
}
