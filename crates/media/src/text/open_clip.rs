//! The tokenizer of open_clip, which HPS and the LAION CLIP models were trained with.
//!
//! Matches `SimpleTokenizer` of mlfoundations/open_clip, `src/open_clip/tokenizer.py`, as released
//! in open_clip_torch 3.3.0, with its default cleaning.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

use super::bpe::BytePairEncoder;
use super::clean::clean;
use super::vocabulary::{OPEN_CLIP_SPECIALS, Vocabulary, malformed};
use super::{Tokenizer, TokenizerError, Tokens, check_context_length, fingerprint};

/// What open_clip pads with: "!", the token of id 0.
const PADDING: u32 = 0;

// Python's pattern ignores case throughout; only the literal words have any, and a class of letters
// that ignores case would take in a combining mark here. In Python that mark, U+0345, whose upper
// case is a letter, ends up in no class at all and is dropped.
#[expect(clippy::expect_used, reason = "a constant pattern, compiled by the tests")]
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i:<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+",
    )
    .expect("a constant pattern")
});

/// open_clip's `SimpleTokenizer`.
#[doc(alias = "SimpleTokenizer")]
pub struct OpenClipTokenizer {
    encoder: BytePairEncoder,
    start: u32,
    end: u32,
    context_length: usize,
    vocabulary_size: usize,
    fingerprint: String,
}

impl OpenClipTokenizer {
    /// Reads the vocabulary of `folder`, or takes CLIP's own if the folder has none or is `None`.
    pub fn load(folder: Option<&Path>, context_length: usize) -> Result<Self, TokenizerError> {
        check_context_length(context_length)?;
        let vocabulary = Vocabulary::load(folder)?;
        let encoder = BytePairEncoder::new(&vocabulary)
            .map_err(|token| missing(&vocabulary.source, &token))?;
        let [start, end] = vocabulary.start_and_end()?;
        Ok(Self {
            encoder,
            start,
            end,
            context_length,
            vocabulary_size: vocabulary.size(),
            fingerprint: fingerprint("open_clip", context_length, &vocabulary),
        })
    }
}

fn missing(path: &Path, token: &str) -> TokenizerError {
    malformed(path, format!("an id for the token {token:?}"), "none; is the file truncated?")
}

impl Tokenizer for OpenClipTokenizer {
    fn encode(&self, caption: &str) -> Tokens {
        let cleaned = clean(caption);
        let mut tokens = vec![self.start];
        for word in WORD.find_iter(&cleaned) {
            match OPEN_CLIP_SPECIALS.iter().position(|&special| special == word.as_str()) {
                Some(0) => tokens.push(self.start),
                Some(_) => tokens.push(self.end),
                None => self.encoder.encode(word.as_str(), &mut tokens),
            }
            if tokens.len() >= self.context_length {
                break; // the rest is truncated
            }
        }
        Tokens::framed(tokens, self.end, PADDING, self.context_length)
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}
