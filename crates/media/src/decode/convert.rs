//! `convert("RGB")` for every mode. Source: python-pillow/Pillow (13.0.0)
//! `src/libImaging/Convert.c` (`la2rgb`, `rgba2rgb`, `cmyk2rgb`, `I16_RGB`, `p2rgb`).

use std::borrow::Cow;

use super::{Image, Mode};

impl Image {
    /// This image as RGB, bit for bit as Pillow's `convert("RGB")`: alpha is dropped without
    /// compositing, 16-bit grey is clipped (not scaled) to 255.
    #[must_use]
    pub fn to_rgb(&self) -> Cow<'_, Self> {
        if self.mode == Mode::Rgb {
            return Cow::Borrowed(self);
        }
        let pixels = to_rgb(self.mode, &self.pixels, self.palette.as_deref());
        let (width, height) = (self.width, self.height);
        let (transparency, permit) = (None, None);
        Cow::Owned(Self {
            mode: Mode::Rgb,
            width,
            height,
            pixels,
            palette: None,
            transparency,
            permit,
        })
    }
}

/// Converts interleaved pixels of any mode to RGB. Without a palette, palette indices read as grey.
#[must_use]
pub fn to_rgb(mode: Mode, pixels: &[u8], palette: Option<&super::Palette>) -> Vec<u8> {
    let grey = |value: u8| [value; 3];
    match mode {
        Mode::Rgb => pixels.to_vec(),
        Mode::Grey => pixels.iter().flat_map(|&value| grey(value)).collect(),
        Mode::Bilevel => {
            pixels.iter().flat_map(|&value| grey(if value == 0 { 0 } else { 255 })).collect()
        }
        Mode::Palette => match palette {
            Some(palette) => pixels.iter().flat_map(|&index| palette[usize::from(index)]).collect(),
            None => pixels.iter().flat_map(|&index| grey(index)).collect(),
        },
        Mode::GreyAlpha => {
            pixels.as_chunks().0.iter().flat_map(|&[value, _alpha]| grey(value)).collect()
        }
        Mode::Grey16 => {
            let clip = |&[low, high]: &[u8; 2]| grey(if high == 0 { low } else { 255 });
            pixels.as_chunks().0.iter().flat_map(clip).collect()
        }
        Mode::Rgba => {
            pixels.as_chunks().0.iter().flat_map(|&[r, g, b, _alpha]| [r, g, b]).collect()
        }
        Mode::Cmyk => pixels.as_chunks().0.iter().flat_map(|&pixel| cmyk_to_rgb(pixel)).collect(),
    }
}

/// (255 − ink)·(255 − black)/255, in Pillow's rounding.
fn cmyk_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = 255 - black;
    [cyan, magenta, yellow].map(|ink| light - multiply_255(ink, light))
}

/// round(a·b/255) as Pillow's `MULDIV255`; never above either argument.
pub(crate) const fn multiply_255(a: u8, b: u8) -> u8 {
    let product = a as u32 * b as u32 + 128;
    (((product >> 8) + product) >> 8) as u8
}
