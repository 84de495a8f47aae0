//! What each command does with what was typed.

mod filter_prompts;
mod grid;
mod report;
mod run;
mod score;
mod tables;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nn::device::{self, DeviceError, Precision};
use runkit::exit::ExitStatus;
use runkit::program::{self, say, usage_unless};
use runkit::signals::{self, StopFlag};

use crate::cli::{Command, GenerateArguments, GenerateSettings};
use crate::generate::{self, Config};
use crate::prompts::{self, Limits};

const SEEDS: u64 = 5;
const STEPS: usize = 50;

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
        Command::Generate(arguments) => generate(&arguments),
        Command::Score(arguments) => score::run(&arguments),
        Command::FilterPrompts(arguments) => filter_prompts::run(&arguments),
        Command::Grid(arguments) => grid::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Tables(arguments) => tables::run(&arguments),
    }
}

fn generate(arguments: &GenerateArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let Some(settings) = settings(arguments)? else { return Ok(ExitStatus::Done) };
    let config = config(settings, arguments.fresh)?;
    let stop = stop_flag()?;
    if arguments.dry_run {
        let prompts = crate::prompts::read_limited(&config.prompts, config.limits)?;
        say(&generate::Generation::open(&config, &prompts)?.dry_run()?)?;
        return Ok(ExitStatus::Done);
    }
    match generate::run(&config, &stop)? {
        generate::End::Stopped(signal) => {
            tracing::warn!(
                "stopped; finished images are kept, the same command goes on from there"
            );
            Ok(signal.into())
        }
        generate::End::Done { images, generated } => {
            let folder = generate::images_folder(&config.out);
            say(&format!(
                "{images} images, {generated} of them new\nimages: {}\n",
                folder.display()
            ))?;
            Ok(ExitStatus::Done)
        }
    }
}

/// Asks to stop at a signal, and ends soon after it: every file of an evaluation is whole at any instant.
fn stop_flag() -> Result<StopFlag> {
    let stop = signals::install().context("installing signal handlers")?;
    signals::end_soon(&stop).context("starting a thread")?;
    Ok(stop)
}

/// The settings from flags, environment and file; `None` when they were only to be printed.
fn settings(arguments: &GenerateArguments) -> Result<Option<GenerateSettings>> {
    let settings = match &arguments.config {
        Some(file) => {
            let mut from_file: GenerateSettings = runkit::config::read_toml(file)?;
            from_file.resolve_paths(file.parent().unwrap_or(Path::new("")));
            runkit::config::merge(&arguments.settings, &from_file)?
        }
        None => arguments.settings.clone(),
    }
    .with_defaults();
    if arguments.print_config {
        say(&runkit::config::to_toml_string(&settings)?)?;
        return Ok(None);
    }
    Ok(Some(settings))
}

/// The validated run; what is wrong with the arguments is a usage error.
fn config(settings: GenerateSettings, fresh: bool) -> Result<Config> {
    validated(settings, fresh).map_err(usage_unless(DeviceError::is_absent))
}

fn validated(settings: GenerateSettings, fresh: bool) -> Result<Config> {
    let models = settings.model.clone().filter(|models| !models.is_empty());
    let prompts = settings.prompts.clone().filter(|prompts| !prompts.is_empty());
    program::require(&[
        ("--model <NAME=DIR>", models.is_some()),
        ("--prompts <FILE>...", prompts.is_some()),
        ("--out <DIR>", settings.out.is_some()),
    ])?;
    let (models, prompts) = (models.unwrap_or_default(), prompts.unwrap_or_default());
    let out = settings.out.clone().unwrap_or_default();
    let mut names = HashSet::new();
    for model in &models {
        ensure!(
            names.insert(&model.name),
            "two models are called {}; hint: the name before = is the user's to choose",
            model.name
        );
    }
    let prompts =
        prompts::with_split(prompts, settings.split.as_deref()).map_err(anyhow::Error::msg)?;

    let (first, count) = (settings.base_seed.unwrap_or(0), settings.seeds.unwrap_or(SEEDS));
    ensure!(count > 0, "--seeds 0 generates nothing; hint: leave it out for {SEEDS}");
    let last = first.checked_add(count).filter(|&last| i64::try_from(last).is_ok());
    let last =
        last.with_context(|| format!("--base-seed {first} is too large for {count} seeds"))?;
    let steps = settings.steps.unwrap_or(STEPS);
    ensure!(steps > 0, "--steps 0 takes no noise away; hint: leave it out for {STEPS}");
    if let Some(guidance) = settings.guidance {
        ensure!(
            guidance.is_finite() && guidance >= 0.0,
            "--guidance {guidance} is not a scale; hint: 1 is none, 7.5 is usual"
        );
    }
    let zero = |value: Option<usize>| value == Some(0);
    ensure!(!zero(settings.batch_size), "--batch-size 0 generates nothing; hint: leave it out");
    ensure!(!zero(settings.limit), "--limit 0 takes no prompt; hint: leave it out to take all");
    ensure!(
        settings.limit.is_none() || settings.preset.is_none(),
        "--limit and --preset both say how many prompts to take; hint: leave one out"
    );
    let device = device::parse(settings.device.as_deref().unwrap_or("auto"))?;
    let precision: Precision = settings.dtype.as_deref().unwrap_or("f32").parse()?;
    precision.check(device)?;
    Ok(Config {
        models,
        prompts,
        out,
        seeds: first..last,
        steps,
        guidance: settings.guidance,
        scheduler: settings.scheduler,
        size: settings.size,
        negative_prompt: settings.negative_prompt.clone(),
        batch_size: settings.batch_size,
        device,
        precision,
        limits: Limits { limit: settings.limit, preset: settings.preset },
        fresh,
        saved_settings: runkit::config::to_toml_string(&settings.with_absolute_paths())?,
    })
}

impl GenerateSettings {
    /// Paths of a settings file are relative to it.
    fn resolve_paths(&mut self, folder: &Path) {
        self.change_paths(|path| runkit::path::resolve_in_place(path, folder));
    }

    /// The settings as they are saved: a valid `--config` wherever the file lies.
    pub(crate) fn with_absolute_paths(&self) -> Self {
        let mut settings = self.clone();
        settings.change_paths(|path| {
            if !runkit::path::is_address(path)
                && let Ok(absolute) = std::path::absolute(&*path)
            {
                *path = absolute;
            }
        });
        settings
    }

    fn change_paths(&mut self, change: impl Fn(&mut PathBuf)) {
        let models = self.model.iter_mut().flatten();
        let of_models =
            models.flat_map(|model| [&mut model.folder].into_iter().chain(&mut model.unet));
        let sources = self.prompts.iter_mut().flatten();
        let others = sources.map(|source| &mut source.file).chain(&mut self.out);
        of_models.chain(others).for_each(change);
    }

    /// Everything said that does not depend on a model, for `--print-config` and the copy beside the
    /// output.
    fn with_defaults(mut self) -> Self {
        self.seeds.get_or_insert(SEEDS);
        self.base_seed.get_or_insert(0);
        self.steps.get_or_insert(STEPS);
        self.device.get_or_insert_with(|| "auto".to_owned());
        self.dtype.get_or_insert_with(|| "f32".to_owned());
        self
    }
}
