//! The WordPiece tokenizer of BERT and its relatives, for networks that classify captions.
//!
//! Matches `BertTokenizer` and `DistilBertTokenizer` of huggingface/transformers,
//! `src/transformers/models/bert/tokenization_bert.py` as released in 5.23.0, on the same
//! `tokenizers` library. A folder with `tokenizer.json` has the pipeline of that file; `vocab.txt`
//! gets BERT's pipeline with the options of `tokenizer_config.json`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{
    AddedToken, ModelWrapper, PostProcessor as _, Tokenizer as Pipeline, TruncationParams,
};

use super::vocabulary::{malformed, read_limited, read_text};
use super::{Tokenizer, TokenizerError, Tokens, check_context_length};

/// A WordPiece tokenizer.
pub struct WordPieceTokenizer {
    pipeline: Pipeline,
    context_length: usize,
    vocabulary_size: usize,
    fingerprint: String,
}

/// The keys of `tokenizer_config.json` that are read; an absent one has the library's default.
#[derive(Deserialize)]
#[serde(default)]
struct Options {
    do_lower_case: bool,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: bool,
    unk_token: Special,
    cls_token: Special,
    sep_token: Special,
    pad_token: Special,
    mask_token: Special,
}

/// A token by name, or described in full.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Name(String),
    Details { content: String },
}

impl Special {
    fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Details { content: name } => name,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        let [unk_token, cls_token, sep_token, pad_token, mask_token] =
            ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"].map(|name| Special::Name(name.into()));
        Self {
            do_lower_case: true,
            strip_accents: None,
            tokenize_chinese_chars: true,
            unk_token,
            cls_token,
            sep_token,
            pad_token,
            mask_token,
        }
    }
}

impl WordPieceTokenizer {
    /// Reads the tokenizer of a model folder: `tokenizer.json`, else `vocab.txt` with the options
    /// of `tokenizer_config.json`. Texts are truncated to `context_length` tokens, start and end
    /// included. Fails also if the file lacks the special tokens.
    pub fn open(folder: &Path, context_length: usize) -> Result<Self, TokenizerError> {
        Self::open_with(folder, context_length, &[])
    }

    /// As [`WordPieceTokenizer::open`], with special tokens that are added after those of the file,
    /// as `add_special_tokens` does it: those that it has keep their ids, and others get the next.
    pub fn open_with(
        folder: &Path,
        context_length: usize,
        added: &[&str],
    ) -> Result<Self, TokenizerError> {
        check_context_length(context_length)?;
        let [whole, list] = ["tokenizer.json", "vocab.txt"].map(|name| folder.join(name));
        let source = if whole.is_file() { whole } else { list };
        let wrong = |error: tokenizers::Error| malformed(&source, "a WordPiece tokenizer", error);
        let mut pipeline = if source.extension().is_some_and(|extension| extension == "json") {
            Pipeline::from_bytes(read_limited(&source)?).map_err(wrong)?
        } else {
            let options = Options::read(&folder.join("tokenizer_config.json"))?;
            bert_pipeline(&source, &options)?
        };
        let ModelWrapper::WordPiece(model) = pipeline.get_model() else {
            return Err(malformed(&source, "a WordPiece model", "another kind of tokenizer"));
        };
        if !pipeline.get_vocab(true).contains_key(&model.unk_token) {
            let expected = format!("the token {}", model.unk_token);
            return Err(malformed(&source, expected, "none by that name"));
        }
        let special = added.iter().map(|name| AddedToken::from((*name).to_owned(), true));
        pipeline.add_special_tokens(special).map_err(wrong)?;
        let frame = pipeline.get_post_processor().map_or(0, |frame| frame.added_tokens(false));
        if frame > context_length {
            let expected = format!("a start and an end, of {context_length} tokens in all");
            return Err(malformed(&source, expected, format!("{frame} tokens around each text")));
        }
        let truncation = TruncationParams { max_length: context_length, ..Default::default() };
        pipeline.with_truncation(Some(truncation)).map_err(wrong)?;
        pipeline.with_padding(None);
        // Errors of encoding a text come from the file and show on any text.
        let trial = pipeline.encode_fast("a photo of a cat, 4k!", true).map_err(wrong)?;
        if trial.is_empty() || pipeline.encode_fast("", true).map_err(wrong)?.is_empty() {
            let expected = "tokens at the start and end of each text";
            return Err(malformed(&source, expected, "a tokenizer that adds none"));
        }
        let mut tokens: Vec<(String, u32)> = pipeline.get_vocab(true).into_iter().collect();
        tokens.sort();
        let vocabulary_size = tokens.iter().map(|(_, id)| *id as usize + 1).max().unwrap_or(0);
        let fingerprint = fingerprint(&pipeline, &tokens, context_length);
        Ok(Self { pipeline, context_length, vocabulary_size, fingerprint })
    }

    /// The ids of a text with start and end, without padding. Any text is valid, of any length.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        // `open` has shown that this pipeline works.
        let encoding = self.pipeline.encode_fast(text, true);
        encoding
            .map(|encoding| encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
            .unwrap_or_default()
    }

    /// The most ids that [`WordPieceTokenizer::encode`] returns.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// How many rows an embedding table needs: the largest id plus one.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// A name for what this tokenizer computes, the same on every machine, for manifests.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// BERT's tokens as captions of a scorer: [`WordPieceTokenizer`], padded to the context.
pub struct PaddedWordPiece(WordPieceTokenizer);

impl PaddedWordPiece {
    /// Reads the tokenizer of ImageReward from the folder of a BERT: with the special tokens `[DEC]`
    /// and `[ENC]` that BLIP adds (`init_tokenizer` of THUDM/ImageReward
    /// `ImageReward/models/BLIP/blip.py` at v1.5).
    ///
    /// # Errors
    /// As [`WordPieceTokenizer::open`].
    pub fn image_reward(folder: &Path, context_length: usize) -> Result<Self, TokenizerError> {
        WordPieceTokenizer::open_with(folder, context_length, &["[DEC]", "[ENC]"]).map(Self)
    }
}

impl Tokenizer for PaddedWordPiece {
    fn encode(&self, caption: &str) -> Tokens {
        let mut ids = self.0.encode(caption);
        let end_index = ids.len().saturating_sub(1);
        ids.resize(self.0.context_length, 0);
        Tokens { ids, end_index }
    }

    fn context_length(&self) -> usize {
        self.0.context_length
    }

    fn vocabulary_size(&self) -> usize {
        self.0.vocabulary_size
    }

    fn fingerprint(&self) -> String {
        self.0.fingerprint.clone()
    }
}

impl Options {
    fn read(path: &Path) -> Result<Self, TokenizerError> {
        if !path.is_file() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&read_limited(path)?)
            .map_err(|error| malformed(path, "the options of a tokenizer", error))
    }
}

/// BERT's pipeline around a list of tokens, one in each line.
fn bert_pipeline(list: &Path, options: &Options) -> Result<Pipeline, TokenizerError> {
    let text = read_text(list)?;
    let ids: HashMap<&str, u32> = text.lines().zip(0..).collect();
    let special = |token: &Special| {
        let name = token.name().to_owned();
        let id = ids.get(token.name()).copied();
        let missing = || {
            let found = "none by that name; is the file truncated?";
            malformed(list, format!("the token {name}"), found)
        };
        id.ok_or_else(missing).map(|id| (name.clone(), id))
    };
    let ends = BertProcessing::new(special(&options.sep_token)?, special(&options.cls_token)?);
    let (unknown, _) = special(&options.unk_token)?;
    let wrong = |error: tokenizers::Error| malformed(list, "a WordPiece vocabulary", error);
    let vocabulary: Vocab = ids.iter().map(|(&token, &id)| (token.to_owned(), id)).collect();
    let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown).build().map_err(wrong)?;
    let mut pipeline = Pipeline::new(model);
    let normalizer = BertNormalizer::new(
        true,
        options.tokenize_chinese_chars,
        options.strip_accents,
        options.do_lower_case,
    );
    pipeline.with_normalizer(Some(normalizer)).map_err(wrong)?;
    pipeline.with_pre_tokenizer(Some(BertPreTokenizer));
    pipeline.with_post_processor(Some(ends));
    // Special tokens are found in a text as it is written.
    let named = [
        &options.unk_token,
        &options.sep_token,
        &options.pad_token,
        &options.cls_token,
        &options.mask_token,
    ];
    let added = named
        .into_iter()
        .map(Special::name)
        .filter(|name| ids.contains_key(name))
        .map(|name| AddedToken::from(name, true));
    pipeline.add_special_tokens(added).map_err(wrong)?;
    Ok(pipeline)
}

/// `wordpiece:context:hash`, the hash over ids and what is done to a text before they are looked
/// up.
fn fingerprint(pipeline: &Pipeline, tokens: &[(String, u32)], context_length: usize) -> String {
    let mut hasher = blake3::Hasher::new();
    for (token, id) in tokens {
        hasher.update(token.as_bytes()).update(&[0]).update(&id.to_le_bytes());
    }
    for part in [
        serde_json::to_string(&pipeline.get_normalizer()),
        serde_json::to_string(&pipeline.get_pre_tokenizer()),
        serde_json::to_string(&pipeline.get_post_processor()),
    ] {
        hasher.update(part.unwrap_or_default().as_bytes()).update(&[0]);
    }
    format!("wordpiece:{context_length}:{}", &hasher.finalize().to_hex()[..16])
}
