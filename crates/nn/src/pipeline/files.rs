//! What a diffusers directory holds: `model_index.json` and a sub-folder for each part.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, invalid, read_json, unsupported};
use crate::error::ModelError;
use crate::schedule::ScheduleConfig;
use crate::{text, unet};

/// Which pipeline a directory is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `StableDiffusionPipeline`: Stable Diffusion 1 and 2.
    StableDiffusion,
    /// `StableDiffusionXLPipeline`.
    StableDiffusionXl,
}

impl Family {
    /// The name of its class in diffusers.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::StableDiffusion => "StableDiffusionPipeline",
            Self::StableDiffusionXl => "StableDiffusionXLPipeline",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::StableDiffusion => "Stable Diffusion",
            Self::StableDiffusionXl => "SDXL",
        })
    }
}

/// The files of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFiles {
    /// `config.json`.
    pub config: PathBuf,
    /// The weights, or the index of their shards.
    pub weights: PathBuf,
}

/// The files of a pipeline. They are found, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineFiles {
    /// The pipeline's directory.
    pub folder: PathBuf,
    /// Which pipeline it is of.
    pub family: Family,
    /// The UNet, of this directory or of the one that stands in for it.
    pub unet: NetworkFiles,
    /// The autoencoder.
    pub vae: NetworkFiles,
    /// The text encoder; two of SDXL.
    pub text_encoders: Vec<NetworkFiles>,
    /// The folder of each text encoder's tokenizer.
    pub tokenizers: Vec<PathBuf>,
    /// `scheduler_config.json`.
    pub scheduler_config: PathBuf,
    /// Whether SDXL takes zeros for an empty negative prompt.
    pub force_zeros_for_empty_prompt: bool,
}

/// `model_index.json`: library and class of each part, and options of the pipeline.
#[derive(Deserialize)]
struct Index {
    #[serde(rename = "_class_name")]
    class_name: String,
    force_zeros_for_empty_prompt: Option<bool>,
    #[serde(flatten)]
    parts: BTreeMap<String, Value>,
}

const INDEX: &str = "model_index.json";
const TOKENIZERS: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];

impl PipelineFiles {
    /// Finds the parts of the pipeline in `folder`. f32 safetensors are preferred to shards of
    /// them, these to the `.fp16` variant, and that to a pickle. With `unet_override`, the UNet is
    /// that of another folder: one with `config.json` and weights, or one that contains such a
    /// folder as `unet`, as fine-tuned UNets are published.
    ///
    /// # Errors
    /// Where the directory is no such pipeline, or lacks a part.
    pub fn open(folder: &Path, unet_override: Option<&Path>) -> Result<Self, ModelError> {
        let index = Index::read(folder)?;
        let family = index.family()?;
        let xl = family == Family::StableDiffusionXl;
        let unet = match unet_override {
            None => index.network(folder, "unet", "UNet2DConditionModel", unet::WEIGHT_FILES)?,
            Some(other) => unet_alone(other)?,
        };
        let mut text_encoders = vec![("text_encoder", "CLIPTextModel")];
        let mut tokenizers = vec!["tokenizer"];
        if xl {
            text_encoders.push(("text_encoder_2", "CLIPTextModelWithProjection"));
            tokenizers.push("tokenizer_2");
        }
        Ok(Self {
            folder: folder.to_owned(),
            family,
            unet,
            vae: index.network(folder, "vae", "AutoencoderKL", unet::WEIGHT_FILES)?,
            text_encoders: text_encoders
                .into_iter()
                .map(|(name, class)| index.network(folder, name, class, text::WEIGHT_FILES))
                .collect::<Result<_, _>>()?,
            tokenizers: tokenizers
                .into_iter()
                .map(|name| {
                    index.part(folder, name, TOKENIZERS)?;
                    let found = folder.join(name);
                    one_of(&found, name, &["vocab.json", "tokenizer.json"]).map(|_| found)
                })
                .collect::<Result<_, _>>()?,
            scheduler_config: one_of(
                &folder.join("scheduler"),
                "scheduler",
                &["scheduler_config.json"],
            )?,
            // diffusers' default.
            force_zeros_for_empty_prompt: index.force_zeros_for_empty_prompt.unwrap_or(xl),
        })
    }

    /// The noise schedule, as the pipeline's class in diffusers corrects outdated ones: that of Stable
    /// Diffusion has an offset of one, and predicted latents are not clipped.
    ///
    /// # Errors
    /// Where `scheduler_config.json` cannot be read.
    pub fn schedule(&self) -> Result<ScheduleConfig, ConfigError> {
        let schedule = ScheduleConfig::read(&self.scheduler_config)?;
        Ok(match self.family {
            Family::StableDiffusion => {
                ScheduleConfig { steps_offset: 1, clip_sample: false, ..schedule }
            }
            Family::StableDiffusionXl => schedule,
        })
    }
}

impl Index {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join(INDEX);
        if !file.is_file() {
            let reason = "expected a diffusers directory, found no model_index.json in it\n\
                          hint: name the folder that DiffusionPipeline.save_pretrained wrote";
            return Err(unfit(folder, reason.to_owned()));
        }
        let index = Self::deserialize(&read_json(&file)?);
        Ok(index.map_err(|error| invalid(&file, error.to_string()))?)
    }

    fn family(&self) -> Result<Family, ModelError> {
        [Family::StableDiffusion, Family::StableDiffusionXl]
            .into_iter()
            .find(|family| family.class_name() == self.class_name)
            .ok_or_else(|| {
                let hint = "expected StableDiffusionPipeline or StableDiffusionXLPipeline";
                unsupported("_class_name", &self.class_name.as_str().into(), hint).into()
            })
    }

    /// Checks the class of a part, where the index names it: `["library", "class"]`, or two nulls
    /// for a part that was left out.
    fn part(&self, folder: &Path, name: &str, classes: &[&str]) -> Result<(), ModelError> {
        match self.parts.get(name).and_then(|part| part.get(1)).map(|class| class.as_str()) {
            Some(Some(class)) if !classes.contains(&class) => {
                let hint = format!("expected {}", classes.join(" or "));
                Err(unsupported(name, &class.into(), &hint).into())
            }
            Some(None) => Err(unfit(
                folder,
                format!(
                    "the pipeline was saved without its {name}\n\
                     hint: save it again with all parts, or copy {name} from the base model"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn network(
        &self,
        folder: &Path,
        name: &str,
        class: &str,
        weights: &[&str],
    ) -> Result<NetworkFiles, ModelError> {
        self.part(folder, name, &[class])?;
        network(&folder.join(name), name, weights)
    }
}

/// A UNet alone: its folder, or the one around it.
fn unet_alone(folder: &Path) -> Result<NetworkFiles, ModelError> {
    let inner = folder.join("unet");
    let folder = if inner.is_dir() { &inner } else { folder };
    network(folder, "unet", unet::WEIGHT_FILES)
}

fn network(folder: &Path, name: &str, weights: &[&str]) -> Result<NetworkFiles, ModelError> {
    Ok(NetworkFiles {
        config: one_of(folder, name, &["config.json"])?,
        weights: one_of(folder, name, weights)?,
    })
}

/// The first of `names` that is in `folder`.
fn one_of(folder: &Path, part: &str, names: &[&str]) -> Result<PathBuf, ModelError> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let expected = names.join(", ");
        let reason = if folder.is_dir() {
            format!("the {part} of the pipeline is not complete: expected a file {expected}")
        } else {
            format!("the pipeline lacks its {part}: expected this folder with a file {expected}")
        };
        unfit(folder, reason)
    })
}

pub(super) fn unfit(folder: &Path, reason: String) -> ModelError {
    ModelError::Folder { folder: folder.to_owned(), reason }
}
