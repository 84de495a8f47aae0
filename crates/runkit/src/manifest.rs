//! What a run was made of: canonical JSON, its fingerprint, and what differs between two of them.
//!
//! Equal values give equal text and so equal fingerprints: keys are sorted, there is no white
//! space, and numbers are written in the shortest form that reads back the same. Put no time and no
//! host into a manifest, or equal inputs no longer give equal bytes.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::text::escape_for_terminal;

/// Differences show values up to this many characters.
const MAXIMUM_SHOWN_CHARACTERS: usize = 100;

/// One field that differs between two manifests.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Where, such as `scorers[1].preprocess`; empty when the whole value differs.
    pub field: String,
    /// The old value; `None` when the field was absent.
    pub old: Option<Value>,
    /// The new value; `None` when the field is absent now.
    pub new: Option<Value>,
}

/// `scorers[1].preprocess: was "hf", now "hps"`
impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "the whole" } else { &self.field };
        let (old, new) = (shown(self.old.as_ref()), shown(self.new.as_ref()));
        write!(formatter, "{}: was {old}, now {new}", escape_for_terminal(field))
    }
}

/// Canonical JSON of any value: keys sorted, no white space, stable numbers.
///
/// # Errors
/// When the value cannot be JSON (a map whose keys are not text).
pub fn canonical_json<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    serde_json::to_string(&value)
}

/// The BLAKE3 digest of a value's canonical JSON, as 64 hexadecimal digits.
pub fn fingerprint<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    Ok(blake3::hash(canonical_json(value)?.as_bytes()).to_hex().to_string())
}

/// Every field in which two manifests differ, in the order of their paths' first appearance.
pub fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    collect(String::new(), Some(old), Some(new), &mut found);
    found
}

fn collect(field: String, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            for (key, value) in old {
                collect(member(&field, key), Some(value), new.get(key), found);
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                collect(member(&field, key), None, Some(value), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                collect(format!("{field}[{index}]"), old.get(index), new.get(index), found);
            }
        }
        _ => found.push(Difference { field, old: old.cloned(), new: new.cloned() }),
    }
}

fn member(parent: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key.chars().all(|character| character.is_alphanumeric() || "_-".contains(character));
    match (plain, parent.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{parent}.{key}"),
        (false, _) => format!("{parent}[{key:?}]"),
    }
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "absent".to_owned() };
    let text = value.to_string();
    let text = escape_for_terminal(&text);
    if text.chars().count() <= MAXIMUM_SHOWN_CHARACTERS {
        return text.into_owned();
    }
    text.chars().take(MAXIMUM_SHOWN_CHARACTERS).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::{canonical_json, differences, fingerprint};
    use serde_json::json;

    #[test]
    fn canonical_text_does_not_depend_on_the_order_of_keys() {
        let first = json!({"b": {"z": 1, "a": [{"y": 1, "x": 2}]}, "a": 0.1});
        let second = json!({"a": 0.1, "b": {"a": [{"x": 2, "y": 1}], "z": 1}});
        assert_eq!(canonical_json(&first).unwrap(), canonical_json(&second).unwrap());
        assert_eq!(canonical_json(&first).unwrap(), r#"{"a":0.1,"b":{"a":[{"x":2,"y":1}],"z":1}}"#);
        assert_eq!(fingerprint(&first).unwrap(), fingerprint(&second).unwrap());
        assert_ne!(fingerprint(&first).unwrap(), fingerprint(&json!({})).unwrap());
    }

    #[test]
    fn fingerprints_stay_the_same_between_versions() {
        // Files in the field carry them: a change of this value would refuse every resume.
        let expected = "63f5a8206f258301b4bd3d638d73f2e9d847f02af99569bfba01870478ef2100";
        assert_eq!(fingerprint(&json!({"b": [1, 0.5], "a": null})).unwrap(), expected);
    }

    #[test]
    fn differences_read_as_sentences() {
        let old = json!({"scorers": [{"name": "clip"}, {"preprocess": "hf"}], "seed": 3});
        let new = json!({"scorers": [{"name": "clip"}, {"preprocess": "hps"}], "dtype": "bf16"});
        let sentences: Vec<String> =
            differences(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(
            sentences,
            [
                r#"scorers[1].preprocess: was "hf", now "hps""#,
                "seed: was 3, now absent",
                r#"dtype: was absent, now "bf16""#,
            ]
        );
    }

    #[test]
    fn lengths_types_and_odd_keys_are_named() {
        let found = differences(&json!({"a.b": [1], "c": 1}), &json!({"a.b": [1, 2], "c": "1"}));
        let sentences: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(sentences, [r#"["a.b"][1]: was absent, now 2"#, r#"c: was 1, now "1""#]);
        assert!(differences(&json!([1, {"x": null}]), &json!([1, {"x": null}])).is_empty());
        assert_eq!(differences(&json!(1), &json!(2))[0].to_string(), "the whole: was 1, now 2");
    }

    #[test]
    fn long_and_hostile_values_are_shortened_and_escaped() {
        let found = differences(&json!("x".repeat(1000)), &json!("\u{202e}"));
        let sentence = found[0].to_string();
        assert!(sentence.chars().count() < 200 && sentence.contains('…'), "{sentence}");
        assert!(sentence.ends_with("now \"\\u{202e}\""), "{sentence}");
    }
}
