//! Weights that were born in f16 and are trained in bf16.
//!
//! f16 has three bits of mantissa more than bf16, so one in eight f16 numbers lies exactly half way
//! between two bf16 numbers. A network in training keeps f32 weights and computes with their bf16
//! rounding. Half way, the smallest update decides where a weight rounds to: the first step would move
//! one weight in sixteen by a whole bf16 unit, whatever the learning rate, and the reference, which
//! keeps the rounding of the file, would not see it.
//!
//! Such weights are moved off the tie when a network is loaded for training or as its reference, by less
//! than half a unit of f16: less than what the file's own rounding already did to them. The offset is a
//! hash of the tensor's name and the position in it, so that model and reference round alike, on every
//! device and at every start.

use tch::{Kind, TchError, Tensor};

/// Bits of an f32 mantissa below those of f16.
const BELOW_F16: u32 = 13;
/// The low half of an f32 that lies half way between two bf16 numbers.
const TIE: u32 = 0x8000;
/// Offsets stay below half a unit of f16, in units of f32.
const MOST: u64 = (1 << (BELOW_F16 - 1)) - 1;

/// The tensor with its ties broken, as f32, and how many there were; the tensor itself if it is not
/// born in f16 (some number needs more than f16's 10 bits of mantissa) or holds no tie.
///
/// # Errors
/// If there is not enough memory.
pub(super) fn break_ties(name: &str, stored: Tensor) -> Result<(Tensor, u64), TchError> {
    if !matches!(stored.kind(), Kind::Half | Kind::Float | Kind::Double) {
        return Ok((stored, 0));
    }
    let flat = stored.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let mut numbers = Vec::<f32>::try_from(&flat)?;
    if stored.kind() != Kind::Half && !numbers.iter().all(|number| is_f16_mantissa(*number)) {
        return Ok((stored, 0));
    }
    let seed = hash(name.bytes().fold(0, |state, byte| hash(state ^ u64::from(byte))));
    let mut count = 0;
    for (position, number) in (0_u64..).zip(&mut numbers) {
        let bits = number.to_bits();
        if bits & 0xffff == TIE && number.is_finite() {
            *number = f32::from_bits(moved(bits, hash(seed ^ position)));
            count += 1;
        }
    }
    if count == 0 {
        return Ok((stored, 0));
    }
    Ok((Tensor::f_from_slice(&numbers)?.f_view(stored.size().as_slice())?, count))
}

fn is_f16_mantissa(number: f32) -> bool {
    number.to_bits().trailing_zeros() >= BELOW_F16
}

/// The bits of a tie, up to [`MOST`] units of f32 further from zero or nearer to it, and at least one.
fn moved(bits: u32, random: u64) -> u32 {
    // At most 4095, which fits; the low half is 0x8000, so neither direction carries out of it.
    let offset = u32::try_from(1 + (random >> 1) % MOST).unwrap_or(1);
    if random & 1 == 0 { bits + offset } else { bits - offset }
}

/// SplitMix64's finaliser: <https://prng.di.unimi.it/splitmix64.c>.
fn hash(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(count: i64) -> Tensor {
        tch::manual_seed(7);
        Tensor::randn([count / 16, 16], (Kind::Float, tch::Device::Cpu)) * 0.05
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap()
    }

    fn unit_of_f16(number: f32) -> f32 {
        f32::from_bits(number.to_bits() & 0x7f80_0000) * 2f32.powi(-10)
    }

    #[test]
    fn one_eighth_of_f16_born_weights_moves_by_less_than_half_a_unit() {
        let born = weights(65_536).to_kind(Kind::Half);
        for stored in [born.shallow_clone(), born.to_kind(Kind::Float)] {
            let (broken, count) = break_ties("conv_in.weight", stored.shallow_clone()).unwrap();
            assert!((0.11..0.14).contains(&(count as f64 / 65_536.0)), "{count}");
            assert_eq!(broken.size(), stored.size());
            let mut moved = 0;
            let mut up = 0;
            for (before, after) in values(&stored).into_iter().zip(values(&broken)) {
                assert!((after - before).abs() < 0.5 * unit_of_f16(before), "{before} {after}");
                assert_ne!(after.to_bits() & 0xffff, TIE, "{before}");
                moved += u64::from(after != before);
                up += u64::from(after > before);
            }
            assert_eq!(moved, count);
            // As many up as down: no update of its own.
            assert!((0.45..0.55).contains(&(up as f64 / count as f64)), "{up} of {count}");
            // The same at every start, other offsets under another name, and once is enough.
            let again = break_ties("conv_in.weight", stored.shallow_clone()).unwrap().0;
            assert_eq!(again, broken);
            assert_ne!(break_ties("conv_out.weight", stored).unwrap().0, broken);
            assert_eq!(break_ties("conv_in.weight", broken.shallow_clone()).unwrap(), (broken, 0));
        }
    }

    #[test]
    fn weights_of_other_formats_stay() {
        let f32_born = weights(4096);
        // Of f32 numbers some are ties by chance: they stay, their rounding was another.
        let with_a_tie =
            Tensor::cat(&[&f32_born.flatten(0, -1), &Tensor::from_slice(&[1.00390625f32])], 0);
        for stored in [f32_born.shallow_clone(), with_a_tie, f32_born.to_kind(Kind::BFloat16)] {
            let (same, count) = break_ties("conv_in.weight", stored.shallow_clone()).unwrap();
            assert_eq!((values(&same), same.kind(), count), (values(&stored), stored.kind(), 0));
        }
        let odd = Tensor::from_slice(&[0.0f32, f32::NAN, f32::INFINITY, -0.0]).to_kind(Kind::Half);
        assert_eq!(break_ties("conv_in.bias", odd).unwrap().1, 0);
    }
}
