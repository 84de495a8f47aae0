//! The downsampling blocks: `DownBlock2D` and `CrossAttnDownBlock2D`.
//!
//! huggingface/diffusers `src/diffusers/models/unets/unet_2d_blocks.py` at v0.42.1.

use std::panic::RefUnwindSafe;
use std::sync::Arc;

use tch::{TchError, Tensor};

use super::text::TextProjections;
use super::transformer::{Transformer, TransformerSizes};
use super::{Conditions, UNetConfig};
use crate::layers::{Downsample, ResnetBlock};
use crate::shim;
use crate::weights::Loader;

/// Residual blocks, a transformer after each one in a block with attention, and a downsampling
/// convolution at the end of all blocks but the last.
#[derive(Debug)]
pub(super) struct DownBlock {
    resnets: Vec<Layer<ResnetBlock>>,
    transformers: Vec<Layer<Transformer>>,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    pub(super) fn load(
        config: &UNetConfig,
        index: usize,
        loader: &mut Loader<'_>,
        texts: &mut TextProjections,
    ) -> Self {
        let name = format!("down_blocks.{index}");
        let channels = &config.block_out_channels;
        let output = channels[index];
        let input = if index == 0 { config.first_channels() } else { channels[index - 1] };
        let layers = config.layers[index];
        let resnets = (0..layers)
            .map(|layer| {
                let sizes = config.resnet_sizes(if layer == 0 { input } else { output }, output);
                Layer::new(ResnetBlock::load(loader, &format!("{name}.resnets.{layer}"), sizes))
            })
            .collect();
        let sizes = TransformerSizes {
            channels: output,
            heads: config.heads[index],
            layers: config.transformer_layers[index],
            only_cross_attention: config.only_cross_attention[index],
        };
        let attended = if config.down_attends[index] { layers } else { 0 };
        let transformers = (0..attended)
            .map(|layer| {
                let name = format!("{name}.attentions.{layer}");
                Layer::new(Transformer::load(config, loader, &name, sizes, texts))
            })
            .collect();
        let downsampler = (index + 1 < channels.len())
            .then(|| Downsample::load(loader, &format!("{name}.downsamplers.0"), output, false));
        Self { resnets, transformers, downsampler }
    }

    /// `[B, C, H, W]` to the block's channels and half the height and width. Every result is a skip
    /// connection to the upsampling blocks.
    pub(super) fn forward(
        &self,
        mut x_BCHW: Tensor,
        conditions: &Conditions,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor, TchError> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            x_BCHW = checkpointed(resnet, &x_BCHW, conditions)?;
            if let Some(transformer) = self.transformers.get(index) {
                x_BCHW = checkpointed(transformer, &x_BCHW, conditions)?;
            }
            skips.push(x_BCHW.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x_BCHW = downsampler.forward(&x_BCHW)?;
            skips.push(x_BCHW.shallow_clone());
        }
        Ok(x_BCHW)
    }
}

/// A part of the network that gradient checkpointing may recompute, so the backward pass owns it
/// too.
#[derive(Debug)]
pub(super) struct Layer<T>(Arc<T>);

// SAFETY: a `Part` is configuration and weights. `tch::Tensor` is `Send`; it is not `Sync` only
// because its methods can write through a shared reference. Layers never write to their weights.
// The optimizer and `UNet::copy_weights_from` do, through `&mut UNet` or after the backward pass,
// on the thread that waits for the backward pass. `RefUnwindSafe` keeps `Cell` and `RefCell` out of
// a part at compile time; what changes behind a shared reference is behind a `Mutex`.
#[expect(unsafe_code, reason = "weights that the backward pass reads on a thread of libtorch's")]
unsafe impl<T: Part> Send for Layer<T> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "weights that the backward pass reads on a thread of libtorch's")]
unsafe impl<T: Part> Sync for Layer<T> {}

impl<T: Part> Layer<T> {
    pub(super) fn new(part: T) -> Self {
        Self(Arc::new(part))
    }

    /// Another owner of the same weights.
    fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    fn apply(&self, x_BCHW: &Tensor, condition: &Tensor) -> Result<Tensor, TchError> {
        self.0.apply(x_BCHW, condition)
    }
}

/// A part that transforms a feature map. It consists of configuration and weights only.
pub(super) trait Part: RefUnwindSafe + 'static {
    /// Whether one of its layers has an adapter.
    fn has_adapter(&self) -> bool;
    /// The condition that it reads: the time embedding or the text.
    fn condition(conditions: &Conditions) -> &Tensor;
    /// `[B, C, H, W]` to `[B, C', H, W]`.
    fn apply(&self, x_BCHW: &Tensor, condition: &Tensor) -> Result<Tensor, TchError>;
}

impl Part for ResnetBlock {
    fn has_adapter(&self) -> bool {
        self.has_adapter()
    }

    fn condition(conditions: &Conditions) -> &Tensor {
        &conditions.embedding_BD
    }

    fn apply(&self, x_BCHW: &Tensor, condition: &Tensor) -> Result<Tensor, TchError> {
        self.forward(x_BCHW, Some(condition))
    }
}

impl Part for Transformer {
    fn has_adapter(&self) -> bool {
        self.has_adapter()
    }

    fn condition(conditions: &Conditions) -> &Tensor {
        &conditions.text
    }

    fn apply(&self, x_BCHW: &Tensor, condition: &Tensor) -> Result<Tensor, TchError> {
        self.forward(x_BCHW, condition)
    }
}

/// Applies the part, with gradient checkpointing if that is on and gradients are recorded: by the
/// input, or, where all weights before the part are frozen, by an adapter in it.
pub(super) fn checkpointed<T: Part>(
    layer: &Layer<T>,
    x_BCHW: &Tensor,
    conditions: &Conditions,
) -> Result<Tensor, TchError> {
    let condition = T::condition(conditions);
    let inputs = match &conditions.leaf {
        _ if !conditions.checkpointing => None,
        _ if x_BCHW.requires_grad() => Some(vec![x_BCHW, condition]),
        Some(leaf) if layer.0.has_adapter() || condition.requires_grad() => {
            Some(vec![x_BCHW, condition, leaf])
        }
        _ => None,
    };
    let Some(inputs) = inputs else { return layer.apply(x_BCHW, condition) };
    let part = layer.share();
    let segment = move |inputs: &[Tensor]| match inputs {
        // A method of `part`, so that the closure captures the whole `Layer`, for which `Sync`
        // holds.
        [x_BCHW, condition, ..] => part.apply(x_BCHW, condition),
        _ => Err(TchError::Shape("a checkpointed part takes two inputs".to_owned())),
    };
    shim::checkpoint(&inputs, Box::new(segment))
}
