//! The answers of external scorers, on disk as they come: a killed run asks nothing twice.
//!
//! A file of JSON lines for each scorer, named by it and by a fingerprint of what its requests hold
//! besides image and caption. Lines are added and synced; the next start drops one that a kill left
//! incomplete. Of several processes each adds to a file of its own and reads all of them. Memory
//! holds where an answer is, 64 bytes each, and not its text.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use runkit::fault;
use serde::{Deserialize, Serialize};

use crate::error::ScorerError;

/// Letters of a fingerprint in the name of a file.
const SHORT: usize = 16;
/// The extension of the files.
const EXTENSION: &str = "jsonl";

/// What identifies an answer: the images in their order, and the text that was sent with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Of the BLAKE3 digests of the images and the whole text.
    pub(crate) fn new(images: &[blake3::Hash], text: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        for image in images {
            hasher.update(image.as_bytes());
        }
        hasher.update(blake3::hash(text.as_bytes()).as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    fn to_hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// What a scorer answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// A text, which is read when it is needed.
    Text(String),
    /// The probabilities of yes and of no as the first token.
    YesNo([f64; 2]),
    /// A number.
    Score(f64),
    /// It answered that it has no score, and why.
    None(String),
}

/// A line. Without an answer it only counts requests.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    /// How many requests the answer took.
    #[serde(default)]
    requests: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

/// Where an answer is.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    bytes: usize,
}

/// A file of answers, and how many of its bytes are known.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
    read: u64,
}

/// The answers of one scorer.
#[derive(Debug)]
pub(crate) struct Answers {
    scorer: String,
    /// The part of the files' names that they have in common, and their folder.
    stem: String,
    folder: PathBuf,
    /// The first is the file of this process.
    sources: Vec<Source>,
    places: HashMap<Key, Place>,
    requests: u64,
}

impl Answers {
    /// How many answers there are in `folder`, and how many requests they took. Writes nothing.
    pub(crate) fn count(
        folder: &Path,
        scorer: &str,
        identity: &impl Serialize,
    ) -> Result<(usize, u64), ScorerError> {
        let mut answers = Self::new(folder, scorer, identity);
        answers.refresh()?;
        Ok((answers.len(), answers.requests()))
    }

    fn new(folder: &Path, scorer: &str, identity: &impl Serialize) -> Self {
        let text = serde_json::to_vec(identity).unwrap_or_default();
        let fingerprint = blake3::hash(&text).to_hex();
        Self {
            scorer: scorer.to_owned(),
            stem: format!("{scorer}-{}", &fingerprint[..SHORT]),
            folder: folder.to_owned(),
            sources: Vec::new(),
            places: HashMap::new(),
            requests: 0,
        }
    }

    /// Opens the answers of `scorer` in `folder`. `identity` is what its requests hold besides image
    /// and caption; `place` names this process among several.
    pub(crate) fn open(
        folder: &Path,
        scorer: &str,
        identity: &impl Serialize,
        place: Option<&str>,
    ) -> Result<Self, ScorerError> {
        runkit::files::create_folder(folder)?;
        let mut answers = Self::new(folder, scorer, identity);
        let stem = &answers.stem;
        let name = match place {
            Some(place) => format!("{stem}.{place}.{EXTENSION}"),
            None => format!("{stem}.{EXTENSION}"),
        };
        let path = folder.join(name);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|error| answers.failed(&path, &error))?;
        answers.sources.push(Source { path, file, read: 0 });
        answers.read(0)?;
        let own = &answers.sources[0];
        let length = own.file.metadata().map_err(|error| answers.failed(&own.path, &error))?.len();
        if own.read < length {
            own.file.set_len(own.read).map_err(|error| answers.failed(&own.path, &error))?;
        }
        answers.refresh()?;
        Ok(answers)
    }

    /// Reads what other processes have added.
    pub(crate) fn refresh(&mut self) -> Result<(), ScorerError> {
        let is_ours = |name: &str| {
            let rest = name.strip_prefix(&self.stem).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| rest.ends_with(EXTENSION))
        };
        for name in runkit::run_folder::names_in(&self.folder, is_ours)? {
            let path = self.folder.join(name);
            if self.sources.iter().all(|source| source.path != path) {
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(self.failed(&path, &error)),
                };
                self.sources.push(Source { path, file, read: 0 });
            }
        }
        (0..self.sources.len()).try_for_each(|index| self.read(index))
    }

    /// Reads the whole lines of a file that are not known yet.
    fn read(&mut self, index: usize) -> Result<(), ScorerError> {
        let Source { path, file, read } = &self.sources[index];
        let (path, mut offset) = (path.clone(), *read);
        let failed = |error: std::io::Error| self.failed(&path, &error);
        let mut reader = BufReader::new(file.try_clone().map_err(failed)?);
        reader.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(|error| self.failed(&path, &error))?;
            if line.last() != Some(&b'\n') {
                break;
            }
            let parsed = serde_json::from_slice::<Line>(&line).ok();
            let key = parsed.as_ref().and_then(|line| blake3::Hash::from_hex(&line.key).ok());
            let (Some(parsed), Some(key)) = (parsed, key) else {
                let problem = format!(
                    "byte {offset}: expected an answer in a line, found something else; hint: \
                     remove the file, and its answers are asked for again"
                );
                return Err(self.problem(&path, problem));
            };
            self.requests += parsed.requests;
            if parsed.answer.is_some() {
                let place = Place { file: index, offset, bytes: line.len() };
                self.places.entry(Key(*key.as_bytes())).or_insert(place);
            }
            offset += line.len() as u64;
        }
        self.sources[index].read = offset;
        Ok(())
    }

    /// How many requests the answers of all processes took so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests
    }

    /// How many answers there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is an answer.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    /// The answer, if there is one.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Answer>, ScorerError> {
        let Some(&Place { file, offset, bytes }) = self.places.get(key) else { return Ok(None) };
        let Source { path, file, .. } = &self.sources[file];
        let mut line = vec![0; bytes];
        file.read_exact_at(&mut line, offset).map_err(|error| self.failed(path, &error))?;
        let line: Line = serde_json::from_slice(&line).map_err(|_| {
            self.problem(path, "an answer has changed while the run was reading it".to_owned())
        })?;
        Ok(line.answer)
    }

    /// Adds an answer, or only the requests that led to none. [`Answers::sync`] makes it durable.
    pub(crate) fn add(
        &mut self,
        key: &Key,
        requests: u64,
        answer: Option<Answer>,
    ) -> Result<(), ScorerError> {
        let is_answer = answer.is_some();
        let line = Line { key: key.to_hex(), requests, answer };
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        let own = &mut self.sources[0];
        let place = Place { file: 0, offset: own.read, bytes: text.len() };
        if let Err(error) = own.file.write_all(&text) {
            // Half a line must not stand before the next one.
            let _ = own.file.set_len(place.offset);
            return Err(self.failed(&self.sources[0].path, &error));
        }
        own.read += text.len() as u64;
        self.requests += requests;
        if is_answer {
            self.places.entry(*key).or_insert(place);
        }
        Ok(())
    }

    /// Makes what was added durable.
    pub(crate) fn sync(&mut self) -> Result<(), ScorerError> {
        let own = &self.sources[0];
        own.file.sync_data().map_err(|error| self.failed(&own.path, &error))?;
        fault::point("answer");
        Ok(())
    }

    fn failed(&self, path: &Path, error: &std::io::Error) -> ScorerError {
        self.problem(path, error.to_string())
    }

    fn problem(&self, path: &Path, problem: String) -> ScorerError {
        ScorerError::File { scorer: self.scorer.clone(), file: path.to_owned(), problem }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(&[blake3::hash(name.as_bytes())], "a fox")
    }

    #[test]
    fn answers_come_back_and_an_incomplete_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Answers::open(folder.path(), "vqa", &"v1", None).unwrap();
        let mut answers = open();
        let texts = [Answer::Text("Final Score: 4 \u{e9}".to_owned()), Answer::Score(0.1)];
        for (name, answer) in ["0", "1"].into_iter().zip(&texts) {
            answers.add(&key(name), 2, Some(answer.clone())).unwrap();
        }
        answers.add(&key("2"), 5, None).unwrap();
        answers.sync().unwrap();
        let path = answers.sources[0].path.clone();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"key\":\"00"].concat()).unwrap();
        let mut answers = open();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!((answers.requests(), answers.len()), (9, 2));
        let count = |identity: &str| Answers::count(folder.path(), "vqa", &identity).unwrap();
        assert_eq!((count("v1"), count("v2")), ((2, 9), (0, 0)));
        for (name, answer) in ["0", "1"].into_iter().zip(&texts) {
            assert_eq!(answers.get(&key(name)).unwrap().as_ref(), Some(answer));
        }
        assert!(!answers.has(&key("2")), "a failed request is no answer");
        answers.add(&key("2"), 1, Some(Answer::YesNo([0.25, 0.5]))).unwrap();
        assert_eq!(open().get(&key("2")).unwrap(), Some(Answer::YesNo([0.25, 0.5])));
        let other = Answers::open(folder.path(), "vqa", &"v2", None).unwrap();
        assert_eq!(other.len(), 0, "other requests have other answers");
        std::fs::write(&path, b"{}\n").unwrap();
        let error = Answers::open(folder.path(), "vqa", &"v1", None).unwrap_err().to_string();
        assert!(error.contains("byte 0: expected an answer") && error.contains("hint"), "{error}");
    }

    #[test]
    fn several_processes_read_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let open = |place| Answers::open(folder.path(), "vqa", &"v1", place).unwrap();
        let (mut first, mut second) = (open(Some("0-of-2")), open(Some("1-of-2")));
        first.add(&key("a"), 1, Some(Answer::Score(1.0))).unwrap();
        second.refresh().unwrap();
        assert!(second.has(&key("a")));
        second.add(&key("b"), 1, Some(Answer::Score(2.0))).unwrap();
        let alone = open(None);
        assert_eq!((alone.len(), alone.requests()), (2, 2));
        assert_eq!(alone.get(&key("b")).unwrap(), Some(Answer::Score(2.0)));
    }

    #[test]
    fn the_order_of_images_and_the_text_are_part_of_a_key() {
        let [a, b] = [blake3::hash(b"a"), blake3::hash(b"b")];
        assert_eq!(Key::new(&[a, b], "x"), Key::new(&[a, b], "x"));
        assert_ne!(Key::new(&[a, b], "x"), Key::new(&[b, a], "x"));
        assert_ne!(Key::new(&[a, b], "x"), Key::new(&[a, b], "y"));
    }
}
