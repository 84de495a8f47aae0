//! `evaluate pairs` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::{JsonFlag, ResumeFlag};

use crate::pairs::{By, Choose};

/// `evaluate pairs`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    evaluate pairs --scores eval/scores.parquet --out pairs/\n  \
    train run --recipe sd15 --model sd15/ --pairs pairs/ \\\n      \
    --labels pairs/labels.parquet --out runs/own")]
pub struct PairsArguments {
    /// The scores that evaluate score or evaluate run wrote. Images are relative to the folder of
    /// this file, and must be the ones that were scored.
    #[arg(long, value_name = "FILE.parquet")]
    pub scores: PathBuf,
    /// The folder to write: pairs-*.parquet, and labels.parquet for train.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Which images of a prompt become pairs. best-worst: the first and the last in rank, none if
    /// they are equal. all: every two. adjacent: every two neighbours in rank. unanimous: every two
    /// that all voters order alike, by different scores.
    #[arg(long, value_enum, value_name = "WHICH", default_value = "best-worst")]
    #[arg(hide_possible_values = true)]
    pub choose: Choose,
    /// What ranks the images of a prompt: mean-rank, the mean of an image's ranks by the voters, or
    /// one metric. Where images are equal, the lower seed comes first.
    #[arg(long, value_name = "mean-rank|METRIC", default_value_t = By::MeanRank)]
    pub by: By,
    /// Only the images of these models [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// The metrics that vote, in the order of the labels' columns [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub voters: Option<Vec<String>>,
    /// Only the prompts of these sets [default: all].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub sets: Option<Vec<String>>,
    /// Start over: delete the pairs of an earlier run of this output.
    #[arg(long)]
    pub fresh: bool,
    /// A flag of other programs.
    #[command(flatten)]
    pub resume: ResumeFlag,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}
