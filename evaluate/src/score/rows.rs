//! The rows of `scores.parquet`: by model, prompt of a set, seed and metric.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Result;
use schemas::evaluation::{KEY_FINGERPRINT, KEY_MANIFEST};
use schemas::scores::{ScoreRow, ScoresWriter};
use scorers::ScorersManifest;
use serde_json::json;

use super::existing::{Existing, KEY_EARLIER_SCORERS, KEY_SCORERS, UsedScorer, ordered};
use super::images::{ModelImages, Subject};
use super::scope::Scope;
use super::store::{self, Key, Outcome, Store};
use super::{Checksum, SCORES, key};
use crate::generate;
use crate::prompts::Prompt;

/// A metric of the file.
enum Metric<'run> {
    /// The command names its scorer.
    Named { name: &'run str, store: &'run Store, is_unchanged: bool },
    /// An earlier command did.
    Existing {
        name: &'run str,
        outcomes: Option<HashMap<Key, Outcome>>,
        scorer: Option<&'run UsedScorer>,
    },
}

impl Metric<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Named { name, .. } | Self::Existing { name, .. } => name,
        }
    }

    /// The score of an image, or why it has none; `None` if it gets no row. `existing` is the row
    /// of an earlier command.
    fn outcome(
        &self,
        subject: &Subject<'_>,
        checksum: &Checksum,
        existing: Option<&ScoreRow>,
    ) -> Option<Outcome> {
        let copied = || {
            let row = existing?;
            Some(row.score.ok_or_else(|| row.error.clone().unwrap_or_default()))
        };
        let is_there = checksum.as_ref().ok().map(|hash| key(hash, subject.prompt));
        match (self, is_there) {
            (Self::Named { is_unchanged, .. }, _) if subject.is_gone => {
                copied().filter(|_| *is_unchanged)
            }
            (Self::Existing { .. }, _) if subject.is_gone => copied(),
            (Self::Named { store, .. }, Some(key)) => {
                let outcome = store.get(&key).cloned();
                Some(outcome.unwrap_or_else(|| Err("not scored".to_owned())))
            }
            (Self::Named { .. }, None) => Some(Err(checksum.clone().err().unwrap_or_default())),
            // The row may be of other bytes than the file has now; the store knows the score by
            // bytes.
            (Self::Existing { outcomes: Some(outcomes), .. }, Some(key)) => {
                existing.and_then(|_| outcomes.get(&key)).cloned()
            }
            // Without the store, nothing shows whether the file has changed.
            (Self::Existing { outcomes: None, .. }, Some(_)) => copied(),
            (Self::Existing { .. }, None) => None,
        }
    }
}

/// The table of a run, to be written.
pub(super) struct Table<'run> {
    pub(super) rows: Vec<ScoreRow>,
    /// How many scores of earlier commands belong to images that have changed.
    outdated: usize,
    metrics: Vec<Metric<'run>>,
}

impl<'run> Table<'run> {
    pub(super) fn new(
        scope: &Scope<'_>,
        images: &[ModelImages<'_>],
        manifest: &'run ScorersManifest,
        stores: &'run [Store],
        existing: &'run Existing,
    ) -> Result<Self> {
        let metrics = metrics(scope.out, manifest, stores, existing)?;
        let (mut rows, mut outdated) = (Vec::new(), 0);
        for ModelImages { collection, subjects, checksums } in images {
            let mut of_prompt = HashMap::<&str, Vec<(&Subject<'_>, &Checksum)>>::new();
            for (subject, checksum) in subjects.iter().zip(checksums) {
                of_prompt.entry(&subject.prompt.id).or_default().push((subject, checksum));
            }
            for prompt in &scope.prompts {
                for (subject, checksum) in of_prompt.get(prompt.id.as_str()).into_iter().flatten() {
                    if !scope.has(collection, prompt, subject.seed) {
                        continue;
                    }
                    let existing = scope.existing.rows(subject.model, prompt, subject.seed);
                    for metric in &metrics {
                        let name = metric.name();
                        let existing = existing.iter().find(|row| row.metric == name).copied();
                        match metric.outcome(subject, checksum, existing) {
                            Some(outcome) => {
                                let image = image(scope.out, subject, existing);
                                rows.push(row(subject, prompt, name, outcome, image));
                            }
                            None => outdated += usize::from(existing.is_some()),
                        }
                    }
                }
            }
        }
        Ok(Self { rows, outdated, metrics })
    }

    /// Warns about earlier scores of images that have changed.
    pub(super) fn warn_outdated(&self) {
        if self.outdated > 0 {
            tracing::warn!(
                "{SCORES} drops {} earlier scores, because their images have changed; hint: name \
                 their scorers to compute them again",
                self.outdated
            );
        }
    }

    /// Writes the file, with what its scores depend on.
    pub(super) fn write(
        self,
        out: &Path,
        prompts: &[&Prompt],
        manifest: &ScorersManifest,
    ) -> Result<()> {
        let mut sets = BTreeMap::<&str, Vec<(&str, &str)>>::new();
        for prompt in prompts {
            sets.entry(&prompt.set).or_default().push((&prompt.id, &prompt.text));
        }
        let mut hashes = serde_json::Map::new();
        for (set, prompts) in &sets {
            let digest = runkit::manifest::fingerprint(prompts)?;
            hashes.insert((*set).to_owned(), json!({ "prompts": prompts.len(), "digest": digest }));
        }
        let (scorers, earlier) = self.used_scorers(manifest);
        let mut manifest = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "prompt_sets": hashes,
            "images": generate::Manifest::of_folder(out)?,
        });
        manifest[KEY_SCORERS] = serde_json::to_value(scorers)?;
        if !earlier.is_empty() {
            manifest[KEY_EARLIER_SCORERS] = serde_json::to_value(earlier)?;
        }
        let metadata = BTreeMap::from([
            (KEY_FINGERPRINT.to_owned(), runkit::manifest::fingerprint(&manifest)?),
            (KEY_MANIFEST.to_owned(), runkit::manifest::canonical_json(&manifest)?),
        ]);
        let mut writer = ScoresWriter::create(out.join(SCORES), &metadata)?;
        self.rows.into_iter().try_for_each(|row| writer.write(row))?;
        Ok(writer.finish()?)
    }

    /// The scorers of all metrics with the dtype and device of this command, and the others.
    fn used_scorers(&self, manifest: &ScorersManifest) -> (ScorersManifest, Vec<UsedScorer>) {
        let mut all = ScorersManifest { scorers: Vec::new(), ..manifest.clone() };
        let mut others = Vec::new();
        for metric in &self.metrics {
            match metric {
                Metric::Named { name, .. } => {
                    let record = manifest.scorers.iter().find(|record| record.name == *name);
                    all.scorers.extend(record.cloned());
                }
                Metric::Existing { scorer: Some(scorer), .. } => {
                    if (&scorer.dtype, &scorer.device) == (&manifest.dtype, &manifest.device) {
                        all.scorers.push(scorer.record.clone());
                    } else {
                        others.push((*scorer).clone());
                    }
                }
                Metric::Existing { scorer: None, .. } => {}
            }
        }
        (all, others)
    }
}

/// The metrics in their order.
fn metrics<'run>(
    out: &Path,
    manifest: &'run ScorersManifest,
    stores: &'run [Store],
    existing: &'run Existing,
) -> Result<Vec<Metric<'run>>> {
    let named: Vec<&str> = manifest.scorers.iter().map(|record| record.name.as_str()).collect();
    let metric = |name: &'run str| {
        let scorer = existing.scorer(name);
        let records = manifest.scorers.iter().zip(stores);
        if let Some((record, store)) = records.into_iter().find(|(record, _)| record.name == name) {
            let is_unchanged = scorer.is_some_and(|scorer| {
                (&scorer.record, &scorer.dtype, &scorer.device)
                    == (record, &manifest.dtype, &manifest.device)
            });
            return Ok(Metric::Named { name, store, is_unchanged });
        }
        let folder = out.join(super::STORE);
        let outcomes = match scorer {
            Some(scorer) => store::read(&folder, scorer)?,
            None => None,
        };
        Ok(Metric::Existing { name, outcomes, scorer })
    };
    ordered(&named, &existing.metrics()).into_iter().map(metric).collect()
}

fn row(
    subject: &Subject<'_>,
    prompt: &Prompt,
    metric: &str,
    outcome: Outcome,
    image: String,
) -> ScoreRow {
    ScoreRow {
        model: subject.model.to_owned(),
        prompt_set: prompt.set.clone(),
        prompt_id: prompt.id.clone(),
        prompt: prompt.text.clone(),
        category: prompt.category.clone(),
        seed: i64::try_from(subject.seed).unwrap_or(i64::MAX),
        metric: metric.to_owned(),
        score: outcome.as_ref().ok().copied(),
        image,
        error: outcome.err(),
    }
}

/// The path of an image from the folder of the scores, or an absolute one.
fn image(out: &Path, subject: &Subject<'_>, existing: Option<&ScoreRow>) -> String {
    let path = match (&subject.path, existing) {
        (None, Some(existing)) => return existing.image.clone(),
        (None, None) => {
            let folder = generate::images_folder(Path::new("")).join(subject.model);
            folder.join(&subject.prompt.id).join(format!("{}.png", subject.seed))
        }
        (Some(path), _) => match path.strip_prefix(out) {
            Ok(inside) => inside.to_owned(),
            Err(_) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        },
    };
    path.to_string_lossy().into_owned()
}
