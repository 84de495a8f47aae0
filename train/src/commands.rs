//! What each command does with what was typed.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use indicatif::{HumanBytes, HumanCount};
use nn::device::DeviceError;
use runkit::exit::ExitStatus;
use runkit::program::{self, UsageError, say, usage_unless};

use crate::cache;
use crate::cli::{CacheArguments, Command, RunArguments, RunSettings};
use crate::config::{self, Config};
use crate::recipe::RecipeError;
use crate::run::opened::OpenedRun;
use crate::run::plan::Plan;
use crate::run::{self, End};

/// Runs one command.
///
/// # Errors
/// Whatever stopped it, in one sentence.
pub fn run(command: Command) -> Result<ExitStatus> {
    match command {
        Command::Run(arguments) => train(&arguments),
        Command::Plan(arguments) => plan(&arguments),
        Command::Cache(arguments) => write_cache(&arguments),
    }
}

fn train(arguments: &RunArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let Some(settings) = settings(arguments)? else { return Ok(ExitStatus::Done) };
    runkit::shard::refuse_several_processes("train run")?;
    let config = config(&settings, arguments)?;
    let stop = runkit::signals::install().context("installing signal handlers")?;
    match run::run(&config, &stop)? {
        End::Stopped(signal) => {
            tracing::warn!("stopped; the steps done are kept, the same command goes on from there");
            Ok(signal.into())
        }
        End::Done { pipeline, probe } => {
            let mut text = String::new();
            if let Some(probe) = probe {
                let _ = writeln!(
                    text,
                    "on the probe: loss {:.4} (ln 2 is 0.6931), implicit accuracy {:.3}",
                    probe.loss, probe.accuracy
                );
            }
            let _ = writeln!(text, "pipeline: {}", pipeline.display());
            say(&text)?;
            Ok(ExitStatus::Done)
        }
    }
}

fn plan(arguments: &RunArguments) -> Result<ExitStatus> {
    let Some(settings) = settings(arguments)? else { return Ok(ExitStatus::Done) };
    let config = config(&settings, arguments)?;
    runkit::signals::quiet_broken_pipe().context("setting up signals")?;
    runkit::signals::install().context("installing signal handlers")?;
    let opened = OpenedRun::new(&config)?;
    opened.check_cache()?;
    say(&Plan::new(&config, &opened)?.text)?;
    Ok(ExitStatus::Done)
}

fn write_cache(arguments: &CacheArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let settings = cache::settings(arguments)?;
    if arguments.print_config {
        say(&runkit::config::to_toml_string(&settings)?)?;
        return Ok(ExitStatus::Done);
    }
    let config = cache::Config::new(&settings, arguments.fresh)
        .map_err(usage_unless(DeviceError::is_absent))?;
    let stop = runkit::signals::install().context("installing signal handlers")?;
    let end = cache::write(&config, &stop)?;
    if config.out.join(cache::MANIFEST).exists() {
        let text = runkit::config::to_toml_string(&settings.with_absolute_paths())?;
        runkit::files::write_atomic(config.out.join(config::FILE), |file| {
            file.write_all(text.as_bytes())
        })?;
    }
    match end {
        cache::End::Stopped(signal) => {
            tracing::warn!("stopped; finished parts are kept, the same command goes on from there");
            Ok(signal.into())
        }
        cache::End::Done(summary) => {
            say(&format!(
                "{} pairs, {} of them failed, {} captions, {}\ncache: {}\n",
                HumanCount(summary.rows),
                HumanCount(summary.failed),
                HumanCount(summary.captions),
                HumanBytes(summary.bytes),
                config.out.display()
            ))?;
            let allowed = settings.max_failed.unwrap_or(0);
            let latents = config.out.join("latents-*.parquet");
            let which = format!("the column status of {} says why", latents.display());
            Ok(program::status_of_failed(summary.failed, allowed, "pairs", &which))
        }
    }
}

/// The validated run; what is wrong with the arguments is a usage error.
fn config(settings: &RunSettings, arguments: &RunArguments) -> Result<Config> {
    Config::new(settings, arguments.fresh).map_err(usage_unless(DeviceError::is_absent))
}

/// The settings from flags, environment, file and recipes; `None` when they were only to be printed.
fn settings(arguments: &RunArguments) -> Result<Option<RunSettings>> {
    let settings =
        config::settings(arguments).map_err(|error| match error.downcast_ref::<RecipeError>() {
            Some(RecipeError::Unknown { .. }) => UsageError::of(error).into(),
            _ => error,
        })?;
    if arguments.print_config {
        say(&runkit::config::to_toml_string(&settings)?)?;
        return Ok(None);
    }
    Ok(Some(settings))
}
