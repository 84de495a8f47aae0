//! From the response of a server to an answer, and from an answer to a score.

use regex::Regex;
use runkit::text::{excerpt, quoted};
use serde::Deserialize;

use super::config::VlmRead;
use crate::external::answers::Answer;

/// A response of `/chat/completions`, as far as it is read.
#[derive(Debug, Deserialize)]
struct Response {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    message: Option<Message>,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<Token>>,
}

#[derive(Debug, Deserialize)]
struct Token {
    token: String,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<TopToken>,
}

#[derive(Debug, Deserialize)]
struct TopToken {
    token: String,
    logprob: f64,
}

/// The answer in the body of a response. One that cannot be read is an answer too: the same request
/// would not give another.
pub(super) fn answer(body: &[u8], read: VlmRead) -> Answer {
    let response: Response = match serde_json::from_slice(body) {
        Ok(response) => response,
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            return Answer::None(format!("expected a chat completion, found {}", quoted(&text)));
        }
    };
    let Some(choice) = response.choices.into_iter().next() else {
        return Answer::None("the answer has no choices".to_owned());
    };
    let message = choice.message;
    if let Some(refusal) = message.as_ref().and_then(|message| message.refusal.as_deref())
        && !refusal.is_empty()
    {
        return Answer::None(format!("the model refuses: {}", excerpt(refusal)));
    }
    if choice.finish_reason.as_deref() == Some("content_filter") {
        return Answer::None("the content filter of the server stopped the answer".to_owned());
    }
    let text = message.and_then(|message| message.content).unwrap_or_default();
    if read == VlmRead::YesNo {
        let first = choice.logprobs.and_then(|logprobs| logprobs.content);
        return match first.and_then(|tokens| tokens.into_iter().next()) {
            Some(token) => Answer::YesNo(yes_and_no(&token)),
            None => Answer::None(format!(
                "the answer {} comes without log-probabilities, which read = \"yes-no\" needs",
                quoted(&text)
            )),
        };
    }
    if text.trim().is_empty() {
        let why = match choice.finish_reason.as_deref() {
            Some("length") => "; it ends at max_tokens",
            _ => "",
        };
        return Answer::None(format!("the answer is empty{why}"));
    }
    Answer::Text(text)
}

/// The probabilities that the first token says yes and no, whatever its case and spaces.
fn yes_and_no(token: &Token) -> [f64; 2] {
    let mut found = vec![(token.token.as_str(), token.logprob)];
    for top in &token.top_logprobs {
        if found.iter().all(|(known, _)| *known != top.token) {
            found.push((&top.token, top.logprob));
        }
    }
    ["yes", "no"].map(|word| {
        let of_word = found.iter().filter(|(text, _)| text.trim().eq_ignore_ascii_case(word));
        // Servers write minus infinity as -9999 or so; its probability is 0.
        of_word.map(|(_, logprob)| logprob.exp()).filter(|share| share.is_finite()).sum()
    })
}

/// The score that an answer means, or why it has none.
pub(super) fn score(answer: &Answer, pattern: Option<&Regex>) -> Result<f32, String> {
    let score = match answer {
        Answer::None(reason) => return Err(reason.clone()),
        Answer::Score(score) => *score,
        Answer::YesNo([yes, no]) => {
            if yes + no <= 0.0 {
                return Err("neither Yes nor No is among the first token's likely ones".to_owned());
            }
            yes / (yes + no)
        }
        Answer::Text(text) => {
            let found = matched(text, pattern).ok_or_else(|| nothing_found(text, pattern))?;
            found.parse().map_err(|_| {
                format!("{} in the answer {} is not a number", quoted(found), quoted(text))
            })?
        }
    };
    // f32 is what labels hold.
    let score = score as f32;
    if score.is_finite() { Ok(score) } else { Err(format!("the score is {score}")) }
}

/// Which of two images an answer prefers: 1 or 2.
pub(super) fn preferred(answer: &Answer, pattern: Option<&Regex>) -> Result<u8, String> {
    let text = match answer {
        Answer::Text(text) => text,
        Answer::None(reason) => return Err(reason.clone()),
        Answer::Score(_) | Answer::YesNo(_) => {
            return Err("the answer is not a text".to_owned());
        }
    };
    let found = match pattern {
        Some(_) => matched(text, pattern).ok_or_else(|| nothing_found(text, pattern))?,
        None => text,
    };
    match found.trim_matches(|letter: char| !letter.is_alphanumeric()) {
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err(format!("expected the answer 1 or 2, found {}", quoted(found))),
    }
}

/// The first match: of the first group if there is one.
fn matched<'text>(text: &'text str, pattern: Option<&Regex>) -> Option<&'text str> {
    let captures = pattern?.captures(text)?;
    let found = captures.get(1).or_else(|| captures.get(0))?;
    Some(found.as_str().trim())
}

fn nothing_found(text: &str, pattern: Option<&Regex>) -> String {
    let pattern = pattern.map_or("", Regex::as_str);
    format!("the answer {} has no match of the pattern {}", quoted(text), quoted(pattern))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::config::tests::config;
    use super::*;

    fn of(body: &serde_json::Value, read: VlmRead) -> Answer {
        answer(body.to_string().as_bytes(), read)
    }

    fn says(text: &str) -> serde_json::Value {
        json!({ "choices": [{ "message": { "role": "assistant", "content": text },
            "finish_reason": "stop" }] })
    }

    fn first_token(token: &str, top: &[(&str, f64)]) -> serde_json::Value {
        let top: Vec<_> = top
            .iter()
            .map(|(token, share)| json!({ "token": token, "logprob": share.ln() }))
            .collect();
        json!({ "choices": [{ "message": { "content": token }, "logprobs": { "content": [
            { "token": token, "logprob": top[0]["logprob"], "top_logprobs": top },
            { "token": "No", "logprob": 0.0, "top_logprobs": [] }
        ] } }] })
    }

    #[test]
    fn yes_and_no_share_the_first_token() {
        let score_of = |body: &serde_json::Value| score(&of(body, VlmRead::YesNo), None);
        let found = score_of(&first_token("Yes", &[("Yes", 0.6), ("No", 0.2), ("It", 0.1)]));
        assert!((found.unwrap() - 0.75).abs() < 1e-6);
        let found = score_of(&first_token("yes", &[("yes", 0.3), (" Yes", 0.3), ("NO", 0.2)]));
        assert!((found.unwrap() - 0.75).abs() < 1e-6, "spellings add up");
        assert_eq!(score_of(&first_token("No", &[("No", 0.9)])), Ok(0.0));
        let neither = score_of(&first_token("Maybe", &[("Maybe", 0.9), ("Nothing", 0.1)]));
        assert!(neither.unwrap_err().contains("neither Yes nor No"));
        let without = score_of(&says("Yes"));
        assert!(without.unwrap_err().contains("without log-probabilities"));
    }

    #[test]
    fn a_number_is_the_first_match() {
        let read = |text: &str, lines: &str| {
            let config = config(&format!("read = \"number\"\n{lines}"));
            score(&of(&says(text), VlmRead::Number), config.expression().as_ref())
        };
        assert_eq!(read("I give 3.5, not 4", ""), Ok(3.5));
        assert_eq!(read("-2", ""), Ok(-2.0));
        let pattern = r"pattern = 'Final Score:\s*([\d.]+)'";
        assert_eq!(read("1. Good.\nFinal Score: 4.25", pattern), Ok(4.25));
        let error = read("a lovely fox", pattern).unwrap_err();
        assert!(error.contains("no match of the pattern") && error.contains("lovely"), "{error}");
        assert!(read("Final Score: 1.2.3", pattern).unwrap_err().contains("not a number"));
        assert!(read("1e99", "pattern = '.*'").unwrap_err().contains("the score is inf"));
    }

    #[test]
    fn a_preference_is_1_or_2() {
        let read = |text: &str, lines: &str| {
            let config = config(&format!("read = \"pair\"\n{lines}"));
            preferred(&of(&says(text), VlmRead::Pair), config.expression().as_ref())
        };
        assert_eq!((read("1", ""), read(" \"2\".\n", "")), (Ok(1), Ok(2)));
        assert!(read("Both are fine", "").unwrap_err().contains("expected the answer 1 or 2"));
        assert!(read("12", "").is_err() && read("Image 1", "").is_err());
        assert_eq!(read("I prefer Image 2 to 1", "pattern = 'prefer Image (\\d)'"), Ok(2));
        assert!(read("no", "pattern = '\\d'").unwrap_err().contains("no match"));
    }

    #[test]
    fn refusals_and_nonsense_are_reasons() {
        let reason = |body: &serde_json::Value| match of(body, VlmRead::Number) {
            Answer::None(reason) => reason,
            other => panic!("{other:?}"),
        };
        let refused =
            json!({ "choices": [{ "message": { "content": null, "refusal": "I can't" } }] });
        assert_eq!(reason(&refused), "the model refuses: I can't");
        let filtered = json!({ "choices": [{ "message": { "content": "" },
            "finish_reason": "content_filter" }] });
        assert!(reason(&filtered).contains("content filter"));
        let cut =
            json!({ "choices": [{ "message": { "content": "" }, "finish_reason": "length" }] });
        assert!(reason(&cut).contains("max_tokens"));
        assert!(reason(&json!({ "choices": [] })).contains("no choices"));
        assert!(reason(&json!([1])).contains("expected a chat completion"));
        let Answer::None(reason) = answer(b"<html>\x1b[2J", VlmRead::Pair) else { panic!() };
        assert_eq!(reason, "expected a chat completion, found \"<html>\\u{1b}[2J\"");
    }
}
