//! Text files: a prompt in each line.

use runkit::lists::Quoting;

use super::collect::{Collector, LINE, Row};
use super::delimited::tell;
use super::error::{PromptsError, not_prompts, not_text};
use super::{PromptSet, PromptSource, read_bytes};

/// The prompts of a text file, without empty and repeated lines.
pub(super) fn read(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    if let Some(name) = source.column.as_ref().or(source.category.as_ref()) {
        let reason = format!(
            "expected a table with the column {name:?}, found a text file; hint: \
             tables end in .tsv, .csv, .json, .jsonl or .parquet"
        );
        return Err(not_prompts(&source.file, reason));
    }
    let bytes = read_bytes(&source.file)?;
    let quoting = Quoting::of_lines(runkit::lists::lines(&bytes));
    tell(source, quoting);
    let mut collector = Collector::new(source);
    for (number, line) in (1..).zip(runkit::lists::lines(&bytes)) {
        let wrong = |reason| not_text(&source.file, number, reason);
        let line = text(line).map_err(wrong)?;
        if line.trim().is_empty() {
            continue;
        }
        let text = quoting.unquoted(line);
        collector.add(number, Row { text: &text, ..Row::default() }).map_err(wrong)?;
    }
    collector.finish(LINE, "a prompt in each line")
}

/// The bytes as text.
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
