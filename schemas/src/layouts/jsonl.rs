//! Lines of JSON, a pair each: `prompt, image_0, image_1` with `label_0` if there is one, or
//! `prompt, chosen, rejected`. Images are paths relative to the file.
//!
//! `caption` does for `prompt`; `pair_id`, `image_0_uid` and `image_1_uid` are taken if present.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::json::read;
use super::records::{Draft, Image};
use crate::columns::is_human_label;
use crate::pairs::LABELS;

#[derive(Deserialize)]
struct Record<'record> {
    #[serde(borrow, default, alias = "caption")]
    prompt: Option<Cow<'record, str>>,
    #[serde(borrow, default)]
    image_0: Option<Cow<'record, str>>,
    #[serde(borrow, default)]
    image_1: Option<Cow<'record, str>>,
    #[serde(borrow, default)]
    chosen: Option<Cow<'record, str>>,
    #[serde(borrow, default)]
    rejected: Option<Cow<'record, str>>,
    #[serde(default)]
    label_0: Value,
    #[serde(default, alias = "ranking_id")]
    pair_id: Value,
    #[serde(default)]
    image_0_uid: Value,
    #[serde(default)]
    image_1_uid: Value,
}

pub(super) fn pairs(record: &[u8]) -> Result<Vec<Draft>, String> {
    let record: Record<'_> = read(record)?;
    let chosen = record.chosen.is_some() || record.rejected.is_some();
    let (names, found) = match chosen {
        true => (["chosen", "rejected"], [record.chosen, record.rejected]),
        false => (["image_0", "image_1"], [record.image_0, record.image_1]),
    };
    let [first, second] = found;
    let image = |name: &str, path: Option<Cow<'_, str>>| match path {
        Some(path) => Image::Named(path.into()),
        None => Image::Absent(format!("{name} is null or not given")),
    };
    let [first_name, second_name] = names;
    Ok(vec![Draft {
        pair_id: identifier(&record.pair_id),
        caption: record.prompt.map(Into::into),
        images: [image(first_name, first), image(second_name, second)],
        uids: [identifier(&record.image_0_uid), identifier(&record.image_1_uid)],
        label_0: if chosen { Some(1.0) } else { label(&record.label_0)? },
        no_vote: None,
        is_winner_first: chosen,
    }])
}

/// A name: text, or the digits of a whole number.
pub(super) fn identifier(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// A human label.
pub(super) fn label(value: &Value) -> Result<Option<f64>, String> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Bool(first) => Some(f64::from(u8::from(*first))),
        Value::Number(number) => number.as_f64(),
        _ => None,
    };
    match number.filter(|&number| is_human_label(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(format!("label_0 is {value}, expected {LABELS}")),
    }
}
