//! The folder of computed scores, `score-store/`: a killed run resumes from it, and a larger one
//! computes only what is new.
//!
//! One file of JSON lines for each metric, named by the metric and a fingerprint of everything its
//! scores depend on but the image and the caption: weights, preprocessing, tokenizer, dtype,
//! device. A line has a checksum of the image's bytes, one of the caption, and the score. Lines are
//! added batch by batch and synced; the next start drops a line that a kill left incomplete.
//!
//! If several processes score, each adds to a file of its own, `METRIC-FINGERPRINT.0-of-2.jsonl`,
//! and reads all. The next process that works alone puts them together.

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

/// The files with the scores of a scorer: that of a process alone, which may not be there, and
/// those of several processes.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_part = |file: &str| {
        let place = file.strip_prefix(&*name).and_then(|rest| rest.strip_prefix('.'));
        place.is_some_and(|place| place.ends_with(".jsonl"))
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    let parts = runkit::run_folder::names_in(folder, is_part)?.into_iter();
    Ok(std::iter::once(path.to_owned()).chain(parts.map(|name| folder.join(name))).collect())
}

/// Adds the scores in a file's text to those that are known, and returns how many of its bytes are
/// whole lines. Known scores stay.
fn parse(path: &Path, text: &[u8], outcomes: &mut HashMap<Key, Outcome>) -> Result<usize> {
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
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
        outcomes.entry(line.key).or_insert(outcome);
    }
    Ok(whole)
}

/// The bytes of a file; `None` if it is not there.
fn text(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

/// The scores of a scorer that this run does not use; `None` if they have no file.
pub(super) fn read(folder: &Path, scorer: &UsedScorer) -> Result<Option<HashMap<Key, Outcome>>> {
    let mut outcomes = None;
    for path in files(&path(folder, &scorer.record, &scorer.dtype, &scorer.device)?)? {
        if let Some(text) = text(&path)? {
            parse(&path, &text, outcomes.get_or_insert_default())?;
        }
    }
    Ok(outcomes)
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
    /// Opens the scores of each scorer of `manifest` below `folder`, in its order. A process that
    /// works alone has no `place`, and puts the files of several together.
    pub(super) fn open_all(
        folder: &Path,
        manifest: &ScorersManifest,
        place: Option<&str>,
    ) -> Result<Vec<Self>> {
        runkit::files::create_folder(folder)?;
        let open =
            |record| Self::open(path(folder, record, &manifest.dtype, &manifest.device)?, place);
        manifest.scorers.iter().map(open).collect()
    }

    fn open(path: PathBuf, place: Option<&str>) -> Result<Self> {
        let files = files(&path)?;
        let path = match place {
            Some(place) => path.with_extension(format!("{place}.jsonl")),
            None => path,
        };
        let context = || format!("{}: cannot be opened", path.display());
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = file.with_context(context)?;
        let mut outcomes = HashMap::new();
        let mut others = Vec::new();
        for other in files {
            let Some(text) = text(&other)? else { continue };
            let whole = parse(&other, &text, &mut outcomes)?;
            if other != path {
                others.push((other, text, whole));
            } else if whole < text.len() {
                file.set_len(whole as u64).with_context(context)?;
            }
        }
        if place.is_none() && !others.is_empty() {
            let added =
                others.iter().try_for_each(|(_, text, whole)| file.write_all(&text[..*whole]));
            added.and_then(|()| file.sync_data()).with_context(context)?;
            for (other, ..) in &others {
                runkit::run_folder::remove_file(other)?;
            }
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
        let mut store = Store::open(path.clone(), None).unwrap();
        let scores = (0..).zip(values);
        store.add(scores.map(|(name, score)| (key(&format!("{name}")), Ok(score)))).unwrap();
        store.add([(key("5"), Err("cut".to_owned()))].into_iter()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"image\":\"9\",\"pro"].concat()).unwrap();
        let mut store = Store::open(path.clone(), None).unwrap();
        for (name, score) in values.iter().enumerate().take(4) {
            let found = store.get(&key(&format!("{name}"))).unwrap().as_ref().unwrap();
            assert_eq!(found.to_bits(), score.to_bits());
        }
        assert_eq!(store.get(&key("4")), Some(&Err("the score is NaN".to_owned())));
        assert_eq!(store.get(&key("5")), Some(&Err("cut".to_owned())));
        assert_eq!(store.get(&key("9")), None);
        store.add([(key("0"), Ok(7.0)), (key("9"), Ok(1.0))].into_iter()).unwrap();
        let store = Store::open(path.clone(), None).unwrap();
        assert_eq!(store.get(&key("0")), Some(&Ok(0.1)), "what is known stays");
        assert_eq!(store.get(&key("9")), Some(&Ok(1.0)));
        std::fs::write(&path, b"{}\n").unwrap();
        let error = Store::open(path, None).unwrap_err().to_string();
        assert!(error.contains(":1: not a score; hint"), "{error}");
    }
    #[test]
    fn several_processes_add_to_their_own_files_and_one_puts_them_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.v2-0.jsonl");
        std::fs::write(folder.path().join("clip.v2-01.jsonl"), b"of another scorer").unwrap();
        let open = |place| Store::open(path.clone(), place).unwrap();
        let add = |store: &mut Store, name: &str, score| {
            store.add([(key(name), Ok(score))].into_iter()).unwrap();
        };
        add(&mut open(None), "0", 1.0);
        let (mut first, mut second) = (open(Some("0-of-2")), open(Some("1-of-2")));
        add(&mut first, "1", 2.0);
        add(&mut second, "2", 3.0);
        add(&mut second, "0", 9.0);
        let mut torn = OpenOptions::new().append(true).open(&second.path).unwrap();
        torn.write_all(b"{\"image\"").unwrap();
        let before = std::fs::read(&path).unwrap();
        for place in [Some("0-of-2"), None, None] {
            let store = open(place);
            for (name, score) in [("0", 1.0), ("1", 2.0), ("2", 3.0)] {
                assert_eq!(store.get(&key(name)), Some(&Ok(score)), "{place:?} {name}");
            }
        }
        assert!(std::fs::read(&path).unwrap().starts_with(&before));
        assert_eq!(folder.path().read_dir().unwrap().count(), 2, "one file for each scorer");
    }
}
