//! Reading a model's configuration, and what can be wrong with one.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A configuration is a page of text.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// A configuration could not be read, or describes no network that is built here.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read. The message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is not the JSON that was expected.
    #[error("{}: not a valid model configuration: {reason}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The configuration asks for a variant that is not built here.
    #[error("the model configuration sets {option} to {value}, which is not supported{hint}")]
    Unsupported {
        /// The option, with its section.
        option: String,
        /// Its value.
        value: String,
        /// What is supported instead, on a line of its own.
        hint: String,
    },
    /// A size is impossible.
    #[error("the model configuration gives {what} as {found}, expected {expected}")]
    Size {
        /// Which size.
        what: &'static str,
        /// What was found.
        found: i64,
        /// What is possible.
        expected: String,
    },
    /// What is wrong with the configuration in a file.
    #[error("{}: {cause}", file.display())]
    InFile {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: Box<Self>,
    },
    /// No published architecture has this name.
    #[error("unknown architecture {name:?}, expected one of {known}")]
    UnknownArchitecture {
        /// The name asked for.
        name: String,
        /// The names that are known.
        known: String,
    },
}

impl ConfigError {
    /// The same, with the file named where the message does not yet.
    pub(crate) fn in_file(self, file: &Path) -> Self {
        match self {
            Self::Unsupported { .. } | Self::Size { .. } => {
                Self::InFile { file: file.to_owned(), cause: Box::new(self) }
            }
            named => named,
        }
    }
}

/// The JSON object of a configuration file.
pub(crate) fn read_json(file: &Path) -> Result<Value, ConfigError> {
    let bytes = fs_err::metadata(file)?.len();
    if bytes > LARGEST_FILE_BYTES {
        return Err(invalid(file, format!("{bytes} bytes, expected a page of JSON")));
    }
    let json: Value = serde_json::from_slice(&fs_err::read(file)?)
        .map_err(|error| invalid(file, error.to_string()))?;
    if json.is_object() {
        Ok(json)
    } else {
        // serde would take the elements of a list for the fields, in order.
        Err(invalid(file, "expected a JSON object".to_owned()))
    }
}

/// A file that is not the JSON that was expected.
pub(crate) fn invalid(file: &Path, reason: String) -> ConfigError {
    ConfigError::Invalid { file: file.to_owned(), reason }
}

/// An option whose value is not built here; `hint` may be empty.
pub(crate) fn unsupported(option: &str, value: &Value, hint: &str) -> ConfigError {
    let mut value = value.to_string();
    if value.chars().count() > 60 {
        value = value.chars().take(60).chain(['…']).collect();
    }
    let hint = if hint.is_empty() { String::new() } else { format!("\nhint: {hint}") };
    ConfigError::Unsupported { option: option.to_owned(), value, hint }
}
