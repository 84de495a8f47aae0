//! A single file as a folder in the layout of diffusers.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tch::Tensor;

use super::names::{OpenClipTensor, TEXT_LAYERS, open_clip_to_diffusers};
use super::names::{number, unet_to_diffusers, vae_to_diffusers};
use super::{CLIP, OPEN_CLIP, SingleFamily, UNET, VAE, configs, metadata, refused};
use crate::error::ModelError;
use crate::pipeline::Family;
use crate::unet::SAVED_WEIGHTS;
use crate::weights::{Weights, WeightsError, write_while};

/// The file of a text encoder's weights.
const TEXT_WEIGHTS: &str = "model.safetensors";
/// The text encoder of Stable Diffusion 2 is used up to its last layer but one.
const LAYERS_2: usize = 24;
/// How many unknown names an error lists.
const LISTED: usize = 5;
/// Marks of a model that predicts v: trainers of SDXL write this tensor.
const VELOCITY: &str = "v_pred";

type Named = Vec<(String, Tensor)>;

/// The family of a single file, by its names and shapes. Reads the header only.
///
/// # Errors
/// If it is not a whole pipeline of Stable Diffusion 1.5, 2.1 or SDXL.
pub fn check(file: &Path) -> Result<SingleFamily, ModelError> {
    let weights = Weights::open(file)?;
    let family = family(file, &weights)?;
    configs::unet(&weights, family, false).map_err(|reason| refused(file, reason))?;
    configs::vae(&weights, family).map_err(|reason| refused(file, reason))?;
    Ok(family)
}

fn family(file: &Path, weights: &Weights) -> Result<SingleFamily, ModelError> {
    let has = |prefix: &str| weights.names().any(|name| name.starts_with(prefix));
    if !has(&format!("{UNET}input_blocks.0.0.")) {
        let reason = format!(
            "expected a single file of Stable Diffusion 1.5, 2.1 or SDXL, found no \
             {UNET}input_blocks.0.0.weight in it"
        );
        return Err(refused(file, reason));
    }
    if !has(VAE) {
        let reason = "it has no autoencoder (first_stage_model)\nhint: a file with all parts";
        return Err(refused(file, reason));
    }
    match (has(CLIP[0]), has(OPEN_CLIP[0]), has(CLIP[1]) && has(OPEN_CLIP[1])) {
        (true, false, false) => Ok(SingleFamily::StableDiffusion1),
        (false, true, false) => Ok(SingleFamily::StableDiffusion2),
        (false, false, true) => Ok(SingleFamily::StableDiffusionXl),
        _ if has("conditioner.embedders.0.model.") => {
            Err(refused(file, "it is SDXL's refiner, expected a base model"))
        }
        _ => Err(refused(
            file,
            "it does not have the text encoders of Stable Diffusion 1.5, 2.1 or SDXL\nhint: a file \
             with all parts",
        )),
    }
}

/// Whether the model predicts v: what the header says, a tensor that marks it, or else for Stable
/// Diffusion 2 its published model of 768 pixels, as diffusers assumes.
fn is_velocity(file: &Path, weights: &Weights, family: SingleFamily) -> bool {
    match metadata(file, "modelspec.prediction_type").as_deref() {
        Some("v") => true,
        Some(_) => false,
        None => weights.contains(VELOCITY) || family == SingleFamily::StableDiffusion2,
    }
}

/// The folder in `cache` that a single file is unpacked to, by its content as far as the file
/// system tells: its header, length and times.
///
/// # Errors
/// If the file cannot be read.
pub fn unpacked(file: &Path, cache: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let facts = file.metadata()?;
    let mut beginning = vec![0; 1 << 20];
    let count = io::Read::read(&mut std::fs::File::open(file)?, &mut beginning)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(beginning.get(..count).unwrap_or_default());
    for number in
        [facts.size() as i64, facts.mtime(), facts.mtime_nsec(), facts.ctime(), facts.ctime_nsec()]
    {
        hasher.update(&number.to_le_bytes());
    }
    let key: String = hasher.finalize().to_hex().chars().take(32).collect();
    Ok(cache.join("single-files").join(key))
}

/// Writes the networks of a single file, with their configurations and CLIP's tokenizers, to
/// `folder`. Tensors keep their dtype. `check` is called before each tensor, and its error ends the
/// work; `model_index.json` is written last, so a folder that has it is complete.
///
/// # Errors
/// If the file is not such a pipeline, or a file cannot be written.
pub fn unpack(
    file: &Path,
    folder: &Path,
    check: &dyn Fn() -> io::Result<()>,
) -> Result<(), ModelError> {
    let weights = Weights::open(file)?;
    let family = family(file, &weights)?;
    let is_velocity = is_velocity(file, &weights, family);
    let missing = |reason| refused(file, reason);
    let write = |part: &str, name: &str, tensors: &Named, config: &Value| {
        let part = folder.join(part);
        runkit::files::create_folder(&part)?;
        write_while(&part.join(name), tensors, &[], check)?;
        runkit::files::write_json_atomic(part.join("config.json"), config)?;
        Ok::<(), ModelError>(())
    };
    let layers = configs::Blocks::of(&weights).map_err(missing)?.layers;
    let unet = renamed(file, &weights, UNET, |name| unet_to_diffusers(name, layers))?;
    let config = configs::unet(&weights, family, is_velocity).map_err(missing)?;
    write("unet", SAVED_WEIGHTS, &unet, &config)?;
    drop(unet);
    let levels = configs::vae_levels(&weights);
    let mut vae = renamed(file, &weights, VAE, |name| vae_to_diffusers(name, levels))?;
    for (name, tensor) in &mut vae {
        // Attention is a convolution of one pixel there, and a linear layer here.
        if name.contains(".attentions.")
            && let [rows, columns, 1, 1] = tensor.size()[..]
        {
            *tensor = tensor.f_view([rows, columns]).map_err(|error| torch(file, error))?;
        }
    }
    write("vae", SAVED_WEIGHTS, &vae, &configs::vae(&weights, family).map_err(missing)?)?;
    drop(vae);
    for (index, is_open_clip) in text_encoders(family).iter().enumerate() {
        let has_projection = index > 0;
        let tensors = match is_open_clip {
            false => {
                let prefix = CLIP[usize::from(family == SingleFamily::StableDiffusionXl)];
                clip(file, &weights, prefix)?
            }
            true => {
                let prefix = OPEN_CLIP[usize::from(family == SingleFamily::StableDiffusionXl)];
                open_clip(file, &weights, prefix, has_projection)?
            }
        };
        let sizes = tensors.iter().map(|(name, tensor)| (name.clone(), json!(tensor.size())));
        let sizes: Map<String, Value> = sizes.collect();
        let config = configs::text(&sizes, *is_open_clip, has_projection).map_err(missing)?;
        let suffix = if index > 0 { "_2" } else { "" };
        write(&format!("text_encoder{suffix}"), TEXT_WEIGHTS, &tensors, &config)?;
        write_tokenizer(&folder.join(format!("tokenizer{suffix}")), *is_open_clip)?;
    }
    let (class, config) = configs::scheduler(family, is_velocity);
    runkit::files::create_folder(folder.join("scheduler"))?;
    runkit::files::write_json_atomic(folder.join("scheduler/scheduler_config.json"), &config)?;
    runkit::files::write_json_atomic(folder.join("model_index.json"), &index(family, class))?;
    Ok(())
}

/// For each text encoder of a family, whether it is open_clip's.
fn text_encoders(family: SingleFamily) -> &'static [bool] {
    match family {
        SingleFamily::StableDiffusion1 => &[false],
        SingleFamily::StableDiffusion2 => &[true],
        SingleFamily::StableDiffusionXl => &[false, true],
    }
}

/// `model_index.json`.
fn index(family: SingleFamily, scheduler: &str) -> Value {
    let class = match family {
        SingleFamily::StableDiffusionXl => Family::StableDiffusionXl,
        _ => Family::StableDiffusion,
    };
    let mut index = json!({
        "_class_name": class.class_name(),
        "_diffusers_version": "0.42.1",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    let more = match class {
        Family::StableDiffusion => json!({
            "requires_safety_checker": false,
            "safety_checker": [null, null],
        }),
        Family::StableDiffusionXl => json!({
            "force_zeros_for_empty_prompt": true,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }),
    };
    if let (Some(index), Value::Object(more)) = (index.as_object_mut(), more) {
        index.extend(more);
    }
    index
}

/// CLIP's own tokenizer. That of open_clip's text encoders pads with an exclamation mark.
fn write_tokenizer(folder: &Path, is_open_clip: bool) -> Result<(), ModelError> {
    runkit::files::create_folder(folder)?;
    let files =
        media::text::clip_tokenizer_files().map_err(|error| refused(folder, error.to_string()))?;
    for (name, text) in ["vocab.json", "merges.txt"].into_iter().zip(files) {
        runkit::files::write_atomic(folder.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    let (start, end) = ("<|startoftext|>", "<|endoftext|>");
    let config = json!({
        "bos_token": start,
        "eos_token": end,
        "model_max_length": 77,
        "pad_token": if is_open_clip { "!" } else { end },
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": end,
    });
    runkit::files::write_json_atomic(folder.join("tokenizer_config.json"), &config)?;
    Ok(())
}

fn torch(file: &Path, source: tch::TchError) -> ModelError {
    WeightsError::Torch { file: file.to_owned(), source }.into()
}

/// The tensors below a prefix under their names in diffusers; all must have one.
fn renamed(
    file: &Path,
    weights: &Weights,
    prefix: &str,
    name_of: impl Fn(&str) -> Option<String>,
) -> Result<Named, ModelError> {
    let mut tensors = Vec::new();
    let mut unknown = Vec::new();
    for name in weights.names() {
        let Some(own) = name.strip_prefix(prefix) else { continue };
        match name_of(own) {
            Some(to) => tensors.push((to, weights.tensor(name)?)),
            None => unknown.push(name),
        }
    }
    refuse_unknown(file, &unknown)?;
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(tensors)
}

fn refuse_unknown(file: &Path, unknown: &[&str]) -> Result<(), ModelError> {
    if unknown.is_empty() {
        return Ok(());
    }
    let shown = unknown.get(..LISTED.min(unknown.len())).unwrap_or_default().join(", ");
    let reason = format!(
        "{} tensors belong to no network of Stable Diffusion 1.5, 2.1 or SDXL: {shown}{}",
        unknown.len(),
        if unknown.len() > LISTED { ", ..." } else { "" }
    );
    Err(refused(file, reason))
}

/// The text encoder of CLIP, which has transformers' names already.
fn clip(file: &Path, weights: &Weights, prefix: &str) -> Result<Named, ModelError> {
    let known = |name: &str| {
        let bare = name.strip_prefix("text_model.").unwrap_or(name);
        let is_known = ["embeddings.", "encoder.layers.", "final_layer_norm."]
            .iter()
            .any(|part| bare.starts_with(part));
        is_known.then(|| format!("text_model.{bare}"))
    };
    let mut tensors = renamed(file, weights, prefix, known)?;
    // A list of numbers from 0 on, which older versions stored.
    tensors.retain(|(name, _)| !name.ends_with(".position_ids"));
    Ok(tensors)
}

/// The text encoder of open_clip. Of Stable Diffusion 2 the last of 24 layers is not read.
pub(super) fn open_clip(
    file: &Path,
    weights: &Weights,
    prefix: &str,
    has_projection: bool,
) -> Result<Named, ModelError> {
    let mut tensors = Vec::new();
    let mut unknown = Vec::new();
    for name in weights.names() {
        let Some(own) = name.strip_prefix(prefix) else { continue };
        if own == "logit_scale" || (own == "text_projection" && !has_projection) {
            continue;
        }
        let tensor = weights.tensor(name)?;
        match open_clip_to_diffusers(own) {
            None => unknown.push(name),
            Some(OpenClipTensor::Same(to)) => tensors.push((to, tensor)),
            Some(OpenClipTensor::Transposed(to)) => {
                tensors.push((to, tensor.f_transpose(0, 1).map_err(|error| torch(file, error))?));
            }
            Some(OpenClipTensor::Joined(to)) => {
                let parts = tensor.f_chunk(3, 0).map_err(|error| torch(file, error))?;
                tensors.extend(to.into_iter().zip(parts));
            }
        }
    }
    refuse_unknown(file, &unknown)?;
    if !has_projection {
        let is_last = |name: &str| {
            let layer = name.strip_prefix(TEXT_LAYERS).and_then(number);
            layer.is_some_and(|(layer, _)| layer + 1 == LAYERS_2)
        };
        tensors.retain(|(name, _)| !is_last(name));
    }
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(tensors)
}
