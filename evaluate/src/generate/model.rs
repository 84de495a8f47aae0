//! A model, and what is known about it before its networks are loaded.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use hub::Downloads;
use media::text::{HuggingFaceTokenizer, TokenLimits, Tokenizer as _};
use nn::clip::TextConfig;
use nn::lora::{LoraFile, MergedPipeline, ScaledLora};
use nn::pipeline::{Family, FetchedPipeline, FoundPipeline, PipelineFiles, PipelineSource};
use nn::schedule::{Sampler, SamplerKind};
use nn::vae::VaeConfig;
use nn::weights::Weights;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::sources::{ModelSource, Size};

/// What a model's images depend on besides prompt and seed. No path, no time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The pipeline's class in diffusers.
    pub pipeline: String,
    /// A checksum of `parts`.
    pub checkpoint: String,
    /// By part and name: the SHA-256 of each file that is read, and the fingerprint of each
    /// tokenizer.
    pub parts: BTreeMap<String, String>,
    /// The scheduler.
    pub scheduler: SamplerKind,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Height and width of the images.
    pub size: Size,
    /// The commit of the pipeline on the hub, if it is from a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The commit of the UNet on the hub, if unet= names a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet_revision: Option<String>,
}

/// A model whose files are all there and fit the run.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) files: PipelineFiles,
    /// Adapters that are added to its weights.
    pub(super) loras: Vec<ScaledLora>,
    /// One for each text encoder.
    pub(super) tokenizers: Vec<HuggingFaceTokenizer>,
    pub(super) record: ModelRecord,
    /// Calls of the UNet for an image: PNDM makes one more than there are steps.
    pub(super) calls: usize,
}

impl Model {
    /// Checks everything but the numbers in the weights, which it hashes. Checks models on this
    /// machine before it downloads one from the hub, and logs first what it will download.
    pub(super) fn open_all(config: &Config) -> Result<Vec<Self>> {
        let named = |source: &ModelSource| format!("model {}", source.name);
        for source in &config.models {
            pipeline(source).check_local().with_context(|| named(source))?;
            for lora in &source.loras {
                LoraFile::open(&lora.path).with_context(|| named(source))?;
            }
        }
        let mut downloads = Downloads::default();
        let mut found = Vec::with_capacity(config.models.len());
        for source in &config.models {
            let pipeline = pipeline(source).find().with_context(|| named(source))?;
            pipeline.count(&mut downloads)?;
            found.push(pipeline);
        }
        downloads.log()?;
        let models = config.models.iter().zip(&found);
        models
            .map(|(source, found)| Self::open(source, found, config).with_context(|| named(source)))
            .collect()
    }

    fn open(source: &ModelSource, found: &FoundPipeline, config: &Config) -> Result<Self> {
        let FetchedPipeline { files, revision, unet_revision, .. } = found.fetch()?;
        let size = image_size(&files, config.size)?;
        let (scheduler, calls) = scheduler(&files, config)?;
        let tokenizers = tokenizers(&files)?;
        let loras = source.loras.clone();
        // Reads no numbers: whether every adapter fits is known before hours of generating.
        MergedPipeline::open(&files, &loras)?;
        let mut parts = parts(&files, &tokenizers)?;
        parts.extend(lora_parts(&loras)?);
        let guidance = config.guidance.unwrap_or(match files.family {
            Family::StableDiffusion => 7.5,
            Family::StableDiffusionXl => 5.0,
        });
        let record = ModelRecord {
            pipeline: files.family.class_name().to_owned(),
            checkpoint: runkit::manifest::fingerprint(&parts)?,
            parts,
            scheduler,
            guidance,
            size,
            revision,
            unet_revision,
        };
        Ok(Self { name: source.name.clone(), files, loras, tokenizers, record, calls })
    }

    /// The end of a text that the model does not read, if the text is too long. Of several text
    /// encoders, the one that reads least counts.
    pub(super) fn unread<'text>(&self, text: &'text str) -> Option<&'text str> {
        let unread = self.tokenizers.iter().filter_map(|tokenizer| tokenizer.removed(text));
        unread.max_by_key(|unread| unread.len())
    }
}

fn pipeline(source: &ModelSource) -> PipelineSource {
    PipelineSource { model: source.folder.clone(), unet: source.unet.clone() }
}

/// The size of the command, or the one that the UNet was made for.
fn image_size(files: &PipelineFiles, asked: Option<Size>) -> Result<Size> {
    let factor = VaeConfig::read(&files.vae.config)?.downscale();
    let Some(size) = asked else {
        let latents = files.unet_config()?.sample_size;
        let (height, width) = latents.with_context(|| {
            format!(
                "{}: sample_size is missing, so the size of images is unknown; hint: give --size",
                files.unet.config.display()
            )
        })?;
        return Ok(Size { height: height * factor, width: width * factor });
    };
    let nearest = |side: i64| (side + factor / 2).div_euclid(factor).max(1) * factor;
    let fitting = Size { height: nearest(size.height), width: nearest(size.width) };
    ensure!(
        size == fitting,
        "--size {size} does not fit: height and width must be multiples of {factor}; hint: --size \
         {fitting}"
    );
    Ok(size)
}

/// The scheduler of the command, or the model's own, and how often it calls the UNet.
fn scheduler(files: &PipelineFiles, config: &Config) -> Result<(SamplerKind, usize)> {
    let schedule = files.schedule()?;
    let kind = config.scheduler.or_else(|| schedule.sampler_kind()).with_context(|| {
        format!(
            "{}: the model's scheduler {} is not supported; hint: --scheduler ddim",
            files.scheduler_config.display(),
            schedule.class_name
        )
    })?;
    let sampler = Sampler::new(&schedule, kind, config.steps)?;
    Ok((kind, sampler.timesteps().len()))
}

fn tokenizers(files: &PipelineFiles) -> Result<Vec<HuggingFaceTokenizer>> {
    let folders = files.tokenizers.iter().zip(files.text_configs()?);
    let tokenizers = folders.map(|(folder, encoder)| {
        let TextConfig { context_length, vocabulary_size, .. } = encoder.sizes;
        HuggingFaceTokenizer::open_within(folder, TokenLimits { context_length, vocabulary_size })
    });
    Ok(tokenizers.collect::<Result<_, _>>()?)
}

/// [`ModelRecord::parts`]. Hashes large files in parallel.
fn parts(
    files: &PipelineFiles,
    tokenizers: &[HuggingFaceTokenizer],
) -> Result<BTreeMap<String, String>> {
    let mut paths = vec![("scheduler".to_owned(), files.scheduler_config.clone())];
    let text_encoders = files.text_encoders.iter().zip(["text_encoder", "text_encoder_2"]);
    for (network, part) in
        [(&files.unet, "unet"), (&files.vae, "vae")].into_iter().chain(text_encoders)
    {
        paths.push((part.to_owned(), network.config.clone()));
        let weights = Weights::open(&network.weights)?;
        paths.extend(weights.files().iter().map(|file| (part.to_owned(), file.clone())));
    }
    let mut parts = paths
        .par_iter()
        .map(|(part, path)| Ok((format!("{part}/{}", file_name(path)), hub::sha256_file(path)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    for (tokenizer, part) in tokenizers.iter().zip(["tokenizer", "tokenizer_2"]) {
        parts.insert(part.to_owned(), tokenizer.fingerprint());
    }
    if files.force_zeros_for_empty_prompt {
        parts.insert("force_zeros_for_empty_prompt".to_owned(), "true".to_owned());
    }
    Ok(parts)
}

/// The SHA-256 of each file of adapters, and their scale, by their number.
fn lora_parts(loras: &[ScaledLora]) -> Result<BTreeMap<String, String>> {
    let mut parts = BTreeMap::new();
    for (number, lora) in loras.iter().enumerate() {
        for file in LoraFile::open(&lora.path)?.files {
            // In a folder for each part of the pipeline, files have equal names.
            let below = file.strip_prefix(&lora.path).unwrap_or(&file);
            let name = match below.as_os_str().is_empty() || below.is_absolute() {
                true => file_name(&file).into_owned(),
                false => below.display().to_string(),
            };
            parts.insert(format!("lora/{number}/{name}"), hub::sha256_file(&file)?);
        }
        parts.insert(format!("lora/{number}/scale"), lora.scale.to_string());
    }
    Ok(parts)
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}
