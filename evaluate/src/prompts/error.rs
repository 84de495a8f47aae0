//! What reading prompts can report.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use runkit::path::is_address;
use runkit::text::excerpt;

/// Prompts cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}{}", excerpt(&path.display().to_string()), read_hint(path, cause))]
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
    /// A line or a row is not text.
    #[error("{}:{line}: {reason}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A Parquet file cannot be read.
    #[error(transparent)]
    Parquet(#[from] schemas::input::InputError),
    /// Parquet files cannot be found, or are of several splits.
    #[error(transparent)]
    Location(#[from] schemas::pairs::PairsError),
    /// A set has no number of prompts to take.
    #[error("{0}")]
    Limit(String),
}

/// Extensions of files of prompts.
const LISTS: [&str; 7] = ["txt", "tsv", "csv", "json", "jsonl", "ndjson", "parquet"];

/// Whether a name has one of these extensions.
pub(super) fn is_list(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    LISTS.contains(&extension.as_str())
}

/// What to do if a user gave something else than a file.
fn read_hint(path: &Path, cause: &std::io::Error) -> &'static str {
    let name = path.to_string_lossy();
    let is_sentence = name.trim().contains(char::is_whitespace) && !is_list(path);
    match cause.kind() {
        ErrorKind::IsADirectory => "; hint: this is a folder; name the file of prompts in it",
        ErrorKind::NotFound if is_address(path) => {
            "; hint: only Parquet files are read from an address; fetch the file, for example with \
             aws s3 cp, curl or hf download --repo-type dataset"
        }
        ErrorKind::NotFound | ErrorKind::InvalidFilename if is_sentence => {
            "; hint: --prompts names a file: write the prompts into prompts.txt, one a line"
        }
        _ => "",
    }
}

pub(super) fn not_prompts(path: &Path, reason: impl Into<String>) -> PromptsError {
    PromptsError::NotPrompts { path: path.to_owned(), reason: reason.into() }
}

pub(super) fn not_text(path: &Path, line: usize, reason: impl Into<String>) -> PromptsError {
    PromptsError::NotText { path: path.to_owned(), line, reason: reason.into() }
}
