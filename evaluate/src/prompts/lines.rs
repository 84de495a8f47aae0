//! Text files: a prompt in each line.

use super::collect::{Collector, LINE, Row};
use super::error::{PromptsError, not_prompts, not_text};
use super::{PromptSet, PromptSource, read_bytes};

/// The prompts of a text file. Empty lines are passed over, and so are lines that repeat an earlier
/// one.
pub(super) fn read(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    if let Some(name) = source.column.as_ref().or(source.category.as_ref()) {
        let reason = format!(
            "expected a table with the column {name:?}, found a text file, which has none; hint: \
             tables end in .tsv, .csv, .json, .jsonl or .parquet"
        );
        return Err(not_prompts(&source.file, reason));
    }
    let bytes = read_bytes(&source.file)?;
    let mut collector = Collector::new(source);
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        let wrong = |reason| not_text(&source.file, number, reason);
        let text = text(line).map_err(wrong)?;
        collector.add(number, Row { text, ..Row::default() }).map_err(wrong)?;
    }
    collector.finish(LINE, "a prompt in each line")
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let place = error.valid_up_to() + 1;
        format!("expected UTF-8 text, found another byte at column {place}; hint: save it as UTF-8")
    })?;
    if text.contains('\0') {
        return Err("expected text, found a zero byte; hint: save it as UTF-8".to_owned());
    }
    Ok(text)
}
