//! The command line as typed. [`crate::commands`] and [`crate::config`] decide what the words mean;
//! [`crate::settings`] lists the flags that a settings file can hold as well.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nn::lora::ScaledLora;
use runkit::logging::LogArguments;
use runkit::program::{JsonFlag, ProgramCommand, ResumeFlag};
use runkit::settings::SettingsFlags;
use runkit::shard::Shard;

use crate::recipe;
use crate::run::plan::Bytes;
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
    /// Merge adapters (LoRA) into the weights of a model.
    Merge(Box<MergeArguments>),
    /// Write a model as a single file for A1111 and ComfyUI.
    Export(Box<ExportArguments>),
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
const WITHOUT_MEANING_IN_A_PLAN: [&str; 27] = [
    "fresh",
    "seed",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "loss_scale",
    "label_smoothing",
    "winner_anchor",
    "mapo_scale",
    "auto_beta",
    "reference_reset_optimizer",
    "export",
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
    "lora_format",
    "lora_name",
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
    /// Say whether the run fits a GPU of this memory, such as 12GiB, and with which flags it would;
    /// the GPU need not be here [default: the memory of the GPU that is here].
    #[arg(long, value_name = "SIZE", help_heading = "Compute")]
    pub memory: Option<Bytes>,
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

/// `train merge`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  train merge --model sd15 --lora style.safetensors:0.8 --out sd15-style")]
pub struct MergeArguments {
    /// The pipeline: a folder in the layout of diffusers, or hf://owner/name@revision.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A file or folder of adapters, in the form of diffusers, PEFT or kohya, and how much of them
    /// is added [default of SCALE: 1]. Repeat for more.
    #[arg(long, value_name = "FILE[:SCALE]", required = true)]
    pub lora: Vec<ScaledLora>,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Start over: delete what an earlier command left in the output folder.
    #[arg(long)]
    pub fresh: bool,
    /// `--json`.
    #[command(flatten)]
    pub json: JsonFlag,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// `train export`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  train export --model runs/sd15/pipeline --format single-file \\
    --dtype f16 --out sd15-dpo.safetensors")]
pub struct ExportArguments {
    /// The pipeline: a folder in the layout of diffusers, a single file, or
    /// hf://owner/name@revision.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// What to write.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: ExportFormat,
    /// The file to write. One that this command wrote is replaced, any other is
    /// refused.
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    /// The dtype of the numbers [default: as the model stores them].
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16", "f16"])]
    pub dtype: Option<String>,
    /// `--json`.
    #[command(flatten)]
    pub json: JsonFlag,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// The value of `train export --format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// One file of all networks under the original names.
    SingleFile,
}
