//! The gradients of all parameters in one tensor, so that ranks sum them in few large pieces.

use tch::{Kind, Tensor};

use crate::distributed::{DistributedError, World};
use crate::error::NetworkError;
use crate::shim;

/// Bytes of gradients that are summed at a time, `bucket_cap_mb` of PyTorch's
/// `DistributedDataParallel`.
const BUCKET_BYTES: i64 = 25 << 20;
/// Each gradient begins at a multiple of so many numbers, 64 bytes, as vector instructions like it.
const ALIGNMENT: i64 = 16;

/// The gradients of parameters in one f32 tensor.
#[derive(Debug)]
#[doc(alias = "gradient_as_bucket_view")]
pub struct FlatGradients {
    flat: Tensor,
    /// The first number of each bucket, and the end of the last one.
    bounds: Vec<i64>,
}

impl FlatGradients {
    /// Makes the gradient of every parameter a part of one tensor, with the parameter's strides. A
    /// gradient that a parameter has keeps its value, the others are zero. Backward passes add to
    /// them in place, until the gradients are dropped.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn attach(parameters: &[(String, Tensor)]) -> Result<Self, NetworkError> {
        tch::no_grad(|| {
            let mut starts = Vec::with_capacity(parameters.len());
            let (mut end, mut bounds) = (0, vec![0]);
            for (_, parameter) in parameters {
                starts.push(end);
                end += (numbers(parameter) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
                let last = bounds.last().copied().unwrap_or(0);
                if (end - last) * 4 >= BUCKET_BYTES {
                    bounds.push(end);
                }
            }
            if bounds.last() != Some(&end) {
                bounds.push(end);
            }
            let device = parameters.first().map_or(tch::Device::Cpu, |(_, first)| first.device());
            let flat = Tensor::f_zeros([end], (Kind::Float, device))?;
            let mut views = Vec::with_capacity(parameters.len());
            for ((_, parameter), start) in parameters.iter().zip(starts) {
                let mut view = flat.f_as_strided(parameter.size(), parameter.stride(), start)?;
                let gradient = parameter.grad();
                if gradient.defined() {
                    view.f_copy_(&gradient)?;
                }
                views.push(view);
            }
            let parameters: Vec<Tensor> =
                parameters.iter().map(|(_, parameter)| parameter.shallow_clone()).collect();
            shim::set_gradients(&parameters, &views)?;
            Ok(Self { flat, bounds })
        })
    }

    /// Replaces the gradients by their sums over all ranks: all buckets are on their way at once.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn all_reduce(self, world: &World) -> Result<(), DistributedError> {
        let failed = |error: tch::TchError| DistributedError::Failed {
            operation: "the sum of gradients",
            reason: error.to_string(),
        };
        let mut pending = Vec::with_capacity(self.bounds.len());
        // From the end, which the backward pass finishes first.
        for bounds in self.bounds.windows(2).rev() {
            let [start, end] = bounds else { continue };
            let bucket = self.flat.f_narrow(0, *start, end - start).map_err(failed)?;
            pending.push(world.start_all_reduce(&bucket)?);
        }
        pending.into_iter().try_for_each(crate::distributed::Pending::wait)
    }
}

fn numbers(tensor: &Tensor) -> i64 {
    // A tensor in memory has fewer numbers than i64 counts.
    i64::try_from(tensor.numel()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn parameters() -> Vec<(String, Tensor)> {
        let shapes: [&[i64]; 4] = [&[3, 5], &[7], &[2, 3, 3, 3], &[1]];
        shapes
            .into_iter()
            .enumerate()
            .map(|(index, shape)| {
                let value = shim::normal(index as u64, shape).unwrap();
                let value = match shape.len() {
                    4 => shim::channels_last(&value).unwrap(),
                    _ => value,
                };
                (index.to_string(), value.set_requires_grad(true))
            })
            .collect()
    }

    fn backward(parameters: &[(String, Tensor)], pass: f64) {
        let terms = parameters.iter().map(|(_, value)| (value * pass).sin().sum(Kind::Float));
        terms.sum::<Tensor>().backward();
    }

    fn gradients(parameters: &[(String, Tensor)]) -> Vec<Tensor> {
        parameters.iter().map(|(_, value)| value.grad()).collect()
    }

    #[test]
    fn gradients_in_one_tensor_are_those_apart_bit_for_bit() {
        let (apart, flat) = (parameters(), parameters());
        for passes in 1..4 {
            let attached = FlatGradients::attach(&flat).unwrap();
            for pass in 0..passes {
                backward(&apart, 1.5 + f64::from(pass));
                backward(&flat, 1.5 + f64::from(pass));
            }
            let (expected, found) = (gradients(&apart), gradients(&flat));
            for ((expected, found), (_, parameter)) in expected.iter().zip(&found).zip(&flat) {
                assert_eq!(found, expected);
                assert_eq!(found.stride(), parameter.stride());
            }
            // In place: the sum over the ranks is that of the parameters' gradients.
            let _ = attached.flat.shallow_clone().f_mul_scalar_(2.0).unwrap();
            assert_eq!(flat[2].1.grad(), expected[2].shallow_clone() * 2.0);
            attached.all_reduce(&World::alone()).unwrap();
            crate::optimizer::zero_grad(&apart).unwrap();
            crate::optimizer::zero_grad(&flat).unwrap();
            assert!(!flat[0].1.grad().defined());
        }
    }

    #[test]
    fn a_gradient_that_is_there_stays_and_another_is_zero() {
        let parameters = parameters();
        parameters[1].1.sum(Kind::Float).backward();
        let flat = FlatGradients::attach(&parameters).unwrap();
        assert_eq!(parameters[1].1.grad(), Tensor::ones([7], (Kind::Float, Device::Cpu)));
        assert_eq!(parameters[0].1.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(flat.bounds, [0, 16 + 16 + 64 + 16]);
    }
}
