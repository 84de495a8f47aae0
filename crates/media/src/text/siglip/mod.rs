//! The tokenizers of SigLIP, as `AutoTokenizer` opens them: SentencePiece's unigrams over a caption
//! in lower case without punctuation (`SiglipTokenizer`, from `spiece.model`), Gemma's byte-pair
//! merges for SigLIP 2 (`GemmaTokenizer`, `Siglip2Tokenizer`, from `tokenizer.json`), or the
//! pipeline of a `tokenizer.json` as it is.
//!
//! A caption ends with the end token and is padded to the context, as the models were trained: their
//! feature is that of the last token.
//!
//! Source: huggingface/transformers (5.23.0) `models/siglip/tokenization_siglip.py`,
//! `models/siglip2/tokenization_siglip2.py`, `models/gemma/tokenization_gemma.py`,
//! `models/auto/tokenization_auto.py`. Goldens: `scripts/goldens/siglip.py`.

mod canonical;
mod merges;
mod normalizer;
mod proto;
mod unigram;

use std::path::Path;

use serde_json::Value;

use self::canonical::Canonical;
use self::merges::Merges;
use super::special_tokens::{FILE_CLASSES, Family, SpecialTokens, wrong};
use super::vocabulary::{malformed, read_limited};
use super::{Tokenizer, TokenizerError, Tokens, check_context_length};

/// `tokenizer_class` of the tokenizer that puts captions into lower case for SigLIP 2, as it was
/// trained. Its published folders name `GemmaTokenizer`, which does not.
pub const LOWER_CASED: &str = "Siglip2Tokenizer";

const SENTENCEPIECE: Family = Family {
    classes: &["SiglipTokenizer", "SiglipTokenizerFast"],
    defaults: &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "</s>")],
    padding_side: "right",
};

const GEMMA: Family = Family {
    classes: &["GemmaTokenizer", "GemmaTokenizerFast", LOWER_CASED],
    defaults: &[
        ("bos_token", "<bos>"),
        ("eos_token", "<eos>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ],
    padding_side: "left",
};

/// A pipeline that `tokenizer.json` describes in full.
const AS_IT_IS: Family = Family { classes: &FILE_CLASSES, defaults: &[], padding_side: "right" };

/// A tokenizer of SigLIP or SigLIP 2.
pub struct SiglipTokenizer {
    text: Text,
    padding: u32,
    masks_padding: bool,
    context_length: usize,
    vocabulary_size: usize,
    fingerprint: String,
}

/// From a caption to at most as many tokens as the context holds, with the end token.
enum Text {
    Canonical(Box<Canonical>),
    Merges(Box<Merges>),
}

impl SiglipTokenizer {
    /// Reads the tokenizer of a model folder. `class` stands in for the `tokenizer_class` of its
    /// `tokenizer_config.json`.
    ///
    /// # Errors If a file is missing, unreadable or malformed, or has a key that would give other
    /// tokens and is not built here.
    pub fn load(
        folder: &Path,
        class: Option<&str>,
        context_length: usize,
    ) -> Result<Self, TokenizerError> {
        check_context_length(context_length)?;
        let config = folder.join("tokenizer_config.json");
        let named = named_class(&config)?;
        let class = class.or(named.as_deref()).unwrap_or(SENTENCEPIECE.classes[0]);
        let (model, file) = (folder.join("spiece.model"), folder.join("tokenizer.json"));
        let named_pieces = SENTENCEPIECE.classes.contains(&class);
        // Without its file, the class has no tokens; the other file describes all of a pipeline.
        let pieces = named_pieces && (model.is_file() || !file.is_file());
        let family = match class {
            _ if pieces => SENTENCEPIECE,
            _ if named_pieces => Family { classes: SENTENCEPIECE.classes, ..AS_IT_IS },
            class if GEMMA.classes.contains(&class) => GEMMA,
            class if FILE_CLASSES.contains(&class) => AS_IT_IS,
            class => {
                let expected = "SiglipTokenizer, GemmaTokenizer or Siglip2Tokenizer";
                return Err(wrong(&config, "tokenizer_class", expected, &class.into()));
            }
        };
        let specials = SpecialTokens::of_family(folder, &family)?;
        let masks_padding = masks_padding(&specials)?;
        let (text, source) = if pieces {
            let canonical = Canonical::load(&model, &specials, context_length)?;
            (Text::Canonical(Box::new(canonical)), model)
        } else {
            let rebuilt = GEMMA.classes.contains(&class).then_some(class == LOWER_CASED);
            let merges = Merges::load(&file, &specials, rebuilt, context_length)?;
            (Text::Merges(Box::new(merges)), file)
        };
        let padding = text.id(&specials.padding).ok_or_else(|| {
            malformed(
                &source,
                format!("the token {} (padding)", specials.padding),
                "none by that name",
            )
        })?;
        let mut hasher = blake3::Hasher::new();
        text.hash(&mut hasher);
        hasher.update(&padding.to_le_bytes()).update(&[u8::from(masks_padding)]);
        Ok(Self {
            vocabulary_size: text.vocabulary_size(),
            text,
            padding,
            masks_padding,
            context_length,
            fingerprint: format!("siglip:{context_length}:{}", &hasher.finalize().to_hex()[..16]),
        })
    }
}

impl Tokenizer for SiglipTokenizer {
    fn encode(&self, caption: &str) -> Tokens {
        let mut ids = match &self.text {
            Text::Canonical(canonical) => canonical.encode(caption),
            Text::Merges(merges) => merges.encode(caption),
        };
        ids.truncate(self.context_length);
        let seen = if self.masks_padding { ids.len() } else { self.context_length };
        let end_index = seen.saturating_sub(1);
        ids.resize(self.context_length, self.padding);
        Tokens { ids: ids.into_iter().map(i64::from).collect(), end_index }
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

impl Text {
    fn id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Canonical(canonical) => canonical.id(token),
            Self::Merges(merges) => merges.id(token),
        }
    }

    fn vocabulary_size(&self) -> usize {
        match self {
            Self::Canonical(canonical) => canonical.vocabulary_size(),
            Self::Merges(merges) => merges.vocabulary_size(),
        }
    }

    /// Everything that decides the ids.
    fn hash(&self, hasher: &mut blake3::Hasher) {
        match self {
            Self::Canonical(canonical) => canonical.hash(hasher),
            Self::Merges(merges) => merges.hash(hasher),
        }
    }
}

/// `tokenizer_class`, if the file names one.
fn named_class(config: &Path) -> Result<Option<String>, TokenizerError> {
    if !config.is_file() {
        return Ok(None);
    }
    let keys: Value = serde_json::from_slice(&read_limited(config)?)
        .map_err(|error| malformed(config, "a JSON object", error))?;
    match keys.get("tokenizer_class") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(class)) => Ok(Some(class.clone())),
        Some(other) => Err(wrong(config, "tokenizer_class", "a name", other)),
    }
}

/// Whether `model_input_names` has the mask; the classes have it if the file does not say.
fn masks_padding(specials: &SpecialTokens) -> Result<bool, TokenizerError> {
    let (config, key) = (&specials.config, "model_input_names");
    let Some(value) = config.keys.get(key).filter(|value| !value.is_null()) else {
        return Ok(true);
    };
    let names: Option<Vec<&str>> =
        value.as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
    match names.as_deref() {
        Some(["input_ids"]) => Ok(false),
        Some(["input_ids", "attention_mask"] | ["attention_mask", "input_ids"]) => Ok(true),
        _ => Err(wrong(
            &config.path,
            key,
            "[\"input_ids\"], with or without \"attention_mask\"",
            value,
        )),
    }
}
