//! Two-dimensional convolution.

use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use super::{cast, upcasts};
use crate::device::{Precision, lacks_avx512};
use crate::shim;
use crate::weights::Loader;

/// oneDNN is told a picture of this many rows and columns to choose a layout for. Others work.
const PACKED_FOR_SIDE: i64 = 32;

/// The size `[B, I, H, W]` of an input.
type InputSize = [i64; 4];

/// A square convolution with bias: `name.weight` `[O, I, K, K]` and `name.bias` `[O]`.
///
/// For inference on a CPU the weight is kept in oneDNN's own layout, which PyTorch otherwise makes
/// anew at every call: a third of the time of the deep layers of Stable Diffusion.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Weight,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

#[derive(Debug)]
enum Weight {
    /// As in the checkpoint.
    Plain(Tensor),
    /// In oneDNN's own layout, which an input of another size may replace. Behind a lock, so that a
    /// layer can be read from several threads.
    Packed(Mutex<PackedWeight>),
}

/// A weight in oneDNN's layout for inputs of one size.
#[derive(Debug)]
struct PackedWeight {
    tensor: Tensor,
    size: InputSize,
}

impl PackedWeight {
    /// The weight for inputs of `size`, in another layout if this processor's kernels want one.
    fn for_size(&mut self, size: InputSize, stride: i64, padding: i64) -> Result<Tensor, TchError> {
        if self.size != size && layout_depends_on_size() {
            let plain = self.tensor.f_to_dense(None, false)?;
            self.tensor = shim::conv2d_pack(&plain, stride, padding, &size)?;
            self.size = size;
        }
        Ok(self.tensor.shallow_clone())
    }
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
        let weight_name = format!("{name}.weight");
        let weight = loader.tensor(&weight_name, &[output, input, kernel, kernel]);
        let bias = loader.tensor(&format!("{name}.bias"), &[output]);
        let of = |weight| Self { weight, bias, stride, padding };
        if !loader.may_pack() {
            return of(Weight::Plain(weight));
        }
        let prepared = if loader.device() == Device::Cpu && can_pack(weight.kind()) {
            let size = [2, input, PACKED_FOR_SIDE, PACKED_FOR_SIDE];
            let packed = shim::conv2d_pack(&weight, stride, padding, &size);
            packed.map(|tensor| Weight::Packed(Mutex::new(PackedWeight { tensor, size })))
        } else {
            shim::channels_last(&weight).map(Weight::Plain)
        };
        match prepared {
            Ok(prepared) => {
                let copied = matches!(prepared, Weight::Packed(..));
                drop(weight);
                if copied {
                    loader.forget_pages(&weight_name);
                }
                of(prepared)
            }
            Err(error) => {
                loader.fail(error);
                of(Weight::Plain(weight))
            }
        }
    }

    /// `[B, I, H, W]` to `[B, O, H', W']`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (stride, padding, bias) = (self.stride, self.padding, &self.bias);
        match &self.weight {
            Weight::Packed(packed) => {
                let (batch, channels, height, width) = x.size4()?;
                // A panic inside leaves weight and size as they were, or both new.
                let packed = packed.lock().unwrap_or_else(PoisonError::into_inner).for_size(
                    [batch, channels, height, width],
                    stride,
                    padding,
                )?;
                shim::conv2d_packed(x, &packed, bias, stride, padding)
            }
            Weight::Plain(plain) if upcasts(x) => {
                shim::conv2d_upcast(x, plain, bias, stride, padding)
            }
            Weight::Plain(plain) => {
                let kind: Kind = x.kind();
                let (weight, bias) = (cast(plain, kind)?, cast(bias, kind)?);
                let (stride, padding) = ([stride; 2], [padding; 2]);
                if kind == Kind::Float && trains_in_nchw(x.device(), Precision::F32) {
                    x.f_mkldnn_convolution(&weight, Some(bias), padding, stride, [1, 1], 1)
                } else {
                    x.f_conv2d(&weight, Some(bias), stride, padding, [1, 1], 1)
                }
            }
        }
    }

    /// [`Conv2d::forward`], or on a GPU the convolution alone and the bias `[O]` for the caller to add.
    pub(crate) fn forward_leaving_bias(
        &self,
        x: &Tensor,
    ) -> Result<(Tensor, Option<&Tensor>), TchError> {
        if let (Device::Cuda(_), Weight::Plain(plain)) = (x.device(), &self.weight) {
            let weight = cast(plain, x.kind())?;
            let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
            let result = x.f_conv2d(&weight, None::<&Tensor>, stride, padding, [1, 1], 1)?;
            return Ok((result, Some(&self.bias)));
        }
        Ok((self.forward(x)?, None))
    }

    /// `stream + forward(x)`.
    pub(crate) fn add_to(&self, stream: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        super::add(stream, self.forward(x)?)
    }
}

/// True where oneDNN's layout for a weight changes with the size of the input: a weight in another
/// layout is converted at every call, which takes longer than the convolution. With AVX-512 one
/// layout serves all sizes.
fn layout_depends_on_size() -> bool {
    lacks_avx512() || !cfg!(target_arch = "x86_64")
}

/// True where the backward pass of a convolution is faster on images in rows, `[B, C, H, W]` as it
/// stands, than channels last: where oneDNN computes it in f32 on an x86 processor. It is then called by its
/// name, as PyTorch would choose one library for the network in training and another for its reference, which
/// records no gradients, and their last bits would differ.
pub(crate) fn trains_in_nchw(device: Device, precision: Precision) -> bool {
    let in_f32 = precision == Precision::F32 || precision.upcasts_bf16(device);
    device == Device::Cpu && cfg!(target_arch = "x86_64") && in_f32
}

/// True where this CPU's oneDNN convolves this type, and it is not widened. Tried once each.
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
        Kind::BFloat16 if !Precision::Bf16.upcasts_bf16(Device::Cpu) => *BF16.get_or_init(works),
        _ => false,
    }
}
