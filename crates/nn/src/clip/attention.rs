//! Multi-head self-attention.
//!
//! `B` batch, `L` tokens, `W` width of the network, `H` heads, `E` width of a head (`W = H·E`).

use tch::{TchError, Tensor};

use super::layout::ClipLayout;
use crate::layers::{Linear, attention};
use crate::weights::Loader;

/// The tokens that every token attends to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight<'a> {
    /// Those for which this is true; `None` for all.
    pub(crate) mask_B11L: Option<&'a Tensor>,
    /// Itself and those before it.
    pub(crate) causal: bool,
}

/// Self-attention. Query, key and value are three products, not one: so both layouts use the memory
/// of the file, and at these widths one product is not faster.
#[derive(Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: i64,
}

impl Attention {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layout: ClipLayout,
        name: &str,
        width: i64,
        heads: i64,
    ) -> Self {
        let out = format!("{name}.out_proj");
        match layout {
            ClipLayout::Transformers => {
                let [query, key, value] = ["q_proj", "k_proj", "v_proj"]
                    .map(|part| Linear::load(loader, &format!("{name}.{part}"), width, width));
                Self { query, key, value, out: Linear::load(loader, &out, width, width), heads }
            }
            ClipLayout::OpenClip => {
                let together = ["weight", "bias"].map(|part| format!("{name}.in_proj_{part}"));
                Self::load_together(loader, &together, &out, width, heads)
            }
        }
    }

    /// With query, key and value stored as one weight and one bias, in this order.
    pub(super) fn load_together(
        loader: &mut Loader<'_>,
        [weight, bias]: &[String; 2],
        out: &str,
        width: i64,
        heads: i64,
    ) -> Self {
        let weight = loader.tensor(weight, &[3 * width, width]);
        let bias = loader.tensor(bias, &[3 * width]);
        // The loader returns the shapes that it was asked for, so the rows exist.
        let [query, key, value] = [0, 1, 2].map(|part| {
            let rows = |tensor: &Tensor| tensor.narrow(0, part * width, width);
            Linear::new(loader, rows(&weight), Some(rows(&bias)))
        });
        Self { query, key, value, out: Linear::load(loader, out, width, width), heads }
    }

    /// `stream_BLW + attention(x_BLW)`.
    pub(super) fn add_to(
        &self,
        stream_BLW: Tensor,
        x_BLW: &Tensor,
        sight: Sight<'_>,
    ) -> Result<Tensor, TchError> {
        let mixed_BLW = self.mix(x_BLW, x_BLW, sight.mask_B11L, sight.causal)?;
        self.out.add_to(stream_BLW, &mixed_BLW)
    }

    /// [`Attention::add_to`] for one token of each sequence, `chosen_B1W` of `x_BLW`, which attends
    /// to the tokens for which `mask_B11L` is true, or to all.
    pub(super) fn add_one_to(
        &self,
        stream_B1W: Tensor,
        chosen_B1W: &Tensor,
        x_BLW: &Tensor,
        mask_B11L: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let mixed_B1W = self.mix(chosen_B1W, x_BLW, mask_B11L, false)?;
        self.out.add_to(stream_B1W, &mixed_B1W)
    }

    /// What the tokens `from_BMW` read of all tokens of `to_BLW`: `[B, M, W]`.
    pub(crate) fn read(&self, from_BMW: &Tensor, to_BLW: &Tensor) -> Result<Tensor, TchError> {
        self.out.forward(&self.mix(from_BMW, to_BLW, None, false)?)
    }

    fn mix(
        &self,
        from_BLW: &Tensor,
        to_BLW: &Tensor,
        mask_B11L: Option<&Tensor>,
        causal: bool,
    ) -> Result<Tensor, TchError> {
        let query_BHLE = self.by_head(&self.query.forward(from_BLW)?)?;
        let key_BHLE = self.by_head(&self.key.forward(to_BLW)?)?;
        let value_BHLE = self.by_head(&self.value.forward(to_BLW)?)?;
        let mixed_BHLE = attention(&query_BHLE, &key_BHLE, &value_BHLE, mask_B11L, causal)?;
        let (batch, heads, length, head_width) = mixed_BHLE.size4()?;
        // The fused kernels store the heads side by side, so this copies nothing.
        mixed_BHLE.f_transpose(1, 2)?.f_reshape([batch, length, heads * head_width])
    }

    /// `[B, L, W]` as a view `[B, H, L, E]`.
    fn by_head(&self, x_BLW: &Tensor) -> Result<Tensor, TchError> {
        let (batch, length, width) = x_BLW.size3()?;
        x_BLW.f_view([batch, length, self.heads, width / self.heads])?.f_transpose(1, 2)
    }
}
