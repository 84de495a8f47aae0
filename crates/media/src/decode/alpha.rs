//! An image before a white background, as transformers makes it RGB.
//!
//! Source: huggingface/transformers (5.23.0) `image_transforms.py` (`convert_to_rgb`);
//! python-pillow/Pillow (13.0.0) `src/PIL/Image.py` (`convert`), `src/libImaging/Convert.c`
//! (`rgbT2a`), `src/libImaging/AlphaComposite.c`.

use std::borrow::Cow;

use super::{Image, Mode, Transparency, to_rgb};

const WHITE: u32 = 255;

impl Image {
    /// Whether some pixel is not fully opaque.
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        match self.alphas() {
            Some(alphas) => alphas.into_iter().any(|alpha| alpha != 255),
            None => false,
        }
    }

    /// This image as RGB on white, bit for bit as transformers' `convert_to_rgb`; the same as
    /// [`Image::to_rgb`] for an image without transparency.
    #[must_use]
    pub fn to_rgb_on_white(&self) -> Cow<'_, Self> {
        let mut rgb = self.to_rgb();
        if let Some(alphas) = self.alphas() {
            let pixels = rgb.to_mut().pixels.as_chunks_mut::<3>().0;
            for (pixel, alpha) in pixels.iter_mut().zip(alphas) {
                *pixel = on_white(*pixel, alpha);
            }
        }
        rgb
    }

    /// The alpha of every pixel; `None` if the image has no transparency.
    fn alphas(&self) -> Option<Vec<u8>> {
        let last = |channels: usize| {
            self.pixels.chunks_exact(channels).map(|pixel| pixel[channels - 1]).collect()
        };
        match (self.mode, &self.transparency) {
            (Mode::Rgba, _) => Some(last(4)),
            (Mode::GreyAlpha, _) => Some(last(2)),
            (Mode::Palette, Some(Transparency::Palette(alphas))) => {
                Some(self.pixels.iter().map(|&index| alphas[usize::from(index)]).collect())
            }
            (_, Some(Transparency::Colour(colour))) => {
                // Pillow compares after it has made the image RGB.
                let rgb = to_rgb(self.mode, &self.pixels, self.palette.as_deref());
                let alpha = |pixel: &[u8; 3]| if pixel == colour { 0 } else { 255 };
                Some(rgb.as_chunks::<3>().0.iter().map(alpha).collect())
            }
            _ => None,
        }
    }
}

/// `ImagingAlphaComposite` over opaque white.
fn on_white(pixel: [u8; 3], alpha: u8) -> [u8; 3] {
    const PRECISION_BITS: u32 = 16 - 8 - 1;
    if alpha == 0 {
        return [255; 3];
    }
    let alpha = u32::from(alpha);
    // The background is opaque, so the sum of both weights is 255 · 255.
    let front = alpha * 255 * 255 * (1 << PRECISION_BITS) / (255 * 255);
    let back = 255 * (1 << PRECISION_BITS) - front;
    pixel.map(|value| {
        let sum = u32::from(value) * front + WHITE * back + (0x80 << PRECISION_BITS);
        ((((sum >> 8) + sum) >> 8) >> PRECISION_BITS) as u8
    })
}
