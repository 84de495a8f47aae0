//! Images and captions, turned into what the networks eat: decoding with limits, Pillow-exact
//! resizing, preprocessing recipes, text cleaning and tokenizers. Knows nothing of libtorch.
#![warn(missing_docs)]

pub mod decode;
mod guard;
pub mod preprocess;
pub mod resize;
pub mod text;
