//! What the scores of a folder already hold. A command that names only a part of it keeps the rest.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use schemas::evaluation::KEY_MANIFEST;
use schemas::scores::{ScoreRow, ScoresFile};
use scorers::{ScorerRecord, ScorersManifest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SCORES;
use crate::prompts::Prompt;

/// In the manifest of the scores: the scorers of the command, and those of earlier commands.
pub(super) const KEY_SCORERS: &str = "scoring";
pub(super) const KEY_EARLIER_SCORERS: &str = "earlier_scorers";

/// A scorer, and where it computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct UsedScorer {
    pub(super) record: ScorerRecord,
    pub(super) dtype: String,
    pub(super) device: String,
}

/// What identifies an image in the scores: model, set, prompt id, seed.
type ImageKey<'row> = (&'row str, &'row str, &'row str, i64);

/// The rows of an earlier `scores.parquet`; empty if there is no such file.
#[derive(Debug, Default)]
pub(super) struct Existing {
    rows: Vec<ScoreRow>,
    /// The scorers that its manifest names; empty if another program wrote the file.
    scorers: Vec<UsedScorer>,
}

/// [`Existing`] by image.
#[derive(Debug)]
pub(super) struct ExistingIndex<'row> {
    images: HashMap<ImageKey<'row>, Vec<&'row ScoreRow>>,
}

impl Existing {
    /// Reads the scores of a folder.
    pub(super) fn read(out: &Path) -> Result<Self> {
        let path = out.join(SCORES);
        if !path.exists() {
            return Ok(Self::default());
        }
        let hint = || format!("{}: hint: choose another --out, or move it away", path.display());
        let file = ScoresFile::open(&path).with_context(hint)?;
        let manifest = file.metadata().get(KEY_MANIFEST);
        let manifest: Option<Value> = manifest.and_then(|text| serde_json::from_str(text).ok());
        let scorers = manifest.map(|manifest| used_scorers(&manifest)).unwrap_or_default();
        Ok(Self { rows: file.read().with_context(hint)?, scorers })
    }

    /// Keeps only these rows.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&ScoreRow) -> bool) {
        self.rows.retain(|row| stays(row));
    }

    pub(super) fn models(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.model.as_str()))
    }

    pub(super) fn metrics(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.metric.as_str()))
    }

    /// The prompts, in the order of the rows.
    pub(super) fn prompts(&self) -> Vec<Prompt> {
        let mut seen = HashSet::new();
        let mut prompts = Vec::new();
        for row in &self.rows {
            if seen.insert((row.prompt_set.as_str(), row.prompt_id.as_str())) {
                prompts.push(Prompt {
                    id: row.prompt_id.clone(),
                    text: row.prompt.clone(),
                    category: row.category.clone(),
                    set: row.prompt_set.clone(),
                });
            }
        }
        prompts
    }

    /// The scorer behind a metric.
    pub(super) fn scorer(&self, metric: &str) -> Option<&UsedScorer> {
        self.scorers.iter().find(|scorer| scorer.record.name == metric)
    }

    pub(super) fn index(&self) -> ExistingIndex<'_> {
        let mut images = HashMap::<ImageKey<'_>, Vec<&ScoreRow>>::new();
        for row in &self.rows {
            images
                .entry((&row.model, &row.prompt_set, &row.prompt_id, row.seed))
                .or_default()
                .push(row);
        }
        ExistingIndex { images }
    }
}

impl<'row> ExistingIndex<'row> {
    /// The rows of an image, one for each metric.
    pub(super) fn rows<'a>(
        &'a self,
        model: &'a str,
        prompt: &'a Prompt,
        seed: u64,
    ) -> &'a [&'a ScoreRow] {
        let seed = i64::try_from(seed).unwrap_or(i64::MAX);
        let image = (model, prompt.set.as_str(), prompt.id.as_str(), seed);
        self.images.get(&image).map_or(&[], Vec::as_slice)
    }

    /// The seeds of a model.
    pub(super) fn seeds(&self, model: &str) -> impl Iterator<Item = u64> {
        let of_model = self.images.keys().filter(move |(other, ..)| *other == model);
        of_model.filter_map(|(.., seed)| u64::try_from(*seed).ok())
    }
}

/// The scorers of a manifest that an evaluation wrote.
pub(super) fn used_scorers(manifest: &Value) -> Vec<UsedScorer> {
    let now: Option<ScorersManifest> = serde_json::from_value(manifest[KEY_SCORERS].clone()).ok();
    let now = now.into_iter().flat_map(|ScorersManifest { scorers, dtype, device, .. }| {
        scorers.into_iter().map(move |record| UsedScorer {
            record,
            dtype: dtype.clone(),
            device: device.clone(),
        })
    });
    let earlier: Vec<UsedScorer> =
        serde_json::from_value(manifest[KEY_EARLIER_SCORERS].clone()).unwrap_or_default();
    now.chain(earlier).collect()
}

fn distinct<'row>(names: impl Iterator<Item = &'row str>) -> Vec<&'row str> {
    let mut found: Vec<&str> = Vec::new();
    for name in names {
        // Adjacent rows mostly have the same name, and there are few names.
        if found.last() != Some(&name) && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// Names in the order of the tables: that of the command if it names all existing ones, else that
/// of the existing ones, with new ones after them.
pub(super) fn ordered<'name>(named: &[&'name str], existing: &[&'name str]) -> Vec<&'name str> {
    if existing.iter().all(|name| named.contains(name)) {
        return named.to_vec();
    }
    let new = named.iter().filter(|name| !existing.contains(name));
    existing.iter().chain(new).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::ordered;

    #[test]
    fn existing_names_keep_their_order() {
        assert_eq!(ordered(&["b", "a"], &[]), ["b", "a"]);
        assert_eq!(ordered(&["b", "a", "c"], &["a", "b"]), ["b", "a", "c"]);
        assert_eq!(ordered(&["a"], &["b", "a"]), ["b", "a"]);
        assert_eq!(ordered(&["d", "a", "c"], &["b", "a"]), ["b", "a", "d", "c"]);
    }
}
