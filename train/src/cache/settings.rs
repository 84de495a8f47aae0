//! The settings of `train cache`: from flags, environment and file to a [`Config`].

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use nn::device::{self, DeviceChoice, Precision};
use runkit::program::UsageError;

use super::Config;
use crate::cli::{CacheArguments, CacheSettings};

/// The settings from flags, environment and file, with defaults.
///
/// # Errors
/// Where the file cannot be read, or there is no such device.
pub fn settings(arguments: &CacheArguments) -> Result<CacheSettings> {
    let mut settings = match &arguments.config {
        None => arguments.settings.clone(),
        Some(file) => {
            let mut from_file: CacheSettings = runkit::config::read_toml(file)?;
            let folder = file.parent().unwrap_or(Path::new(""));
            from_file.change_paths(|path| runkit::path::resolve_in_place(path, folder));
            runkit::config::merge(&arguments.settings, &from_file)?
        }
    };
    let device = settings.device.as_deref().unwrap_or("auto");
    let choice: DeviceChoice = device.parse().map_err(UsageError::of)?;
    choice.resolve()?;
    settings.device = Some(choice.to_string());
    settings.hflip.get_or_insert(false);
    settings.dtype.get_or_insert_with(|| "f32".to_owned());
    settings.batch_size.get_or_insert(8);
    settings.max_failed.get_or_insert(0);
    Ok(settings)
}

impl CacheSettings {
    /// The settings as they are saved: a valid `--config` wherever the file lies.
    #[must_use]
    pub fn with_absolute_paths(&self) -> Self {
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
        let single = [&mut self.model, &mut self.out];
        single.into_iter().flatten().chain(self.pairs.iter_mut().flatten()).for_each(change);
    }
}

impl Config {
    /// Checks settings that [`settings`] completed.
    ///
    /// # Errors
    /// Where one is missing or impossible.
    pub fn new(settings: &CacheSettings, fresh: bool) -> Result<Self> {
        let pairs = settings.pairs.clone().filter(|pairs| !pairs.is_empty());
        runkit::program::require(&[
            ("--model <DIR>", settings.model.is_some()),
            ("--pairs <PATH>...", pairs.is_some()),
            ("--out <DIR>", settings.out.is_some()),
        ])?;
        let device = device::parse(settings.device.as_deref().unwrap_or("auto"))?;
        let precision: Precision = settings.dtype.as_deref().unwrap_or("f32").parse()?;
        precision.check(device)?;
        ensure!(
            settings.batch_size != Some(0),
            "--batch-size 0 encodes nothing; hint: leave it out"
        );
        Ok(Self {
            model: settings.model.clone().unwrap_or_default(),
            pairs: pairs.unwrap_or_default(),
            splits: settings.split.clone().unwrap_or_default(),
            out: settings.out.clone().unwrap_or_default(),
            resolution: settings.resolution,
            hflip: settings.hflip.unwrap_or(false),
            device,
            precision,
            batch_size: settings.batch_size.unwrap_or_default(),
            fresh,
        })
    }
}
