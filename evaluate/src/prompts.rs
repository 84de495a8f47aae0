//! What is drawn: prompts, read from files.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use runkit::logging::escape_for_terminal;

/// Far above every collection of prompts; a model given by mistake is larger.
const LARGEST_FILE_BYTES: u64 = 64 << 20;
/// Layouts with columns, which are not lists of lines.
const TABLES: [&str; 6] = ["csv", "json", "jsonl", "ndjson", "parquet", "tsv"];

/// A text to draw.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// Its place in the file and a checksum of its text, such as `00012-8f14e45f`: sorts as the
    /// file does, stays when lines are added after it, and is another for another text.
    pub id: String,
    /// The text, without white space around it.
    pub text: String,
    /// The name of the file it comes from, without extension.
    pub set: String,
}

/// Prompts cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The file is not a list of prompts.
    #[error("{}: {reason}", path.display())]
    NotPrompts {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found, with a hint.
        reason: String,
    },
    /// A line is not text.
    #[error("{}:{line}: {reason}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the prompts of several files, in order; of each file the first `limit`.
///
/// # Errors
/// Where a file cannot be read, is not UTF-8 text, or holds no prompt, and where two files would be
/// one set.
pub fn read(files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Prompt>, PromptsError> {
    let mut sets = HashSet::new();
    let mut prompts = Vec::new();
    for path in files {
        let set = set_name(path)?;
        if !sets.insert(set.clone()) {
            let reason = format!(
                "the set {set:?} is given twice; hint: a set has the name of its file, rename one"
            );
            return Err(not_prompts(path, reason));
        }
        let mut of_file = read_lines(path, &set)?;
        of_file.truncate(limit.unwrap_or(usize::MAX));
        prompts.append(&mut of_file);
    }
    Ok(prompts)
}

/// The prompts of a text file: one in each line. Empty lines are passed over, and so are lines that
/// repeat an earlier one.
fn read_lines(path: &Path, set: &str) -> Result<Vec<Prompt>, PromptsError> {
    let bytes = read_bytes(path)?;
    let content = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut seen = HashSet::new();
    let mut prompts = Vec::new();
    let mut repeated = Vec::new();
    for (number, line) in (1..).zip(content.split(|&byte| byte == b'\n')) {
        let text = line_text(line).map_err(|reason| PromptsError::NotText {
            path: path.to_owned(),
            line: number,
            reason,
        })?;
        if text.is_empty() {
            continue;
        }
        if !seen.insert(text) {
            repeated.push(number);
            continue;
        }
        prompts.push(Prompt { id: id(number, text), text: text.to_owned(), set: set.to_owned() });
    }
    if let Some(first) = repeated.first() {
        let count = repeated.len();
        tracing::warn!(
            "{}: {count} lines repeat an earlier prompt and are passed over (the first is line {first})",
            escape_for_terminal(&path.display().to_string())
        );
    }
    if prompts.is_empty() {
        let reason = "expected a prompt in each line, found none; hint: is it the right file?";
        return Err(not_prompts(path, reason.to_owned()));
    }
    Ok(prompts)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, PromptsError> {
    let read = |cause| PromptsError::Read { path: path.to_owned(), cause };
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if TABLES.contains(&extension.as_str()) {
        let reason = format!(
            "expected a text file with a prompt in each line, found a .{extension} file; hint: \
             write its column of prompts into a .txt file"
        );
        return Err(not_prompts(path, reason));
    }
    let file = std::fs::File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > LARGEST_FILE_BYTES {
        let reason = format!("expected at most {} MiB of prompts", LARGEST_FILE_BYTES >> 20);
        return Err(not_prompts(path, reason));
    }
    Ok(bytes)
}

fn line_text(line: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let place = error.valid_up_to() + 1;
        format!("expected UTF-8 text, found another byte at column {place}; hint: save it as UTF-8")
    })?;
    if text.contains('\0') {
        return Err("expected text, found a zero byte; hint: save it as UTF-8".to_owned());
    }
    Ok(text.trim())
}

/// The row, from 1, and the beginning of the text's BLAKE3 digest.
fn id(row: usize, text: &str) -> String {
    let digest = blake3::hash(text.as_bytes()).to_hex();
    format!("{row:05}-{}", &digest[..8])
}

fn set_name(path: &Path) -> Result<String, PromptsError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if name.is_empty() {
        return Err(not_prompts(path, "expected the name of a file".to_owned()));
    }
    Ok(name.into_owned())
}

fn not_prompts(path: &Path, reason: String) -> PromptsError {
    PromptsError::NotPrompts { path: path.to_owned(), reason }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::{Prompt, read};

    fn read_text(content: &[u8], limit: Option<usize>) -> Result<Vec<Prompt>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("parti.txt");
        std::fs::write(&path, content).unwrap();
        read(&[path], limit).map_err(|error| error.to_string())
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
    fn what_is_no_text_is_refused_by_line() {
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
        let prompts = read(&[one.clone(), two], Some(1)).unwrap();
        assert_eq!(texts(&prompts), ["a", "a"]);
        assert_eq!((&*prompts[0].set, &*prompts[1].set), ("one", "two"));
        assert_eq!(prompts[0].id, prompts[1].id, "same row, same text: the same picture");
        let error = read(&[one, three], None).unwrap_err().to_string();
        assert!(error.contains("\"one\" is given twice"), "{error}");
        let table = folder.path().join("x.Parquet");
        let error = read(&[table], None).unwrap_err().to_string();
        assert!(error.contains("found a .parquet file; hint"), "{error}");
        let error = read(&[folder.path().join("absent.txt")], None).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("absent.txt"), "{error}");
        assert!(read(&[folder.path().to_owned()], None).is_err());
    }
}
