//! The base model: a pipeline in the layout of diffusers, first its files and configuration, then
//! its networks in memory.

mod averages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use media::text::{HuggingFaceTokenizer, TokenLimits, Tokenizer as _};
use nn::average::WeightAverage;
use nn::clip::TextConfig;
use nn::device::Precision;
use nn::lora::{LoraConfig, SAVED_ADAPTERS};
use nn::pipeline::{FetchedPipeline, Pipeline, PipelineFiles, PipelineSource, PromptEmbeds};
use nn::schedule::{ScheduleConfig, TrainingSchedule};
use nn::unet::{UNet, UNetConfig};
use nn::vae::VaeConfig;
use nn::weights::Weights;
use runkit::files::FileHashes;
use runkit::text::escape_for_terminal;
use tch::{Device, Tensor};

use crate::randomness::Choice;
use crate::run::checkpoint::{REFERENCE, UNET};

/// A larger resolution is a typo.
const LARGEST_RESOLUTION: i64 = 16_384;

/// A pipeline whose files all exist and fit the run.
pub struct BaseModel {
    /// Its files.
    pub files: PipelineFiles,
    /// Its name in messages: its folder, or `hf://owner/name@revision`.
    pub shown: String,
    /// The commit on the hub; `None` for a folder.
    pub revision: Option<String>,
    /// One for each text encoder.
    pub tokenizers: Vec<HuggingFaceTokenizer>,
    /// Height and width of training images in pixels.
    pub resolution: i64,
    /// Channels, height and width of their latents.
    pub latent_size: [i64; 3],
    /// The UNet's configuration.
    pub unet: UNetConfig,
    /// The noise schedule.
    pub schedule: ScheduleConfig,
    /// Whether a warning said that captions are truncated.
    warned_of_truncation: AtomicBool,
}

impl std::fmt::Debug for BaseModel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BaseModel")
            .field("files", &self.files)
            .field("resolution", &self.resolution)
            .field("latent_size", &self.latent_size)
            .finish_non_exhaustive()
    }
}

impl BaseModel {
    /// Reads everything but the numbers in the weights. `model` is a folder, or
    /// `hf://owner/name[@revision]`, whose missing files are downloaded. `resolution` is in pixels;
    /// `None` for the UNet's own.
    ///
    /// # Errors
    /// If the folder is not a complete pipeline, a file cannot be downloaded, or the autoencoder
    /// does not support this resolution.
    pub fn open(model: &Path, resolution: Option<i64>) -> Result<Self> {
        let FetchedPipeline { files, shown, revision, .. } = source(model).fetch()?;
        let unet = files.unet_config()?;
        let vae = VaeConfig::read(&files.vae.config)?;
        let factor = vae.downscale();
        let resolution = match (resolution, unet.sample_size) {
            (Some(resolution), _) => resolution,
            (None, Some((height, width))) if height == width => height * factor,
            (None, _) => bail!(
                "{}: the UNet has no square sample_size; hint: give --resolution",
                files.unet.config.display()
            ),
        };
        ensure!(
            (1..=LARGEST_RESOLUTION).contains(&resolution) && resolution % factor == 0,
            "--resolution {resolution} does not fit the model's autoencoder: expected a multiple of \
             {factor}; hint: --resolution {}",
            ((resolution + factor / 2) / factor).clamp(1, LARGEST_RESOLUTION / factor) * factor
        );
        let side = resolution / factor;
        let schedule = files.schedule()?;
        Ok(Self {
            tokenizers: tokenizers(&files)?,
            resolution,
            latent_size: [vae.latent_channels, side, side],
            unet,
            schedule,
            files,
            shown,
            revision,
            warned_of_truncation: AtomicBool::new(false),
        })
    }

    /// Checks a model that is a folder, before anything is downloaded.
    ///
    /// # Errors
    /// If it is not a complete pipeline.
    pub fn check_local(model: &Path) -> Result<()> {
        Ok(source(model).check_local()?)
    }

    /// Identifies the model: the SHA-256 of each file that is read, by part and name, and the
    /// fingerprints of the tokenizers. Files that `hashes` does not know are read in parallel.
    ///
    /// # Errors
    /// If a file cannot be read or a signal stops it.
    pub fn parts(&self, hashes: &mut FileHashes) -> Result<BTreeMap<String, String>> {
        let files = &self.files;
        let mut paths = vec![("scheduler".to_owned(), files.scheduler_config.clone())];
        let text_encoders = files.text_encoders.iter().zip(["text_encoder", "text_encoder_2"]);
        for (network, part) in
            [(&files.unet, "unet"), (&files.vae, "vae")].into_iter().chain(text_encoders)
        {
            paths.push((part.to_owned(), network.config.clone()));
            let weights = Weights::open(&network.weights)?;
            paths.extend(weights.files().iter().map(|file| (part.to_owned(), file.clone())));
        }
        let name =
            |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hashes.learn(paths.iter().map(|(_, path)| path.as_path()))?;
        let mut parts = BTreeMap::new();
        for (part, path) in &paths {
            let hash = hashes.of(path);
            let hash = hash.with_context(|| format!("{}: it was not hashed", path.display()))?;
            parts.insert(format!("{part}/{}", name(path)), hash.to_owned());
        }
        for (tokenizer, part) in self.tokenizers.iter().zip(["tokenizer", "tokenizer_2"]) {
            parts.insert(part.to_owned(), tokenizer.fingerprint());
        }
        Ok(parts)
    }

    /// The token ids of captions, `[B, L]` i64 for each text encoder. Warns once, for the first
    /// caption that is truncated.
    ///
    /// # Errors
    /// If libtorch is out of memory.
    pub fn tokens<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Tensor>> {
        self.warn_of_truncation(texts);
        self.tokenizers
            .iter()
            .map(|tokenizer| {
                let rows = texts
                    .iter()
                    .map(|text| Tensor::f_from_slice(&tokenizer.encode(text.as_ref()).ids))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Tensor::f_stack(&rows, 0)?)
            })
            .collect()
    }

    fn warn_of_truncation<S: AsRef<str>>(&self, texts: &[S]) {
        if self.warned_of_truncation.load(Ordering::Relaxed) {
            return;
        }
        let cut = texts.iter().map(AsRef::as_ref).find_map(|text: &str| {
            // A token has at least one byte.
            let mut tokenizers =
                self.tokenizers.iter().filter(|one| text.len() + 2 > one.context_length());
            tokenizers
                .find_map(|tokenizer| Some((tokenizer.context_length(), tokenizer.removed(text)?)))
        });
        if let Some((length, removed)) = cut
            && !self.warned_of_truncation.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "a caption is longer than {length} tokens and is truncated, as others may be; not read: {:?}",
                escape_for_terminal(removed)
            );
        }
    }
}

fn source(model: &Path) -> PipelineSource {
    PipelineSource { model: model.to_owned(), unet: None }
}

fn tokenizers(files: &PipelineFiles) -> Result<Vec<HuggingFaceTokenizer>> {
    let folders = files.tokenizers.iter().zip(files.text_configs()?);
    let tokenizers = folders.map(|(folder, encoder)| {
        let TextConfig { context_length, vocabulary_size, .. } = encoder.sizes;
        HuggingFaceTokenizer::open_within(folder, TokenLimits { context_length, vocabulary_size })
    });
    Ok(tokenizers.collect::<Result<_, _>>()?)
}

/// Adapters to train, and the seed of their first numbers.
#[derive(Debug, Clone, Copy)]
pub struct SeededLora<'a> {
    /// Which adapters.
    pub config: &'a LoraConfig,
    /// The seed of the run.
    pub seed: u64,
}

/// Where the weights of a start come from.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// The base model: model and reference model are equal.
    Base,
    /// A checkpoint's folders `unet` and `reference`.
    Checkpoint(&'a Path),
}

/// Which weights are trained, and with which memory.
#[derive(Debug, Clone, Copy)]
pub enum Training<'a> {
    /// All of them; `checkpointing` spares the copies that half precision has without it.
    Weights {
        /// Whether gradient checkpointing is on.
        checkpointing: bool,
    },
    /// Adapters.
    Adapters(SeededLora<'a>),
}

/// The networks in memory.
#[derive(Debug)]
pub struct Networks {
    /// The pipeline with the UNet that is trained, the model: f32 weights that record gradients.
    pub pipeline: Pipeline,
    /// The reference model, in the compute dtype and through the same casts as the model, so that
    /// equal weights give equal predictions to the last bit. `None` for a loss without one.
    pub reference: Option<UNet>,
    /// The reference model's weights in f32, if its updates need them.
    pub reference_f32: Option<WeightAverage>,
    /// The moving average of the model.
    pub ema: Option<WeightAverage>,
    /// The noise schedule, and what the networks predict.
    pub schedule: TrainingSchedule,
    /// The prompt embeddings of the empty caption, one row.
    pub empty: PromptEmbeds,
}

impl Networks {
    /// Loads all networks. The first numbers of adapters are a function of their seed.
    ///
    /// # Errors
    /// If weights do not fit their configuration, the checkpoint is of another kind of training, or
    /// the device is out of memory.
    pub fn load(
        base: &BaseModel,
        start: Start<'_>,
        training: Training<'_>,
        device: Device,
        precision: Precision,
    ) -> Result<Self> {
        if let Start::Checkpoint(checkpoint) = start {
            let has_adapters = checkpoint.join(UNET).join(SAVED_ADAPTERS).is_file();
            ensure!(
                has_adapters == matches!(training, Training::Adapters(_)),
                "{}: {}",
                checkpoint.display(),
                match has_adapters {
                    true =>
                        "a checkpoint of adapters; hint: --adapter lora with its --rank and --targets",
                    false => "a checkpoint of all weights; hint: leave out --adapter lora",
                }
            );
        }
        let context = || format!("loading the model {}", base.shown);
        let (pipeline, reference) = match training {
            Training::Weights { checkpointing } => {
                Self::load_weights(base, start, checkpointing, device, precision)
            }
            Training::Adapters(lora) => Self::load_adapters(base, start, lora, device, precision),
        }
        .with_context(context)?;
        let schedule = TrainingSchedule::new(&base.schedule, device)?;
        let empty = pipeline.encode_prompt(&base.tokens(&[""])?)?;
        let reference = Some(reference);
        Ok(Self { pipeline, reference, reference_f32: None, ema: None, schedule, empty })
    }

    /// The pipeline whose UNet is trained, and the reference model.
    fn load_weights(
        base: &BaseModel,
        start: Start<'_>,
        checkpointing: bool,
        device: Device,
        precision: Precision,
    ) -> Result<(Pipeline, UNet)> {
        let folder = &base.files.folder;
        let (trained, reference) = match start {
            Start::Base => (base.files.clone(), base.files.unet.weights.clone()),
            Start::Checkpoint(checkpoint) => {
                let trained = PipelineFiles::open(folder, Some(&checkpoint.join(UNET)))?;
                // A loss without a reference model leaves none; the base model stands in.
                let reference = Some(checkpoint.join(REFERENCE)).filter(|part| part.is_dir());
                let reference = PipelineFiles::open(folder, reference.as_deref())?;
                (trained, reference.unet.weights)
            }
        };
        let pipeline = Pipeline::load_for_training(&trained, checkpointing, device, precision)?;
        let spread = pipeline.unet.spread_weights();
        if spread > 0 {
            tracing::info!(
                "{spread} weights were born in f16: each is moved by less than f16's rounding, in model \
                 and reference alike, so that bf16 rounds them evenly"
            );
        }
        let weights = Weights::open(&reference)?;
        let reference = UNet::load_reference(&base.unet, &weights, device, precision)?;
        Ok((pipeline, reference))
    }

    /// The pipeline whose UNet has adapters, and a reference that shares its weights.
    fn load_adapters(
        base: &BaseModel,
        start: Start<'_>,
        lora: SeededLora<'_>,
        device: Device,
        precision: Precision,
    ) -> Result<(Pipeline, UNet)> {
        let stored = |part: &str| match start {
            Start::Base => Ok(None),
            Start::Checkpoint(checkpoint) => {
                Weights::open(checkpoint.join(part).join(SAVED_ADAPTERS)).map(Some)
            }
        };
        let seed = |place| Choice::Adapter.number(lora.seed, place, 0);
        let trained = stored(UNET)?;
        let pipeline = Pipeline::load_with_adapters(
            &base.files,
            lora.config,
            trained.as_ref(),
            &seed,
            device,
            precision,
        )?;
        let reference = match start {
            Start::Checkpoint(checkpoint) if !checkpoint.join(REFERENCE).is_dir() => None,
            _ => stored(REFERENCE)?,
        };
        let reference = pipeline.unet.adapter_reference(reference.as_ref())?;
        Ok((pipeline, reference))
    }

    /// The base model as a reference model, for a run that has updated its own.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn base_reference(&self, base: &BaseModel) -> Result<UNet> {
        let unet = &self.pipeline.unet;
        if unet.lora().is_some() {
            return Ok(unet.adapter_reference(None)?);
        }
        let (device, precision) = (unet.device(), unet.precision());
        let weights = Weights::open(&base.files.unet.weights)?;
        Ok(UNet::load_reference(&base.unet, &weights, device, precision)?)
    }
}
