//! `evaluate filter-prompts` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::JsonFlag;

use super::defaults::DEFAULTS;
use crate::prompts::{PromptSource, SAFETY_CLASSIFIER, UNSAFE_LABEL};

/// `evaluate filter-prompts`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "evaluate filter-prompts --prompts <FILE>... --out <FILE.jsonl> [OPTIONS]"
)]
#[command(after_help = "Examples:\n  \
    evaluate filter-prompts --prompts PartiPrompts.tsv --out parti-safe.jsonl\n  \
    evaluate generate --prompts parti-safe.jsonl --preset paper-sd15 --model base=sd15/ --out eval/")]
pub struct FilterPromptsArguments {
    /// Files of prompts, as for generate, with column=, category= and name=.
    #[arg(long, value_name = "FILE[,OPTION=VALUE]", num_args = 1.., required = true)]
    pub prompts: Vec<PromptSource>,
    /// The split to take of Parquet files, as for generate.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// A DistilBERT text classifier: a folder, hf://owner/name, or hf://owner/name@revision.
    #[arg(long, value_name = "DIR|hf://NAME", default_value = SAFETY_CLASSIFIER)]
    pub classifier: String,
    /// The classifier's name of the unsafe class.
    #[arg(long, value_name = "NAME", default_value = UNSAFE_LABEL)]
    pub unsafe_label: String,
    /// Keep a prompt if its probability to be unsafe is below this.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(default_value_t = DEFAULTS.report.safe_threshold.unwrap_or_default())]
    pub safe_threshold: f32,
    /// The file to write: the kept prompts with their ids, for --prompts. FILE.dropped.jsonl beside
    /// it gets the dropped ones.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", env = "EVALUATE_DEVICE", default_value = "auto")]
    pub device: String,
    /// The form of the summary.
    #[command(flatten)]
    pub json: JsonFlag,
}
