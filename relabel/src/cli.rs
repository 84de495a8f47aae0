//! The command line as typed. [`crate::commands`] decides what the words mean.

mod convert;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use runkit::config::{ConfigError, merge, parse_toml};
use runkit::logging::LogArguments;
use runkit::program::{JsonFlag, ProgramCommand, ResumeFlag};
use runkit::settings::{Settings, SettingsFlags};
use runkit::shard::Shard;
use schemas::layouts::Layout;
use serde::{Deserialize, Serialize};

pub use self::convert::ConvertArguments;
use crate::vote::{Missing, TiePolicy};

/// Scores image pairs with reward models and writes a Parquet file of votes and consensus labels.
#[derive(Debug, Parser)]
#[command(
    name = "relabel",
    version,
    propagate_version = true,
    after_help = "Examples:
  relabel check --pairs pickapic/ --scorers scorers.toml
  relabel score --pairs pickapic/ --scorers scorers.toml --out labels.parquet
  relabel inspect labels.parquet"
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// The flags of the log.
    #[command(flatten)]
    pub log: LogArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Score every pair with every scorer and write votes and consensus.
    Score(ScoreArguments),
    /// Decide the votes of a labels file again from its scores: no model, no image.
    Vote(VoteArguments),
    /// Put the scorers of two labels files of the same pairs side by side and vote again.
    Join(JoinArguments),
    /// Add scores that another program made to a labels file and vote again.
    Import(ImportArguments),
    /// Describe a labels file: agreement, ties, margins, failures.
    Inspect(InspectArguments),
    /// Try everything a long run needs before it starts: files, columns, checkpoints, disk, time.
    Check(CheckArguments),
    /// Write pairs of any layout, from anywhere, as Parquet files that are fast to read.
    Convert(ConvertArguments),
    /// Say what this machine offers: libtorch, CUDA, GPUs, CPU, disks, the hub.
    Doctor(JsonFlag),
    /// Commands that every program has.
    #[command(flatten)]
    Program(ProgramCommand),
}

/// `relabel score`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "relabel score --pairs <PATH>... --scorers <FILE> --out <FILE> [OPTIONS]",
    after_help = "Examples:
  relabel score --pairs pickapic/ --split train --scorers scorers.toml --out labels.parquet
  relabel score --pairs pickapic/ --scorers scorers.toml --out labels.parquet --dtype bf16
  torchrun --nproc-per-node 8 --no-python relabel score --config run.toml"
)]
pub struct ScoreArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: ScoreSettings,
    /// Start over: replace what an earlier run of relabel left in this output.
    #[arg(long, help_heading = "Output")]
    pub fresh: bool,
    /// The settings file.
    #[command(flatten)]
    pub file: SettingsFlags,
    /// Accepted for users of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
    /// How the summary is printed.
    #[command(flatten)]
    pub json: JsonFlag,
}

/// Flags of `relabel score` that a check accepts and does not use.
const WITHOUT_MEANING_IN_A_CHECK: [&str; 4] = ["fresh", "max_failed", "missing", "ties"];

/// `relabel check`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "relabel check --pairs <PATH>... --scorers <FILE> [OPTIONS]",
    after_help = "All flags of relabel score are accepted, so that one command line serves both.

Examples:
  relabel check --pairs pickapic/ --scorers scorers.toml --out labels.parquet",
    mut_args(|argument| {
        let is_hidden = WITHOUT_MEANING_IN_A_CHECK.contains(&argument.get_id().as_str());
        if is_hidden { argument.hide(true) } else { argument }
    })
)]
pub struct CheckArguments {
    /// The run to check.
    #[command(flatten)]
    pub score: ScoreArguments,
}

/// Settings of `relabel score`. Each is unset until a flag, an environment variable or a file sets
/// it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[command(mut_args(with_default_in_help))]
#[serde(deny_unknown_fields, default)]
pub struct ScoreSettings {
    /// Pairs: files, folders or glob patterns, also at s3://, gs://, az://, https:// or
    /// hf://datasets/OWNER/NAME/PATH.
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Input")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<PathBuf>>,
    /// The split to take if files or folders are named by splits, such as
    /// train-00000-of-00645.parquet or train/; several with commas between.
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Input")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "runkit::config::one_or_more"
    )]
    pub split: Option<Vec<String>>,
    /// The layout of the pairs, if their columns or files do not tell it.
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Input")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Take only the first N pairs.
    #[arg(long, value_name = "N", help_heading = "Input")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The reward models.
    #[arg(long, value_name = "FILE.toml", env = "RELABEL_SCORERS", help_heading = "Scoring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scorers: Option<PathBuf>,
    /// Labels of an earlier run over these pairs or the first of them: scores are taken over from
    /// scorers that are the same there, and the others are computed.
    #[arg(long, value_name = "OLD.parquet", help_heading = "Scoring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<PathBuf>,
    /// What a tie of votes becomes.
    #[arg(long, value_name = "POLICY", value_enum, help_heading = "Scoring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ties: Option<TiePolicy>,
    /// What becomes of a pair for which a scorer failed: drop leaves it undecided, vote takes
    /// the votes that are there.
    #[arg(long, value_name = "POLICY", value_enum, help_heading = "Scoring")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<Missing>,
    /// The labels file to write, also at s3://, gs:// or az://: it is there when it is
    /// whole.
    #[arg(long, value_name = "FILE.parquet", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// The folder of unfinished work, which the processes of a run share; it is removed in
    /// the end [default: OUT.work; NAME.work in the current folder if --out is an address].
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<PathBuf>,
    /// The folder for captions and their features during the run
    /// [default: the folder of --out, or of --work if --out is an address].
    #[arg(long, value_name = "FOLDER", env = "RELABEL_SCRATCH", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// End with exit code 3 if more rows than this are undecided because something failed.
    #[arg(long, value_name = "N", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failed: Option<u64>,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", env = "RELABEL_DEVICE", help_heading = "Compute")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The dtype of the networks: f32 (exact), tf32 (f32 with products of 10-bit
    /// mantissas), bf16, f16, or auto: tf32 on a GPU since Ampere, else f32.
    #[arg(long, value_name = "DTYPE", env = "RELABEL_DTYPE", help_heading = "Compute")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Images per forward pass [default: 8 on a CPU, 16 in bf16, 64 on a GPU].
    #[arg(long, value_name = "N", env = "RELABEL_BATCH_SIZE", help_heading = "Compute")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Pairs of a unit, at least: what a killed process computes again at most, and
    /// what shards and ranks divide the work into.
    #[arg(long, value_name = "N", help_heading = "Compute")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_pairs: Option<u64>,
    /// Work on every N-th unit, from unit I on, counted from 0; slurm takes I/N from
    /// the task of a regular SLURM array, slurm/N only I. The process that completes
    /// the last unit merges [default: what torchrun or srun deals to this rank, or 0/1].
    #[arg(long, value_name = "I/N|slurm", help_heading = "Compute")]
    #[serde(skip)]
    pub shard: Option<Shard>,
}

/// The settings of `defaults.toml`.
static DEFAULTS: LazyLock<ScoreSettings> = LazyLock::new(|| {
    // A test reads the file: it is part of the program, and cannot be wrong for one user alone.
    parse_toml(Path::new("defaults.toml"), include_str!("defaults.toml")).unwrap_or_default()
});

fn with_default_in_help(argument: Arg) -> Arg {
    let defaults = serde_json::to_value(&*DEFAULTS).unwrap_or_default();
    match (defaults.get(argument.get_id().as_str()), argument.get_help()) {
        (Some(default), Some(help)) => {
            let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            let help = format!("{help} [default: {default}]");
            argument.help(help)
        }
        _ => argument,
    }
}

impl ScoreSettings {
    /// These settings over the defaults.
    ///
    /// # Errors
    /// If a setting is a number that TOML cannot hold.
    pub(crate) fn over_defaults(&self) -> Result<Self, ConfigError> {
        Ok(Self { shard: self.shard, ..merge(self, &DEFAULTS)? })
    }
}

impl Settings for ScoreSettings {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let pairs = self.pairs.iter_mut().flatten();
        let files = pairs.chain(&mut self.scorers).chain(&mut self.out);
        files.chain(&mut self.work).chain(&mut self.scratch).chain(&mut self.reuse).collect()
    }
}

/// `relabel vote`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  relabel vote --labels labels.parquet --voters clip,hps --out two.parquet
  relabel vote --labels labels.parquet --ties margin --out decided.parquet")]
pub struct VoteArguments {
    /// The labels file with the scores.
    #[arg(long, value_name = "IN.parquet", help_heading = "Input")]
    pub labels: PathBuf,
    /// The scorers that vote; the columns of the others are dropped
    /// [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Scoring")]
    pub voters: Option<Vec<String>>,
    /// How votes decide, and where they go.
    #[command(flatten)]
    pub voting: VotingArguments,
}

/// What commands have in common that write votes of scores that are there.
#[derive(Debug, Clone, Args)]
pub struct VotingArguments {
    /// What a tie of votes becomes.
    #[arg(
        long,
        value_name = "POLICY",
        value_enum,
        default_value = "zero",
        help_heading = "Scoring"
    )]
    pub ties: TiePolicy,
    /// What becomes of a pair for which a voter failed: drop leaves it undecided, vote takes
    /// the votes that are there.
    #[arg(
        long,
        value_name = "POLICY",
        value_enum,
        default_value = "drop",
        help_heading = "Scoring"
    )]
    pub missing: Missing,
    /// The labels file to write.
    #[arg(long, value_name = "OUT.parquet", help_heading = "Output")]
    pub out: PathBuf,
    /// Replace other labels that relabel wrote to this output.
    #[arg(long, help_heading = "Output")]
    pub fresh: bool,
    /// How the summary is printed.
    #[command(flatten)]
    pub json: JsonFlag,
}

/// `relabel join`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  relabel join four.parquet fifth.parquet --out five.parquet")]
pub struct JoinArguments {
    /// The labels file whose scorers come first.
    #[arg(value_name = "A.parquet")]
    pub first: PathBuf,
    /// The labels file of other scorers over the same pairs.
    #[arg(value_name = "B.parquet")]
    pub second: PathBuf,
    /// How votes decide, and where they go.
    #[command(flatten)]
    pub voting: VotingArguments,
}

/// `relabel import`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "relabel import --scores <TABLE> --name <NAME> --labels <FILE> --out <OUT>",
    after_help = "Examples:
  relabel import --scores lpo.csv --name lpo --labels a.parquet --out b.parquet"
)]
pub struct ImportArguments {
    /// The table of scores, CSV or Parquet, with the columns pair_id, score_0, score_1
    /// or image_uid, caption, score.
    #[arg(long, value_name = "TABLE", help_heading = "Input")]
    pub scores: PathBuf,
    /// The name of the scorer: a-z, 0-9 and _.
    #[arg(long, value_name = "NAME", help_heading = "Input")]
    pub name: String,
    /// The labels file whose pairs they are.
    #[arg(long, value_name = "IN.parquet", help_heading = "Input")]
    pub labels: PathBuf,
    /// How votes decide, and where they go.
    #[command(flatten)]
    pub voting: VotingArguments,
}

/// `relabel inspect`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  relabel inspect labels.parquet
  relabel inspect labels.parquet --json | jq .kappa
  relabel inspect labels.parquet --voting
  relabel inspect labels.parquet --failed | cut -f 3 | sort | uniq -c")]
pub struct InspectArguments {
    /// The labels file.
    #[arg(value_name = "LABELS.parquet")]
    pub labels: PathBuf,
    /// List the rows that failed: id, position, status and reason.
    #[arg(long)]
    pub failed: bool,
    /// Compare rules that decide the votes (majority, weighted, Borda over margins, Dawid
    /// and Skene, unanimity): human agreement, ties, and whose vote decides.
    #[arg(long, conflicts_with = "failed")]
    pub voting: bool,
    /// How to print.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text", hide = true)]
    pub format: ReportFormat,
    /// Print JSON on stdout: one object, or an array of the failed rows.
    #[arg(long)]
    pub json: bool,
}

impl InspectArguments {
    /// The format that the flags ask for.
    pub(crate) fn format(&self) -> ReportFormat {
        if self.json { ReportFormat::Json } else { self.format }
    }
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Tables to read.
    Text,
    /// JSON for programs: one object, or an array of the failed rows.
    Json,
}
