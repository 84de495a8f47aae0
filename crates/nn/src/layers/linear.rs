//! Linear layers, the activations computed in the same pass, and the MLP.
//!
//! For bf16 inference on a CPU the weights are kept in oneDNN's own layout, which is about twice as
//! fast on processors with AMX: converting the weights at every call and passing over each result
//! again for the activation takes as long as the products themselves. In f32 the plain product is
//! as fast, and the weight can stay the memory of its file.

use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};

use super::{cast, upcasts};
use crate::clip::Activation;
use crate::device::Precision;
use crate::lora::Adapter;
use crate::shim;
pub(crate) use crate::shim::After;
use crate::weights::Loader;

/// oneDNN chooses a layout for inputs of this many rows, a batch of eight images. It works for
/// others too.
const PACKED_FOR_ROWS: i64 = 2048;

/// The factor inside QuickGELU.
const QUICK_GELU: f64 = 1.702;

/// `scale · x · weightᵀ + bias`, with the weight as PyTorch keeps it, `[out, in]`, or packed.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    /// One, unless the layer was loaded with a factor. A bf16 weight on the CPU already contains
    /// it.
    scale: f64,
    packed: bool,
    /// What training adds to a frozen weight (LoRA). A packed layer has none.
    adapter: Option<Adapter>,
}

impl Linear {
    /// The layer `name.weight`, `name.bias`.
    pub(crate) fn load(loader: &mut Loader<'_>, name: &str, input: i64, output: i64) -> Self {
        Self::load_scaled(loader, name, input, output, 1.0)
    }

    /// The layer `name.weight`, which has no bias.
    pub(crate) fn load_without_bias(
        loader: &mut Loader<'_>,
        name: &str,
        input: i64,
        output: i64,
    ) -> Self {
        let weight = loader.tensor(&format!("{name}.weight"), &[output, input]);
        let adapter = loader.adapter(name, &[output, input]);
        Self { adapter, ..Self::new(loader, weight, None) }
    }

    /// The layer `name.weight` `[out, in, 1, 1]`, `name.bias`: a 1×1 convolution.
    pub(crate) fn load_convolution(
        loader: &mut Loader<'_>,
        name: &str,
        input: i64,
        output: i64,
    ) -> Self {
        let weight = loader.tensor(&format!("{name}.weight"), &[output, input, 1, 1]);
        let bias = loader.tensor(&format!("{name}.bias"), &[output]);
        let adapter = loader.adapter(name, &[output, input, 1, 1]);
        Self { adapter, ..Self::new(loader, weight.flatten(1, -1), Some(bias)) }
    }

    /// Two layers of `output` columns each, over the upper and the lower rows of `name.weight` and
    /// `name.bias`.
    pub(crate) fn load_halves(
        loader: &mut Loader<'_>,
        name: &str,
        input: i64,
        output: i64,
    ) -> [Self; 2] {
        let weight = loader.tensor(&format!("{name}.weight"), &[2 * output, input]);
        let bias = loader.tensor(&format!("{name}.bias"), &[2 * output]);
        let adapter = loader.adapter(name, &[2 * output, input]);
        // The loader returns the shapes that it was asked for, so the rows exist.
        [0, output].map(|start| {
            let rows = |tensor: &Tensor| tensor.narrow(0, start, output);
            let adapter = adapter.as_ref().map(|adapter| adapter.of_rows(start, output));
            Self { adapter, ..Self::new(loader, rows(&weight), Some(rows(&bias))) }
        })
    }

    /// Whether it has an adapter.
    pub(crate) fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// [`Linear::load`] with its product, but not its bias, times `scale`.
    fn load_scaled(
        loader: &mut Loader<'_>,
        name: &str,
        input: i64,
        output: i64,
        scale: f64,
    ) -> Self {
        let adapter = loader.adapter(name, &[output, input]);
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let bias = Some(loader.tensor(&bias, &[output]));
        let bf16 = (loader.device(), loader.precision()) == (Device::Cpu, Precision::Bf16);
        if scale == 1.0 || !bf16 || !loader.may_pack() {
            let weight = loader.tensor(&weight, &[output, input]);
            return Self { scale, adapter, ..Self::new(loader, weight, bias) };
        }
        // Scaling before rounding rounds only once.
        let weight = loader.tensor_in(&weight, &[output, input], Kind::Float) * scale;
        let weight = weight.to_kind(loader.precision().kind());
        Self::new(loader, weight, bias)
    }

    /// A layer of tensors at hand, in the loader's precision and on its device.
    pub(crate) fn new(loader: &mut Loader<'_>, weight: Tensor, bias: Option<Tensor>) -> Self {
        if can_pack(loader) {
            match shim::linear_pack(&weight, PACKED_FOR_ROWS) {
                Ok(weight) => {
                    return Self { weight, bias, scale: 1.0, packed: true, adapter: None };
                }
                Err(error) => loader.fail(error),
            }
        }
        Self { weight, bias, scale: 1.0, packed: false, adapter: None }
    }

    /// `[.., I]` to `[.., O]`. The input must be contiguous: for another one PyTorch computes one
    /// product, or one for each row of the batch, depending on whether it records gradients. The
    /// reference would then differ from the network in training in its last bits.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.forward_then(input, After::Nothing)
    }

    /// [`Linear::forward`], then an activation, which a packed layer computes in the same pass.
    pub(crate) fn forward_then(&self, input: &Tensor, after: After) -> Result<Tensor, TchError> {
        if self.packed {
            return shim::linear_packed(input, &self.weight, self.bias.as_ref(), after);
        }
        let mut result = match &self.bias {
            Some(bias) if self.scale != 1.0 => {
                shim::linear_scaled(input, &self.weight, bias, self.scale)?
            }
            bias if upcasts(input) => shim::linear_upcast(input, &self.weight, bias.as_ref())?,
            bias => {
                let kind = input.kind();
                let bias = bias.as_ref().map(|bias| cast(bias, kind)).transpose()?;
                input.f_linear(&cast(&self.weight, kind)?, bias.as_ref())?
            }
        };
        if let Some(adapter) = &self.adapter {
            result = adapter.add_to(&result, input)?;
        }
        match after {
            After::Nothing => Ok(result),
            After::Gelu if result.requires_grad() => result.f_gelu("none"),
            After::Gelu => result.f_gelu_("none"),
            After::GeluTanh if result.requires_grad() => result.f_gelu("tanh"),
            After::GeluTanh => result.f_gelu_("tanh"),
            After::Swish => super::silu(result),
        }
    }

    /// `stream + forward(input)`, in place. oneDNN can add as well, but measures slower.
    pub(crate) fn add_to(&self, mut stream: Tensor, input: &Tensor) -> Result<Tensor, TchError> {
        stream.f_add_(&self.forward(input)?)
    }
}

/// An MLP, the feed-forward network of a transformer block: a layer up to the hidden width, an
/// activation, and a layer down.
///
/// QuickGELU is computed as SiLU, which has kernels of one pass: with y = 1.702 x, x·σ(1.702 x) is
/// y·σ(y) / 1.702. The layer up therefore multiplies by 1.702, and the layer down divides by it.
#[doc(alias = "feed-forward")]
#[derive(Debug)]
pub(crate) struct Mlp {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// The layers up and down by their `names`, between `width` and the width `hidden`.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        names: [&str; 2],
        width: i64,
        hidden: i64,
        activation: Activation,
    ) -> Self {
        let factor = match activation {
            Activation::Gelu | Activation::GeluTanh => 1.0,
            Activation::QuickGelu => QUICK_GELU,
        };
        let mut up = Linear::load_scaled(loader, names[0], width, hidden, factor);
        if activation == Activation::QuickGelu {
            up.bias = up.bias.map(|bias| bias * factor);
        }
        let down = Linear::load_scaled(loader, names[1], hidden, width, 1.0 / factor);
        Self { up, down, activation }
    }

    /// `stream + mlp(input)`.
    pub(crate) fn add_to(&self, stream: Tensor, input: &Tensor) -> Result<Tensor, TchError> {
        let after = match self.activation {
            Activation::Gelu => After::Gelu,
            Activation::GeluTanh => After::GeluTanh,
            Activation::QuickGelu => After::Swish,
        };
        let hidden = self.up.forward_then(input, after)?;
        self.down.add_to(stream, &hidden)
    }
}

/// True if layers are packed: in bf16 on a CPU whose oneDNN can, and does so without an upcast to
/// f32. Tries it once.
fn can_pack(loader: &Loader<'_>) -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    (loader.device(), loader.precision()) == (Device::Cpu, Precision::Bf16)
        && !Precision::Bf16.upcasts_bf16(Device::Cpu)
        && loader.may_pack()
        && *WORKS.get_or_init(|| {
            let ones = |shape: &[i64]| Tensor::f_ones(shape, (Kind::BFloat16, Device::Cpu));
            let product = || {
                let weight = shim::linear_pack(&ones(&[32, 32])?, PACKED_FOR_ROWS)?;
                let input = ones(&[2, 32])?;
                let sum =
                    shim::linear_packed(&input, &weight, Some(&ones(&[32])?), After::Nothing)?;
                sum.f_double_value(&[1, 31])
            };
            product().is_ok_and(|value: f64| value == 33.0)
        })
}
