//! Text files: a prompt in each line.

use runkit::lists::Quoting;
use runkit::text::escape_for_terminal;

use super::collect::{Collector, LINE, Row};
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
    log_quoting(source, quoting);
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

/// Logs how quotation marks were read, if two readings are possible.
pub(super) fn log_quoting(source: &PromptSource, quoting: Quoting) {
    let file = source.file.display().to_string();
    let file = escape_for_terminal(&file);
    match quoting {
        Quoting::Raw { ambiguous: None } => {}
        Quoting::Raw { ambiguous: Some(line) } => tracing::warn!(
            "{file}:{line}: read with the quotation marks around the whole text; hint: if a program \
             quoted it, save the file as .csv"
        ),
        Quoting::Doubled | Quoting::Escaped | Quoting::Backslashed => {
            tracing::info!("{file}: removed the quotation marks that a program put around texts");
        }
        Quoting::Mixed { line } => tracing::warn!(
            "{file}:{line}: some texts contain quotation marks and others are quoted by a program; \
             marks around a text with doubled marks inside were removed"
        ),
    }
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
