//! TOML files whose errors name the line and the alternative, and settings in layers.
//!
//! A program's settings come from flags, over environment variables, over a file, over defaults.
//! One struct serves the first three: every field is an `Option`, read by clap (whose `env` puts
//! the environment below the flag) and by [`read_toml`]. [`merge`] lays one over the other, and
//! what is still `None` takes its default when the program makes its complete settings of it:
//!
//! ```
//! #[derive(serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     batch_size: Option<u32>,
//!     device: Option<String>,
//! }
//! let flags = Settings { batch_size: Some(8), device: None };
//! let file = Settings { batch_size: Some(64), device: Some("cpu".to_owned()) };
//! let settings = runkit::config::merge(&flags, &file)?;
//! assert_eq!((settings.batch_size, settings.device.as_deref()), (Some(8), Some("cpu")));
//! # Ok::<(), runkit::config::ConfigError>(())
//! ```

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A larger file is not a configuration (a model given by mistake, for instance).
const MAXIMUM_BYTES: u64 = 16 << 20;
/// A name is a likely typo of another if at most this fraction of its letters differ.
const NEAREST_NAME_FRACTION: f64 = 0.5;

/// Settings cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The file is far too large to be a configuration.
    #[error("{} is not a configuration: {bytes} bytes, expected at most {MAXIMUM_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not text.
    #[error("{}:{line}: not valid UTF-8 text at byte {byte}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Offset of the first wrong byte, from 0.
        byte: usize,
    },
    /// The text is not what was expected.
    #[error("{}{}: {message}{}", path.display(), Place(*place), Suggestion(suggestion.as_deref()))]
    Content {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1, if known.
        place: Option<(usize, usize)>,
        /// What is wrong.
        message: String,
        /// The known name nearest to an unknown one.
        suggestion: Option<String>,
    },
    /// Settings cannot be laid over each other or written as TOML.
    #[error("settings cannot be combined or written: {0}")]
    Value(String),
}

/// Reads a TOML file into `T`. Let `T` deny unknown fields: the error then names the nearest known
/// one.
///
/// # Errors
/// Naming the file, the line and the column, when the file cannot be read, is not UTF-8, is not
/// TOML (also cut short), or does not hold a `T`.
pub fn read_toml<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    let path = path.as_ref();
    let read = |cause| ConfigError::Read { path: path.to_owned(), cause };
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    if bytes > MAXIMUM_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), bytes });
    }
    let content = std::fs::read(path).map_err(read)?;
    let text = std::str::from_utf8(&content).map_err(|error| {
        let byte = error.valid_up_to();
        let line = 1 + content.iter().take(byte).filter(|&&byte| byte == b'\n').count();
        ConfigError::NotText { path: path.to_owned(), line, byte }
    })?;
    parse_toml(path, text)
}

/// Like [`read_toml`], for text that was read already; errors name `path`.
pub fn parse_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Content {
        path: path.to_owned(),
        place: error.span().and_then(|span| line_and_column(text, span.start)),
        message: error.message().to_owned(),
        suggestion: nearest_known_name(error.message()),
    })
}

/// Writes settings as TOML text that [`read_toml`] reads back.
///
/// # Errors
/// When the value has no TOML form (a number beyond 63 bits, for instance).
pub fn to_toml_string<T: Serialize>(value: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(value).map_err(|error| ConfigError::Value(error.to_string()))
}

/// Lays `upper` over `lower`: a field that is `None` in `upper` keeps the value of `lower`, tables
/// are merged field by field, lists are replaced as a whole.
///
/// # Errors
/// When the values cannot be represented or the result is not a `T`.
pub fn merge<T: Serialize + DeserializeOwned>(upper: &T, lower: &T) -> Result<T, ConfigError> {
    let value = |error: serde_json::Error| ConfigError::Value(error.to_string());
    let mut merged = serde_json::to_value(lower).map_err(value)?;
    overlay(serde_json::to_value(upper).map_err(value)?, &mut merged);
    serde_json::from_value(merged).map_err(value)
}

fn overlay(upper: Value, lower: &mut Value) {
    match (upper, lower) {
        (Value::Null, _) => {}
        (Value::Object(upper), Value::Object(lower)) => {
            for (key, value) in upper {
                overlay(value, lower.entry(key).or_insert(Value::Null));
            }
        }
        (upper, lower) => *lower = upper,
    }
}

/// The candidate nearest to `name`, if one is near enough to be what was meant.
pub fn nearest_name<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(name, candidate);
    let (distance, nearest) =
        candidates.into_iter().map(|candidate| (distance(candidate), candidate)).min()?;
    let length = name.chars().count().max(nearest.chars().count());
    (distance as f64 <= length as f64 * NEAREST_NAME_FRACTION).then_some(nearest)
}

/// serde's messages are "unknown field `a`, expected one of `b`, `c`" (or "variant"): the names are
/// between back quotes, the unknown one first.
fn nearest_known_name(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    nearest_name(unknown, names).map(str::to_owned)
}

fn line_and_column(text: &str, byte: usize) -> Option<(usize, usize)> {
    let before = text.get(..byte)?;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..)?.chars().count() + 1;
    Some((before.matches('\n').count() + 1, column))
}

struct Place(Option<(usize, usize)>);

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |(line, column)| write!(formatter, ":{line}:{column}"))
    }
}

struct Suggestion<'a>(Option<&'a str>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(formatter, "\nhint: did you mean `{name}`?"))
    }
}

/// A setting that is one text, or a list of them, for serde's `deserialize_with`.
///
/// # Errors
/// When it is neither.
pub fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(Option::<OneOrMore>::deserialize(deserializer)?.map(|given| match given {
        OneOrMore::One(text) => text.split(',').map(str::to_owned).collect(),
        OneOrMore::More(texts) => texts,
    }))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests;
