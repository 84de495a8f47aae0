//! The vision tower: an image to one vector.
//!
//! `B` batch, `C` channels, `H` and `W` of an image in pixels, `L` patches, `W` also the width.

use tch::{Device, Kind, Tensor};

use super::NETWORK;
use crate::clip::attention::Attention;
use crate::clip::block::{Block, BlockSizes};
use crate::clip::vision::patches;
use crate::clip::{ClipLayout, VisionConfig};
use crate::device::{Precision, inference, upload};
use crate::error::NetworkError;
use crate::layers::{LayerNorm, Linear, Mlp};
use crate::weights::Loader;

const CHANNELS: i64 = 3;

/// The vision tower, with the head that pools its tokens.
#[derive(Debug)]
pub struct SiglipVision {
    /// The convolution as a matrix, because patches do not overlap.
    patch: Linear,
    position_embedding_LW: Tensor,
    blocks: Vec<Block>,
    post_norm: LayerNorm,
    head: Pooling,
    image_size: i64,
    patch_size: i64,
    width: i64,
    device: Device,
    precision: Precision,
}

/// Multi-head attention pooling: a learned probe reads all tokens; an MLP follows.
#[derive(Debug)]
struct Pooling {
    probe_11W: Tensor,
    attention: Attention,
    norm: LayerNorm,
    mlp: Mlp,
}

impl SiglipVision {
    pub(super) fn load(config: &VisionConfig, loader: &mut Loader<'_>) -> Self {
        let (width, patch, epsilon) = (config.width, config.patch_size, config.layer_norm_epsilon);
        let sizes = BlockSizes {
            width,
            heads: config.heads,
            mlp_width: config.mlp_width,
            activation: config.activation,
            layer_norm_epsilon: epsilon,
        };
        let embeddings = "vision_model.embeddings";
        let weight = loader.tensor(
            &format!("{embeddings}.patch_embedding.weight"),
            &[width, CHANNELS, patch, patch],
        );
        let bias = loader.tensor(&format!("{embeddings}.patch_embedding.bias"), &[width]);
        let positions = format!("{embeddings}.position_embedding.weight");
        let layout = ClipLayout::Transformers;
        Self {
            patch: Linear::new(loader, weight.flatten(1, -1), Some(bias)),
            position_embedding_LW: loader.tensor(&positions, &[config.grid().pow(2), width]),
            blocks: (0..config.layers)
                .map(|index| format!("vision_model.encoder.layers.{index}"))
                .map(|name| Block::load(loader, layout, &name, sizes))
                .collect(),
            post_norm: LayerNorm::load(loader, "vision_model.post_layernorm", width, epsilon),
            head: Pooling::load(loader, "vision_model.head", sizes),
            image_size: config.image_size,
            patch_size: patch,
            width,
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
        self.width
    }

    /// Features of preprocessed images, `pooler_output` of transformers: `pixels_BCHW` f32 on any
    /// device, `[B, 3, S, S]`, to `[B, W]` f32 on the tower's device; not normalised.
    ///
    /// # Errors If the shape is wrong, or memory runs out.
    pub fn try_forward(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        let (side, size) = (self.image_size, pixels_BCHW.size());
        if !matches!(size[..], [_, CHANNELS, height, width] if (height, width) == (side, side)) {
            return Err(NetworkError::Input {
                network: NETWORK,
                reason: format!("expected pixels of shape [B, 3, {side}, {side}], found {size:?}"),
            });
        }
        if size[0] == 0 {
            return Ok(Tensor::f_zeros([0, self.width], (Kind::Float, self.device))?);
        }
        inference(|| Ok(self.compute(pixels_BCHW)?))
    }

    fn compute(&self, pixels_BCHW: &Tensor) -> Result<Tensor, tch::TchError> {
        let pixels_BCHW = upload(pixels_BCHW, self.device)?.f_to_kind(self.precision.kind())?;
        let mut x_BLW = self.patch.forward(&patches(&pixels_BCHW, self.patch_size)?)?;
        drop(x_BLW.f_add_(&self.position_embedding_LW)?);
        for block in &self.blocks {
            x_BLW = block.forward(x_BLW, false)?;
        }
        self.head.forward(&self.post_norm.forward(&x_BLW)?)?.f_to_kind(Kind::Float)
    }
}

impl Pooling {
    fn load(loader: &mut Loader<'_>, name: &str, sizes: BlockSizes) -> Self {
        let BlockSizes { width, heads, mlp_width, activation, layer_norm_epsilon } = sizes;
        let [attention, norm, fc1, fc2] =
            ["attention", "layernorm", "mlp.fc1", "mlp.fc2"].map(|part| format!("{name}.{part}"));
        Self {
            probe_11W: loader.tensor(&format!("{name}.probe"), &[1, 1, width]),
            // torch's `MultiheadAttention`, as open_clip has it.
            attention: Attention::load(loader, ClipLayout::OpenClip, &attention, width, heads),
            norm: LayerNorm::load(loader, &norm, width, layer_norm_epsilon),
            mlp: Mlp::load(loader, [&fc1, &fc2], width, mlp_width, activation),
        }
    }

    /// `[B, L, W]` to `[B, W]`.
    fn forward(&self, x_BLW: &Tensor) -> Result<Tensor, tch::TchError> {
        let batch = x_BLW.size3()?.0;
        // Contiguous, as linear layers want their input.
        let probe_B1W = self.probe_11W.f_expand([batch, 1, -1], false)?.f_contiguous()?;
        let read_B1W = self.attention.read(&probe_B1W, x_BLW)?;
        let normed_B1W = self.norm.forward(&read_B1W)?;
        self.mlp.add_to(read_B1W, &normed_B1W)?.f_squeeze_dim(1)
    }
}
