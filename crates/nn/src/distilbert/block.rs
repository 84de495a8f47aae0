//! One block: self-attention and an MLP, each added to the stream, which is normalised afterwards.

use tch::{TchError, Tensor};

use super::DistilBertConfig;
use crate::clip::Activation;
use crate::layers::{LayerNorm, Linear, Mlp, attention};
use crate::weights::Loader;

/// Added to the variance in normalisations; a constant of the library.
pub(super) const EPSILON: f64 = 1e-12;

/// A block.
#[derive(Debug)]
pub(super) struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: i64,
    attention_norm: LayerNorm,
    mlp: Mlp,
    output_norm: LayerNorm,
}

impl Block {
    pub(super) fn load(loader: &mut Loader<'_>, name: &str, config: &DistilBertConfig) -> Self {
        let width = config.width;
        let [query, key, value, out] = ["q_lin", "k_lin", "v_lin", "out_lin"]
            .map(|part| Linear::load(loader, &format!("{name}.attention.{part}"), width, width));
        let [wide, back] = ["lin1", "lin2"].map(|part| format!("{name}.ffn.{part}"));
        let mut norm = |part: &str| {
            LayerNorm::load(loader, &format!("{name}.{part}_layer_norm"), width, EPSILON)
        };
        Self {
            query,
            key,
            value,
            out,
            heads: config.heads,
            attention_norm: norm("sa"),
            output_norm: norm("output"),
            mlp: Mlp::load(loader, [&wide, &back], width, config.mlp_width, Activation::Gelu),
        }
    }

    /// The stream `[B, L, W]`; every token attends to the tokens for which `mask_B11L` is true, or
    /// to all.
    pub(super) fn forward(
        &self,
        x_BLW: Tensor,
        mask_B11L: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let mixed_BLW = self.mix(&x_BLW, mask_B11L)?;
        let x_BLW = self.attention_norm.forward(&self.out.add_to(x_BLW, &mixed_BLW)?)?;
        self.output_norm.forward(&self.mlp.add_to(x_BLW.shallow_clone(), &x_BLW)?)
    }

    fn mix(&self, x_BLW: &Tensor, mask_B11L: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (batch, length, width) = x_BLW.size3()?;
        let by_head = |layer: &Linear| {
            let size = [batch, length, self.heads, width / self.heads];
            layer.forward(x_BLW)?.f_view(size)?.f_transpose(1, 2)
        };
        let mixed_BHLE = attention(
            &by_head(&self.query)?,
            &by_head(&self.key)?,
            &by_head(&self.value)?,
            mask_B11L,
            false,
        )?;
        mixed_BHLE.f_transpose(1, 2)?.f_reshape([batch, length, width])
    }
}
