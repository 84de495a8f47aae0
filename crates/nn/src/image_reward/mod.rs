//! ImageReward: BLIP's vision tower, whose tokens a BERT with cross-attention reads together with
//! the caption, and a head on the first token.
//!
//! Behaviour follows THUDM/ImageReward `ImageReward/ImageReward.py`, `models/BLIP/{vit,med,
//! blip_pretrain}.py` at v1.5; scores agree to 1e-5 in f32 with a network put together from timm
//! and transformers (`scripts/goldens/image_reward.py`).
//!
//! `B` batch, `C` channels, `H` and `W` of an image in pixels, `T` tokens of an image, `V` their
//! width, `L` tokens of a caption, `W` the width of BERT.

mod bert;
mod config;
mod vision;

use tch::Device;

pub use self::bert::CaptionReader;
pub use self::config::{CONFIG_FILE, CONTEXT_LENGTH, ImageRewardConfig, WEIGHT_FILES};
pub use self::vision::VisionTokens;
use crate::ModelError;
use crate::device::Precision;
use crate::weights::{Loader, Weights};

/// A tensor that every such checkpoint has: what precedes it is a wrapper's prefix (`module.`).
const ANCHORS: &[&str] = &["blip.visual_encoder.cls_token"];

/// Tensors of the published file that no score depends on: the projections of BLIP's contrastive
/// loss. (Position ids are skipped in every checkpoint.)
const UNUSED: [&str; 4] = [
    "blip.vision_proj.weight",
    "blip.vision_proj.bias",
    "blip.text_proj.weight",
    "blip.text_proj.bias",
];

/// An ImageReward model. The vision tower runs once an image, the rest once an image and caption.
#[derive(Debug)]
pub struct ImageReward {
    /// The vision tower.
    pub vision: VisionTokens,
    /// BERT and the head.
    pub reader: CaptionReader,
}

impl ImageReward {
    /// Loads the network, strictly: every tensor must exist with the shape that the configuration
    /// implies, and the file may hold no other, apart from the unused ones of the published file.
    ///
    /// # Errors
    /// If the checkpoint does not fit, or the precision cannot be used on the device.
    pub fn load(
        config: &ImageRewardConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        precision.check(device)?;
        let weights = weights.rooted(ANCHORS);
        let mut loader = Loader::new(&weights, "ImageReward", device, precision);
        let vision = VisionTokens::load(&config.vision, &mut loader);
        let reader = CaptionReader::load(config, &mut loader);
        loader.finish(|name| UNUSED.contains(&name))?;
        Ok(Self { vision, reader })
    }
}
