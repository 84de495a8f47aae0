//! `evaluate grid` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::JsonFlag;

use crate::present::grid::{Layout, Order};

/// `evaluate grid`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    evaluate grid --scores eval/scores.parquet --count 6 --sort margin:hps\n  \
    evaluate grid --scores eval/scores.parquet --layout seeds --prompts \"a red fox\"")]
pub struct GridArguments {
    /// The scores. Images are relative to the folder of this file.
    #[arg(long, value_name = "FILE.parquet")]
    pub scores: PathBuf,
    /// models: a row for each prompt, a column for each model. seeds: for each prompt a row for
    /// each model, a column for each seed.
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "models")]
    pub layout: Layout,
    /// Only these prompts: ids, or parts of their text.
    #[arg(long, value_name = "ID|TEXT", num_args = 1..)]
    pub prompts: Vec<String>,
    /// Only these models, in this order.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub models: Vec<String>,
    /// Which image of a model to show: the best by a metric, the best by the mean rank over all
    /// metrics, or that of the first seed.
    #[arg(long, value_name = "METRIC|all|first", default_value = "all")]
    pub choose: String,
    /// At most this many prompts [default: 8, with seeds 1].
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// order: as in the scores. margin:METRIC: by how much the last model is better than the first,
    /// by the best image of each.
    #[arg(long, value_name = "ORDER", default_value_t = Order::Given)]
    pub sort: Order,
    /// Side of an image in pixels [default: the largest multiple of the images' own side up to 128;
    /// for large images 256].
    #[arg(long, value_name = "PIXELS")]
    pub size: Option<u32>,
    /// The image to write [default: grid.png beside the scores].
    #[arg(long, value_name = "FILE.png")]
    pub out: Option<PathBuf>,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}
