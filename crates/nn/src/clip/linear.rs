//! Linear layers, and what can be done in the same pass over their result.
//!
//! On the CPU in bf16 the weights are kept in oneDNN's own layout. Converting them on every call
//! and passing over each result again for activation and residual would take as long as the
//! products themselves: about twice the speed on processors with AMX. In f32 the plain product is
//! as fast, and the weight can stay the file's own memory.

use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};

use super::Activation;
use crate::device::Precision;
use crate::shim::{self, After};
use crate::weights::Loader;

/// oneDNN is told this many rows to choose a layout for: a batch of eight pictures. Others work.
const PACKED_FOR_ROWS: i64 = 2048;

/// What QuickGELU multiplies its argument by.
const QUICK_GELU: f64 = 1.702;

/// `scale · x · weightᵀ + bias`, with the weight as PyTorch keeps it, `[out, in]`, or packed.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
    /// One, unless the layer was loaded with a factor. A packed weight has it inside.
    scale: f64,
    packed: bool,
}

impl Linear {
    /// The layer `name.weight`, `name.bias`.
    pub(super) fn load(loader: &mut Loader<'_>, name: &str, input: i64, output: i64) -> Self {
        Self::load_scaled(loader, name, input, output, 1.0)
    }

    /// As [`Linear::load`], with `scale` times its product.
    fn load_scaled(
        loader: &mut Loader<'_>,
        name: &str,
        input: i64,
        output: i64,
        scale: f64,
    ) -> Self {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let bias = loader.tensor(&bias, &[output]);
        if scale == 1.0 || !can_pack(loader) {
            let weight = loader.tensor(&weight, &[output, input]);
            return Self { scale, ..Self::new(loader, weight, bias) };
        }
        // Scaled before it is rounded.
        let weight = loader.tensor_in(&weight, &[output, input], Kind::Float) * scale;
        let weight = weight.to_kind(loader.precision().kind());
        Self::new(loader, weight, bias)
    }

    /// A layer of tensors at hand, in the loader's precision and on its device.
    pub(super) fn new(loader: &mut Loader<'_>, weight: Tensor, bias: Tensor) -> Self {
        if can_pack(loader) {
            match shim::linear_pack(&weight, PACKED_FOR_ROWS) {
                Ok(weight) => return Self { weight, bias, scale: 1.0, packed: true },
                Err(error) => loader.fail(error),
            }
        }
        Self { weight, bias, scale: 1.0, packed: false }
    }

    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        if self.packed {
            shim::linear_packed(input, &self.weight, &self.bias, After::Nothing)
        } else if self.scale == 1.0 {
            input.f_linear(&self.weight, Some(&self.bias))
        } else {
            shim::linear_scaled(input, &self.weight, &self.bias, self.scale)
        }
    }

    /// `stream + forward(input)`, in place: oneDNN's own way of adding measures slower.
    pub(super) fn add_to(&self, mut stream: Tensor, input: &Tensor) -> Result<Tensor, TchError> {
        stream.f_add_(&self.forward(input)?)
    }
}

/// A perceptron: a wide layer, an activation, and a layer back.
///
/// QuickGELU is computed as SiLU, for which there are kernels of one pass: with y = 1.702 x,
/// x·σ(1.702 x) is y·σ(y) / 1.702, so the wide layer gives 1.702 times as much and the layer back
/// takes it off.
#[derive(Debug)]
pub(super) struct Perceptron {
    wide: Linear,
    back: Linear,
    activation: Activation,
}

impl Perceptron {
    /// The layers named by `names`, of `width` and `wide` columns.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        names: [&str; 2],
        width: i64,
        wide: i64,
        activation: Activation,
    ) -> Self {
        let (up, down) = match activation {
            Activation::Gelu => (1.0, 1.0),
            Activation::QuickGelu => (QUICK_GELU, 1.0 / QUICK_GELU),
        };
        let [wide_name, back_name] = names;
        let mut wide_layer = Linear::load_scaled(loader, wide_name, width, wide, up);
        if activation == Activation::QuickGelu {
            wide_layer.bias = &wide_layer.bias * up;
        }
        let back_layer = Linear::load_scaled(loader, back_name, wide, width, down);
        Self { wide: wide_layer, back: back_layer, activation }
    }

    /// `stream + perceptron(input)`.
    pub(super) fn add_to(&self, stream: Tensor, input: &Tensor) -> Result<Tensor, TchError> {
        let hidden = if self.wide.packed {
            let after = match self.activation {
                Activation::Gelu => After::Gelu,
                Activation::QuickGelu => After::Swish,
            };
            shim::linear_packed(input, &self.wide.weight, &self.wide.bias, after)?
        } else {
            let mut hidden = self.wide.forward(input)?;
            match self.activation {
                Activation::Gelu => hidden.f_gelu_("none")?,
                Activation::QuickGelu => hidden.f_silu_()?,
            }
        };
        self.back.add_to(stream, &hidden)
    }
}

/// True where layers are packed: bf16 on a CPU whose oneDNN can. Tried once.
fn can_pack(loader: &Loader<'_>) -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    (loader.device(), loader.precision()) == (Device::Cpu, Precision::Bf16)
        && *WORKS.get_or_init(|| {
            let ones = |shape: &[i64]| Tensor::f_ones(shape, (Kind::BFloat16, Device::Cpu));
            let product = || {
                let weight = shim::linear_pack(&ones(&[32, 32])?, PACKED_FOR_ROWS)?;
                let input = ones(&[2, 32])?;
                let sum = shim::linear_packed(&input, &weight, &ones(&[32])?, After::Nothing)?;
                sum.f_double_value(&[1, 31])
            };
            product().is_ok_and(|value: f64| value == 33.0)
        })
}
