//! Pixels to network input: the recipes that the scorers were trained with.
//!
//! Owns: each recipe's size rule, crop or padding, interpolation and normalisation, so that the
//! tensor equals the one of the Python pipeline. Two scorers with equal recipes share the work,
//! which is why a [`Recipe`] can be compared, hashed and named.
//!
//! Sources: huggingface/transformers (5.23.0) `models/clip/image_processing_pil_clip.py`,
//! `image_processing_backends.py` (`PilBackend`), `image_transforms.py`;
//! mlfoundations/open_clip (89fb801f) `src/open_clip/transform.py`; tgxs002/HPSv2 (866735ec)
//! `hpsv2/src/open_clip/transform.py`.

mod float;
mod geometry;
mod hf;
mod open_clip;

use std::cell::RefCell;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::decode::Image;
use crate::resize::Resizer;

pub use hf::{Alpha, HfSize, HfSteps};
pub use open_clip::{OpenClipSteps, ResizeMode};

/// Mean of OpenAI's CLIP, per channel, in [0, 1]: what all four published scorers use.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of OpenAI's CLIP, per channel.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Mean of SigLIP, per channel.
pub const SIGLIP_MEAN: [f32; 3] = [0.5; 3];
/// Standard deviation of SigLIP, per channel.
pub const SIGLIP_STD: [f32; 3] = [0.5; 3];
/// Side of the published scorers' input, in pixels.
pub const CLIP_SIZE: u32 = 224;
/// The largest input side a recipe may have: an array of it still fits memory.
const MAX_SIZE: u32 = 4096;

/// How HPS resizes its floating-point tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HpsResize {
    /// torchvision up to 0.16, which HPS was trained with: cubic (a = −0.75) over 4×4 pixels,
    /// however much the image shrinks.
    Legacy,
    /// torchvision from 0.17 on: cubic (a = −0.5), its support scaled with the image.
    Antialias,
}

/// Which pipeline a recipe reproduces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Hugging Face's CLIP processor: to RGB, then what its file says, in the end a centre crop
    /// (offset rounded down).
    Hf(HfSteps),
    /// HPS v2 and DiffusionDPO's CLIP: to RGB, to floating point, bicubic to the longer side, black
    /// padding to a square, not clamped, then normalised. If the longer side already has the right
    /// length, the original does not pad, and its network fails unless the image is square; this
    /// one pads. A side that would round to nothing stays one pixel.
    Hps {
        /// Which interpolation.
        resize: HpsResize,
    },
    /// Stock open_clip: resized in the image's own mode and only then made RGB, and the crop offset
    /// rounded half to even.
    OpenClip(OpenClipSteps),
}

impl Kind {
    /// The CLIP processor with the values that its class has, for a side of `size` pixels.
    #[must_use]
    pub const fn hf(size: u32) -> Self {
        Self::Hf(HfSteps::published(size))
    }

    /// open_clip's transform with its own defaults.
    #[must_use]
    pub const fn open_clip() -> Self {
        Self::OpenClip(OpenClipSteps::PUBLISHED)
    }
}

/// Why a recipe cannot be made or applied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PreprocessError {
    /// The output does not hold 3 × size × size values.
    #[error("recipe {recipe} writes {expected} values, the output holds {found}")]
    OutputLength {
        /// The recipe's name.
        recipe: String,
        /// 3 × size × size.
        expected: usize,
        /// Length of the output given.
        found: usize,
    },
    /// The input side is out of range.
    #[error("preprocessing size must be between 1 and {MAX_SIZE} pixels, found {found}")]
    Size {
        /// The side asked for.
        found: u32,
    },
    /// Without conversion to RGB, a network accepts only RGB images, as in transformers.
    #[error(
        "the image is of mode {mode} and the model's do_convert_rgb is false, so that only RGB images \
         can be scored"
    )]
    Mode {
        /// The image's mode.
        mode: crate::decode::Mode,
    },
    /// The image is so long that one side would have no pixel after the resize.
    #[error("the image of {}x{} pixels would be resized to {}x{}", from.0, from.1, to.0, to.1)]
    Vanishes {
        /// Width and height of the image.
        from: (u32, u32),
        /// Width and height it would have.
        to: (u32, u32),
    },
    /// Preprocessing panicked. Only this image is affected.
    #[error("preprocessing stopped with {detail:?}; please report it")]
    Panicked {
        /// What it said.
        detail: String,
    },
    /// A mean or standard deviation that cannot normalise.
    #[error("mean must be finite and std finite and above 0, found mean {mean:?}, std {std:?}")]
    Statistics {
        /// The mean asked for.
        mean: [f32; 3],
        /// The standard deviation asked for.
        std: [f32; 3],
    },
}

/// How pixels become the input of a network.
#[doc(alias = "CLIPImageProcessor")]
#[doc(alias = "image_transform")]
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    kind: Kind,
    size: u32,
    mean: [f32; 3],
    std: [f32; 3],
}

thread_local! {
    /// Coefficients and buffers of this thread; recipes of one size share them.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

impl Recipe {
    /// A recipe with an input side of `size` pixels.
    pub fn new(
        kind: Kind,
        size: u32,
        mean: [f32; 3],
        std: [f32; 3],
    ) -> Result<Self, PreprocessError> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(PreprocessError::Size { found: size });
        }
        let finite = mean.iter().chain(&std).all(|value| value.is_finite());
        if !finite || std.iter().any(|&std| std <= 0.0) {
            return Err(PreprocessError::Statistics { mean, std });
        }
        Ok(Self { kind, size, mean, std })
    }

    /// The recipe of the published checkpoints: CLIP's mean and standard deviation, and 224 pixels.
    /// The steps of a [`Kind::Hf`] must lead to that size.
    #[must_use]
    pub const fn published(kind: Kind) -> Self {
        Self { kind, size: CLIP_SIZE, mean: CLIP_MEAN, std: CLIP_STD }
    }

    /// Which pipeline it reproduces.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Side of the square output, in pixels.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Values that [`Recipe::apply`] writes: 3 × size × size.
    #[must_use]
    pub const fn output_len(&self) -> usize {
        3 * self.size as usize * self.size as usize
    }

    /// Whether this recipe composites transparent images on white.
    #[must_use]
    pub fn composites(&self) -> bool {
        matches!(self.kind, Kind::Hf(steps) if steps.convert_rgb && steps.alpha == Alpha::White)
    }

    /// A stable text for manifests, equal for equal recipes: `hf-bicubic-224-alpha(white)`,
    /// `hps-legacy-bicubic-224`, `open_clip-bicubic-224`. Differences from the published recipes
    /// follow.
    #[must_use]
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// Writes the image, normalised, as channel, row, column (3, size, size). Rejects images that
    /// the original rejects.
    pub fn apply(&self, image: &Image, out: &mut [f32]) -> Result<(), PreprocessError> {
        if out.len() != self.output_len() {
            let (recipe, expected, found) = (self.name(), self.output_len(), out.len());
            return Err(PreprocessError::OutputLength { recipe, expected, found });
        }
        crate::guard::caught(|| self.apply_any(image, out))
            .unwrap_or_else(|detail| Err(PreprocessError::Panicked { detail }))
    }

    fn apply_any(&self, image: &Image, out: &mut [f32]) -> Result<(), PreprocessError> {
        match self.kind {
            Kind::Hf(steps) => {
                let rgb = steps.rgb(image)?;
                let (resized, filter) = steps.resized(image.width(), image.height())?;
                let (window, position) = geometry::crop_or_pad(resized, self.size);
                let crop = RESIZER.with_borrow_mut(|resizer| {
                    resizer.resize_within(&rgb, resized, window, filter)
                });
                let crop = geometry::padded(crop, position, self.size, 0);
                self.write(&crop, &self.tables(|value| steps.rescaled(value)), out);
            }
            Kind::OpenClip(steps) => {
                let geometry = steps.geometry(image.width(), image.height(), self.size);
                let crop = RESIZER.with_borrow_mut(|resizer| {
                    resizer.resize_within(image, geometry.resized, geometry.window, steps.filter)
                });
                let crop = geometry::padded(crop, geometry.position, self.size, steps.fill);
                self.write(&crop.to_rgb(), &self.tables(|value| f32::from(value) / 255.0), out);
            }
            Kind::Hps { resize } => {
                let size = self.size as usize;
                float::resize_longest(&image.to_rgb(), size, resize, &self.normalize(), out);
            }
        }
        Ok(())
    }

    /// What each of the 256 values of a channel becomes.
    fn tables(&self, scaled: impl Fn(u8) -> f32) -> [[f32; 256]; 3] {
        let normalizes = !matches!(self.kind, Kind::Hf(HfSteps { normalize: false, .. }));
        self.normalize().map(|normalize| {
            std::array::from_fn(|value| {
                let value = scaled(value as u8);
                if normalizes { normalize.apply(value) } else { value }
            })
        })
    }

    /// Writes an RGB image of the output's size.
    fn write(&self, image: &Image, tables: &[[f32; 256]; 3], out: &mut [f32]) {
        let (red, rest) = out.split_at_mut(out.len() / 3);
        let (green, blue) = rest.split_at_mut(red.len());
        let planes = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), pixel) in planes.zip(image.pixels().as_chunks().0) {
            let [r, g, b]: [u8; 3] = *pixel;
            *red = tables[0][usize::from(r)];
            *green = tables[1][usize::from(g)];
            *blue = tables[2][usize::from(b)];
        }
    }

    fn normalize(&self) -> [Normalize; 3] {
        std::array::from_fn(|channel| Normalize {
            mean: self.mean[channel],
            std: self.std[channel],
        })
    }

    /// What equality and the hash consider: the name, and the bits of floats that it may round.
    fn key(&self) -> (String, [u32; 3], [u32; 3]) {
        (self.name(), self.mean.map(f32::to_bits), self.std.map(f32::to_bits))
    }
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Recipe {}

impl Hash for Recipe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Hf(steps) => steps.name(self.size, formatter)?,
            Kind::OpenClip(steps) => steps.name(self.size, formatter)?,
            Kind::Hps { resize: HpsResize::Legacy } => {
                write!(formatter, "hps-legacy-bicubic-{}", self.size)?;
            }
            Kind::Hps { resize: HpsResize::Antialias } => {
                write!(formatter, "hps-antialias-bicubic-{}", self.size)?;
            }
        }
        if matches!(self.kind, Kind::Hf(HfSteps { normalize: false, .. })) {
            return formatter.write_str("-not_normalized");
        }
        for (name, values, published) in
            [("mean", self.mean, CLIP_MEAN), ("std", self.std, CLIP_STD)]
        {
            if values.map(f32::to_bits) != published.map(f32::to_bits) {
                write!(formatter, "-{name}({},{},{})", values[0], values[1], values[2])?;
            }
        }
        Ok(())
    }
}

/// (value − mean) / std in f32, the order in which every pipeline computes it.
#[derive(Debug, Clone, Copy)]
struct Normalize {
    mean: f32,
    std: f32,
}

impl Normalize {
    fn apply(self, value: f32) -> f32 {
        (value - self.mean) / self.std
    }
}
