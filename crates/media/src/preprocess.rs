//! Pixels to network input: the recipes that the scorers were trained with.
//!
//! Owns: each recipe's size rule, crop or padding, interpolation and normalisation, so that the
//! tensor equals the one of the Python pipeline. Two scorers with equal recipes share the work,
//! which is why a [`Recipe`] can be compared, hashed and named.
//!
//! Sources: huggingface/transformers (4.30, PIL backend) `image_processing_clip.py`;
//! mlfoundations/open_clip (89fb801f) `src/open_clip/transform.py`; tgxs002/HPSv2 (866735ec)
//! `hpsv2/src/open_clip/transform.py`.

mod float;

use std::cell::RefCell;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::decode::Image;
use crate::resize::{Filter, Resizer, Window};

/// Mean of OpenAI's CLIP, per channel, in [0, 1]: what all four published scorers use.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of OpenAI's CLIP, per channel.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
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
    /// torchvision from 0.17 on: cubic (a = −0.5), widened by the scale.
    Antialias,
}

/// Which pipeline a recipe reproduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Hugging Face's CLIP processor: to RGB, Pillow's bicubic to the shorter side (the longer side
    /// truncated), centre crop (offset rounded down).
    Hf,
    /// HPS v2 and DiffusionDPO's CLIP: to RGB, to floating point, bicubic to the longer side, black
    /// padding to a square, not clamped, then normalised. The original leaves out the padding where
    /// the longer side has the right length already, and fails in the network unless the image is
    /// square; here it is padded all the same. A side that would round to nothing stays one pixel.
    Hps {
        /// Which interpolation.
        resize: HpsResize,
    },
    /// Stock open_clip: as `Hf`, but resized in the image's own mode and only then made RGB, and
    /// the crop offset rounded half to even.
    OpenClip,
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
    ///
    /// # Errors
    /// [`PreprocessError::Size`] and [`PreprocessError::Statistics`].
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

    /// The recipe of the published checkpoints: 224 pixels, CLIP's mean and standard deviation.
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

    /// A stable text for manifests, equal for equal recipes: `hf-bicubic-224`,
    /// `hps-legacy-bicubic-224`, `open_clip-bicubic-224`. Mean and standard deviation are named
    /// where they are not CLIP's.
    #[must_use]
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// Writes the image as channel, row, column (3, size, size), normalised.
    ///
    /// # Errors
    /// [`PreprocessError::OutputLength`]: the image itself cannot fail.
    pub fn apply(&self, image: &Image, out: &mut [f32]) -> Result<(), PreprocessError> {
        if out.len() != self.output_len() {
            let (recipe, expected, found) = (self.name(), self.output_len(), out.len());
            return Err(PreprocessError::OutputLength { recipe, expected, found });
        }
        match self.kind {
            Kind::Hf => self.crop(&image.to_rgb(), Rounding::Down, out),
            Kind::OpenClip => self.crop(image, Rounding::HalfEven, out),
            Kind::Hps { resize } => {
                let size = self.size as usize;
                float::resize_longest(&image.to_rgb(), size, resize, &self.normalize(), out);
            }
        }
        Ok(())
    }

    /// Shorter side to `size`, centre crop, normalisation through a table: a pixel has 256 values.
    fn crop(&self, image: &Image, rounding: Rounding, out: &mut [f32]) {
        let (resized, window) = crop_geometry(image.width(), image.height(), self.size, rounding);
        let crop = RESIZER.with_borrow_mut(|resizer| {
            resizer.resize_within(image, resized, window, Filter::Bicubic)
        });
        let tables = self.normalize().map(|normalize| -> [f32; 256] {
            std::array::from_fn(|value| normalize.apply(value as f32 / 255.0))
        });
        let (red, rest) = out.split_at_mut(out.len() / 3);
        let (green, blue) = rest.split_at_mut(red.len());
        let planes = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), pixel) in planes.zip(crop.to_rgb().pixels().as_chunks().0) {
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

    /// Everything that equality and the hash consider; floats by their bits.
    fn key(&self) -> (Kind, u32, [u32; 3], [u32; 3]) {
        (self.kind, self.size, self.mean.map(f32::to_bits), self.std.map(f32::to_bits))
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
        let kind = match self.kind {
            Kind::Hf => "hf",
            Kind::Hps { resize: HpsResize::Legacy } => "hps-legacy",
            Kind::Hps { resize: HpsResize::Antialias } => "hps-antialias",
            Kind::OpenClip => "open_clip",
        };
        write!(formatter, "{kind}-bicubic-{}", self.size)?;
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

/// How half a pixel of crop offset is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Down,
    HalfEven,
}

/// Size of the whole resized image, neither side below `size`, and its central window of
/// `size`×`size`.
fn crop_geometry(width: u32, height: u32, size: u32, rounding: Rounding) -> ((u32, u32), Window) {
    let (short, long) = (width.min(height), width.max(height));
    let long = u64::from(size) * u64::from(long) / u64::from(short.max(1));
    // The longest image a limit lets through is far below 2³²/size pixels; saturation is for the rest.
    let long = u32::try_from(long).unwrap_or(u32::MAX);
    let resized = if width <= height { (size, long) } else { (long, size) };
    let offset = |length: u32| {
        let rest = length.saturating_sub(size);
        match rounding {
            Rounding::HalfEven if rest % 4 == 3 => rest / 2 + 1,
            _ => rest / 2,
        }
    };
    let window =
        Window { left: offset(resized.0), top: offset(resized.1), width: size, height: size };
    (resized, window)
}
