//! The text encoders of diffusion pipelines: `CLIPTextModel` and `CLIPTextModelWithProjection` of
//! `transformers` (CLIP-L, OpenCLIP-H, bigG and any other size).
//!
//! Unlike the text tower of [`crate::clip`], which outputs one vector, these encoders output every
//! token, also those after the end token: a UNet attends to the padding as well.
//!
//! Behaviour follows huggingface/transformers `src/transformers/models/clip/modeling_clip.py` at
//! v5.23.0, and for the choice of layers huggingface/diffusers
//! `src/diffusers/pipelines/stable_diffusion{,_xl}/` at v0.42.1; outputs agree to 1e-5 in f32
//! (`tests/diffusion_text.rs`).
//!
//! `B` batch, `L` tokens, `W` width, `D` the projection.

mod config;

use tch::{Device, Kind, TchError, Tensor};

pub use config::TextEncoderConfig;

use crate::clip::ClipLayout;
use crate::clip::block::{Block, BlockSizes};
use crate::device::{Precision, inference, upload};
use crate::error::{ModelError, NetworkError};
use crate::layers::LayerNorm;
use crate::weights::{Loader, Weights};

/// The usual names of the weights in a folder, the best first, for [`Weights::open_folder`].
pub const WEIGHT_FILES: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.fp16.bin",
];

/// The name in error messages.
const NETWORK: &str = "text encoder";

/// The tensor that every such network has, under either of its names.
pub(crate) const ANCHORS: &[&str] =
    &["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"];

/// A text encoder.
#[derive(Debug)]
pub struct TextEncoder {
    config: TextEncoderConfig,
    token_embedding_VW: Tensor,
    position_embedding_LW: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    /// `[D, W]`, always f32.
    projection_DW: Option<Tensor>,
    device: Device,
}

/// The output of a text encoder; f32, on its device, usable in training.
#[derive(Debug)]
pub struct TextEncoding {
    /// The last layer after the final normalisation, `[B, L, W]`, which Stable Diffusion reads.
    pub hidden_states: Tensor,
    /// The layer before it without the normalisation, `[B, L, W]`, which SDXL reads.
    pub penultimate: Tensor,
    /// The projected features at the end token, `[B, D]`, if there is a projection.
    pub pooled: Option<Tensor>,
}

impl TextEncoder {
    /// Loads the network, strictly. Names may begin with `text_model.` (all published files) or
    /// not.
    ///
    /// # Errors If the checkpoint does not fit the configuration, or the precision does not fit the
    /// device.
    pub fn load(
        config: &TextEncoderConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        precision.check(device)?;
        let weights = weights.rooted(ANCHORS);
        let mut loader = Loader::new(&weights, NETWORK, device, precision).refusing_non_finite();
        let bare = weights.contains("embeddings.token_embedding.weight");
        let prefix = if bare { "" } else { "text_model." };
        let name = |part: &str| format!("{prefix}{part}");
        let sizes = &config.sizes;
        let (width, epsilon) = (sizes.width, sizes.layer_norm_epsilon);
        let block = BlockSizes {
            width,
            heads: sizes.heads,
            mlp_width: sizes.mlp_width,
            activation: sizes.activation,
            layer_norm_epsilon: epsilon,
        };
        let (tokens, positions) = (
            name("embeddings.token_embedding.weight"),
            name("embeddings.position_embedding.weight"),
        );
        let layout = ClipLayout::Transformers;
        let network = Self {
            config: config.clone(),
            token_embedding_VW: loader.tensor(&tokens, &[sizes.vocabulary_size, width]),
            position_embedding_LW: loader.tensor(&positions, &[sizes.context_length, width]),
            blocks: (0..sizes.layers)
                .map(|index| name(&format!("encoder.layers.{index}")))
                .map(|name| Block::load(&mut loader, layout, &name, block))
                .collect(),
            final_norm: LayerNorm::load(&mut loader, &name("final_layer_norm"), width, epsilon),
            projection_DW: config.projection.map(|length| {
                loader.tensor_in("text_projection.weight", &[length, width], Kind::Float)
            }),
            device,
        };
        // Some files hold a projection that their network does not use.
        loader.finish(|name| name == "text_projection.weight")?;
        Ok(network)
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &TextEncoderConfig {
        &self.config
    }

    /// Encodes texts: `tokens_BL` i64 on any device, `L` up to the context length, padding
    /// included.
    pub fn encode(&self, tokens_BL: &Tensor) -> Result<TextEncoding, NetworkError> {
        self.encode_skipping(tokens_BL, 0)
    }

    /// [`TextEncoder::encode`] with the hidden states of `clip_skip` layers earlier, the last of
    /// them normalised and the one before not, as in the pipelines of diffusers. The pooled
    /// features still come from the last layer.
    ///
    /// # Errors If there are not enough layers to skip.
    pub fn encode_skipping(
        &self,
        tokens_BL: &Tensor,
        clip_skip: usize,
    ) -> Result<TextEncoding, NetworkError> {
        self.check(tokens_BL)?;
        let layers = self.blocks.len();
        let Some(last) = layers.checked_sub(clip_skip).filter(|last| *last > 0) else {
            let reason = format!("expected to skip fewer than {layers} layers, found {clip_skip}");
            return Err(NetworkError::Input { network: NETWORK, reason });
        };
        let encoding = inference(|| self.compute(tokens_BL, last))?;
        // Copies made outside of inference mode: a network in training may save them for its
        // gradients.
        Ok(TextEncoding {
            hidden_states: copy(&encoding.hidden_states)?,
            penultimate: copy(&encoding.penultimate)?,
            pooled: encoding.pooled.as_ref().map(copy).transpose()?,
        })
    }

    /// The hidden states after `last` blocks and after one less.
    fn compute(&self, tokens_BL: &Tensor, last: usize) -> Result<TextEncoding, TchError> {
        let tokens_BL = upload(tokens_BL, self.device)?;
        let (batch, length) = tokens_BL.size2()?;
        let mut x_BLW =
            Tensor::f_embedding(&self.token_embedding_VW, &tokens_BL, -1, false, false)?;
        drop(x_BLW.f_add_(&self.position_embedding_LW.f_narrow(0, 0, length)?)?);
        let mut kept = Vec::with_capacity(2);
        for (index, block) in self.blocks.iter().enumerate() {
            // A block writes into the stream, so states that are kept are copied.
            if index + 1 == last || index == last {
                kept.push(copy(&x_BLW)?);
            }
            if index == last && self.projection_DW.is_none() {
                break;
            }
            x_BLW = block.forward(x_BLW, true)?;
        }
        let mut kept = kept.into_iter();
        let missing = || TchError::Shape("a text encoder without blocks".to_owned());
        let penultimate = kept.next().ok_or_else(missing)?;
        let hidden_states = match kept.next() {
            Some(earlier_BLW) => self.final_norm.forward(&earlier_BLW.f_to_kind(x_BLW.kind())?)?,
            None => self.final_norm.forward(&x_BLW)?,
        };
        let pooled = match &self.projection_DW {
            None => None,
            Some(projection_DW) => {
                let end_B11 = self.ends(&tokens_BL)?.f_view([batch, 1, 1])?;
                let end_B1W = end_B11.f_expand([batch, 1, self.config.sizes.width], false)?;
                let end_BW = x_BLW.f_gather(1, &end_B1W, false)?.f_squeeze_dim(1)?;
                let normed_BW = self.final_norm.forward(&end_BW)?.f_to_kind(Kind::Float)?;
                Some(normed_BW.f_linear(projection_DW, None::<&Tensor>)?)
            }
        };
        Ok(TextEncoding { hidden_states, penultimate, pooled })
    }

    /// The position of each text's end token, `[B]`; position 0 if a text has no end token, as in
    /// transformers.
    fn ends(&self, tokens_BL: &Tensor) -> Result<Tensor, TchError> {
        match self.config.end_token {
            2 => tokens_BL.f_argmax(-1, false),
            end => tokens_BL.f_eq(end)?.f_to_kind(Kind::Int)?.f_argmax(-1, false),
        }
    }

    /// Checks the values too, because a wrong index on a GPU ends the whole process.
    fn check(&self, tokens_BL: &Tensor) -> Result<(), NetworkError> {
        let unfit = |reason: String| Err(NetworkError::Input { network: NETWORK, reason });
        let (size, most) = (tokens_BL.size(), self.config.sizes.context_length);
        if !matches!(size[..], [batch, length] if batch > 0 && (1..=most).contains(&length))
            || tokens_BL.kind() != Kind::Int64
        {
            let kind = tokens_BL.kind();
            return unfit(format!(
                "expected i64 tokens [B, L], L at most {most}, found {kind:?} {size:?}"
            ));
        }
        let (first, last) =
            (tokens_BL.f_min()?.f_int64_value(&[])?, tokens_BL.f_max()?.f_int64_value(&[])?);
        let most = self.config.sizes.vocabulary_size - 1;
        if first < 0 || last > most {
            return unfit(format!("expected tokens from 0 to {most}, found {first} to {last}"));
        }
        Ok(())
    }
}

/// An f32 copy.
fn copy(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_to_dtype(Kind::Float, false, true)
}
