//! What each command does with the command line.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use anyhow::{Context as _, Result};
use indicatif::{HumanBytes, HumanCount};
use nn::device::{DeviceError, Precision, share_cores};
use runkit::exit::ExitStatus;
use runkit::launch::Launch;
use runkit::program::{self, UsageError, say, stopped_by, usage_unless};
use runkit::settings::Settings as _;
use runkit::signals::stoppable;
use serde_json::{Value, json};
use tch::Device;

use crate::cache;
use crate::cli::{
    CacheArguments, Cli, Command, ExportArguments, ExportFormat, MergeArguments, PlanArguments,
    RunArguments,
};
use crate::config::{self, Config};
use crate::merge::{self, Merge};
use crate::recipe::{self, RecipeError};
use crate::run::opened::OpenedRun;
use crate::run::plan::{Bytes, Limit, Plan};
use crate::run::{self, Finished};
use crate::settings::{self, RunOptions};
use crate::single_file;

/// Runs one command. `program` is the version of the program.
///
/// # Errors
/// Whatever stopped it, in one sentence.
pub fn run(command: Command, program: &str) -> Result<ExitStatus> {
    match command {
        Command::Run(arguments) => train(&arguments, program),
        Command::Plan(arguments) => plan(&arguments),
        Command::Cache(arguments) => write_cache(&arguments),
        Command::Merge(arguments) => merge(&arguments),
        Command::Export(arguments) => export(&arguments),
        Command::Recipes(json) => {
            json.say(recipe::list, &recipe::list_json()?)?;
            Ok(ExitStatus::Done)
        }
        Command::Doctor(json) => {
            let report = nn::doctor::examine();
            json.say(|| report.to_string(), &report)?;
            Ok(if report.is_usable() { ExitStatus::Done } else { ExitStatus::Failed })
        }
        Command::Program(command) => command.run::<Cli>(),
    }
}

fn train(arguments: &RunArguments, program: &str) -> Result<ExitStatus> {
    arguments.resume.explain();
    let launch = launch("train run")?;
    let Some(settings) = settings(arguments, &launch)? else { return Ok(ExitStatus::Done) };
    let config = config(&settings, arguments, &launch)?;
    share_cores(&launch);
    // While ranks wait for each other, a signal ends them at once.
    let world = run::join(&config)?;
    let stop = runkit::signals::install().context("installing signal handlers")?;
    match run::run(&config, program, &world, &stop)? {
        ControlFlow::Break(signal) if launch.is_first() => Ok(stopped_by(signal)),
        ControlFlow::Break(signal) => Ok(signal.into()),
        ControlFlow::Continue(finished) => {
            if launch.is_first() {
                arguments.json.say(|| summary(&finished), &summary_json(&finished))?;
            }
            Ok(ExitStatus::Done)
        }
    }
}

/// The processes that share the command. Rank 0 logs what all of them know.
fn launch(program: &str) -> Result<Launch> {
    let launch = Launch::from_environment().map_err(UsageError::of)?;
    if launch.is_alone() {
        // MPI alone does not say where the processes meet.
        runkit::shard::refuse_several_processes(program)?;
    }
    runkit::logging::of_rank(launch.rank, true);
    Ok(launch)
}

/// What a finished run prints with `--json`.
fn summary_json(Finished { pipeline, lora, probe }: &Finished) -> Value {
    let before_and_after = |before: f64, after: f64| json!({"before": before, "after": after});
    let probe = probe.as_ref().map(|probe| {
        let before = probe.before();
        json!({
            "loss": before_and_after(before.loss, probe.loss),
            "accuracy": before_and_after(before.accuracy, probe.accuracy),
        })
    });
    json!({"pipeline": pipeline, "lora": lora, "probe": probe})
}

/// What a finished run prints.
fn summary(Finished { pipeline, lora, probe }: &Finished) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if let Some(probe) = probe {
        let before = probe.before();
        let _ = writeln!(
            text,
            "probe: loss {:.4} -> {:.4}, implicit accuracy {:.2} -> {:.2}",
            before.loss, probe.loss, before.accuracy, probe.accuracy
        );
    }
    for (name, folder) in [("lora", lora), ("pipeline", pipeline)] {
        if let Some(folder) = folder {
            let _ = writeln!(text, "{name}: {}", folder.display());
        }
    }
    text
}

fn plan(PlanArguments { run: arguments, ranks, memory }: &PlanArguments) -> Result<ExitStatus> {
    let launch = launch("train plan")?;
    if !launch.is_first() {
        return Ok(ExitStatus::Done);
    }
    let launch = match ranks {
        Some(ranks) => Launch { world: ranks.get(), ..Launch::ALONE },
        None => launch,
    };
    let mut arguments = arguments.clone();
    // With a named memory the GPU need not be here.
    let is_here = tch::Cuda::is_available();
    if memory.is_some() && !is_here {
        arguments.settings.device = Some("cpu".to_owned());
    }
    let arguments = &arguments;
    let Some(settings) = settings(arguments, &launch)? else { return Ok(ExitStatus::Done) };
    let mut config = config(&settings, arguments, &launch)?;
    let limit = match (memory, config.device) {
        (Some(Bytes(bytes)), _) if is_here => Limit::Here(*bytes),
        (Some(Bytes(bytes)), _) => {
            config.device = Device::Cuda(0);
            Limit::Elsewhere(*bytes)
        }
        (None, Device::Cuda(index)) => {
            let gpus = nn::doctor::examine().cuda.gpus;
            gpus.get(index).and_then(|gpu| gpu.total_bytes).map_or(Limit::None, Limit::Here)
        }
        (None, _) => Limit::None,
    };
    runkit::signals::quiet_broken_pipe().context("setting up signals")?;
    runkit::signals::install().context("installing signal handlers")?;
    let opened = OpenedRun::new(&config)?;
    opened.check_cache()?;
    let plan = Plan::new(&config, &opened, limit)?;
    arguments.json.say(|| plan.text(&config, &opened), &plan.json(&config, &opened))?;
    Ok(ExitStatus::Done)
}

fn merge(arguments: &MergeArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    runkit::shard::refuse_several_processes("train merge")?;
    runkit::signals::install().context("installing signal handlers")?;
    let work = Merge {
        model: arguments.model.clone(),
        loras: arguments.lora.clone(),
        out: arguments.out.clone(),
        fresh: arguments.fresh,
    };
    match stoppable(merge::merge(&work).map(ControlFlow::Continue))? {
        ControlFlow::Break(signal) => Ok(stopped_by(signal)),
        ControlFlow::Continue(merged) => {
            let text = || format!("pipeline: {}\n", merged.pipeline.display());
            arguments.json.say(text, &merged.json())?;
            Ok(ExitStatus::Done)
        }
    }
}

fn export(arguments: &ExportArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    runkit::shard::refuse_several_processes("train export")?;
    runkit::signals::install().context("installing signal handlers")?;
    let ExportArguments { model, format: ExportFormat::SingleFile, out, dtype, .. } = arguments;
    let precision = dtype.as_deref().map(str::parse::<Precision>).transpose();
    let precision = precision.map_err(UsageError::of)?;
    match stoppable(single_file::write(model, out, precision).map(ControlFlow::Continue))? {
        ControlFlow::Break(signal) => Ok(stopped_by(signal)),
        ControlFlow::Continue(bytes) => {
            let text = || format!("{}: {}\n", out.display(), HumanBytes(bytes));
            arguments.json.say(text, &json!({"file": out, "bytes": bytes}))?;
            Ok(ExitStatus::Done)
        }
    }
}

fn write_cache(arguments: &CacheArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let launch = Launch::from_environment()?;
    let settings = cache::settings(arguments, &launch)?;
    if arguments.file.print_config {
        say(&settings.to_toml()?)?;
        return Ok(ExitStatus::Done);
    }
    let config = cache::Config::new(&settings, arguments.fresh, arguments.shard, &launch)
        .map_err(usage_unless(DeviceError::is_absent))?;
    // Shards know nothing of each other, so each says what it does.
    let meets = config.shard.is_none() && launch.store.is_some();
    if meets {
        runkit::logging::of_rank(launch.rank, false);
        share_cores(&launch);
    }
    let stop = runkit::signals::install().context("installing signal handlers")?;
    let end = cache::write(&config, &stop)?;
    if (launch.is_first() || !meets) && config.out.join(runkit::run_folder::MANIFEST).exists() {
        let text = settings::saved(&settings)?;
        runkit::files::write_atomic(config.out.join(config::FILE), |file| {
            file.write_all(text.as_bytes())
        })?;
    }
    match end {
        ControlFlow::Break(signal) if meets && !launch.is_first() => Ok(signal.into()),
        ControlFlow::Break(signal) => Ok(stopped_by(signal)),
        ControlFlow::Continue(None) => Ok(ExitStatus::Done),
        ControlFlow::Continue(Some(summary)) => {
            let missing = match summary.missing {
                0 => String::new(),
                1 => ", 1 part left to other shards".to_owned(),
                missing => format!(", {} parts left to other shards", HumanCount(missing)),
            };
            let text = || {
                format!(
                    "{} pairs, {} failed, {} captions, {}{missing}\ncache: {}\n",
                    HumanCount(summary.rows),
                    HumanCount(summary.failed),
                    HumanCount(summary.captions),
                    HumanBytes(summary.bytes),
                    config.out.display()
                )
            };
            arguments.json.say(text, &summary.json(&config.out))?;
            let allowed = settings.max_failed.unwrap_or_default();
            let latents = config.out.join("latents-*.parquet");
            let which = format!("the column status of {} gives the reasons", latents.display());
            Ok(program::status_of_failed(summary.failed, allowed, "pairs", &which))
        }
    }
}

/// The validated run; an error in the arguments is a usage error.
fn config(settings: &RunOptions, arguments: &RunArguments, launch: &Launch) -> Result<Config> {
    Config::new(settings, arguments.fresh, launch).map_err(usage_unless(DeviceError::is_absent))
}

/// The settings from flags, environment, file, recipes and defaults; `None` after `--print-config`.
fn settings(arguments: &RunArguments, launch: &Launch) -> Result<Option<RunOptions>> {
    let settings = config::settings(arguments, launch).map_err(|error| {
        match error.downcast_ref::<RecipeError>() {
            Some(RecipeError::Unknown { .. }) => UsageError::of(error).into(),
            _ => error,
        }
    })?;
    if arguments.file.print_config {
        say(&settings.to_toml()?)?;
        return Ok(None);
    }
    Ok(Some(settings))
}
