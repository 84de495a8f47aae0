//! The CLIP tokenizer of Hugging Face transformers, which PickScore was trained with: no repair of the
//! text beyond Unicode composition, white space and lower case.
//!
//! Matches `CLIPTokenizer` of huggingface/transformers, `src/transformers/models/clip/tokenization_clip.py`
//! as released in 5.23.0, on the same `tokenizers` library. A folder with `tokenizer.json` has the
//! pipeline of that file; any other vocabulary gets CLIP's pipeline.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Pipeline};

use super::bpe::BytePairEncoder;
use super::vocabulary::{
    END_OF_WORD, OPEN_CLIP_SPECIALS, TRANSFORMERS_SPECIALS, Vocabulary, malformed, read_limited,
};
use super::{Tokenizer, TokenizerError, Tokens, check_context_length, fingerprint};

const NORMALIZER: &str = r#"{"type":"Sequence","normalizers":[{"type":"NFC"},
    {"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]}"#;
const PRE_TOKENIZER: &str = r#"{"type":"Sequence","pretokenizers":[{"type":"Split",
    "pattern":{"Regex":"<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
    "behavior":"Removed","invert":true},
    {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}"#;

/// A caption longer than this is first tried on its beginning alone, in bytes.
const FIRST_ATTEMPT: usize = 1 << 12;

/// transformers' CLIP tokenizer.
pub struct HuggingFaceTokenizer {
    pipeline: Pipeline,
    start: u32,
    end: u32,
    padding: u32,
    context_length: usize,
    vocabulary_size: usize,
    fingerprint: String,
    /// Whether no token reaches across white space, so that a beginning can be encoded by itself.
    splits_at_spaces: bool,
}

impl HuggingFaceTokenizer {
    /// Reads the tokenizer of `folder`, or takes CLIP's own vocabulary where the folder has none or is
    /// `None`. Pads with the folder's `pad_token` (`tokenizer_config.json`), else with the end token.
    ///
    /// # Errors
    /// A file that is unreadable, malformed or cut short, or a context of fewer than two tokens.
    pub fn load(folder: Option<&Path>, context_length: usize) -> Result<Self, TokenizerError> {
        check_context_length(context_length)?;
        let mut vocabulary = Vocabulary::load(folder)?;
        let source = vocabulary.source.clone();
        BytePairEncoder::new(&vocabulary).map_err(|token| {
            malformed(
                &source,
                format!("an id for the token {token:?}"),
                "none; is the file cut short?",
            )
        })?;
        let from_file = source.file_name().is_some_and(|name| name == "tokenizer.json");
        rename_specials(&mut vocabulary);
        let [start, end] = vocabulary.start_and_end()?;
        let fingerprint = fingerprint("hf", context_length, &vocabulary);
        let [start_name, end_name] = TRANSFORMERS_SPECIALS.map(str::to_owned);
        let mut specials = vec![start_name, end_name];
        let padding = match folder.map(padding_token).transpose()?.flatten() {
            Some((path, token)) => {
                let id = *vocabulary.ids.get(&token).ok_or_else(|| {
                    malformed(&path, "a pad_token of the vocabulary", format!("{token:?}"))
                })?;
                specials.push(token);
                id
            }
            None => end,
        };
        let vocabulary_size = vocabulary.size();
        let wrong = |error: tokenizers::Error| malformed(&source, "a CLIP tokenizer", error);
        let mut pipeline = if from_file {
            Pipeline::from_bytes(read_limited(&source)?).map_err(wrong)?
        } else {
            clip_pipeline(vocabulary, &specials).map_err(wrong)?
        };
        // cutting and padding happen here, for all sources alike
        pipeline.with_truncation(None).map_err(wrong)?;
        pipeline.with_padding(None);
        // errors of encoding a caption come from the file and show on any caption
        pipeline.encode_fast("a photo of a cat, 4k!", false).map_err(wrong)?;
        let splits_at_spaces = is_clip_pipeline(&pipeline);
        Ok(Self {
            pipeline,
            start,
            end,
            padding,
            context_length,
            vocabulary_size,
            fingerprint,
            splits_at_spaces,
        })
    }

    /// Tokens of a text without start and end. A pipeline that fails on a text gives none; `load` has
    /// shown that this one works.
    fn encode_text(&self, text: &str) -> Vec<u32> {
        self.pipeline
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .unwrap_or_default()
    }

    /// The tokens of the caption, or as many of its first ones as the context holds.
    fn first_tokens(&self, caption: &str) -> Vec<u32> {
        let mut length = FIRST_ATTEMPT;
        while self.splits_at_spaces && length < caption.len() {
            // white space separates tokens, so a beginning that ends before it has the same tokens
            let Some(space) = caption
                .as_bytes()
                .get(length..)
                .and_then(|rest| rest.iter().position(|&byte| byte == b' ' || byte == b'\n'))
            else {
                break;
            };
            let tokens = self.encode_text(&caption[..length + space]);
            if tokens.len() + 1 >= self.context_length {
                return tokens;
            }
            length = length.saturating_mul(8);
        }
        self.encode_text(caption)
    }
}

impl Tokenizer for HuggingFaceTokenizer {
    fn encode(&self, caption: &str) -> Tokens {
        let mut tokens = vec![self.start];
        tokens.extend(self.first_tokens(caption));
        Tokens::framed(tokens, self.end, self.padding, self.context_length)
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

/// Gives the special tokens of an open_clip vocabulary the names that transformers uses.
fn rename_specials(vocabulary: &mut Vocabulary) {
    for (old, new) in OPEN_CLIP_SPECIALS.into_iter().zip(TRANSFORMERS_SPECIALS) {
        if !vocabulary.ids.contains_key(new)
            && let Some(id) = vocabulary.ids.remove(old)
        {
            vocabulary.ids.insert(new.to_owned(), id);
        }
    }
}

/// CLIP's pipeline around a vocabulary. The special tokens are found in the text as it is written; a
/// padding token "!" makes each "!" one, as it does in transformers.
fn clip_pipeline(vocabulary: Vocabulary, specials: &[String]) -> tokenizers::Result<Pipeline> {
    let [_, end] = TRANSFORMERS_SPECIALS;
    let ids: Vec<(String, u32)> = vocabulary.ids.into_iter().collect();
    let model = BPE::builder()
        .vocab_and_merges(
            ids.into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            vocabulary.merges,
        )
        .unk_token(end.to_owned())
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .build()?;
    let mut pipeline = Pipeline::new(model);
    pipeline.with_normalizer(Some(serde_json::from_str::<NormalizerWrapper>(NORMALIZER)?))?;
    pipeline.with_pre_tokenizer(Some(serde_json::from_str::<PreTokenizerWrapper>(PRE_TOKENIZER)?));
    pipeline
        .add_special_tokens(specials.iter().map(|token| AddedToken::from(token.as_str(), true)))?;
    Ok(pipeline)
}

/// Whether a file's pipeline is CLIP's in all that decides where tokens may end.
fn is_clip_pipeline(pipeline: &Pipeline) -> bool {
    let same = || -> Option<bool> {
        let normalizer = serde_json::to_value(pipeline.get_normalizer()?).ok()?;
        let pre_tokenizer = serde_json::to_value(pipeline.get_pre_tokenizer()?).ok()?;
        let added = pipeline.get_added_tokens_decoder();
        let plain = added.values().all(|token| {
            !token.content.contains(char::is_whitespace)
                && !token.lstrip
                && !token.rstrip
                && !token.normalized
        });
        Some(
            plain
                && normalizer == serde_json::from_str::<serde_json::Value>(NORMALIZER).ok()?
                && pre_tokenizer
                    == serde_json::from_str::<serde_json::Value>(PRE_TOKENIZER).ok()?,
        )
    };
    same().unwrap_or(false)
}

/// The `pad_token` that a folder names, with the file that names it.
fn padding_token(folder: &Path) -> Result<Option<(PathBuf, String)>, TokenizerError> {
    #[derive(Deserialize)]
    struct Names {
        pad_token: Option<Name>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Name {
        Plain(String),
        Detailed { content: String },
    }
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let names: Names = serde_json::from_slice(&read_limited(&path)?)
            .map_err(|error| malformed(&path, "the names of special tokens", error))?;
        if let Some(Name::Plain(token) | Name::Detailed { content: token }) = names.pad_token {
            return Ok(Some((path, token)));
        }
    }
    Ok(None)
}
