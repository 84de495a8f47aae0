//! `evaluate generate`.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use nn::device::DeviceError;
use runkit::exit::ExitStatus;
use runkit::program::{self, say, usage_unless};
use runkit::settings::Settings as _;
use serde_json::json;

use crate::cli::generate::{GenerateArguments, GenerateSettings};
use crate::generate::{self, Config, Generation, Summary};
use crate::prompts;

pub(super) fn run(arguments: &GenerateArguments) -> Result<ExitStatus> {
    arguments.start.resume.explain();
    let file = arguments.file.config.as_deref();
    let settings = arguments.settings.over_file(file)?.with_defaults()?;
    if arguments.file.print_config {
        say(&settings.to_toml()?)?;
        return Ok(ExitStatus::Done);
    }
    let config = config(&settings, arguments.start.fresh)?;
    super::refuse_fresh(&arguments.start, &config.out)?;
    let stop = super::stop_flag()?;
    if arguments.start.dry_run {
        if !super::rehearses(arguments.start.share)? {
            return Ok(ExitStatus::Done);
        }
        let prompts = prompts::read_limited(&config.prompts, config.limits)?;
        let plan = Generation::open(&config, &prompts)?.dry_run()?;
        arguments.start.json.say(|| plan.to_string(), &plan)?;
        return Ok(ExitStatus::Done);
    }
    let (is_first, summary) = super::shared(arguments.start.share, &stop, |sharing| {
        let end = generate::run(&config, sharing, &stop)?;
        Ok(end.map_continue(|summary| (sharing.is_first(), summary)))
    })?;
    if is_first {
        say_summary(arguments, &config, summary)?;
    }
    Ok(ExitStatus::Done)
}

fn say_summary(arguments: &GenerateArguments, config: &Config, summary: Summary) -> Result<()> {
    let Summary { images, generated, missing } = summary;
    let folder = generate::images_folder(&config.out);
    let text = || match missing {
        0 => {
            format!("{images} images, {generated} of them new\nimages: {}\n", folder.display())
        }
        _ => format!(
            "shard done, {generated} images new; {missing} of {images} images of other shards are \
             missing\nimages: {}\n",
            folder.display()
        ),
    };
    let mut value = json!({ "images": images, "generated": generated, "folder": folder });
    if missing > 0 {
        value["missing"] = missing.into();
    }
    arguments.start.json.say(text, &value)
}

/// The validated run. If the arguments are wrong it is a usage error.
pub(super) fn config(settings: &GenerateSettings, fresh: bool) -> Result<Config> {
    validated(settings, fresh).map_err(usage_unless(DeviceError::is_absent))
}

fn validated(settings: &GenerateSettings, fresh: bool) -> Result<Config> {
    let models = settings.model.clone().unwrap_or_default();
    let prompts = settings.prompts.clone().unwrap_or_default();
    program::require(&[
        ("--model <NAME=DIR>", !models.is_empty()),
        ("--prompts <FILE>...", !prompts.is_empty()),
        ("--out <DIR>", settings.out.is_some()),
    ])?;
    let mut names = HashSet::new();
    for model in &models {
        ensure!(
            names.insert(&model.name),
            "two models are called {}; hint: choose another name before the =",
            model.name
        );
    }
    let prompts =
        prompts::with_split(prompts, settings.split.as_deref()).map_err(anyhow::Error::msg)?;
    let steps = settings.steps.unwrap_or_default();
    ensure!(steps > 0, "--steps must be at least 1, found 0; hint: 50 is usual");
    if let Some(guidance) = settings.guidance {
        ensure!(
            guidance >= 0.0,
            "--guidance must be 0 or more, found {guidance}; hint: 7.5 is usual, 1 turns it off"
        );
    }
    ensure!(
        settings.batch_size != Some(0),
        "--batch-size must be at least 1, found 0; hint: leave it out"
    );
    let device = super::device(settings.device.as_deref())?;
    let dtype = settings.dtype.as_deref().unwrap_or_default();
    let precision = nn::device::choose_dtype_or_auto(dtype, device)?;
    Ok(Config {
        models,
        prompts,
        out: settings.out.clone().unwrap_or_default(),
        seeds: super::seeds(
            settings.base_seed.unwrap_or_default(),
            settings.seeds.unwrap_or_default(),
        )?,
        steps,
        guidance: settings.guidance,
        scheduler: settings.scheduler,
        size: settings.size,
        negative_prompt: settings.negative_prompt.clone(),
        batch_size: settings.batch_size,
        device,
        precision,
        limits: super::limits(settings.limit, settings.preset)?,
        fresh,
        saved_settings: settings.with_absolute_paths().to_toml()?,
    })
}
