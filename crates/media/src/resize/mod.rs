//! Pillow's `Image.resize`, bit for bit, for each of its filters.
//!
//! Owns: the fixed-point convolution of 8-bit channels (a scalar and an AVX2 implementation with
//! equal results), the floating-point one of 16-bit grey, nearest neighbour for palettes, and
//! Pillow's rules about which mode is resized how. A [`Window`] of the output can be computed
//! alone, so a centre crop costs nothing outside the crop.
//!
//! Source: python-pillow/Pillow (13.0.0) `src/libImaging/Resample.c`, `Geometry.c`
//! (`ImagingScaleAffine`), `src/PIL/Image.py` (`resize`).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod axis;
mod modes;
mod scalar;

use std::sync::Arc;

use axis::{Axis, AxisKey};

/// The interpolation kernel; its support grows with the scale when an image shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Cubic convolution, a = −0.5, support 2.
    Bicubic,
    /// Triangle, support 1.
    Bilinear,
    /// The pixel at the position, whatever the scale.
    Nearest,
    /// The mean of the pixels, support 0.5.
    Box,
    /// Hamming window, support 1.
    Hamming,
    /// Truncated sinc, support 3.
    Lanczos,
}

/// A rectangle of the resized image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
}

impl Window {
    /// The whole of an image of this size.
    #[must_use]
    pub const fn whole(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// Whether it holds a pixel and lies within an image of this size.
    const fn fits(self, (width, height): (u32, u32)) -> bool {
        let right = self.left as u64 + self.width as u64;
        let bottom = self.top as u64 + self.height as u64;
        self.width > 0 && self.height > 0 && right <= width as u64 && bottom <= height as u64
    }
}

/// A window that is empty or reaches beyond the resized image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("window {window:?} does not lie within the resized image of {}x{}", size.0, size.1)]
pub struct WindowError {
    window: Window,
    size: (u32, u32),
}

/// Interleaved 8-bit channels of an image, as the convolution sees them.
#[derive(Clone, Copy)]
struct Plane<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
    channels: usize,
}

/// Resizes images, keeping filter coefficients and buffers between calls. One per thread.
#[derive(Debug)]
pub struct Resizer {
    /// Most recently used first.
    axes: Vec<(AxisKey, Arc<Axis>)>,
    /// The output of the first pass.
    between: Vec<u8>,
    simd: bool,
}

/// Coefficient tables kept: two per image size, and datasets mix few sizes.
const KEPT_AXES: usize = 16;

impl Default for Resizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Resizer {
    /// Uses AVX2 if the processor has it.
    #[must_use]
    pub fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        let simd = is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let simd = false;
        Self { axes: Vec::new(), between: Vec::new(), simd }
    }

    /// Never uses vector instructions; the results are the same.
    #[must_use]
    pub fn scalar() -> Self {
        Self { simd: false, ..Self::new() }
    }

    fn axis(&mut self, key: AxisKey) -> Arc<Axis> {
        let axis = match self.axes.iter().position(|(kept, _)| *kept == key) {
            Some(place) => self.axes.remove(place).1,
            None => Arc::new(Axis::new(key)),
        };
        self.axes.insert(0, (key, Arc::clone(&axis)));
        self.axes.truncate(KEPT_AXES);
        axis
    }

    /// Two passes over 8-bit channels; `window` lies within `size`. A pass whose length is
    /// unchanged only copies.
    fn convolve(
        &mut self,
        source: Plane<'_>,
        size: (u32, u32),
        window: Window,
        filter: Filter,
    ) -> Vec<u8> {
        let columns = self.axis(AxisKey {
            input: source.width as u32,
            output: size.0,
            first: window.left,
            count: window.width,
            filter,
        });
        let rows = self.axis(AxisKey {
            input: source.height as u32,
            output: size.1,
            first: window.top,
            count: window.height,
            filter,
        });
        let (width, height) = (window.width as usize, window.height as usize);
        let mut output = vec![0; width * height * source.channels];
        let mut between = std::mem::take(&mut self.between);
        if vertical_first((source.width, source.height), size) {
            let between = prefix(&mut between, source.width * height * source.channels);
            self.vertical(source, 0, &rows, between);
            let halfway = Plane { data: between, height, ..source };
            self.horizontal(halfway, 0..height, &columns, &mut output);
        } else {
            let needed = rows.needed();
            let between = prefix(&mut between, width * needed.len() * source.channels);
            self.horizontal(source, needed.clone(), &columns, between);
            let halfway = Plane { data: between, width, height: needed.len(), ..source };
            self.vertical(halfway, needed.start, &rows, &mut output);
        }
        self.between = between;
        output
    }

    /// Convolves rows `rows` of `source` along x into consecutive rows of `output`.
    fn horizontal(
        &self,
        source: Plane<'_>,
        rows: std::ops::Range<usize>,
        axis: &Axis,
        output: &mut [u8],
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.simd && matches!(source.channels, 3 | 4) && axis.copy_start().is_none() {
            return avx2::horizontal(source, rows, axis, output);
        }
        scalar::horizontal(source, rows, axis, output);
    }

    /// Convolves all columns of `source` along y; its first row is the axis's position `first_row`.
    fn vertical(&self, source: Plane<'_>, first_row: usize, axis: &Axis, output: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if self.simd && axis.copy_start().is_none() {
            return avx2::vertical(source, first_row, axis, output);
        }
        scalar::vertical(source, first_row, axis, output);
    }
}

/// Pillow 13 runs the vertical pass first if the resize removes more than twice as many rows as
/// columns; earlier versions did so for images more than a hundred times taller than wide, or
/// never. The order shows in the last bit, for CLIP's recipes at ratios above about 1:2.
const fn vertical_first(input: (usize, usize), output: (u32, u32)) -> bool {
    let columns_removed = input.0 as i64 - output.0 as i64;
    let rows_removed = input.1 as i64 - output.1 as i64;
    rows_removed > 0 && rows_removed > 2 * columns_removed
}

/// The first `length` bytes of a buffer that grows to hold them.
fn prefix(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

impl std::fmt::Display for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Bicubic => "bicubic",
            Self::Bilinear => "bilinear",
            Self::Nearest => "nearest",
            Self::Box => "box",
            Self::Hamming => "hamming",
            Self::Lanczos => "lanczos",
        })
    }
}
