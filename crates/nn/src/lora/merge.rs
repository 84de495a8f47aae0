//! Adapters added to the weights of a pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::Kind;

use super::blocks::Blocks;
use super::keys;
use super::read::{LoraFile, LoraLayer, unfit};
use super::source::ScaledLora;
use super::targets::Module;
use crate::error::ModelError;
use crate::pipeline::{NetworkFiles, PipelineFiles};
use crate::weights::{Delta, Entry, Weights, Written, write_each};
use crate::{text, unet};

/// A part of a pipeline that adapters change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The UNet.
    Unet,
    /// The text encoder, or the first of SDXL.
    TextEncoder,
    /// The second text encoder of SDXL.
    TextEncoder2,
}

impl Part {
    /// Its folder in a pipeline.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

/// The weights of a pipeline with adapters added. Each tensor is computed when it is read.
#[derive(Debug)]
pub struct MergedPipeline {
    /// The UNet's.
    pub unet: Weights,
    /// Those of each text encoder.
    pub text_encoders: Vec<Weights>,
    /// The parts that adapters change.
    pub changed: BTreeSet<Part>,
}

impl MergedPipeline {
    /// Opens the weights of a pipeline and adds adapters to them, in this order. Reads headers only.
    ///
    /// # Errors
    /// If a file cannot be read, or some of a file of adapters fits no layer of the pipeline; one
    /// error lists all of it.
    pub fn open(files: &PipelineFiles, loras: &[ScaledLora]) -> Result<Self, ModelError> {
        let open = |network: &NetworkFiles, anchors: &[&str]| -> Result<Weights, ModelError> {
            Ok(Weights::open(&network.weights)?.rooted(anchors).into_owned())
        };
        let unet = open(&files.unet, unet::ANCHORS)?;
        let encoders = files.text_encoders.iter().map(|network| open(network, text::ANCHORS));
        let text_encoders = encoders.collect::<Result<Vec<_>, _>>()?;
        let mut merged = Self { unet, text_encoders, changed: BTreeSet::new() };
        if loras.is_empty() {
            return Ok(merged);
        }
        let layers = merged.layers();
        for lora in loras {
            merged.add(&LoraFile::open(&lora.path)?, lora.scale, &layers)?;
        }
        Ok(merged)
    }

    /// Writes the weights of a part to `file`, f32 with the adapters in them, one tensor at a time.
    /// Calls `check` before each tensor; its error ends the writing, and no file appears.
    ///
    /// # Errors
    /// If a tensor cannot be read, or the file cannot be written.
    pub fn save(
        &self,
        part: Part,
        file: &Path,
        check: &dyn Fn() -> std::io::Result<()>,
    ) -> Result<Written, ModelError> {
        let none = Weights::default();
        let weights = match part {
            Part::Unet => &self.unet,
            Part::TextEncoder => self.text_encoders.first().unwrap_or(&none),
            Part::TextEncoder2 => self.text_encoders.get(1).unwrap_or(&none),
        };
        // Whole numbers, such as the ids of positions, stay what they are.
        let kind = |name: &str| match weights.kind(name) {
            Some(Kind::Half | Kind::BFloat16 | Kind::Double) | None => Kind::Float,
            Some(kind) => kind,
        };
        let entries: Vec<Entry<'_>> = weights
            .names()
            .map(|name| {
                let shape = weights.shape(name).unwrap_or_default().to_vec();
                Entry { name, kind: kind(name), shape }
            })
            .collect();
        let written = write_each(file, &entries, &[], &mut |index| {
            check()?;
            // The tensor before is written: the file need not stay in memory.
            if let Some(before) = index.checked_sub(1).and_then(|before| entries.get(before)) {
                weights.release_pages(before.name);
            }
            let Some(Entry { name, kind, .. }) = entries.get(index) else {
                return Err(std::io::Error::other("a tensor without an entry"));
            };
            let tensor = weights.tensor(name).map_err(std::io::Error::other)?;
            tensor.f_to_kind(*kind).map_err(|error| std::io::Error::other(error.to_string()))
        });
        Ok(written?)
    }

    /// The weights of a part.
    fn part(&mut self, part: Part) -> Option<&mut Weights> {
        match part {
            Part::Unet => Some(&mut self.unet),
            Part::TextEncoder => self.text_encoders.first_mut(),
            Part::TextEncoder2 => self.text_encoders.get_mut(1),
        }
    }

    /// The layers of all parts by the names that they have in files of adapters.
    fn layers(&self) -> BTreeMap<(Part, String), Module> {
        let mut layers = BTreeMap::new();
        let blocks = Blocks::of(self.unet.names());
        for module in modules(&self.unet) {
            let other = blocks.sgm(&module.name).map(|name| name.replace('.', "_"));
            for name in keys::forms(&module.name).into_iter().chain(other) {
                layers.entry((Part::Unet, name)).or_insert_with(|| module.clone());
            }
        }
        for (weights, part) in
            self.text_encoders.iter().zip([Part::TextEncoder, Part::TextEncoder2])
        {
            for module in modules(weights) {
                // Names in files of adapters begin with `text_model.`; those of the network may not.
                let bare = module.name.strip_prefix("text_model.").unwrap_or(&module.name);
                let full = format!("text_model_{}", bare.replace('.', "_"));
                for name in [module.name.replace('.', "_"), full] {
                    layers.entry((part, name)).or_insert_with(|| module.clone());
                }
            }
        }
        layers
    }

    fn add(
        &mut self,
        lora: &LoraFile,
        scale: f64,
        layers: &BTreeMap<(Part, String), Module>,
    ) -> Result<(), ModelError> {
        let mut strange = Vec::new();
        for layer in &lora.layers {
            let parts = match layer.key.part {
                Some(part) => vec![part],
                None => vec![Part::Unet, Part::TextEncoder, Part::TextEncoder2],
            };
            let found = parts
                .into_iter()
                .find_map(|part| Some((part, layers.get(&(part, layer.key.layer.clone()))?)));
            let Some((part, module)) = found else {
                strange.push(format!("{}: fits no layer", layer.name));
                continue;
            };
            if let Err(reason) = fits(layer, module) {
                strange.push(format!("{}: {reason}", layer.name));
                continue;
            }
            let delta = Delta {
                down: layer.down.clone(),
                up: layer.up.clone(),
                scale: layer.scale * scale,
            };
            let name = format!("{}.weight", module.name);
            if let Some(weights) = self.part(part) {
                weights.add_delta(&name, delta);
                self.changed.insert(part);
            }
        }
        if strange.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "{} of {} adapters do not fit the pipeline; hint: is it for another base model?",
            strange.len(),
            lora.layers.len()
        );
        Err(unfit(&lora.path, reason, &strange).into())
    }
}

/// All layers of a network that adapters can change.
fn modules(weights: &Weights) -> impl Iterator<Item = Module> {
    weights.names().filter_map(|name| Module::of(weights, name))
}

/// Whether the adapter has the sizes of the layer's weight.
fn fits(layer: &LoraLayer, module: &Module) -> Result<(), String> {
    let (down, up) = (layer.down.shape(), layer.up.shape());
    let inputs = |shape: &[i64]| -> i64 { shape.iter().skip(1).product() };
    let is_pointwise = up.iter().skip(2).all(|size| *size == 1);
    if up.first() == module.shape.first() && inputs(down) == inputs(&module.shape) && is_pointwise {
        return Ok(());
    }
    Err(format!("{down:?} and {up:?} do not fit a weight {:?}", module.shape))
}
