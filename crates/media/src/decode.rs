//! Encoded bytes to pixels, in the modes Pillow would give them.
//!
//! Owns: sniffing the format, the limits (checked against the header, before any pixel buffer
//! exists), decoding through the same C libraries as Pillow (libjpeg-turbo, libwebp) or an exact
//! equivalent (`png`), and conversion to RGB, bit for bit as `PIL.Image.convert("RGB")`.
//!
//! Knows nothing of networks or recipes. EXIF orientation is never applied, as none of the scorers'
//! own pipelines applies it.
//!
//! Behaviour matched: python-pillow/Pillow (13.0.0) `src/PIL/{Png,Jpeg,WebP}ImagePlugin.py`,
//! `src/libImaging/{Convert,Unpack,Palette}.c`.

mod convert;
mod jpeg;
mod png;
mod webp;

use std::fmt;

pub(crate) use convert::multiply_255;
pub use convert::to_rgb;

/// How large an image may be. Every limit is checked against the header, before pixels are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest width, in pixels.
    pub max_width: u32,
    /// Largest height, in pixels.
    pub max_height: u32,
    /// Largest width × height, in pixels.
    pub max_pixels: u64,
    /// Largest encoded size, in bytes.
    pub max_bytes: u64,
}

impl Limits {
    /// 16,384 pixels a side: above every camera and image model, below what overflows 32-bit sums.
    pub const MAX_SIDE: u32 = 16_384;
    /// 100 megapixels, 400 MB as RGBA: one worker thread cannot exhaust an ordinary machine.
    pub const MAX_PIXELS: u64 = 100_000_000;
    /// 64 MiB encoded; the largest images of Pick-a-Pic are around 2 MiB.
    pub const MAX_BYTES: u64 = 64 << 20;

    /// Checks an image's dimensions, as its header states them.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] where a limit is exceeded, [`DecodeError::Corrupt`] where a
    /// dimension is zero.
    fn check(&self, format: &'static str, width: u64, height: u64) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            let detail = format!("the header states {width}x{height} pixels");
            return Err(DecodeError::Corrupt { format, detail });
        }
        for (what, found, limit) in [
            ("width", width, u64::from(self.max_width)),
            ("height", height, u64::from(self.max_height)),
            ("pixel count", width.saturating_mul(height), self.max_pixels),
        ] {
            if found > limit {
                return Err(DecodeError::TooLarge { what, found, limit });
            }
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_width: Self::MAX_SIDE,
            max_height: Self::MAX_SIDE,
            max_pixels: Self::MAX_PIXELS,
            max_bytes: Self::MAX_BYTES,
        }
    }
}

/// Why an image was not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("image is empty: expected an encoded image, found 0 bytes")]
    Empty,
    /// The first bytes belong to no supported format.
    #[error(
        "image format not recognised: expected JPEG, PNG or WebP, found {found}\n\
         hint: convert the image to JPEG, PNG or WebP"
    )]
    UnknownFormat {
        /// The format's name where it is known, else the first bytes in hexadecimal.
        found: String,
    },
    /// A limit of [`Limits`] is exceeded.
    #[error("image is too large: {what} {found}, limit {limit}")]
    TooLarge {
        /// What is too large: "width", "height", "pixel count", "encoded size" or "scan count".
        what: &'static str,
        /// The value the file has, or the first value past the limit where the rest is not read.
        found: u64,
        /// The limit it exceeds.
        limit: u64,
    },
    /// The data is damaged or ends early.
    #[error("{format} image is damaged: {detail}")]
    Corrupt {
        /// "JPEG", "PNG" or "WebP".
        format: &'static str,
        /// What the decoder found.
        detail: String,
    },
    /// The format is known, this variety of it is not decoded (nor does Pillow decode it).
    #[error("{format} image is of an unsupported kind: {detail}")]
    Unsupported {
        /// "JPEG", "PNG" or "WebP".
        format: &'static str,
        /// What kind it is.
        detail: String,
    },
}

impl DecodeError {
    /// A stable word for a status column: `image_too_large` or `decode_error`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "image_too_large",
            _ => "decode_error",
        }
    }
}

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

/// A decoded image: rows from top to bottom, pixels interleaved, no padding between rows.
///
/// A palette's transparency and a `tRNS` colour are not kept: `convert("RGB")` ignores both, and no
/// recipe composites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    mode: Mode,
    width: u32,
    height: u32,
    pixels: Vec<u8>,
    palette: Option<Box<Palette>>,
}

impl Image {
    /// Wraps pixels that exist already. A [`Mode::Palette`] image gets a grey ramp as its palette.
    ///
    /// # Errors
    /// [`ShapeError`] where `pixels` is not width × height × bytes per pixel long, or a side is 0.
    pub fn new(mode: Mode, width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ShapeError> {
        let palette = (mode == Mode::Palette)
            .then(|| Box::new(std::array::from_fn(|index| [index as u8; 3])));
        let image = Self { mode, width, height, pixels, palette };
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

    /// Gives the pixels away.
    #[must_use]
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The colours of a [`Mode::Palette`] image.
    #[must_use]
    pub fn palette(&self) -> Option<&Palette> {
        self.palette.as_deref()
    }

    /// Other pixels in this image's mode and palette; they fill the stated size.
    pub(crate) fn with_pixels(&self, width: u32, height: u32, pixels: Vec<u8>) -> Self {
        let image = Self { mode: self.mode, width, height, pixels, palette: self.palette.clone() };
        debug_assert_eq!(image.pixels.len(), image.row_bytes() * height as usize);
        image
    }

    /// Bytes of one row.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.width as usize * self.mode.bytes_per_pixel()
    }
}

/// Decodes a JPEG, PNG or WebP image (its first frame), whatever the file was called.
///
/// Data that ends early is refused, as Pillow refuses it; damaged JPEG data inside a complete file
/// is decoded as far as libjpeg-turbo can, as Pillow does.
///
/// # Errors
/// [`DecodeError`]; a limit is checked before pixels are allocated.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let found = bytes.len() as u64;
    if found > limits.max_bytes {
        let limit = limits.max_bytes;
        return Err(DecodeError::TooLarge { what: "encoded size", found, limit });
    }
    if bytes.starts_with(b"\xff\xd8\xff") {
        jpeg::decode(bytes, limits)
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        png::decode(bytes, limits)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        webp::decode(bytes, limits)
    } else {
        Err(DecodeError::UnknownFormat { found: describe(bytes) })
    }
}

/// Names a format that is not decoded, or shows its first bytes.
fn describe(bytes: &[u8]) -> String {
    let known: [(&[u8], &str); 6] = [
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"<", "text (markup)"),
        (b"%PDF", "PDF"),
    ];
    if let Some((_, name)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*name).to_owned();
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return "AVIF or HEIF".to_owned();
    }
    let shown: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("bytes {}", shown.join(" "))
}
