//! Latents of images, as a cache stores them.

use nn::NetworkError;
use nn::pipeline::Encoders;
use schemas::latents::Moments;
use tch::{Device, TchError, Tensor};

/// The latents of images, each of `[3, height, width]` numbers; with `flipped`, of the horizontally
/// flipped images.
pub(super) fn latents(
    encoders: &Encoders,
    images: &[&[f32]],
    (height, width): (i64, i64),
    flipped: bool,
) -> Result<Vec<Moments>, NetworkError> {
    let images = images
        .iter()
        .map(|image| Tensor::f_from_slice(image)?.f_view([3, height, width]))
        .collect::<Result<Vec<_>, TchError>>()?;
    let mut pixels_BCHW = Tensor::f_stack(&images, 0)?;
    if flipped {
        pixels_BCHW = pixels_BCHW.f_flip([3])?;
    }
    let posterior = encoders.vae()?.encode(&pixels_BCHW)?;
    // One copy from the device for the whole batch.
    let both = Tensor::f_stack(&[&posterior.mean_BCHW, &posterior.std()?], 1)?;
    let both = both.f_to_device(Device::Cpu)?.f_contiguous()?;
    (0..both.size5()?.0)
        .map(|index| {
            let both = both.f_get(index)?;
            Ok(Moments { mean: row(&both, 0)?, std: row(&both, 1)? })
        })
        .collect()
}

/// The numbers of one row of a batch, on the CPU.
pub(super) fn row(batch: &Tensor, index: i64) -> Result<Vec<f32>, TchError> {
    let row = batch.f_get(index)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    Vec::<f32>::try_from(&row.f_flatten(0, -1)?)
}
