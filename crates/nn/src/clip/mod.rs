//! CLIP-type models: a vision tower and a text tower that map into one space.
//!
//! The same network is published in two layouts. `transformers` (`CLIPModel`) keeps query, key and
//! value apart and the projections transposed; `open_clip` keeps them together. [`ClipModel::load`]
//! reads either into the same blocks.
//!
//! Behaviour follows huggingface/transformers `src/transformers/models/clip/modeling_clip.py` at
//! v5.23.0 and mlfoundations/open_clip `src/open_clip/transformer.py` at v3.3.0; features agree to
//! 1e-5 in f32 (`tests/clip_goldens.rs`).

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod config;
mod layout;
mod open_clip_config;
mod published;
mod read;
mod text;
pub(crate) mod transformers_config;
pub(crate) mod vision;

use tch::Device;

pub use config::{Activation, ClipConfig, Pooling, TextConfig, VisionConfig};
pub use layout::ClipLayout;
pub use published::PUBLISHED_NAMES;
pub use text::TextTower;
pub use vision::VisionTower;

use crate::ModelError;
use crate::device::Precision;
use crate::weights::{Loader, Weights};

/// The towers to load; the other one takes no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipParts {
    /// The vision tower.
    pub vision: bool,
    /// The text tower.
    pub text: bool,
}

impl ClipParts {
    /// Both towers.
    pub const BOTH: Self = Self { vision: true, text: true };
    /// The vision tower alone, for scorers that read no caption.
    pub const VISION: Self = Self { vision: true, text: false };
    /// The text tower alone.
    pub const TEXT: Self = Self { vision: false, text: true };
}

/// What a model is loaded from.
#[derive(Debug, Clone, Copy)]
pub struct ClipSource<'a> {
    /// The sizes of the network.
    pub config: &'a ClipConfig,
    /// How the checkpoint names its tensors.
    pub layout: ClipLayout,
    /// The checkpoint.
    pub weights: &'a Weights,
}

/// A CLIP-type model, or one of its towers.
#[derive(Debug)]
pub struct ClipModel {
    /// The configuration it was loaded with.
    pub config: ClipConfig,
    /// The vision tower, if it was loaded.
    pub vision: Option<VisionTower>,
    /// The text tower, if it was loaded.
    pub text: Option<TextTower>,
}

impl ClipModel {
    /// Loads the towers in `parts`. Strict: every tensor of them must exist with the shape that the
    /// configuration implies, and the file may hold no tensor that the model does not use; one
    /// error reports all differences. Tensors of the other tower are ignored, and so are position
    /// ids, the causal mask, and scale and bias of the logits.
    pub fn load(
        source: ClipSource<'_>,
        parts: ClipParts,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let ClipSource { config, layout, weights } = source;
        config.validate()?;
        precision.check(device)?;
        let network = format!("CLIP model ({layout} layout)");
        let weights = weights.rooted(layout.anchors());
        let mut loader = Loader::new(&weights, network, device, precision);
        let vision = parts.vision.then(|| VisionTower::load(config, layout, &mut loader));
        let text = parts.text.then(|| TextTower::load(config, layout, &mut loader));
        loader.finish(|name| {
            (!parts.vision && vision::owns(layout, name))
                || (!parts.text && text::owns(layout, name))
        })?;
        Ok(Self { config: config.clone(), vision, text })
    }
}
