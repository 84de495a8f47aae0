//! A decoded image in memory, in Pillow's modes.

use std::fmt;
use std::sync::Arc;

use super::budget::Permit;

/// Pixel layouts, as Pillow names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `1`: black and white, one byte a pixel, 0 or 255.
    Bilevel,
    /// `L`: grey, one byte.
    Grey,
    /// `LA`: grey and alpha, two bytes.
    GreyAlpha,
    /// `I;16`: 16-bit grey, two bytes, little-endian.
    Grey16,
    /// `P`: an index into a palette, one byte.
    Palette,
    /// `RGB`, three bytes.
    Rgb,
    /// `RGBA`, four bytes, not premultiplied.
    Rgba,
    /// `CMYK`, four bytes, 0 is no ink.
    Cmyk,
}

impl Mode {
    /// Bytes of one pixel.
    #[must_use]
    pub const fn bytes_per_pixel(self) -> usize {
        match self {
            Self::Bilevel | Self::Grey | Self::Palette => 1,
            Self::GreyAlpha | Self::Grey16 => 2,
            Self::Rgb => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }

    /// Pillow's name of the mode.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bilevel => "1",
            Self::Grey => "L",
            Self::GreyAlpha => "LA",
            Self::Grey16 => "I;16",
            Self::Palette => "P",
            Self::Rgb => "RGB",
            Self::Rgba => "RGBA",
            Self::Cmyk => "CMYK",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// 256 RGB colours. Entries the file leaves out are black, as in Pillow.
pub type Palette = [[u8; 3]; 256];

/// Pixels do not fill the stated width and height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{mode} image of {width}x{height} needs {expected} bytes of pixels, found {found}")]
pub struct ShapeError {
    mode: Mode,
    width: u32,
    height: u32,
    expected: usize,
    found: usize,
}

/// What a PNG file's `tRNS` chunk makes transparent: Pillow's `info["transparency"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transparency {
    /// The alpha of each palette entry.
    Palette(Box<[u8; 256]>),
    /// Pixels that have this colour as RGB. For 16-bit colours these are the low bytes, which
    /// Pillow compares.
    Colour([u8; 3]),
}

/// A decoded image: rows from top to bottom, pixels interleaved, no padding between rows.
#[derive(Debug, Clone)]
pub struct Image {
    pub(super) mode: Mode,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixels: Vec<u8>,
    pub(super) palette: Option<Box<Palette>>,
    pub(super) transparency: Option<Transparency>,
    /// Counts the image's pixels as decoded; `None` for images that were not decoded here.
    #[expect(dead_code, reason = "held for as long as the image lives")]
    pub(super) permit: Option<Arc<Permit>>,
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        let key = |image: &Self| (image.mode, image.width, image.height);
        key(self) == key(other)
            && self.pixels == other.pixels
            && self.palette == other.palette
            && self.transparency == other.transparency
    }
}

impl Eq for Image {}

impl Image {
    /// Wraps existing pixels: width × height × bytes per pixel, no side 0. A [`Mode::Palette`]
    /// image gets a grey ramp as its palette.
    pub fn new(mode: Mode, width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ShapeError> {
        let palette = (mode == Mode::Palette)
            .then(|| Box::new(std::array::from_fn(|index| [index as u8; 3])));
        let image = Self { mode, width, height, pixels, palette, transparency: None, permit: None };
        let expected = image.row_bytes().saturating_mul(height as usize);
        let found = image.pixels.len();
        if width == 0 || height == 0 || found != expected {
            return Err(ShapeError { mode, width, height, expected, found });
        }
        Ok(image)
    }

    /// The layout of a pixel.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Width in pixels, at least 1.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// All pixels, row after row.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels, without the image.
    #[must_use]
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The colours of a [`Mode::Palette`] image.
    #[must_use]
    pub fn palette(&self) -> Option<&Palette> {
        self.palette.as_deref()
    }

    /// Transparency other than an alpha channel: entries of the palette, or one colour.
    #[must_use]
    pub const fn transparency(&self) -> Option<&Transparency> {
        self.transparency.as_ref()
    }

    /// This image's mode and palette with other pixels, which must fill the stated size.
    pub(crate) fn with_pixels(&self, width: u32, height: u32, pixels: Vec<u8>) -> Self {
        let image = Self {
            mode: self.mode,
            width,
            height,
            pixels,
            palette: self.palette.clone(),
            transparency: self.transparency.clone(),
            permit: None,
        };
        debug_assert_eq!(image.pixels.len(), image.row_bytes() * height as usize);
        image
    }

    /// Bytes of one row.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.width as usize * self.mode.bytes_per_pixel()
    }
}
