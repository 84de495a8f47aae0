//! The settings of `train cache`: from flags, environment and file to a [`Config`].

use anyhow::{Result, ensure};
use nn::device::{self, DeviceChoice};
use runkit::launch::Launch;
use runkit::program::UsageError;
use runkit::settings::Settings as _;
use runkit::shard::Shard;

use super::Config;
use crate::cli::CacheArguments;
use crate::data::PairInputs;
use crate::recipe;
use crate::settings::{self, CacheOptions, CacheSettings};

/// The settings from flags, environment, file and defaults.
///
/// # Errors
/// If the file cannot be read or there is no such device.
pub fn settings(arguments: &CacheArguments, launch: &Launch) -> Result<CacheOptions> {
    let options = arguments.settings.over_file(arguments.file.config.as_deref())?;
    let mut options = runkit::config::merge(&options, &recipe::cache_options()?)?;
    let device = options.device.as_deref().unwrap_or_default();
    let choice: DeviceChoice = device.parse().map_err(UsageError::of)?;
    choice.resolve_for(launch.local_rank)?;
    options.device = Some(choice.to_string());
    Ok(options)
}

impl Config {
    /// Validates what [`settings()`] returns.
    ///
    /// # Errors
    /// If a setting is missing or impossible.
    pub fn new(
        options: &CacheOptions,
        fresh: bool,
        shard: Option<Shard>,
        launch: &Launch,
    ) -> Result<Self> {
        let pairs = options.pairs.clone().filter(|pairs| !pairs.is_empty());
        runkit::program::require(&[
            ("--model <DIR>", options.model.is_some()),
            ("--pairs <PATH>...", pairs.is_some()),
            ("--out <DIR>", options.out.is_some()),
        ])?;
        let settings: CacheSettings = settings::complete(options)?;
        settings::refuse_address("--out", settings.out.as_deref(), settings::CACHE_HERE)?;
        let device = settings.device.parse::<DeviceChoice>()?.resolve_for(launch.local_rank)?;
        let precision = device::choose_dtype(&settings.dtype, device)?;
        ensure!(settings.batch_size > 0, "--batch-size 0 encodes nothing; hint: leave it out");
        ensure!(settings.limit != Some(0), "--limit 0 leaves no pair; hint: leave it out for all");
        Ok(Self {
            model: settings.model.unwrap_or_default(),
            inputs: PairInputs {
                pairs: pairs.unwrap_or_default(),
                splits: settings.split.unwrap_or_default(),
                layout: settings.layout,
            },
            out: settings.out.unwrap_or_default(),
            resolution: settings.resolution,
            hflip: settings.hflip,
            device,
            precision,
            batch_size: settings.batch_size,
            limit: settings.limit,
            shard,
            launch: launch.clone(),
            fresh,
        })
    }
}
