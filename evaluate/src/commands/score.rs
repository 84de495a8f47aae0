//! `evaluate score`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nn::device::{self, DeviceError};
use runkit::exit::ExitStatus;
use runkit::program::{self, JsonFlag, say, usage_unless};
use runkit::settings::Settings as _;
use scorers::Compute;
use serde_json::json;
use tch::Device;

use crate::cli::score::{ScoreArguments, ScoreSettings, ScoringSettings};
use crate::prompts;
use crate::score::{self, Config, End, Keep, Summary};

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
        if !super::rehearses(arguments.share)? {
            return Ok(ExitStatus::Done);
        }
        let plan = score::dry_run(&config)?;
        arguments.json.say(|| plan.to_string(), &plan)?;
        return Ok(ExitStatus::Done);
    }
    let scores = config.out.join(score::SCORES);
    let mut say = |summary: &Summary| {
        let Summary { images, scored, failed } = *summary;
        let text = || {
            format!("{images} images, {scored} of them scored now\nscores: {}\n", scores.display())
        };
        let value =
            json!({ "images": images, "scored": scored, "failed": failed, "scores": scores });
        arguments.json.say(text, &value)
    };
    let (is_first, end) = super::shared(arguments.share, &stop, |sharing| {
        let end = score::run(&config, sharing, &stop, &mut say)?;
        Ok(end.map_continue(|end| (sharing.is_first(), end)))
    })?;
    ended(end, is_first, arguments.json, &settings.scoring, &config.out)
}

/// Says how a shard ended, and returns the exit code of all ends.
pub(super) fn ended(
    end: End,
    is_first: bool,
    json: JsonFlag,
    settings: &ScoringSettings,
    out: &Path,
) -> Result<ExitStatus> {
    let scores = out.join(score::SCORES);
    match end {
        End::Done(summary) if is_first => Ok(status(summary, settings, out)),
        // Rank 0 has warned.
        End::Done(summary) => Ok(match summary.failed > settings.max_failed.unwrap_or_default() {
            true => ExitStatus::TooManyFailedRows,
            false => ExitStatus::Done,
        }),
        End::ShardDone { scored, missing } => {
            let text = || match missing {
                0 => format!("shard done; another one writes {}\n", scores.display()),
                _ => format!(
                    "shard done, {scored} images scored; {missing} images wait for other shards \
                     before {} can be written\n",
                    scores.display()
                ),
            };
            let value = json!({ "scored": scored, "missing": missing, "scores": scores });
            json.say(text, &value)?;
            Ok(ExitStatus::Done)
        }
    }
}

/// Warns about images without a score. If there are too many, the exit code says so.
fn status(summary: Summary, settings: &ScoringSettings, out: &Path) -> ExitStatus {
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
    let device = super::device(settings.device.as_deref())?;
    let dtype = settings.dtype.as_deref().unwrap_or_default();
    let precision = nn::device::choose_dtype_or_auto(dtype, device)?;
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
