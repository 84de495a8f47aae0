//! `evaluate report` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::JsonFlag;

/// `evaluate report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    evaluate report --scores eval/scores.parquet --labels labels.parquet --out report/")]
pub struct ReportArguments {
    /// The scores. Images are relative to the folder of this file.
    #[arg(long, value_name = "FILE.parquet")]
    pub scores: PathBuf,
    /// The labels that a model was trained with: the report shows how far their scorers agree.
    #[arg(long, value_name = "FILE.parquet")]
    pub labels: Option<PathBuf>,
    /// Take these models, in this order [default: all, in the order of the scores].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// The folder for report.html and figures [default: that of the scores].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}
