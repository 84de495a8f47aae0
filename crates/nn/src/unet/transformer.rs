//! The transformer over the pixels of a feature map.
//!
//! huggingface/diffusers `src/diffusers/models/transformers/transformer_2d.py` and
//! `src/diffusers/models/attention.py` (`BasicTransformerBlock`) at v0.42.1.

use tch::{TchError, Tensor};

use super::UNetConfig;
use super::attention::{Attention, AttentionSizes};
use super::text::TextProjections;
use crate::layers::{GroupNorm, LayerNorm, Linear, add};
use crate::shim::{self, After, kernels};
use crate::weights::Loader;

/// Added to the variance in the group normalisation, whatever the configuration says elsewhere.
const NORM_EPSILON: f64 = 1e-6;
/// Added to the variance in the layer normalisations.
const LAYER_NORM_EPSILON: f64 = 1e-5;
/// How much wider the hidden layer of the feed-forward network is.
const EXPANSION: i64 = 4;

/// The sizes of one transformer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerSizes {
    pub(super) channels: i64,
    pub(super) heads: i64,
    pub(super) layers: i64,
    pub(super) only_cross_attention: bool,
}

/// Blocks of attention over the pixels `[B, H·W, C]`, with a skip connection around them.
#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<Block>,
    proj_out: Linear,
}

impl Transformer {
    pub(super) fn load(
        config: &UNetConfig,
        loader: &mut Loader<'_>,
        name: &str,
        sizes: TransformerSizes,
        texts: &mut TextProjections,
    ) -> Self {
        let channels = sizes.channels;
        let groups = config.norm_num_groups;
        let norm = GroupNorm::load(loader, &format!("{name}.norm"), groups, channels, NORM_EPSILON);
        // A 1×1 convolution is a linear layer on a view, and in channels-last memory the view
        // copies nothing.
        let mut project = |part: &str| {
            let name = format!("{name}.{part}");
            if config.use_linear_projection {
                Linear::load(loader, &name, channels, channels)
            } else {
                Linear::load_convolution(loader, &name, channels, channels)
            }
        };
        let (proj_in, proj_out) = (project("proj_in"), project("proj_out"));
        let blocks = (0..sizes.layers)
            .map(|index| {
                let name = format!("{name}.transformer_blocks.{index}");
                Block::load(config, loader, &name, sizes, texts)
            })
            .collect();
        Self { norm, proj_in, blocks, proj_out }
    }

    /// Whether one of its layers has an adapter.
    pub(super) fn has_adapter(&self) -> bool {
        let projects = self.proj_in.has_adapter() || self.proj_out.has_adapter();
        projects || self.blocks.iter().any(Block::has_adapter)
    }

    /// `[B, C, H, W]` to the same shape.
    pub(super) fn forward(&self, x_BCHW: &Tensor, text: &Tensor) -> Result<Tensor, TchError> {
        let (batch, channels, height, width) = x_BCHW.size4()?;
        // Linear needs a contiguous input.
        let normed_BHWC = self.norm.forward(x_BCHW)?.f_permute([0, 2, 3, 1])?.f_contiguous()?;
        let mut x_BLC =
            self.proj_in.forward(&normed_BHWC.f_view([batch, height * width, channels])?)?;
        for block in &self.blocks {
            x_BLC = block.forward(&x_BLC, text)?;
        }
        let update_BCHW = self
            .proj_out
            .forward(&x_BLC)?
            .f_view([batch, height, width, channels])?
            .f_permute([0, 3, 1, 2])?;
        add(x_BCHW, update_BCHW)
    }
}

/// Self-attention, cross-attention to the text, and a feed-forward network (GEGLU), each after a
/// normalisation and with a skip connection.
#[derive(Debug)]
struct Block {
    norm_1: LayerNorm,
    attention_1: Attention,
    norm_2: LayerNorm,
    attention_2: Attention,
    norm_3: LayerNorm,
    feed_forward: FeedForward,
    only_cross_attention: bool,
}

impl Block {
    fn load(
        config: &UNetConfig,
        loader: &mut Loader<'_>,
        name: &str,
        sizes: TransformerSizes,
        texts: &mut TextProjections,
    ) -> Self {
        let TransformerSizes { channels, heads, only_cross_attention, .. } = sizes;
        let part = |part: &str| format!("{name}.{part}");
        let norm = |loader: &mut Loader<'_>, name: &str| {
            LayerNorm::load(loader, &part(name), channels, LAYER_NORM_EPSILON)
        };
        let sizes = AttentionSizes { width: channels, heads, upcast: config.upcast_attention };
        let mut to_text = |loader: &mut Loader<'_>, name: &str| {
            let text_width = config.cross_attention_dim;
            Attention::load_to_text(loader, &part(name), sizes, text_width, texts)
        };
        Self {
            norm_1: norm(loader, "norm1"),
            attention_1: if only_cross_attention {
                to_text(loader, "attn1")
            } else {
                Attention::load(loader, &part("attn1"), sizes)
            },
            norm_2: norm(loader, "norm2"),
            attention_2: to_text(loader, "attn2"),
            norm_3: norm(loader, "norm3"),
            feed_forward: FeedForward::load(loader, &part("ff"), channels),
            only_cross_attention,
        }
    }

    fn has_adapter(&self) -> bool {
        let FeedForward { geglu, back } = &self.feed_forward;
        self.attention_1.has_adapter()
            || self.attention_2.has_adapter()
            || geglu.value.has_adapter()
            || back.has_adapter()
    }

    fn forward(&self, x_BLC: &Tensor, text: &Tensor) -> Result<Tensor, TchError> {
        let normed_BLC = self.norm_1.forward(x_BLC)?;
        let context = if self.only_cross_attention { text } else { &normed_BLC };
        let x_BLC = add(x_BLC, self.attention_1.forward(&normed_BLC, context)?)?;
        let normed_BLC = self.norm_2.forward(&x_BLC)?;
        let x_BLC = add(&x_BLC, self.attention_2.forward(&normed_BLC, text)?)?;
        add(&x_BLC, self.feed_forward.forward(&self.norm_3.forward(&x_BLC)?)?)
    }
}

/// The feed-forward network of a block: [`Geglu`], then a layer back.
#[derive(Debug)]
struct FeedForward {
    geglu: Geglu,
    back: Linear,
}

impl FeedForward {
    fn load(loader: &mut Loader<'_>, name: &str, channels: i64) -> Self {
        let hidden = EXPANSION * channels;
        let geglu = Geglu::load(loader, &format!("{name}.net.0.proj"), channels, hidden);
        let back = Linear::load(loader, &format!("{name}.net.2"), hidden, channels);
        Self { geglu, back }
    }

    fn forward(&self, x_BLC: &Tensor) -> Result<Tensor, TchError> {
        self.back.forward(&self.geglu.forward(x_BLC)?)
    }
}

/// GEGLU, an activation with a gate: half of a layer's output times the GELU of the other half. The
/// halves are two layers over the rows of one weight, so that neither is sliced out of a larger
/// tensor.
#[derive(Debug)]
#[doc(alias = "GEGLU")]
struct Geglu {
    value: Linear,
    gate: Linear,
}

impl Geglu {
    fn load(loader: &mut Loader<'_>, name: &str, channels: i64, hidden: i64) -> Self {
        let [value, gate] = Linear::load_halves(loader, name, channels, hidden);
        Self { value, gate }
    }

    fn forward(&self, x_BLC: &Tensor) -> Result<Tensor, TchError> {
        let mut value = self.value.forward(x_BLC)?;
        if kernels::can_gate(&value)? {
            return kernels::gated_gelu(&value, &self.gate.forward(x_BLC)?);
        }
        if !value.requires_grad() {
            return value.f_mul_(&self.gate.forward_then(x_BLC, After::Gelu)?);
        }
        // The backward pass recomputes the GELU, so that only its input takes memory until then.
        let gate = self.gate.forward(x_BLC)?;
        let product = |inputs: &[Tensor]| match inputs {
            [value, gate] => value.f_mul(&gate.f_gelu("none")?),
            _ => Err(TchError::Torch("expected two tensors".to_owned())),
        };
        shim::checkpoint(&[&value, &gate], Box::new(product))
    }
}
