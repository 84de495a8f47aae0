//! The blocks at the lowest resolution: `UNetMidBlock2DCrossAttn`.
//!
//! huggingface/diffusers `src/diffusers/models/unets/unet_2d_blocks.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::down::{Layer, checkpointed};
use super::text::TextProjections;
use super::transformer::{Transformer, TransformerSizes};
use super::{Conditions, UNetConfig};
use crate::layers::ResnetBlock;
use crate::weights::Loader;

/// A residual block, a transformer, a residual block.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnet_1: Layer<ResnetBlock>,
    transformer: Layer<Transformer>,
    resnet_2: Layer<ResnetBlock>,
}

impl MidBlock {
    pub(super) fn load(
        config: &UNetConfig,
        loader: &mut Loader<'_>,
        texts: &mut TextProjections,
    ) -> Self {
        let deepest = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[deepest];
        let sizes = TransformerSizes {
            channels,
            heads: config.heads[deepest],
            layers: config.transformer_layers[deepest],
            // diffusers passes `mid_block_only_cross_attention` to another kind of block only.
            only_cross_attention: false,
        };
        let resnet = config.resnet_sizes(channels, channels);
        Self {
            resnet_1: Layer::new(ResnetBlock::load(loader, "mid_block.resnets.0", resnet)),
            transformer: Layer::new(Transformer::load(
                config,
                loader,
                "mid_block.attentions.0",
                sizes,
                texts,
            )),
            resnet_2: Layer::new(ResnetBlock::load(loader, "mid_block.resnets.1", resnet)),
        }
    }

    pub(super) fn forward(
        &self,
        x_BCHW: &Tensor,
        conditions: &Conditions,
    ) -> Result<Tensor, TchError> {
        let x_BCHW = checkpointed(&self.resnet_1, x_BCHW, conditions)?;
        let x_BCHW = checkpointed(&self.transformer, &x_BCHW, conditions)?;
        checkpointed(&self.resnet_2, &x_BCHW, conditions)
    }
}
