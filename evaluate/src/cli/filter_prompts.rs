//! `evaluate filter-prompts` as typed.

use std::path::PathBuf;

use clap::Args;

use crate::prompts::PromptSource;

/// `evaluate filter-prompts`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "evaluate filter-prompts --prompts <FILE>... --out <FILE.jsonl> [OPTIONS]"
)]
pub struct FilterPromptsArguments {
    /// Files of prompts, as evaluate generate takes them, with column=,
    /// category= and name=.
    #[arg(long, value_name = "FILE[,OPTION=VALUE]", num_args = 1.., required = true)]
    pub prompts: Vec<PromptSource>,
    /// The split to take where the names of Parquet files or their folders say
    /// splits, such as test_unique-00000-of-00001.parquet.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// A DistilBERT text classifier: a folder, hf://owner/name, or
    /// hf://owner/name@revision.
    #[arg(
        long,
        value_name = "DIR|hf://NAME",
        default_value = "hf://michellejieli/inappropriate_text_classifier"
    )]
    pub classifier: String,
    /// What the classifier calls the class that is not safe.
    #[arg(long, value_name = "NAME", default_value = "NSFW")]
    pub unsafe_label: String,
    /// Keep a prompt that is unsafe with a probability below this.
    #[arg(long, value_name = "P", default_value = "0.5", allow_negative_numbers = true)]
    pub safe_threshold: f32,
    /// The file to write: the kept prompts with their ids, to be given to
    /// --prompts. The dropped ones go to FILE.dropped.jsonl beside it.
    #[arg(long, value_name = "FILE.jsonl")]
    pub out: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", env = "EVALUATE_DEVICE", default_value = "auto")]
    pub device: String,
}
