//! The convolution without vector instructions, and the reference for those with.

use std::ops::Range;

use super::Plane;
use super::axis::{Axis, PRECISION_BITS, ROUNDING};

pub(super) fn horizontal(source: Plane<'_>, rows: Range<usize>, axis: &Axis, output: &mut [u8]) {
    let channels = source.channels;
    let row_bytes = source.width * channels;
    let rows = source.data.chunks_exact(row_bytes).skip(rows.start).take(rows.len());
    for (input, output) in rows.zip(output.chunks_exact_mut(axis.len() * channels)) {
        if let Some(start) = axis.copy_start() {
            output.copy_from_slice(&input[start * channels..][..output.len()]);
            continue;
        }
        for ((tap, weights), pixel) in axis.fixed().zip(output.chunks_exact_mut(channels)) {
            let samples = &input[tap.start * channels..][..tap.count * channels];
            for (channel, value) in pixel.iter_mut().enumerate() {
                let channel = samples[channel..].iter().step_by(channels);
                *value = finish(channel.zip(weights).map(|(&sample, &k)| i32::from(sample) * k));
            }
        }
    }
}

/// `first_row` is the axis's position of the first row of `source`.
pub(super) fn vertical(source: Plane<'_>, first_row: usize, axis: &Axis, output: &mut [u8]) {
    let row_bytes = source.width * source.channels;
    if let Some(start) = axis.copy_start() {
        let start = (start - first_row) * row_bytes;
        output.copy_from_slice(&source.data[start..][..output.len()]);
        return;
    }
    let mut sums = vec![0; row_bytes];
    for ((tap, weights), output) in axis.fixed().zip(output.chunks_exact_mut(row_bytes)) {
        sums.fill(ROUNDING);
        let rows = &source.data[(tap.start - first_row) * row_bytes..][..tap.count * row_bytes];
        for (row, &weight) in rows.chunks_exact(row_bytes).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (value, &sum) in output.iter_mut().zip(&sums) {
            *value = clip(sum);
        }
    }
}

/// Rounds and clips a sum of products to a pixel.
pub(super) fn finish(products: impl Iterator<Item = i32>) -> u8 {
    clip(products.fold(ROUNDING, |sum, product| sum + product))
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}
