//! Filter coefficients along one axis: Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`.

use std::f64::consts::PI;
use std::ops::Range;

use super::Filter;

/// 32 bits less 8 of the pixel and 2 for negative lobes and overshoot.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;
/// One half, in the accumulator's units.
pub(super) const ROUNDING: i32 = 1 << (PRECISION_BITS - 1);
/// The bit that splits a coefficient into two 16-bit halves for multiply-add instructions: the low
/// half is unsigned and must stay positive as a signed number.
pub(super) const SPLIT_BITS: u32 = 15;

/// What determines an [`Axis`]: output positions `first..first + count` of `output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AxisKey {
    pub(super) input: u32,
    pub(super) output: u32,
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) filter: Filter,
}

/// The input samples that make one output sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    /// First input position.
    pub(super) start: usize,
    /// Input positions, from `start`.
    pub(super) count: usize,
}

/// Four coefficients, split in halves.
pub(super) type Halves = [i32; 4];

/// Coefficients of consecutive output positions.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    taps: Vec<Tap>,
    /// Coefficients per position, padded with zeros to a multiple of four.
    stride: usize,
    real: Vec<f64>,
    fixed: Vec<i32>,
    /// Each group of four coefficients k as pairs of 16-bit halves, the earlier in the low bits:
    /// [high k₁k₀, high k₃k₂, low k₁k₀, low k₃k₂].
    halves: Vec<Halves>,
    /// If the length is unchanged: the input position of the first output position.
    copy_start: Option<usize>,
}

impl Axis {
    pub(super) fn new(key: AxisKey) -> Self {
        let input = f64::from(key.input);
        let scale = input / f64::from(key.output);
        let filter_scale = scale.max(1.0);
        let (support, kernel): (f64, fn(f64) -> f64) = match key.filter {
            Filter::Bicubic => (2.0 * filter_scale, bicubic),
            Filter::Bilinear => (filter_scale, bilinear),
            // The nearest neighbour is not a convolution; a box is what comes closest to it.
            Filter::Box | Filter::Nearest => (0.5 * filter_scale, mean),
            Filter::Hamming => (filter_scale, hamming),
            Filter::Lanczos => (3.0 * filter_scale, lanczos),
        };
        let inverse = 1.0 / filter_scale;
        // At most this many positions lie within the support, and never more than there are.
        let most = (support.ceil() as usize * 2 + 1).min(key.input as usize);
        let stride = most.next_multiple_of(4);
        let count = key.count as usize;
        let mut taps = Vec::with_capacity(count);
        let mut real = vec![0.0; count * stride];
        for (position, weights) in (key.first..).zip(real.chunks_exact_mut(stride)) {
            let center = (f64::from(position) + 0.5) * scale;
            // `as` truncates towards zero, as the C cast does, and stops at the type's bounds.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(key.input as usize);
            let tap = Tap { start, count: end - start };
            let weights = &mut weights[..tap.count];
            let mut total = 0.0;
            for (offset, weight) in weights.iter_mut().enumerate() {
                *weight = kernel(((offset + start) as f64 - center + 0.5) * inverse);
                total += *weight;
            }
            if total != 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= total);
            }
            taps.push(tap);
        }
        let fixed: Vec<i32> = real.iter().map(|&weight| fixed(weight)).collect();
        let halves = fixed.as_chunks().0.iter().map(|four| split(*four)).collect();
        let copy_start = (key.input == key.output).then_some(key.first as usize);
        Self { taps, stride, real, fixed, halves, copy_start }
    }

    /// Pillow skips a pass that does not change the length: output positions then copy consecutive
    /// input positions, from this one on.
    pub(super) const fn copy_start(&self) -> Option<usize> {
        self.copy_start
    }

    /// Output positions.
    pub(super) const fn len(&self) -> usize {
        self.taps.len()
    }

    /// Input positions that some output position reads.
    pub(super) fn needed(&self) -> Range<usize> {
        let start = self.taps.iter().map(|tap| tap.start).min().unwrap_or(0);
        let end = self.taps.iter().map(|tap| tap.start + tap.count).max().unwrap_or(0);
        start..end
    }

    /// Input range and fixed-point coefficients of every output position.
    pub(super) fn fixed(&self) -> impl Iterator<Item = (Tap, &[i32])> {
        self.taps.iter().copied().zip(self.fixed.chunks_exact(self.stride))
    }

    /// Input range and real coefficients of every output position.
    pub(super) fn real(&self) -> impl Iterator<Item = (Tap, &[f64])> {
        self.taps.iter().copied().zip(self.real.chunks_exact(self.stride))
    }

    /// Input range and halved coefficients of every output position, in groups of four.
    pub(super) fn halves(&self) -> impl Iterator<Item = (Tap, &[Halves])> {
        self.taps.iter().copied().zip(self.halves.chunks_exact(self.stride / 4))
    }
}

/// Rounds half away from zero, as `normalize_coeffs_8bpc`.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

/// `coefficient == (high << SPLIT_BITS) + low` with `0 <= low < 1 << SPLIT_BITS`.
fn split(four: [i32; 4]) -> Halves {
    let high = four.map(|coefficient| coefficient >> SPLIT_BITS);
    let low = four.map(|coefficient| coefficient & ((1 << SPLIT_BITS) - 1));
    let pair = |first: i32, second: i32| first & 0xffff | second << 16;
    [pair(high[0], high[1]), pair(high[2], high[3]), pair(low[0], low[1]), pair(low[2], low[3])]
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn mean(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        1.0
    } else if x >= 1.0 {
        0.0
    } else {
        let x = x * PI;
        x.sin() / x * (0.54 + 0.46 * x.cos())
    }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}
