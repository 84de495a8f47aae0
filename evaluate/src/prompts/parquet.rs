//! Parquet: Pick-a-Pic's files, for example, with a row for each pair and so many rows a caption.

use schemas::text::TextFile;

use super::collect::{Collector, Row};
use super::columns::Columns;
use super::error::{PromptsError, not_prompts};
use super::{PromptSet, PromptSource};

const HINT: &str = "hint: choose one with ,column=NAME after the file";

/// The prompts of a Parquet file.
pub(super) fn read(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    let file = TextFile::open(&source.file)?;
    let columns = file.columns();
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let chosen = Columns::find(&names, source, HINT)?;
    // A column that was not asked for may hold something else.
    let is_text = |place: &usize| columns.get(*place).is_some_and(|column| column.is_text);
    let category = chosen.category.filter(|place| source.category.is_some() || is_text(place));
    let places: Vec<usize> = [Some(chosen.prompt), category].into_iter().flatten().collect();
    for column in places.iter().filter_map(|&place| columns.get(place)) {
        if !column.is_text {
            let reason = format!(
                "expected text in the column {:?}, found {}; {HINT}",
                column.name, column.type_name
            );
            return Err(not_prompts(&source.file, reason));
        }
    }
    let mut collector = Collector::new(source);
    let mut wrong = None;
    file.for_each(&places, |number, texts| {
        let text = texts.first().copied().flatten().unwrap_or_default();
        let category = texts.get(1).copied().flatten();
        if text.contains('\0') {
            wrong.get_or_insert(format!("row {number}: expected text, found a zero byte"));
        }
        // An id cannot be wrong where there is none.
        if let Err(reason) = collector.add(number, Row { text, category, known: None }) {
            wrong.get_or_insert(reason);
        }
    })?;
    if let Some(reason) = wrong {
        return Err(not_prompts(&source.file, reason));
    }
    collector.finish("row", "rows with prompts")
}
