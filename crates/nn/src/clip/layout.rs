//! The two layouts in which CLIP-type models are published.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the tensors of a checkpoint are named and laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipLayout {
    /// `CLIPModel.save_pretrained` of `transformers`.
    Transformers,
    /// A state dict of `open_clip`, plain or under `state_dict`.
    OpenClip,
}

impl ClipLayout {
    /// The usual names of the weights in a model folder, the best first, for
    /// [`Weights::open_folder`](crate::weights::Weights::open_folder). Some published folders hold
    /// both layouts.
    pub fn weight_files(self) -> &'static [&'static str] {
        match self {
            Self::Transformers => &[
                "model.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
            ],
            Self::OpenClip => &[
                "open_clip_model.safetensors",
                "open_clip_pytorch_model.safetensors",
                "open_clip_pytorch_model.bin",
            ],
        }
    }

    /// Every such model has one of these tensors, whichever of its towers a file holds.
    pub(super) fn anchors(self) -> &'static [&'static str] {
        match self {
            Self::Transformers => &["visual_projection.weight", "text_projection.weight"],
            Self::OpenClip => {
                &["visual.class_embedding", "text.token_embedding.weight", "token_embedding.weight"]
            }
        }
    }

    /// The name of the configuration in a model folder.
    pub fn config_file(self) -> &'static str {
        match self {
            Self::Transformers => "config.json",
            Self::OpenClip => "open_clip_config.json",
        }
    }
}

impl fmt::Display for ClipLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Transformers => "transformers",
            Self::OpenClip => "open_clip",
        })
    }
}
