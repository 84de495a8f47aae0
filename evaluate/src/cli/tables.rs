//! `evaluate tables` as typed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use runkit::program::JsonFlag;

use crate::tables::TablesConfig;

/// `evaluate tables`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    evaluate tables --scores eval/scores.parquet --baselines base --out tables/")]
pub struct TablesArguments {
    /// Scores that evaluate score or evaluate run wrote. Several files are combined.
    #[arg(long, value_name = "FILE.parquet", num_args = 1.., required = true)]
    pub scores: Vec<PathBuf>,
    /// The folder to write [default: that of the first scores].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Add tables of every model against each of these, as the paper's Tables 3 and 4.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub baselines: Vec<String>,
    /// Take these models, in this order; a later one is compared with those before it [default:
    /// all, in the order of the scores].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// Take these metrics, in this order [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Add the table of a published benchmark.
    #[arg(long, value_name = "NAME")]
    pub preset: Option<TablesPreset>,
    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = TablesConfig::default().bootstrap)]
    pub bootstrap: usize,
    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = TablesConfig::default().seed)]
    pub seed: u64,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}

/// A benchmark with a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TablesPreset {
    /// HPS v2: means of groups of 80 prompts of the sets anime, concept-art, paintings and photo.
    HpsV2,
}
