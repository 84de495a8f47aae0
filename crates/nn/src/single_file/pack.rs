//! A folder in the layout of diffusers as a single file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use tch::{Kind, Tensor};

use super::names::{number, open_clip_to_single, unet_to_single, vae_to_single};
use super::{CLIP, OPEN_CLIP, UNET, VAE, metadata, refused};
use crate::error::ModelError;
use crate::pipeline::{Family, PipelineFiles};
use crate::schedule::PredictionType;
use crate::weights::{Weights, WeightsError, Written, write_while};

/// The entry of the header that says who wrote it.
const WRITER: &str = "modelspec.implementation";
const NAME: &str = "balanceddpo";
/// Width of the text that Stable Diffusion 2 reads.
const WIDTH_2: i64 = 1024;

/// Writes the networks of a pipeline to one file under the names that A1111, ComfyUI and
/// `from_single_file` of diffusers read. `kind` is the dtype of the numbers; `None` keeps those of
/// the folder. `check` is called before each tensor, and its error ends the work. The header names
/// the architecture and what the model predicts, as `modelspec` of Stability AI has it.
///
/// # Errors
/// If a network has a tensor that these files have no name for, or a file cannot be read or written.
pub fn pack(
    files: &PipelineFiles,
    to: &Path,
    kind: Option<Kind>,
    check: &dyn Fn() -> io::Result<()>,
) -> Result<Written, ModelError> {
    let is_xl = files.family == Family::StableDiffusionXl;
    let is_velocity = files.schedule()?.prediction_type == PredictionType::VPrediction;
    let mut tensors = Vec::new();
    unet(files, &mut tensors)?;
    vae(files, &mut tensors)?;
    let mut is_2 = false;
    for (index, network) in files.text_encoders.iter().enumerate() {
        let weights = Weights::open(&network.weights)?;
        let weights = weights.rooted(&["embeddings.token_embedding.weight"]);
        // Stable Diffusion 2 has a wider text encoder than 1, that of open_clip.
        let is_open_clip = match files.text_configs()?.get(index) {
            Some(text) => index > 0 || (!is_xl && text.sizes.width == WIDTH_2),
            None => false,
        };
        is_2 |= is_open_clip && !is_xl;
        match is_open_clip {
            false => clip(&weights, CLIP[usize::from(is_xl)], &mut tensors)?,
            true => {
                open_clip(&network.weights, &weights, OPEN_CLIP[usize::from(is_xl)], &mut tensors)?;
            }
        }
    }
    if let Some(kind) = kind {
        for (name, tensor) in &mut tensors {
            let converted = tensor.f_to_kind(kind);
            *tensor = converted.map_err(|source| WeightsError::Torch {
                file: Path::new(name.as_str()).to_owned(),
                source,
            })?;
        }
    }
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    let architecture = match (is_xl, is_2, is_velocity) {
        (true, ..) => "stable-diffusion-xl-v1-base",
        (_, true, true) => "stable-diffusion-v2-768-v",
        (_, true, false) => "stable-diffusion-v2-512",
        _ => "stable-diffusion-v1",
    };
    let facts = [
        (WRITER, NAME.to_owned()),
        ("modelspec.sai_model_spec", "1.0.0".to_owned()),
        ("modelspec.architecture", architecture.to_owned()),
        ("modelspec.prediction_type", if is_velocity { "v" } else { "epsilon" }.to_owned()),
    ];
    Ok(write_while(to, &tensors, &facts, check)?)
}

/// Whether [`pack`] wrote a file.
pub fn is_packed(file: &Path) -> bool {
    metadata(file, WRITER).as_deref() == Some(NAME)
}

fn unnamed(file: &Path, name: &str) -> ModelError {
    refused(file, format!("a single file has no name for its tensor {name}"))
}

fn unet(files: &PipelineFiles, tensors: &mut Vec<(String, Tensor)>) -> Result<(), ModelError> {
    let weights = Weights::open(&files.unet.weights)?;
    let weights = weights.rooted(crate::unet::ANCHORS);
    let layers = weights.names().filter_map(|name| name.strip_prefix("down_blocks.0.resnets."));
    let layers = layers.filter_map(|rest| Some(number(rest)?.0 + 1)).max().unwrap_or(0);
    let attends =
        |level: usize| weights.contains(&format!("up_blocks.{level}.attentions.0.norm.weight"));
    for name in weights.names() {
        let single = unet_to_single(name, layers, attends);
        let single = single.ok_or_else(|| unnamed(&files.unet.weights, name))?;
        tensors.push((format!("{UNET}{single}"), weights.tensor(name)?));
    }
    Ok(())
}

fn vae(files: &PipelineFiles, tensors: &mut Vec<(String, Tensor)>) -> Result<(), ModelError> {
    let file = &files.vae.weights;
    let weights = Weights::open(file)?;
    let weights = weights.rooted(&["decoder.conv_in.weight"]);
    let levels = weights.names().filter_map(|name| name.strip_prefix("encoder.down_blocks."));
    let levels = levels.filter_map(|rest| Some(number(rest)?.0 + 1)).max().unwrap_or(0);
    for name in weights.names() {
        let single = vae_to_single(name, levels).ok_or_else(|| unnamed(file, name))?;
        let mut tensor = weights.tensor(name)?;
        // Attention is a linear layer here, and a convolution of one pixel there.
        if name.contains(".attentions.")
            && let [rows, columns] = tensor.size()[..]
        {
            let viewed = tensor.f_view([rows, columns, 1, 1]);
            tensor = viewed.map_err(|source| WeightsError::Torch { file: file.clone(), source })?;
        }
        tensors.push((format!("{VAE}{single}"), tensor));
    }
    Ok(())
}

/// The name of a text encoder's tensor with the part that transformers 5 leaves out.
fn whole(name: &str) -> String {
    match name.starts_with("text_model.") || name.starts_with("text_projection.") {
        true => name.to_owned(),
        false => format!("text_model.{name}"),
    }
}

fn clip(
    weights: &Weights,
    prefix: &str,
    tensors: &mut Vec<(String, Tensor)>,
) -> Result<(), ModelError> {
    for name in weights.names().filter(|name| !name.ends_with("position_ids")) {
        tensors.push((format!("{prefix}{}", whole(name)), weights.tensor(name)?));
    }
    Ok(())
}

fn open_clip(
    file: &Path,
    weights: &Weights,
    prefix: &str,
    tensors: &mut Vec<(String, Tensor)>,
) -> Result<(), ModelError> {
    let torch = |source| WeightsError::Torch { file: file.to_owned(), source };
    let mut joined: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
    for name in weights.names().filter(|name| !name.ends_with("position_ids")) {
        let tensor = weights.tensor(name)?;
        let found = open_clip_to_single(&whole(name)).ok_or_else(|| unnamed(file, name))?;
        match found {
            (single, Some(place)) => {
                if let Some(slot) = joined.entry(single).or_default().get_mut(place) {
                    *slot = Some(tensor);
                }
            }
            (single, None) => {
                let tensor = match single.as_str() {
                    "text_projection" => tensor.f_transpose(0, 1).map_err(torch)?,
                    _ => tensor,
                };
                tensors.push((format!("{prefix}{single}"), tensor));
            }
        }
    }
    for (single, parts) in joined {
        let [Some(queries), Some(keys), Some(values)] = parts else {
            return Err(unnamed(file, &single));
        };
        let tensor = Tensor::f_cat(&[queries, keys, values], 0).map_err(torch)?;
        tensors.push((format!("{prefix}{single}"), tensor));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write_safetensors;

    /// A text encoder as diffusers' converter leaves it, and in a single file
    /// (`scripts/goldens/single_file.py`).
    #[test]
    fn the_text_encoder_of_open_clip_is_that_of_diffusers_converter_both_ways() {
        let golden = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/single_file/open_clip.safetensors"
        ));
        let weights = Weights::open(golden).unwrap();
        let prefix = format!("single.{}", OPEN_CLIP[1]);
        let under = |prefix: &str| -> Vec<(String, Tensor)> {
            let names = weights.names().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
            names.map(|(name, own)| (own.to_owned(), weights.tensor(name).unwrap())).collect()
        };
        let (single, diffusers) = (under(&prefix), under("diffusers."));
        let found = super::super::unpack::open_clip(golden, &weights, &prefix, true).unwrap();
        assert_eq!(found, diffusers);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        write_safetensors(&file, &diffusers).unwrap();
        let mut packed = Vec::new();
        open_clip(&file, &Weights::open(&file).unwrap(), "", &mut packed).unwrap();
        packed.sort_by(|(one, _), (other, _)| one.cmp(other));
        assert_eq!(packed, single);
    }
}
