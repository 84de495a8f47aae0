//! Files of adapters that this crate writes.

use std::path::Path;

use runkit::files::FileError;
use serde_json::{Map, Value, json};
use tch::{Kind, TchError, Tensor};

use super::LoraConfig;
use super::blocks::Blocks;
use crate::error::ModelError;
use crate::unet::UNetConfig;
use crate::weights::{Written, write_safetensors_with_metadata};

/// The usual name of a file of adapters in diffusers.
pub const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
/// The file of adapters in a checkpoint, which [`UNet::save`](crate::unet::UNet::save) writes.
pub const SAVED_ADAPTERS: &str = "adapters.safetensors";
/// The entry of a file's metadata with the configuration of its adapters, as diffusers writes it.
pub(crate) const METADATA: &str = "lora_adapter_metadata";
/// The width of the text of Stable Diffusion 2, whose files sd-scripts marks.
const TEXT_WIDTH_OF_SD2: i64 = 1024;
/// What the names of a UNet's adapters begin with.
pub(crate) const UNET_PREFIX: &str = "unet.";
/// And in the form of sd-scripts.
pub(crate) const KOHYA_PREFIX: &str = "lora_unet_";

impl LoraConfig {
    /// The metadata of adapters that keep their scale beside them.
    pub(crate) fn metadata_of_checkpoint(&self) -> [(&'static str, String); 1] {
        [(METADATA, self.metadata(self.alpha, None))]
    }

    /// The configuration as diffusers writes it, with the names of all layers if the targets are not
    /// ends of names.
    fn metadata(&self, alpha: f64, modules: Option<Vec<String>>) -> String {
        let modules = match (self.targets.ends(), modules) {
            (Some(ends), _) => {
                let mut ends: Vec<String> = ends.into_iter().map(str::to_owned).collect();
                ends.sort_unstable();
                json!(ends)
            }
            (None, Some(modules)) => json!(modules),
            (None, None) => json!(self.targets),
        };
        // PEFT expects whole numbers where they are whole.
        let alpha = if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
        let entries = [
            ("bias", json!("none")),
            ("lora_alpha", alpha),
            ("lora_dropout", json!(0.0)),
            ("r", json!(self.rank)),
            ("target_modules", modules),
            ("use_dora", json!(false)),
            ("use_rslora", json!(false)),
        ];
        let entries = entries.map(|(name, value)| (format!("{UNET_PREFIX}{name}"), value));
        let entries = Value::Object(Map::from_iter(entries));
        // diffusers indents it by two, as this does.
        format!("{entries:#}")
    }
}

/// Writes adapters, as [`UNet::parameters`](crate::unet::UNet::parameters) lists them, in the form
/// of diffusers: `unet.MODULE.lora_A.weight` and `unet.MODULE.lora_B.weight`, f32, with the scale in
/// `lora_B`. The metadata therefore say an alpha equal to the rank, so that nobody scales twice.
///
/// # Errors
/// If the file cannot be written, or the device is out of memory.
#[doc(alias = "save_lora_weights")]
pub fn write_diffusers(
    path: &Path,
    adapters: &[(String, Tensor)],
    config: &LoraConfig,
) -> Result<Written, ModelError> {
    let mut tensors = Vec::with_capacity(adapters.len());
    let mut modules = Vec::new();
    for (name, tensor) in adapters {
        modules.extend(name.strip_suffix(".lora_B.weight").map(str::to_owned));
        tensors.push((format!("{UNET_PREFIX}{name}"), scaled(path, name, tensor, config)?));
    }
    tensors.sort_by(|(first, _), (second, _)| first.cmp(second));
    modules.sort_unstable();
    let metadata = config.metadata(config.rank as f64, Some(modules));
    Ok(write_safetensors_with_metadata(path, &tensors, &[(METADATA, metadata)])?)
}

/// Writes adapters in the form of sd-scripts, which A1111, ComfyUI and others read:
/// `lora_unet_MODULE.lora_down.weight`, `.lora_up.weight` with the scale in it, and `.alpha`, the
/// rank. Dots in the name of a module are underscores. `network` are the names of the UNet's tensors.
/// Modules of SDXL have the names of Stability AI's code, as these programs expect, and the metadata
/// name the version, by which A1111 lists the file only where it fits.
///
/// # Errors
/// As [`write_diffusers`].
#[doc(alias = "kohya")]
pub fn write_kohya(
    path: &Path,
    adapters: &[(String, Tensor)],
    network: impl Iterator<Item = String>,
    config: &LoraConfig,
    unet: &UNetConfig,
) -> Result<Written, ModelError> {
    let is_sdxl = unet.pooled_width().is_some();
    let names: Vec<String> = network.collect();
    let blocks = Blocks::of(names.iter().map(String::as_str));
    let torch = |source: TchError| file_error(path, &source);
    let mut tensors = Vec::with_capacity(2 * adapters.len());
    for (name, tensor) in adapters {
        let (module, part) = match name.strip_suffix(".lora_A.weight") {
            Some(module) => (module, "lora_down"),
            None => (name.strip_suffix(".lora_B.weight").unwrap_or(name), "lora_up"),
        };
        let known = if is_sdxl { blocks.sgm(module) } else { None };
        let known = known.unwrap_or_else(|| module.to_owned()).replace('.', "_");
        if part == "lora_down" {
            let alpha = Tensor::f_from_slice(&[config.rank as f32])
                .and_then(|alpha| alpha.f_view([] as [i64; 0]));
            tensors.push((format!("{KOHYA_PREFIX}{known}.alpha"), alpha.map_err(torch)?));
        }
        let tensor = scaled(path, name, tensor, config)?;
        tensors.push((format!("{KOHYA_PREFIX}{known}.{part}.weight"), tensor));
    }
    tensors.sort_by(|(first, _), (second, _)| first.cmp(second));
    let mut metadata = vec![
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", config.rank.to_string()),
        ("ss_network_alpha", config.rank.to_string()),
    ];
    if is_sdxl {
        metadata.push(("ss_base_model_version", "sdxl_base_v1-0".to_owned()));
    } else {
        let is_second = unet.cross_attention_dim == TEXT_WIDTH_OF_SD2;
        metadata.push(("ss_v2", if is_second { "True" } else { "False" }.to_owned()));
    }
    Ok(write_safetensors_with_metadata(path, &tensors, &metadata)?)
}

/// The tensor of an adapter as it is exported: f32, and `lora_B` times the scale.
fn scaled(
    path: &Path,
    name: &str,
    tensor: &Tensor,
    config: &LoraConfig,
) -> Result<Tensor, ModelError> {
    let scale = if name.ends_with(".lora_B.weight") { config.scale() } else { 1.0 };
    let exported = tensor.f_detach().and_then(|tensor| {
        let tensor = tensor.f_to_kind(Kind::Float)?;
        if scale == 1.0 { Ok(tensor) } else { tensor.f_mul_scalar(scale) }
    });
    exported.map_err(|source| file_error(path, &source))
}

fn file_error(path: &Path, source: &TchError) -> ModelError {
    let cause = std::io::Error::other(source.to_string());
    FileError::new(path, runkit::files::Operation::Write, cause).into()
}
