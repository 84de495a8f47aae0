//! Weights that were stored in f16 and are trained in bf16.
//!
//! f16 has three bits of mantissa more than bf16. Between two bf16 numbers, f16 numbers therefore
//! have eight positions, and one in eight lies exactly half way. A network in training keeps f32
//! weights and computes with their bf16 rounding. For a weight half way, the smallest update
//! decides how it rounds: the first step would move one weight in sixteen by a whole bf16 unit,
//! whatever the learning rate, while the reference keeps the rounding of the file. Later updates of
//! one f16 unit would do the same to the weights at the next position, all at once.
//!
//! Loading a network for training or as a reference therefore spreads such weights, each by less
//! than half a unit of f16, which the rounding of the file has already done to them. The offset is
//! a hash of the tensor's name and the position in it, so that model and reference round alike, on
//! every device and at every start.

use tch::{Kind, TchError, Tensor};

/// Bits of an f32 mantissa below those of f16.
const BELOW_F16: u32 = 13;
/// Bits of an f32 mantissa below those of bf16.
const BELOW_BF16: u32 = 16;
/// Offsets stay below half a unit of f16, in units of f32.
const MOST: u64 = (1 << (BELOW_F16 - 1)) - 1;

/// The tensor with its numbers spread, as f32, and how many moved. The tensor itself if it was not
/// stored in f16: if some number needs more than f16's 10 bits of mantissa, or all need no more
/// than bf16's 7.
pub(super) fn spread(name: &str, stored: Tensor) -> Result<(Tensor, u64), TchError> {
    if !matches!(stored.kind(), Kind::Half | Kind::Float | Kind::Double) {
        return Ok((stored, 0));
    }
    let flat = stored.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let mut numbers = Vec::<f32>::try_from(&flat)?;
    // The set bits of all numbers: NaN and infinity have no bits to speak of.
    let bits = numbers.iter().filter(|number| number.is_finite());
    let lowest = bits.fold(0, |bits, number| bits | number.to_bits()).trailing_zeros();
    if !(BELOW_F16..BELOW_BF16).contains(&lowest) {
        return Ok((stored, 0));
    }
    let seed = hash(name.bytes().fold(0, |state, byte| hash(state ^ u64::from(byte))));
    let mut count = 0;
    for (position, number) in (0_u64..).zip(&mut numbers) {
        if number.is_finite() && *number != 0.0 {
            *number = f32::from_bits(moved(number.to_bits(), hash(seed ^ position)));
            count += 1;
        }
    }
    Ok((Tensor::f_from_slice(&numbers)?.f_view(stored.size().as_slice())?, count))
}

/// The bits of a number, at least one and up to [`MOST`] units of f32 further from zero or nearer
/// to it.
fn moved(bits: u32, random: u64) -> u32 {
    // At most 4095, which fits.
    let offset = u32::try_from(1 + (random >> 1) % MOST).unwrap_or(1);
    // The number is not zero and its low bits are, so it is larger than any offset.
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
        crate::shim::normal(7, &[count / 16, 16]).unwrap() * 0.05
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap()
    }

    fn unit_of_f16(number: f32) -> f32 {
        f32::from_bits(number.to_bits() & 0x7f80_0000) * 2f32.powi(-10)
    }

    fn is_half_way(number: f32) -> bool {
        number.to_bits() & 0xffff == 0x8000
    }

    #[test]
    fn f16_born_weights_move_by_less_than_half_a_unit() {
        let born = weights(65_536).to_kind(Kind::Half);
        for stored in [born.shallow_clone(), born.to_kind(Kind::Float)] {
            let (found, count) = spread("conv_in.weight", stored.shallow_clone()).unwrap();
            assert_eq!(found.size(), stored.size());
            assert_eq!(count, 65_536);
            let (mut half_way, mut up) = (0, 0);
            for (before, after) in values(&stored).into_iter().zip(values(&found)) {
                assert!((after - before).abs() < 0.5 * unit_of_f16(before), "{before} {after}");
                assert!(after != before && !is_half_way(after), "{before} {after}");
                half_way += u32::from(is_half_way(before));
                up += u32::from(after > before);
            }
            // One in eight was half way, and as many go up as down: no update of its own.
            assert!((7_500..9_000).contains(&half_way), "{half_way}");
            assert!((32_000..33_500).contains(&up), "{up}");
            // Those that were not half way keep their bf16 rounding.
            let same = found.to_kind(Kind::BFloat16).eq_tensor(&stored.to_kind(Kind::BFloat16));
            assert!(same.sum(Kind::Int64).int64_value(&[]) > 65_536 - i64::from(half_way) - 1);
            // The same at every start, other offsets under another name, and once is enough.
            assert_eq!(spread("conv_in.weight", stored.shallow_clone()).unwrap().0, found);
            assert_ne!(spread("conv_out.weight", stored).unwrap().0, found);
            assert_eq!(spread("conv_in.weight", found.shallow_clone()).unwrap(), (found, 0));
        }
    }

    #[test]
    fn weights_of_other_formats_stay() {
        let f32_born = weights(4096);
        let ones = Tensor::ones([64], (Kind::Half, tch::Device::Cpu));
        for stored in [f32_born.shallow_clone(), f32_born.to_kind(Kind::BFloat16), ones] {
            let (same, count) = spread("conv_in.weight", stored.shallow_clone()).unwrap();
            assert_eq!((values(&same), same.kind(), count), (values(&stored), stored.kind(), 0));
        }
        let odd = [0.0, -0.0, f32::INFINITY, 1.000_976_6];
        let (found, count) =
            spread("conv_in.bias", Tensor::from_slice(&odd).to_kind(Kind::Half)).unwrap();
        assert_eq!((&values(&found)[..3], count), (&odd[..3], 1));
    }
}
