//! One residual block of either tower: attention, then an MLP, each after a normalisation.

use tch::{TchError, Tensor};

use super::attention::{Attention, Sight};
use super::config::Activation;
use super::layout::ClipLayout;
use crate::layers::{LayerNorm, Mlp};
use crate::weights::Loader;

/// The sizes of a tower's blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSizes {
    pub(crate) width: i64,
    pub(crate) heads: i64,
    pub(crate) mlp_width: i64,
    pub(crate) activation: Activation,
    pub(crate) layer_norm_epsilon: f64,
}

/// A residual block.
#[derive(Debug)]
pub(crate) struct Block {
    norm_1: LayerNorm,
    attention: Attention,
    norm_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layout: ClipLayout,
        name: &str,
        sizes: BlockSizes,
    ) -> Self {
        let BlockSizes { width, heads, mlp_width, activation, layer_norm_epsilon } = sizes;
        let [norm_1, norm_2, attention, fc1, fc2] = match layout {
            ClipLayout::Transformers => {
                ["layer_norm1", "layer_norm2", "self_attn", "mlp.fc1", "mlp.fc2"]
            }
            ClipLayout::OpenClip => ["ln_1", "ln_2", "attn", "mlp.c_fc", "mlp.c_proj"],
        }
        .map(|part| format!("{name}.{part}"));
        Self {
            norm_1: LayerNorm::load(loader, &norm_1, width, layer_norm_epsilon),
            attention: Attention::load(loader, layout, &attention, width, heads),
            norm_2: LayerNorm::load(loader, &norm_2, width, layer_norm_epsilon),
            mlp: Mlp::load(loader, [&fc1, &fc2], width, mlp_width, activation),
        }
    }

    /// A block with timm's names: `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2`.
    pub(crate) fn load_timm(loader: &mut Loader<'_>, name: &str, sizes: BlockSizes) -> Self {
        let BlockSizes { width, heads, mlp_width, activation, layer_norm_epsilon } = sizes;
        let [norm_1, norm_2, together, out, fc1, fc2] =
            ["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
                .map(|part| format!("{name}.{part}"));
        let together = [format!("{together}.weight"), format!("{together}.bias")];
        Self {
            norm_1: LayerNorm::load(loader, &norm_1, width, layer_norm_epsilon),
            attention: Attention::load_together(loader, &together, &out, width, heads),
            norm_2: LayerNorm::load(loader, &norm_2, width, layer_norm_epsilon),
            mlp: Mlp::load(loader, [&fc1, &fc2], width, mlp_width, activation),
        }
    }

    /// All tokens of the stream `[B, L, W]`.
    pub(crate) fn forward(&self, x_BLW: Tensor, causal: bool) -> Result<Tensor, TchError> {
        self.forward_seeing(x_BLW, Sight { mask_B11L: None, causal })
    }

    /// [`Block::forward`], if tokens see others than all.
    pub(crate) fn forward_seeing(
        &self,
        mut x_BLW: Tensor,
        sight: Sight<'_>,
    ) -> Result<Tensor, TchError> {
        let normed_BLW = self.norm_1.forward(&x_BLW)?;
        x_BLW = self.attention.add_to(x_BLW, &normed_BLW, sight)?;
        let normed_BLW = self.norm_2.forward(&x_BLW)?;
        self.mlp.add_to(x_BLW, &normed_BLW)
    }

    /// One token of each sequence, for the last block of a tower, whose other tokens nobody reads:
    /// `[B, L, W]` to `[B, 1, W]`.
    pub(crate) fn forward_one(&self, x_BLW: &Tensor, choice: &Choice) -> Result<Tensor, TchError> {
        let normed_BLW = self.norm_1.forward(x_BLW)?;
        let normed_B1W = choice.pick(&normed_BLW)?;
        let mask_B11L = choice.mask_B11L.as_ref();
        let mut x_B1W = choice.pick(x_BLW)?;
        x_B1W = self.attention.add_one_to(x_B1W, &normed_B1W, &normed_BLW, mask_B11L)?;
        let normed_B1W = self.norm_2.forward(&x_B1W)?;
        self.mlp.add_to(x_B1W, &normed_B1W)
    }
}

/// The token of each sequence that a tower reads at its end.
#[derive(Debug)]
pub(crate) struct Choice {
    place: Place,
    /// The tokens that it attends to; `None` for all.
    mask_B11L: Option<Tensor>,
}

/// Where the token is.
#[derive(Debug)]
enum Place {
    /// The same index in every sequence.
    Fixed(i64),
    /// An index for each sequence.
    Each(Tensor),
}

impl Choice {
    /// The first token, which attends to all.
    pub(super) fn first() -> Self {
        Self { place: Place::Fixed(0), mask_B11L: None }
    }

    /// The last of `length` tokens, which attends to those for which the mask is true, or to all.
    pub(crate) fn last(length: i64, mask_B11L: Option<Tensor>) -> Self {
        Self { place: Place::Fixed(length - 1), mask_B11L }
    }

    /// The token at `index_B` of `length`, which attends to itself and the tokens before it.
    pub(super) fn causal(index_B: &Tensor, length: i64) -> Result<Self, TchError> {
        let index_B11 = index_B.f_view([-1, 1, 1])?;
        let places_L = Tensor::f_arange(length, (tch::Kind::Int64, index_B.device()))?;
        let mask_B11L = places_L.f_le_tensor(&index_B.f_view([-1, 1, 1, 1])?)?;
        Ok(Self { place: Place::Each(index_B11), mask_B11L: Some(mask_B11L) })
    }

    /// `[B, L, W]` to `[B, 1, W]`.
    fn pick(&self, x_BLW: &Tensor) -> Result<Tensor, TchError> {
        match &self.place {
            // Contiguous, because the block adds to the stream in place.
            Place::Fixed(index) => x_BLW.f_narrow(1, *index, 1)?.f_contiguous(),
            Place::Each(index_B11) => {
                x_BLW.f_gather(1, &index_B11.f_expand([-1, -1, x_BLW.size3()?.2], false)?, false)
            }
        }
    }
}
