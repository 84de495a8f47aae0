//! The steps of open_clip's transform, as `preprocess_cfg` of `open_clip_config.json` describes
//! them.
//!
//! Source: mlfoundations/open_clip (3.3.0) `src/open_clip/transform.py` (`image_transform`,
//! `ResizeKeepRatio`, `center_crop_or_pad`); torchvision (0.26.0) `transforms.functional`.

use std::fmt;

use super::hf::truncated_longer_side;
use crate::resize::{Filter, Window};

/// How an image gets the network's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResizeMode {
    /// The shorter side to the network's, then a centre crop.
    Shortest,
    /// The longer side to the network's, then padding. A side that would round to nothing, which
    /// open_clip rejects, stays one pixel.
    Longest,
    /// Both sides to the network's, whatever the shape of the image.
    Squash,
}

/// The steps of open_clip's transform that a file can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpenClipSteps {
    /// How it gets the network's shape.
    pub mode: ResizeMode,
    /// The interpolation.
    pub filter: Filter,
    /// What pads it, in the image's own mode: each channel has this value.
    pub fill: u8,
}

/// Where an image goes in the network's input.
pub(super) struct Geometry {
    /// Width and height of the whole resized image.
    pub(super) resized: (u32, u32),
    /// Its visible part.
    pub(super) window: Window,
    /// Column and row of its first pixel in the network's input.
    pub(super) position: (u32, u32),
}

impl OpenClipSteps {
    /// open_clip's defaults.
    pub const PUBLISHED: Self =
        Self { mode: ResizeMode::Shortest, filter: Filter::Bicubic, fill: 0 };

    pub(super) fn geometry(&self, width: u32, height: u32, size: u32) -> Geometry {
        match self.mode {
            ResizeMode::Squash => Geometry {
                resized: (size, size),
                window: Window::whole(size, size),
                position: (0, 0),
            },
            ResizeMode::Shortest => {
                let (short, long) = (width.min(height), width.max(height));
                let long = truncated_longer_side(size, short, long);
                let resized = if width <= height { (size, long) } else { (long, size) };
                let (left, top) = (half_even(resized.0 - size), half_even(resized.1 - size));
                Geometry {
                    resized,
                    window: Window { left, top, width: size, height: size },
                    position: (0, 0),
                }
            }
            ResizeMode::Longest => {
                let side = f64::from(size);
                let ratio = (f64::from(width) / side).max(f64::from(height) / side);
                let scaled = |length: u32| {
                    ((f64::from(length) / ratio).round_ties_even() as u32).clamp(1, size)
                };
                let resized = (scaled(width), scaled(height));
                Geometry {
                    resized,
                    window: Window::whole(resized.0, resized.1),
                    position: ((size - resized.0) / 2, (size - resized.1) / 2),
                }
            }
        }
    }

    pub(super) fn name(&self, size: u32, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "open_clip-{}-{size}", self.filter)?;
        match self.mode {
            ResizeMode::Shortest => Ok(()),
            ResizeMode::Squash => formatter.write_str("-squash"),
            ResizeMode::Longest => write!(formatter, "-longest-fill({})", self.fill),
        }
    }
}

/// Half of the surplus pixels, as Python rounds it.
const fn half_even(rest: u32) -> u32 {
    if rest % 4 == 3 { rest / 2 + 1 } else { rest / 2 }
}
