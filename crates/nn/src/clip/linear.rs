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

/// What QuickGELU scales its argument by.
const QUICK_GELU: f64 = 1.702;

/// `x · weightᵀ + bias`, with the weight as PyTorch keeps it, `[out, in]`, or packed.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
    packed: bool,
}

impl Linear {
    /// The layer `name.weight`, `name.bias`.
    pub(super) fn load(loader: &mut Loader<'_>, name: &str, input: i64, output: i64) -> Self {
        let weight = loader.tensor(&format!("{name}.weight"), &[output, input]);
        let bias = loader.tensor(&format!("{name}.bias"), &[output]);
        Self::new(loader, weight, bias)
    }

    /// A layer of tensors at hand, in the loader's precision and on its device.
    pub(super) fn new(loader: &mut Loader<'_>, weight: Tensor, bias: Tensor) -> Self {
        if can_pack(loader) {
            match shim::linear_pack(&weight, PACKED_FOR_ROWS) {
                Ok(weight) => return Self { weight, bias, packed: true },
                Err(error) => loader.fail(error),
            }
        }
        Self { weight, bias, packed: false }
    }

    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        if self.packed {
            shim::linear_packed(input, &self.weight, &self.bias, After::Nothing)
        } else {
            input.f_linear(&self.weight, Some(&self.bias))
        }
    }

    /// `stream + forward(input)`, in place: oneDNN's own way of adding measures slower.
    pub(super) fn add_to(&self, mut stream: Tensor, input: &Tensor) -> Result<Tensor, TchError> {
        stream.f_add_(&self.forward(input)?)
    }
}

/// A perceptron: a wide layer, an activation, and a layer back.
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
        let [wide_name, back_name] = names;
        if activation == Activation::Gelu || !can_pack(loader) {
            return Self {
                wide: Linear::load(loader, wide_name, width, wide),
                back: Linear::load(loader, back_name, wide, width),
                activation,
            };
        }
        // oneDNN knows x·σ(x) alone. With y = 1.702 x, x·σ(1.702 x) is y·σ(y) / 1.702: the factors
        // go into the weights, before they are rounded.
        let kind = loader.precision().kind();
        let mut scaled = |name: String, shape: &[i64], factor: f64| {
            let tensor = loader.tensor_in(&name, shape, Kind::Float);
            (tensor * factor).to_kind(kind)
        };
        let wide_weight = scaled(format!("{wide_name}.weight"), &[wide, width], QUICK_GELU);
        let wide_bias = scaled(format!("{wide_name}.bias"), &[wide], QUICK_GELU);
        let back_weight = scaled(format!("{back_name}.weight"), &[width, wide], 1.0 / QUICK_GELU);
        let back_bias = loader.tensor(&format!("{back_name}.bias"), &[width]);
        Self {
            wide: Linear::new(loader, wide_weight, wide_bias),
            back: Linear::new(loader, back_weight, back_bias),
            activation,
        }
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
            activate(self.wide.forward(input)?, self.activation)?
        };
        self.back.add_to(stream, &hidden)
    }
}

/// In place: the values before are not needed again.
fn activate(mut hidden: Tensor, activation: Activation) -> Result<Tensor, TchError> {
    match activation {
        Activation::Gelu => hidden.f_gelu_("none"),
        Activation::QuickGelu => {
            let mut gate = hidden.f_mul_scalar(QUICK_GELU)?;
            hidden.f_mul_(&gate.f_sigmoid_()?)
        }
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
