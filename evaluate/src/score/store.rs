//! The folder of computed scores, `score-store/`: a killed run resumes from it, and a larger one
//! computes only what is new.
//!
//! One file of JSON lines for each metric, named by the metric and a fingerprint of everything its
//! scores depend on but the image and the caption: weights, preprocessing, tokenizer, dtype,
//! device. A line has a checksum of the image's bytes, one of the caption, and the score. Lines are
//! added batch by batch and synced; the next start drops a line that a kill left incomplete.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scorers::{ScorerRecord, ScorersManifest};
use serde::{Deserialize, Serialize};

use super::existing::UsedScorer;

/// Letters of a fingerprint in a file's name.
const SHORT: usize = 16;

/// What identifies a score: an image and a caption.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Key {
    /// BLAKE3 of the image's bytes.
    pub(super) image: String,
    /// BLAKE3 of the caption.
    pub(super) prompt: String,
}

/// A score, or the reason why it is missing.
pub(super) type Outcome = Result<f32, String>;

/// A line. The score is a 32-bit number written as the 64-bit number it equals, so that it comes
/// back as it was.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    outcome: Written,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    Score(f64),
    Error(String),
}

/// The scores of one metric.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    file: File,
    outcomes: HashMap<Key, Outcome>,
}

/// The file with the scores of a scorer.
fn path(folder: &Path, record: &ScorerRecord, dtype: &str, device: &str) -> Result<PathBuf> {
    let fingerprint = runkit::manifest::fingerprint(&(record, dtype, device))?;
    let short = fingerprint.get(..SHORT).unwrap_or(&fingerprint);
    Ok(folder.join(format!("{}-{short}.jsonl", record.name)))
}

/// The scores in a file's text, and how many of its bytes are whole lines.
fn parse(path: &Path, text: &[u8]) -> Result<(HashMap<Key, Outcome>, usize)> {
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut outcomes = HashMap::new();
    for (number, line) in (1..).zip(text[..whole].split(|&byte| byte == b'\n')) {
        if line.is_empty() {
            continue;
        }
        let line: Line = serde_json::from_slice(line).with_context(|| {
            format!(
                "{}:{number}: not a score; hint: remove the file, and its scores are computed again",
                path.display()
            )
        })?;
        let outcome = match line.outcome {
            Written::Score(score) => Ok(score as f32),
            Written::Error(reason) => Err(reason),
        };
        outcomes.insert(line.key, outcome);
    }
    Ok((outcomes, whole))
}

/// The scores of a scorer that this run does not use; `None` if they have no file.
pub(super) fn read(folder: &Path, scorer: &UsedScorer) -> Result<Option<HashMap<Key, Outcome>>> {
    let path = path(folder, &scorer.record, &scorer.dtype, &scorer.device)?;
    match std::fs::read(&path) {
        Ok(text) => Ok(Some(parse(&path, &text)?.0)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

/// The scores of each scorer of `manifest`; empty if they have no file. Writes nothing.
pub(super) fn read_all(
    folder: &Path,
    manifest: &ScorersManifest,
) -> Result<Vec<HashMap<Key, Outcome>>> {
    let read = |record: &ScorerRecord| {
        let (dtype, device) = (manifest.dtype.clone(), manifest.device.clone());
        let scorer = UsedScorer { record: record.clone(), dtype, device };
        Ok(read(folder, &scorer)?.unwrap_or_default())
    };
    manifest.scorers.iter().map(read).collect()
}

impl Store {
    /// Opens the scores of each scorer of `manifest` below `folder`, in its order.
    pub(super) fn open_all(folder: &Path, manifest: &ScorersManifest) -> Result<Vec<Self>> {
        runkit::files::create_folder(folder)?;
        let scorers = manifest.scorers.iter();
        let open = |record| Self::open(path(folder, record, &manifest.dtype, &manifest.device)?);
        scorers.map(open).collect()
    }

    fn open(path: PathBuf) -> Result<Self> {
        let context = || format!("{}: cannot be opened", path.display());
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.with_context(context)?;
        let text = std::fs::read(&path).with_context(context)?;
        let (outcomes, whole) = parse(&path, &text)?;
        if whole < text.len() {
            file.set_len(whole as u64).with_context(context)?;
        }
        Ok(Self { path, file, outcomes })
    }

    /// The score of `key`, if it is known.
    pub(super) fn get(&self, key: &Key) -> Option<&Outcome> {
        self.outcomes.get(key)
    }

    /// Adds the scores of a batch and syncs the file. Known scores stay.
    pub(super) fn add(&mut self, outcomes: impl Iterator<Item = (Key, Outcome)>) -> Result<()> {
        let mut text = Vec::new();
        for (key, outcome) in outcomes {
            if self.outcomes.contains_key(&key) {
                continue;
            }
            let outcome = outcome.and_then(|score| match score.is_finite() {
                true => Ok(score),
                false => Err(format!("the score is {score}")),
            });
            let written = match &outcome {
                Ok(score) => Written::Score(f64::from(*score)),
                Err(reason) => Written::Error(reason.clone()),
            };
            let line = Line { key, outcome: written };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
            self.outcomes.insert(line.key, outcome);
        }
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("{}: cannot be written", self.path.display()))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    fn key(image: &str) -> Key {
        Key { image: image.to_owned(), prompt: "p".to_owned() }
    }

    #[test]
    fn scores_come_back_to_the_bit_and_an_incomplete_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip-0.jsonl");
        let values = [0.1f32, f32::MIN_POSITIVE, 16_777_217.0, -0.3, f32::NAN];
        let mut store = Store::open(path.clone()).unwrap();
        let scores = (0..).zip(values);
        store.add(scores.map(|(name, score)| (key(&format!("{name}")), Ok(score)))).unwrap();
        store.add([(key("5"), Err("cut".to_owned()))].into_iter()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"image\":\"9\",\"pro"].concat()).unwrap();
        let mut store = Store::open(path.clone()).unwrap();
        for (name, score) in values.iter().enumerate().take(4) {
            let found = store.get(&key(&format!("{name}"))).unwrap().as_ref().unwrap();
            assert_eq!(found.to_bits(), score.to_bits());
        }
        assert_eq!(store.get(&key("4")), Some(&Err("the score is NaN".to_owned())));
        assert_eq!(store.get(&key("5")), Some(&Err("cut".to_owned())));
        assert_eq!(store.get(&key("9")), None);
        store.add([(key("0"), Ok(7.0)), (key("9"), Ok(1.0))].into_iter()).unwrap();
        let store = Store::open(path.clone()).unwrap();
        assert_eq!(store.get(&key("0")), Some(&Ok(0.1)), "what is known stays");
        assert_eq!(store.get(&key("9")), Some(&Ok(1.0)));
        std::fs::write(&path, b"{}\n").unwrap();
        let error = Store::open(path).unwrap_err().to_string();
        assert!(error.contains(":1: not a score; hint"), "{error}");
    }
}
