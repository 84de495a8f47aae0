//! Reward models of text-to-image generation behind one interface: CLIP, HPS v2, PickScore, the
//! LAION aesthetic predictor and ImageReward, in the layouts of their published checkpoints. `scorers.toml` names
//! them; another model of these kinds is one more entry and no code.
//!
//! ```no_run
//! use scorers::{Compute, Limits, ScorerSet, decode};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scorers = ScorerSet::open("data/mini/scorers.toml", Compute::default())?;
//! let image = decode(&std::fs::read("fox.png")?, &Limits::default())?;
//! for (name, score) in scorers.score_one(&image, "a red fox in the snow")? {
//!     println!("{name}: {}", score?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! For many images, the steps are separate: [`ImagePreprocessor`] works on decoding threads,
//! [`ScorerSet::encode_images`] and [`ScorerSet::encode_texts`] run the towers on batches, and
//! [`ScorerSet::score`] scores image-caption pairs of their features.
//!
//! Scorers share what they have in common. Those with one preprocessing recipe preprocess an image
//! once, those with one tokenizer tokenize a caption once, and those with one image tower (the
//! aesthetic head on the CLIP that also votes) run it once. [`ScorerSet`] owns that sharing; a
//! [`Scorer`] maps features to a score: CLIP's are vectors of unit length, ImageReward's all tokens of
//! an image and of a caption.
//!
//! Knows nothing of Parquet, pairs or votes.

mod config;
mod error;
mod external;
mod files;
mod image_reward;
mod inputs;
mod kind;
mod load;
mod manifest;
mod memory;
mod model;
mod outcome;
mod preprocess;
mod score;
mod set;
mod towers;

pub use config::{
    AlphaName, HpsResizeName, PreprocessName, ScorerConfig, ScorersConfig, TokenizerName,
};
pub use error::ScorerError;
pub use external::{
    CommandConfig, Comparison, EncodedImage, ExternalScorer, Question, Sending, VlmConfig, VlmRead,
    Vote, Workplace,
};
pub use image_reward::ImageRewardScorer;
pub use inputs::{PreprocessedImage, TokenizedTexts};
pub use kind::Kind;
pub use load::DescribedScorers;
pub use manifest::{
    CommandRecord, ImageTowerRecord, ScorerRecord, ScorersManifest, TextTowerRecord, VlmRecord,
    WeightsRecord,
};
pub use media::decode::{Image, Limits, decode};
pub use memory::MemoryLimits;
pub use nn::device::{DeviceChoice, Precision};
pub use outcome::{Score, ScoreFailure, score_of};
pub use score::{AestheticScorer, CosineScorer, Scorer, SiglipScorer};
pub use set::{Compute, Features, ImagePreprocessor, ScorerSet};
pub use tch::Device;
