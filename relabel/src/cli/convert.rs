//! `relabel convert` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::{JsonFlag, ResumeFlag};
use schemas::layouts::Layout;

/// `relabel convert`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "relabel convert --pairs <PATH>... --out <FOLDER> [OPTIONS]",
    after_help = "The bytes of images, captions, uids, ids and human labels stay as they are.
Sets that put the preferred image first are written as they are dealt out, so
labels of the original and of the copy are equal. A pair whose image is missing
is kept with a null image, and counted.

Examples:
  relabel convert --pairs pickapic_v2_webdataset/ --out pairs/
  relabel convert --pairs hf://datasets/OWNER/NAME/data --out pairs/
  relabel convert --pairs HPDv2/ --split train --out pairs/ --dry-run"
)]
pub struct ConvertArguments {
    /// Pairs: files, folders or glob patterns, also at s3://, gs://, az://, https:// or
    /// hf://datasets/OWNER/NAME/PATH.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true, help_heading = "Input")]
    pub pairs: Vec<PathBuf>,
    /// The split to take if files or folders are named by splits, such as
    /// train-00000-of-00645.parquet or train/; several with commas between.
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Input")]
    pub split: Vec<String>,
    /// The layout of the pairs, if their columns or files do not tell it.
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Input")]
    pub layout: Option<Layout>,
    /// Take only the first N pairs.
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub limit: Option<u64>,
    /// The folder to write on this machine: NAME-00000.parquet and so on for each input NAME.
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    pub out: PathBuf,
    /// End a file behind the row group with which it has N MiB. A row group has 64 MiB, or N
    /// if that is less. A killed process writes its open file again.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Output")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub file_mib: u64,
    /// End with exit code 3 if more pairs than this lack an image.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Output")]
    pub max_failed: u64,
    /// Start over: delete what an earlier conversion left in this folder.
    #[arg(long, help_heading = "Output")]
    pub fresh: bool,
    /// Say what would be written and what it takes, and write nothing.
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// Accepted for users of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
    /// How the summary is printed.
    #[command(flatten)]
    pub json: JsonFlag,
}
