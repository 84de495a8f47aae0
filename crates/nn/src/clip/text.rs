//! The text tower: tokens to one vector, read off at the end token.
//!
//! `B` batch, `L` tokens, `W` width, `D` the joint embedding.

use tch::{Device, Kind, Tensor};

use super::block::{Block, BlockSizes, Choice};
use super::config::ClipConfig;
use super::layout::ClipLayout;
use super::vision::{load_projection, project, run_blocks};
use crate::device::{inference, upload};
use crate::error::NetworkError;
use crate::layers::LayerNorm;
use crate::weights::Loader;

/// The text tower of a CLIP-type model, with its projection.
#[derive(Debug)]
pub struct TextTower {
    token_embedding_VW: Tensor,
    position_embedding_LW: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    /// Always f32.
    projection_WD: Tensor,
    context_length: i64,
    vocabulary_size: i64,
    device: Device,
}

/// True if a tensor of this name belongs to the text tower.
pub(super) fn owns(layout: ClipLayout, name: &str) -> bool {
    match layout {
        ClipLayout::Transformers => {
            name.starts_with("text_model.") || name.starts_with("text_projection.")
        }
        ClipLayout::OpenClip => {
            let name = name.strip_prefix("text.").unwrap_or(name);
            name.starts_with("transformer.")
                || name.starts_with("ln_final.")
                || matches!(
                    name,
                    "token_embedding.weight" | "positional_embedding" | "text_projection"
                )
        }
    }
}

impl TextTower {
    pub(super) fn load(config: &ClipConfig, layout: ClipLayout, loader: &mut Loader<'_>) -> Self {
        let text = &config.text;
        let (width, epsilon) = (text.width, text.layer_norm_epsilon);
        // Later checkpoints of open_clip keep the text tower in a separate module.
        let prefix = match layout {
            ClipLayout::OpenClip if loader.weights().contains("text.token_embedding.weight") => {
                "text."
            }
            _ => "",
        };
        let [tokens, positions, blocks, final_norm, projection] = match layout {
            ClipLayout::Transformers => [
                "text_model.embeddings.token_embedding.weight",
                "text_model.embeddings.position_embedding.weight",
                "text_model.encoder.layers",
                "text_model.final_layer_norm",
                "text_projection.weight",
            ],
            ClipLayout::OpenClip => [
                "token_embedding.weight",
                "positional_embedding",
                "transformer.resblocks",
                "ln_final",
                "text_projection",
            ],
        }
        .map(|name| format!("{prefix}{name}"));
        let sizes = BlockSizes {
            width,
            heads: text.heads,
            mlp_width: text.mlp_width,
            activation: text.activation,
            layer_norm_epsilon: epsilon,
        };
        Self {
            token_embedding_VW: loader.tensor(&tokens, &[text.vocabulary_size, width]),
            position_embedding_LW: loader.tensor(&positions, &[text.context_length, width]),
            blocks: (0..text.layers)
                .map(|index| Block::load(loader, layout, &format!("{blocks}.{index}"), sizes))
                .collect(),
            final_norm: LayerNorm::load(loader, &final_norm, width, epsilon),
            projection_WD: load_projection(loader, layout, &projection, width, config.embed_dim),
            context_length: text.context_length,
            vocabulary_size: text.vocabulary_size,
            device: loader.device(),
        }
    }

    /// The most tokens of a text.
    pub fn context_length(&self) -> i64 {
        self.context_length
    }

    /// Length of the features.
    pub fn embed_dim(&self) -> i64 {
        self.projection_WD.size().get(1).copied().unwrap_or(0)
    }

    /// Features of texts: `tokens_BL` i64 with `L` up to the context length, and for each text the
    /// position of its end token, `end_index_B` i64, to `[B, D]` f32 on the tower's device;
    /// projected, not normalised. Tokens after the end token, such as padding, have no effect.
    ///
    /// # Panics
    ///
    /// If [`TextTower::try_forward`] returns an error.
    pub fn forward(&self, tokens_BL: &Tensor, end_index_B: &Tensor) -> Tensor {
        self.try_forward(tokens_BL, end_index_B).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`TextTower::forward`], with an error if a shape or a token is impossible, or memory runs
    /// out.
    pub fn try_forward(
        &self,
        tokens_BL: &Tensor,
        end_index_B: &Tensor,
    ) -> Result<Tensor, NetworkError> {
        let (size, ends) = (tokens_BL.size(), end_index_B.size());
        let ([batch, length], [ends]) = (&size[..], &ends[..]) else {
            return Err(unfit(format!(
                "expected tokens [B, L] and ends [B], found {size:?}, {ends:?}"
            )));
        };
        if batch != ends || *length > self.context_length {
            let most = self.context_length;
            let reason =
                format!("expected tokens [B, L ≤ {most}] and ends [B], found {size:?}, [{ends}]");
            return Err(unfit(reason));
        }
        if *batch == 0 {
            return Ok(Tensor::f_zeros([0, self.embed_dim()], (Kind::Float, self.device))?);
        }
        let last = self.check(tokens_BL, end_index_B, *length)?;
        inference(|| self.compute(&tokens_BL.f_narrow(1, 0, last + 1)?, end_index_B))
    }

    /// Checks the values, because a wrong index on a GPU ends the whole process, and returns the
    /// last end.
    fn check(
        &self,
        tokens_BL: &Tensor,
        end_index_B: &Tensor,
        length: i64,
    ) -> Result<i64, NetworkError> {
        if length == 0 {
            return Err(unfit("expected at least one token".to_owned()));
        }
        let range = |values: &Tensor| -> Result<(i64, i64), NetworkError> {
            Ok((values.f_min()?.f_int64_value(&[])?, values.f_max()?.f_int64_value(&[])?))
        };
        let (first_token, last_token) = range(tokens_BL)?;
        if first_token < 0 || last_token >= self.vocabulary_size {
            let most = self.vocabulary_size - 1;
            return Err(unfit(format!(
                "expected tokens from 0 to {most}, found {first_token} to {last_token}"
            )));
        }
        let (first_end, last_end) = range(end_index_B)?;
        if first_end < 0 || last_end >= length {
            return Err(unfit(format!(
                "expected ends from 0 to {}, found {first_end} to {last_end}",
                length - 1
            )));
        }
        Ok(last_end)
    }

    /// The caller has truncated the tokens after the last end of the batch: under a causal mask, no
    /// earlier token sees them.
    fn compute(&self, tokens_BL: &Tensor, end_index_B: &Tensor) -> Result<Tensor, NetworkError> {
        let tokens_BL = upload(tokens_BL, self.device)?;
        let end_index_B = upload(end_index_B, self.device)?;
        let length = tokens_BL.size2()?.1;
        let mut x_BLW =
            Tensor::f_embedding(&self.token_embedding_VW, &tokens_BL, -1, false, false)?;
        drop(x_BLW.f_add_(&self.position_embedding_LW.f_narrow(0, 0, length)?)?);
        let choice = Choice::causal(&end_index_B, length)?;
        let pooled_B1W = run_blocks(&self.blocks, x_BLW, true, &choice)?;
        Ok(project(&self.final_norm, &pooled_B1W, &self.projection_WD)?)
    }
}

fn unfit(reason: String) -> NetworkError {
    NetworkError::Input { network: "text tower", reason }
}
