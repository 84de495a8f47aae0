//! Scores that are taken over from labels of an earlier run: those that `--reuse` names, or those
//! under the output's own name if the pairs have only become more.
//!
//! A score is taken over if this run would compute the very same number: the scorer's record is
//! equal in every field, so are dtype, device, batch size and unit size, the pairs begin with those
//! of the earlier run (files by their fingerprints, ids, captions, uids and human labels by their
//! checksum), and the batch and the group of captions that it was computed in are the same
//! ([`Plan::units_of_first`]). All images are read and hashed as ever, so that a score goes to equal
//! bytes only. A score that failed is computed anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use arrow::array::Array as _;
use runkit::manifest::differences;
use schemas::labels::{KEY_MANIFEST, LabelsFile};
use schemas::pairs::{FileRecord, InputRecord};
use scorers::MemoryLimits;
use serde_json::{Value, json};

use super::manifest::{KEY_MEMORY, Manifest};
use super::plan::Plan;

/// The fields beside the scorers' records on which a score depends.
const SETTINGS: [&str; 5] = ["crate_version", "dtype", "device", "batch_size", "unit_pairs"];
/// At most this many differing fields are named.
const NAMED: usize = 3;

/// An earlier run.
#[derive(Debug)]
pub(super) struct Reuse {
    labels: LabelsFile,
    /// Of each unit whether it has the batches of that run.
    units: Vec<bool>,
    /// Of each scorer where it stands in the labels, or why its scores are computed anew.
    scorers: Vec<std::result::Result<usize, String>>,
    /// What the labels say of memory that ran out.
    pub(super) memory: MemoryLimits,
}

/// What `relabel check` says of scores that are taken over.
#[derive(Debug, Clone)]
pub struct Reused {
    /// The labels that have them.
    pub labels: PathBuf,
    /// Units whose scores can be taken over.
    pub units: usize,
    /// Of each scorer, in column order, why its scores are computed anew; `None` if they are not.
    pub anew: Vec<(String, Option<String>)>,
}

/// How many first rows `labels` are of, if they are labels of ours.
pub(super) fn rows_of(manifest: &Value) -> u64 {
    manifest["input"]["rows"].as_u64().unwrap_or(0)
}

/// The manifest of the labels that `--reuse` names.
///
/// # Errors
/// If the file is not labels with a manifest.
pub(super) fn open(path: &Path) -> Result<(LabelsFile, Value)> {
    let labels = LabelsFile::open(path)?;
    let manifest = labels.metadata().get(KEY_MANIFEST);
    let manifest = manifest.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(manifest) = manifest.filter(|it| it.get("scorers").is_some()) else {
        bail!(
            "--reuse {}: expected labels of relabel score, found labels without a manifest; hint: \
             relabel join puts the scores of two files side by side",
            locations::shown(path).display()
        );
    };
    Ok((labels, manifest))
}

/// The number of first rows that are the whole input of an earlier run.
///
/// # Errors
/// What differs, in a sentence's end.
pub(super) fn same_first_rows(
    earlier: &Value,
    manifest: &Manifest,
    plan: &Plan,
) -> std::result::Result<u64, String> {
    let before = same_first_files(earlier, manifest)?;
    let content = match before.rows == manifest.input.rows {
        true => manifest.input.content.as_ref(),
        false => plan.marked.iter().find(|(rows, _)| *rows == before.rows).map(|(_, it)| it),
    };
    match before.content.is_some() && before.content.as_ref() == content {
        true => Ok(before.rows),
        false => Err(differing("input.content", &json!(before.content), &json!(content))),
    }
}

/// The pairs of an earlier run, if its files are the first of this one's.
///
/// # Errors
/// What differs, in a sentence's end.
pub(super) fn same_first_files(
    earlier: &Value,
    manifest: &Manifest,
) -> std::result::Result<InputRecord, String> {
    let before: InputRecord = serde_json::from_value(earlier["input"].clone())
        .map_err(|_| "its manifest does not say which pairs it is of".to_owned())?;
    let now = &manifest.input;
    if before.rows > now.rows {
        return Err(differing("input.rows", &json!(before.rows), &json!(now.rows)));
    }
    for (index, old) in before.files.iter().enumerate() {
        let is_last = index + 1 == before.files.len();
        let new = now.files.get(index).cloned().map(|new| FileRecord {
            // A limit may have ended in it.
            rows: if is_last && new.rows > old.rows { old.rows } else { new.rows },
            ..new
        });
        if new.as_ref() != Some(old) {
            return Err(differing("input.files", &json!(old), &json!(new)));
        }
    }
    if before.dealing.is_some() && before.dealing != now.dealing {
        return Err(differing("input.dealing", &json!(before.dealing), &json!(now.dealing)));
    }
    Ok(before)
}

fn differing(field: &str, old: &Value, new: &Value) -> String {
    let found = differences(&json!({ field: old }), &json!({ field: new }));
    named(found.iter().map(ToString::to_string))
}

/// Whether this run is an earlier one over more pairs: nothing else differs.
pub(super) fn has_grown(earlier: &Value, manifest: &Manifest, plan: &Plan) -> Result<bool> {
    Ok(is_same_but_for_pairs(earlier, manifest)?
        && same_first_rows(earlier, manifest, plan).is_ok())
}

/// Whether an earlier run differs in its pairs alone.
pub(super) fn is_same_but_for_pairs(earlier: &Value, manifest: &Manifest) -> Result<bool> {
    let without_pairs = |mut manifest: Value| {
        if let Some(fields) = manifest.as_object_mut() {
            for name in ["input", "limit", "versions"] {
                fields.remove(name);
            }
        }
        manifest
    };
    let now = serde_json::to_value(manifest)?;
    Ok(differences(&without_pairs(earlier.clone()), &without_pairs(now)).is_empty())
}

impl Reuse {
    /// Compares this run with the one that made the labels at `path`.
    ///
    /// # Errors
    /// If the labels cannot be read.
    pub(super) fn of(
        path: &Path,
        manifest: &Manifest,
        plan: &Plan,
        unit_pairs: u64,
    ) -> Result<Self> {
        let (labels, earlier) = open(path)?;
        let now = serde_json::to_value(manifest)?;
        let mut rows = None;
        let mut scorers = Vec::new();
        for (name, record) in manifest.voters.iter().zip(&manifest.scorers.scorers) {
            let compared = holder_of(&earlier, name).and_then(|(holder, old)| {
                let first = same_first_rows(holder, manifest, plan)?;
                same_settings(holder, &now)?;
                let new = serde_json::to_value(record).map_err(|error| error.to_string())?;
                let found = differences(old, &new);
                if !found.is_empty() {
                    return Err(named(found.iter().map(ToString::to_string)));
                }
                rows = Some(first);
                let known = labels.schema().scorers().iter().position(|other| other == name);
                known.ok_or_else(|| "it has no columns there".to_owned())
            });
            scorers.push(compared);
        }
        let units = match rows {
            Some(rows) if u64::try_from(labels.num_rows()) == Ok(rows) => {
                plan.units_of_first(rows, unit_pairs)
            }
            _ => vec![false; plan.units.len()],
        };
        let memory = labels.metadata().get(KEY_MEMORY);
        let memory = memory.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(Self { labels, units, scorers, memory })
    }

    /// Whether the scores of a scorer are taken over in a unit.
    pub(super) fn takes(&self, unit: usize, scorer: usize) -> bool {
        self.units[unit] && self.scorers[scorer].is_ok()
    }

    /// What is taken over.
    pub(super) fn summary(&self, names: &[String]) -> Reused {
        let anew =
            names.iter().cloned().zip(self.scorers.iter().map(|it| it.as_ref().err().cloned()));
        Reused {
            labels: locations::shown(self.labels.path()),
            units: self.units.iter().filter(|taken| **taken).count(),
            anew: anew.collect(),
        }
    }

    /// Calls `each` with every row and each of `scorers` (with their names) whose votes are taken
    /// over, and its vote there, or why it has none.
    pub(super) fn for_each_vote(
        &self,
        scorers: &[(usize, &str)],
        mut each: impl FnMut(u64, usize, std::result::Result<i8, String>) -> Result<()>,
    ) -> Result<()> {
        let path = locations::shown(self.labels.path());
        let taken: Vec<(usize, &str, usize)> = scorers
            .iter()
            .filter_map(|&(scorer, name)| {
                let column = *self.scorers.get(scorer)?.as_ref().ok()?;
                Some((scorer, name, column))
            })
            .collect();
        let mut number = 0;
        for batch in self.labels.batches()? {
            let batch = batch.with_context(|| format!("reading {}", path.display()))?;
            for row in 0..batch.num_rows() {
                for &(scorer, name, column) in &taken {
                    let votes = batch.votes(column);
                    let errors = batch.error();
                    let vote = match votes.is_valid(row) {
                        true => Ok(votes.value(row)),
                        false => {
                            let error = errors.is_valid(row).then(|| errors.value(row));
                            let reason = error.and_then(|error| reason_in(error, name));
                            Err(reason.unwrap_or_else(|| "gave no vote".to_owned()))
                        }
                    };
                    each(number, scorer, vote)?;
                }
                number += 1;
            }
        }
        Ok(())
    }

    /// Calls `each` with the number of every row and with its scores by scorer and position. Rows in
    /// which a scorer has no score of an image have `None`.
    pub(super) fn for_each_row(
        &self,
        mut each: impl FnMut(u64, &dyn Fn(usize, usize) -> Option<f32>) -> Result<()>,
    ) -> Result<()> {
        let path = locations::shown(self.labels.path());
        let mut number = 0;
        for batch in self.labels.batches()? {
            let batch = batch.with_context(|| format!("reading {}", path.display()))?;
            for row in 0..batch.num_rows() {
                each(number, &|scorer, position| {
                    let column = *self.scorers.get(scorer)?.as_ref().ok()?;
                    let scores = batch.scores(column)[position];
                    scores.is_valid(row).then(|| scores.value(row))
                })?;
                number += 1;
            }
        }
        Ok(())
    }
}

/// Why a scorer failed, from the error of a row, which ends with the scorers that compare.
fn reason_in(error: &str, scorer: &str) -> Option<String> {
    let head = format!("scorer `{scorer}` ");
    let from = error.match_indices(&head).map(|(at, _)| at).find(|&at| {
        let before = &error[..at];
        before.is_empty() || before.ends_with("; ")
    })?;
    let rest = &error[from + head.len()..];
    Some(rest.split("; scorer `").next().unwrap_or(rest).to_owned())
}

impl Reused {
    /// Logs it, a line for each scorer.
    pub(super) fn log(&self, units: usize) {
        let labels = self.labels.display();
        for (name, anew) in &self.anew {
            match anew {
                None => tracing::info!(
                    scorer = name,
                    units = self.units,
                    "{name}: the scores of {} of {units} units are taken over from {labels}",
                    self.units
                ),
                Some(why) => {
                    tracing::info!(
                        scorer = name,
                        "{name}: scored anew, {labels} has others: {why}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reason_in;

    #[test]
    fn the_reason_of_a_missing_vote_is_found_in_the_error_of_its_row() {
        let error = "image_0: scorer `clip` gave NaN; scorer `one` gave no vote: a; b; scorer `two` \
                     gave no vote: c";
        assert_eq!(reason_in(error, "one").unwrap(), "gave no vote: a; b");
        assert_eq!(reason_in(error, "two").unwrap(), "gave no vote: c");
        assert_eq!(reason_in(error, "clip"), None, "a score that failed is not a vote");
        assert_eq!(reason_in("scorer `one` gave no vote", "one").unwrap(), "gave no vote");
    }
}

/// The record of a scorer in a manifest, and the manifest of the run that scored it: files that were
/// joined have several.
fn holder_of<'manifest>(
    manifest: &'manifest Value,
    name: &str,
) -> std::result::Result<(&'manifest Value, &'manifest Value), String> {
    let runs: BTreeMap<usize, &Value> = match manifest["joined"].as_array() {
        Some(joined) => joined.iter().enumerate().collect(),
        None => [(0, manifest)].into(),
    };
    for run in runs.into_values() {
        if run.get("joined").is_some() {
            if let Ok(found) = holder_of(run, name) {
                return Ok(found);
            }
            continue;
        }
        let scorers = run["scorers"].as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(record) = scorers.iter().find(|record| record["name"] == name) {
            return Ok((run, record));
        }
    }
    Err("it is not there".to_owned())
}

/// Compares what scores depend on besides the scorer's record.
fn same_settings(earlier: &Value, now: &Value) -> std::result::Result<(), String> {
    let of = |manifest: &Value| {
        let fields = SETTINGS.iter().filter_map(|&name| Some((name, manifest.get(name)?.clone())));
        fields.collect::<BTreeMap<&str, Value>>()
    };
    let found = differences(&json!(of(earlier)), &json!(of(now)));
    if found.is_empty() { Ok(()) } else { Err(named(found.iter().map(ToString::to_string))) }
}

/// The first few of many.
fn named(differences: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = differences.collect();
    let more = all.len().saturating_sub(NAMED);
    let mut text = all.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
