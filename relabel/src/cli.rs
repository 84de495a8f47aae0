//! The command line as typed. What the words mean is decided in [`crate::commands`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use runkit::logging::LogArguments;
use runkit::program::ResumeFlag;
use runkit::shard::Shard;
use serde::{Deserialize, Serialize};

use crate::vote::TiePolicy;

/// From image pairs to a Parquet file of votes and consensus labels.
#[derive(Debug, Parser)]
#[command(name = "relabel", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 finished but with more failed rows \
    than --max-failed, 130/143 stopped by a signal after a clean save."
)]
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
    /// Score every pair with every scorer and write votes and consensus.
    Score(ScoreArguments),
    /// Decide again from the scores of a labels file: no model, no image.
    Vote(VoteArguments),
    /// Describe a labels file: agreement, ties, margins, failures.
    Inspect(InspectArguments),
    /// Try everything a long run needs, before it: files, columns, checkpoints, disk, time.
    Check(ScoreArguments),
}

/// `relabel score` and `relabel check`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "relabel score --pairs <PATH>... --scorers <FILE> --out <FILE> [OPTIONS]\n       \
    relabel check --pairs <PATH>... --scorers <FILE> [OPTIONS]"
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
    /// Start over: replace what an earlier run of relabel left in this output.
    #[arg(long)]
    pub fresh: bool,
    /// What users of other programs type.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Settings of `relabel score`, each unset until flag, environment or file sets it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSettings {
    /// Pairs in Pick-a-Pic's layout: Parquet files, folders or glob patterns.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<PathBuf>>,
    /// The split to take where files or folders are named by splits, such as
    /// train-00000-of-00645.parquet or train/; several with commas between.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "runkit::config::one_or_more"
    )]
    pub split: Option<Vec<String>>,
    /// The reward models.
    #[arg(long, value_name = "FILE.toml", env = "RELABEL_SCORERS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorers: Option<PathBuf>,
    /// The labels file to write.
    #[arg(long, value_name = "FILE.parquet")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Take only the first N pairs.
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Images per forward [default: 8 on a CPU, 16 in bf16, 64 on a GPU].
    #[arg(long, value_name = "N", env = "RELABEL_BATCH_SIZE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE", env = "RELABEL_DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Type of the networks: f32, bf16 or f16 [default: f32].
    #[arg(long, value_name = "TYPE", env = "RELABEL_DTYPE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// What a tie of votes becomes [default: zero].
    #[arg(long, value_name = "POLICY", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ties: Option<TiePolicy>,
    /// Failed rows that still count as success (exit code 0) [default: 0].
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failed: Option<u64>,
    /// Where captions and their features are kept while the run lasts
    /// [default: the folder of --out].
    #[arg(long, value_name = "FOLDER", env = "RELABEL_SCRATCH")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Work on share I of N of the input files, zero-based; the process that
    /// completes the last part merges. Torchrun's RANK and WORLD_SIZE, else
    /// those of an srun step, decide when this is absent [default: 0/1].
    #[arg(long, value_name = "I/N")]
    #[serde(skip)]
    pub shard: Option<Shard>,
}

/// `relabel vote`.
#[derive(Debug, Clone, Args)]
pub struct VoteArguments {
    /// The labels file to decide again.
    #[arg(long, value_name = "IN.parquet")]
    pub labels: PathBuf,
    /// The labels file to write.
    #[arg(long, value_name = "OUT.parquet")]
    pub out: PathBuf,
    /// Which scorers vote; the columns of the others are left out
    /// [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub voters: Option<Vec<String>>,
    /// What a tie of votes becomes.
    #[arg(long, value_name = "POLICY", value_enum, default_value = "zero")]
    pub ties: TiePolicy,
    /// Replace other labels that relabel wrote to this output.
    #[arg(long)]
    pub fresh: bool,
}

/// `relabel inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArguments {
    /// The labels file.
    #[arg(value_name = "LABELS.parquet")]
    pub labels: PathBuf,
    /// List the rows that failed, each with its place and the reason.
    #[arg(long)]
    pub failed: bool,
    /// How to print.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub format: ReportFormat,
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Tables for people.
    Text,
    /// JSON for programs: one object, or an array of the failed rows.
    Json,
}
