//! The networks that scorers share, behind one interface for each side: an image tower reads
//! pixels, a text tower reads tokens.
//!
//! Shape legend: B images or captions of a batch, D numbers of a feature, L context length.
#![expect(non_snake_case, reason = "shape suffixes")]

use media::text::Tokens;
use nn::NetworkError;
use nn::clip::{Pooling, TextTower, VisionTower};
use nn::siglip::{SiglipText, SiglipVision};
use tch::{Kind, Tensor};

/// From pixels to what scorers read of an image.
pub(crate) trait ImageNetwork {
    /// Features `[B, D]` in f32 of pixels `[B, 3, S, S]`.
    fn features(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError>;
}

/// From tokens to what scorers read of a caption.
pub(crate) trait TextNetwork {
    /// How long the computation of a caption is, in tokens: those of similar length are computed
    /// together.
    fn length(&self, tokens: &Tokens) -> usize;

    /// Features `[B, D]` in f32 of captions.
    fn features(&self, captions: &[&Tokens]) -> Result<Tensor, NetworkError>;
}

/// Features of unit length.
impl ImageNetwork for VisionTower {
    fn features(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        unit_length(&self.try_forward(pixels_BCHW)?)
    }
}

/// A CLIP-type text tower: features of unit length.
pub(crate) struct ClipText {
    pub(crate) tower: TextTower,
    pub(crate) pooling: Pooling,
}

impl TextNetwork for ClipText {
    fn length(&self, tokens: &Tokens) -> usize {
        self.pooling.place(&tokens.ids)
    }

    fn features(&self, captions: &[&Tokens]) -> Result<Tensor, NetworkError> {
        let ids: Vec<i64> = captions.iter().flat_map(|tokens| tokens.ids.iter().copied()).collect();
        let ends: Vec<i64> = captions.iter().map(|tokens| self.length(tokens) as i64).collect();
        let tokens_BL = Tensor::f_from_slice(&ids)?.f_view([captions.len() as i64, -1])?;
        unit_length(&self.tower.try_forward(&tokens_BL, &Tensor::f_from_slice(&ends)?)?)
    }
}

/// Features of unit length.
impl ImageNetwork for SiglipVision {
    fn features(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        unit_length(&self.try_forward(pixels_BCHW)?)
    }
}

/// SigLIP's text tower: features of unit length.
pub(crate) struct SiglipCaptions(pub(crate) SiglipText);

impl TextNetwork for SiglipCaptions {
    /// All captions are padded to the context.
    fn length(&self, tokens: &Tokens) -> usize {
        tokens.ids.len()
    }

    fn features(&self, captions: &[&Tokens]) -> Result<Tensor, NetworkError> {
        let ids: Vec<i64> = captions.iter().flat_map(|tokens| tokens.ids.iter().copied()).collect();
        let tokens_BL = Tensor::f_from_slice(&ids)?.f_view([captions.len() as i64, -1])?;
        let lengths: Vec<i64> = captions.iter().map(|tokens| tokens.end_index as i64 + 1).collect();
        // Without a mask, a faster kernel works.
        let masked = captions.iter().any(|tokens| tokens.end_index + 1 < tokens.ids.len());
        let length_B = masked.then(|| Tensor::f_from_slice(&lengths)).transpose()?;
        unit_length(&self.0.try_forward(&tokens_BL, length_B.as_ref())?)
    }
}

/// Each row divided by its length.
pub(crate) fn unit_length(features_BD: &Tensor) -> Result<Tensor, NetworkError> {
    let features_BD = features_BD.f_to_kind(Kind::Float)?;
    let length_B1 = features_BD.f_norm_scalaropt_dim(2.0, [-1], true)?.f_clamp_min(1e-12)?;
    Ok(features_BD.f_div(&length_B1)?)
}
