//! Images and captions to network input: the part of a scorer that Python does in Pillow,
//! torchvision and a tokenizer, to the last bit. Knows nothing of libtorch.
//!
//! | Module | From | To |
//! |---|---|---|
//! | [`decode`] | JPEG, PNG or WebP bytes, within limits | an image in Pillow's modes |
//! | [`resize`] | an image | a resized image, as `PIL.Image.resize` |
//! | [`preprocess`] | an image | normalised pixels, as CLIP's, open_clip's and HPS's processors |
//! | [`text`] | a caption | token ids, as CLIP's two tokenizers and BERT's |
//!
//! `preprocess` builds on `resize`, and that on `decode`; `text` is independent.
//!
//! ```
//! use media::decode::{Limits, decode};
//! use media::preprocess::{Kind, Recipe};
//! use media::text::{self, TokenizerKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/jpeg-444.jpg");
//! let image = decode(&std::fs::read(file)?, &Limits::default())?;
//! let recipe = Recipe::published(Kind::hf(224));
//! let mut pixels = vec![0.0; recipe.output_len()]; // (3, 224, 224)
//! recipe.apply(&image, &mut pixels)?;
//!
//! let tokenizer = text::load(TokenizerKind::HuggingFace, None, 77)?;
//! let tokens = tokenizer.encode("a red fox");
//! assert_eq!(tokens.ids[..5], [49406, 320, 736, 3240, 49407]);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

pub mod decode;
mod guard;
pub mod preprocess;
pub mod resize;
pub mod text;
