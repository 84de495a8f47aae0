//! Two-dimensional convolution.

use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};

use super::cast;
use crate::shim;
use crate::weights::Loader;

/// oneDNN is told a picture of this many rows and columns to choose a layout for. Others work.
const PACKED_FOR_SIDE: i64 = 32;

/// A square convolution with bias: `name.weight` `[O, I, K, K]` and `name.bias` `[O]`.
///
/// For inference on a CPU the weight is kept in oneDNN's own layout, which PyTorch otherwise makes
/// anew at every call: a third of the time of the deep layers of Stable Diffusion.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    packed: bool,
}

impl Conv2d {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        input: i64,
        output: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Self {
        let weight = loader.tensor(&format!("{name}.weight"), &[output, input, kernel, kernel]);
        let bias = loader.tensor(&format!("{name}.bias"), &[output]);
        let plain = |weight, bias| Self { weight, bias, stride, padding, packed: false };
        if loader.trains() {
            return plain(weight, bias);
        }
        let packed = loader.device() == Device::Cpu && can_pack(weight.kind());
        let prepared = if packed {
            let side = PACKED_FOR_SIDE;
            shim::conv2d_pack(&weight, stride, padding, &[2, input, side, side])
        } else {
            shim::channels_last(&weight)
        };
        match prepared {
            Ok(weight) => Self { packed, ..plain(weight, bias) },
            Err(error) => {
                loader.fail(error);
                plain(weight, bias)
            }
        }
    }

    /// `[B, I, H, W]` to `[B, O, H', W']`, channels last.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.packed {
            return shim::conv2d_packed(x, &self.weight, &self.bias, self.stride, self.padding);
        }
        let kind: Kind = x.kind();
        x.f_conv2d(
            &cast(&self.weight, kind)?,
            Some(cast(&self.bias, kind)?),
            [self.stride; 2],
            [self.padding; 2],
            [1, 1],
            1,
        )
    }

    /// `stream + forward(x)`.
    pub(crate) fn add_to(&self, stream: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        super::add(stream, self.forward(x)?)
    }
}

/// True where this CPU's oneDNN convolves this type: bf16 needs AVX-512 or newer. Tried once each.
fn can_pack(kind: Kind) -> bool {
    static F32: OnceLock<bool> = OnceLock::new();
    static BF16: OnceLock<bool> = OnceLock::new();
    let works = || {
        let ones = |shape: &[i64]| Tensor::f_ones(shape, (kind, Device::Cpu));
        let sum = || {
            let weight = shim::conv2d_pack(&ones(&[32, 32, 1, 1])?, 1, 0, &[1, 32, 2, 2])?;
            let pixels = shim::channels_last(&ones(&[1, 32, 2, 2])?)?;
            shim::conv2d_packed(&pixels, &weight, &ones(&[32])?, 1, 0)?
                .f_double_value(&[0, 31, 1, 1])
        };
        sum().is_ok_and(|value: f64| value == 33.0)
    };
    match kind {
        Kind::Float => *F32.get_or_init(works),
        Kind::BFloat16 => *BF16.get_or_init(works),
        _ => false,
    }
}
