//! Whether images still have the bytes that were scored, by the computed scores of a folder.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::STORE;
use super::existing::{UsedScorer, used_scorers};
use super::store::{self, Key, Outcome};

/// The scorers of these metrics, as the manifest of a `scores.parquet` names them: what they are,
/// and where they computed.
pub(crate) fn scorers_of(manifest: &Value, metrics: &[String]) -> Vec<Value> {
    let scorers = used_scorers(manifest);
    let of = |name: &String| scorers.iter().find(|scorer| scorer.record.name == *name);
    let described = metrics.iter().filter_map(of).map(|scorer| {
        let mut record = serde_json::to_value(&scorer.record).unwrap_or_default();
        record["dtype"] = scorer.dtype.as_str().into();
        record["device"] = scorer.device.as_str().into();
        record
    });
    described.collect()
}

/// The scores that a folder holds by the bytes of images and captions, of one scorer.
#[derive(Debug)]
pub(crate) struct ScoredBytes {
    /// The index of the scorer in the list that was given.
    pub(crate) metric: usize,
    outcomes: HashMap<Key, Outcome>,
}

impl ScoredBytes {
    /// Those of the first of `metrics` whose computed scores are in `folder`; `None` if there are no
    /// such scores. `manifest` is that of the folder's `scores.parquet`.
    ///
    /// # Errors
    /// If a file of computed scores is damaged.
    pub(crate) fn open(
        folder: &Path,
        manifest: &Value,
        metrics: &[String],
    ) -> Result<Option<Self>> {
        let scorers = used_scorers(manifest);
        for (metric, name) in metrics.iter().enumerate() {
            let is_named = |scorer: &&UsedScorer| scorer.record.name == *name;
            let Some(scorer) = scorers.iter().find(is_named) else { continue };
            if let Some(outcomes) = store::read(&folder.join(STORE), scorer)? {
                return Ok(Some(Self { metric, outcomes }));
            }
        }
        Ok(None)
    }

    /// Whether an image with this checksum of its bytes has this score for this text.
    pub(crate) fn has(&self, image: &str, text: &str, score: f32) -> bool {
        let prompt = blake3::hash(text.as_bytes()).to_hex().to_string();
        let key = Key { image: image.to_owned(), prompt };
        let known = self.outcomes.get(&key);
        known.is_some_and(|known| *known == Ok(score))
    }
}
