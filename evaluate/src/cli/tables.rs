//! `evaluate tables` as typed.

use std::path::PathBuf;

use clap::Args;

/// `evaluate tables`.
#[derive(Debug, Clone, Args)]
pub struct TablesArguments {
    /// Scores that `evaluate score` or `evaluate run` wrote; several are put
    /// together.
    #[arg(long, value_name = "FILE.parquet", num_args = 1.., required = true)]
    pub scores: Vec<PathBuf>,
    /// The folder to write [default: that of the first scores].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Add tables of every model against these, as the paper's Tables 3 and 4.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub baselines: Vec<String>,
    /// Take these models, in this order; a later one is compared with those
    /// before it [default: all, as they stand in the scores].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// Take these metrics, in this order [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub bootstrap: usize,
    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}
