//! The command line as typed. [`crate::commands`] and [`crate::config`] decide what the words mean;
//! [`crate::settings`] lists the flags that a settings file can hold as well.

use std::num::NonZeroUsize;

use clap::{Args, Parser, Subcommand};
use runkit::logging::LogArguments;
use runkit::program::{JsonFlag, ProgramCommand, ResumeFlag};
use runkit::settings::SettingsFlags;
use runkit::shard::Shard;

use crate::recipe;
use crate::settings::{CacheOptions, RunOptions, with_default_in_help};

/// Train a diffusion model on preferences: Diffusion-DPO on consensus labels, with a
/// reference model that is updated.
#[derive(Debug, Parser)]
#[command(name = "train", version, propagate_version = true)]
#[command(after_help = "Examples:
  train plan --recipe mini --model data/mini/sd --pairs data/sample \\
    --labels data/labels.parquet --out runs/mini
  train run --recipe sd15,paper/balanced --model sd15 --pairs pickapic_v2 \\
    --labels labels.parquet --out runs/sd15")]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// What to log.
    #[command(flatten)]
    pub log: LogArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train; the same command resumes an earlier run.
    Run(Box<RunArguments>),
    /// Show what a run would do: pairs, ties, steps, learning rate, memory, time.
    Plan(Box<PlanArguments>),
    /// Encode images and captions once, for many runs (see run --cache).
    Cache(Box<CacheArguments>),
    /// List the recipes.
    Recipes(JsonFlag),
    /// Check this machine: libtorch, GPUs, CPU, memory, disk and hub.
    Doctor(JsonFlag),
    /// The commands of every program.
    #[command(flatten)]
    Program(ProgramCommand),
}

/// `train run`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "train run --model <DIR> --pairs <PATH>... --labels <FILE>\n           \
    --out <DIR> [OPTIONS]",
    after_help = "Example:
  train run --recipe sd15,paper/balanced --model sd15 --pairs pickapic_v2 \\
    --labels labels.parquet --out runs/sd15",
    mut_args(|argument| with_default_in_help(recipe::run_defaults(), argument))
)]
pub struct RunArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: RunOptions,
    /// The settings file.
    #[command(flatten)]
    pub file: SettingsFlags,
    /// Start over: delete what an earlier run left in the output folder. Ranks that torchrun
    /// starts again resume all the same.
    #[arg(long, help_heading = "Inputs and output")]
    pub fresh: bool,
    /// `--json`.
    #[command(flatten)]
    pub json: JsonFlag,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Flags of `train run` that change nothing in a plan: accepted, so that one command line serves
/// both.
const WITHOUT_MEANING_IN_A_PLAN: [&str; 19] = [
    "fresh",
    "seed",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "loss_scale",
    "caption_dropout",
    "data_threads",
    "checkpoint_every",
    "checkpoint_minutes",
    "mirror",
    "record_steps",
    "probe_every",
    "sample_every",
    "sample_steps",
    "sample_guidance",
    "rank_timeout",
];

/// `train plan`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "train plan --model <DIR> --pairs <PATH>... --labels <FILE>\n           \
    --out <DIR> [OPTIONS]",
    after_help = "All flags of train run are accepted.\n\nExample:
  train plan --ranks 8 --recipe sdxl --model sdxl --cache latents \\
    --labels labels.parquet --out runs/sdxl",
    mut_args(|argument| {
        let is_hidden = WITHOUT_MEANING_IN_A_PLAN.contains(&argument.get_id().as_str());
        if is_hidden { argument.hide(true) } else { argument }
    })
)]
pub struct PlanArguments {
    /// The run to plan.
    #[command(flatten)]
    pub run: RunArguments,
    /// Plan for this many ranks, one for each GPU [default: those that the launcher starts, else 1].
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    pub ranks: Option<NonZeroUsize>,
}

/// `train cache`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "train cache --model <DIR> --pairs <PATH>... --out <DIR> [OPTIONS]",
    after_help = "Example:
  train cache --model sd15 --pairs pickapic_v2 --out latents --hflip",
    mut_args(|argument| with_default_in_help(recipe::cache_defaults(), argument))
)]
pub struct CacheArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: CacheOptions,
    /// The settings file.
    #[command(flatten)]
    pub file: SettingsFlags,
    /// Start over: delete what an earlier run left in the output folder.
    #[arg(long, help_heading = "Inputs and output")]
    pub fresh: bool,
    /// Write every N-th part, from part I on, counted from 0, or those of a SLURM
    /// array's task: slurm, or slurm/N. For processes that share nothing but the
    /// folder [default: torchrun and srun deal the parts to the ranks; else 0/1].
    #[arg(long, value_name = "I/N", help_heading = "Compute")]
    pub shard: Option<Shard>,
    /// `--json`.
    #[command(flatten)]
    pub json: JsonFlag,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
}
