//! Where the tokens and merges come from: the files of a model folder, else CLIP's own vocabulary,
//! which is part of the crate.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;

use super::TokenizerError;
use super::byte_alphabet::{byte_characters, bytes_in_order};

/// What the last token of a word ends with.
pub(super) const END_OF_WORD: &str = "</w>";
/// The names of the two special tokens, of open_clip and of transformers.
pub(super) const OPEN_CLIP_SPECIALS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];
pub(super) const TRANSFORMERS_SPECIALS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// CLIP's merges; open_clip uses the first [`MAXIMUM_MERGES`] (`SimpleTokenizer.__init__`).
const STANDARD: &[u8] = include_bytes!("../../assets/bpe_simple_vocab_16e6.txt.gz");
const MAXIMUM_MERGES: usize = 49_152 - 256 - 2;
/// Largest vocabulary file read, in bytes, packed or not. CLIP's is 3.2 MB unpacked.
const LARGEST_FILE: u64 = 64 << 20;

/// Tokens with their ids, and the merges in order.
pub(super) struct Vocabulary {
    /// The file it was read from, or a name for the one in the crate.
    pub(super) source: PathBuf,
    pub(super) ids: HashMap<String, u32>,
    /// Tokens that `tokenizer.json` adds to those.
    pub(super) added: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
}

/// CLIP's own vocabulary as transformers stores it: the texts of `vocab.json` and `merges.txt`.
///
/// # Errors
/// Never: a test reads it.
pub fn clip_tokenizer_files() -> Result<[String; 2], TokenizerError> {
    let Vocabulary { ids, merges, source, .. } = Vocabulary::standard()?;
    let mut tokens: Vec<(String, u32)> = ids.into_iter().collect();
    tokens.sort_by_key(|(_, id)| *id);
    let named = tokens.into_iter().map(|(token, id)| {
        let place = OPEN_CLIP_SPECIALS.iter().position(|special| *special == token);
        let token = place.map_or(token, |place| TRANSFORMERS_SPECIALS[place].to_owned());
        (token, serde_json::Value::from(id))
    });
    let vocabulary = serde_json::Value::Object(named.collect());
    let vocabulary = serde_json::to_string(&vocabulary)
        .map_err(|error| malformed(&source, "tokens and ids", error))?;
    let mut text = "#version: 0.2\n".to_owned();
    for (left, right) in &merges {
        text += &format!("{left} {right}\n");
    }
    Ok([vocabulary, text])
}

impl Vocabulary {
    /// The vocabulary of a model folder: `tokenizer.json`, else `vocab.json` with `merges.txt`,
    /// else `merges.txt` alone, else `bpe_simple_vocab*.txt.gz`, else CLIP's own. Fails if the
    /// first of these that exists is unreadable, malformed or truncated.
    pub(super) fn load(folder: Option<&Path>) -> Result<Self, TokenizerError> {
        let Some(folder) = folder else { return Self::standard() };
        let [tokenizer, tokens, merges] =
            ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
        if tokenizer.is_file() {
            return Self::from_tokenizer_json(&tokenizer);
        }
        if tokens.is_file() {
            return Self::from_tokens_and_merges(&tokens, &merges);
        }
        if merges.is_file() {
            let text = read_text(&merges)?;
            // without an id table, only the last newline tells a whole file from a truncated one
            if !text.ends_with('\n') {
                return Err(malformed(
                    &merges,
                    "a newline at its end",
                    "none; is the file truncated?",
                ));
            }
            return Self::from_merges(&merges, text.trim_end_matches('\n'));
        }
        match packed_merges(folder)? {
            Some(path) => {
                let packed = read_limited(&path)?;
                Self::from_merges(&path, &unpack(&path, &packed)?)
            }
            None => Self::standard(),
        }
    }

    /// CLIP's own vocabulary of 49,408 tokens.
    pub(super) fn standard() -> Result<Self, TokenizerError> {
        let name = Path::new("the built-in vocabulary of CLIP");
        Self::from_merges(name, &unpack(name, STANDARD)?)
    }

    /// Ids as open_clip's `SimpleTokenizer` assigns them: 256 bytes, the same ending a word, one
    /// per merge, then the two special tokens. The first line of `text` is a header.
    fn from_merges(path: &Path, text: &str) -> Result<Self, TokenizerError> {
        let characters = byte_characters();
        let bytes =
            bytes_in_order().into_iter().map(|byte| characters[usize::from(byte)].to_string());
        let mut tokens: Vec<String> = bytes.collect();
        tokens.extend_from_within(..);
        for token in tokens.iter_mut().skip(256) {
            token.push_str(END_OF_WORD);
        }
        let mut merges = Vec::new();
        let mut lines = text.split('\n').skip(1).take(MAXIMUM_MERGES).enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            if line.is_empty() && lines.peek().is_none() {
                // a newline at the end gives SimpleTokenizer an empty token, which takes up an id
                tokens.push(String::new());
            } else {
                let (left, right) = parse_merge(path, line, index + 2)?;
                tokens.push(format!("{left}{right}"));
                merges.push((left, right));
            }
        }
        tokens.extend(OPEN_CLIP_SPECIALS.map(str::to_owned));
        let ids = tokens.into_iter().zip(0..).collect();
        Ok(Self { source: path.to_owned(), ids, added: HashMap::new(), merges })
    }

    fn from_tokens_and_merges(tokens: &Path, merges: &Path) -> Result<Self, TokenizerError> {
        let ids = serde_json::from_str(&read_text(tokens)?)
            .map_err(|error| malformed(tokens, "a JSON object of tokens and ids", error))?;
        let text = read_text(merges)?;
        // transformers' generations of tokenizers differ only in what they skip: the version line
        let merges_of_lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.starts_with("#version") && !line.trim().is_empty())
            .map(|(index, line)| parse_merge(merges, line, index + 1))
            .collect::<Result<_, _>>()?;
        let vocabulary =
            Self { source: merges.to_owned(), ids, added: HashMap::new(), merges: merges_of_lines };
        vocabulary.check_whole()?;
        Ok(vocabulary)
    }

    fn from_tokenizer_json(path: &Path) -> Result<Self, TokenizerError> {
        #[derive(Deserialize)]
        struct File {
            model: Model,
            #[serde(default)]
            added_tokens: Vec<AddedToken>,
        }
        #[derive(Deserialize)]
        struct Model {
            vocab: HashMap<String, u32>,
            merges: Vec<Merge>,
        }
        #[derive(Deserialize)]
        struct AddedToken {
            id: u32,
            content: String,
        }
        /// Both spellings are in use; the pair is the newer one.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Merge {
            Line(String),
            Pair(String, String),
        }
        let expected = "a byte-pair tokenizer of the tokenizers library";
        let file: File = serde_json::from_str(&read_text(path)?)
            .map_err(|error| malformed(path, expected, error))?;
        let merges = file.model.merges.into_iter().enumerate().map(|(index, merge)| match merge {
            Merge::Line(line) => parse_merge(path, &line, index + 1),
            Merge::Pair(left, right) => Ok((left, right)),
        });
        let merges = merges.collect::<Result<_, _>>()?;
        let added = file.added_tokens.into_iter().map(|token| (token.content, token.id)).collect();
        Ok(Self { source: path.to_owned(), ids: file.model.vocab, added, merges })
    }

    /// Rejects a list of merges that is shorter than the id table says: each token of several bytes
    /// comes from a merge.
    fn check_whole(&self) -> Result<(), TokenizerError> {
        let made: HashSet<String> =
            self.merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
        let is_unexplained = |token: &&String| {
            let special =
                token.starts_with('<') && token.ends_with('>') && !token.ends_with(END_OF_WORD);
            let single = token.strip_suffix(END_OF_WORD).unwrap_or(token).chars().count() <= 1;
            !special && !single && !made.contains(*token)
        };
        let unexplained = self.ids.keys().filter(is_unexplained).count();
        if unexplained == 0 {
            return Ok(());
        }
        let found = format!(
            "{} merges, which leave {unexplained} tokens out of reach; is the file truncated?",
            self.merges.len()
        );
        Err(malformed(&self.source, "a merge for each token of vocab.json", found))
    }

    /// Ids of the start and end tokens, under open_clip's or transformers' names.
    pub(super) fn start_and_end(&self) -> Result<[u32; 2], TokenizerError> {
        let find = |index: usize| {
            [OPEN_CLIP_SPECIALS, TRANSFORMERS_SPECIALS]
                .iter()
                .find_map(|names| self.id(names[index]))
                .ok_or_else(|| {
                    let expected = format!("the token {}", TRANSFORMERS_SPECIALS[index]);
                    malformed(&self.source, expected, "none by that name")
                })
        };
        Ok([find(0)?, find(1)?])
    }

    /// How many rows an embedding table needs: the largest id plus one.
    pub(super) fn size(&self) -> usize {
        let ids = self.ids.values().chain(self.added.values());
        ids.max().map_or(0, |&id| id as usize + 1)
    }

    /// The id of a token, of the vocabulary or added to it.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).or_else(|| self.added.get(token)).copied()
    }
}

/// An error about the content of `path`.
pub(super) fn malformed(
    path: &Path,
    expected: impl Into<String>,
    found: impl std::fmt::Display,
) -> TokenizerError {
    TokenizerError::Malformed {
        path: path.to_owned(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

fn parse_merge(path: &Path, line: &str, number: usize) -> Result<(String, String), TokenizerError> {
    let mut parts = line.split_whitespace();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(left), Some(right), None) => Ok((left.to_owned(), right.to_owned())),
        _ => {
            let found = format!(
                "{:?} as merge or line {number}",
                line.chars().take(40).collect::<String>()
            );
            Err(malformed(path, "two tokens in each merge", found))
        }
    }
}

/// The first `bpe_simple_vocab*.txt.gz` of a folder, by name.
fn packed_merges(folder: &Path) -> Result<Option<PathBuf>, TokenizerError> {
    let read = |source| TokenizerError::Read { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("bpe_simple_vocab") && name.ends_with(".txt.gz") {
            found.push(folder.join(&*name));
        }
    }
    Ok(found.into_iter().min())
}

/// Reads a file of at most [`LARGEST_FILE`] bytes.
pub(super) fn read_limited(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let read = |source| TokenizerError::Read { path: path.to_owned(), source };
    take_limited(path, std::fs::File::open(path).map_err(read)?)
}

fn take_limited(path: &Path, reader: impl Read) -> Result<Vec<u8>, TokenizerError> {
    let mut bytes = Vec::new();
    reader
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > LARGEST_FILE {
        let expected = format!("at most {} MiB", LARGEST_FILE >> 20);
        return Err(malformed(path, expected, "more"));
    }
    Ok(bytes)
}

pub(super) fn read_text(path: &Path) -> Result<String, TokenizerError> {
    utf8(path, read_limited(path)?)
}

fn unpack(path: &Path, packed: &[u8]) -> Result<String, TokenizerError> {
    let unpacked = take_limited(path, GzDecoder::new(packed)).map_err(|error| match error {
        TokenizerError::Read { source, .. } => malformed(path, "a whole gzip file", source),
        other => other,
    })?;
    utf8(path, unpacked)
}

fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, TokenizerError> {
    String::from_utf8(bytes).map_err(|error| malformed(path, "UTF-8 text", error.utf8_error()))
}
