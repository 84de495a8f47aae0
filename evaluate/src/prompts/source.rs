//! Where prompts come from, as typed: a file, and which part of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use runkit::path::is_address;
use serde::{Deserialize, Serialize};

use super::error::is_list;

const OPTIONS: &str = "column=, category=, name=, split= and limit=";
/// The characters that make a name a pattern.
const PATTERN_CHARACTERS: [char; 3] = ['*', '?', '['];

/// `FILE[,column=NAME][,category=NAME][,name=SET][,split=NAME][,limit=N]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptSource {
    /// The file; for Parquet files also a folder, a pattern or an address.
    pub file: PathBuf,
    /// The column that holds the prompts, if not one of the usual names.
    pub column: Option<String>,
    /// The column that holds their categories, if not one of the usual names.
    pub category: Option<String>,
    /// The name of the set, if not that of the file.
    pub name: Option<String>,
    /// The split to take, if the names of Parquet files name splits.
    pub split: Option<String>,
    /// At most this many prompts are taken, the first ones.
    pub limit: Option<usize>,
}

impl PromptSource {
    /// The name of the set: the given one, or that of the file without its extension, or of the
    /// folder of a pattern.
    pub fn set_name(&self) -> String {
        let stem = || {
            let plain = |part: &&std::path::Path| {
                !part.as_os_str().to_string_lossy().contains(PATTERN_CHARACTERS)
            };
            let named = if self.is_pattern() { self.file.ancestors().find(plain) } else { None };
            let named = named.unwrap_or(&self.file);
            named.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        };
        self.name.clone().unwrap_or_else(stem)
    }

    fn is_pattern(&self) -> bool {
        !self.file.exists() && self.file.to_string_lossy().contains(PATTERN_CHARACTERS)
    }

    /// Whether it may name several Parquet files: a folder, a pattern, or such an address.
    pub(super) fn is_location(&self) -> bool {
        let is_elsewhere = is_address(&self.file) && !is_list(&self.file);
        self.file.is_dir() || self.is_pattern() || is_elsewhere
    }

    fn is_parquet(&self) -> bool {
        let extension = self.file.extension().unwrap_or_default();
        self.is_location() || extension.eq_ignore_ascii_case("parquet")
    }
}

impl From<PathBuf> for PromptSource {
    fn from(file: PathBuf) -> Self {
        Self { file, column: None, category: None, name: None, split: None, limit: None }
    }
}

impl FromStr for PromptSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut source = Self::from(PathBuf::new());
        let mut rest = text;
        // From the right, since a file's name may hold a comma.
        while let Some((before, option)) = rest.rsplit_once(',') {
            let Some((key, value)) = option.split_once('=') else { break };
            if !key.bytes().all(|byte| byte.is_ascii_lowercase()) {
                break;
            }
            source.set(key, value)?;
            rest = before;
        }
        if rest.is_empty() {
            return Err(format!("expected FILE, or FILE with {OPTIONS} after it, found {text:?}"));
        }
        Ok(Self { file: runkit::path::expand_home(Path::new(rest)), ..source })
    }
}

impl PromptSource {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let text = match key {
            "column" => &mut self.column,
            "category" => &mut self.category,
            "name" => &mut self.name,
            "split" => &mut self.split,
            "limit" => {
                let wrong = || format!("expected limit=N of 1 or more, found {value:?}");
                let limit = value.parse().ok().filter(|limit| *limit > 0).ok_or_else(wrong)?;
                return match self.limit.replace(limit) {
                    Some(_) => Err("limit= is given twice".to_owned()),
                    None => Ok(()),
                };
            }
            _ => return Err(format!("unknown option {key:?} of a file, expected {OPTIONS}")),
        };
        if value.is_empty() || value.contains(char::is_control) {
            return Err(format!("expected a name after {key}=, found {value:?}"));
        }
        match text.replace(value.to_owned()) {
            Some(_) => Err(format!("{key}= is given twice")),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PromptSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        for (key, value) in [
            ("column", &self.column),
            ("category", &self.category),
            ("name", &self.name),
            ("split", &self.split),
        ] {
            value.iter().try_for_each(|value| write!(formatter, ",{key}={value}"))?;
        }
        self.limit.iter().try_for_each(|limit| write!(formatter, ",limit={limit}"))
    }
}

/// Sets the split of all Parquet sources that do not name one.
///
/// # Errors
/// If no source is of Parquet.
pub fn with_split(
    mut sources: Vec<PromptSource>,
    split: Option<&str>,
) -> Result<Vec<PromptSource>, String> {
    let Some(split) = split else { return Ok(sources) };
    let mut parquet = sources.iter_mut().filter(|source| source.is_parquet()).peekable();
    if parquet.peek().is_none() {
        return Err(format!("--split {split} needs prompts in Parquet files; hint: leave it out"));
    }
    for source in parquet {
        source.split.get_or_insert_with(|| split.to_owned());
    }
    Ok(sources)
}

crate::sources::as_text!(PromptSource);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn sources_are_read_and_written() {
        for text in [
            "a.txt",
            "a,b.tsv",
            "x=1/y.csv",
            "p.json,column=Prompt",
            "p.parquet,name=pick-a-pic,limit=3",
            "pickapic,name=x,split=test_unique,limit=3",
        ] {
            assert_eq!(text.parse::<PromptSource>().unwrap().to_string(), text);
        }
        let source: PromptSource =
            "d/a,b.tsv,limit=7,category=Challenge,column=The text".parse().unwrap();
        assert_eq!(source.file, Path::new("d/a,b.tsv"));
        assert_eq!(source.column.as_deref(), Some("The text"));
        assert_eq!((source.category.as_deref(), source.limit), (Some("Challenge"), Some(7)));
        assert_eq!(source.set_name(), "a,b");
        assert_eq!("a.txt,name=b".parse::<PromptSource>().unwrap().set_name(), "b");
        assert_eq!(source.to_string().parse::<PromptSource>().unwrap(), source);
    }

    #[test]
    fn typos_are_named() {
        for (text, says) in [
            ("", "expected FILE"),
            (",name=x", "expected FILE"),
            ("a.txt,colum=b", "unknown option \"colum\""),
            ("a.txt,limit=0", "limit=N of 1 or more"),
            ("a.txt,limit=ten", "limit=N of 1 or more"),
            ("a.txt,limit=1,limit=2", "limit= is given twice"),
            ("a.txt,name=b,name=c", "name= is given twice"),
            ("a.txt,name=", "expected a name after name="),
            ("a.txt,column=a\u{1b}b", "expected a name after column="),
        ] {
            let error = text.parse::<PromptSource>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
