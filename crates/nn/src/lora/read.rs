//! Reads files of adapters in any form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::file::{DIFFUSERS_FILE, METADATA, SAVED_ADAPTERS};
use super::keys::{self, Key, Role};
use super::merge::Part;
use super::{LoraError, listing};
use crate::weights::{StoredTensor, Weights, WeightsError, other_weights};

/// The names of files of adapters in a folder, the best first.
const FILES: [&str; 5] = [
    DIFFUSERS_FILE,
    "adapter_model.safetensors",
    SAVED_ADAPTERS,
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
];
/// PEFT's configuration beside a file of adapters.
const PEFT_CONFIG: &str = "adapter_config.json";
/// A configuration is a list of names.
const LARGEST_CONFIG_BYTES: u64 = 8 << 20;
/// The sub-folders in which trainers put the adapters of each part of a pipeline.
const FOLDERS: [(&str, Part); 3] = [
    ("unet", Part::Unet),
    ("text_encoder", Part::TextEncoder),
    ("text_encoder_2", Part::TextEncoder2),
];

/// The adapters of a file or folder, not yet those of a network. Opening reads headers, and the
/// numbers of the scales.
#[derive(Debug)]
pub struct LoraFile {
    /// The file or folder that was opened.
    pub path: PathBuf,
    /// Every file that was read, in a fixed order. A checksum of the adapters covers all of them.
    pub files: Vec<PathBuf>,
    pub(super) layers: Vec<LoraLayer>,
}

/// The adapter of one layer.
#[derive(Debug)]
pub(super) struct LoraLayer {
    pub(super) key: Key,
    /// One of its names in the file, for messages.
    pub(super) name: String,
    /// `[r, in]` or `[r, in, K, K]`.
    pub(super) down: StoredTensor,
    /// `[out, r]` or `[out, r, 1, 1]`.
    pub(super) up: StoredTensor,
    /// Alpha over the rank.
    pub(super) scale: f64,
}

/// What belongs to one layer in a file.
#[derive(Default)]
struct Found {
    name: String,
    down: Option<StoredTensor>,
    up: Option<StoredTensor>,
    alpha: Option<f64>,
}

impl LoraFile {
    /// Opens a file of adapters, or a folder that holds one, or one for each part of the pipeline.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or it holds anything but plain LoRA; all names that are
    /// not understood are in one error.
    pub fn open(path: &Path) -> Result<Self, LoraError> {
        let mut lora = Self { path: path.to_owned(), files: Vec::new(), layers: Vec::new() };
        if !path.is_dir() {
            lora.read(path, None)?;
            return Ok(lora);
        }
        if let Some(file) = in_folder(path) {
            lora.read(&file, None)?;
            return Ok(lora);
        }
        for (name, part) in FOLDERS {
            if let Some(file) = in_folder(&path.join(name)) {
                lora.read(&file, Some(part))?;
            }
        }
        if lora.files.is_empty() {
            let others = other_weights(path);
            let found = match others.len() {
                0 => String::new(),
                _ => format!("; hint: it holds {}, name the file itself", others.join(", ")),
            };
            let reason = format!("expected a file of adapters, as {}{found}", FILES.join(" or "));
            return Err(unfit(path, reason, &[]));
        }
        Ok(lora)
    }

    /// Reads one file. `part` is that of its folder, if the folder says it.
    fn read(&mut self, file: &Path, part: Option<Part>) -> Result<(), LoraError> {
        let weights = Weights::open(file)?;
        let settings = Settings::beside(file, &weights)?;
        self.files.extend(weights.files().iter().cloned());
        self.files.extend(settings.file.clone());
        let mut found: BTreeMap<Key, Found> = BTreeMap::new();
        let mut strange = Vec::new();
        for name in weights.names() {
            let parsed = keys::parse(name);
            let Some((mut key, role)) = parsed else {
                strange.push(format!("{name}: not of a plain LoRA"));
                continue;
            };
            key.part = key.part.or(part);
            let place = found.entry(key).or_default();
            name.clone_into(&mut place.name);
            match role {
                Role::Down => place.down = weights.stored_tensor(name),
                Role::Up => place.up = weights.stored_tensor(name),
                Role::Alpha => place.alpha = Some(number(&weights, name)?),
            }
        }
        if strange.is_empty() && found.is_empty() {
            return Err(unfit(file, "expected adapters, found no tensor".to_owned(), &[]));
        }
        for (key, Found { name, down, up, alpha }) in found {
            match (down, up) {
                (Some(down), Some(up)) => {
                    let rank = down.shape().first().copied().unwrap_or(0);
                    let ranks = (rank, up.shape().get(1).copied().unwrap_or(0));
                    if rank < 1 || ranks.0 != ranks.1 {
                        let (down, up) = (down.shape(), up.shape());
                        strange.push(format!("{name}: {down:?} and {up:?} have no common rank"));
                        continue;
                    }
                    let scale = settings.scale(&key, alpha, rank as f64);
                    if !scale.is_finite() {
                        strange.push(format!("{name}: its scale is not a finite number"));
                        continue;
                    }
                    self.layers.push(LoraLayer { key, name, down, up, scale });
                }
                (Some(_), None) => strange.push(format!("{name}: has no up or lora_B beside it")),
                (None, Some(_)) => strange.push(format!("{name}: has no down or lora_A beside it")),
                (None, None) => strange.push(format!("{name}: stands alone")),
            }
        }
        if strange.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "expected adapters of plain LoRA, found {} other tensors; hint: DoRA, LoHa, LoKr and \
             trained biases are not supported",
            strange.len()
        );
        Err(unfit(file, reason, &strange))
    }
}

pub(super) fn unfit(file: &Path, reason: String, lines: &[String]) -> LoraError {
    let listing = match lines {
        [] => String::new(),
        lines => format!(":{}", listing(lines)),
    };
    LoraError::Unfit { file: file.to_owned(), reason, listing }
}

fn in_folder(folder: &Path) -> Option<PathBuf> {
    FILES.iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// The number in a tensor of one.
fn number(weights: &Weights, name: &str) -> Result<f64, LoraError> {
    let tensor = weights.tensor(name)?;
    let file = weights.describe();
    if tensor.numel() != 1 {
        let reason = format!("expected {name} to be one number, found {:?}", tensor.size());
        return Err(unfit(&file, reason, &[]));
    }
    let torch = |source| WeightsError::Torch { file, source };
    let flat = tensor.f_reshape([1]).map_err(torch.clone())?;
    Ok(flat.f_double_value(&[0]).map_err(torch)?)
}

/// What the metadata of a file, or PEFT's configuration beside it, say of scales.
#[derive(Default)]
struct Settings {
    /// PEFT's file.
    file: Option<PathBuf>,
    /// The configuration of all layers.
    all: Map<String, Value>,
    /// The configuration of each part.
    parts: BTreeMap<Part, Map<String, Value>>,
}

impl Settings {
    fn beside(file: &Path, weights: &Weights) -> Result<Self, LoraError> {
        let mut settings = Self::default();
        let peft = file.with_file_name(PEFT_CONFIG);
        let is_peft = file.file_stem().is_some_and(|stem| stem == "adapter_model");
        if is_peft && peft.is_file() {
            let length = peft.metadata().map_err(WeightsError::Io)?.len();
            let text = match length <= LARGEST_CONFIG_BYTES {
                true => fs_err::read(&peft).map_err(WeightsError::Io)?,
                false => Vec::new(),
            };
            settings.all = object(&peft, &text)?;
            settings.file = Some(peft);
        }
        if let Some(text) = weights.metadata().remove(METADATA) {
            for (name, value) in object(file, text.as_bytes())? {
                let (part, name) = match name.split_once('.') {
                    Some(("unet", rest)) => (Part::Unet, rest),
                    Some(("text_encoder", rest)) => (Part::TextEncoder, rest),
                    Some(("text_encoder_2", rest)) => (Part::TextEncoder2, rest),
                    _ => continue,
                };
                settings.parts.entry(part).or_default().insert(name.to_owned(), value);
            }
        }
        let path = settings.file.as_deref().unwrap_or(file);
        for one in settings.parts.values().chain([&settings.all]) {
            refuse_variants(path, one)?;
        }
        Ok(settings)
    }

    /// The factor of a layer's adapter. Without an alpha, or with an alpha of 0, it is 1.
    fn scale(&self, key: &Key, alpha: Option<f64>, rank: f64) -> f64 {
        // A bare name is one of the UNet's, unless a folder says otherwise.
        let part = key.part.unwrap_or(Part::Unet);
        let settings = self.parts.get(&part).unwrap_or(&self.all);
        let of_layer = || {
            let patterns = settings.get("alpha_pattern")?.as_object()?;
            let fits = |pattern: &str| {
                let before = key.layer.strip_suffix(&pattern.replace('.', "_"));
                before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
            };
            patterns.iter().find(|(pattern, _)| fits(pattern))?.1.as_f64()
        };
        // An alpha in the file is that of sd-scripts, which knows no other scale.
        if let Some(alpha) = alpha {
            return if alpha == 0.0 { 1.0 } else { alpha / rank };
        }
        let alpha = of_layer().or_else(|| settings.get("lora_alpha")?.as_f64());
        let is_of_root = settings.get("use_rslora").and_then(Value::as_bool) == Some(true);
        match alpha {
            None | Some(0.0) => 1.0,
            Some(alpha) if is_of_root => alpha / rank.sqrt(),
            Some(alpha) => alpha / rank,
        }
    }
}

/// Refuses adapters that are more than LoRA.
fn refuse_variants(file: &Path, settings: &Map<String, Value>) -> Result<(), LoraError> {
    let text = |name: &str| settings.get(name).and_then(Value::as_str);
    let found = if settings.get("use_dora").and_then(Value::as_bool) == Some(true) {
        Some("use_dora".to_owned())
    } else if let Some(kind) = text("peft_type").filter(|kind| *kind != "LORA") {
        Some(format!("peft_type {kind}"))
    } else {
        text("bias").filter(|bias| *bias != "none").map(|bias| format!("bias {bias}"))
    };
    match found {
        None => Ok(()),
        Some(found) => Err(unfit(file, format!("expected plain LoRA, found {found}"), &[])),
    }
}

fn object(file: &Path, text: &[u8]) -> Result<Map<String, Value>, LoraError> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(unfit(file, "expected the configuration of adapters as JSON".to_owned(), &[])),
    }
}
