//! The kinds of scorers, and which keys of `scorers.toml` each has.

use serde::{Deserialize, Serialize};

/// What turns an image and its caption into a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Cosine of image and caption features (CLIP, HPS v2, PickScore).
    #[serde(rename = "clip")]
    Clip,
    /// LAION's linear head on normalised image features; the caption is ignored.
    #[serde(rename = "aesthetic")]
    Aesthetic,
    /// ImageReward: BLIP and a head, which read image and caption together.
    #[serde(rename = "image-reward")]
    ImageReward,
    /// SigLIP and SigLIP 2: the probability that image and caption belong together.
    #[serde(rename = "siglip")]
    Siglip,
    /// The head of aesthetic-predictor-v2-5 on SigLIP's image features; the caption is ignored.
    #[serde(rename = "aesthetic-siglip")]
    AestheticSiglip,
    /// A vision-language model behind an OpenAI-compatible endpoint.
    #[serde(rename = "vlm")]
    Vlm,
    /// A program of the user's.
    #[serde(rename = "command")]
    Command,
}

/// The keys of a kind, besides `name` and `kind`.
struct Keys {
    /// Those that an entry must have, each with what it is.
    needed: &'static [(&'static str, &'static str)],
    /// Those that it may have.
    optional: &'static [&'static str],
    /// Why the kind has no others; may be empty.
    note: &'static str,
}

const MODEL: (&str, &str) = ("model", "a folder or hf://owner/name");
const LAYOUT: (&str, &str) = ("layout", "\"transformers\" or \"open_clip\"");
const HEAD: (&str, &str) = ("head", "the file of the linear layers");
const PREPROCESS: (&str, &str) = ("preprocess", "\"hf\", \"hps\" or \"open_clip\"");

impl Kind {
    /// All kinds.
    pub const ALL: &'static [Self] = &[
        Self::Clip,
        Self::Aesthetic,
        Self::ImageReward,
        Self::Siglip,
        Self::AestheticSiglip,
        Self::Vlm,
        Self::Command,
    ];

    /// The name in `scorers.toml` and in manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Aesthetic => "aesthetic",
            Self::ImageReward => "image-reward",
            Self::Siglip => "siglip",
            Self::AestheticSiglip => "aesthetic-siglip",
            Self::Vlm => "vlm",
            Self::Command => "command",
        }
    }

    fn keys(self) -> Keys {
        match self {
            Self::Clip => Keys {
                needed: &[MODEL, LAYOUT, PREPROCESS],
                optional: &["weights", "architecture", "hps_resize", "alpha", "tokenizer"],
                note: "",
            },
            Self::Aesthetic => Keys {
                needed: &[MODEL, LAYOUT, PREPROCESS, HEAD],
                optional: &["weights", "architecture", "hps_resize", "alpha", "head_sha256"],
                note: ", which ignores the caption",
            },
            Self::ImageReward => Keys {
                needed: &[MODEL],
                optional: &["weights", "vocabulary"],
                note: ", whose layout, preprocessing and tokenizer are fixed",
            },
            Self::Siglip => Keys {
                needed: &[MODEL],
                optional: &["weights", "alpha", "tokenizer"],
                note: ", whose layout and preprocessing are those of its folder",
            },
            Self::AestheticSiglip => Keys {
                needed: &[MODEL, HEAD],
                optional: &["weights", "alpha", "head_sha256"],
                note: ", whose layout and preprocessing are those of its folder",
            },
            Self::Vlm => Keys {
                needed: &[
                    ("endpoint", "such as \"http://localhost:8000/v1\""),
                    ("model", "as the server calls it"),
                    ("prompt", "with {caption} where the caption goes"),
                    ("read", "\"yes-no\", \"number\" or \"pair\""),
                ],
                optional: &[
                    "pattern",
                    "max_tokens",
                    "extra_body",
                    "concurrency",
                    "timeout_s",
                    "retries",
                    "max_requests",
                    "api_key_env",
                ],
                note: "",
            },
            Self::Command => Keys {
                needed: &[("command", "such as [\"python3\", \"score.py\"]")],
                optional: &["timeout_s"],
                note: "",
            },
        }
    }

    /// Whether an entry of this kind has a head.
    pub(crate) fn has_head(self) -> bool {
        self.has("head")
    }

    /// Whether it scores outside of this process.
    #[must_use]
    pub fn is_external(self) -> bool {
        matches!(self, Self::Vlm | Self::Command)
    }

    fn has(self, key: &str) -> bool {
        let keys = self.keys();
        keys.needed.iter().any(|(needed, _)| *needed == key) || keys.optional.contains(&key)
    }

    /// What is wrong with an entry of this kind that sets the keys `set`.
    pub(crate) fn problem(self, set: &[String]) -> Option<String> {
        let (keys, kind) = (self.keys(), self.name());
        if let Some(key) = set.iter().find(|key| !self.has(key)) {
            let others = Self::ALL.iter().filter(|other| other.has(key));
            let others: Vec<String> =
                others.map(|other| format!("kind = \"{}\"", other.name())).collect();
            return Some(format!(
                "`{key}` has no meaning for kind = \"{kind}\"{}; it belongs to {}",
                keys.note,
                others.join(", ")
            ));
        }
        let missing = keys.needed.iter().find(|(key, _)| !set.iter().any(|other| other == key));
        missing.map(|(key, what)| format!("kind = \"{kind}\" needs `{key}`, {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_file() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
