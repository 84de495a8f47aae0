//! The steps of Hugging Face's CLIP processor, as `preprocessor_config.json` describes them.
//!
//! Source: huggingface/transformers (5.23.0) `image_processing_backends.py` (`PilBackend`),
//! `image_transforms.py`, `image_utils.py` (`get_image_size_for_max_height_width`).

use std::borrow::Cow;
use std::fmt;

use super::PreprocessError;
use crate::decode::{Image, Mode};
use crate::resize::Filter;

/// What to do with transparency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Alpha {
    /// Composite the image on white, as transformers does from 5.0 on.
    #[default]
    White,
    /// Drop the alpha channel and keep the colours, as `convert("RGB")` and older versions do.
    Drop,
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HfSize {
    /// This size, whatever the shape of the image.
    Exact {
        /// Pixels.
        height: u32,
        /// Pixels.
        width: u32,
    },
    /// The shorter side has this length, the other one is truncated.
    Shortest(u32),
    /// As [`HfSize::Shortest`], unless the longer side would be longer than the second number.
    ShortestUpTo(u32, u32),
    /// The largest size of the image's shape that fits.
    Within {
        /// Pixels.
        height: u32,
        /// Pixels.
        width: u32,
    },
}

/// The steps of the processor, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HfSteps {
    /// Whether to convert to RGB. If not, only RGB images can be scored.
    pub convert_rgb: bool,
    /// How to convert transparent images.
    pub alpha: Alpha,
    /// The resize, if any.
    pub resize: Option<(HfSize, Filter)>,
    /// The factor for the values 0 to 255, if they are rescaled.
    pub rescale: Option<f64>,
    /// Whether to subtract the mean and divide by the standard deviation.
    pub normalize: bool,
}

impl HfSteps {
    /// The defaults of the processor's class, for a side of `size` pixels.
    #[must_use]
    pub const fn published(size: u32) -> Self {
        Self {
            convert_rgb: true,
            alpha: Alpha::White,
            resize: Some((HfSize::Shortest(size), Filter::Bicubic)),
            rescale: Some(1.0 / 255.0),
            normalize: true,
        }
    }

    /// The defaults of SigLIP's processor, for a side of `size` pixels: resized without a crop,
    /// whatever the shape of the image.
    #[must_use]
    pub const fn siglip(size: u32) -> Self {
        Self {
            resize: Some((HfSize::Exact { height: size, width: size }, Filter::Bicubic)),
            ..Self::published(size)
        }
    }

    pub(super) fn rgb<'a>(&self, image: &'a Image) -> Result<Cow<'a, Image>, PreprocessError> {
        match (self.convert_rgb, self.alpha) {
            (true, Alpha::White) => Ok(image.to_rgb_on_white()),
            (true, Alpha::Drop) => Ok(image.to_rgb()),
            (false, _) if image.mode() == Mode::Rgb => Ok(Cow::Borrowed(image)),
            (false, _) => Err(PreprocessError::Mode { mode: image.mode() }),
        }
    }

    /// Width and height after the resize, and its filter.
    pub(super) fn resized(
        &self,
        width: u32,
        height: u32,
    ) -> Result<((u32, u32), Filter), PreprocessError> {
        let Some((size, filter)) = self.resize else {
            return Ok(((width, height), Filter::Bicubic));
        };
        let to = size.of(width, height);
        if to.0 == 0 || to.1 == 0 {
            return Err(PreprocessError::Vanishes { from: (width, height), to });
        }
        Ok((to, filter))
    }

    pub(super) fn rescaled(&self, value: u8) -> f32 {
        match self.rescale {
            Some(factor) => (f64::from(value) * factor) as f32,
            None => f32::from(value),
        }
    }

    pub(super) fn name(&self, size: u32, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resize {
            None => write!(formatter, "hf-not_resized-{size}")?,
            Some((to, filter)) => {
                write!(formatter, "hf-{filter}-{size}")?;
                match to {
                    HfSize::Shortest(side) if side == size => {}
                    HfSize::Shortest(side) => write!(formatter, "-shortest({side})")?,
                    HfSize::ShortestUpTo(side, most) => {
                        write!(formatter, "-shortest({side},{most})")?;
                    }
                    HfSize::Exact { height, width } => {
                        write!(formatter, "-exact({height},{width})")?;
                    }
                    HfSize::Within { height, width } => {
                        write!(formatter, "-within({height},{width})")?;
                    }
                }
            }
        }
        match self.rescale {
            Some(factor) if factor == 1.0 / 255.0 => {}
            Some(factor) => write!(formatter, "-rescale({factor})")?,
            None => formatter.write_str("-not_rescaled")?,
        }
        formatter.write_str(match (self.convert_rgb, self.alpha) {
            (false, _) => "-not_converted",
            (true, Alpha::White) => "-alpha(white)",
            (true, Alpha::Drop) => "-alpha(drop)",
        })
    }
}

impl HfSize {
    /// Width and height of a resized image; 0 if nothing is left of a side.
    fn of(self, width: u32, height: u32) -> (u32, u32) {
        let (short, long) = (width.min(height), width.max(height));
        let turned = |(short, long): (u32, u32)| {
            if width <= height { (short, long) } else { (long, short) }
        };
        match self {
            Self::Exact { height, width } => (width, height),
            Self::Shortest(side) => turned((side, truncated_longer_side(side, short, long))),
            Self::ShortestUpTo(side, most) => {
                let (short, long) = (f64::from(short), f64::from(long));
                // `get_size_with_aspect_ratio`: the shorter side is rounded, the longer one is
                // computed from the unrounded number and truncated.
                let raw = (long / short * f64::from(side) > f64::from(most))
                    .then(|| f64::from(most) * short / long);
                let side = raw.map_or(side, |raw| raw.round_ties_even() as u32);
                if f64::from(side) == short {
                    return (width, height);
                }
                let longer = raw.unwrap_or_else(|| f64::from(side)) * long / short;
                turned((side, longer as u32))
            }
            Self::Within { height: most_height, width: most_width } => {
                let scale = (f64::from(most_height) / f64::from(height))
                    .min(f64::from(most_width) / f64::from(width));
                ((f64::from(width) * scale) as u32, (f64::from(height) * scale) as u32)
            }
        }
    }
}

/// The longer side if the shorter one becomes `side`; integers, as Python's `int()` of the
/// quotient.
pub(super) fn truncated_longer_side(side: u32, short: u32, long: u32) -> u32 {
    let long = u64::from(side) * u64::from(long) / u64::from(short.max(1));
    // The longest image within the limits is far below 2³²/size pixels; saturation is for others.
    u32::try_from(long).unwrap_or(u32::MAX)
}
