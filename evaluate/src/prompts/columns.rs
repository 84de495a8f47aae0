//! Which columns of a table hold the prompts and their categories.

use super::PromptSource;
use super::error::{PromptsError, not_prompts};

/// The usual names, the best first; case does not count.
const PROMPT_NAMES: [&str; 3] = ["prompt", "caption", "text"];
const CATEGORY_NAMES: [&str; 3] = ["category", "style", "tag"];

/// The positions of two columns in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) prompt: usize,
    pub(super) category: Option<usize>,
}

impl Columns {
    /// Finds the columns that `source` names, or those with the usual names. If they are missing,
    /// the error ends with `hint`.
    pub(super) fn find(
        names: &[String],
        source: &PromptSource,
        hint: &str,
    ) -> Result<Self, PromptsError> {
        let missing = |expected: String| {
            let found = runkit::text::choices(names.iter().map(|name| format!("{name:?}")));
            let reason = format!("expected {expected}, found the columns {found}; {hint}");
            not_prompts(&source.file, reason)
        };
        let named = |name: &String| {
            let place = names.iter().position(|other| other == name);
            place.ok_or_else(|| missing(format!("a column {name:?}")))
        };
        let usual = |usual: &[&str]| {
            let of = |name: &str| names.iter().position(|other| other.eq_ignore_ascii_case(name));
            usual.iter().find_map(|name| of(name))
        };
        let prompt = match &source.column {
            Some(name) => named(name)?,
            None => usual(&PROMPT_NAMES)
                .ok_or_else(|| missing("a column called prompt, caption or text".to_owned()))?,
        };
        let category = match &source.category {
            Some(name) => Some(named(name)?),
            None => usual(&CATEGORY_NAMES).filter(|&category| category != prompt),
        };
        Ok(Self { prompt, category })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(names: &[&str], source: &str) -> Result<(usize, Option<usize>), String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let found = Columns::find(&names, &source.parse().unwrap(), "hint: x");
        found.map(|columns| (columns.prompt, columns.category)).map_err(|error| error.to_string())
    }

    #[test]
    fn usual_names_are_found_and_others_asked_for() {
        let parti = ["Prompt", "Category", "Challenge", "Note"];
        assert_eq!(find(&parti, "x.tsv"), Ok((0, Some(1))));
        assert_eq!(find(&parti, "x.tsv,column=Note,category=Challenge"), Ok((3, Some(2))));
        assert_eq!(find(&["uid", "TEXT", "caption"], "x.tsv"), Ok((2, None)));
        assert_eq!(find(&["style", "text"], "x.tsv,column=style"), Ok((0, None)));
        let error = find(&["a", "b\u{1b}"], "x.tsv").unwrap_err();
        assert!(error.starts_with("x.tsv: expected a column called prompt"), "{error}");
        assert!(error.ends_with("found the columns \"a\", \"b\\u{1b}\"; hint: x"), "{error}");
        let error = find(&parti, "x.tsv,column=prompt").unwrap_err();
        assert!(
            error.contains("expected a column \"prompt\", found the columns \"Prompt\""),
            "{error}"
        );
        assert!(find(&parti, "x.tsv,category=style").unwrap_err().contains("a column \"style\""));
        let many: Vec<String> = (0..100).map(|index| index.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(find(&many, "x.tsv").unwrap_err().contains("\"34\" and 65 more"));
    }
}
