//! `evaluate score`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nn::device::{self, DeviceError, Precision};
use runkit::exit::ExitStatus;
use runkit::program::{self, say, usage_unless};
use runkit::settings::Settings as _;
use scorers::Compute;
use serde_json::json;
use tch::Device;

use crate::cli::score::{ScoreArguments, ScoreSettings, ScoringSettings};
use crate::prompts;
use crate::score::{self, Config, Keep, Summary};

const BATCH_SIZE_CPU: usize = 8;
const BATCH_SIZE_CUDA: usize = 64;

pub(super) fn run(arguments: &ScoreArguments) -> Result<ExitStatus> {
    arguments.resume.explain();
    let file = arguments.file.config.as_deref();
    let mut settings = arguments.settings.over_file(file)?.with_defaults()?;
    set_batch_size(&mut settings.scoring, settings.device.as_deref());
    if arguments.file.print_config {
        say(&settings.to_toml()?)?;
        return Ok(ExitStatus::Done);
    }
    let config = config(&settings).map_err(usage_unless(DeviceError::is_absent))?;
    let stop = super::stop_flag()?;
    if arguments.dry_run {
        let plan = score::dry_run(&config)?;
        arguments.json.say(|| plan.to_string(), &plan)?;
        return Ok(ExitStatus::Done);
    }
    let summary = super::finished(score::run(&config, &stop)?)?;
    let Summary { images, scored, failed } = summary;
    let scores = config.out.join(score::SCORES);
    let text =
        || format!("{images} images, {scored} of them scored now\nscores: {}\n", scores.display());
    let value = json!({ "images": images, "scored": scored, "failed": failed, "scores": scores });
    arguments.json.say(text, &value)?;
    Ok(status(summary, &settings.scoring, &config.out))
}

/// Warns about images without a score. If there are too many, the exit code says so.
pub(super) fn status(summary: Summary, settings: &ScoringSettings, out: &Path) -> ExitStatus {
    let allowed = settings.max_failed.unwrap_or_default();
    let scores = out.join(score::SCORES);
    if summary.failed > 0 && summary.failed <= allowed {
        tracing::warn!(
            "{} of {} images lack a score of some metric; the column error of {} says why",
            summary.failed,
            summary.images,
            scores.display()
        );
    }
    let list = format!("the column error of {} says why", scores.display());
    program::status_of_failed(summary.failed as u64, allowed as u64, "images", &list)
}

/// The validated run.
fn config(settings: &ScoreSettings) -> Result<Config> {
    let prompts = settings.prompts.clone().unwrap_or_default();
    program::require(&[
        ("--prompts <FILE>...", !prompts.is_empty()),
        ("--scorers <FILE.toml>", settings.scoring.scorers.is_some()),
        ("--out <DIR>", settings.out.is_some()),
    ])?;
    let prompts =
        prompts::with_split(prompts, settings.split.as_deref()).map_err(anyhow::Error::msg)?;
    let seeds = match (settings.seeds, settings.base_seed) {
        (None, None) => None,
        (None, Some(_)) => anyhow::bail!("--base-seed needs --seeds; hint: give both or neither"),
        (Some(count), first) => Some(super::seeds(first.unwrap_or_default(), count)?),
    };
    let device = device::parse(settings.device.as_deref().unwrap_or_default())?;
    let precision: Precision = settings.dtype.as_deref().unwrap_or_default().parse()?;
    precision.check(device)?;
    let (scorers, batch_size) = scorers_and_batch_size(&settings.scoring)?;
    let only_named = settings.scoring.only_named.unwrap_or_default();
    Ok(Config {
        out: settings.out.clone().unwrap_or_default(),
        prompts,
        keep: Keep { models: settings.models.is_none() && !only_named, others: !only_named },
        models: settings.models.clone().unwrap_or_default(),
        images: settings.images.clone().unwrap_or_default(),
        seeds,
        limits: super::limits(settings.limit, settings.preset)?,
        scorers,
        batch_size,
        compute: Compute { device, precision },
    })
}

/// The file of reward models, and how many images go through them at once.
pub(super) fn scorers_and_batch_size(settings: &ScoringSettings) -> Result<(PathBuf, usize)> {
    let scorers = settings.scorers.clone();
    let scorers = scorers.context("no reward models given; hint: --scorers FILE.toml")?;
    let batch_size = settings.score_batch_size.unwrap_or_default();
    ensure!(batch_size > 0, "--score-batch-size must be at least 1, found 0; hint: leave it out");
    Ok((scorers, batch_size))
}

/// Sets the default that depends on the device.
pub(super) fn set_batch_size(settings: &mut ScoringSettings, device: Option<&str>) {
    // An unknown device is an error of the command that uses it, not of --print-config; and CUDA by
    // name counts as CUDA also on a machine without it, so that settings printed there hold
    // elsewhere.
    let device = device.unwrap_or_default();
    let is_cuda = device.starts_with("cuda") || device::parse(device).is_ok_and(Device::is_cuda);
    let default = if is_cuda { BATCH_SIZE_CUDA } else { BATCH_SIZE_CPU };
    settings.score_batch_size.get_or_insert(default);
}
