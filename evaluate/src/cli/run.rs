//! `evaluate run` as typed.

use std::path::PathBuf;

use clap::Args;
use runkit::settings::{Settings, SettingsFlags};
use serde::{Deserialize, Serialize};

use super::defaults::{DEFAULTS, in_help};
use super::generate::{GenerateSettings, StartFlags};
use super::score::ScoringSettings;

/// `evaluate run`.
#[derive(Debug, Clone, Args)]
#[command(mut_args(in_help(&*DEFAULTS)))]
#[command(
    override_usage = "evaluate run --model <NAME=DIR> --prompts <FILE>... --scorers <FILE>\n           \
    --out <DIR> [OPTIONS]"
)]
#[command(after_help = "Examples:\n  \
    evaluate run --model base=sd15/ --model dpo=sd15/,unet=runs/dpo/pipeline/unet \\\n      \
    --prompts PartiPrompts.tsv --scorers scorers.toml --out eval/\n  \
    evaluate run --config eval.toml --dry-run")]
pub struct RunArguments {
    /// The settings that a file can hold as well.
    #[command(flatten)]
    pub settings: RunSettings,
    /// The settings file.
    #[command(flatten)]
    pub file: SettingsFlags,
    /// How the command runs.
    #[command(flatten)]
    pub start: StartFlags,
}

/// Settings of `evaluate run`, each unset until flag, environment or file sets it. In a file they
/// are in the tables `[generate]`, `[scoring]` and `[report]`.
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
    /// Drop prompts that this classifier finds unsafe: a folder, hf://owner/name, or none. The
    /// paper's is hf://michellejieli/inappropriate_text_classifier.
    #[arg(long, value_name = "MODEL", help_heading = "Input and output")]
    pub safe_filter: Option<String>,
    /// A prompt with at least this probability is unsafe.
    #[arg(long, value_name = "P", help_heading = "Input and output")]
    #[arg(allow_negative_numbers = true, value_parser = super::finite::<f32>)]
    pub safe_threshold: Option<f32>,
    /// Add tables of every model against each of these [default: the first model].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', help_heading = "Report")]
    pub baselines: Option<Vec<String>>,
    /// The labels that a model was trained with: the report shows how far their scorers agree.
    #[arg(long, value_name = "FILE.parquet", help_heading = "Report")]
    pub labels: Option<PathBuf>,
}

impl Settings for RunSettings {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = self.generate.paths();
        paths.extend(self.scoring.scorers.iter_mut().chain(&mut self.report.labels));
        paths
    }
}
