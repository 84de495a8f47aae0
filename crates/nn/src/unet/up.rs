//! The upsampling blocks: `UpBlock2D` and `CrossAttnUpBlock2D`.
//!
//! huggingface/diffusers `src/diffusers/models/unets/unet_2d_blocks.py` at v0.42.1.

use tch::{TchError, Tensor};

use super::down::{Layer, checkpointed};
use super::text::TextProjections;
use super::transformer::{Transformer, TransformerSizes};
use super::{Conditions, UNetConfig};
use crate::layers::{ResnetBlock, Upsample};
use crate::weights::Loader;

/// Residual blocks, each on the features and one skip, a transformer after each one in a block with
/// attention, and upsampling at the end of all blocks but the last.
#[derive(Debug)]
#[doc(alias = "skip connection")]
pub(super) struct UpBlock {
    resnets: Vec<Layer<ResnetBlock>>,
    transformers: Vec<Layer<Transformer>>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    /// Block `index`, counted from the lowest resolution.
    pub(super) fn load(
        config: &UNetConfig,
        index: usize,
        loader: &mut Loader<'_>,
        texts: &mut TextProjections,
    ) -> Self {
        let name = format!("up_blocks.{index}");
        let channels = &config.block_out_channels;
        let levels = channels.len();
        // The downsampling level whose skips it reads, and the one below that.
        let level = levels - 1 - index;
        let output = channels[level];
        let below = channels[(level + 1).min(levels - 1)];
        let above = channels[level.saturating_sub(1)];
        let layers = config.layers[level] + 1;
        let resnets = (0..layers)
            .map(|layer| {
                let features = if layer == 0 { below } else { output };
                let skip = if layer == layers - 1 { above } else { output };
                let sizes = config.resnet_sizes(features + skip, output);
                Layer::new(ResnetBlock::load(loader, &format!("{name}.resnets.{layer}"), sizes))
            })
            .collect();
        let sizes = TransformerSizes {
            channels: output,
            heads: config.heads[level],
            layers: config.transformer_layers[level],
            only_cross_attention: config.only_cross_attention[level],
        };
        let attended = if config.up_attends[index] { layers } else { 0 };
        let transformers = (0..attended)
            .map(|layer| {
                let name = format!("{name}.attentions.{layer}");
                Layer::new(Transformer::load(config, loader, &name, sizes, texts))
            })
            .collect();
        let upsampler = (index + 1 < levels)
            .then(|| Upsample::load(loader, &format!("{name}.upsamplers.0"), output));
        Self { resnets, transformers, upsampler }
    }

    /// Pops its skips from the end of `skips`.
    pub(super) fn forward(
        &self,
        mut x_BCHW: Tensor,
        conditions: &Conditions,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor, TchError> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            let skip = skips.pop().ok_or_else(|| {
                TchError::Shape("fewer skips than the upsampling blocks read".to_owned())
            })?;
            x_BCHW = Tensor::f_cat(&[x_BCHW, skip], 1)?;
            x_BCHW = checkpointed(resnet, &x_BCHW, conditions)?;
            if let Some(transformer) = self.transformers.get(index) {
                x_BCHW = checkpointed(transformer, &x_BCHW, conditions)?;
            }
        }
        if let Some(upsampler) = &self.upsampler {
            // An odd height or width was rounded up on the way down, so the size is that of the
            // next skip.
            let size = skips.last().map(Tensor::size4).transpose()?;
            let size = size.map(|(_, _, height, width)| (height, width));
            x_BCHW = upsampler.forward(&x_BCHW, size)?;
        }
        Ok(x_BCHW)
    }
}
