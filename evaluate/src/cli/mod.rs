//! The command line as typed. What the words mean is decided in [`crate::commands`].

mod filter_prompts;
pub mod grid;
pub mod report;
pub mod run;
pub mod score;
pub mod tables;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nn::schedule::SamplerKind;
use runkit::logging::LogArguments;
use runkit::program::ResumeFlag;
use serde::{Deserialize, Serialize};

pub use self::filter_prompts::FilterPromptsArguments;
use crate::prompts::{Preset, PromptSource};
use crate::sources::{ModelSource, Size};

/// From diffusion models and prompts to images, scores, win rates and a report.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version, max_term_width = 80, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 130/143 stopped by a signal \
    after a clean save, 3 finished with more unscored images than --max-failed.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged.
    #[command(flatten)]
    pub log: LogArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate images with every model, score them, and compare the models:
    /// tables, figures and a report.
    Run(run::RunArguments),
    /// Generate images of prompts with one or more diffusion models.
    Generate(GenerateArguments),
    /// Score images with reward models: those of generate, and others.
    Score(score::ScoreArguments),
    /// Make win-rate tables of scores.
    Tables(tables::TablesArguments),
    /// Lay images and their scores side by side on a contact sheet.
    Grid(grid::GridArguments),
    /// Write the report page and its figures from existing scores.
    Report(report::ReportArguments),
    /// Keep the prompts that a text classifier finds safe to show.
    FilterPrompts(FilterPromptsArguments),
}

/// `evaluate generate`.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "evaluate generate --model <NAME=DIR> --prompts <FILE>...\n           \
    --out <DIR> [OPTIONS]")]
pub struct GenerateArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: GenerateSettings,
    /// Read settings from this TOML file; flags and environment win.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Open everything, load the networks, say what would be generated and how long
    /// it takes, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Start over: remove the images of an earlier run of this output.
    #[arg(long)]
    pub fresh: bool,
    /// What users of other programs type.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Settings of `evaluate generate`, each unset until flag, environment or file sets it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateSettings {
    /// A model: a name, and a pipeline's folder in the layout of diffusers or
    /// hf://owner/name@revision; with unet= another folder or name of the
    /// hub stands in for its UNet. Repeat for more models.
    #[arg(long, value_name = "NAME=DIR[,unet=DIR]")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Vec<ModelSource>>,
    /// Files of prompts: .tsv, .csv, .json, .jsonl, .parquet (or a folder or
    /// pattern of them), or text with a prompt in each line. A file is a set, named as it is or with name=; its
    /// column is called prompt, caption or text, or is chosen with column=, and
    /// its categories category or style, or category=; limit= takes the first N.
    #[arg(long, value_name = "FILE[,OPTION=VALUE]", num_args = 1..)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<PromptSource>>,
    /// The split to take where the names of Parquet files or their folders say
    /// splits, such as test_unique-00000-of-00001.parquet.
    #[arg(long, value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Images of each prompt [default: 5].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<u64>,
    /// The first seed; the others follow [default: 0]. Noise uses the low 32 bits
    /// of a seed.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_seed: Option<u64>,
    /// Denoising steps [default: 50].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Guidance scale; 1 or less is none [default: 7.5, SDXL 5.0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// ddim, pndm, euler or dpmpp-2m [default: the model's own].
    #[arg(long, value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SamplerKind>,
    /// Height, or height and width, in pixels [default: the model's own].
    #[arg(long, value_name = "H|HxW")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Negative prompt [default: none].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, alias = "negative")]
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "negative")]
    pub negative_prompt: Option<String>,
    /// Images generated together [default: as many as make 512x512 pixels on a
    /// CPU, 16 times as many on a GPU; at most 64].
    #[arg(long, value_name = "N", allow_negative_numbers = true, env = "EVALUATE_BATCH_SIZE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE", env = "EVALUATE_DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Type of the networks: f32, bf16 or f16 [default: f32].
    #[arg(long, value_name = "TYPE", env = "EVALUATE_DTYPE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Take only the first N prompts of each set.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Take the first prompts of each set, as many as the paper's tables stand
    /// on: paper-sd15 (297 of Pick-a-Pic, 1129 of PartiPrompts, 150 of HPD),
    /// paper-sdxl (100 of each) or paper-sd21 (300 of Pick-a-Pic). Sets are
    /// known by the beginning of their names: pickapic, parti, hpd. The numbers
    /// are of prompts found safe: give it what filter-prompts kept.
    #[arg(long, value_name = "NAME", conflicts_with = "limit")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
}
