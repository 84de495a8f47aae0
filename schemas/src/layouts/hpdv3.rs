//! HPDv3 and HPDv3++ (`MizzenAI/HPDv3`, `Junjun2333/HPDv3-PlusPlus`): `path1` is the preferred
//! image.
//!
//! `choice_dist` holds how many annotators chose each image, null for pairs from other sources. Two
//! equal numbers are a tie, label 0.5. `confidence` changes no label and leaves no pair out: HPSv3
//! trained on pairs of at least 0.95, which is a choice of pairs that its user makes.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::json::read;
use super::records::{Draft, Image};

#[derive(Deserialize)]
struct Record<'record> {
    #[serde(borrow, default)]
    prompt: Option<Cow<'record, str>>,
    #[serde(borrow)]
    path1: Option<Cow<'record, str>>,
    #[serde(borrow)]
    path2: Option<Cow<'record, str>>,
    #[serde(default)]
    choice_dist: Value,
}

pub(super) fn pairs(record: &[u8]) -> Result<Vec<Draft>, String> {
    let record: Record<'_> = read(record)?;
    let counts: Vec<Option<f64>> =
        record.choice_dist.as_array().into_iter().flatten().map(Value::as_f64).collect();
    let is_tie = matches!(counts.as_slice(), [Some(first), Some(second)] if first == second);
    let image = |name: &str, path: Option<Cow<'_, str>>| match path {
        Some(path) => Image::Named(path.into()),
        None => Image::Absent(format!("{name} is null")),
    };
    Ok(vec![Draft {
        pair_id: None,
        caption: record.prompt.map(Into::into),
        images: [image("path1", record.path1), image("path2", record.path2)],
        uids: [None, None],
        label_0: Some(if is_tie { 0.5 } else { 1.0 }),
        no_vote: None,
        is_winner_first: true,
    }])
}
