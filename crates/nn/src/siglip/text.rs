//! The text tower: tokens to one vector, that of the last token.
//!
//! `B` batch, `L` tokens, `W` width, `D` length of the features.

use tch::{Device, Kind, Tensor};

use super::SiglipConfig;
use crate::clip::ClipLayout;
use crate::clip::attention::Sight;
use crate::clip::block::{Block, BlockSizes, Choice};
use crate::device::{inference, upload};
use crate::error::NetworkError;
use crate::layers::LayerNorm;
use crate::weights::Loader;

/// The text tower, with its projection.
#[derive(Debug)]
pub struct SiglipText {
    token_embedding_VW: Tensor,
    position_embedding_LW: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    /// Always f32, as its bias.
    head_DW: Tensor,
    head_bias_D: Tensor,
    context_length: i64,
    vocabulary_size: i64,
    device: Device,
}

impl SiglipText {
    pub(super) fn load(config: &SiglipConfig, loader: &mut Loader<'_>) -> Self {
        let text = &config.text;
        let (width, projection) = (text.width, config.projection);
        let sizes = BlockSizes {
            width,
            heads: text.heads,
            mlp_width: text.mlp_width,
            activation: text.activation,
            layer_norm_epsilon: text.layer_norm_epsilon,
        };
        let [tokens, positions] = ["token_embedding", "position_embedding"]
            .map(|part| format!("text_model.embeddings.{part}.weight"));
        let mut head = |part: &str, shape: &[i64]| {
            loader.tensor_in(&format!("text_model.head.{part}"), shape, Kind::Float)
        };
        let (head_DW, head_bias_D) =
            (head("weight", &[projection, width]), head("bias", &[projection]));
        Self {
            token_embedding_VW: loader.tensor(&tokens, &[text.vocabulary_size, width]),
            position_embedding_LW: loader.tensor(&positions, &[text.context_length, width]),
            blocks: (0..text.layers)
                .map(|index| format!("text_model.encoder.layers.{index}"))
                .map(|name| Block::load(loader, ClipLayout::Transformers, &name, sizes))
                .collect(),
            final_norm: LayerNorm::load(
                loader,
                "text_model.final_layer_norm",
                width,
                text.layer_norm_epsilon,
            ),
            head_DW,
            head_bias_D,
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
        self.head_bias_D.size().first().copied().unwrap_or(0)
    }

    /// Features of texts, `pooler_output` of transformers: `tokens_BL` i64, padded as the model was
    /// trained, to `[B, D]` f32 on the tower's device; not normalised. Every token attends to all,
    /// the padding too, or with `length_B` i64 to so many first tokens of its text, as with an
    /// `attention_mask`. The feature is that of the last token in any case.
    ///
    /// # Errors If a shape, a length or a token is impossible, or memory runs out.
    pub fn try_forward(
        &self,
        tokens_BL: &Tensor,
        length_B: Option<&Tensor>,
    ) -> Result<Tensor, NetworkError> {
        let (size, most) = (tokens_BL.size(), self.context_length);
        let [batch, length @ 1..=i64::MAX] = size[..] else {
            return Err(unfit(format!("expected tokens [B, L], found {size:?}")));
        };
        if length > most {
            return Err(unfit(format!("expected at most {most} tokens, found {length}")));
        }
        if batch == 0 {
            return Ok(Tensor::f_zeros([0, self.embed_dim()], (Kind::Float, self.device))?);
        }
        // A wrong index on a GPU ends the whole process.
        within(tokens_BL, 0, self.vocabulary_size - 1, "tokens")?;
        if let Some(length_B) = length_B {
            if length_B.size() != [batch] {
                let found = length_B.size();
                return Err(unfit(format!("expected lengths [{batch}], found {found:?}")));
            }
            within(length_B, 1, length, "lengths")?;
        }
        inference(|| Ok(self.compute(tokens_BL, length_B, length)?))
    }

    fn compute(
        &self,
        tokens_BL: &Tensor,
        length_B: Option<&Tensor>,
        length: i64,
    ) -> Result<Tensor, tch::TchError> {
        let tokens_BL = upload(tokens_BL, self.device)?;
        let mask_B11L = match length_B {
            None => None,
            Some(length_B) => {
                let length_B = upload(length_B, self.device)?;
                let places_L = Tensor::f_arange(length, (Kind::Int64, self.device))?;
                Some(places_L.f_lt_tensor(&length_B.f_view([-1, 1, 1, 1])?)?)
            }
        };
        let mut x_BLW =
            Tensor::f_embedding(&self.token_embedding_VW, &tokens_BL, -1, false, false)?;
        drop(x_BLW.f_add_(&self.position_embedding_LW.f_narrow(0, 0, length)?)?);
        let Some((last, others)) = self.blocks.split_last() else {
            return Err(tch::TchError::Shape("a tower without blocks".to_owned()));
        };
        for block in others {
            let sight = Sight { mask_B11L: mask_B11L.as_ref(), causal: false };
            x_BLW = block.forward_seeing(x_BLW, sight)?;
        }
        // Nobody reads the other tokens of the last block.
        let pooled_B1W = last.forward_one(&x_BLW, &Choice::last(length, mask_B11L))?;
        self.final_norm
            .forward(&pooled_B1W)?
            .f_squeeze_dim(1)?
            .f_to_kind(Kind::Float)?
            .f_linear(&self.head_DW, Some(&self.head_bias_D))
    }
}

fn unfit(reason: String) -> NetworkError {
    NetworkError::Input { network: "SigLIP text tower", reason }
}

fn within(values: &Tensor, least: i64, most: i64, what: &str) -> Result<(), NetworkError> {
    let (first, last) = (values.f_min()?.f_int64_value(&[])?, values.f_max()?.f_int64_value(&[])?);
    if first < least || last > most {
        return Err(unfit(format!(
            "expected {what} from {least} to {most}, found {first} to {last}"
        )));
    }
    Ok(())
}
