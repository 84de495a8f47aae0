//! BLIP's vision tower: an image to all of its tokens. timm's ViT, with the names of timm.

use tch::{Device, Tensor};

use crate::clip::VisionConfig;
use crate::clip::block::{Block, BlockSizes};
use crate::device::{Precision, inference, upload};
use crate::error::NetworkError;
use crate::layers::{LayerNorm, Linear};
use crate::weights::Loader;

const CHANNELS: i64 = 3;

/// The vision tower.
#[derive(Debug)]
pub struct VisionTokens {
    /// The convolution as a matrix, because patches do not overlap.
    patches: Linear,
    class_token_11V: Tensor,
    position_embedding_1TV: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    image_size: i64,
    patch_size: i64,
    device: Device,
    precision: Precision,
}

impl VisionTokens {
    pub(super) fn load(config: &VisionConfig, loader: &mut Loader<'_>) -> Self {
        let name = "blip.visual_encoder";
        let (width, patch) = (config.width, config.patch_size);
        let epsilon = config.layer_norm_epsilon;
        let sizes = BlockSizes {
            width,
            heads: config.heads,
            mlp_width: config.mlp_width,
            activation: config.activation,
            layer_norm_epsilon: epsilon,
        };
        let projection = format!("{name}.patch_embed.proj");
        let weight =
            loader.tensor(&format!("{projection}.weight"), &[width, CHANNELS, patch, patch]);
        let bias = loader.tensor(&format!("{projection}.bias"), &[width]);
        Self {
            patches: Linear::new(loader, weight.flatten(1, -1), Some(bias)),
            class_token_11V: loader.tensor(&format!("{name}.cls_token"), &[1, 1, width]),
            position_embedding_1TV: loader
                .tensor(&format!("{name}.pos_embed"), &[1, config.tokens(), width]),
            blocks: (0..config.layers)
                .map(|block| Block::load_timm(loader, &format!("{name}.blocks.{block}"), sizes))
                .collect(),
            norm: LayerNorm::load(loader, &format!("{name}.norm"), width, epsilon),
            image_size: config.image_size,
            patch_size: patch,
            device: loader.device(),
            precision: loader.precision(),
        }
    }

    /// The tokens of preprocessed images: `pixels_BCHW` f32 on any device, `[B, 3, S, S]`, to
    /// `[B, T, V]` in the compute precision on the tower's device.
    ///
    /// # Errors
    /// If the shape is wrong, or memory runs out.
    pub fn try_forward(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        let side = self.image_size;
        let size = pixels_BCHW.size();
        let batch = match size[..] {
            [batch, CHANNELS, height, width] if (height, width) == (side, side) => batch,
            _ => {
                return Err(NetworkError::Input {
                    network: "vision tower",
                    reason: format!(
                        "expected pixels of shape [B, 3, {side}, {side}], found {size:?}"
                    ),
                });
            }
        };
        inference(|| self.compute(pixels_BCHW, batch))
    }

    fn compute(&self, pixels_BCHW: &Tensor, batch: i64) -> Result<Tensor, NetworkError> {
        let (grid, patch) = (self.image_size / self.patch_size, self.patch_size);
        let patches = upload(pixels_BCHW, self.device)?
            .f_to_kind(self.precision.kind())?
            .f_reshape([batch, CHANNELS, grid, patch, grid, patch])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([batch, grid * grid, CHANNELS * patch * patch])?;
        let class = self.class_token_11V.f_expand([batch, 1, -1], false)?;
        let mut x_BTV = Tensor::f_cat(&[class, self.patches.forward(&patches)?], 1)?;
        drop(x_BTV.f_add_(&self.position_embedding_1TV)?);
        for block in &self.blocks {
            x_BTV = block.forward(x_BTV, false)?;
        }
        Ok(self.norm.forward(&x_BTV)?)
    }
}
