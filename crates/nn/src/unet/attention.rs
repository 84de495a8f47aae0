//! Multi-head attention of one sequence to another.
//!
//! huggingface/diffusers `src/diffusers/models/attention_processor.py` (`AttnProcessor2_0`) at
//! v0.42.1. `B` batch, `L` tokens, `W` width, `H` heads, `E` width of a head.

use tch::{Kind, TchError, Tensor};

use crate::layers::{Linear, attention};
use crate::weights::Loader;

/// Attention to the sequence itself or to another; query, key and value have no bias.
#[derive(Debug)]
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    /// In f16, queries times keys may exceed what the format holds (Stable Diffusion 2.1).
    upcast: bool,
}

impl Attention {
    /// Of tokens `width` wide to tokens `context` wide.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        width: i64,
        context: i64,
        heads: i64,
        upcast: bool,
    ) -> Self {
        let mut project = |part: &str, input: i64| {
            Linear::load_without_bias(loader, &format!("{name}.{part}"), input, width)
        };
        let (to_q, to_k, to_v) =
            (project("to_q", width), project("to_k", context), project("to_v", context));
        let to_out = Linear::load(loader, &format!("{name}.to_out.0"), width, width);
        Self { to_q, to_k, to_v, to_out, heads, upcast }
    }

    /// Attention of `x_BLW` to `context_BMD`: `[B, L, W]`.
    pub(super) fn forward(&self, x_BLW: &Tensor, context_BMD: &Tensor) -> Result<Tensor, TchError> {
        let kind = x_BLW.kind();
        let upcast = self.upcast && kind == Kind::Half;
        let by_head = |projected_BLW: Tensor| {
            let (batch, length, width) = projected_BLW.size3()?;
            let size = [batch, length, self.heads, width / self.heads];
            let view_BHLE = projected_BLW.f_view(size)?.f_transpose(1, 2)?;
            if upcast { view_BHLE.f_to_kind(Kind::Float) } else { Ok(view_BHLE) }
        };
        let query_BHLE = by_head(self.to_q.forward(x_BLW)?)?;
        let key_BHME = by_head(self.to_k.forward(context_BMD)?)?;
        let value_BHME = by_head(self.to_v.forward(context_BMD)?)?;
        let mixed_BHLE = attention(&query_BHLE, &key_BHME, &value_BHME, None, false)?;
        // The fused kernels leave the heads beside each other, so that this copies nothing.
        let mixed_BLW = mixed_BHLE.f_transpose(1, 2)?.f_reshape(x_BLW.size())?;
        self.to_out.forward(&mixed_BLW.f_to_kind(kind)?)
    }
}
