//! `evaluate score` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::{JsonFlag, ResumeFlag};
use runkit::settings::{Settings, SettingsFlags};
use serde::{Deserialize, Serialize};

use super::defaults::in_help;
use super::generate::ShardFlag;
use crate::prompts::{Preset, PromptSource};
use crate::sources::ImagesSource;

/// `evaluate score`.
#[derive(Debug, Clone, Args)]
#[command(mut_args(in_help(&ScoreSettings::default().with_defaults().unwrap_or_default())))]
#[command(
    override_usage = "evaluate score --prompts <FILE>... --scorers <FILE> --out <DIR> [OPTIONS]"
)]
#[command(after_help = "Examples:\n  \
    evaluate score --out out/images --prompts prompts.txt --scorers scorers.toml\n  \
    evaluate score --out eval/ --prompts prompts.txt --scorers scorers.toml \\\n      \
    --images theirs=downloaded/")]
pub struct ScoreArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: ScoreSettings,
    /// The settings file.
    #[command(flatten)]
    pub file: SettingsFlags,
    /// Open everything, print what would be scored and how long it takes, and stop.
    #[arg(long, help_heading = "Run")]
    pub dry_run: bool,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
    /// Which shard of the work is done.
    #[command(flatten)]
    pub share: ShardFlag,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}

/// Settings of `evaluate score`, each unset until flag, environment or file sets it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSettings {
    /// The folder of the evaluation: with images/ in it, or made for --images.
    #[arg(long, value_name = "DIR", help_heading = "Input and output")]
    pub out: Option<PathBuf>,
    /// Files of prompts, as for generate.
    #[arg(long, value_name = "FILE[,column=NAME…]", num_args = 1.., help_heading = "Input and output")]
    pub prompts: Option<Vec<PromptSource>>,
    /// The split to take of Parquet files, as for generate.
    #[arg(long, value_name = "NAME", help_heading = "Input and output")]
    pub split: Option<String>,
    /// Only these models of images/, in the order of the tables [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', help_heading = "Input and output")]
    pub models: Option<Vec<String>>,
    /// Images made elsewhere, by a name for their model: a folder with metadata.jsonl (file_name,
    /// prompt, seed), PROMPT_ID/SEED.png, or SET/00000.jpg as HPS v2's benchmark numbers the
    /// prompts of each style. Repeat for more.
    #[arg(long, value_name = "NAME=DIR", help_heading = "Input and output")]
    pub images: Option<Vec<ImagesSource>>,
    /// Images of each prompt [default: all that were generated].
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Input and output"
    )]
    pub seeds: Option<u64>,
    /// The first seed, with --seeds [default: 0].
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Input and output"
    )]
    pub base_seed: Option<u64>,
    /// Take only the first N prompts of each set.
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Input and output"
    )]
    pub limit: Option<usize>,
    /// Take as many prompts of each set as the paper or HPS v2's benchmark did; as for generate.
    #[arg(long, value_name = "NAME", conflicts_with = "limit", help_heading = "Input and output")]
    pub preset: Option<Preset>,
    /// How images are scored.
    #[command(flatten)]
    #[serde(default)]
    pub scoring: ScoringSettings,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", env = "EVALUATE_DEVICE", help_heading = "Compute")]
    pub device: Option<String>,
    /// The dtype of the networks: f32 (exact), tf32 (f32 with products of 10-bit
    /// mantissas), bf16, f16, or auto: tf32 on a GPU since Ampere, else f32.
    #[arg(long, value_name = "DTYPE", env = "EVALUATE_DTYPE", help_heading = "Compute")]
    pub dtype: Option<String>,
}

/// How `score` and `run` score images.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoringSettings {
    /// The reward models, the same file as for relabel.
    #[arg(long, value_name = "FILE.toml", help_heading = "Scoring")]
    pub scorers: Option<PathBuf>,
    /// Images per forward pass of a reward model [default: 8 on a CPU, 64 on a GPU].
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Scoring")]
    pub score_batch_size: Option<usize>,
    /// Images without a score that still count as success (exit code 0).
    #[arg(long, value_name = "N", help_heading = "Scoring")]
    pub max_failed: Option<usize>,
    /// Drop from scores, tables and report what the folder holds and this command does not name:
    /// other models, prompts, seeds and metrics.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", help_heading = "Scoring")]
    pub only_named: Option<bool>,
}

impl Settings for ScoreSettings {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let of_prompts = self.prompts.iter_mut().flatten().map(|source| &mut source.file);
        let of_images = self.images.iter_mut().flatten().map(|source| &mut source.folder);
        let others = self.out.iter_mut().chain(&mut self.scoring.scorers);
        of_prompts.chain(of_images).chain(others).collect()
    }
}
