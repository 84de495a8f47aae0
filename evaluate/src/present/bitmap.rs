//! Images as pixels: read, resized, pasted into each other, encoded.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use media::decode::{self, DecodeError, Image, Limits, Mode};
use media::resize::{Filter, Resizer};

/// An image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BitmapError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The file is not an image.
    #[error("{}: {cause}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: DecodeError,
    },
}

/// The key and text by which a PNG of [`Bitmap::png`] is known.
const SOFTWARE_KEY: &str = "Software";
const SOFTWARE: &str = "evaluate (sheet or figure)";

/// Whether a file is a PNG that [`Bitmap::png`] made.
#[must_use]
pub fn is_ours(path: &Path) -> bool {
    let read = || {
        let file = std::io::BufReader::new(std::fs::File::open(path).ok()?);
        let reader = png::Decoder::new(file).read_info().ok()?;
        let mut texts = reader.info().uncompressed_latin1_text.iter();
        Some(texts.any(|chunk| chunk.keyword == SOFTWARE_KEY && chunk.text == SOFTWARE))
    };
    read().unwrap_or(false)
}

/// Whether a file is a PNG of this width without text chunks.
#[must_use]
pub fn is_plain_of_width(path: &Path, width: u32) -> bool {
    let read = || {
        let file = std::io::BufReader::new(std::fs::File::open(path).ok()?);
        let reader = png::Decoder::new(file).read_info().ok()?;
        let info = reader.info();
        let has_text = !info.uncompressed_latin1_text.is_empty() || !info.utf8_text.is_empty();
        Some(info.width == width && !has_text)
    };
    read().unwrap_or(false)
}

/// RGB of 8 bits a channel, row after row from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width` × `height` × 3 bytes.
    pub pixels: Vec<u8>,
}

impl Bitmap {
    /// Reads a PNG, JPEG or WebP file.
    ///
    /// # Errors
    /// When the file cannot be read, is not an image or is too large.
    pub fn read(path: &Path) -> Result<Self, BitmapError> {
        let read = |cause| BitmapError::Read { path: path.to_owned(), cause };
        let limits = Limits::default();
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(limits.max_bytes + 1).read_to_end(&mut bytes).map_err(read)?;
        let image = decode::decode(&bytes, &limits)
            .map_err(|cause| BitmapError::Decode { path: path.to_owned(), cause })?;
        Ok(image.to_rgb().into_owned().into())
    }

    /// As large as fits into a square of `side` pixels: small images by whole factors, every pixel
    /// a square; large ones as Pillow's bicubic filter shrinks them.
    #[must_use]
    pub fn fitted(self, side: u32) -> Self {
        let longest = self.width.max(self.height);
        if longest <= side {
            return self.enlarged(side / longest);
        }
        let scale =
            |length: u32| (f64::from(length) * f64::from(side) / f64::from(longest)).round();
        let size = [self.width, self.height].map(|length| (scale(length) as u32).max(1));
        self.shrunk((size[0], size[1]))
    }

    /// Every pixel as a square of `factor` pixels.
    fn enlarged(self, factor: u32) -> Self {
        let times = factor as usize;
        let mut pixels = Vec::with_capacity(self.pixels.len() * times * times);
        for row in self.pixels.chunks_exact(self.width as usize * 3) {
            let row: Vec<u8> = row.chunks_exact(3).flat_map(|pixel| pixel.repeat(times)).collect();
            pixels.extend(row.repeat(times));
        }
        Self { width: self.width * factor, height: self.height * factor, pixels }
    }

    fn shrunk(self, size: (u32, u32)) -> Self {
        let image = Image::new(Mode::Rgb, self.width, self.height, self.pixels.clone());
        let resized =
            image.ok().and_then(|image| Resizer::new().resize(&image, size, Filter::Bicubic).ok());
        resized.map_or(self, Self::from)
    }

    /// Lays `image` over this one, its upper left corner at `left`, `top`. What reaches beyond the
    /// edge is cropped.
    pub fn paste(&mut self, image: &Self, left: u32, top: u32) {
        let Some(room) = self.width.checked_sub(left) else { return };
        let length = image.width.min(room) as usize * 3;
        let rows = image.pixels.chunks_exact(image.width as usize * 3);
        let targets = self.pixels.chunks_exact_mut(self.width as usize * 3).skip(top as usize);
        for (target, row) in targets.zip(rows) {
            let start = left as usize * 3;
            target[start..start + length].copy_from_slice(&row[..length]);
        }
    }

    /// As PNG with a text chunk by which [`is_ours`] knows it.
    ///
    /// # Errors
    /// When the encoder rejects the size.
    pub fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_text_chunk(SOFTWARE_KEY.to_owned(), SOFTWARE.to_owned())?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// As JPEG of this quality (1 to 100; from 90 on with colours at full resolution); `None` if a
    /// side is longer than JPEG allows.
    pub fn jpeg(&self, quality: u8) -> Option<Vec<u8>> {
        let (width, height) = (self.width.try_into().ok()?, self.height.try_into().ok()?);
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
        encoder.set_optimized_huffman_tables(true);
        encoder.encode(&self.pixels, width, height, jpeg_encoder::ColorType::Rgb).ok()?;
        Some(bytes)
    }
}

impl From<Image> for Bitmap {
    fn from(image: Image) -> Self {
        let (width, height) = (image.width(), image.height());
        Self { width, height, pixels: image.into_pixels() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32) -> Bitmap {
        let pixels = (0..width * height * 3).map(|index| (index * 7 % 251) as u8).collect();
        Bitmap { width, height, pixels }
    }

    #[test]
    fn small_images_grow_by_whole_factors() {
        let small = image(3, 2);
        let large = small.clone().fitted(11);
        assert_eq!((large.width, large.height), (9, 6));
        for y in 0..6 {
            for x in 0..9 {
                let (from, to) = ((y / 3 * 3 + x / 3) * 3, (y * 9 + x) * 3);
                assert_eq!(small.pixels[from..from + 3], large.pixels[to..to + 3], "{x} {y}");
            }
        }
        assert_eq!(small.clone().fitted(5), small, "no whole factor fits");
    }

    #[test]
    fn large_images_shrink_and_keep_their_shape() {
        let grey = Bitmap { width: 64, height: 32, pixels: vec![77; 64 * 32 * 3] };
        let small = grey.fitted(16);
        assert_eq!((small.width, small.height), (16, 8));
        assert!(small.pixels.iter().all(|&level| level == 77));
        let strip = image(500, 1).fitted(10);
        assert_eq!((strip.width, strip.height), (10, 1));
    }

    #[test]
    fn what_reaches_beyond_the_edge_is_cropped() {
        let mut sheet = Bitmap { width: 4, height: 3, pixels: vec![0; 36] };
        let white = Bitmap { width: 2, height: 2, pixels: vec![255; 12] };
        sheet.paste(&white, 3, 2);
        assert_eq!(sheet.pixels.iter().filter(|&&level| level == 255).count(), 3);
        assert_eq!(sheet.pixels[33..], [255; 3]);
        sheet.paste(&white, 9, 9);
        sheet.paste(&white, 0, 0);
        assert_eq!(sheet.pixels.iter().filter(|&&level| level == 255).count(), 15);
    }

    #[test]
    fn encoded_images_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let image = image(5, 4);
        let bytes = image.png().unwrap();
        runkit::files::write_atomic(&path, |file| file.write_all(&bytes)).unwrap();
        assert_eq!(Bitmap::read(&path).unwrap(), image);
        assert!(image.jpeg(90).unwrap().starts_with(b"\xff\xd8\xff"));
        let error = Bitmap::read(&folder.path().join("b.png")).unwrap_err().to_string();
        assert!(error.contains("b.png"), "{error}");
    }
}
