//! Published architectures as data: mlfoundations/open_clip `src/open_clip/model_configs/*.json`
//! at v3.3.0. All have images of 224 pixels, 77 tokens of 49408, and an epsilon of 1e-5.

use super::config::{Activation, ClipConfig, Pooling, TextConfig, VisionConfig};

/// The names that [`ClipConfig::published`] knows.
pub const PUBLISHED_NAMES: &[&str] = &[
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-B-16-quickgelu",
    "ViT-L-14",
    "ViT-L-14-quickgelu",
    "ViT-H-14",
    "ViT-H-14-quickgelu",
    "ViT-g-14",
    "ViT-bigG-14",
];

/// Width, layers, heads and MLP width of a tower.
struct Tower(i64, i64, i64, i64);

pub(super) fn find(name: &str) -> Option<ClipConfig> {
    if !PUBLISHED_NAMES.contains(&name) {
        return None;
    }
    let (base, activation) = match name.strip_suffix("-quickgelu") {
        Some(base) => (base, Activation::QuickGelu),
        None => (name, Activation::Gelu),
    };
    let (embed_dim, patch_size, vision, text) = match base {
        "ViT-B-32" => (512, 32, Tower(768, 12, 12, 3072), Tower(512, 12, 8, 2048)),
        "ViT-B-16" => (512, 16, Tower(768, 12, 12, 3072), Tower(512, 12, 8, 2048)),
        "ViT-L-14" => (768, 14, Tower(1024, 24, 16, 4096), Tower(768, 12, 12, 3072)),
        "ViT-H-14" => (1024, 14, Tower(1280, 32, 16, 5120), Tower(1024, 24, 16, 4096)),
        "ViT-g-14" => (1024, 14, Tower(1408, 40, 16, 6144), Tower(1024, 24, 16, 4096)),
        "ViT-bigG-14" => (1280, 14, Tower(1664, 48, 16, 8192), Tower(1280, 32, 20, 5120)),
        _ => return None,
    };
    Some(ClipConfig {
        embed_dim,
        vision: VisionConfig {
            image_size: 224,
            patch_size,
            width: vision.0,
            layers: vision.1,
            heads: vision.2,
            mlp_width: vision.3,
            activation,
            layer_norm_epsilon: 1e-5,
        },
        text: TextConfig {
            context_length: 77,
            vocabulary_size: 49408,
            width: text.0,
            layers: text.1,
            heads: text.2,
            mlp_width: text.3,
            activation,
            layer_norm_epsilon: 1e-5,
        },
        pooling: Pooling::Argmax,
    })
}
