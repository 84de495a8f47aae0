//! The sizes of a CLIP-type model.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{ConfigError, unsupported};

/// The largest size of any dimension: far above every published model, and small enough that no
/// product of them overflows.
const LARGEST: i64 = 1 << 20;
/// The largest number of blocks.
const MOST_LAYERS: i64 = 1 << 10;

/// The activation between the two layers of each MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The exact one, `x · Φ(x)` with the error function.
    Gelu,
    /// OpenAI's approximation, `x · σ(1.702 x)`.
    QuickGelu,
    /// The approximation with the hyperbolic tangent, `gelu_pytorch_tanh` of transformers (SigLIP).
    GeluTanh,
}

/// A CLIP-type model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Length of the features of either tower.
    pub embed_dim: i64,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// The token whose features are those of the text.
    #[serde(default)]
    pub pooling: Pooling,
}

/// The token whose features are those of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first of the largest tokens: open_clip's `argmax`, and transformers if `eos_token_id` is
    /// 2.
    #[default]
    Argmax,
    /// The first token that equals this one; the first of all if a text does not contain it.
    FirstOf(i64),
}

impl Pooling {
    /// The position in the tokens of a text.
    #[must_use]
    pub fn place(self, tokens: &[i64]) -> usize {
        let wanted = match self {
            Self::Argmax => tokens.iter().max().copied(),
            Self::FirstOf(token) => Some(token),
        };
        tokens.iter().position(|token| Some(*token) == wanted).unwrap_or(0)
    }
}

/// The vision tower: a square image in square patches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Side of the image in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// Width of the blocks.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads; their size is `width / heads`.
    pub heads: i64,
    /// Width inside the MLPs.
    pub mlp_width: i64,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// What normalisation adds to the variance.
    pub layer_norm_epsilon: f64,
}

/// The text tower: causal blocks, read at the end token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    /// The most tokens of a text.
    pub context_length: i64,
    /// Size of the vocabulary.
    pub vocabulary_size: i64,
    /// Width of the blocks.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads; their size is `width / heads`.
    pub heads: i64,
    /// Width inside the MLPs.
    pub mlp_width: i64,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// What normalisation adds to the variance.
    pub layer_norm_epsilon: f64,
}

impl VisionConfig {
    /// Patches along one side; pixels that do not fill a patch are dropped, as a convolution does.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Tokens of an image: its patches, and the class token before them.
    pub fn tokens(&self) -> i64 {
        self.grid() * self.grid() + 1
    }
}

impl VisionConfig {
    /// Checks that all sizes are possible. Loading does it as well.
    pub fn validate(&self) -> Result<(), ConfigError> {
        sizes([
            ("the image size", self.image_size, 1 << 14),
            ("the patch size", self.patch_size, self.image_size),
            ("the vision width", self.width, LARGEST),
            ("the number of vision layers", self.layers, MOST_LAYERS),
            ("the vision MLP width", self.mlp_width, LARGEST),
            ("the number of vision heads", self.heads, self.width),
        ])?;
        heads("the vision width", self.width, self.heads)?;
        epsilon("the vision layer_norm_eps", self.layer_norm_epsilon)
    }
}

impl ClipConfig {
    /// Checks that all sizes are possible. [`super::ClipModel::load`] does it as well.
    pub fn validate(&self) -> Result<(), ConfigError> {
        features("embed_dim", self.embed_dim)?;
        self.vision.validate()?;
        self.text.validate()
    }
}

/// The length of a tower's features is possible.
pub(crate) fn features(what: &'static str, length: i64) -> Result<(), ConfigError> {
    sizes([(what, length, LARGEST)])
}

impl TextConfig {
    /// Checks that all sizes are possible. Loading does it as well.
    pub fn validate(&self) -> Result<(), ConfigError> {
        sizes([
            ("the context length", self.context_length, LARGEST),
            ("the vocabulary size", self.vocabulary_size, 1 << 30),
            ("the text width", self.width, LARGEST),
            ("the number of text layers", self.layers, MOST_LAYERS),
            ("the text MLP width", self.mlp_width, LARGEST),
            ("the number of text heads", self.heads, self.width),
        ])?;
        heads("the text width", self.width, self.heads)?;
        epsilon("the text layer_norm_eps", self.layer_norm_epsilon)
    }
}

/// Each size is at least one and at most the number beside it.
fn sizes<const N: usize>(sizes: [(&'static str, i64, i64); N]) -> Result<(), ConfigError> {
    for (what, found, most) in sizes {
        if found < 1 || found > most {
            return Err(ConfigError::Size { what, found, expected: format!("1 to {most}") });
        }
    }
    Ok(())
}

fn heads(what: &'static str, width: i64, heads: i64) -> Result<(), ConfigError> {
    if width % heads == 0 {
        return Ok(());
    }
    let expected = format!("a multiple of the {heads} heads");
    Err(ConfigError::Size { what, found: width, expected })
}

fn epsilon(option: &str, epsilon: f64) -> Result<(), ConfigError> {
    if epsilon > 0.0 && epsilon < 1.0 {
        return Ok(());
    }
    Err(unsupported(option, &epsilon.into(), "expected a small positive number"))
}

/// The problems that a reader of one layout can find; the caller adds the file.
pub(super) enum Problem {
    /// Not the JSON that was expected.
    Json(String),
    /// A variant that is not implemented.
    Config(ConfigError),
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// A side length: a number, or two equal ones.
pub(crate) fn square(option: &str, value: &Value) -> Result<i64, ConfigError> {
    let side = match value {
        Value::Array(sides) => match sides.as_slice() {
            [height, width] if height == width => height.as_i64(),
            _ => None,
        },
        other => other.as_i64(),
    };
    side.ok_or_else(|| unsupported(option, value, "expected one whole number"))
}
