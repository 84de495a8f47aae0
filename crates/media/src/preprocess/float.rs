//! HPS's resize of a floating-point tensor, bit for bit as the published libtorch 2.11.0 computes
//! it with AVX-512: `upsample_bicubic2d` (align_corners = false) and `_upsample_bicubic2d_aa`.
//!
//! Source: pytorch/pytorch (2.11.0) `aten/src/ATen/native/cpu/UpSampleKernel.cpp`,
//! `aten/src/ATen/native/UpSample.h`. Which products its compiler fused into a sum (`mul_add`) and
//! which it rounded first was found by comparison and is noted at each position. The results here
//! are the same on every processor, but slow on one without the instruction. One fault is not
//! copied: libtorch's antialiased resize to a width of one pixel repeats its first value down the
//! column.

use super::{HpsResize, Normalize};
use crate::decode::Image;

/// A pixel is three channels and an unused fourth, which makes it a 128-bit vector.
const LANES: usize = 4;

/// Longer side to `size`, centred on black, normalised; `out` is (3, size, size), `image` RGB.
pub(super) fn resize_longest(
    image: &Image,
    size: usize,
    resize: HpsResize,
    normalize: &[Normalize; 3],
    out: &mut [f32],
) {
    let source = Source {
        pixels: image.pixels(),
        width: image.width() as usize,
        height: image.height() as usize,
    };
    let longest = source.width.max(source.height);
    // Computed as Python does: the scale in double precision, then the product, half to even.
    let scale = size as f64 / longest as f64;
    let scaled =
        |length: usize| ((length as f64 * scale).round_ties_even() as usize).clamp(1, size);
    let (width, height) = (scaled(source.width), scaled(source.height));
    let resized = dispatch(source, width, height, resize);

    let (left, top) = ((size - width) / 2, (size - height) / 2);
    for (channel, (plane, normalize)) in
        out.chunks_exact_mut(size * size).zip(normalize).enumerate()
    {
        plane.fill(normalize.apply(0.0));
        let rows = plane.chunks_exact_mut(size).skip(top);
        for (row, pixels) in rows.zip(resized.chunks_exact(width * LANES)) {
            for (value, pixel) in row[left..].iter_mut().zip(pixels.as_chunks::<LANES>().0) {
                *value = normalize.apply(pixel[channel]);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Source<'a> {
    pixels: &'a [u8],
    width: usize,
    height: usize,
}

impl Source<'_> {
    /// One row in [0, 1], three channels a pixel and one value more, so that a vector of
    /// [`LANES`] can be read at every pixel.
    #[inline(always)]
    fn read_row(self, row: usize, floats: &mut [f32]) {
        let bytes = &self.pixels[row * self.width * 3..][..self.width * 3];
        for (float, &byte) in floats.iter_mut().zip(bytes) {
            *float = f32::from(byte) / 255.0;
        }
    }

    fn row_buffer(self) -> Vec<f32> {
        vec![0.0; self.width * 3 + 1]
    }
}

/// Runs the resize compiled for fused multiply-add if the processor has it.
fn dispatch(source: Source<'_>, width: usize, height: usize, resize: HpsResize) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features.
        #[allow(unsafe_code, reason = "calls a function compiled for detected features")]
        return unsafe { resize_fused(source, width, height, resize) };
    }
    resize_any(source, width, height, resize)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn resize_fused(source: Source<'_>, width: usize, height: usize, resize: HpsResize) -> Vec<f32> {
    resize_any(source, width, height, resize)
}

#[inline(always)]
fn resize_any(source: Source<'_>, width: usize, height: usize, resize: HpsResize) -> Vec<f32> {
    if (width, height) == (source.width, source.height) {
        return copy(source);
    }
    match resize {
        HpsResize::Legacy => legacy(source, width, height),
        HpsResize::Antialias => antialias(source, width, height),
    }
}

fn copy(source: Source<'_>) -> Vec<f32> {
    let to_f32 = |&[r, g, b]: &[u8; 3]| [r, g, b, 0].map(|byte| f32::from(byte) / 255.0);
    source.pixels.as_chunks().0.iter().flat_map(to_f32).collect()
}

/// Four input positions of an output position, and their weights.
type CubicTap = ([usize; 4], [f32; 4]);

/// `HelperInterpCubic::compute_indices_weights` for float.
#[inline(always)]
fn cubic_taps(input: usize, output: usize) -> Vec<CubicTap> {
    let scale = input as f32 / output as f32;
    (0..output)
        .map(|position| {
            let source = scale.mul_add(position as f32 + 0.5, -0.5);
            let index = (source.floor() as isize).min(input as isize - 1);
            let t = (source - index as f32).clamp(0.0, 1.0);
            let positions =
                [-1, 0, 1, 2].map(|offset| (index + offset).clamp(0, input as isize - 1) as usize);
            let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer((1.0 - t) + 1.0)];
            (positions, weights)
        })
        .collect()
}

/// `cubic_convolution1`, |x| ≤ 1, a = −0.75; only the first product is fused.
#[inline(always)]
fn inner(x: f32) -> f32 {
    const A: f32 = -0.75;
    (A + 2.0).mul_add(x, -(A + 3.0)) * x * x + 1.0
}

/// `cubic_convolution2`, 1 < |x| < 2, a = −0.75; the last product is not fused.
#[inline(always)]
fn outer(x: f32) -> f32 {
    const A: f32 = -0.75;
    A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A) * x - 4.0 * A
}

/// Four rows at a time, each interpolated along x, then along y. A row is interpolated once and
/// kept while output rows use it.
#[inline(always)]
fn legacy(source: Source<'_>, width: usize, height: usize) -> Vec<f32> {
    let columns = cubic_taps(source.width, width);
    let mut floats = source.row_buffer();
    // The four rows of an output row are neighbours, so no two share a buffer.
    let mut slots: [(Option<usize>, Vec<f32>); 4] =
        std::array::from_fn(|_| (None, vec![0.0; width * LANES]));
    let mut output = vec![0.0; width * height * LANES];
    for ((rows, weights), output) in
        cubic_taps(source.height, height).iter().zip(output.chunks_exact_mut(width * LANES))
    {
        for &row in rows {
            let (held, values) = &mut slots[row % 4];
            if *held != Some(row) {
                source.read_row(row, &mut floats);
                interpolate_row(&floats, &columns, values);
                *held = Some(row);
            }
        }
        let lines = rows.map(|row| slots[row % 4].1.as_slice());
        for (position, value) in output.iter_mut().enumerate() {
            *value = weigh(lines.map(|line| line[position]), weights);
        }
    }
    output
}

#[inline(always)]
fn interpolate_row(floats: &[f32], columns: &[CubicTap], output: &mut [f32]) {
    for ((positions, weights), value) in columns.iter().zip(output.as_chunks_mut::<LANES>().0) {
        let pixels = positions.map(|position| vector(floats, position));
        for (lane, value) in value.iter_mut().enumerate() {
            *value = weigh(pixels.map(|pixel| pixel[lane]), weights);
        }
    }
}

/// The sum of four products; of the first two, libtorch's compiler rounds the second.
#[inline(always)]
fn weigh(samples: [f32; 4], weights: &[f32; 4]) -> f32 {
    let sum = samples[0].mul_add(weights[0], samples[1] * weights[1]);
    samples[3].mul_add(weights[3], samples[2].mul_add(weights[2], sum))
}

/// The pixel at `position` of a row from [`Source::read_row`], and one value more.
#[inline(always)]
fn vector(floats: &[f32], position: usize) -> [f32; LANES] {
    let mut vector = [0.0; LANES];
    vector.copy_from_slice(&floats[position * 3..position * 3 + LANES]);
    vector
}

/// `_compute_indices_min_size_weights_aa` for float: where single and double precision meet there,
/// they meet here.
struct SpreadAxis {
    /// First input position and number of positions, per output position.
    ranges: Vec<(usize, usize)>,
    stride: usize,
    weights: Vec<f32>,
}

impl SpreadAxis {
    #[inline(always)]
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f32 / output as f32;
        let support = if scale >= 1.0 { 2.0 * scale } else { 2.0 };
        let inverse = if scale >= 1.0 { (1.0 / f64::from(scale)) as f32 } else { 1.0 };
        let stride = support.ceil() as usize * 2 + 1;
        let mut weights = vec![0.0_f32; output * stride];
        let mut ranges = Vec::with_capacity(output);
        for (position, weights) in weights.chunks_exact_mut(stride).enumerate() {
            let center = (f64::from(scale) * (position as f64 + 0.5)) as f32;
            let start = (f64::from(center - support) + 0.5) as usize;
            let end = ((f64::from(center + support) + 0.5) as usize).min(input);
            let count = end.saturating_sub(start).clamp(1, stride);
            let mut total = 0.0;
            for (offset, weight) in weights[..count].iter_mut().enumerate() {
                let distance = f64::from((offset + start) as f32 - center) + 0.5;
                *weight = keys_cubic((distance * f64::from(inverse)) as f32);
                total += *weight;
            }
            if total != 0.0 {
                weights.iter_mut().take(count).for_each(|weight| *weight /= total);
            }
            ranges.push((start.min(input - 1), count));
        }
        Self { ranges, stride, weights }
    }

    /// Per output position: first input position, the weights whose products are rounded before
    /// they are added, and those whose products are fused. libtorch's loop starts with the first
    /// product, then takes four at a time, whose products are one vector, then the rest singly.
    fn taps(&self) -> impl Iterator<Item = (usize, &[f32], &[f32])> {
        let weights = self.weights.chunks_exact(self.stride);
        self.ranges.iter().zip(weights).map(|(&(start, count), weights)| {
            let (rounded, fused) = weights[..count].split_at(1 + (count - 1) / 4 * 4);
            (start, rounded, fused)
        })
    }
}

/// `HelperInterpCubic::aa_filter`; every product is fused.
#[inline(always)]
fn keys_cubic(x: f32) -> f32 {
    let x = x.abs();
    const A: f32 = -0.5;
    if x < 1.0 {
        ((A + 2.0).mul_add(x, -(A + 3.0)) * x).mul_add(x, 1.0)
    } else if x < 2.0 {
        A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A).mul_add(x, -4.0 * A)
    } else {
        0.0
    }
}

/// Along x into a temporary, then along y; a pass that changes nothing is skipped.
#[inline(always)]
fn antialias(source: Source<'_>, width: usize, height: usize) -> Vec<f32> {
    let between = if width == source.width {
        copy(source)
    } else {
        let columns = SpreadAxis::new(source.width, width);
        let mut floats = source.row_buffer();
        let mut between = vec![0.0; width * source.height * LANES];
        for (row, output) in between.chunks_exact_mut(width * LANES).enumerate() {
            source.read_row(row, &mut floats);
            for ((start, rounded, fused), value) in
                columns.taps().zip(output.as_chunks_mut::<LANES>().0)
            {
                let mut sum = [0.0; LANES];
                for (position, &weight) in (start..).zip(rounded) {
                    let pixel = vector(&floats, position);
                    sum = std::array::from_fn(|lane| sum[lane] + pixel[lane] * weight);
                }
                for (position, &weight) in (start + rounded.len()..).zip(fused) {
                    let pixel = vector(&floats, position);
                    sum = std::array::from_fn(|lane| pixel[lane].mul_add(weight, sum[lane]));
                }
                *value = sum;
            }
        }
        between
    };
    if height == source.height {
        return between;
    }
    let rows = SpreadAxis::new(source.height, height);
    let mut output = vec![0.0; width * height * LANES];
    for ((start, rounded, fused), output) in rows.taps().zip(output.chunks_exact_mut(width * LANES))
    {
        let mut lines = between[start * width * LANES..].chunks_exact(width * LANES);
        for (line, &weight) in lines.by_ref().take(rounded.len()).zip(rounded) {
            output.iter_mut().zip(line).for_each(|(sum, &value)| *sum += value * weight);
        }
        for (line, &weight) in lines.zip(fused) {
            output
                .iter_mut()
                .zip(line)
                .for_each(|(sum, &value)| *sum = value.mul_add(weight, *sum));
        }
    }
    output
}
