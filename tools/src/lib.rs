//! What the tools share: `key=value` arguments, timing and memory.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use tch::{Cuda, Device};

/// Arguments of the form `key=value`. A tool takes those that it knows; [`Options::finish`] rejects
/// the rest.
#[derive(Debug)]
pub struct Options {
    values: BTreeMap<String, String>,
}

impl Options {
    /// Reads arguments.
    ///
    /// # Errors
    /// If one has no `=`.
    pub fn read(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let values = arguments
            .map(|argument| match argument.split_once('=') {
                Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
                None => bail!("expected key=value, found {argument:?}"),
            })
            .collect::<Result<_>>()?;
        Ok(Self { values })
    }

    /// The value of an option.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    /// The path of an option that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn path(&mut self, key: &str) -> Result<PathBuf> {
        self.take(key).map(PathBuf::from).with_context(|| format!("expected {key}=PATH"))
    }

    /// The parts of an option between commas.
    pub fn list(&mut self, key: &str) -> Vec<String> {
        let text = self.take(key).unwrap_or_default();
        text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// The value of an option, or the default.
    ///
    /// # Errors
    /// If it is not a value of this type.
    pub fn parse<T: FromStr<Err: Error + Send + Sync + 'static>>(
        &mut self,
        key: &str,
        default: T,
    ) -> Result<T> {
        match self.take(key) {
            None => Ok(default),
            Some(text) => text.parse().with_context(|| format!("{key}={text}")),
        }
    }

    /// Checks that no option is left.
    ///
    /// # Errors
    /// If one is.
    pub fn finish(&self) -> Result<()> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => bail!("unknown option {key:?}"),
        }
    }
}

/// Waits until a GPU has done all work, so that a time measures it.
pub fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(i64::try_from(index).unwrap_or(0));
    }
}

/// The most memory that was resident at once, mapped files included (Linux).
///
/// # Errors
/// If the system does not say.
pub fn peak_resident_bytes() -> Result<u64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).context("no VmHWM")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}
