//! The lines between us and a program: JSON objects, one a line.

use serde::Serialize;
use serde_json::Value;

use runkit::text::{excerpt, quoted};

/// A question as the program reads it.
#[derive(Debug, Serialize)]
pub(super) struct QuestionLine<'run> {
    pub(super) id: String,
    pub(super) image: &'run str,
    pub(super) caption: &'run str,
}

/// What a line of the program says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// The score of a question, or why it has none.
    Score { id: String, score: Result<f64, String> },
    /// Nothing that belongs to a question, in a few words.
    Junk(String),
}

/// Reads a line of the program.
pub(super) fn parse(line: &[u8]) -> Said {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    let parsed = serde_json::from_str(text).or_else(|_| serde_json::from_str(&without_nan(text)));
    let Ok(Value::Object(object)) = parsed else { return Said::Junk(quoted(text)) };
    let id = match object.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => return Said::Junk(quoted(text)),
    };
    let reason = object.get("error").filter(|error| !error.is_null());
    let score = match (reason, object.get("score")) {
        (Some(Value::String(reason)), _) => Err(format!("the program says: {}", excerpt(reason))),
        (Some(reason), _) => Err(format!("the program says: {}", excerpt(&reason.to_string()))),
        (None, Some(Value::Number(score))) => {
            score.as_f64().ok_or_else(|| format!("the score is {score}"))
        }
        (None, Some(Value::String(text))) if NOT_NUMBERS.contains(&text.as_str()) => {
            Err(format!("the score is {text}"))
        }
        (None, Some(other)) => {
            Err(format!("expected a number as score, found {}", excerpt(&other.to_string())))
        }
        (None, None) => Err(format!("expected score or error, found {}", quoted(text))),
    };
    Said::Score { id, score }
}

/// As Python's json writes them.
const NOT_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// JSON in which Python's names of NaN and infinities are texts.
fn without_nan(text: &str) -> String {
    let (mut written, mut rest) = (String::with_capacity(text.len() + 8), text);
    let mut in_text = false;
    while let Some(letter) = rest.chars().next() {
        if !in_text && let Some(name) = NOT_NUMBERS.iter().find(|name| rest.starts_with(**name)) {
            written += &format!("\"{name}\"");
            rest = &rest[name.len()..];
            continue;
        }
        let mut length = letter.len_utf8();
        match letter {
            '"' => in_text = !in_text,
            '\\' if in_text => length += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        written += &rest[..length];
        rest = &rest[length..];
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(line: &str) -> Result<f64, String> {
        match parse(line.as_bytes()) {
            Said::Score { id, score } => {
                assert_eq!(id, "7", "{line}");
                score
            }
            Said::Junk(text) => panic!("{text}"),
        }
    }

    #[test]
    fn lines_are_read_as_python_writes_them() {
        assert_eq!(score("{\"id\": \"7\", \"score\": 0.25}\r\n"), Ok(0.25));
        assert_eq!(score("{\"id\": 7, \"score\": 3, \"more\": [1]}"), Ok(3.0));
        assert_eq!(score("{\"id\": \"7\", \"score\": 1e-3, \"error\": null}"), Ok(0.001));
        assert_eq!(score("{\"id\": \"7\", \"score\": NaN}"), Err("the score is NaN".to_owned()));
        let infinite = score("{\"note\": \"a \\\" NaN\", \"id\": \"7\", \"score\": -Infinity}");
        assert_eq!(infinite, Err("the score is -Infinity".to_owned()));
        let said = score("{\"id\": \"7\", \"error\": \"no face\\u001b[2J\"}").unwrap_err();
        assert_eq!(said, "the program says: no face\\u{1b}[2J");
        assert!(score("{\"id\": \"7\", \"score\": true}").unwrap_err().contains("found true"));
        assert!(score("{\"id\": \"7\"}").unwrap_err().contains("expected score or error"));
    }

    #[test]
    fn other_lines_are_junk() {
        for line in
            ["load checkpoint from x", "", "[1]", "{\"score\": 1}", "{\"id\": null}", "\"\\"]
        {
            assert!(matches!(parse(line.as_bytes()), Said::Junk(_)), "{line}");
        }
        assert!(matches!(parse(b"\xff\xfe"), Said::Junk(_)));
    }

    #[test]
    fn text_is_left_alone() {
        let text = "{\"a\": \"NaN \\\\\", \"b\": [Infinity, \"\u{e9}\\\"NaN\"]}";
        assert_eq!(
            without_nan(text),
            "{\"a\": \"NaN \\\\\", \"b\": [\"Infinity\", \"\u{e9}\\\"NaN\"]}"
        );
    }
}
