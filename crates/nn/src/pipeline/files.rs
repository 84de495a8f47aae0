//! The contents of a diffusers directory: `model_index.json` and a sub-folder for each part.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use hub::Wanted;
use serde_json::Value;

use crate::config::{ConfigError, Options, read_json, unsupported, without_unset};
use crate::error::ModelError;
use crate::schedule::ScheduleConfig;
use crate::text::{self, TextEncoderConfig};
use crate::unet::{self, UNetConfig};
use crate::weights;

/// The family of a pipeline.
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

/// The files of a pipeline, found but not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineFiles {
    /// The pipeline's directory.
    pub folder: PathBuf,
    /// The family of the pipeline.
    pub family: Family,
    /// The UNet of this directory, or the one that replaces it.
    pub unet: NetworkFiles,
    /// The autoencoder.
    pub vae: NetworkFiles,
    /// The text encoder; SDXL has two.
    pub text_encoders: Vec<NetworkFiles>,
    /// The folder of each text encoder's tokenizer.
    pub tokenizers: Vec<PathBuf>,
    /// `scheduler_config.json`.
    pub scheduler_config: PathBuf,
    /// The scheduler's class in the index, whatever the file itself says.
    pub scheduler_class: Option<String>,
    /// Whether SDXL replaces an empty negative prompt by zeros.
    pub force_zeros_for_empty_prompt: bool,
}

/// `model_index.json`: the library and the class of each part, and options of the pipeline.
struct Index {
    file: PathBuf,
    class: String,
    /// Whether SDXL replaces an empty negative prompt by zeros; null means no, as in Python.
    force_zeros: bool,
    parts: BTreeMap<&'static str, Value>,
}

const INDEX: &str = "model_index.json";
const TOKENIZERS: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
/// The parts that are read, with the library of their classes.
const PARTS: &[(&str, &str)] = &[
    ("unet", "diffusers"),
    ("vae", "diffusers"),
    ("scheduler", "diffusers"),
    ("text_encoder", "transformers"),
    ("text_encoder_2", "transformers"),
    ("tokenizer", "transformers"),
    ("tokenizer_2", "transformers"),
];
/// Other entries of an index: parts that inspect or mark finished images, or start from an image.
/// They have no effect here.
const OF_NO_EFFECT: &[&str] = &[
    "add_watermarker",
    "feature_extractor",
    "image_encoder",
    "requires_safety_checker",
    "safety_checker",
];
/// diffusers uses this size for a smaller UNet of Stable Diffusion that was written before this
/// version, because its file has the default of that time.
const FORMER_SAMPLE_SIZE: i64 = 64;
const FIRST_VERSION_WITH_SAMPLE_SIZE: [u64; 2] = [0, 9];

impl PipelineFiles {
    /// Finds the parts of the pipeline in `folder`. It prefers f32 safetensors to their shards,
    /// these to the `.fp16` variant, and that to a pickle. With `unet_override`, the UNet comes
    /// from another folder: one with `config.json` and weights, or one that contains such a folder
    /// as `unet`, as fine-tuned UNets are published.
    ///
    /// # Errors If the directory is not such a pipeline, or lacks a part.
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
            scheduler_class: index.scheduler(folder)?,
            scheduler_config: one_of(
                &folder.join("scheduler"),
                "scheduler",
                &["scheduler_config.json"],
            )?,
            force_zeros_for_empty_prompt: xl && index.force_zeros,
        })
    }

    /// Finds the UNet in a folder, or in its sub-folder `unet`.
    ///
    /// # Errors If there is no UNet, or a part of it is missing.
    pub fn open_unet(folder: &Path) -> Result<NetworkFiles, ModelError> {
        unet_alone(folder)
    }

    /// The noise schedule, with the corrections that the pipeline's class in diffusers makes to
    /// outdated files: for Stable Diffusion, `steps_offset` is one and predicted latents are not
    /// clipped.
    pub fn schedule(&self) -> Result<ScheduleConfig, ConfigError> {
        let class = self.scheduler_class.as_deref();
        let schedule = ScheduleConfig::read_as(&self.scheduler_config, class)?;
        Ok(match self.family {
            Family::StableDiffusion => {
                ScheduleConfig { steps_offset: 1, clip_sample: false, ..schedule }
            }
            Family::StableDiffusionXl => schedule,
        })
    }

    /// The UNet's configuration, with the correction that the pipeline's class in diffusers makes
    /// to outdated files: the sample size of a Stable Diffusion UNet from before 0.9 is at least
    /// 64.
    ///
    /// # Errors
    /// If `config.json` cannot be read or describes another kind of network.
    pub fn unet_config(&self) -> Result<UNetConfig, ConfigError> {
        let file = &self.unet.config;
        let mut config = UNetConfig::read(file)?;
        if self.family != Family::StableDiffusion {
            return Ok(config);
        }
        let source = config.source();
        let side = source.get("sample_size").and_then(Value::as_i64);
        let Some(version) = source.get("_diffusers_version") else { return Ok(config) };
        let refused = || {
            unsupported("_diffusers_version", version, "expected a version, as 0.42.1")
                .in_file(file)
        };
        let version = version.as_str().and_then(release).ok_or_else(refused)?;
        if version < FIRST_VERSION_WITH_SAMPLE_SIZE
            && config.sample_size.is_some()
            && side.is_some_and(|side| side < FORMER_SAMPLE_SIZE)
        {
            config.sample_size = Some((FORMER_SAMPLE_SIZE, FORMER_SAMPLE_SIZE));
        }
        Ok(config)
    }

    /// The configurations of the text encoders. Their classes in the index decide whether they have
    /// a projection: the second of SDXL has one.
    ///
    /// # Errors
    /// If a `config.json` cannot be read or describes another kind of network.
    pub fn text_configs(&self) -> Result<Vec<TextEncoderConfig>, ConfigError> {
        let files = self.text_encoders.iter().enumerate();
        files
            .map(|(index, network)| TextEncoderConfig::read_as(&network.config, index > 0))
            .collect()
    }
}

/// The first two numbers of a version such as `0.8.0.dev0`; a missing one is zero.
fn release(version: &str) -> Option<[u64; 2]> {
    let mut numbers = version.trim().trim_start_matches('v').split('.');
    let first = numbers.next()?.parse().ok()?;
    // Letters after a number (`9rc1`) mark an earlier version of the same release.
    let second = numbers.next().unwrap_or("0");
    let digits = second.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(second.len());
    Some([first, second[..digits].parse().ok()?])
}

impl Index {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join(INDEX);
        if !file.is_file() {
            return Err(unfit(folder, hub::describe(folder, Wanted::Pipeline)));
        }
        let json = without_unset(read_json(&file)?);
        Self::parse(&json, file.clone()).map_err(|error| error.in_file(&file).into())
    }

    fn parse(json: &Value, file: PathBuf) -> Result<Self, ConfigError> {
        let options = Options::new(json, "");
        let class = options.get("_class_name", "StableDiffusionPipeline", String::new())?;
        let mut parts = BTreeMap::new();
        for (name, _) in PARTS {
            if let Some(part) = options.value(name) {
                parts.insert(*name, part.clone());
            }
        }
        // Only SDXL reads this option, as in diffusers.
        let force_zeros = options.flag("force_zeros_for_empty_prompt", true)?;
        options.of_no_effect(OF_NO_EFFECT);
        options.fixed("quantization_config", &["null"], "quantised weights are not read")?;
        options.warn_of_unknown(&file, "diffusers");
        Ok(Self { file, class, force_zeros, parts })
    }

    fn family(&self) -> Result<Family, ModelError> {
        [Family::StableDiffusion, Family::StableDiffusionXl]
            .into_iter()
            .find(|family| family.class_name() == self.class)
            .ok_or_else(|| {
                let hint = "expected StableDiffusionPipeline or StableDiffusionXLPipeline";
                let error = unsupported("_class_name", &self.class.as_str().into(), hint);
                error.in_file(&self.file).into()
            })
    }

    /// The class of the scheduler, if the index names one.
    fn scheduler(&self, folder: &Path) -> Result<Option<String>, ModelError> {
        self.class_of(folder, "scheduler").map(|class| class.map(str::to_owned))
    }

    /// The class of a part, if the index names it: `["library", "class"]`, or two nulls for an
    /// omitted part.
    fn class_of(&self, folder: &Path, name: &str) -> Result<Option<&str>, ModelError> {
        let Some(part) = self.parts.get(name) else { return Ok(None) };
        let library =
            PARTS.iter().find(|(part, _)| *part == name).map_or("", |(_, library)| library);
        let refused = || {
            let hint = format!("expected [{library:?}, and the name of a class]");
            unsupported(name, part, &hint).in_file(&self.file)
        };
        match part.as_array().map(Vec::as_slice) {
            Some([Value::String(found), Value::String(class)]) if found == library => {
                Ok(Some(class))
            }
            Some([Value::Null, Value::Null]) => Err(unfit(
                folder,
                format!(
                    "the pipeline was saved without its {name}\n\
                     hint: save it again with all parts, or copy {name} from the base model"
                ),
            )),
            _ => Err(refused().into()),
        }
    }

    /// Checks the class of a part, if the index names it.
    fn part(&self, folder: &Path, name: &str, classes: &[&str]) -> Result<(), ModelError> {
        match self.class_of(folder, name)? {
            Some(class) if !classes.contains(&class) => {
                let hint = format!("expected {}", classes.join(" or "));
                Err(unsupported(name, &class.into(), &hint).in_file(&self.file).into())
            }
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

/// A UNet alone: its folder, or the folder that contains it as `unet`.
fn unet_alone(folder: &Path) -> Result<NetworkFiles, ModelError> {
    let inner = folder.join("unet");
    let folder = if inner.is_dir() { &inner } else { folder };
    if !folder.join("config.json").is_file() {
        return Err(unfit(folder, hub::describe(folder, Wanted::Unet)));
    }
    network(folder, "unet", unet::WEIGHT_FILES)
}

fn network(folder: &Path, name: &str, weights: &[&str]) -> Result<NetworkFiles, ModelError> {
    Ok(NetworkFiles {
        config: one_of(folder, name, &["config.json"])?,
        weights: match weights::find_file(folder, weights)? {
            Some(found) => found,
            None => one_of(folder, name, weights)?,
        },
    })
}

/// The first of `names` that `folder` contains.
fn one_of(folder: &Path, part: &str, names: &[&str]) -> Result<PathBuf, ModelError> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let expected = names.join(", ");
        let reason = if folder.is_dir() {
            let others = weights::other_weights(folder);
            let found = match others.len() {
                0 => String::new(),
                _ => format!("\nhint: it holds {}", others.join(", ")),
            };
            format!("the {part} of the pipeline is not complete: expected a file {expected}{found}")
        } else {
            format!("the pipeline lacks its {part}: expected this folder with a file {expected}")
        };
        unfit(folder, reason)
    })
}

pub(super) fn unfit(folder: &Path, reason: String) -> ModelError {
    ModelError::Folder { folder: folder.to_owned(), reason }
}
