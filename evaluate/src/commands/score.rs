//! `evaluate score`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nn::device::{self, DeviceError, Precision};
use runkit::exit::ExitStatus;
use runkit::program::{self, usage_unless};
use scorers::Compute;
use tch::Device;

use super::say;
use crate::cli::score::{ScoreArguments, ScoreSettings, ScoringSettings};
use crate::prompts::{self, Limits};
use crate::score::{self, Config, End, Keep, Summary};

const BATCH_SIZE_CPU: usize = 8;
const BATCH_SIZE_CUDA: usize = 64;

pub(super) fn run(arguments: &ScoreArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let settings = match &arguments.config {
        Some(file) => {
            let mut from_file: ScoreSettings = runkit::config::read_toml(file)?;
            from_file.resolve_paths(file.parent().unwrap_or(Path::new("")));
            runkit::config::merge(&arguments.settings, &from_file)?
        }
        None => arguments.settings.clone(),
    }
    .with_defaults();
    if arguments.print_config {
        say(&runkit::config::to_toml_string(&settings)?)?;
        return Ok(ExitStatus::Done);
    }
    let config = config(&settings)?;
    let stop = super::stop_flag()?;
    if arguments.dry_run {
        say(&score::dry_run(&config)?)?;
        return Ok(ExitStatus::Done);
    }
    match score::run(&config, &stop)? {
        End::Stopped(signal) => {
            tracing::warn!("stopped; scores are kept, the same command goes on from there");
            Ok(signal.into())
        }
        End::Done(summary) => {
            let Summary { images, scored, .. } = summary;
            say(&format!(
                "{images} images, {scored} of them scored now\nscores: {}\n",
                config.out.join(score::SCORES).display()
            ))?;
            Ok(status(summary, &settings.scoring, &config.out))
        }
    }
}

/// Whether too many images have no score, which is said.
pub(super) fn status(summary: Summary, settings: &ScoringSettings, out: &Path) -> ExitStatus {
    let allowed = settings.max_failed.unwrap_or(0);
    let scores = out.join(score::SCORES);
    if summary.failed > 0 && summary.failed <= allowed {
        tracing::warn!(
            "{} of {} images have no score of some metric; the column error of {} says why",
            summary.failed,
            summary.images,
            scores.display()
        );
    }
    let list = format!("the column error of {} says why", scores.display());
    program::status_of_failed(summary.failed as u64, allowed as u64, "images", &list)
}

/// The validated run; what is wrong with the arguments is a usage error.
fn config(settings: &ScoreSettings) -> Result<Config> {
    validated(settings).map_err(usage_unless(DeviceError::is_absent))
}

fn validated(settings: &ScoreSettings) -> Result<Config> {
    let prompts = settings.prompts.clone().filter(|prompts| !prompts.is_empty());
    program::require(&[
        ("--prompts <FILE>...", prompts.is_some()),
        ("--scorers <FILE.toml>", settings.scoring.scorers.is_some()),
        ("--out <DIR>", settings.out.is_some()),
    ])?;
    let prompts = prompts.unwrap_or_default();
    let out = settings.out.clone().unwrap_or_default();
    let prompts =
        prompts::with_split(prompts, settings.split.as_deref()).map_err(anyhow::Error::msg)?;
    ensure!(settings.limit != Some(0), "--limit 0 takes no prompt; hint: leave it out to take all");
    ensure!(
        settings.limit.is_none() || settings.preset.is_none(),
        "--limit and --preset both say how many prompts to take; hint: leave one out"
    );
    let seeds = match settings.seeds {
        None => {
            ensure!(settings.base_seed.is_none(), "--base-seed says nothing without --seeds");
            None
        }
        Some(count) => {
            ensure!(count > 0, "--seeds 0 scores nothing; hint: leave it out for all");
            let first = settings.base_seed.unwrap_or(0);
            let last = first.checked_add(count).filter(|&last| i64::try_from(last).is_ok());
            Some(first..last.context("--base-seed is too large")?)
        }
    };
    let device = settings.device.as_deref().unwrap_or("auto");
    let compute = compute(device, settings.dtype.as_deref().unwrap_or("f32"))?;
    let (scorers, batch_size) = scorers_and_batch_size(&settings.scoring, compute)?;
    let only_named = settings.scoring.only_named.unwrap_or(false);
    Ok(Config {
        out,
        prompts,
        keep: Keep { models: settings.models.is_none() && !only_named, others: !only_named },
        models: settings.models.clone().unwrap_or_default(),
        images: settings.images.clone().unwrap_or_default(),
        seeds,
        limits: Limits { limit: settings.limit, preset: settings.preset },
        scorers,
        batch_size,
        compute,
    })
}

/// Where and in which type the reward models compute.
pub(super) fn compute(device: &str, dtype: &str) -> Result<Compute> {
    let device = device::parse(device)?;
    let precision: Precision = dtype.parse()?;
    precision.check(device)?;
    Ok(Compute { device, precision })
}

/// The file of reward models, and how many images go through them together.
pub(super) fn scorers_and_batch_size(
    settings: &ScoringSettings,
    compute: Compute,
) -> Result<(PathBuf, usize)> {
    let scorers = settings.scorers.clone();
    let scorers =
        scorers.context("no reward models given; hint: --scorers data/mini/scorers.toml")?;
    let batch_size = settings.score_batch_size.unwrap_or(batch_size(compute.device));
    ensure!(batch_size > 0, "--score-batch-size 0 scores nothing; hint: leave it out");
    Ok((scorers, batch_size))
}

/// Images of a forward pass where nothing is said.
fn batch_size(device: Device) -> usize {
    if device.is_cuda() { BATCH_SIZE_CUDA } else { BATCH_SIZE_CPU }
}

/// The settings as they are when nothing more is said, on this device.
pub(super) fn with_defaults(mut settings: ScoringSettings, device: &str) -> ScoringSettings {
    // What is wrong with a device is said where it is used.
    let device =
        if device.starts_with("cuda") { Ok(Device::Cuda(0)) } else { device::parse(device) };
    settings.score_batch_size.get_or_insert(batch_size(device.unwrap_or(Device::Cpu)));
    settings.max_failed.get_or_insert(0);
    settings.only_named.get_or_insert(false);
    settings
}

impl ScoreSettings {
    /// Everything said that does not depend on the folder.
    fn with_defaults(mut self) -> Self {
        let device = self.device.get_or_insert_with(|| "auto".to_owned());
        self.scoring = with_defaults(self.scoring, device);
        self.dtype.get_or_insert_with(|| "f32".to_owned());
        if self.seeds.is_some() {
            self.base_seed.get_or_insert(0);
        }
        self
    }

    /// Paths of a settings file are relative to it.
    fn resolve_paths(&mut self, folder: &Path) {
        let of_prompts = self.prompts.iter_mut().flatten().map(|source| &mut source.file);
        let of_images = self.images.iter_mut().flatten().map(|source| &mut source.folder);
        let others = self.out.iter_mut().chain(&mut self.scoring.scorers);
        for path in of_prompts.chain(of_images).chain(others) {
            runkit::path::resolve_in_place(path, folder);
        }
    }
}
