//! Reading a model's configuration, and what can be wrong with one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use runkit::text::excerpt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A configuration is a page of text.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// A configuration could not be read, or describes a network that is not implemented.
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
    /// The configuration asks for a variant that is not implemented.
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
    /// The same error with the file in its message.
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
    let text = fs_err::read(file)?;
    let json: Value =
        serde_json::from_slice(&text).map_err(|error| not_json(file, &text, &error))?;
    if json.is_object() {
        Ok(json)
    } else {
        // serde would read the elements of a list as the fields, in order.
        Err(invalid(file, "expected a JSON object".to_owned()))
    }
}

/// A configuration of diffusers without the options that it lists in `_use_default_values`: the
/// library uses its own default for them, whatever the file says.
pub(crate) fn without_unset(mut json: Value) -> Value {
    let Some(map) = json.as_object_mut() else { return json };
    if let Some(Value::Array(unset)) = map.remove("_use_default_values") {
        map.retain(|name, _| !unset.iter().any(|other| other == name));
    }
    json
}

/// A file that is not JSON, with its real format if the first bytes show it.
pub(crate) fn not_json(file: &Path, text: &[u8], error: &serde_json::Error) -> ConfigError {
    let named = crate::weights::name_text(text);
    match named.filter(|_| !text.trim_ascii_start().starts_with(b"{")) {
        Some((found, hint)) => invalid(file, format!("expected JSON, found {found}\nhint: {hint}")),
        None => invalid(file, error.to_string()),
    }
}

/// A file that is not the JSON that was expected.
pub(crate) fn invalid(file: &Path, reason: String) -> ConfigError {
    ConfigError::Invalid { file: file.to_owned(), reason }
}

/// An option with a value that is not implemented; `hint` may be empty.
pub(crate) fn unsupported(option: &str, value: &Value, hint: &str) -> ConfigError {
    let value = excerpt(&value.to_string());
    let hint = if hint.is_empty() { String::new() } else { format!("\nhint: {hint}") };
    ConfigError::Unsupported { option: option.to_owned(), value, hint }
}

/// The options of a configuration, or of one section of it. Readers take each option by name. An
/// error can therefore name a wrong value, and the options that nobody took are known at the end.
///
/// Null means what Python makes of it: false for a flag, the default if that is null, and an error
/// elsewhere, because the libraries pass it to their constructors.
pub(crate) struct Options<'a> {
    map: Option<&'a Map<String, Value>>,
    /// Precedes the names in messages, with its dot.
    section: &'static str,
    asked: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Options<'a> {
    /// The options of an object; any other value has none.
    pub(crate) fn new(json: &'a Value, section: &'static str) -> Self {
        Self { map: json.as_object(), section, asked: RefCell::default() }
    }

    /// The value in the file, which may be null.
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        let (name, value) = self.map?.get_key_value(name)?;
        self.asked.borrow_mut().insert(name);
        Some(value)
    }

    /// An option, or its default if the file omits it. `expected` describes valid values.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        name: &str,
        expected: &str,
        default: T,
    ) -> Result<T, ConfigError> {
        match self.value(name) {
            None => Ok(default),
            Some(value) => T::deserialize(value)
                .map_err(|_| self.refuse(name, &format!("expected {expected}"))),
        }
    }

    /// A whole number.
    pub(crate) fn integer(&self, name: &str, default: i64) -> Result<i64, ConfigError> {
        self.get(name, "a whole number", default)
    }

    /// A number.
    pub(crate) fn number(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        self.get(name, "a number", default)
    }

    /// True or false; null is false, as in Python.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(name) {
            Some(Value::Null) => Ok(false),
            _ => self.get(name, "true or false", default),
        }
    }

    /// Rejects an option with a value other than these, which are written as JSON.
    pub(crate) fn fixed(&self, name: &str, allowed: &[&str], why: &str) -> Result<(), ConfigError> {
        let Some(value) = self.value(name) else { return Ok(()) };
        let text = value.to_string();
        let is = |allowed: &&str| {
            let number = value.as_f64().zip(allowed.parse::<f64>().ok());
            **allowed == text || number.is_some_and(|(found, allowed)| found == allowed)
        };
        if allowed.iter().any(is) {
            return Ok(());
        }
        let why = if why.is_empty() { String::new() } else { format!("; {why}") };
        Err(self.refuse(name, &format!("expected {}{why}", allowed.join(" or "))))
    }

    /// Takes options that have no effect here.
    pub(crate) fn of_no_effect(&self, names: &[&str]) {
        for name in names {
            self.value(name);
        }
    }

    /// An option with a value that is not implemented.
    pub(crate) fn refuse(&self, name: &str, hint: &str) -> ConfigError {
        let value = self.map.and_then(|map| map.get(name)).unwrap_or(&Value::Null);
        unsupported(&format!("{}{name}", self.section), value, hint)
    }

    /// Logs, once per file, which of its options nobody took: the libraries ignore them too. Names
    /// with a leading underscore are notes of the libraries.
    pub(crate) fn warn_of_unknown(&self, file: &Path, library: &str) {
        static SAID: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());
        let unknown = self.unknown();
        if unknown.is_empty() {
            return;
        }
        let names = unknown.join(", ");
        let mut said = SAID.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.insert((file.to_owned(), names.clone())) {
            tracing::warn!(
                "{}: the options {names} are not known and change nothing, as in {library}",
                file.display()
            );
        }
    }

    /// The options that nobody took, as messages show them.
    pub(crate) fn unknown(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        let names =
            self.map.into_iter().flat_map(Map::keys).filter(|name| !asked.contains(name.as_str()));
        let names = names.filter(|name| !name.starts_with('_'));
        names.take(20).map(|name| format!("{}{}", self.section, name.escape_debug())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn null_is_what_python_makes_of_it() {
        let json = json!({"flag": null, "size": null, "maybe": null, "name": 3, "one": 1.0});
        let options = Options::new(&json, "part.");
        assert!(!options.flag("flag", true).unwrap());
        assert!(options.flag("absent", true).unwrap());
        assert_eq!(options.get("maybe", "a number or null", Some(3)).unwrap(), None);
        let error = options.integer("size", 3).unwrap_err().to_string();
        assert!(error.contains("part.size to null") && error.contains("a whole number"), "{error}");
        let error = options.fixed("name", &["\"silu\""], "").unwrap_err().to_string();
        assert!(error.contains("part.name to 3") && error.contains("\"silu\""), "{error}");
        options.fixed("one", &["1"], "").unwrap();
        assert!(options.unknown().is_empty());
    }

    #[test]
    fn what_nobody_asked_for_is_known() {
        let json = json!({"a": 1, "b": 2, "_class_name": "x", "c\u{1b}": 3});
        let options = Options::new(&json, "");
        options.of_no_effect(&["a"]);
        assert_eq!(options.unknown(), ["b", "c\\u{1b}"]);
    }
}
