//! Settings in layers: flags, over environment variables, over a settings file.
//!
//! A program keeps its settings in a struct whose fields are `Option`s, read by clap (whose `env`
//! puts the environment below the flag) and by serde. [`Settings`] does the rest: it loads the
//! file, lays the flags over it, resolves relative paths, and writes the whole as text that is a
//! valid settings file itself.
//!
//! ```
//! use std::path::PathBuf;
//! use runkit::settings::Settings;
//!
//! #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct MySettings {
//!     out: Option<PathBuf>,
//!     seed: Option<u64>,
//! }
//! impl Settings for MySettings {
//!     fn paths(&mut self) -> Vec<&mut PathBuf> {
//!         self.out.iter_mut().collect()
//!     }
//! }
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("run.toml");
//! runkit::files::write_atomic(&file, |file| file.write_all(b"out = \"result\"\nseed = 1"))?;
//!
//! let flags = MySettings { out: None, seed: Some(2) };
//! let settings = flags.over_file(Some(&file))?;
//! assert_eq!(settings.seed, Some(2));
//! assert_eq!(settings.out, Some(folder.path().join("result")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{self, ConfigError};
use crate::files::{FileError, write_atomic};
use crate::path::{is_address, resolve_in_place};

/// The name of saved settings inside the folder of a run.
pub const FILE: &str = "config.toml";

/// The flags of every command that has settings.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SettingsFlags {
    /// Read settings from this TOML file; flags and environment variables win.
    #[arg(long, value_name = "FILE.toml", help_heading = "Settings file")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and stop.
    #[arg(long, help_heading = "Settings file")]
    pub print_config: bool,
}

/// Settings that a flag, an environment variable or a file may set.
pub trait Settings: Clone + Serialize + DeserializeOwned {
    /// Every path among the settings.
    fn paths(&mut self) -> Vec<&mut PathBuf>;

    /// Reads a settings file. Its relative paths are relative to the folder of the file.
    fn read(file: &Path) -> Result<Self, ConfigError> {
        let mut settings: Self = config::read_toml(file)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        settings.paths().into_iter().for_each(|path| resolve_in_place(path, folder));
        Ok(settings)
    }

    /// These settings over those of `file`. If there is a file, fields that serde skips are lost.
    fn over_file(&self, file: Option<&Path>) -> Result<Self, ConfigError> {
        match file {
            Some(file) => config::merge(self, &Self::read(file)?),
            None => Ok(self.clone()),
        }
    }

    /// With absolute paths: what is saved beside an output is a valid `--config` from any folder.
    #[must_use]
    fn with_absolute_paths(&self) -> Self {
        let mut settings = self.clone();
        for path in settings.paths().into_iter().filter(|path| !is_address(path)) {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        settings
    }

    /// All settings as TOML.
    fn to_toml(&self) -> Result<String, ConfigError> {
        config::to_toml_string(self)
    }
}

/// Saves settings beside the output they made, as `text`, which begins with `head`. A file under
/// that name that does not begin with `head`, or is `read`, is the user's: it stays, and a warning
/// says so.
///
/// # Errors
/// If the file cannot be written.
pub fn save(file: &Path, head: &str, text: &str, read: Option<&Path>) -> Result<(), FileError> {
    let text = format!("{head}{text}");
    let found = std::fs::read(file).ok();
    if found.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    let is_ours = found.is_some_and(|found| found.starts_with(head.as_bytes()));
    let is_read = read.is_some_and(|read| is_same_file(read, file));
    if file.exists() && (!is_ours || is_read) {
        tracing::warn!("{} stays as it is: the settings of this run are not saved", file.display());
        return Ok(());
    }
    write_atomic(file, |file| file.write_all(text.as_bytes()))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Serialize};

    use super::{Settings, save};

    #[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        model: Option<PathBuf>,
        pairs: Option<Vec<PathBuf>>,
        seed: Option<u64>,
    }

    impl Settings for Example {
        fn paths(&mut self) -> Vec<&mut PathBuf> {
            self.model.iter_mut().chain(self.pairs.iter_mut().flatten()).collect()
        }
    }

    #[test]
    fn flags_win_and_paths_are_relative_to_where_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "model = \"hf://a/b\"\npairs = [\"p\", \"/q\"]\nseed = 1").unwrap();
        let flags = Example { seed: Some(2), ..Example::default() };
        let settings = flags.over_file(Some(&file)).unwrap();
        assert_eq!(settings.seed, Some(2));
        assert_eq!(settings.model, Some(PathBuf::from("hf://a/b")));
        assert_eq!(settings.pairs, Some(vec![folder.path().join("p"), PathBuf::from("/q")]));
        assert_eq!(flags.over_file(None).unwrap(), flags);
        std::fs::write(&file, "sed = 1").unwrap();
        assert!(flags.over_file(Some(&file)).unwrap_err().to_string().contains("`seed`"));
    }

    #[test]
    fn saved_settings_are_valid_from_any_folder() {
        let settings = Example {
            model: Some(PathBuf::from("hf://a/b")),
            pairs: Some(vec![PathBuf::from("pairs")]),
            seed: None,
        };
        let saved = settings.with_absolute_paths();
        assert_eq!(saved.model, settings.model);
        assert!(saved.pairs.unwrap()[0].is_absolute());
    }

    #[test]
    fn a_settings_file_of_the_user_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.toml");
        let text = || std::fs::read_to_string(&file).unwrap();
        save(&file, "# ours\n", "seed = 1", None).unwrap();
        save(&file, "# ours\n", "seed = 2", Some(Path::new("elsewhere"))).unwrap();
        assert_eq!(text(), "# ours\nseed = 2");
        save(&file, "# ours\n", "seed = 3", Some(&file)).unwrap();
        assert_eq!(text(), "# ours\nseed = 2");
        std::fs::write(&file, "mine").unwrap();
        save(&file, "# ours\n", "seed = 3", None).unwrap();
        assert_eq!(text(), "mine");
    }
}
