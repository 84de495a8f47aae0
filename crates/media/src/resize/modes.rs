//! How each mode is resized: `Image.resize` of python-pillow/Pillow (13.0.0) `src/PIL/Image.py`.

use super::axis::{Axis, AxisKey};
use super::{Filter, Plane, Resizer, Window, WindowError, vertical_first};
use crate::decode::multiply_255;
use crate::decode::{Image, Mode};

impl Resizer {
    /// Resizes an image as `PIL.Image.resize(size, filter)`. Fails if `size` has a zero.
    pub fn resize(
        &mut self,
        image: &Image,
        size: (u32, u32),
        filter: Filter,
    ) -> Result<Image, WindowError> {
        self.resize_window(image, size, Window::whole(size.0, size.1), filter)
    }

    /// A window of the image resized to `size` (width, height): `resize(size, filter)` followed by
    /// a crop, without the pixels outside the crop. The mode stays: palettes and bilevel images use
    /// the nearest neighbour, alpha is premultiplied during the convolution.
    pub fn resize_window(
        &mut self,
        image: &Image,
        size: (u32, u32),
        window: Window,
        filter: Filter,
    ) -> Result<Image, WindowError> {
        if !window.fits(size) {
            return Err(WindowError { window, size });
        }
        Ok(self.resize_within(image, size, window, filter))
    }

    /// [`Resizer::resize_window`] for a window that is known to lie within the resized image.
    pub(crate) fn resize_within(
        &mut self,
        image: &Image,
        size: (u32, u32),
        window: Window,
        filter: Filter,
    ) -> Image {
        debug_assert!(window.fits(size));
        let source = Plane {
            data: image.pixels(),
            width: image.width() as usize,
            height: image.height() as usize,
            channels: image.mode().bytes_per_pixel(),
        };
        let unchanged = size == (image.width(), image.height());
        let pixels = match image.mode() {
            Mode::Bilevel | Mode::Palette => nearest(source, size, window),
            _ if filter == Filter::Nearest => nearest(source, size, window),
            Mode::GreyAlpha | Mode::Rgba if !unchanged => {
                let data = premultiply(source.data, source.channels);
                let source = Plane { data: &data, ..source };
                let mut pixels = self.convolve(source, size, window, filter);
                unpremultiply(&mut pixels, source.channels);
                pixels
            }
            Mode::Grey16 if !unchanged => grey_16(source, size, window, filter),
            Mode::Grey16 => nearest(source, size, window),
            _ => self.convolve(source, size, window, filter),
        };
        image.with_pixels(window.width, window.height, pixels)
    }
}

/// `ImagingScaleAffine`: positions are accumulated, not multiplied, and the rounding shows.
fn nearest(source: Plane<'_>, size: (u32, u32), window: Window) -> Vec<u8> {
    let positions = |input: usize, output: u32, first: u32, count: u32| {
        let step = input as f64 / f64::from(output);
        let mut position = step * 0.5;
        let mut positions = Vec::with_capacity(count as usize);
        for index in 0..first.saturating_add(count) {
            if index >= first {
                positions.push(position as usize);
            }
            position += step;
        }
        positions
    };
    let channels = source.channels;
    let columns = positions(source.width, size.0, window.left, window.width);
    let rows = positions(source.height, size.1, window.top, window.height);
    let mut pixels = Vec::with_capacity(columns.len() * rows.len() * channels);
    for &row in &rows {
        for &column in &columns {
            // Accumulation may end one step beyond the image, which Pillow leaves at zero.
            let inside = row < source.height && column < source.width;
            let start = (row * source.width + column) * channels;
            let pixel = if inside { &source.data[start..start + channels] } else { &[0; 4][..] };
            pixels.extend_from_slice(&pixel[..channels]);
        }
    }
    pixels
}

/// `La` from `LA`, `RGBa` from `RGBA`: the last channel is alpha.
fn premultiply(pixels: &[u8], channels: usize) -> Vec<u8> {
    let mut premultiplied = pixels.to_vec();
    for pixel in premultiplied.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colours)) = pixel.split_last_mut() {
            colours.iter_mut().for_each(|colour| *colour = multiply_255(*colour, alpha));
        }
    }
    premultiplied
}

/// The inverse of [`premultiply`], as far as 8 bits allow.
fn unpremultiply(pixels: &mut [u8], channels: usize) {
    for pixel in pixels.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colours)) = pixel.split_last_mut()
            && !matches!(alpha, 0 | 255)
        {
            let restore = |colour: u8| (255 * u32::from(colour) / u32::from(alpha)).min(255) as u8;
            colours.iter_mut().for_each(|colour| *colour = restore(*colour));
        }
    }
}

/// 16-bit grey: the same convolution in double precision, rounded after each pass.
fn grey_16(source: Plane<'_>, size: (u32, u32), window: Window, filter: Filter) -> Vec<u8> {
    let columns = Axis::new(AxisKey {
        input: source.width as u32,
        output: size.0,
        first: window.left,
        count: window.width,
        filter,
    });
    let rows = Axis::new(AxisKey {
        input: source.height as u32,
        output: size.1,
        first: window.top,
        count: window.height,
        filter,
    });
    let pixels: Vec<u16> =
        source.data.as_chunks().0.iter().map(|&c| u16::from_le_bytes(c)).collect();
    let (width, height) = (source.width, source.height);
    let output = if vertical_first((width, height), size) {
        let between = rows_16(&pixels, width, &rows);
        columns_16(&between, width, &columns)
    } else {
        let between = columns_16(&pixels, width, &columns);
        rows_16(&between, columns.len(), &rows)
    };
    output.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// Every row convolved along x.
fn columns_16(pixels: &[u16], width: usize, axis: &Axis) -> Vec<u16> {
    if let Some(start) = axis.copy_start() {
        return pixels
            .chunks_exact(width)
            .flat_map(|row| &row[start..][..axis.len()])
            .copied()
            .collect();
    }
    let mut output = Vec::with_capacity(pixels.len() / width * axis.len());
    for row in pixels.chunks_exact(width) {
        output.extend(axis.real().map(|(tap, weights)| finish_16(&row[tap.start..], weights, 1)));
    }
    output
}

/// Every column convolved along y.
fn rows_16(pixels: &[u16], width: usize, axis: &Axis) -> Vec<u16> {
    if let Some(start) = axis.copy_start() {
        return pixels[start * width..][..axis.len() * width].to_vec();
    }
    let mut output = Vec::with_capacity(width * axis.len());
    for (tap, weights) in axis.real() {
        let samples = &pixels[tap.start * width..][..tap.count * width];
        output.extend((0..width).map(|column| finish_16(&samples[column..], weights, width)));
    }
    output
}

/// A weighted sum, rounded half away from zero and clipped. Surplus weights are zero.
fn finish_16(samples: &[u16], weights: &[f64], step: usize) -> u16 {
    let samples = samples.iter().step_by(step);
    let sum = samples.zip(weights).fold(0.0, |sum, (&sample, &k)| sum + f64::from(sample) * k);
    let rounded = if sum >= 0.0 { sum + 0.5 } else { sum - 0.5 };
    rounded as u16
}
