//! What reading prompts can report.

use std::path::{Path, PathBuf};

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
    /// A set has no number of prompts to take.
    #[error("{0}")]
    Limit(String),
}

pub(super) fn not_prompts(path: &Path, reason: impl Into<String>) -> PromptsError {
    PromptsError::NotPrompts { path: path.to_owned(), reason: reason.into() }
}

pub(super) fn not_text(path: &Path, line: usize, reason: impl Into<String>) -> PromptsError {
    PromptsError::NotText { path: path.to_owned(), line, reason: reason.into() }
}
