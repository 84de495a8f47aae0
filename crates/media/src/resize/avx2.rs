//! The convolution with AVX2.
//!
//! A coefficient has 23 bits, a 16-bit multiply-add takes 16, so every coefficient is split into a
//! high and a low half (`axis::split`) with a sum each; `(high << 15) + low` is then the exact sum,
//! because all of it is arithmetic modulo 2³². Vector results equal the scalar ones bit for bit.
#![allow(unsafe_code, reason = "vector intrinsics; each block says why it is sound")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::Plane;
use super::axis::{Axis, Halves, PRECISION_BITS, ROUNDING, SPLIT_BITS};
use super::scalar::{self, finish};

/// Bytes that one vector load of pixels reads.
const LOAD: usize = 16;
/// Rows convolved along x together: they share the coefficients' broadcast.
const ROWS: usize = 4;

/// See [`super::scalar::horizontal`]; for 3 and 4 channels. Needs AVX2.
pub(super) fn horizontal(source: Plane<'_>, rows: Range<usize>, axis: &Axis, output: &mut [u8]) {
    if rows.len() < ROWS {
        return scalar::horizontal(source, rows, axis, output);
    }
    let row_bytes = source.width * source.channels;
    let output_bytes = axis.len() * source.channels;
    // A load may read past the last sample it needs. Within the image that is harmless (the
    // coefficients there are zero); rows too near its end are copied to a padded buffer.
    let reach = row_bytes + 4 * source.channels + LOAD;
    let mut padded = Vec::new();
    for block in (0..rows.len()).step_by(ROWS) {
        // The last block overlaps the one before it rather than being shorter.
        let block = block.min(rows.len() - ROWS);
        let start = (rows.start + block) * row_bytes;
        let mut input = &source.data[start..];
        if input.len() < (ROWS - 1) * row_bytes + reach {
            padded.clear();
            padded.extend_from_slice(&input[..ROWS * row_bytes]);
            padded.resize((ROWS - 1) * row_bytes + reach, 0);
            input = &padded;
        }
        let output = &mut output[block * output_bytes..][..ROWS * output_bytes];
        // SAFETY: the caller has found AVX2; `input` holds all rows but the last and then `reach`
        // bytes; `output` holds `ROWS` rows.
        unsafe {
            if source.channels == 3 {
                horizontal_block::<3>(input, row_bytes, axis, output);
            } else {
                horizontal_block::<4>(input, row_bytes, axis, output);
            }
        }
    }
}

/// [`ROWS`] rows. A group of four pixels becomes 16-bit lanes [a₀b₀ a₁b₁ a₂b₂ a₃b₃ | c₀d₀ c₁d₁ c₂d₂
/// c₃d₃] (pixels a to d, channels 0 to 3), so a multiply-add of neighbours sums over pixels.
///
/// # Safety
/// Needs AVX2. `input` must hold `ROWS` rows, one group of four pixels and `LOAD` bytes more,
/// `output` `ROWS` rows of the axis's length.
#[target_feature(enable = "avx2")]
unsafe fn horizontal_block<const CHANNELS: usize>(
    input: &[u8],
    row_bytes: usize,
    axis: &Axis,
    output: &mut [u8],
) {
    const Z: i8 = -1; // a negative index makes a zero byte
    let spread = if CHANNELS == 3 {
        _mm256_setr_epi8(
            0, Z, 3, Z, 1, Z, 4, Z, 2, Z, 5, Z, Z, Z, Z, Z, // pixels a, b
            6, Z, 9, Z, 7, Z, 10, Z, 8, Z, 11, Z, Z, Z, Z, Z, // pixels c, d
        )
    } else {
        _mm256_setr_epi8(
            0, Z, 4, Z, 1, Z, 5, Z, 2, Z, 6, Z, 3, Z, 7, Z, // pixels a, b
            8, Z, 12, Z, 9, Z, 13, Z, 10, Z, 14, Z, 11, Z, 15, Z, // pixels c, d
        )
    };
    let high_lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    let low_lanes = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
    let rounding = _mm_set1_epi32(ROUNDING);
    let output_bytes = axis.len() * CHANNELS;
    for (position, (tap, groups)) in axis.halves().enumerate() {
        let mut high = [_mm256_setzero_si256(); ROWS];
        let mut low = [_mm256_setzero_si256(); ROWS];
        let start = tap.start * CHANNELS;
        let used = tap.count.div_ceil(4);
        debug_assert!(
            (ROWS - 1) * row_bytes + start + 4 * CHANNELS * (used - 1) + LOAD <= input.len()
        );
        for (group, halves) in groups[..used].iter().enumerate() {
            // SAFETY: `halves` is 16 bytes.
            let halves = unsafe { _mm_loadu_si128(halves.as_ptr().cast()) };
            let halves = _mm256_castsi128_si256(halves);
            let k_high = _mm256_permutevar8x32_epi32(halves, high_lanes);
            let k_low = _mm256_permutevar8x32_epi32(halves, low_lanes);
            for row in 0..ROWS {
                let place = row * row_bytes + start + 4 * CHANNELS * group;
                // SAFETY: the last group starts at most three pixels before its row's end, so the
                // load stays within what the caller guarantees.
                let pixels = unsafe { _mm_loadu_si128(input.as_ptr().add(place).cast()) };
                let samples = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pixels), spread);
                high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(samples, k_high));
                low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(samples, k_low));
            }
        }
        let sums: [__m128i; ROWS] = std::array::from_fn(|row| {
            let sum = _mm256_slli_epi32::<{ SPLIT_BITS as i32 }>(high[row]);
            let sum = _mm256_add_epi32(sum, low[row]);
            let pairs = (_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(_mm_add_epi32(pairs.0, rounding), pairs.1);
            _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(sum)
        });
        let bytes =
            _mm_packus_epi16(_mm_packs_epi32(sums[0], sums[1]), _mm_packs_epi32(sums[2], sums[3]));
        let mut pixels = [[0_u8; 4]; ROWS];
        // SAFETY: the array is 16 bytes.
        unsafe { _mm_storeu_si128(pixels.as_mut_ptr().cast(), bytes) };
        for (row, pixel) in pixels.iter().enumerate() {
            let place = row * output_bytes + position * CHANNELS;
            output[place..place + CHANNELS].copy_from_slice(&pixel[..CHANNELS]);
        }
    }
}

/// See [`super::scalar::vertical`]; for any number of channels. Needs AVX2.
pub(super) fn vertical(source: Plane<'_>, first_row: usize, axis: &Axis, output: &mut [u8]) {
    let row_bytes = source.width * source.channels;
    for ((tap, weights), ((_, groups), output)) in
        axis.fixed().zip(axis.halves().zip(output.chunks_exact_mut(row_bytes)))
    {
        let samples = &source.data[(tap.start - first_row) * row_bytes..][..tap.count * row_bytes];
        // SAFETY: the caller has found AVX2; `samples` is exactly `tap.count` rows of the length of
        // `output`, and `groups` covers `tap.count` coefficients.
        unsafe { vertical_row(samples, row_bytes, tap.count, groups, output) };
        for (column, value) in output.iter_mut().enumerate().skip(row_bytes / LOAD * LOAD) {
            let column = samples[column..].iter().step_by(row_bytes);
            *value = finish(column.zip(weights).map(|(&sample, &k)| i32::from(sample) * k));
        }
    }
}

/// One output row, as many whole vectors of columns as fit.
///
/// # Safety
/// Needs AVX2. `samples` must hold `count` rows of `row_bytes` bytes, `output` one, `groups` at
/// least `count` coefficients.
#[target_feature(enable = "avx2")]
unsafe fn vertical_row(
    samples: &[u8],
    row_bytes: usize,
    count: usize,
    groups: &[Halves],
    output: &mut [u8],
) {
    debug_assert!(samples.len() == count * row_bytes && groups.len() * 4 >= count);
    let rounding = _mm256_set1_epi32(ROUNDING);
    for column in (0..row_bytes / LOAD).map(|vector| vector * LOAD) {
        let mut high = [_mm256_setzero_si256(); 2];
        let mut low = [_mm256_setzero_si256(); 2];
        for row in (0..count).step_by(2) {
            // The last row of an odd count is paired with itself; its second coefficient is zero,
            // because coefficients are padded with zeros.
            let next = (row + 1).min(count - 1);
            // SAFETY: rows `row` and `next` exist, and `column + LOAD <= row_bytes`.
            let (first, second) = unsafe {
                let place = samples.as_ptr().add(column);
                (
                    _mm_loadu_si128(place.add(row * row_bytes).cast()),
                    _mm_loadu_si128(place.add(next * row_bytes).cast()),
                )
            };
            let group = &groups[row / 4];
            let k_high = _mm256_set1_epi32(group[row % 4 / 2]);
            let k_low = _mm256_set1_epi32(group[row % 4 / 2 + 2]);
            let pairs = [
                _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second)),
                _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second)),
            ];
            for half in 0..2 {
                high[half] = _mm256_add_epi32(high[half], _mm256_madd_epi16(pairs[half], k_high));
                low[half] = _mm256_add_epi32(low[half], _mm256_madd_epi16(pairs[half], k_low));
            }
        }
        let [left, right] = std::array::from_fn(|half| {
            let sum = _mm256_slli_epi32::<{ SPLIT_BITS as i32 }>(high[half]);
            let sum = _mm256_add_epi32(_mm256_add_epi32(sum, low[half]), rounding);
            _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(sum)
        });
        // Packing works within 128-bit lanes; the permutations put columns back in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(left, right));
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(words, words));
        // SAFETY: `column + LOAD <= row_bytes == output.len()`.
        unsafe {
            _mm_storeu_si128(output.as_mut_ptr().add(column).cast(), _mm256_castsi256_si128(bytes));
        }
    }
}
