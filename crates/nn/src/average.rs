//! Weights that follow others slowly: the moving average (EMA) of a network in training, and a
//! reference model that is mixed rather than copied.

use tch::{Device, Kind, TchError, Tensor};

use crate::device::Precision;
use crate::error::{ModelError, NetworkError};
use crate::weights::{Loader, Weights, WeightsError};

/// The name in error messages.
const NAME: &str = "moving average";

/// An f32 copy of weights by name, on any device. f32, because a small fraction of a difference is
/// below the rounding of half precision, which would never move.
#[derive(Debug)]
#[doc(alias = "ema")]
pub struct WeightAverage {
    parameters: Vec<(String, Tensor)>,
}

impl WeightAverage {
    /// An average that begins with the weights as they are.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn of(parameters: &[(String, Tensor)], device: Device) -> Result<Self, NetworkError> {
        let copy = |(name, value): &(String, Tensor)| -> Result<(String, Tensor), TchError> {
            Ok((name.clone(), value.f_detach()?.f_to_device_(device, Kind::Float, false, true)?))
        };
        Ok(Self { parameters: parameters.iter().map(copy).collect::<Result<_, _>>()? })
    }

    /// Reads an average of weights such as `like` from a file. Strict: every tensor must exist, have
    /// its shape and be finite.
    ///
    /// # Errors
    /// If the file holds something else, or the device is out of memory.
    pub fn load(
        weights: &Weights,
        like: &[(String, Tensor)],
        device: Device,
    ) -> Result<Self, ModelError> {
        let file = || weights.files().first().cloned().unwrap_or_default();
        let torch = |source: TchError| WeightsError::Torch { file: file(), source };
        let mut loader =
            Loader::new(weights, NAME, Device::Cpu, Precision::F32).refusing_non_finite();
        let stored: Vec<Tensor> =
            like.iter().map(|(name, value)| loader.tensor(name, &value.size())).collect();
        loader.finish(|_| false)?;
        // A copy, in the layout of the weights: the tensors are views of the mapped file.
        let average = Self::of(like, device).map_err(|error| match error {
            NetworkError::Torch(source) => torch(source),
            other => torch(TchError::Torch(other.to_string())),
        })?;
        for ((_, own), stored) in average.parameters.iter().zip(&stored) {
            own.shallow_clone().f_copy_(stored).map_err(torch)?;
        }
        Ok(average)
    }

    /// The numbers by name.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Moves every number by `amount` of the way to that of `parameters`, 0 to 1. Numbers that are
    /// equal stay what they are.
    ///
    /// # Errors
    /// If the tensors are not those of the average, or the device is out of memory.
    pub fn update(
        &mut self,
        parameters: &[(String, Tensor)],
        amount: f64,
    ) -> Result<(), NetworkError> {
        move_towards(&self.parameters, parameters, amount)
    }

    /// Exchanges the numbers of the average and of `parameters`, f32 both; twice restores every bit.
    ///
    /// # Errors
    /// If the tensors are not those of the average, or the device is out of memory. Some tensors
    /// may then be exchanged, and others not.
    pub fn swap(&mut self, parameters: &[(String, Tensor)]) -> Result<(), NetworkError> {
        check(&self.parameters, parameters)?;
        tch::no_grad(|| {
            for ((_, own), (_, other)) in self.parameters.iter().zip(parameters) {
                let kept =
                    other.f_detach()?.f_to_device_(own.device(), Kind::Float, false, true)?;
                copy(other, own)?;
                copy(own, &kept)?;
            }
            Ok(())
        })
    }
}

/// Moves every number of `own`, f32, by `amount` of the way to that of `others`, which may lie on
/// another device.
///
/// # Errors
/// If the lists hold other tensors, or the device is out of memory.
#[doc(alias = "lerp")]
pub fn move_towards(
    own: &[(String, Tensor)],
    others: &[(String, Tensor)],
    amount: f64,
) -> Result<(), NetworkError> {
    check(own, others)?;
    tch::no_grad(|| {
        for ((_, own), (_, other)) in own.iter().zip(others) {
            let other = other.f_detach()?.f_to_device_(own.device(), Kind::Float, false, false)?;
            // `data` leaves autograd's count of changes alone, as the fused optimizer does.
            let _ = own.data().f_lerp_(&other, amount)?;
        }
        Ok(())
    })
}

/// Copies every number of `others` into `own`, rounded to its dtype.
///
/// # Errors
/// If the lists hold other tensors.
pub fn copy_weights(
    own: &[(String, Tensor)],
    others: &[(String, Tensor)],
) -> Result<(), NetworkError> {
    check(own, others)?;
    tch::no_grad(|| {
        let pairs = own.iter().zip(others);
        pairs.into_iter().try_for_each(|((_, own), (_, other))| Ok(copy(own, other)?))
    })
}

fn copy(to: &Tensor, from: &Tensor) -> Result<(), TchError> {
    to.data().f_copy_(&from.f_detach()?)
}

/// Refuses lists of other tensors.
fn check(own: &[(String, Tensor)], others: &[(String, Tensor)]) -> Result<(), NetworkError> {
    let facts = |list: &[(String, Tensor)]| -> Vec<(String, Vec<i64>)> {
        list.iter().map(|(name, value)| (name.clone(), value.size())).collect()
    };
    match facts(own) == facts(others) {
        true => Ok(()),
        false => Err(NetworkError::Input {
            network: NAME,
            reason: "expected the tensors of the weights that it follows".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write_safetensors;

    fn weights(seed: u64) -> Vec<(String, Tensor)> {
        let shapes: [&[i64]; 3] = [&[4, 3], &[7], &[2, 3, 3, 3]];
        let make = |(index, shape): (usize, &&[i64])| {
            let value = crate::rng::normal(seed + index as u64, shape).unwrap();
            (format!("layer.{index}.weight"), value.set_requires_grad(true))
        };
        shapes.iter().enumerate().map(make).collect()
    }

    fn numbers(list: &[(String, Tensor)]) -> Vec<Vec<f32>> {
        list.iter()
            .map(|(_, value)| Vec::try_from(value.detach().flatten(0, -1)).unwrap())
            .collect()
    }

    #[test]
    fn an_average_follows_by_a_fraction() {
        let (start, end) = (weights(1), weights(10));
        let mut average = WeightAverage::of(&start, Device::Cpu).unwrap();
        average.update(&end, 0.25).unwrap();
        let (start, end, found) = (numbers(&start), numbers(&end), numbers(average.parameters()));
        for ((start, end), found) in
            start.iter().flatten().zip(end.iter().flatten()).zip(found.iter().flatten())
        {
            assert!((found - (0.75 * start + 0.25 * end)).abs() < 1e-6);
        }
        // Small fractions count as well.
        let before = numbers(average.parameters());
        average.update(&weights(10), 1e-4).unwrap();
        assert_ne!(numbers(average.parameters()), before);
    }

    #[test]
    fn equal_numbers_stay_and_the_whole_way_is_a_copy_bit_for_bit() {
        let (start, end) = (weights(1), weights(10));
        let mut average = WeightAverage::of(&start, Device::Cpu).unwrap();
        for amount in [1e-4, 0.3, 0.6, 1.0] {
            average.update(&start, amount).unwrap();
            assert_eq!(numbers(average.parameters()), numbers(&start), "{amount}");
        }
        average.update(&end, 1.0).unwrap();
        assert_eq!(numbers(average.parameters()), numbers(&end));
    }

    #[test]
    fn swapping_twice_restores_every_bit() {
        let (start, trained) = (weights(1), weights(10));
        let mut average = WeightAverage::of(&start, Device::Cpu).unwrap();
        average.swap(&trained).unwrap();
        assert_eq!(numbers(&trained), numbers(&start));
        assert_eq!(numbers(average.parameters()), numbers(&weights(10)));
        average.swap(&trained).unwrap();
        assert_eq!(numbers(&trained), numbers(&weights(10)));
        assert!(trained[0].1.requires_grad());
    }

    #[test]
    fn an_average_is_read_back_and_a_foreign_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("average.safetensors");
        let average = WeightAverage::of(&weights(1), Device::Cpu).unwrap();
        write_safetensors(&file, average.parameters()).unwrap();
        let stored = Weights::open(&file).unwrap();
        let mut read = WeightAverage::load(&stored, &weights(10), Device::Cpu).unwrap();
        assert_eq!(numbers(read.parameters()), numbers(average.parameters()));
        // It no longer needs the file, and can be changed.
        std::fs::remove_file(&file).unwrap();
        read.update(&weights(10), 0.5).unwrap();
        let mut other = weights(1);
        other.push(("more".to_owned(), Tensor::from(1.0f32)));
        assert!(WeightAverage::load(&stored, &other, Device::Cpu).is_err());
        assert!(read.update(&other, 0.5).is_err());
    }
}
