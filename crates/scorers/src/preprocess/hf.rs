//! `preprocessor_config.json`, or `image_processor` in `processor_config.json`.
//!
//! Source: huggingface/transformers (5.23.0) `image_processing_utils.py` (`_set_attributes`,
//! `get_size_dict`), `image_utils.py` (`validate_preprocess_arguments`).

use media::preprocess::{CLIP_MEAN, CLIP_STD, HfSize, HfSteps, SIGLIP_MEAN, SIGLIP_STD};
use media::resize::Filter;
use serde_json::{Map, Value};

use super::{Problem, Statistics, channels, expected, get, shown};
use crate::kind::Kind;

/// Every key that is read here, or that is known to change no pixel.
pub(super) const KNOWN: &[&str] = &[
    "do_convert_rgb",
    "do_resize",
    "size",
    "default_to_square",
    "use_square_size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "image_processor_type",
    "feature_extractor_type",
    "auto_map",
    // These change no pixel.
    "pad_size",
    "processor_class",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "image_seq_length",
    "_valid_processor_keys",
];

/// The image processors of transformers that a folder may describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processor {
    Clip,
    Siglip,
}

impl Processor {
    /// The processor of the models of a kind.
    pub(crate) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Siglip | Kind::AestheticSiglip => Self::Siglip,
            Kind::Clip | Kind::Aesthetic | Kind::ImageReward | Kind::Vlm | Kind::Command => {
                Self::Clip
            }
        }
    }

    /// Its names in all versions.
    fn classes(self) -> &'static [&'static str] {
        match self {
            Self::Clip => &[
                "CLIPImageProcessor",
                "CLIPImageProcessorFast",
                "CLIPImageProcessorPil",
                "CLIPFeatureExtractor",
            ],
            Self::Siglip => {
                &["SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"]
            }
        }
    }

    /// The steps of the published models, for a network of `side` pixels.
    pub(super) fn steps(self, side: u32) -> HfSteps {
        match self {
            Self::Clip => HfSteps::published(side),
            Self::Siglip => HfSteps::siglip(side),
        }
    }

    /// Mean and standard deviation of the class.
    pub(super) fn statistics(self) -> Statistics {
        match self {
            Self::Clip => (CLIP_MEAN, CLIP_STD),
            Self::Siglip => (SIGLIP_MEAN, SIGLIP_STD),
        }
    }

    /// Whether the class crops.
    fn crops(self) -> bool {
        self == Self::Clip
    }

    /// The size that the class resizes to.
    fn size(self) -> HfSize {
        match self {
            Self::Clip => HfSize::Shortest(224),
            Self::Siglip => HfSize::Exact { height: 224, width: 224 },
        }
    }
}

/// The steps for a network of `side` pixels, with mean and standard deviation.
pub(super) fn read(
    keys: &Map<String, Value>,
    side: u32,
    processor: Processor,
) -> Result<(HfSteps, Statistics), Problem> {
    for key in ["image_processor_type", "feature_extractor_type"] {
        let classes = processor.classes();
        if let Some(class) = get(keys, key)
            && !class.as_str().is_some_and(|class| classes.contains(&class))
        {
            let what = format!("one of {}", classes.join(", "));
            return Err(expected(key, &what, class));
        }
    }
    if let Some(map) = get(keys, "auto_map") {
        return Err(format!(
            "`auto_map` names code of the model, which is not run: {}",
            shown(map)
        ));
    }
    // A null is Python's None, which switches a step off; only an absent key means the default.
    let flag = |key: &str, default: bool| match keys.get(key) {
        None => Ok(default),
        Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(expected(key, "true or false", other)),
    };
    if flag("do_pad", false)? {
        return Err("`do_pad` is true, which is not built here; expected false".to_owned());
    }
    let resize = match flag("do_resize", true)? {
        // KOSMOS-2 has this instead of a size.
        true if flag("use_square_size", false)? => {
            Some((HfSize::Exact { height: 224, width: 224 }, filter(keys)?))
        }
        true => {
            let square = flag("default_to_square", false)?;
            Some((size(keys, square, processor.size())?, filter(keys)?))
        }
        false => None,
    };
    fits(keys, flag("do_center_crop", processor.crops())?, resize, side)?;
    let rescale = match (flag("do_rescale", true)?, keys.get("rescale_factor")) {
        (false, _) => None,
        (true, None) => Some(1.0 / 255.0),
        (true, Some(value)) => {
            let factor = value.as_f64().filter(|factor| factor.is_finite());
            Some(factor.ok_or_else(|| expected("rescale_factor", "a number", value))?)
        }
    };
    let normalize = flag("do_normalize", true)?;
    let statistic = |key: &str, default: [f32; 3]| match keys.get(key).filter(|_| normalize) {
        Some(value) => channels(key, value, false),
        None => Ok(default),
    };
    let (mean, std) = processor.statistics();
    let statistics = (statistic("image_mean", mean)?, statistic("image_std", std)?);
    let steps = HfSteps {
        convert_rgb: flag("do_convert_rgb", true)?,
        resize,
        rescale,
        normalize,
        ..HfSteps::published(side)
    };
    Ok((steps, statistics))
}

/// Checks that every image gets the shape of the network's input.
fn fits(
    keys: &Map<String, Value>,
    crops: bool,
    resize: Option<(HfSize, Filter)>,
    side: u32,
) -> Result<(), Problem> {
    let network = format!("the network needs {side}x{side} pixels");
    if crops {
        let crop = crop_size(keys)?;
        return if crop == [side; 2] {
            Ok(())
        } else {
            Err(format!("`crop_size` is {}x{} pixels, but {network}", crop[0], crop[1]))
        };
    }
    match resize {
        Some((HfSize::Exact { height, width }, _)) if [height, width] == [side; 2] => Ok(()),
        Some((HfSize::Exact { height, width }, _)) => {
            Err(format!("`size` is {height}x{width} pixels without a crop, but {network}"))
        }
        _ => Err(format!(
            "`do_center_crop` is false, so that images have different shapes, but {network}"
        )),
    }
}

fn length(key: &str, value: &Value) -> Result<u32, Problem> {
    let length = value.as_u64().filter(|length| (1..=1 << 16).contains(length));
    let length = length.and_then(|length| u32::try_from(length).ok());
    length.ok_or_else(|| expected(key, "a number of pixels", value))
}

/// Height and width of the crop: a number is a square.
fn crop_size(keys: &Map<String, Value>) -> Result<[u32; 2], Problem> {
    let key = "crop_size";
    let Some(value) = keys.get(key) else { return Ok([224; 2]) };
    match value {
        Value::Array(sides) if sides.len() >= 2 => {
            Ok([length(key, &sides[0])?, length(key, &sides[1])?])
        }
        Value::Object(sides) if sides.len() == 2 => match (sides.get("height"), sides.get("width"))
        {
            (Some(height), Some(width)) => Ok([length(key, height)?, length(key, width)?]),
            _ => Err(expected(key, "a height and a width", value)),
        },
        Value::Number(_) => Ok([length(key, value)?; 2]),
        _ => Err(expected(key, "a number, or a height and a width", value)),
    }
}

/// `get_size_dict`, restricted to the forms that `PilBackend.resize` accepts.
fn size(keys: &Map<String, Value>, square: bool, default: HfSize) -> Result<HfSize, Problem> {
    let key = "size";
    let Some(value) = keys.get(key) else { return Ok(default) };
    match value {
        Value::Number(_) if square => {
            Ok(HfSize::Exact { height: length(key, value)?, width: length(key, value)? })
        }
        Value::Number(_) => Ok(HfSize::Shortest(length(key, value)?)),
        Value::Array(sides) if sides.len() >= 2 => {
            Ok(HfSize::Exact { height: length(key, &sides[0])?, width: length(key, &sides[1])? })
        }
        Value::Object(sides) => {
            let mut names: Vec<&str> = sides.keys().map(String::as_str).collect();
            names.sort_unstable();
            let of = |name: &str| length(key, &sides[name]);
            match names.as_slice() {
                ["height", "width"] => {
                    Ok(HfSize::Exact { height: of("height")?, width: of("width")? })
                }
                ["shortest_edge"] => Ok(HfSize::Shortest(of("shortest_edge")?)),
                ["longest_edge", "shortest_edge"] => {
                    Ok(HfSize::ShortestUpTo(of("shortest_edge")?, of("longest_edge")?))
                }
                ["max_height", "max_width"] => {
                    Ok(HfSize::Within { height: of("max_height")?, width: of("max_width")? })
                }
                _ => Err(expected(
                    key,
                    "`shortest_edge`, `shortest_edge` with `longest_edge`, `height` with `width`, or \
                     `max_height` with `max_width`",
                    value,
                )),
            }
        }
        _ => Err(expected(key, "a number, or an object of sides", value)),
    }
}

/// Pillow's number of a filter.
fn filter(keys: &Map<String, Value>) -> Result<Filter, Problem> {
    let Some(value) = keys.get("resample") else { return Ok(Filter::Bicubic) };
    match value.as_u64() {
        Some(0) => Ok(Filter::Nearest),
        Some(1) => Ok(Filter::Lanczos),
        Some(2) => Ok(Filter::Bilinear),
        Some(3) => Ok(Filter::Bicubic),
        Some(4) => Ok(Filter::Box),
        Some(5) => Ok(Filter::Hamming),
        _ => Err(expected("resample", "Pillow's number of a filter, 0 to 5", value)),
    }
}

/// The first key whose steps are not those of the published checkpoints.
pub(super) fn check_published(steps: &HfSteps, side: u32) -> Result<(), &'static str> {
    let published = HfSteps::published(side);
    let (size, filter) = (
        |steps: &HfSteps| steps.resize.map(|(size, _)| size),
        |steps: &HfSteps| steps.resize.map(|(_, filter)| filter),
    );
    for (equal, key) in [
        (steps.convert_rgb == published.convert_rgb, "do_convert_rgb"),
        (steps.resize.is_some(), "do_resize"),
        (size(steps) == size(&published), "size"),
        (filter(steps) == filter(&published), "resample"),
        (steps.rescale.is_some(), "do_rescale"),
        (steps.rescale == published.rescale, "rescale_factor"),
        (steps.normalize, "do_normalize"),
    ] {
        if !equal {
            return Err(key);
        }
    }
    Ok(())
}
