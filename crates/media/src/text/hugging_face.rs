//! The CLIP tokenizer of Hugging Face transformers, which PickScore was trained with: no repair of the
//! text beyond Unicode composition, white space and lower case.
//!
//! Matches `CLIPTokenizer` of huggingface/transformers, `src/transformers/models/clip/tokenization_clip.py`
//! as released in 5.23.0, on the same `tokenizers` library. A folder with `tokenizer.json` has the
//! pipeline of that file; any other vocabulary gets CLIP's pipeline.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Pipeline};

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

/// The context of every CLIP text encoder, for folders that name none.
const CLIP_CONTEXT: usize = 77;
/// A folder without a limit says so with a number beyond all contexts.
const LONGEST_CONTEXT: f64 = 65_536.0;

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
    /// `None`. Pads with the folder's `pad_token` (`tokenizer_config.json`, `special_tokens_map.json`),
    /// else with the end token.
    ///
    /// # Errors
    /// A file that is unreadable, malformed or cut short, or a context of fewer than two tokens.
    pub fn load(folder: Option<&Path>, context_length: usize) -> Result<Self, TokenizerError> {
        check_context_length(context_length)?;
        let specials = folder.map(Specials::read).transpose()?.unwrap_or_default();
        Self::make(folder, &specials, context_length)
    }

    /// Reads a tokenizer folder of a diffusion pipeline. The context is the folder's
    /// `model_max_length`, 77 where it names none.
    ///
    /// # Errors
    /// A file that is unreadable, malformed or cut short.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let specials = Specials::read(folder)?;
        let context_length = specials.context_length()?;
        let tokenizer = Self::make(Some(folder), &specials, context_length)?;
        // text encoders of diffusion pipelines read the padding
        let fingerprint = format!("{}:pad-{}", tokenizer.fingerprint, tokenizer.padding);
        Ok(Self { fingerprint, ..tokenizer })
    }

    fn make(
        folder: Option<&Path>,
        specials: &Specials,
        context_length: usize,
    ) -> Result<Self, TokenizerError> {
        let mut vocabulary = Vocabulary::load(folder)?;
        let source = vocabulary.source.clone();
        let from_file = source.file_name().is_some_and(|name| name == "tokenizer.json");
        rename_specials(&mut vocabulary);
        let [start, end] = vocabulary.start_and_end()?;
        let fingerprint = fingerprint("hf", context_length, &vocabulary);
        let padding = match &specials.padding {
            Some((path, token)) => *vocabulary.ids.get(token).ok_or_else(|| {
                malformed(path, "a pad_token of the vocabulary", format!("{token:?}"))
            })?,
            None => end,
        };
        let vocabulary_size = vocabulary.size();
        let wrong = |error: tokenizers::Error| malformed(&source, "a CLIP tokenizer", error);
        let mut pipeline = if from_file {
            Pipeline::from_bytes(read_limited(&source)?).map_err(wrong)?
        } else {
            clip_pipeline(vocabulary).map_err(wrong)?
        };
        // the special tokens are found in the text as it is written; a padding token "!" makes each
        // "!" one, as it does in transformers
        let known = pipeline.get_added_tokens_decoder();
        let added: Vec<AddedToken> = specials
            .found_in_text()
            .into_iter()
            .filter(|token| !known.values().any(|other| other.content == token.content))
            .filter(|token| pipeline.token_to_id(&token.content).is_some())
            .collect();
        pipeline.add_special_tokens(added).map_err(wrong)?;
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

    /// What of a caption does not fit the context, as it is written there; `None` where all of it
    /// fits.
    #[must_use]
    pub fn removed<'caption>(&self, caption: &'caption str) -> Option<&'caption str> {
        let room = self.context_length.saturating_sub(2);
        let encoding = self.pipeline.encode(caption, false).ok()?;
        let (start, _) = *encoding.get_offsets().get(room)?;
        // a letter of several bytes may be cut in two tokens
        Some(&caption[caption.floor_char_boundary(start)..])
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

/// CLIP's pipeline around a vocabulary.
fn clip_pipeline(vocabulary: Vocabulary) -> tokenizers::Result<Pipeline> {
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

/// What the files beside a vocabulary say.
#[derive(Default)]
struct Specials {
    /// Start, end, unknown and padding token, as far as they are named.
    tokens: Vec<AddedToken>,
    /// What fills the context, with the file that names it.
    padding: Option<(PathBuf, String)>,
    /// `tokenizer_config.json` and its `model_max_length`.
    context_length: Option<(PathBuf, f64)>,
}

/// `tokenizer_config.json` or `special_tokens_map.json`.
#[derive(Default, Deserialize)]
struct SpecialsFile {
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    unk_token: Option<Special>,
    pad_token: Option<Special>,
    added_tokens_decoder: Option<HashMap<String, Details>>,
    model_max_length: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Name(String),
    Details(Details),
}

#[derive(Clone, Deserialize)]
struct Details {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    normalized: bool,
}

impl Specials {
    /// As transformers 5.23.0 does (`PreTrainedTokenizerBase._from_pretrained`): the tokens of
    /// `special_tokens_map.json` win over those of `tokenizer_config.json`, and are not read where
    /// the latter has a table of added tokens.
    fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let config_path = folder.join("tokenizer_config.json");
        let map_path = folder.join("special_tokens_map.json");
        let config = SpecialsFile::read(&config_path)?;
        let map = match config.added_tokens_decoder {
            None => SpecialsFile::read(&map_path)?,
            Some(_) => SpecialsFile::default(),
        };
        let table = config.added_tokens_decoder.unwrap_or_default();
        let padding_path = if map.pad_token.is_some() { map_path } else { config_path.clone() };
        let padding = map.pad_token.or(config.pad_token).map(|special| special.token(&table));
        let named = [
            map.bos_token.or(config.bos_token),
            map.eos_token.or(config.eos_token),
            map.unk_token.or(config.unk_token),
        ];
        let mut tokens: Vec<AddedToken> =
            named.into_iter().flatten().map(|special| special.token(&table)).collect();
        tokens.extend(padding.clone());
        Ok(Self {
            tokens,
            padding: padding.map(|token| (padding_path, token.content)),
            context_length: config.model_max_length.map(|length| (config_path, length)),
        })
    }

    fn context_length(&self) -> Result<usize, TokenizerError> {
        match &self.context_length {
            Some((path, length)) if *length < 2.0 || length.fract() != 0.0 => {
                Err(malformed(path, "a model_max_length of 2 or more", length))
            }
            Some((_, length)) if *length <= LONGEST_CONTEXT => Ok(*length as usize),
            _ => Ok(CLIP_CONTEXT),
        }
    }

    /// The tokens that are found in a text as it is written. Of two with one name the later counts.
    fn found_in_text(&self) -> Vec<AddedToken> {
        let mut found = TRANSFORMERS_SPECIALS.map(|name| AddedToken::from(name, true)).to_vec();
        for token in &self.tokens {
            found.retain(|other| other.content != token.content);
            found.push(token.clone());
        }
        found
    }
}

impl SpecialsFile {
    /// The file, or what an empty one says where there is none.
    fn read(path: &Path) -> Result<Self, TokenizerError> {
        if !path.is_file() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&read_limited(path)?)
            .map_err(|error| malformed(path, "the names of special tokens", error))
    }
}

impl Special {
    /// The token, as the table describes it where it does.
    fn token(self, table: &HashMap<String, Details>) -> AddedToken {
        let name = match &self {
            Self::Name(name) => name,
            Self::Details(details) => &details.content,
        };
        let described = table.values().find(|details| details.content == *name).cloned();
        match (described, self) {
            (Some(details), _) | (None, Self::Details(details)) => AddedToken {
                content: details.content,
                single_word: details.single_word,
                lstrip: details.lstrip,
                rstrip: details.rstrip,
                normalized: details.normalized,
                special: true,
            },
            (None, Self::Name(name)) => AddedToken::from(name, true),
        }
    }
}
