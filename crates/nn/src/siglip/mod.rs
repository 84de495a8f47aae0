//! SigLIP: a vision tower and a text tower that map into one space, trained with a sigmoid for each
//! pair. SigLIP 2 of a fixed resolution is the same network with another vocabulary.
//!
//! Beside CLIP's: no class token, but a learned probe that attends to all patches; no causal mask,
//! and the last token of a text, most often padding, is its feature; a scale and a bias of the
//! logits, which belong to the score.
//!
//! Behaviour follows huggingface/transformers
//! `src/transformers/models/siglip/modeling_siglip.py` at v5.23.0; features and scores agree to 1e-5
//! in f32 (`tests/siglip.rs`, `scripts/parity`).

mod config;
mod text;
mod vision;

use tch::{Device, Kind, Tensor};

pub use config::SiglipConfig;
pub use text::SiglipText;
pub use vision::SiglipVision;

use crate::ModelError;
use crate::clip::ClipParts;
use crate::device::{Precision, inference};
use crate::error::NetworkError;
use crate::weights::{Loader, Weights, WeightsError};

/// The name in error messages.
const NETWORK: &str = "SigLIP model";

/// Every such model has one of these tensors, whichever of its towers a file holds.
const ANCHORS: &[&str] = &["vision_model.head.probe", "text_model.head.weight"];

/// A SigLIP model, or one of its towers.
#[derive(Debug)]
pub struct SiglipModel {
    /// The vision tower, if it was loaded.
    pub vision: Option<SiglipVision>,
    /// The text tower, if it was loaded.
    pub text: Option<SiglipText>,
}

impl SiglipModel {
    /// Loads the towers in `parts`. Strict, as [`crate::clip::ClipModel::load`].
    pub fn load(
        config: &SiglipConfig,
        weights: &Weights,
        parts: ClipParts,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        precision.check(device)?;
        let weights = weights.rooted(ANCHORS);
        let mut loader = Loader::new(&weights, NETWORK, device, precision);
        let vision = parts.vision.then(|| SiglipVision::load(&config.vision, &mut loader));
        let text = parts.text.then(|| SiglipText::load(config, &mut loader));
        loader.finish(|name| {
            (!parts.vision && name.starts_with("vision_model."))
                || (!parts.text && name.starts_with("text_model."))
        })?;
        Ok(Self { vision, text })
    }
}

/// From the cosine of image and caption to SigLIP's score: `σ(cosine · e^scale + bias)`, the
/// probability that they belong together. `torch.sigmoid(logits_per_image)` of `SiglipModel`.
#[derive(Debug, Clone, Copy)]
pub struct SiglipLogits {
    scale: f64,
    bias: f64,
}

impl SiglipLogits {
    /// Reads `logit_scale` and `logit_bias`, one number each.
    pub fn load(weights: &Weights) -> Result<Self, WeightsError> {
        let weights = &*weights.rooted(ANCHORS);
        let mut loader = Loader::new(weights, NETWORK, Device::Cpu, Precision::F32);
        let mut number = |name: &str| {
            // A file may hold a scalar, or a vector of one.
            let is_scalar = weights.shape(name).is_some_and(<[i64]>::is_empty);
            let shape: &[i64] = if is_scalar { &[] } else { &[1] };
            loader
                .tensor_in(name, shape, Kind::Float)
                .f_view([-1])
                .and_then(|one| one.f_double_value(&[0]))
        };
        let (scale, bias) = (number("logit_scale"), number("logit_bias"));
        // The towers are elsewhere.
        loader.finish(|_| true)?;
        let failed = |source| WeightsError::Torch { file: weights.describe(), source };
        Ok(Self { scale: scale.map_err(failed)?, bias: bias.map_err(failed)? })
    }

    /// Scores of cosines, in f32, of the same shape.
    pub fn scores(&self, cosines: &Tensor) -> Result<Tensor, NetworkError> {
        // As transformers computes them: the factor is the exponential in f32.
        let factor = f64::from((self.scale as f32).exp());
        inference(|| {
            let logits = cosines.f_to_kind(Kind::Float)?.f_mul_scalar(factor)?;
            Ok(logits.f_add_scalar(self.bias)?.f_sigmoid()?)
        })
    }
}
