//! Random numbers that depend on a seed alone, not on the device, the batch or what ran before.

use tch::Tensor;

use crate::error::NetworkError;
use crate::shim;

/// Standard normal noise of any shape, f32 on the CPU: bit for bit that of `torch.randn(shape,
/// generator=torch.Generator("cpu").manual_seed(seed))`. Like torch's generator, it uses the low 32
/// bits of the seed.
pub fn normal(seed: u64, shape: &[i64]) -> Result<Tensor, NetworkError> {
    Ok(shim::normal(seed, shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by torch 2.11.0, which fills fewer than 16 numbers in another way.
    #[test]
    fn numbers_are_those_of_python() {
        let few = Vec::<f32>::try_from(normal(0, &[4]).unwrap()).unwrap();
        assert_eq!(few, [1.540_996_1, -0.293_428_9, -2.178_789_4, 0.568_431_26]);
        let many = Vec::<f32>::try_from(normal(0, &[4, 5]).unwrap().flatten(0, -1)).unwrap();
        assert_eq!(many[..4], [-1.125_839_8, -1.152_360_2, -0.250_578_58, -0.433_878_8]);
        assert_eq!(normal(7, &[3, 4]).unwrap(), normal(7, &[3, 4]).unwrap());
        assert_eq!(normal(5, &[3, 4]).unwrap(), normal(5 + (1 << 32), &[3, 4]).unwrap());
        assert!(normal(0, &[-1]).is_err());
    }
}
