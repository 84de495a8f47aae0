//! Whether all ranks hold the same weights, as equal gradients and equal updates leave them.

use anyhow::{Result, bail};
use nn::average::WeightAverage;
use nn::distributed::{DistributedError, World};
use nn::unet::UNet;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::Xxh3;

use crate::model::Networks;
use crate::run::ranks;

/// The networks whose weights are compared.
const NETWORKS: [&str; 3] = ["the model", "the reference model", "the moving average"];

/// Compares the weights of all ranks: those of the model, of the reference model and of the moving
/// average. Alone it reads nothing.
///
/// # Errors
/// [`DistributedError::Differ`] at all ranks if they differ.
pub(super) fn check(step: u64, networks: &Networks, world: &World) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    compare(step, &ranks::gather(world, checksums(networks))?)
}

/// The checksums of model, reference model and moving average.
fn checksums(networks: &Networks) -> Result<[u64; 3]> {
    let trained = checksum(networks.pipeline.unet.parameters())?;
    let reference = match &networks.reference_f32 {
        None => networks.reference.as_ref().map_or(&[][..], UNet::parameters),
        Some(whole) => whole.parameters(),
    };
    let average = networks.ema.as_ref().map_or(&[][..], WeightAverage::parameters);
    Ok([trained, checksum(reference)?, checksum(average)?])
}

/// Refuses checksums, those of each rank, that are not all equal.
fn compare(step: u64, ranks: &[[u64; 3]]) -> Result<()> {
    for (place, network) in NETWORKS.into_iter().enumerate() {
        let checksum = |rank: &[u64; 3]| rank.get(place).copied();
        let first = ranks.first().and_then(checksum);
        if let Some(other) = ranks.iter().position(|rank| checksum(rank) != first) {
            bail!(DistributedError::Differ(format!(
                "step {step}: rank {other} holds other weights of {network} than rank 0, so this \
                 checkpoint is not written\n\
                 hint: all ranks need the same kind of device and the same libtorch; start again \
                 to resume from the checkpoint before"
            )));
        }
    }
    Ok(())
}

/// A checksum of the bytes of tensors.
fn checksum(tensors: &[(String, Tensor)]) -> Result<u64> {
    let mut hasher = Xxh3::new();
    let mut bytes = Vec::new();
    for (_, tensor) in tensors {
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        bytes.resize(tensor.numel() * tensor.kind().elt_size_in_bytes(), 0);
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        hasher.update(&bytes);
    }
    Ok(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_of_a_weight_is_another_checksum() {
        let of = |numbers: &[f32]| {
            checksum(&[("weight".to_owned(), Tensor::from_slice(numbers))]).unwrap()
        };
        let next = f32::from_bits(2.0_f32.to_bits() + 1);
        assert_eq!(of(&[1.0, 2.0]), of(&[1.0, 2.0]));
        assert_ne!(of(&[1.0, 2.0]), of(&[1.0, next]));
        assert_ne!(of(&[1.0, 2.0]), of(&[2.0, 1.0]));
    }

    #[test]
    fn the_rank_and_the_network_that_differ_are_named() {
        assert!(compare(7, &[[1, 2, 3], [1, 2, 3], [1, 2, 3]]).is_ok());
        let text = compare(7, &[[1, 2, 3], [1, 2, 3], [1, 2, 4]]).unwrap_err().to_string();
        assert!(text.contains("the moving average"), "{text}");
        let text = compare(7, &[[1, 2, 3], [1, 2, 3], [1, 3, 3]]).unwrap_err().to_string();
        assert!(text.contains("step 7") && text.contains("rank 2"), "{text}");
        assert!(text.contains("the reference model"), "{text}");
    }
}
