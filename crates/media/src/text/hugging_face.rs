//! The CLIP tokenizer of Hugging Face transformers, which PickScore was trained with: no repair of
//! the text beyond Unicode composition, white space and lower case.
//!
//! Matches `CLIPTokenizer` of huggingface/transformers,
//! `src/transformers/models/clip/tokenization_clip.py` as released in 5.23.0, on the same
//! `tokenizers` library. As there, a `tokenizer.json` gives the vocabulary, the merges and the
//! added tokens, and the pipeline around them is CLIP's own.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Pipeline};

use super::byte_alphabet::byte_characters;
use super::special_tokens::SpecialTokens;
use super::vocabulary::{
    END_OF_WORD, OPEN_CLIP_SPECIALS, TRANSFORMERS_SPECIALS, Vocabulary, malformed, read_limited,
};
use super::{Tokenizer, TokenizerError, Tokens, check_context_length};

const NORMALIZER: &str = r#"{"type":"Sequence","normalizers":[{"type":"NFC"},
    {"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]}"#;
const PRE_TOKENIZER: &str = r#"{"type":"Sequence","pretokenizers":[{"type":"Split",
    "pattern":{"Regex":"<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
    "behavior":"Removed","invert":true},
    {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}"#;

/// Bytes of a long caption to encode first: a context of 77 tokens rarely needs more.
const FIRST_ATTEMPT: usize = 1 << 12;

/// What a text encoder reads.
#[derive(Debug, Clone, Copy)]
pub struct TokenLimits {
    /// The most tokens of a text.
    pub context_length: i64,
    /// Token ids are below this.
    pub vocabulary_size: i64,
}

/// transformers' CLIP tokenizer.
#[doc(alias = "CLIPTokenizer")]
pub struct HuggingFaceTokenizer {
    pipeline: Pipeline,
    start: u32,
    end: u32,
    padding: u32,
    context_length: usize,
    vocabulary_size: usize,
    fingerprint: String,
    /// Whether no token reaches across white space, so that a prefix can be encoded by itself.
    splits_at_spaces: bool,
}

impl HuggingFaceTokenizer {
    /// Reads the tokenizer of `folder`, or takes CLIP's own vocabulary if the folder has none or is
    /// `None`. The tokens that start, end and pad a text are the folder's (`tokenizer_config.json`,
    /// `special_tokens_map.json`), else CLIP's.
    ///
    /// Fails also for a key that would give other tokens and is not built here.
    pub fn load(folder: Option<&Path>, context_length: usize) -> Result<Self, TokenizerError> {
        check_context_length(context_length)?;
        let specials = match folder {
            Some(folder) => SpecialTokens::read(folder)?,
            None => SpecialTokens::defaults(),
        };
        Self::make(folder, &specials, context_length)
    }

    /// Reads a tokenizer folder of a diffusion pipeline. The context is the folder's
    /// `model_max_length`, 77 if it names none.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let specials = SpecialTokens::read(folder)?;
        let context_length = specials.context_length()?;
        let tokenizer = Self::make(Some(folder), &specials, context_length)?;
        // text encoders of diffusion pipelines read the padding
        let fingerprint = format!("{}:pad-{}", tokenizer.fingerprint, tokenizer.padding);
        Ok(Self { fingerprint, ..tokenizer })
    }

    /// [`HuggingFaceTokenizer::open`], and refuses a tokenizer whose text encoder cannot read all
    /// of its token ids.
    pub fn open_within(folder: &Path, limits: TokenLimits) -> Result<Self, TokenizerError> {
        let tokenizer = Self::open(folder)?;
        let (context, vocabulary) = (tokenizer.context_length, tokenizer.vocabulary_size);
        let fits = |ours: usize, limit: i64| usize::try_from(limit).is_ok_and(|most| ours <= most);
        let TokenLimits { context_length, vocabulary_size } = limits;
        if fits(context, context_length) && fits(vocabulary, vocabulary_size) {
            return Ok(tokenizer);
        }
        Err(TokenizerError::Malformed {
            path: folder.to_owned(),
            expected: format!(
                "at most {context_length} of {vocabulary_size} tokens, as its text encoder reads"
            ),
            found: format!(
                "{context} of {vocabulary}\nhint: the two folders are of different models"
            ),
        })
    }

    fn make(
        folder: Option<&Path>,
        specials: &SpecialTokens,
        context_length: usize,
    ) -> Result<Self, TokenizerError> {
        let mut vocabulary = Vocabulary::load(folder)?;
        let source = vocabulary.source.clone();
        rename_specials(&mut vocabulary);
        let missing = |role: &str, token: &str| {
            malformed(&source, format!("the token {token} ({role})"), "none by that name")
        };
        for (role, token) in [("start", &specials.start), ("end", &specials.end)] {
            let named = specials.added.iter().any(|added| added.content == *token)
                && !TRANSFORMERS_SPECIALS.contains(&token.as_str());
            if !named
                && !vocabulary.ids.contains_key(token)
                && !vocabulary.added.contains_key(token)
            {
                return Err(missing(role, token));
            }
        }
        if !vocabulary.ids.contains_key(&specials.unknown)
            && let Some(letter) = missing_letter(&vocabulary)
        {
            let expected =
                format!("the token {} (unknown) or one for {letter:?}", specials.unknown);
            return Err(malformed(&source, expected, "neither"));
        }
        let wrong = |error: tokenizers::Error| malformed(&source, "a CLIP tokenizer", error);
        let mut pipeline = clip_pipeline(vocabulary, &specials.unknown).map_err(wrong)?;
        if let Some((path, class)) = &specials.used_as_it_is {
            check_file(&source, path, class, &pipeline, [&specials.start, &specials.end])?;
        }
        // added tokens are found in the text as it is written; a padding token "!" makes each "!"
        // one, as it does in transformers
        pipeline.add_tokens(specials.added.iter().cloned()).map_err(wrong)?;
        let id = |role: &str, token: &str| {
            pipeline.token_to_id(token).ok_or_else(|| missing(role, token))
        };
        let [start, end, padding] = [
            id("start", &specials.start)?,
            id("end", &specials.end)?,
            id("padding", &specials.padding)?,
        ];
        let vocabulary_size =
            pipeline.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        // errors of encoding a caption come from the file and show on any caption
        pipeline.encode_fast("a photo of a cat, 4k!", false).map_err(wrong)?;
        let splits_at_spaces = splits_at_spaces(&pipeline);
        let fingerprint =
            fingerprint(&pipeline, [start, end, padding], context_length).map_err(wrong)?;
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

    /// The end of a caption that truncation removes, as it is written there; `None` if the whole
    /// caption fits the context.
    #[must_use]
    #[doc(alias = "truncation")]
    pub fn removed<'caption>(&self, caption: &'caption str) -> Option<&'caption str> {
        let room = self.context_length.saturating_sub(2);
        let encoding = self.pipeline.encode(caption, false).ok()?;
        let (start, _) = *encoding.get_offsets().get(room)?;
        // a letter of several bytes may be split over two tokens
        Some(&caption[caption.floor_char_boundary(start)..])
    }

    /// Tokens of a text without start and end: none if the pipeline fails, but `make` has shown
    /// that this one works.
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
            // white space separates tokens, so a prefix that ends before it has the same tokens
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
fn clip_pipeline(vocabulary: Vocabulary, unknown: &str) -> tokenizers::Result<Pipeline> {
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids.into_iter().collect::<Vocab>(), vocabulary.merges)
        .unk_token(unknown.to_owned())
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .build()?;
    let mut pipeline = Pipeline::new(model);
    pipeline.with_normalizer(Some(serde_json::from_str::<NormalizerWrapper>(NORMALIZER)?))?;
    pipeline.with_pre_tokenizer(Some(serde_json::from_str::<PreTokenizerWrapper>(PRE_TOKENIZER)?));
    Ok(pipeline)
}

/// A letter of the alphabet of bytes that the vocabulary lacks: a text with it needs the unknown
/// token.
fn missing_letter(vocabulary: &Vocabulary) -> Option<String> {
    let letters = byte_characters();
    let inner = letters.iter().map(char::to_string);
    let last = letters.iter().map(|letter| format!("{letter}{END_OF_WORD}"));
    inner.chain(last).find(|letter| !vocabulary.ids.contains_key(letter))
}

/// Rejects a file that transformers uses as it is and that is not CLIP's pipeline.
fn check_file(
    source: &Path,
    config: &Path,
    class: &str,
    clip: &Pipeline,
    [start, end]: [&str; 2],
) -> Result<(), TokenizerError> {
    let refused = |found: String| malformed(config, "CLIPTokenizer as `tokenizer_class`", found);
    if source.file_name().is_none_or(|name| name != "tokenizer.json") {
        return Err(refused(format!("{class} without a tokenizer.json")));
    }
    let file = Pipeline::from_bytes(read_limited(source)?)
        .map_err(|error| malformed(source, "a CLIP tokenizer", error))?;
    let parts = |pipeline: &Pipeline| {
        [
            serde_json::to_value(pipeline.get_normalizer()).ok(),
            serde_json::to_value(pipeline.get_pre_tokenizer()).ok(),
            serde_json::to_value(pipeline.get_model()).ok().map(|mut model| {
                if let Some(model) = model.as_object_mut() {
                    // an absent prefix is an empty one
                    model.remove("continuing_subword_prefix");
                }
                model
            }),
        ]
    };
    let frame = serde_json::to_value(file.get_post_processor()).unwrap_or_default();
    let framed =
        frame["type"] == "RobertaProcessing" && frame["cls"][0] == start && frame["sep"][0] == end;
    if framed && parts(&file) == parts(clip) {
        Ok(())
    } else {
        Err(refused(format!("{class} with a tokenizer.json that is not CLIP's pipeline")))
    }
}

/// Whether no added token reaches across white space.
fn splits_at_spaces(pipeline: &Pipeline) -> bool {
    pipeline.get_added_tokens_decoder().values().all(|token| {
        !token.content.contains(char::is_whitespace)
            && !token.lstrip
            && !token.rstrip
            && !token.normalized
    })
}

/// `hf:context:hash`, the hash over everything that decides the ids: the pipeline with its
/// vocabulary, merges and added tokens, and which tokens start, end and pad a text.
fn fingerprint(
    pipeline: &Pipeline,
    specials: [u32; 3],
    context_length: usize,
) -> tokenizers::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(pipeline.to_string(false)?.as_bytes());
    for id in specials {
        hasher.update(&id.to_le_bytes());
    }
    Ok(format!("hf:{context_length}:{}", &hasher.finalize().to_hex()[..16]))
}
