//! The command line as typed. [`crate::commands`] decides what it means.

pub(crate) mod defaults;
pub mod filter_prompts;
pub mod generate;
pub mod grid;
pub mod pairs;
pub mod report;
pub mod run;
pub mod score;
pub mod tables;

use std::str::FromStr;

use clap::{Parser, Subcommand};
use runkit::logging::LogArguments;
use runkit::program::{JsonFlag, ProgramCommand};

/// From diffusion models and prompts to images, scores, win rates and a report.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version, propagate_version = true)]
#[command(after_help = "Examples:\n  \
    evaluate run --model base=sd15/ --model dpo=sd15/,unet=runs/dpo/pipeline/unet \\\n      \
    --prompts PartiPrompts.tsv --scorers scorers.toml --out eval/")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged.
    #[command(flatten)]
    pub log: LogArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate images with every model, score them, and compare the models: tables, figures and a
    /// report.
    Run(run::RunArguments),
    /// Generate images of prompts with one or more diffusion models.
    Generate(generate::GenerateArguments),
    /// Score images with reward models: those of generate, and others.
    Score(score::ScoreArguments),
    /// Make win-rate tables of scores.
    Tables(tables::TablesArguments),
    /// Lay images and their scores side by side on a contact sheet.
    Grid(grid::GridArguments),
    /// Write the report page and its figures from existing scores.
    Report(report::ReportArguments),
    /// Make pairs of scored images, with labels, to train on.
    Pairs(pairs::PairsArguments),
    /// Keep the prompts that a text classifier finds safe to show.
    FilterPrompts(filter_prompts::FilterPromptsArguments),
    /// Show what the program finds on this machine: libtorch, CUDA, GPUs, CPU, disks and the hub.
    Doctor(JsonFlag),
    /// Commands of every program.
    #[command(flatten)]
    Program(ProgramCommand),
}

/// A number of a flag. NaN and infinity have no place in settings: JSON, in which layers are
/// merged, drops them without a word.
fn finite<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    let number: Option<T> = text.parse().ok();
    let finite = number.filter(|&number| number.into().is_finite());
    finite.ok_or_else(|| "expected a finite number".to_owned())
}
