//! `SiglipTokenizer`: a caption in lower case without punctuation, in SentencePiece's unigrams.

use std::path::Path;

use serde_json::Value;

use super::super::TokenizerError;
use super::super::clean::is_python_space;
use super::super::special_tokens::{SpecialTokens, wrong};
use super::super::vocabulary::{malformed, read_limited};
use super::normalizer::Normalizer;
use super::proto::{Model, SPACE};
use super::unigram::Unigrams;

/// The tokenizer, from the model of SentencePiece and what the folder says of special tokens.
pub(super) struct Canonical {
    normalizer: Normalizer,
    unigrams: Unigrams,
    lower: bool,
    end: u32,
    /// Precedes every text, so that its first space is kept.
    unknown: String,
    /// How many pieces the unknown token has as a text.
    unknown_pieces: usize,
    /// Tokens that are found as they are written, with their ids.
    added: Vec<(String, u32)>,
    /// Content of `spiece.model`, hashed.
    model: blake3::Hash,
    room: usize,
}

impl Canonical {
    pub(super) fn load(
        file: &Path,
        specials: &SpecialTokens,
        context_length: usize,
    ) -> Result<Self, TokenizerError> {
        let bytes = read_limited(file)?;
        let model =
            Model::read(&bytes).map_err(|found| malformed(file, "a SentencePiece model", found))?;
        let wanted = |found: String| malformed(file, "a SentencePiece model of unigrams", found);
        let normalizer = Normalizer::new(&model).map_err(wanted)?;
        let unigrams = Unigrams::new(&model).map_err(wanted)?;
        let lower = options(specials)?;
        let id = |token: &str| {
            unigrams.id(token).ok_or_else(|| {
                let found =
                    "none by that name; a token that a folder adds has no row in the network";
                malformed(file, format!("the token {token}"), found)
            })
        };
        let end = id(&specials.end)?;
        id(&specials.unknown)?;
        let mut added = Vec::new();
        for token in &specials.added {
            if token.single_word || (token.normalized && !token.special) {
                let path = &specials.config.path;
                let found = format!("{} as a word of its own or in lower case", token.content);
                return Err(malformed(path, "tokens that are found as they are written", found));
            }
            added.push((token.content.clone(), id(&token.content)?));
        }
        // The longest first: it wins at one place.
        added.sort_by_key(|(token, _)| std::cmp::Reverse(token.chars().count()));
        let mut made = Self {
            normalizer,
            unigrams,
            lower,
            end,
            unknown: specials.unknown.clone(),
            unknown_pieces: 0,
            added,
            model: blake3::hash(&bytes),
            room: context_length.saturating_sub(1),
        };
        made.unknown_pieces = made.pieces(&specials.unknown).len();
        Ok(made)
    }

    /// The tokens of a caption, truncated, with the end token, unless the last one is that.
    pub(super) fn encode(&self, caption: &str) -> Vec<u32> {
        let text = format!("{SPACE}{}", caption.replace(SPACE, " "));
        let mut ids = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            match self.next_added(rest) {
                Some((start, token, id)) => {
                    ids.extend(self.part(&rest[..start]));
                    // A space of its own before a special token is dropped.
                    if ids.len() == 1 && self.unigrams.id(SPACE) == ids.first().copied() {
                        ids.clear();
                    }
                    ids.push(id);
                    rest = &rest[start + token.len()..];
                }
                None => {
                    ids.extend(self.part(rest));
                    rest = "";
                }
            }
        }
        ids.truncate(self.room);
        if ids.last() != Some(&self.end) {
            ids.push(self.end);
        }
        ids
    }

    /// The first added token of a text: where it is, and its id.
    fn next_added(&self, text: &str) -> Option<(usize, &str, u32)> {
        let found =
            self.added.iter().filter_map(|(token, id)| Some((text.find(token)?, token, *id)));
        // Of several at one place the first of the list, which is the longest.
        found.min_by_key(|(start, ..)| *start).map(|(start, token, id)| (start, token.as_str(), id))
    }

    /// The ids of a text without added tokens.
    fn part(&self, text: &str) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut pieces = self.pieces(&format!("{}{}", self.unknown, self.canonical(text)));
        if pieces.len() >= self.unknown_pieces {
            pieces.drain(..self.unknown_pieces);
        }
        pieces
    }

    /// Lower case without punctuation, white space collapsed (`canonicalize_text`).
    fn canonical(&self, text: &str) -> String {
        let lower = if self.lower { text.to_lowercase() } else { text.to_owned() };
        let plain: String = lower.chars().filter(|letter| !letter.is_ascii_punctuation()).collect();
        let words = plain.split(is_python_space).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(" ")
    }

    fn pieces(&self, text: &str) -> Vec<u32> {
        self.unigrams.encode(&self.normalizer.normalize(text))
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.unigrams.id(token)
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.unigrams.len()
    }

    pub(super) fn hash(&self, hasher: &mut blake3::Hasher) {
        hasher.update(b"unigrams").update(self.model.as_bytes()).update(&[u8::from(self.lower)]);
        hasher.update(&self.end.to_le_bytes()).update(self.unknown.as_bytes());
        for (token, id) in &self.added {
            hasher.update(token.as_bytes()).update(&[0]).update(&id.to_le_bytes());
        }
    }
}

/// Whether captions are put into lower case. Refuses keys that would give other tokens.
fn options(specials: &SpecialTokens) -> Result<bool, TokenizerError> {
    let config = &specials.config;
    let refused =
        |key: &str, expected: &str, value: &Value| Err(wrong(&config.path, key, expected, value));
    if let Some(value) = config.keys.get("sp_model_kwargs")
        && !value.is_null()
        && value.as_object().is_none_or(|options| !options.is_empty())
    {
        return refused("sp_model_kwargs", "an empty object", value);
    }
    if let Some(value) = config.keys.get("legacy").filter(|value| **value != Value::Bool(true)) {
        return refused("legacy", "true", value);
    }
    match config.keys.get("do_lower_case") {
        None => Ok(true),
        Some(Value::Null) => Ok(false),
        Some(Value::Bool(lower)) => Ok(*lower),
        Some(value) => refused("do_lower_case", "true or false", value),
    }
}
