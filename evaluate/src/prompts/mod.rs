//! Prompts, read from files.
//!
//! | a file | holds |
//! |---|---|
//! | `.tsv` | columns that are tabs apart: PartiPrompts as it is published, or saved by pandas |
//! | `.csv` | columns that are commas apart |
//! | `.json` | an array of texts (HPDv2's prompts) or of objects |
//! | `.jsonl`, `.ndjson` | a text or an object in each line |
//! | `.parquet`, a folder or pattern of them | Pick-a-Pic's rows, or any others with a column of text |
//! | others | a prompt in each line |
//!
//! A file is a set ([`PromptSet`]) under its own name, unless [`PromptSource`] names it otherwise.
//! A prompt that repeats an earlier one of its set is skipped and counted, with a warning.

mod collect;
mod columns;
mod delimited;
mod error;
mod filter;
mod json;
mod limits;
mod lines;
mod parquet;
mod source;

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::error::PromptsError;
use self::error::{not_prompts, not_text};
pub use self::filter::{
    ClassifiedPrompt, ClassifierRecord, FilterError, FilteredSet, SAFETY_CLASSIFIER,
    SafetyClassifier, UNSAFE_LABEL, filter, write_classified,
};
pub use self::limits::{Limits, Preset, Style};
pub use self::source::{PromptSource, with_split};

/// Far above every collection of prompts. A model, given by mistake, is larger.
const LARGEST_FILE_BYTES: u64 = 64 << 20;

/// A text to generate images of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prompt {
    /// Its row in the file and a checksum of its text, such as `00012-8f14e45f`. Ids sort as the
    /// file does, stay if lines are added after them, and change with the text. Rows count from 1,
    /// without the line that names the columns.
    pub id: String,
    /// The text, without white space around it.
    pub text: String,
    /// What kind of prompt it is, if the file has a column for it: PartiPrompts' category, HPD's
    /// style.
    pub category: Option<String>,
    /// The name of the set it comes from.
    pub set: String,
}

/// The prompts of one file, or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// Its name.
    pub name: String,
    /// The name of its file, without the folder.
    pub file: String,
    /// The prompts, in the order of the file, no text twice.
    pub prompts: Vec<Prompt>,
    /// How many rows were skipped because they repeat an earlier prompt.
    pub duplicates: usize,
    /// The source's own `limit=`.
    limit: Option<usize>,
}

/// Reads the sets of several files, in order, without limits.
///
/// # Errors
/// If a file cannot be read, is not what its extension says, or holds no prompt; or if two files
/// have the same set.
pub fn read(sources: &[PromptSource]) -> Result<Vec<PromptSet>, PromptsError> {
    let mut names = HashSet::new();
    let mut sets = Vec::new();
    for source in sources {
        for set in read_source(source)? {
            if !names.insert(set.name.clone()) {
                let reason = format!(
                    "the set {:?} is given twice; hint: a set has the name of its file; name one \
                     differently with ,name=SET after the file",
                    set.name
                );
                return Err(not_prompts(&source.file, reason));
            }
            sets.push(set);
        }
    }
    Ok(sets)
}

/// Takes the first prompts of each set: as many as its source says, else as `limits` say.
///
/// # Errors
/// If a preset does not know a set.
pub fn limited(sets: Vec<PromptSet>, limits: Limits) -> Result<Vec<PromptSet>, PromptsError> {
    sets.into_iter()
        .map(|mut set| {
            let limit = match set.limit {
                Some(limit) => Some(limit),
                None => limits.of(&set.name).map_err(PromptsError::Limit)?,
            };
            set.prompts.truncate(limit.unwrap_or(usize::MAX));
            Ok(set)
        })
        .collect()
}

/// Reads the prompts of several files, in order: the first ones of each set, as `limits` say.
pub fn read_limited(sources: &[PromptSource], limits: Limits) -> Result<Vec<Prompt>, PromptsError> {
    let sets = limited(read(sources)?, limits)?;
    Ok(sets.into_iter().flat_map(|set| set.prompts).collect())
}

fn read_source(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    if source.set_name().is_empty() {
        return Err(not_prompts(&source.file, "expected the name of a file"));
    }
    if let Some(address) = signed(&source.file) {
        let reason = "expected an address without a query, which is a secret that config.toml and \
                      the manifest would keep; hint: fetch the file";
        return Err(not_prompts(address, reason));
    }
    if source.is_location() {
        return parquet::read(source);
    }
    let extension = source.file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match extension.as_str() {
        "tsv" => delimited::read_tsv(source),
        "csv" => delimited::read_csv(source),
        "json" => json::read_array(source),
        "jsonl" | "ndjson" => json::read_lines(source),
        "parquet" => parquet::read(source),
        _ => lines::read(source),
    }
}

/// A web address with a query, without it: such queries are signatures.
fn signed(file: &Path) -> Option<&Path> {
    let text = file.to_str().filter(|text| text.starts_with("http"))?;
    let (address, _) = text.split_once('?').filter(|_| runkit::path::is_address(file))?;
    Some(Path::new(address))
}

/// The content of a file without its byte order mark.
fn read_bytes(path: &Path) -> Result<Vec<u8>, PromptsError> {
    let read = |cause| PromptsError::Read { path: path.to_owned(), cause };
    let file = std::fs::File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > LARGEST_FILE_BYTES {
        let reason = format!("expected at most {} MiB of prompts", LARGEST_FILE_BYTES >> 20);
        return Err(not_prompts(path, reason));
    }
    let text = runkit::lists::without_mark(&bytes);
    let length = text.map_err(|other| not_text(path, 1, other.to_string()))?.len();
    bytes.drain(..bytes.len() - length);
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::{Limits, Prompt, PromptSource, read_limited};

    fn read_text(content: &[u8], limit: Option<usize>) -> Result<Vec<Prompt>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("parti.txt");
        std::fs::write(&path, content).unwrap();
        of_files(&[&path], limit)
    }

    fn of_files(
        files: &[&std::path::PathBuf],
        limit: Option<usize>,
    ) -> Result<Vec<Prompt>, String> {
        let sources: Vec<PromptSource> = files.iter().map(|path| (*path).clone().into()).collect();
        let limits = Limits { limit, preset: None };
        read_limited(&sources, limits).map_err(|error| error.to_string())
    }

    fn texts(prompts: &[Prompt]) -> Vec<&str> {
        prompts.iter().map(|prompt| prompt.text.as_str()).collect()
    }

    #[test]
    fn lines_are_prompts_with_stable_ids() {
        let prompts = read_text(b"a fox\n\n  a cat\t\r\na fox\n\xc3\xa9t\xc3\xa9", None).unwrap();
        assert_eq!(texts(&prompts), ["a fox", "a cat", "été"]);
        // The row of the file, blank lines counted, and what `b3sum` prints for the text.
        let ids: Vec<&str> = prompts.iter().map(|prompt| &*prompt.id).collect();
        assert!(ids[0].starts_with("00001-") && ids[1].starts_with("00003-"), "{ids:?}");
        assert!(ids[2].starts_with("00005-"), "{ids:?}");
        assert!(prompts.iter().all(|prompt| prompt.set == "parti" && prompt.id.len() == 14));
        let more = read_text(b"\xef\xbb\xbfa fox\n\n  a cat\nx\n", None).unwrap();
        assert_eq!(prompts[..2], more[..2], "ids do not depend on what follows");
        let other = read_text(b"a box\n", None).unwrap();
        assert_ne!(prompts[0].id, other[0].id);
    }

    #[test]
    fn a_limit_takes_the_first() {
        assert_eq!(texts(&read_text(b"a\nb\nc\n", Some(2)).unwrap()), ["a", "b"]);
        assert_eq!(texts(&read_text(b"a\nb\n", Some(9)).unwrap()), ["a", "b"]);
    }

    #[test]
    fn text_that_is_not_utf_8_is_refused_by_line() {
        let error = read_text(b"fine\nna\xefve\n", None).unwrap_err();
        assert!(error.contains("parti.txt:2: expected UTF-8"), "{error}");
        assert!(error.contains("column 3") && error.contains("hint"), "{error}");
        let error = read_text(b"f\0o\0x\0", None).unwrap_err();
        assert!(error.contains("parti.txt:1: expected text, found a zero byte"), "{error}");
        for empty in [&b""[..], b"\n \n\t\n", b"\xef\xbb\xbf"] {
            let error = read_text(empty, None).unwrap_err();
            assert!(error.contains("parti.txt: expected a prompt in each line"), "{error}");
        }
    }

    #[test]
    fn files_are_sets_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one.txt", "two", "one.md"].map(|name| folder.path().join(name));
        std::fs::write(&one, "a\nb\n").unwrap();
        std::fs::write(&two, "a\nc\n").unwrap();
        std::fs::write(&three, "d\n").unwrap();
        let prompts = of_files(&[&one, &two], Some(1)).unwrap();
        assert_eq!(texts(&prompts), ["a", "a"]);
        assert_eq!((&*prompts[0].set, &*prompts[1].set), ("one", "two"));
        assert_eq!(prompts[0].id, prompts[1].id, "same row, same text: the same image");
        let error = of_files(&[&one, &three], None).unwrap_err();
        assert!(error.contains("\"one\" is given twice"), "{error}");
        for absent in ["absent.txt", "absent.Parquet", "absent.tsv", "absent.JSON"] {
            let error = of_files(&[&folder.path().join(absent)], None).unwrap_err();
            assert!(error.contains("cannot read") && error.contains(absent), "{error}");
        }
        let error = of_files(&[&folder.path().to_owned()], None).unwrap_err();
        assert!(error.contains("expected files of the layout pickapic"), "{error}");
    }

    #[test]
    fn limits_of_sources_come_before_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        std::fs::write(&path, "a\nb\nc\nd\n").unwrap();
        let limits = Limits { limit: Some(3), preset: Some(super::Preset::PaperSd15) };
        let source = |options: &str| -> PromptSource {
            format!("{}{options}", path.display()).parse().unwrap()
        };
        let count = |options: &str| read_limited(&[source(options)], limits).map(|all| all.len());
        assert_eq!(count(",limit=2").unwrap(), 2);
        assert_eq!(count(",name=hpd").unwrap(), 4, "the preset takes 150");
        assert!(count("").unwrap_err().to_string().contains("does not know the set \"x\""));
        let two =
            read_limited(&[source(",limit=1"), source(",name=y")], Limits::default()).unwrap();
        assert_eq!(
            two.iter().map(|prompt| &*prompt.set).collect::<Vec<_>>(),
            ["x", "y", "y", "y", "y"]
        );
    }
}
