//! An output at an address: the labels file is made in the work folder and then uploaded, whole or
//! not at all, by the rules that [`runkit::output`] has for files of this machine.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use locations::{Condition, Location, LocationError, Upload};
use runkit::fault;
use runkit::manifest::differences;
use runkit::output::{OutputError, refuse_another_run};
use schemas::input::InputError;
use schemas::labels::{LabelsError, LabelsFile};
use serde_json::Value;

use super::output::{FLAG, Found, LABELS, SETTINGS_HEAD, manifest_in, manifest_of_version};
use super::reuse;

/// Settings are no longer than this.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;

/// An object that is to be written.
pub(super) struct Elsewhere<'run> {
    location: &'run Location,
    /// What may be under the name at the end: what was found there at the beginning.
    condition: OnceLock<Condition>,
    /// The rows of the labels that were there at the beginning.
    rows: OnceLock<u64>,
}

/// An object that is there.
struct Held {
    version: Option<String>,
    bytes: u64,
    /// If this program wrote it.
    manifest: Option<Value>,
}

impl<'run> Elsewhere<'run> {
    pub(super) fn new(location: &'run Location) -> Self {
        Self { location, condition: OnceLock::new(), rows: OnceLock::new() }
    }

    fn path(&self) -> &Path {
        self.location.path()
    }

    /// The object under the name.
    fn look(&self) -> Result<Option<Held>> {
        let file = match locations::File::open(self.location) {
            Ok(file) => file,
            Err(LocationError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let manifest = match LabelsFile::open(self.path()) {
            Ok(labels) => manifest_in(&labels),
            Err(LabelsError::Version { found, .. }) => Some(manifest_of_version(&found)),
            Err(LabelsError::Input(InputError::Remote(error))) => return Err(error.into()),
            Err(_) => None,
        };
        self.rows.get_or_init(|| manifest.as_ref().map_or(0, reuse::rows_of));
        let version = file.version().map(str::to_owned);
        Ok(Some(Held { version, bytes: file.len(), manifest }))
    }

    fn foreign(&self, held: &Held) -> OutputError {
        OutputError::Foreign {
            flag: FLAG,
            path: self.path().to_owned(),
            expected: LABELS,
            found: format!("an object of {} bytes that this program did not write", held.bytes),
        }
    }

    /// Refuses an object that is not ours, or that is one of the inputs.
    pub(super) fn refuse_foreign<'path>(
        &self,
        mut inputs: impl Iterator<Item = &'path Path>,
    ) -> Result<()> {
        if let Some(input) = inputs.find(|input| *input == self.path()) {
            let (path, input) = (self.path().to_owned(), input.to_owned());
            return Err(OutputError::IsInput { flag: FLAG, path, input }.into());
        }
        match self.look()? {
            Some(held) if held.manifest.is_none() => Err(self.foreign(&held).into()),
            _ => Ok(()),
        }
    }

    /// The rows of the labels that were there at the beginning; 0 without any.
    pub(super) fn rows(&self) -> u64 {
        self.rows.get().copied().unwrap_or(0)
    }

    /// What is under the name. Another run's labels are refused, unless `fresh` replaces them or this
    /// run only has more pairs.
    pub(super) fn examine(
        &self,
        manifest: &Value,
        fresh: bool,
        has_grown: impl Fn(&Value) -> bool,
    ) -> Result<Found> {
        let Some(held) = self.look()? else {
            self.condition.get_or_init(|| Condition::Absent);
            return Ok(Found::New);
        };
        let Some(found) = &held.manifest else { return Err(self.foreign(&held).into()) };
        let has_grown = !fresh && has_grown(found);
        if !fresh && !has_grown {
            refuse_another_run(FLAG, self.path(), found, manifest)?;
            return Ok(Found::Complete);
        }
        let version = held.version.with_context(|| {
            format!(
                "{}: expected a server that tells versions apart, found an object without an \
                 ETag; hint: name another --out",
                self.path().display()
            )
        })?;
        self.condition.get_or_init(|| Condition::Replaces(version));
        Ok(if has_grown { Found::Grown } else { Found::New })
    }

    fn condition(&self) -> &Condition {
        self.condition.get_or_init(|| Condition::Absent)
    }

    /// Tries whether the object may be written: begins an upload and takes it back.
    pub(super) fn try_writing(&self) -> Result<()> {
        drop(Upload::begin(self.location, self.condition())?);
        Ok(())
    }

    /// Uploads a file of labels with this manifest.
    pub(super) fn upload(&self, file: &Path, manifest: &Value) -> Result<()> {
        let bytes = file.metadata().map_or(0, |found| found.len());
        tracing::info!(bytes, "uploading {}", self.path().display());
        let uploaded = self.send(file);
        fault::point("uploaded");
        let Err(error) = uploaded else { return Ok(()) };
        let is_there = matches!(error.downcast_ref(), Some(LocationError::Exists { .. }));
        if is_there {
            // Another process of this run may have been faster.
            self.location.refresh();
            let held = self.look()?;
            let found = held.as_ref().and_then(|held| held.manifest.as_ref());
            if found.is_some_and(|found| differences(found, manifest).is_empty()) {
                return Ok(());
            }
        }
        Err(error)
    }

    fn send(&self, file: &Path) -> Result<()> {
        let mut upload = Upload::begin(self.location, self.condition())?;
        let mut labels = File::open(file).with_context(|| format!("reading {}", file.display()))?;
        std::io::copy(&mut labels, &mut upload).map_err(told)?;
        fault::point("sent");
        Ok(upload.finish()?)
    }

    /// Saves the settings beside the object. What is not ours under that name stays, and a warning
    /// says so.
    pub(super) fn save_settings(&self, settings: &str) -> Result<()> {
        let name = Path::new(self.location.name()).with_extension("config.toml");
        let there = self.location.parent().join(&name.to_string_lossy())?;
        let text = format!("{SETTINGS_HEAD}{settings}");
        let stays = |why: &str| {
            tracing::warn!("{there} stays as it is: the settings of this run are not saved{why}");
        };
        let condition = match locations::File::open(&there) {
            Err(LocationError::Missing { .. }) => Condition::Absent,
            Err(error) => return Err(error.into()),
            Ok(file) => {
                let found = file.bytes(0..file.len().min(MAX_SETTINGS_BYTES)).map_err(told)?;
                if found == text.as_bytes() {
                    return Ok(());
                }
                match file.version() {
                    Some(version) if found.starts_with(SETTINGS_HEAD.as_bytes()) => {
                        Condition::Replaces(version.to_owned())
                    }
                    _ => {
                        stays("");
                        return Ok(());
                    }
                }
            }
        };
        let mut upload = Upload::begin(&there, &condition)?;
        upload.write_all(text.as_bytes()).map_err(told)?;
        match upload.finish() {
            Err(LocationError::Exists { .. }) => {
                stays(", because something has come there meanwhile");
                Ok(())
            }
            finished => Ok(finished?),
        }
    }
}

/// The error of a location, as it was before it went through a reader or writer.
fn told(error: std::io::Error) -> anyhow::Error {
    match LocationError::behind(&error) {
        Some(found) => found.clone().into(),
        None => error.into(),
    }
}
