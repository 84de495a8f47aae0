//! The vision tower: an image to one vector.
//!
//! `B` batch, `C` channels, `H` and `W` of an image in pixels or patches, `P` side of a patch,
//! `L` tokens, `D` the joint embedding.

use tch::{Device, Kind, Tensor};

use super::block::{Block, BlockSizes, Choice};
use super::config::ClipConfig;
use super::layout::ClipLayout;
use crate::device::{Precision, inference, upload};
use crate::error::NetworkError;
use crate::layers::LayerNorm;
use crate::weights::Loader;

const CHANNELS: i64 = 3;

/// The vision tower of a CLIP-type model, with its projection.
#[derive(Debug)]
pub struct VisionTower {
    /// `[W, C·P·P]`: the convolution as a matrix, because patches do not overlap.
    patch_weight: Tensor,
    class_embedding_W: Tensor,
    position_embedding_LW: Tensor,
    pre_norm: LayerNorm,
    blocks: Vec<Block>,
    post_norm: LayerNorm,
    /// Always f32.
    projection_WD: Tensor,
    image_size: i64,
    patch_size: i64,
    device: Device,
    precision: Precision,
}

/// The names of the tensors outside the blocks.
struct Names {
    patch: &'static str,
    class: &'static str,
    position: &'static str,
    pre_norm: &'static str,
    post_norm: &'static str,
    projection: &'static str,
    blocks: &'static str,
}

const TRANSFORMERS: Names = Names {
    patch: "vision_model.embeddings.patch_embedding.weight",
    class: "vision_model.embeddings.class_embedding",
    position: "vision_model.embeddings.position_embedding.weight",
    // The missing letter is transformers' own.
    pre_norm: "vision_model.pre_layrnorm",
    post_norm: "vision_model.post_layernorm",
    projection: "visual_projection.weight",
    blocks: "vision_model.encoder.layers",
};

const OPEN_CLIP: Names = Names {
    patch: "visual.conv1.weight",
    class: "visual.class_embedding",
    position: "visual.positional_embedding",
    pre_norm: "visual.ln_pre",
    post_norm: "visual.ln_post",
    projection: "visual.proj",
    blocks: "visual.transformer.resblocks",
};

/// True if a tensor of this name belongs to the vision tower.
pub(super) fn owns(layout: ClipLayout, name: &str) -> bool {
    match layout {
        ClipLayout::Transformers => {
            name.starts_with("vision_model.") || name.starts_with("visual_projection.")
        }
        ClipLayout::OpenClip => name.starts_with("visual."),
    }
}

impl VisionTower {
    pub(super) fn load(config: &ClipConfig, layout: ClipLayout, loader: &mut Loader<'_>) -> Self {
        let names = match layout {
            ClipLayout::Transformers => TRANSFORMERS,
            ClipLayout::OpenClip => OPEN_CLIP,
        };
        let vision = &config.vision;
        let (width, patch, epsilon) = (vision.width, vision.patch_size, vision.layer_norm_epsilon);
        let sizes = BlockSizes {
            width,
            heads: vision.heads,
            mlp_width: vision.mlp_width,
            activation: vision.activation,
            layer_norm_epsilon: epsilon,
        };
        Self {
            patch_weight: loader
                .tensor(names.patch, &[width, CHANNELS, patch, patch])
                .flatten(1, -1),
            class_embedding_W: loader.tensor(names.class, &[width]),
            position_embedding_LW: loader.tensor(names.position, &[vision.tokens(), width]),
            pre_norm: LayerNorm::load(loader, names.pre_norm, width, epsilon),
            blocks: (0..vision.layers)
                .map(|index| {
                    Block::load(loader, layout, &format!("{}.{index}", names.blocks), sizes)
                })
                .collect(),
            post_norm: LayerNorm::load(loader, names.post_norm, width, epsilon),
            projection_WD: load_projection(
                loader,
                layout,
                names.projection,
                width,
                config.embed_dim,
            ),
            image_size: vision.image_size,
            patch_size: patch,
            device: loader.device(),
            precision: loader.precision(),
        }
    }

    /// Side of the images in pixels.
    pub fn image_size(&self) -> i64 {
        self.image_size
    }

    /// Length of the features.
    pub fn embed_dim(&self) -> i64 {
        self.projection_WD.size().get(1).copied().unwrap_or(0)
    }

    /// Features of preprocessed images: `pixels_BCHW` f32 on any device, `[B, 3, S, S]`, to
    /// `[B, D]` f32 on the tower's device; projected, not normalised.
    ///
    /// # Panics
    ///
    /// If [`VisionTower::try_forward`] returns an error.
    pub fn forward(&self, pixels_BCHW: &Tensor) -> Tensor {
        self.try_forward(pixels_BCHW).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`VisionTower::forward`], with an error if the shape is wrong, or memory runs out.
    pub fn try_forward(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        let side = self.image_size;
        let size = pixels_BCHW.size();
        let [batch, CHANNELS, height, width] = size[..] else {
            return Err(self.unfit(&size));
        };
        if (height, width) != (side, side) {
            return Err(self.unfit(&size));
        }
        if batch == 0 {
            return Ok(Tensor::f_zeros([0, self.embed_dim()], (Kind::Float, self.device))?);
        }
        inference(|| self.compute(pixels_BCHW, batch))
    }

    fn compute(&self, pixels_BCHW: &Tensor, batch: i64) -> Result<Tensor, NetworkError> {
        let pixels_BCHW = upload(pixels_BCHW, self.device)?.f_to_kind(self.precision.kind())?;
        let patches = patches(&pixels_BCHW, self.patch_size)?
            .f_linear(&self.patch_weight, None::<&Tensor>)?;
        let class = self.class_embedding_W.f_expand([batch, 1, -1], false)?;
        let mut x_BLW = Tensor::f_cat(&[class, patches], 1)?;
        drop(x_BLW.f_add_(&self.position_embedding_LW)?);
        x_BLW = self.pre_norm.forward(&x_BLW)?;
        let pooled_B1W = run_blocks(&self.blocks, x_BLW, false, &Choice::first())?;
        Ok(project(&self.post_norm, &pooled_B1W, &self.projection_WD)?)
    }

    fn unfit(&self, size: &[i64]) -> NetworkError {
        let side = self.image_size;
        NetworkError::Input {
            network: "vision tower",
            reason: format!("expected pixels of shape [B, 3, {side}, {side}], found {size:?}"),
        }
    }
}

/// The pixels of each patch side by side, `[B, 3, S, S]` to `[B, patches, 3·P·P]`; what does not
/// fill a patch is dropped.
pub(crate) fn patches(pixels_BCHW: &Tensor, patch: i64) -> Result<Tensor, tch::TchError> {
    let (batch, channels, height, width) = pixels_BCHW.size4()?;
    let (rows, columns) = (height / patch, width / patch);
    pixels_BCHW
        .f_narrow(2, 0, rows * patch)?
        .f_narrow(3, 0, columns * patch)?
        .f_reshape([batch, channels, rows, patch, columns, patch])?
        .f_permute([0, 2, 4, 1, 3, 5])?
        .f_reshape([batch, rows * columns, channels * patch * patch])
}

/// `[W, D]` in f32. transformers stores it as the weight of a layer, `[D, W]`.
pub(super) fn load_projection(
    loader: &mut Loader<'_>,
    layout: ClipLayout,
    name: &str,
    width: i64,
    embed_dim: i64,
) -> Tensor {
    match layout {
        ClipLayout::Transformers => {
            loader.tensor_in(name, &[embed_dim, width], Kind::Float).transpose(0, 1)
        }
        ClipLayout::OpenClip => loader.tensor_in(name, &[width, embed_dim], Kind::Float),
    }
}

/// All blocks but the last for all tokens, the last for the chosen ones: `[B, 1, W]`.
pub(super) fn run_blocks(
    blocks: &[Block],
    mut x_BLW: Tensor,
    causal: bool,
    choice: &Choice,
) -> Result<Tensor, tch::TchError> {
    let Some((last, others)) = blocks.split_last() else {
        return Err(tch::TchError::Shape("a tower without blocks".to_owned()));
    };
    for block in others {
        x_BLW = block.forward(x_BLW, causal)?;
    }
    last.forward_one(&x_BLW, choice)
}

/// The last normalisation and the projection, in f32: `[B, 1, W]` to `[B, D]`.
pub(super) fn project(
    norm: &LayerNorm,
    pooled_B1W: &Tensor,
    projection_WD: &Tensor,
) -> Result<Tensor, tch::TchError> {
    norm.forward(pooled_B1W)?.f_squeeze_dim(1)?.f_to_kind(Kind::Float)?.f_matmul(projection_WD)
}
