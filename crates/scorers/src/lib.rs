//! The reward models behind one trait: configuration (`scorers.toml`), loading of the published
//! checkpoint layouts, and batch scoring.
//!
//! A run has any number of scorers; they share what they have in common. Scorers with one
//! preprocessing recipe preprocess an image once, scorers with one tokenizer tokenize a caption once,
//! and scorers with one image tower (the aesthetic head on a CLIP that votes itself) run it once.
//! [`ScorerSet`] owns that sharing; the [`Scorer`] trait is only what is left to each model: from
//! normalised features to a number.
//!
//! Knows nothing of Parquet, pairs or votes.

mod config;
mod error;
mod files;
mod inputs;
mod load;
mod manifest;
mod memory;
mod model;
mod preprocess;
mod score;
mod set;

pub use config::{AlphaName, HpsResizeName, Kind, PreprocessName, ScorerConfig, ScorersConfig};
pub use error::ScorerError;
pub use inputs::{PreprocessedImage, TokenizedTexts};
pub use load::DescribedScorers;
pub use manifest::{
    ImageTowerRecord, ScorerRecord, ScorersManifest, TextTowerRecord, WeightsRecord,
};
pub use memory::MemoryLimits;
pub use score::{AestheticScorer, CosineScorer, Scorer};
pub use set::{Compute, Features, ImagePreprocessor, ScorerSet};
