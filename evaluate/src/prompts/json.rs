//! JSON and JSON Lines: texts, or objects with a prompt in one field.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::collect::{Collector, LINE, Row, is_own_id};
use super::columns::Columns;
use super::error::{PromptsError, not_prompts, not_text};
use super::lines::text;
use super::{PromptSet, PromptSource, read_bytes};

const HINT: &str = "hint: choose one with ,column=NAME after the file";

/// The prompts of an array, HPDv2's for example.
pub(super) fn read_array(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    let path = &source.file;
    let bytes = read_bytes(path)?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| not_prompts(path, broken("a JSON array of prompts", &error)))?;
    let Value::Array(elements) = value else {
        let reason = format!(
            "expected a JSON array of prompts, found {}; hint: one object a line is .jsonl",
            kind(&value)
        );
        return Err(not_prompts(path, reason));
    };
    let mut elements_read = Elements::new(source);
    for (number, element) in (1..).zip(&elements) {
        elements_read.add(number, element, &|reason| {
            not_prompts(path, format!("element {number}: {reason}"))
        })?;
    }
    elements_read.collector.finish("element", "prompts in an array")
}

/// The prompts of a file with a JSON value in each line.
pub(super) fn read_lines(source: &PromptSource) -> Result<Vec<PromptSet>, PromptsError> {
    let bytes = read_bytes(&source.file)?;
    let mut elements = Elements::new(source);
    for (number, line) in (1..).zip(runkit::lists::lines(&bytes)) {
        let wrong = |reason: String| not_text(&source.file, number, reason);
        let line = text(line).map_err(wrong)?.trim();
        if line.is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(line)
            .map_err(|error| wrong(broken("a JSON object in each line", &error)))?;
        elements.add(number, &value, &wrong)?;
    }
    elements.collector.finish(LINE, "a prompt in each line")
}

/// The elements of a file, which all have the fields of the first one.
struct Elements<'source> {
    collector: Collector<'source>,
    /// The fields with the prompt and the category, if elements are objects.
    fields: Option<(String, Option<String>)>,
}

impl<'source> Elements<'source> {
    fn new(source: &'source PromptSource) -> Self {
        Self { collector: Collector::new(source), fields: None }
    }

    fn add(
        &mut self,
        number: usize,
        element: &Value,
        wrong: &dyn Fn(String) -> PromptsError,
    ) -> Result<(), PromptsError> {
        let category_text;
        let row = match element {
            Value::String(text) => {
                if let Some(name) = &self.collector.source().column {
                    return Err(wrong(format!("expected an object with {name:?}, found text")));
                }
                Row { text, ..Row::default() }
            }
            Value::Object(object) => {
                let (prompt, category) = self.fields(object)?;
                let text = match object.get(&prompt) {
                    Some(Value::String(text)) => text.as_str(),
                    // pandas writes a missing value so.
                    Some(Value::Null) => "",
                    other => {
                        let found = other.map_or("no such field", kind);
                        return Err(wrong(format!("expected text in {prompt:?}, found {found}")));
                    }
                };
                category_text = category.and_then(|name| object.get(&name)).and_then(as_category);
                Row { text, category: category_text.as_deref(), known: known(object) }
            }
            other => {
                let found = kind(other);
                return Err(wrong(format!("expected text or an object, found {found}; {HINT}")));
            }
        };
        if row.text.contains('\0') {
            return Err(wrong("expected text, found a zero byte".to_owned()));
        }
        self.collector.add(number, row).map_err(wrong)
    }

    fn fields(
        &mut self,
        object: &Map<String, Value>,
    ) -> Result<(String, Option<String>), PromptsError> {
        if let Some(fields) = &self.fields {
            return Ok(fields.clone());
        }
        let names: Vec<String> = object.keys().cloned().collect();
        let columns = Columns::find(&names, self.collector.source(), HINT)?;
        let name = |place: usize| names.get(place).cloned().unwrap_or_default();
        let fields = (name(columns.prompt), columns.category.map(name));
        Ok(self.fields.insert(fields).clone())
    }
}

/// A category, if the value can be one.
fn as_category(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(_) | Value::Bool(_) => Some(Cow::Owned(value.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The id and the set of a prompt in a file that [`super::write_classified`] wrote. Ids of another
/// form are ignored.
fn known(object: &Map<String, Value>) -> Option<(&str, &str)> {
    let id = object.get("id")?.as_str().filter(|id| is_own_id(id))?;
    let set = object.get("set")?.as_str().filter(|set| !set.is_empty())?;
    Some((id, set))
}

fn broken(expected: &str, error: &serde_json::Error) -> String {
    let hint = if error.is_eof() { "is the file truncated?" } else { "is it the right file?" };
    format!("expected {expected}, found {error}; hint: {hint}")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
