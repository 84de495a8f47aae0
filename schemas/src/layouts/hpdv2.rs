//! HPDv2 (`ymhao/HPDv2`): `train.json` with `human_preference` and `file_path`, `test.json` with
//! `rank` and `image_path`; and the pairs of any images that were ranked together.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;

use super::MAX_RANKED_IMAGES;
use super::json::read;
use super::records::{Draft, Image};

/// The folders in which a bare name may lie.
pub(super) const FOLDERS: [&str; 2] = ["train", "test"];

#[derive(Deserialize)]
struct Record<'record> {
    #[serde(borrow, default)]
    prompt: Option<Cow<'record, str>>,
    #[serde(borrow, alias = "image_path")]
    file_path: Vec<Cow<'record, str>>,
    #[serde(default)]
    rank: Option<Vec<Option<f64>>>,
    #[serde(default)]
    human_preference: Option<Vec<Option<f64>>>,
}

pub(super) fn pairs(record: &[u8]) -> Result<Vec<Draft>, String> {
    let record: Record<'_> = read(record)?;
    let preferred = |numbers: Vec<Option<f64>>| -> Vec<Option<f64>> {
        numbers.into_iter().map(|number| number.map(|number| -number)).collect()
    };
    let ranks = record.rank.or(record.human_preference.map(preferred));
    let ranks = ranks.ok_or("expected rank or human_preference, found neither")?;
    let names: Vec<Arc<str>> = record.file_path.into_iter().map(Into::into).collect();
    if ranks.len() != names.len() {
        return Err(format!(
            "expected a rank for each image, found {} of {}",
            ranks.len(),
            names.len()
        ));
    }
    ranked(record.prompt.map(Into::into).as_ref(), &names, &ranks)
}

/// Every pair of images of different rank, in the order of (i, j). A lower rank is better; an image
/// without a rank is in no pair.
pub(super) fn ranked(
    caption: Option<&Arc<str>>,
    names: &[Arc<str>],
    ranks: &[Option<f64>],
) -> Result<Vec<Draft>, String> {
    if names.len() > MAX_RANKED_IMAGES {
        return Err(format!(
            "expected at most {MAX_RANKED_IMAGES} images of one prompt, found {}",
            names.len()
        ));
    }
    let mut pairs = Vec::new();
    let images: Vec<(&Arc<str>, f64)> =
        names.iter().zip(ranks).filter_map(|(name, rank)| Some((name, (*rank)?))).collect();
    for (index, (first, one)) in images.iter().enumerate() {
        for (second, other) in images.iter().skip(index + 1) {
            if one == other || one.is_nan() || other.is_nan() {
                continue;
            }
            pairs.push(Draft {
                pair_id: None,
                caption: caption.cloned(),
                images: [Image::Named(Arc::clone(first)), Image::Named(Arc::clone(second))],
                uids: [None, None],
                label_0: Some(if one < other { 1.0 } else { 0.0 }),
                no_vote: None,
                is_winner_first: false,
            });
        }
    }
    Ok(pairs)
}
