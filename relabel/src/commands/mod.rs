//! What each command does with its arguments.

mod check;
mod convert;
mod failed;
mod import;
mod join;
mod table;
mod vote;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use locations::{Location, Upload};
use nn::device::{self, DeviceChoice, DeviceError};
use runkit::exit::ExitStatus;
use runkit::launch::Launch;
use runkit::logging::counted;
use runkit::path::is_address;
use runkit::program::{self, JsonFlag, say, usage_unless};
use runkit::settings::Settings as _;
use runkit::shard::Shard;
use scorers::Compute;
use serde::Serialize;

use crate::cli::{
    Cli, Command, InspectArguments, ReportFormat, ScoreArguments, ScoreSettings, VotingArguments,
};
use crate::inspect::{Report, Voting};
use crate::score::plan::UNIT_PAIRS;
use crate::score::{self, Config, Sharing};

/// The default numbers of images per forward pass. On a CPU these come nearest to the speed of a
/// plain matrix product (docs/performance.md); 64 is meant to fill a GPU's matrix units, and was
/// not measured.
const BATCH_SIZE_CPU_F32: usize = 8;
const BATCH_SIZE_CPU_BF16: usize = 16;
const BATCH_SIZE_CUDA: usize = 64;

/// Runs one command.
///
/// # Errors
/// Whatever stopped it, in one sentence.
pub fn run(command: Command) -> Result<ExitStatus> {
    match command {
        Command::Score(arguments) => score(&arguments),
        Command::Check(arguments) => {
            let arguments = arguments.score;
            let Some(settings) = settings(&arguments)? else { return Ok(ExitStatus::Done) };
            let config = config(&settings, &arguments, Output::NotNeeded)?;
            let stop = runkit::signals::install().context("installing signal handlers")?;
            check::run(&config, arguments.json, &stop)
        }
        Command::Vote(arguments) => {
            prepare_voting(&arguments.voting)?;
            vote::run(&arguments)
        }
        Command::Join(arguments) => {
            prepare_voting(&arguments.voting)?;
            join::run(&arguments)
        }
        Command::Import(arguments) => {
            prepare_voting(&arguments.voting)?;
            let table = refuse_address("--scores", Some(&arguments.scores));
            table.map_err(usage_unless(DeviceError::is_absent))?;
            import::run(&arguments)
        }
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Inspect(arguments) => inspect(&arguments),
        Command::Doctor(json) => {
            let report = nn::doctor::examine();
            json.say(|| report.to_string(), &report)?;
            Ok(if report.is_usable() { ExitStatus::Done } else { ExitStatus::Failed })
        }
        Command::Program(command) => command.run::<Cli>(),
    }
}

/// What commands do first that write votes of scores that are there.
fn prepare_voting(arguments: &VotingArguments) -> Result<()> {
    let out = refuse_address("--out", Some(&arguments.out));
    out.map_err(usage_unless(DeviceError::is_absent))?;
    runkit::signals::ignore_file_size_signal().context("setting up signals")
}

/// The JSON summary of `relabel score` and of the commands that vote again.
#[derive(Serialize)]
struct Summary<'run> {
    /// "complete", or "shard_complete" while units of other processes are missing or another one
    /// writes the labels file, or "out_of_requests" if the budget of a scorer is spent.
    state: &'static str,
    labels: &'run Path,
    /// Units of other processes that are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_units: Option<usize>,
    /// What `relabel inspect --json` prints.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<&'run Report>,
}

/// Prints what a labels file holds.
fn say_report(json: JsonFlag, labels: &Path, report: &Report) -> Result<()> {
    let summary = Summary { state: "complete", labels, missing_units: None, report: Some(report) };
    json.say(|| format!("{}\nlabels: {}\n", report.to_text(), labels.display()), &summary)
}

fn score(arguments: &ScoreArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let Some(settings) = settings(arguments)? else { return Ok(ExitStatus::Done) };
    let config = config(&settings, arguments, Output::Needed)?;
    let stop = runkit::signals::install().context("installing signal handlers")?;
    match score::run(&config, &stop)? {
        score::End::ShareDone { missing } => {
            let (sharing, labels) = (&config.sharing, config.out.as_path());
            let text = || match missing {
                0 => format!("{sharing} done; another process writes {}\n", labels.display()),
                _ => format!(
                    "{sharing} done; others have {} left, then {} can be written\n",
                    counted(missing as u64, "units"),
                    labels.display()
                ),
            };
            let (state, missing_units) = ("shard_complete", Some(missing));
            arguments.json.say(text, &Summary { state, labels, missing_units, report: None })?;
            Ok(ExitStatus::Done)
        }
        score::End::OutOfRequests(spent) => {
            tracing::warn!("{spent}");
            let (state, labels) = ("out_of_requests", config.out.as_path());
            let text = || {
                format!(
                    "stopped before the labels: the requests of max_requests are sent\nwork: {}\n",
                    config.work_folder().display()
                )
            };
            let summary = Summary { state, labels, missing_units: None, report: None };
            arguments.json.say(text, &summary)?;
            Ok(ExitStatus::TooManyFailedRows)
        }
        // The rank that completed the labels prints their summary.
        score::End::DoneElsewhere if matches!(config.sharing, Sharing::Rank(_)) => {
            Ok(ExitStatus::Done)
        }
        score::End::Done | score::End::DoneElsewhere => {
            let report = Report::of(&config.out)?;
            say_report(arguments.json, &config.out, &report)?;
            let list = format!("list them with relabel inspect --failed {}", config.out.display());
            Ok(program::status_of_failed(report.failed_rows, config.max_failed, "rows", &list))
        }
    }
}

fn inspect(arguments: &InspectArguments) -> Result<ExitStatus> {
    runkit::signals::quiet_broken_pipe().context("setting up signals")?;
    if arguments.failed {
        return failed::run(&arguments.labels, arguments.format());
    }
    let json = JsonFlag { json: arguments.format() == ReportFormat::Json };
    if arguments.voting {
        let study = Voting::of(&arguments.labels)?;
        json.say(|| study.to_text(), &study)?;
        return Ok(ExitStatus::Done);
    }
    let report = Report::of(&arguments.labels)?;
    json.say(|| report.to_text(), &report)?;
    Ok(ExitStatus::Done)
}

/// The settings from flags, environment and file; `None` if they were only to be printed.
fn settings(arguments: &ScoreArguments) -> Result<Option<ScoreSettings>> {
    let file = refuse_address("--config", arguments.file.config.as_deref());
    file.map_err(usage_unless(DeviceError::is_absent))?;
    let mut settings = arguments.settings.over_file(arguments.file.config.as_deref())?;
    // A shard is of one process, so no file holds it.
    settings.shard = arguments.settings.shard;
    if arguments.file.print_config {
        let resolved = settings.with_defaults().map_err(usage_unless(DeviceError::is_absent))?;
        say(&resolved.to_toml()?)?;
        return Ok(None);
    }
    Ok(Some(settings))
}

#[derive(Clone, Copy, PartialEq)]
enum Output {
    Needed,
    NotNeeded,
}

/// The validated run; what is wrong with the arguments is a usage error.
fn config(settings: &ScoreSettings, arguments: &ScoreArguments, output: Output) -> Result<Config> {
    validated(settings, arguments, output).map_err(usage_unless(DeviceError::is_absent))
}

/// What this process does of the run, and where it stands among those of its machine. `--shard`
/// wins; else the ranks of a launch that have a store share the work through it, and those that
/// have none are shards.
fn sharing(shard: Option<Shard>) -> Result<(Sharing, Launch)> {
    if let Some(shard) = shard {
        // Variables that nobody needs may hold anything.
        return Ok((shard.into(), Launch::from_environment().unwrap_or(Launch::ALONE)));
    }
    let launch = Launch::from_environment()?;
    let sharing = match launch.is_alone() || launch.store.is_none() {
        true => Shard::from_environment(None)?.into(),
        false => Sharing::Rank(launch.clone()),
    };
    Ok((sharing, launch))
}

fn validated(
    settings: &ScoreSettings,
    arguments: &ScoreArguments,
    output: Output,
) -> Result<Config> {
    let settings = settings.with_defaults()?;
    let pairs = settings.pairs.clone().filter(|pairs| !pairs.is_empty());
    program::require(&[
        ("--pairs <PATH>...", pairs.is_some()),
        ("--scorers <FILE.toml>", settings.scorers.is_some()),
        ("--out <FILE.parquet>", settings.out.is_some() || output == Output::NotNeeded),
    ])?;
    let pairs = pairs.unwrap_or_default();
    let scorers = settings.scorers.clone().unwrap_or_default();
    let out = settings.out.clone().unwrap_or_else(|| PathBuf::from("labels.parquet"));
    let mut work = settings.work.clone();
    let (out, address) = match Location::parse(&out)? {
        Location::Local(_) => (out, None),
        location @ Location::Remote(_) => {
            Upload::check(&location)?;
            work.get_or_insert_with(|| PathBuf::from(format!("{}.work", location.name())));
            (location.path().to_owned(), Some(location))
        }
    };
    ensure!(out.file_name().is_some(), "--out {} does not name a file", out.display());
    refuse_address("--scorers", Some(&scorers))?;
    refuse_address("--scratch", settings.scratch.as_deref())?;
    refuse_address("--work", work.as_deref())?;
    ensure!(
        work.as_ref().is_none_or(|work| work.file_name().is_some()),
        "--work {} does not name a folder of its own; hint: it is removed once the labels are there",
        work.unwrap_or_default().display()
    );
    let (sharing, launch) = sharing(settings.shard)?;
    if let Sharing::Rank(launch) = &sharing {
        runkit::logging::of_rank(launch.rank, false);
    }
    device::share_cores(&launch);
    let compute = compute(&settings, launch.local_rank)?;
    let batch_size = settings.batch_size.unwrap_or_default();
    ensure!(batch_size > 0, "--batch-size 0 scores nothing; hint: leave it out for the default");
    ensure!(settings.limit != Some(0), "--limit 0 takes no pair; hint: leave it out to take all");
    ensure!(
        settings.unit_pairs != Some(0),
        "--unit-pairs 0 makes no unit; hint: leave it out for the default"
    );
    let is_alone = sharing.is_alone();
    let config = Config {
        pairs,
        splits: settings.split.clone().unwrap_or_default(),
        layout: settings.layout,
        scorers,
        out,
        address,
        work,
        settings_file: arguments.file.config.clone(),
        batch_size,
        compute,
        sharing,
        ties: settings.ties.unwrap_or_default(),
        missing: settings.missing.unwrap_or_default(),
        reuse: settings.reuse.clone(),
        limit: settings.limit,
        unit_pairs: settings.unit_pairs.unwrap_or(UNIT_PAIRS),
        scratch: settings.scratch.clone(),
        fresh: arguments.fresh,
        max_failed: settings.max_failed.unwrap_or_default(),
        saved_settings: saved(&settings)?,
    };
    ensure!(
        is_alone || !arguments.fresh,
        "--fresh with one of several processes would remove what the others did; hint: remove {} by hand",
        config.work_folder().display()
    );
    Ok(config)
}

/// The settings as they are saved beside the output: valid from any folder, and without the queries
/// of addresses, which may be signatures.
fn saved(settings: &ScoreSettings) -> Result<String> {
    let mut settings = settings.with_absolute_paths();
    for path in settings.paths().into_iter().filter(|path| is_address(path)) {
        *path = locations::shown(path);
    }
    Ok(settings.to_toml()?)
}

/// Refuses an address where only a path of this machine is read or written.
fn refuse_address(flag: &str, path: Option<&Path>) -> Result<()> {
    let Some(path) = path.filter(|path| is_address(path)) else { return Ok(()) };
    bail!(
        "{flag} {}: expected a path of this machine, found an address; hint: name a path, and copy \
         the file from or to the address",
        locations::shown(path).display()
    )
}

/// `auto` is the GPU of the rank among those of its machine.
fn compute(settings: &ScoreSettings, local_rank: usize) -> Result<Compute> {
    let device: DeviceChoice = settings.device.as_deref().unwrap_or_default().parse()?;
    let device = device.resolve_for(local_rank)?;
    let dtype = settings.dtype.as_deref().unwrap_or_default();
    let precision = device::choose_dtype_or_auto(dtype, device)?;
    Ok(Compute { device, precision })
}

impl ScoreSettings {
    /// Every setting, for `--print-config` and the copy beside the output.
    fn with_defaults(&self) -> Result<Self> {
        let mut settings = self.over_defaults()?;
        let on_gpu = device::parse(settings.device.as_deref().unwrap_or_default())?.is_cuda();
        settings.batch_size.get_or_insert(match (on_gpu, settings.dtype.as_deref()) {
            (true, _) => BATCH_SIZE_CUDA,
            (false, Some("bf16")) => BATCH_SIZE_CPU_BF16,
            (false, _) => BATCH_SIZE_CPU_F32,
        });
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_in_the_file_and_in_the_help() {
        let settings = ScoreSettings::default().with_defaults().unwrap();
        assert_eq!(settings.ties, Some(Default::default()), "Equation 7");
        assert_eq!((settings.max_failed, settings.batch_size), (Some(0), Some(8)));
        assert_eq!(settings.unit_pairs, Some(UNIT_PAIRS), "a manifest leaves it out");
        assert_eq!(
            (settings.device.as_deref(), settings.dtype.as_deref()),
            (Some("auto"), Some("auto"))
        );
        let mut program = <crate::cli::Cli as clap::CommandFactory>::command();
        let score = program.find_subcommand_mut("score").unwrap();
        let help = score.render_long_help().to_string();
        for (default, count) in [
            ("[default: zero]", 1),
            ("[default: drop]", 1),
            ("[default: 0]", 1),
            ("[default: auto]", 2),
        ] {
            assert_eq!(help.matches(default).count(), count, "{default}: {help}");
        }
    }
}
