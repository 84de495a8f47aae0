//! Two-dimensional convolution.
//!
//! `B` batch, `I` channels in, `O` channels out, `K` height and width of the kernel.

use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use super::{cast, upcasts};
use crate::device::{Precision, lacks_avx512};
use crate::lora::Adapter;
use crate::shim::{self, Stride};
use crate::weights::Loader;

/// oneDNN chooses a layout for images of this height and width. The layout works for other sizes
/// too.
const PACKED_FOR_SIDE: i64 = 32;

/// The size `[B, I, H, W]` of an input.
type InputSize = [i64; 4];

/// A square convolution with bias: `name.weight` `[O, I, K, K]` and `name.bias` `[O]`.
///
/// For inference on a CPU the weight is kept in oneDNN's own layout. PyTorch would convert it at
/// every call, which takes a third of the time of the deep layers of Stable Diffusion.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Weight,
    bias: Tensor,
    stride: Stride,
    adapter: Option<Adapter>,
}

/// The sizes of a [`Conv2d`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvSizes {
    /// Channels in.
    pub(crate) input: i64,
    /// Channels out.
    pub(crate) output: i64,
    /// Height and width of the kernel.
    pub(crate) kernel: i64,
    /// How it moves over the image.
    pub(crate) stride: Stride,
}

#[derive(Debug)]
enum Weight {
    /// As in the checkpoint.
    Plain(Tensor),
    /// In oneDNN's own layout, which an input of another size may replace. A lock guards it, so
    /// that several threads can use the layer.
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
    fn for_size(&mut self, size: InputSize, stride: Stride) -> Result<Tensor, TchError> {
        if self.size != size && layout_depends_on_size() {
            let plain = self.tensor.f_to_dense(None, false)?;
            self.tensor = shim::conv2d_pack(&plain, stride, &size)?;
            self.size = size;
        }
        Ok(self.tensor.shallow_clone())
    }
}

impl Conv2d {
    /// A kernel of 3×3 pixels with a padding of one, which keeps the size of the image.
    pub(crate) fn load_3x3(loader: &mut Loader<'_>, name: &str, input: i64, output: i64) -> Self {
        let stride = Stride { stride: 1, padding: 1 };
        Self::load(loader, name, ConvSizes { input, output, kernel: 3, stride })
    }

    pub(crate) fn load(loader: &mut Loader<'_>, name: &str, sizes: ConvSizes) -> Self {
        let ConvSizes { input, output, kernel, stride } = sizes;
        let weight_name = format!("{name}.weight");
        let weight = loader.tensor(&weight_name, &[output, input, kernel, kernel]);
        let bias = loader.tensor_cast_at_use(&format!("{name}.bias"), &[output]);
        let adapter = loader.adapter(name, &[output, input, kernel, kernel]);
        let of = |weight| Self { weight, bias, stride, adapter };
        if !loader.may_pack() {
            return of(Weight::Plain(weight));
        }
        let prepared = if loader.device() == Device::Cpu && can_pack(weight.kind()) {
            let size = [2, input, PACKED_FOR_SIDE, PACKED_FOR_SIDE];
            let packed = shim::conv2d_pack(&weight, stride, &size);
            packed.map(|tensor| Weight::Packed(Mutex::new(PackedWeight { tensor, size })))
        } else {
            shim::channels_last(&weight).map(Weight::Plain)
        };
        match prepared {
            Ok(prepared) => {
                let copied = matches!(prepared, Weight::Packed(..));
                drop(weight);
                if copied {
                    loader.release_pages(&weight_name);
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
        self.adapted(self.convolved(x)?, x)
    }

    /// The output with what the adapter adds to it, if there is one.
    fn adapted(&self, output: Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.adapter {
            None => Ok(output),
            Some(adapter) => adapter.add_convolved(&output, x, self.stride),
        }
    }

    /// Whether it has an adapter.
    pub(crate) fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    fn convolved(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (stride, bias) = (self.stride, &self.bias);
        match &self.weight {
            Weight::Packed(packed) => {
                let (batch, channels, height, width) = x.size4()?;
                // A poisoned lock is fine: a panic leaves weight and size both old, or both new.
                let packed = packed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .for_size([batch, channels, height, width], stride)?;
                shim::conv2d_packed(x, &packed, bias, stride)
            }
            Weight::Plain(plain) if upcasts(x) => shim::conv2d_upcast(x, plain, bias, stride),
            Weight::Plain(plain) => {
                let kind: Kind = x.kind();
                convolve(x, &cast(plain, kind)?, Some(&cast(bias, kind)?), stride)
            }
        }
    }

    /// [`Conv2d::forward`]; on a GPU without the bias `[O]`, which the caller adds in a later pass.
    pub(crate) fn forward_leaving_bias(
        &self,
        x: &Tensor,
    ) -> Result<(Tensor, Option<&Tensor>), TchError> {
        if let (Device::Cuda(_), Weight::Plain(plain)) = (x.device(), &self.weight) {
            let weight = cast(plain, x.kind())?;
            let (stride, padding) = ([self.stride.stride; 2], [self.stride.padding; 2]);
            let result = x.f_conv2d(&weight, None::<&Tensor>, stride, padding, [1, 1], 1)?;
            return Ok((self.adapted(result, x)?, Some(&self.bias)));
        }
        Ok((self.forward(x)?, None))
    }

    /// `stream + forward(x)`.
    pub(crate) fn add_to(&self, stream: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        super::add(stream, self.forward(x)?)
    }
}

/// A convolution with a weight of the dtype of `x`, `[B, I, H, W]`. On a CPU it calls oneDNN by name
/// where [`trains_in_nchw`] says why.
pub(crate) fn convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: Stride,
) -> Result<Tensor, TchError> {
    let (steps, padding) = ([stride.stride; 2], [stride.padding; 2]);
    if x.kind() == Kind::Float && trains_in_nchw(x.device(), Precision::F32) {
        x.f_mkldnn_convolution(weight, bias, padding, steps, [1, 1], 1)
    } else {
        x.f_conv2d(weight, bias, steps, padding, [1, 1], 1)
    }
}

/// True if oneDNN's layout for a weight depends on the size of the input: oneDNN converts a weight
/// in another layout at every call, which takes longer than the convolution. With AVX-512 one
/// layout serves all sizes.
fn layout_depends_on_size() -> bool {
    lacks_avx512() || !cfg!(target_arch = "x86_64")
}

/// True if the backward pass of a convolution is faster in contiguous NCHW than channels last
/// (NHWC): if oneDNN computes it in f32 on an x86 processor.
///
/// [`Conv2d::forward`] then calls oneDNN by name. PyTorch would choose one library for the network
/// in training and another for the reference, which records no gradients, and their last bits would
/// differ.
#[doc(alias = "NCHW")]
#[doc(alias = "channels_last")]
pub(crate) fn trains_in_nchw(device: Device, precision: Precision) -> bool {
    let in_f32 = precision == Precision::F32 || precision.upcasts_bf16(device);
    device == Device::Cpu && cfg!(target_arch = "x86_64") && in_f32
}

/// True if this CPU's oneDNN convolves this dtype without an upcast to f32. Tries each dtype once.
fn can_pack(kind: Kind) -> bool {
    static F32: OnceLock<bool> = OnceLock::new();
    static BF16: OnceLock<bool> = OnceLock::new();
    let works = || {
        let ones = |shape: &[i64]| Tensor::f_ones(shape, (kind, Device::Cpu));
        let stride = Stride { stride: 1, padding: 0 };
        let sum = || {
            let weight = shim::conv2d_pack(&ones(&[32, 32, 1, 1])?, stride, &[1, 32, 2, 2])?;
            let pixels = shim::channels_last(&ones(&[1, 32, 2, 2])?)?;
            shim::conv2d_packed(&pixels, &weight, &ones(&[32])?, stride)?
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
