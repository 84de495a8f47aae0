//! Single files: the `.safetensors` of A1111, ComfyUI and their relatives, a whole pipeline under the
//! names of the original code of Stable Diffusion 1.5, 2.1 and SDXL.
//!
//! [`unpack()`] writes such a file as a folder in the layout of diffusers, and [`pack()`] a folder as such
//! a file. Sizes follow from the shapes of the tensors; what the shapes do not say (heads, noise
//! schedules) is that of the family, as in huggingface/diffusers
//! `src/diffusers/loaders/single_file_utils.py` at v0.42.1, whose names these are (`names`).

mod configs;
mod names;
mod pack;
mod unpack;

use std::io;
use std::path::Path;

use serde_json::Value;

pub use pack::{is_packed, pack};
pub use unpack::{check, unpack, unpacked};

use crate::error::ModelError;

/// The longest header of a safetensors file, as the format has it.
const LARGEST_HEADER: u64 = 100_000_000;
/// The prefix of the UNet.
pub(crate) const UNET: &str = "model.diffusion_model.";
/// The prefix of the autoencoder.
const VAE: &str = "first_stage_model.";
/// The prefix of the text encoder of Stable Diffusion 1.5, and of the first of SDXL.
const CLIP: [&str; 2] = ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."];
/// The prefix of the text encoder of Stable Diffusion 2.1, and of the second of SDXL.
const OPEN_CLIP: [&str; 2] = ["cond_stage_model.model.", "conditioner.embedders.1.model."];

/// The family of a single file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SingleFamily {
    /// Stable Diffusion 1.
    StableDiffusion1,
    /// Stable Diffusion 2.
    StableDiffusion2,
    /// SDXL.
    StableDiffusionXl,
}

fn refused(file: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::Folder { folder: file.to_owned(), reason: reason.into() }
}

/// An entry of the header's metadata.
fn metadata(file: &Path, key: &str) -> Option<String> {
    let mut file = std::fs::File::open(file).ok()?;
    let mut length = [0; 8];
    io::Read::read_exact(&mut file, &mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > LARGEST_HEADER {
        return None;
    }
    let mut header = vec![0; usize::try_from(length).ok()?];
    io::Read::read_exact(&mut file, &mut header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    header.get("__metadata__")?.get(key)?.as_str().map(str::to_owned)
}
