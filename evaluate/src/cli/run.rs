//! `evaluate run` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::program::ResumeFlag;
use serde::{Deserialize, Serialize};

use super::GenerateSettings;
use super::score::ScoringSettings;

/// `evaluate run`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "evaluate run --model <NAME=DIR> --prompts <FILE>... --scorers <FILE>\n           \
    --out <DIR> [OPTIONS]"
)]
pub struct RunArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: RunSettings,
    /// Read settings from this TOML file; flags and environment win.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Open everything, load the networks, say what would be generated and scored,
    /// what is needed on the disk and how long it takes, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Start over: remove the images of an earlier run of this output.
    #[arg(long)]
    pub fresh: bool,
    /// What users of other programs type.
    #[command(flatten)]
    pub resume: ResumeFlag,
}

/// Settings of `evaluate run`, each unset until flag, environment or file sets it. In a file they stand
/// in the tables `[generate]`, `[scoring]` and `[report]`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// What is generated, and how.
    #[command(flatten)]
    #[serde(default)]
    pub generate: GenerateSettings,
    /// How it is scored.
    #[command(flatten)]
    #[serde(default)]
    pub scoring: ScoringSettings,
    /// What is made of the scores.
    #[command(flatten)]
    #[serde(default)]
    pub report: ReportSettings,
}

/// What `run` does besides generating and scoring.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportSettings {
    /// Leave out prompts that this classifier finds unsafe: a folder, hf://owner/name,
    /// or none [default: none]. The paper's is
    /// hf://michellejieli/inappropriate_text_classifier.
    #[arg(long, value_name = "MODEL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe_filter: Option<String>,
    /// A prompt is unsafe from this probability on [default: 0.5].
    #[arg(long, value_name = "P")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe_threshold: Option<f32>,
    /// Models that all others are compared with in the tables of preferences
    /// [default: the first].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baselines: Option<Vec<String>>,
    /// The labels that a model was trained with: the report shows how far their
    /// scorers agree.
    #[arg(long, value_name = "FILE.parquet")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
}
