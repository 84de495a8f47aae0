//! What each command does with what was typed.

mod filter_prompts;
mod generate;
mod grid;
mod report;
mod run;
mod score;
mod tables;

use std::ops::{ControlFlow, Range};

use anyhow::{Context as _, Result, ensure};
use runkit::exit::ExitStatus;
use runkit::program::JsonFlag;
use runkit::signals::{self, StopFlag, Stoppable, Stopped};

use crate::cli::{Cli, Command};
use crate::prompts::{Limits, Preset};

/// Runs one command.
///
/// # Errors
/// Whatever stopped it, in one sentence.
pub fn run(command: Command) -> Result<ExitStatus> {
    if matches!(command, Command::Run(_) | Command::Generate(_) | Command::Score(_)) {
        runkit::shard::refuse_several_processes("evaluate")?;
    }
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Score(arguments) => score::run(&arguments),
        Command::FilterPrompts(arguments) => filter_prompts::run(&arguments),
        Command::Grid(arguments) => grid::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Tables(arguments) => tables::run(&arguments),
        Command::Doctor(json) => doctor(json),
        Command::Program(command) => command.run::<Cli>(),
    }
}

fn doctor(json: JsonFlag) -> Result<ExitStatus> {
    let report = nn::doctor::examine();
    json.say(|| report.to_string(), &report)?;
    Ok(if report.is_usable() { ExitStatus::Done } else { ExitStatus::Failed })
}

/// Asks to stop at a signal, and ends soon after it: every file of an evaluation is whole at any
/// instant.
fn stop_flag() -> Result<StopFlag> {
    let stop = signals::install().context("installing signal handlers")?;
    signals::end_soon(&stop).context("starting a thread")?;
    Ok(stop)
}

/// The result of work that may stop. A stop is the error that ends the program with its signal.
fn finished<T>(result: Stoppable<T>) -> Result<T, Stopped> {
    match result {
        ControlFlow::Continue(result) => Ok(result),
        ControlFlow::Break(signal) => Err(Stopped(signal)),
    }
}

/// `count` seeds from `first` on. The scores hold seeds as signed numbers of 64 bits.
fn seeds(first: u64, count: u64) -> Result<Range<u64>> {
    ensure!(count > 0, "--seeds must be at least 1, found 0; hint: leave it out");
    let last = first.checked_add(count).filter(|&last| i64::try_from(last).is_ok());
    let too_large = || format!("--base-seed {first} is too large for {count} seeds");
    Ok(first..last.with_context(too_large)?)
}

fn limits(limit: Option<usize>, preset: Option<Preset>) -> Result<Limits> {
    ensure!(
        limit != Some(0),
        "--limit must be at least 1, found 0; hint: leave it out to take all"
    );
    ensure!(
        limit.is_none() || preset.is_none(),
        "--limit and --preset both say how many prompts to take; hint: leave one out"
    );
    Ok(Limits { limit, preset })
}

fn check_safe_threshold(threshold: f32) -> Result<()> {
    ensure!(
        threshold > 0.0 && threshold <= 1.0,
        "--safe-threshold must be in (0, 1], found {threshold}; hint: 0.5 is usual"
    );
    Ok(())
}
