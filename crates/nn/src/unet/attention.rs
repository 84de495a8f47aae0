//! Multi-head attention of one sequence to another.
//!
//! huggingface/diffusers `src/diffusers/models/attention_processor.py` (`AttnProcessor2_0`) at
//! v0.42.1. `B` batch, `L` tokens, `W` width, `H` heads, `E` width of a head.

use tch::{Kind, TchError, Tensor};

use super::text::{ProjectionSlice, TextProjections};
use crate::layers::{Linear, attention};
use crate::weights::{Loader, Purpose};

/// Self-attention or cross-attention; query, key and value have no bias.
#[derive(Debug)]
pub(super) struct Attention {
    to_q: Linear,
    context: Context,
    to_out: Linear,
    heads: i64,
    /// In f16, queries times keys may overflow (Stable Diffusion 2.1).
    upcast: bool,
}

/// Where keys and values come from.
#[derive(Debug)]
enum Context {
    /// Layers project the tokens `[B, M, D]`.
    Tokens { to_k: Linear, to_v: Linear },
    /// A network for inference has already projected the text.
    Projected { key: ProjectionSlice, value: ProjectionSlice },
}

/// The sizes of one attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionSizes {
    pub(super) width: i64,
    pub(super) heads: i64,
    pub(super) upcast: bool,
}

impl Attention {
    /// Self-attention.
    pub(super) fn load(loader: &mut Loader<'_>, name: &str, sizes: AttentionSizes) -> Self {
        let [to_q, to_k, to_v] = load_projections(loader, name, sizes.width, sizes.width);
        Self::load_around(loader, name, sizes, to_q, Context::Tokens { to_k, to_v })
    }

    /// Cross-attention to a text `text_width` wide; for inference, `texts` takes the layers that
    /// project it.
    pub(super) fn load_to_text(
        loader: &mut Loader<'_>,
        name: &str,
        sizes: AttentionSizes,
        text_width: i64,
        texts: &mut TextProjections,
    ) -> Self {
        let [to_q, to_k, to_v] = load_projections(loader, name, sizes.width, text_width);
        let context = if loader.purpose() == Purpose::Inference {
            let (key, value) = (texts.add(to_k, sizes.width), texts.add(to_v, sizes.width));
            Context::Projected { key, value }
        } else {
            Context::Tokens { to_k, to_v }
        };
        Self::load_around(loader, name, sizes, to_q, context)
    }

    fn load_around(
        loader: &mut Loader<'_>,
        name: &str,
        sizes: AttentionSizes,
        to_q: Linear,
        context: Context,
    ) -> Self {
        let AttentionSizes { width, heads, upcast } = sizes;
        let to_out = Linear::load(loader, &format!("{name}.to_out.0"), width, width);
        Self { to_q, context, to_out, heads, upcast }
    }

    /// Whether one of its layers has an adapter. A network for inference has none.
    pub(super) fn has_adapter(&self) -> bool {
        let of_context = match &self.context {
            Context::Tokens { to_k, to_v } => to_k.has_adapter() || to_v.has_adapter(),
            Context::Projected { .. } => false,
        };
        of_context || self.to_q.has_adapter() || self.to_out.has_adapter()
    }

    /// Attention of `x_BLW` to the tokens `[B, M, D]`, or to the keys and values of a projected
    /// text, `[W', B, M]`. Returns `[B, L, W]`.
    pub(super) fn forward(&self, x_BLW: &Tensor, context: &Tensor) -> Result<Tensor, TchError> {
        let kind = x_BLW.kind();
        let upcast = self.upcast && kind == Kind::Half;
        let by_head = |projected_BLW: Tensor| {
            let (batch, length, width) = projected_BLW.size3()?;
            let size = [batch, length, self.heads, width / self.heads];
            let view_BHLE = projected_BLW.f_view(size)?.f_transpose(1, 2)?;
            if upcast { view_BHLE.f_to_kind(Kind::Float) } else { Ok(view_BHLE) }
        };
        let query_BHLE = by_head(self.to_q.forward(x_BLW)?)?;
        let (key_BMW, value_BMW) = match &self.context {
            Context::Tokens { to_k, to_v } => (to_k.forward(context)?, to_v.forward(context)?),
            Context::Projected { key, value } => (key.of(context)?, value.of(context)?),
        };
        let (key_BHME, value_BHME) = (by_head(key_BMW)?, by_head(value_BMW)?);
        let mixed_BHLE = attention(&query_BHLE, &key_BHME, &value_BHME, None, false)?;
        // The fused kernels store the heads side by side, so this copies nothing.
        let mixed_BLW = mixed_BHLE.f_transpose(1, 2)?.f_reshape(x_BLW.size())?;
        self.to_out.forward(&mixed_BLW.f_to_kind(kind)?)
    }
}

/// The layers for queries from tokens `width` wide, and for keys and values from tokens `context`
/// wide.
fn load_projections(loader: &mut Loader<'_>, name: &str, width: i64, context: i64) -> [Linear; 3] {
    [("to_q", width), ("to_k", context), ("to_v", context)].map(|(part, input)| {
        Linear::load_without_bias(loader, &format!("{name}.{part}"), input, width)
    })
}
