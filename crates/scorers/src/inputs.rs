//! The inputs of the networks, as processors and tokenizers make them: pixels and token ids.

use media::text::Tokens;

/// One image after preprocessing: a CHW f32 block of 3·size·size for each distinct recipe of the
/// set, in the set's order.
#[derive(Debug, Clone)]
pub struct PreprocessedImage {
    pub(crate) blocks: Vec<Vec<f32>>,
    pub(crate) on_white: bool,
}

impl PreprocessedImage {
    /// The output (3, size, size) of each distinct recipe of the set, in the set's order.
    #[must_use]
    pub fn blocks(&self) -> &[Vec<f32>] {
        &self.blocks
    }

    /// Whether the image has transparent pixels and a recipe composited it on white.
    #[must_use]
    pub fn on_white(&self) -> bool {
        self.on_white
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.len() * size_of::<f32>()).sum()
    }
}

/// Captions after tokenization: for each distinct tokenizer of the set, one entry per caption.
#[derive(Debug, Clone)]
pub struct TokenizedTexts {
    pub(crate) tokens: Vec<Vec<Tokens>>,
    pub(crate) captions: usize,
}

impl TokenizedTexts {
    /// How many captions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.captions
    }

    /// Whether there are no captions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.captions == 0
    }
}
