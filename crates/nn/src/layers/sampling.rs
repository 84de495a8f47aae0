//! Downsampling and upsampling of images by a factor of two.
//!
//! huggingface/diffusers `src/diffusers/models/{downsampling,upsampling}.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::{Conv2d, ConvSizes};
use crate::shim::Stride;
use crate::weights::Loader;

/// A convolution with a stride of two.
#[derive(Debug)]
pub(crate) struct Downsample {
    conv: Conv2d,
    /// The autoencoder pads below and at the right only.
    asymmetric: bool,
}

impl Downsample {
    /// `name.conv`, padded by one on all sides, or with `asymmetric` below and at the right only.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        channels: i64,
        asymmetric: bool,
    ) -> Self {
        let padding = i64::from(!asymmetric);
        let conv = format!("{name}.conv");
        let stride = Stride { stride: 2, padding };
        let sizes = ConvSizes { input: channels, output: channels, kernel: 3, stride };
        Self { conv: Conv2d::load(loader, &conv, sizes), asymmetric }
    }

    /// `[B, C, H, W]` to `[B, C, ⌈H/2⌉, ⌈W/2⌉]` (with asymmetric padding the floor).
    pub(crate) fn forward(&self, x_BCHW: &Tensor) -> Result<Tensor, TchError> {
        if self.asymmetric {
            self.conv.forward(&x_BCHW.f_constant_pad_nd([0, 1, 0, 1])?)
        } else {
            self.conv.forward(x_BCHW)
        }
    }
}

/// Repeats every pixel in both directions, then convolves.
#[derive(Debug)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// `name.conv`.
    pub(crate) fn load(loader: &mut Loader<'_>, name: &str, channels: i64) -> Self {
        Self { conv: Conv2d::load_3x3(loader, &format!("{name}.conv"), channels, channels) }
    }

    /// `[B, C, H, W]` to `[B, C, 2·H, 2·W]`, or to the height and width of `size`.
    pub(crate) fn forward(
        &self,
        x_BCHW: &Tensor,
        size: Option<(i64, i64)>,
    ) -> Result<Tensor, TchError> {
        let (_, _, height, width) = x_BCHW.size4()?;
        let (height, width) = size.unwrap_or((2 * height, 2 * width));
        self.conv.forward(&x_BCHW.f_upsample_nearest2d([height, width], None, None)?)
    }
}
