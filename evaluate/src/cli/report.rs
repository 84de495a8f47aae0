//! `evaluate report` as typed.

use std::path::PathBuf;

use clap::Args;

/// `evaluate report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArguments {
    /// The scores; images are found relative to their folder.
    #[arg(long, value_name = "FILE.parquet")]
    pub scores: PathBuf,
    /// The labels of the training, to show how their scorers agree.
    #[arg(long, value_name = "FILE.parquet")]
    pub labels: Option<PathBuf>,
    /// Take these models, in this order [default: all, as they stand in the
    /// scores].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// The folder to write report.html and figures into [default: that of the
    /// scores].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
