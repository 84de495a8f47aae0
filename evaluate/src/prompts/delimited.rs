//! TSV and CSV: a header with the names of the columns, then a row for each prompt.
//!
//! TSV is read raw: a quotation mark in PartiPrompts' file is part of the prompt.

use csv::{ByteRecord, ErrorKind, ReaderBuilder};

use super::collect::{Collector, Row};
use super::columns::Columns;
use super::error::{PromptsError, not_prompts, not_text};
use super::lines::text;
use super::{PromptSet, PromptSource, read_bytes};

const HINT: &str = "hint: the first line names the columns; choose one with ,column=NAME after the \
                    file";

/// The prompts of a file whose columns are tabs apart.
pub(super) fn read_tsv(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    read(source, ReaderBuilder::new().delimiter(b'\t').quoting(false))
}

/// The prompts of a file whose columns are commas apart, with quotation marks where RFC 4180 has
/// them.
pub(super) fn read_csv(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    read(source, &ReaderBuilder::new())
}

fn read(source: &PromptSource, format: &ReaderBuilder) -> Result<Vec<PromptSet>, PromptsError> {
    let bytes = read_bytes(&source.file)?;
    let mut reader = format.from_reader(bytes.as_slice());
    let broken = |error: csv::Error| match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line) as usize;
            let reason = format!(
                "expected {expected_len} columns as in the first line, found {len}; hint: is the \
                 file cut short, or a separator part of a prompt?"
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
        let field = |place: usize| text(record.get(place).unwrap_or_default()).map_err(wrong);
        let prompt = field(columns.prompt)?;
        let category = columns.category.map(field).transpose()?;
        collector.add(number, Row { text: prompt, category, known: None }).map_err(wrong)?;
    }
    collector.finish("row", "prompts below the first line")
}
