//! Parquet: Pick-a-Pic's files, for example, with a row for each pair and so several rows a
//! caption.

use std::path::Path;

use schemas::layouts::Layout;
use schemas::pairs::discover_as;
use schemas::text_columns::TextFile;

use super::collect::{Collector, Row};
use super::columns::Columns;
use super::error::{PromptsError, not_prompts};
use super::{PromptSet, PromptSource};

const HINT: &str = "hint: choose one with ,column=NAME after the file";

/// The prompts of a Parquet file, or of all files of a folder or a pattern, in the order of their
/// names.
pub(super) fn read(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    let mut collector = Collector::new(source);
    if !source.is_location() && source.split.is_none() {
        add(source, &source.file, 0, &mut collector)?;
        return collector.finish("row", "rows with prompts");
    }
    let splits: Vec<String> = source.split.iter().cloned().collect();
    let files = std::slice::from_ref(&source.file);
    let found = discover_as(files, &splits, Some(Layout::PickAPic))?;
    if let Some(skipped) = found.skipped() {
        tracing::info!("{}: {skipped}", source.file.display());
    }
    let mut rows = 0;
    for file in &found.files {
        rows += add(source, &file.path, rows, &mut collector)?;
    }
    collector.finish("row", "rows with prompts")
}

/// Adds the rows of a file after `before` rows of other files. Returns their number.
fn add(
    source: &PromptSource,
    path: &Path,
    before: usize,
    collector: &mut Collector<'_>,
) -> Result<usize, PromptsError> {
    let file = TextFile::open(path)?;
    let columns = file.columns();
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let chosen = Columns::find(&names, source, HINT)?;
    // A column that the user did not name may hold something else.
    let is_text = |place: &usize| columns.get(*place).is_some_and(|column| column.is_text);
    let category = chosen.category.filter(|place| source.category.is_some() || is_text(place));
    let places: Vec<usize> = [Some(chosen.prompt), category].into_iter().flatten().collect();
    for column in places.iter().filter_map(|&place| columns.get(place)) {
        if !column.is_text {
            let reason = format!(
                "expected text in the column {:?}, found {}; {HINT}",
                column.name, column.type_name
            );
            return Err(not_prompts(path, reason));
        }
    }
    let (mut wrong, mut rows) = (None, 0);
    file.for_each(&places, |number, texts| {
        rows = number;
        let text = texts.first().copied().flatten().unwrap_or_default();
        let category = texts.get(1).copied().flatten();
        if text.contains('\0') {
            wrong.get_or_insert(format!("row {number}: expected text, found a zero byte"));
        }
        // Only a known id can be wrong.
        if let Err(reason) = collector.add(before + number, Row { text, category, known: None }) {
            wrong.get_or_insert(reason);
        }
    })?;
    if let Some(reason) = wrong {
        return Err(not_prompts(path, reason));
    }
    Ok(rows)
}
