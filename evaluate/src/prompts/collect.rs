//! From the rows of any file to prompts: ids, sets, and rows that are skipped.

use std::collections::HashSet;

use runkit::text::escape_for_terminal;

use super::error::{PromptsError, not_prompts};
use super::{Prompt, PromptSet, PromptSource};

/// A row of a file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row<'file> {
    pub(super) text: &'file str,
    pub(super) category: Option<&'file str>,
    /// Its id and set, in files that this program wrote.
    pub(super) known: Option<(&'file str, &'file str)>,
}

/// Collects the prompts of a file.
pub(super) struct Collector<'source> {
    source: &'source PromptSource,
    sets: Vec<(PromptSet, HashSet<String>)>,
    /// Rows that repeat an earlier one, and the first of them.
    repeated: usize,
    first_repeated: usize,
    /// Rows without text, and the first of them.
    blank: usize,
    first_blank: usize,
}

impl<'source> Collector<'source> {
    pub(super) fn new(source: &'source PromptSource) -> Self {
        Self { source, sets: Vec::new(), repeated: 0, first_repeated: 0, blank: 0, first_blank: 0 }
    }

    pub(super) fn source(&self) -> &'source PromptSource {
        self.source
    }

    /// Adds row `number`, from 1. Skips rows without text, and rows that repeat an earlier text of
    /// their set.
    ///
    /// # Errors
    /// If the id of the row does not belong to its text.
    pub(super) fn add(&mut self, number: usize, row: Row<'_>) -> Result<(), String> {
        let text = row.text.trim();
        if text.is_empty() {
            self.blank += 1;
            if self.blank == 1 {
                self.first_blank = number;
            }
            return Ok(());
        }
        let id = match row.known {
            Some((known, _)) if !known.ends_with(&checksum(text)) => {
                return Err(format!(
                    "expected the id of the prompt {:?}, found {known:?}; hint: the prompt has \
                     changed: remove its \"id\"",
                    escape_for_terminal(text)
                ));
            }
            Some((known, _)) => known.to_owned(),
            None => format!("{number:05}-{}", checksum(text)),
        };
        let known_set = row.known.map(|(_, set)| set).filter(|_| self.source.name.is_none());
        let name = known_set.map_or_else(|| self.source.set_name(), str::to_owned);
        let (set, seen) = self.set(&name);
        if !seen.insert(text.to_owned()) {
            set.duplicates += 1;
            self.repeated += 1;
            if self.repeated == 1 {
                self.first_repeated = number;
            }
            return Ok(());
        }
        let category = row.category.map(str::trim).filter(|category| !category.is_empty());
        set.prompts.push(Prompt {
            id,
            text: text.to_owned(),
            category: category.map(str::to_owned),
            set: name,
        });
        Ok(())
    }

    fn set(&mut self, name: &str) -> &mut (PromptSet, HashSet<String>) {
        let place = self.sets.iter().position(|(set, _)| set.name == name);
        let place = place.unwrap_or_else(|| {
            let file = self.source.file.file_name().unwrap_or_default().to_string_lossy();
            let set = PromptSet {
                name: name.to_owned(),
                file: file.into_owned(),
                prompts: Vec::new(),
                duplicates: 0,
                limit: self.source.limit,
            };
            self.sets.push((set, HashSet::new()));
            self.sets.len() - 1
        });
        &mut self.sets[place]
    }

    /// The sets, at least one. Warns about skipped rows; `rows` is the word for a row of this file.
    pub(super) fn finish(self, rows: &str, expected: &str) -> Result<Vec<PromptSet>, PromptsError> {
        let file = escape_for_terminal(&self.source.file.display().to_string()).into_owned();
        if self.repeated > 0 {
            tracing::warn!(
                "{file}: skipped {} with an earlier prompt (the first is {rows} {})",
                counted(self.repeated, rows),
                self.first_repeated
            );
        }
        if self.sets.is_empty() {
            let reason = format!("expected {expected}, found none; hint: is it the right file?");
            return Err(not_prompts(&self.source.file, reason));
        }
        if self.blank > 0 {
            tracing::warn!(
                "{file}: skipped {} without a prompt (the first is {rows} {})",
                counted(self.blank, rows),
                self.first_blank
            );
        }
        Ok(self.sets.into_iter().map(|(set, _)| set).collect())
    }
}

/// "1 row", "2 rows".
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The word for a row of a text file.
pub(super) const LINE: &str = "line";

/// The beginning of a text's BLAKE3 digest: the second half of its id.
fn checksum(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
}

/// Whether an id is one that this program makes: a number and a checksum.
pub(super) fn is_own_id(id: &str) -> bool {
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = |text: &str| {
        text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    id.len() <= 32 && id.split_once('-').is_some_and(|(row, sum)| digits(row) && hexadecimal(sum))
}
