//! Encoded bytes to pixels, in the modes that Pillow uses.
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

mod alpha;
mod budget;
mod convert;
mod image;
mod jpeg;
mod png;
mod png_chunks;
mod sniff;
mod webp;

use std::sync::Arc;

use budget::Permit;
pub use budget::{MOST_PIXELS_AT_ONCE, pixels_at_once};
pub(crate) use convert::multiply_255;
pub use convert::to_rgb;
pub use image::{Image, Mode, Palette, ShapeError, Transparency};

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
    /// 100 megapixels, 400 MB as RGBA. [`MOST_PIXELS_AT_ONCE`] bounds the sum over all threads.
    pub const MAX_PIXELS: u64 = 100_000_000;
    /// 64 MiB encoded; the largest images of Pick-a-Pic are around 2 MiB.
    pub const MAX_BYTES: u64 = 64 << 20;

    /// Checks an image's dimensions, as its header states them, and waits for a permit to decode so
    /// many pixels.
    fn admit(
        &self,
        format: &'static str,
        width: u64,
        height: u64,
    ) -> Result<Arc<Permit>, DecodeError> {
        self.check(format, width, height)?;
        Ok(Arc::new(budget::permit(width.saturating_mul(height))))
    }

    /// Checks an image's dimensions, as its header states them.
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
    /// The bytes are text, which often replaces a file after a failed download.
    #[error("image data expected, found {found}{hint}")]
    Text {
        /// What kind of text it is, with its beginning.
        found: String,
        /// What to do, on a line of its own; empty if nothing is known to help.
        hint: &'static str,
    },
    /// The first bytes belong to no supported format.
    #[error(
        "image format not recognised: expected JPEG, PNG or WebP, found {found}\n\
         hint: convert the image to JPEG, PNG or WebP"
    )]
    UnknownFormat {
        /// The format's name if it is known, else the first bytes in hexadecimal.
        found: String,
    },
    /// A limit of [`Limits`] is exceeded.
    #[error("image is too large: {what} {found}, limit {limit}")]
    TooLarge {
        /// What is too large: "width", "height", "pixel count", "encoded size" or "scan count".
        what: &'static str,
        /// The file's value, or the first value past the limit if reading stopped there.
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
    /// A variety of a known format that is not decoded here, nor by Pillow.
    #[error("{format} image is of an unsupported kind: {detail}")]
    Unsupported {
        /// "JPEG", "PNG" or "WebP".
        format: &'static str,
        /// What kind it is.
        detail: String,
    },
    /// The decoder panicked. Only this image is affected.
    #[error(
        "the image could not be decoded: the decoder stopped with {detail:?}; please report it"
    )]
    Panicked {
        /// What the decoder said.
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

/// Decodes a JPEG, PNG or WebP image (its first frame), whatever the name of the file.
///
/// Rejects data that ends early, as Pillow does; damaged JPEG data inside a complete file is
/// decoded as far as libjpeg-turbo can, as in Pillow. Checks limits before it allocates pixels.
///
/// The images of one process hold at most [`MOST_PIXELS_AT_ONCE`] pixels: a call waits until there
/// is room for its image, whose pixels count until it is dropped. A thread that already holds an
/// image does not wait.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    crate::guard::caught(|| decode_any(bytes, limits))
        .unwrap_or_else(|detail| Err(DecodeError::Panicked { detail }))
}

fn decode_any(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
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
        Err(sniff::unknown(bytes))
    }
}
