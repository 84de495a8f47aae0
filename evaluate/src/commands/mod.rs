//! What each command does with what was typed.

mod filter_prompts;
mod generate;
mod grid;
mod pairs;
mod report;
mod run;
mod score;
mod tables;

use std::ops::{ControlFlow, Range};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nn::device::{DeviceChoice, share_cores};
use nn::distributed::sharing_stops;
use runkit::exit::ExitStatus;
use runkit::launch::Launch;
use runkit::program::{JsonFlag, UsageError};
use runkit::signals::{self, StopFlag, Stoppable, Stopped};
use scorers::ScorerError;
use tch::Device;

use crate::cli::generate::{ShardFlag, StartFlags};
use crate::cli::{Cli, Command};
use crate::prompts::{Limits, Preset};
use crate::sharing::Sharing;

/// Runs one command.
///
/// # Errors
/// Whatever stopped it, in one sentence.
pub fn run(command: Command) -> Result<ExitStatus> {
    // Commands that divide their work say what is wrong with a launcher's variables.
    let launch = Launch::from_environment().unwrap_or(Launch::ALONE);
    if launch.store.is_some() && !launch.is_first() && is_of_one_process(&command) {
        return Ok(ExitStatus::Done);
    }
    share_cores(&launch);
    let end = match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Score(arguments) => score::run(&arguments),
        Command::FilterPrompts(arguments) => filter_prompts::run(&arguments),
        Command::Grid(arguments) => grid::run(&arguments),
        Command::Pairs(arguments) => pairs::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Tables(arguments) => tables::run(&arguments),
        Command::Doctor(json) => doctor(json),
        Command::Program(command) => command.run::<Cli>(),
    };
    end.or_else(|error| match error.downcast_ref::<ScorerError>() {
        // Not a failure: what there is stays, and a higher budget resumes.
        Some(spent @ ScorerError::OutOfRequests { .. }) => {
            tracing::warn!("{spent}");
            Ok(ExitStatus::TooManyFailedRows)
        }
        _ => Err(error),
    })
}

/// Whether several processes would do the same work. Rank 0 does it then.
fn is_of_one_process(command: &Command) -> bool {
    matches!(
        command,
        Command::FilterPrompts(_)
            | Command::Grid(_)
            | Command::Pairs(_)
            | Command::Report(_)
            | Command::Tables(_)
    )
}

/// The processes that share the work of a command, while it is worked on. Ranks meet.
///
/// A stop of one rank stops all: `work` ends at its next batch.
fn shared<T>(
    flag: ShardFlag,
    stop: &StopFlag,
    work: impl FnOnce(&Sharing) -> Result<Stoppable<T>>,
) -> Result<T> {
    let sharing = Sharing::of_process(flag.shard)?;
    let end = sharing_stops(sharing.store(), stop, || work(&sharing));
    match (end, stop.requested()) {
        (Ok(ControlFlow::Continue(end)), _) => Ok(end),
        (Ok(ControlFlow::Break(signal)), _) => Err(Stopped(signal).into()),
        // If a rank was stopped, errors of the others come from that.
        (Err(_), Some(signal)) if sharing.store().is_some() => Err(Stopped(signal).into()),
        (Err(error), _) => {
            sharing.leave_words(&error);
            Err(error)
        }
    }
}

/// The device of a flag. `auto` is the GPU of this process among those of its machine.
fn device(flag: Option<&str>) -> Result<Device> {
    let choice: DeviceChoice = flag.unwrap_or_default().parse()?;
    let launch = Launch::from_environment().map_err(UsageError::of)?;
    Ok(choice.resolve_for(launch.local_rank)?)
}

/// `--fresh` would delete what other processes make, and at each restart of a launcher.
fn refuse_fresh(start: &StartFlags, out: &Path) -> Result<()> {
    let is_shared = match start.share.shard {
        Some(shard) => !shard.is_whole(),
        None => !Launch::from_environment().map_err(UsageError::of)?.is_alone(),
    };
    ensure!(
        !(start.fresh && is_shared),
        UsageError::new(format!(
            "--fresh would delete what the other processes make; hint: remove {} before you start \
             them, and leave --fresh out",
            out.display()
        ))
    );
    Ok(())
}

/// Whether this process does a dry run: one of a launch is enough.
fn rehearses(flag: ShardFlag) -> Result<bool> {
    Ok(flag.shard.is_some() || Launch::from_environment().map_err(UsageError::of)?.is_first())
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
