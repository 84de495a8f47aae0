//! Captions to token ids, exactly as the two tokenizers of the CLIP family do it: open_clip's
//! ([`OpenClipTokenizer`]) and transformers' ([`HuggingFaceTokenizer`]). They share the vocabulary
//! and the byte-pair merges and differ in how they clean the text, so a caption with curly quotes
//! or HTML entities has other tokens in one than in the other. [`WordPieceTokenizer`] is BERT's,
//! for networks that classify captions, and padded for ImageReward ([`PaddedWordPiece`]).
//! [`SiglipTokenizer`] has those of SigLIP and SigLIP 2.
//!
//! open_clip's cleaning includes ftfy; `ftfy` is a port of it in full rather than the `plsfix`
//! crate, which leaves terminal escapes, unescapes entities in HTML and panics on some long
//! captions.
//!
//! Measured against the originals on 24,802 captions, most of them random Unicode and mojibake: the
//! cleaned text and transformers' ids agree on all, open_clip's ids on all but one. That one holds
//! a letter which Unicode 17 added: Python's `regex` package knows it and the `regex` crate does
//! not yet.

mod bpe;
mod byte_alphabet;
mod clean;
mod ftfy;
mod html;
mod hugging_face;
mod open_clip;
mod siglip;
mod special_tokens;
mod vocabulary;
mod wordpiece;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::clean::clean;
pub use self::hugging_face::{HuggingFaceTokenizer, TokenLimits};
pub use self::open_clip::OpenClipTokenizer;
pub use self::siglip::{LOWER_CASED, SiglipTokenizer};
use self::vocabulary::Vocabulary;
pub use self::vocabulary::clip_tokenizer_files;
pub use self::wordpiece::{PaddedWordPiece, WordPieceTokenizer};

/// The token ids of one caption.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tokens {
    /// Start, caption, end, padding: as many ids as the context holds.
    pub ids: Vec<i64>,
    /// Index into `ids` of the first end-of-text token, where CLIP's text towers pool; of BERT's
    /// tokens the last one before the padding; of SigLIP's the last one that others attend to, which
    /// is the last padding unless the tokenizer has an `attention_mask`.
    pub end_index: usize,
}

impl Tokens {
    /// Truncates the tokens to the context, ends them and pads them. `tokens` already holds the
    /// start.
    fn framed(mut tokens: Vec<u32>, end: u32, padding: u32, context_length: usize) -> Self {
        tokens.truncate(context_length.saturating_sub(1));
        tokens.push(end);
        // a caption may spell out the end token; the first one counts
        let end_index = tokens.iter().position(|&id| id == end).unwrap_or(0);
        tokens.resize(context_length, padding);
        Self { ids: tokens.into_iter().map(i64::from).collect(), end_index }
    }
}

/// Turns captions into token ids. Any text is a valid caption, also an empty or very long one.
pub trait Tokenizer: Send + Sync {
    /// The ids of a caption.
    fn encode(&self, caption: &str) -> Tokens;

    /// How many ids [`Tokenizer::encode`] returns.
    fn context_length(&self) -> usize;

    /// How many rows an embedding table needs: the largest id plus one.
    fn vocabulary_size(&self) -> usize;

    /// A name for what this tokenizer computes, `kind:context:hash`. The hash covers all that
    /// decides the ids and is the same on every machine, so two tokenizers of one fingerprint are
    /// equal.
    fn fingerprint(&self) -> String;
}

/// The two tokenizers of the CLIP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TokenizerKind {
    /// transformers' `CLIPTokenizer`.
    #[serde(rename = "hf")]
    HuggingFace,
    /// open_clip's `SimpleTokenizer`.
    #[serde(rename = "open_clip")]
    OpenClip,
}

/// Why a tokenizer cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// The start and end tokens do not fit the context.
    #[error("expected a context of at least 2 tokens, found {found}")]
    ContextLength {
        /// The length asked for.
        found: usize,
    },
}

/// Makes a tokenizer from the files of a model folder (`tokenizer.json`; `vocab.json` and
/// `merges.txt`; `merges.txt`; `bpe_simple_vocab*.txt.gz`; the first of these that exists), or from
/// CLIP's own vocabulary of 49,408 tokens if the folder has none of them or is `None`.
pub fn load(
    kind: TokenizerKind,
    folder: Option<&Path>,
    context_length: usize,
) -> Result<Box<dyn Tokenizer>, TokenizerError> {
    Ok(match kind {
        TokenizerKind::HuggingFace => Box::new(HuggingFaceTokenizer::load(folder, context_length)?),
        TokenizerKind::OpenClip => Box::new(OpenClipTokenizer::load(folder, context_length)?),
    })
}

fn check_context_length(found: usize) -> Result<(), TokenizerError> {
    if found < 2 { Err(TokenizerError::ContextLength { found }) } else { Ok(()) }
}

/// `name:context:hash`, the hash over ids and merges: they decide all ids, since the pipeline is
/// always the same.
fn fingerprint(name: &str, context_length: usize, vocabulary: &Vocabulary) -> String {
    let mut tokens: Vec<_> = vocabulary.ids.iter().chain(&vocabulary.added).collect();
    tokens.sort();
    tokens.dedup();
    let mut hasher = blake3::Hasher::new();
    for (token, id) in tokens {
        hasher.update(token.as_bytes()).update(&[0]).update(&id.to_le_bytes());
    }
    for (left, right) in &vocabulary.merges {
        hasher.update(left.as_bytes()).update(&[0]).update(right.as_bytes()).update(&[0]);
    }
    format!("{name}:{context_length}:{}", &hasher.finalize().to_hex()[..16])
}
