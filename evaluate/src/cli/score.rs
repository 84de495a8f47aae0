//! `evaluate score` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::ResumeFlag;
use serde::{Deserialize, Serialize};

use crate::prompts::{Preset, PromptSource};
use crate::sources::ImagesSource;

/// `evaluate score`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "evaluate score --prompts <FILE>... --scorers <FILE> --out <DIR> [OPTIONS]"
)]
pub struct ScoreArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: ScoreSettings,
    /// Read settings from this TOML file; flags and environment win.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Open everything, say what would be scored and how long it takes, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// What users of other programs type.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Settings of `evaluate score`, each unset until flag, environment or file sets it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSettings {
    /// The folder of the evaluation: with images/ in it, or made for --images.
    #[arg(long, value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Files of prompts, as for generate.
    #[arg(long, value_name = "FILE[,column=NAME…]", num_args = 1..)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<PromptSource>>,
    /// The split to take where the names of Parquet files or their folders say
    /// splits, such as test_unique-00000-of-00001.parquet.
    #[arg(long, value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Only these models of images/, in the order of the tables [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Images made elsewhere, by a name for their model: a folder with
    /// metadata.jsonl (file_name, prompt, seed) or PROMPT_ID/SEED.png. Repeat for
    /// more.
    #[arg(long, value_name = "NAME=DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<ImagesSource>>,
    /// Images of each prompt [default: all that were generated].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<u64>,
    /// The first seed, with --seeds [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_seed: Option<u64>,
    /// Take only the first N prompts of each file.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Take as many prompts of each set as the paper did; as for generate.
    #[arg(long, value_name = "NAME", conflicts_with = "limit")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// How images are scored.
    #[command(flatten)]
    #[serde(default)]
    pub scoring: ScoringSettings,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE", env = "EVALUATE_DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Type of the networks: f32, bf16 or f16 [default: f32].
    #[arg(long, value_name = "TYPE", env = "EVALUATE_DTYPE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
}

/// How images are scored, in `score` and in `run`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoringSettings {
    /// The reward models, as for relabel.
    #[arg(long, value_name = "FILE.toml")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorers: Option<PathBuf>,
    /// Images per forward of a reward model [default: 8 on a CPU, 64 on a GPU].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_batch_size: Option<usize>,
    /// Images without a score that still count as success (exit code 0)
    /// [default: 0].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failed: Option<usize>,
    /// Leave out of scores, tables and report what the folder holds and this
    /// command does not name: other models, prompts, seeds and metrics
    /// [default: they stay].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_named: Option<bool>,
}
