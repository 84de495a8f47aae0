//! TSV and CSV: a header with the names of the columns, then a row for each prompt.
//!
//! TSV has no one rule for quotation marks ([`Quoting`]): in PartiPrompts' own file they are part
//! of the prompt, in the same file saved by pandas they quote.

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use runkit::lists::Quoting;

use super::collect::{Collector, Row};
use super::columns::Columns;
use super::error::{PromptsError, not_prompts, not_text};
use super::lines::{log_quoting, text};
use super::{PromptSet, PromptSource, read_bytes};

const HINT: &str = "hint: the first line names the columns; choose one with ,column=NAME after the \
                    file";
/// What pandas, R and SQL's COPY write for a missing value.
const MISSING: [&str; 5] = ["\\N", "NaN", "nan", "<NA>", "NULL"];

/// The prompts of a file whose columns are separated by tabs.
pub(super) fn read_tsv(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    let bytes = read_bytes(&source.file)?;
    let quoting = Quoting::of_table(&bytes, b'\t');
    let mut format = ReaderBuilder::new();
    format.delimiter(b'\t');
    match quoting {
        Quoting::Doubled => {}
        Quoting::Escaped => {
            format.double_quote(false).escape(Some(b'\\'));
        }
        Quoting::Raw { .. } | Quoting::Mixed { .. } | Quoting::Backslashed => {
            format.quoting(false);
        }
    }
    log_quoting(source, quoting);
    // The reader has already undone these two.
    let fields = match quoting {
        Quoting::Doubled | Quoting::Escaped => Quoting::Raw { ambiguous: None },
        other => other,
    };
    read(source, &bytes, &format, fields)
}

/// The prompts of a file whose columns are separated by commas, quoted as in RFC 4180.
pub(super) fn read_csv(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    let bytes = read_bytes(&source.file)?;
    read(source, &bytes, &ReaderBuilder::new(), Quoting::Raw { ambiguous: None })
}

fn read(
    source: &PromptSource,
    bytes: &[u8],
    format: &ReaderBuilder,
    quoting: Quoting,
) -> Result<Vec<PromptSet>, PromptsError> {
    let mut reader = format.from_reader(bytes);
    let broken = |error: csv::Error| match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line) as usize;
            let reason = format!(
                "expected {expected_len} columns as in the first line, found {len}; hint: is the \
                 file truncated, or a separator part of a prompt?"
            );
            not_text(&source.file, line, reason)
        }
        _ => not_prompts(&source.file, format!("expected a table, found {error}")),
    };
    let header = reader.byte_headers().map_err(broken)?.clone();
    let names = header.iter().map(|name| text(name).map(|name| name.trim().to_owned()));
    let names: Result<Vec<String>, String> = names.collect();
    let names = names.map_err(|reason| not_text(&source.file, 1, reason))?;
    if names.is_empty() {
        let reason = "expected a table of prompts, found nothing; hint: is it the right file?";
        return Err(not_prompts(&source.file, reason));
    }
    let columns = Columns::find(&names, source, HINT)?;
    let mut collector = Collector::new(source);
    let mut record = ByteRecord::new();
    let mut number = 0;
    while reader.read_byte_record(&mut record).map_err(broken)? {
        number += 1;
        let line = record.position().map_or(0, csv::Position::line) as usize;
        let wrong = |reason| not_text(&source.file, line, reason);
        let field = |place: usize| {
            let field = text(record.get(place).unwrap_or_default()).map_err(wrong)?;
            let field = quoting.unquoted(field);
            let missing = MISSING.contains(&field.trim()) || field.trim() == "\"\"";
            Ok::<_, PromptsError>(if missing { "".into() } else { field })
        };
        let prompt = field(columns.prompt)?;
        let category = columns.category.map(field).transpose()?;
        let row = Row { text: &prompt, category: category.as_deref(), known: None };
        collector.add(number, row).map_err(wrong)?;
    }
    collector.finish("row", "prompts below the first line")
}
