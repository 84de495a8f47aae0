//! Linear layers one after the other, without activations: the heads of reward models.

use tch::{Kind, TchError, Tensor};

use crate::weights::Loader;

/// The layers, in f32, which costs next to nothing.
#[derive(Debug)]
pub(crate) struct LinearChain {
    layers: Vec<(Tensor, Tensor)>,
}

impl LinearChain {
    /// The layers `name.I.weight`, `name.I.bias` for these indices, from `input` numbers to one.
    /// The file decides the widths between: the bias of each layer has the length of its output,
    /// which is the input of the next.
    pub(crate) fn load(loader: &mut Loader<'_>, name: &str, indices: &[usize], input: i64) -> Self {
        let mut width = input;
        let mut layers = Vec::with_capacity(indices.len());
        for (place, index) in indices.iter().enumerate() {
            let (weight, bias) = (format!("{name}.{index}.weight"), format!("{name}.{index}.bias"));
            let output = match loader.weights().shape(&bias) {
                _ if place + 1 == indices.len() => 1,
                Some([output]) if *output > 0 => *output,
                _ => 1,
            };
            layers.push((
                loader.tensor_in(&weight, &[output, width], Kind::Float),
                loader.tensor_in(&bias, &[output], Kind::Float),
            ));
            width = output;
        }
        Self { layers }
    }

    /// `[B, D]` of any dtype to `[B, 1]` f32.
    pub(crate) fn forward(&self, features_BD: &Tensor) -> Result<Tensor, TchError> {
        let mut hidden = features_BD.f_to_kind(Kind::Float)?;
        for (weight, bias) in &self.layers {
            hidden = hidden.f_linear(weight, Some(bias))?;
        }
        Ok(hidden)
    }
}
