//! Byte-pair merges from a `tokenizer.json`: Gemma's, which SigLIP 2 has, or whatever the file
//! describes. Which tokens start and end a text is in its `post_processor`: beside such a file,
//! transformers reads neither `add_bos_token` nor `add_eos_token`.

use std::path::Path;

use serde_json::json;
use tokenizers::{
    ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Pipeline, TruncationParams,
};

use super::super::TokenizerError;
use super::super::special_tokens::SpecialTokens;
use super::super::vocabulary::{malformed, read_limited};

/// Bytes of a caption per token of the context that are encoded: more than any token has.
const BYTES_PER_TOKEN: usize = 1 << 10;

/// The pipeline, which truncates to the context and adds the end token.
pub(super) struct Merges {
    pipeline: Pipeline,
    context_length: usize,
}

impl Merges {
    /// Reads the file. `rebuilt` is for Gemma's classes, which take vocabulary and merges of the
    /// file, and whether they put captions into lower case; `None` for the file as it is.
    pub(super) fn load(
        file: &Path,
        specials: &SpecialTokens,
        rebuilt: Option<bool>,
        context_length: usize,
    ) -> Result<Self, TokenizerError> {
        let failed =
            |error: tokenizers::Error| malformed(file, "a tokenizer of byte-pair merges", error);
        let opened = Pipeline::from_bytes(read_limited(file)?).map_err(failed)?;
        let mut pipeline = match rebuilt {
            None => opened,
            Some(lower) => gemma(&opened, specials, lower).map_err(failed)?,
        };
        pipeline.add_tokens(specials.added.iter().cloned()).map_err(failed)?;
        let truncation =
            TruncationParams { max_length: context_length, ..TruncationParams::default() };
        pipeline.with_truncation(Some(truncation)).map_err(failed)?;
        pipeline.with_padding(None);
        // Errors of encoding a caption come from the file and show on any caption.
        pipeline.encode_fast("a photo of a cat, 4k!", true).map_err(failed)?;
        Ok(Self { pipeline, context_length })
    }

    /// The tokens of a caption, truncated, with the end token: none if the pipeline fails, but
    /// `load` has shown that this one works.
    pub(super) fn encode(&self, caption: &str) -> Vec<u32> {
        let most = caption.floor_char_boundary(self.context_length * BYTES_PER_TOKEN);
        let encoding = self.pipeline.encode_fast(&caption[..most], true);
        encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.pipeline.token_to_id(token)
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.pipeline.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    pub(super) fn hash(&self, hasher: &mut blake3::Hasher) {
        // A pipeline that was read can be written.
        hasher
            .update(b"merges")
            .update(self.pipeline.to_string(false).unwrap_or_default().as_bytes());
    }
}

/// `GemmaTokenizer.__init__`, and with `lower` `Siglip2Tokenizer.__init__`.
fn gemma(opened: &Pipeline, specials: &SpecialTokens, lower: bool) -> tokenizers::Result<Pipeline> {
    let ModelWrapper::BPE(model) = opened.get_model() else {
        return Err("found another model than BPE".into());
    };
    let mut model = model.clone();
    model.unk_token = Some(specials.unknown.clone());
    (model.fuse_unk, model.byte_fallback, model.dropout) = (true, true, None);
    let mut pipeline = Pipeline::new(model);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = match lower {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, spaces]}),
        false => spaces,
    };
    let splits = json!({
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
    });
    pipeline.with_normalizer(Some(serde_json::from_value::<NormalizerWrapper>(normalizer)?))?;
    pipeline.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(splits)?));
    pipeline.with_post_processor(opened.get_post_processor().cloned());
    Ok(pipeline)
}
