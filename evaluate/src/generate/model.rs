//! A model as named, and as found: everything that is known of it before its networks are loaded.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use hub::Downloads;
use media::text::{HuggingFaceTokenizer, Tokenizer as _};
use nn::pipeline::{Family, FetchedPipeline, FoundPipeline, PipelineFiles, PipelineSource};
use nn::schedule::{Sampler, SamplerKind};
use nn::vae::VaeConfig;
use nn::weights::Weights;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Config;

/// A name must serve as a folder's name on every system.
const LONGEST_NAME: usize = 100;
/// Images wider or higher than this are a slip of the finger.
const LARGEST_SIDE: i64 = 16_384;
const FORM: &str = "expected NAME=DIR or NAME=DIR,unet=DIR";

/// `NAME=DIR[,unet=DIR]`: a pipeline in the layout of diffusers under a name of the user's. In place of
/// a folder there may be `hf://owner/name[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelSource {
    /// What it is called, also in paths.
    pub name: String,
    /// The pipeline's folder, or its name on the hub.
    pub folder: PathBuf,
    /// A folder or name on the hub whose UNet stands in for the pipeline's.
    pub unet: Option<PathBuf>,
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or_else(|| format!("{FORM}, found {text:?}"))?;
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-+".contains(letter);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
            return Err(format!(
                "{FORM} with a name of letters, digits and . _ - +, found the name {name:?}"
            ));
        }
        if name.starts_with('.') {
            return Err(format!("a name does not begin with a dot, found {name:?}"));
        }
        let (folder, unet) = match rest.split_once(",unet=") {
            Some((folder, unet)) => (folder, Some(unet)),
            None => (rest, None),
        };
        if folder.is_empty() || unet.is_some_and(str::is_empty) {
            return Err(format!("{FORM}, found no folder in {text:?}"));
        }
        // Shells leave `~` alone after an equals sign.
        let place = |text| runkit::path::expand_home(Path::new(text));
        Ok(Self { name: name.to_owned(), folder: place(folder), unet: unet.map(place) })
    }
}

impl ModelSource {
    fn pipeline(&self) -> PipelineSource {
        PipelineSource { model: self.folder.clone(), unet: self.unet.clone() }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.folder.display())?;
        self.unet.iter().try_for_each(|unet| write!(formatter, ",unet={}", unet.display()))
    }
}

impl TryFrom<String> for ModelSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ModelSource> for String {
    fn from(source: ModelSource) -> Self {
        source.to_string()
    }
}

/// Height and width of an image in pixels: `512`, or `512x768`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Rows.
    pub height: i64,
    /// Pixels of a row.
    pub width: i64,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected a height, or height x width, of 1 to {LARGEST_SIDE} pixels, as 512 or 512x768; found {text:?}"
            )
        };
        let side = |side: &str| {
            let digits = !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit());
            let side = digits.then(|| side.parse().ok()).flatten();
            side.filter(|side| (1..=LARGEST_SIDE).contains(side)).ok_or_else(wrong)
        };
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        Ok(Self { height: side(height)?, width: side(width)? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.height, self.width)
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// What a model's images depend on beside prompt and seed. No path, no time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The pipeline's class in diffusers.
    pub pipeline: String,
    /// A checksum of `parts`.
    pub checkpoint: String,
    /// The SHA-256 of each file that is read, by part and name, and for tokenizers what they are.
    pub parts: BTreeMap<String, String>,
    /// How noise is taken away.
    pub scheduler: SamplerKind,
    /// How far to go beyond the prompt's prediction.
    pub guidance: f64,
    /// Height and width of the images.
    pub size: Size,
    /// The hub's commit that the pipeline is of, where it came from a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The hub's commit that the UNet of another place is of, where it came from a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet_revision: Option<String>,
}

/// A model whose files are all there and fit the run.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) files: PipelineFiles,
    /// One for each text encoder.
    pub(super) tokenizers: Vec<HuggingFaceTokenizer>,
    pub(super) record: ModelRecord,
    /// Calls of the UNet for an image: PNDM makes one more than there are steps.
    pub(super) calls: usize,
}

impl Model {
    /// Looks at everything but the numbers in the weights, which are hashed. Models of this machine
    /// are looked at before one of the hub is downloaded, and what will be downloaded is said.
    pub(super) fn open_all(config: &Config) -> Result<Vec<Self>> {
        let named = |source: &ModelSource| format!("model {}", source.name);
        for source in &config.models {
            source.pipeline().check_local().with_context(|| named(source))?;
        }
        let mut downloads = Downloads::default();
        let mut found = Vec::with_capacity(config.models.len());
        for source in &config.models {
            let pipeline = source.pipeline().find().with_context(|| named(source))?;
            pipeline.count(&mut downloads)?;
            found.push(pipeline);
        }
        downloads.say()?;
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
        let parts = parts(&files, &tokenizers)?;
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
        Ok(Self { name: source.name.clone(), files, tokenizers, record, calls })
    }

    /// What of a text the model does not read, if anything.
    pub(super) fn cut<'text>(&self, text: &'text str) -> Option<&'text str> {
        let cut = self.tokenizers.iter().filter_map(|tokenizer| tokenizer.removed(text));
        cut.max_by_key(|cut| cut.len())
    }
}

/// The size asked for, or the one the UNet was made for.
fn image_size(files: &PipelineFiles, asked: Option<Size>) -> Result<Size> {
    let factor = VaeConfig::read(&files.vae.config)?.downscale();
    let Some(size) = asked else {
        let latents = files.unet_config()?.sample_size;
        let (height, width) = latents.with_context(|| {
            format!(
                "{}: the UNet names no sample_size; hint: give --size",
                files.unet.config.display()
            )
        })?;
        return Ok(Size { height: height * factor, width: width * factor });
    };
    let nearest = |side: i64| (side + factor / 2).div_euclid(factor).max(1) * factor;
    let fitting = Size { height: nearest(size.height), width: nearest(size.width) };
    ensure!(
        size == fitting,
        "--size {size} does not fit: height and width must be multiples of {factor}; hint: --size {fitting}"
    );
    Ok(size)
}

/// The scheduler asked for, or the model's own, and how often it calls the UNet for the steps asked
/// for.
fn scheduler(files: &PipelineFiles, config: &Config) -> Result<(SamplerKind, usize)> {
    let schedule = files.schedule()?;
    let kind = config.scheduler.or_else(|| schedule.sampler_kind()).with_context(|| {
        format!(
            "{}: the model's own scheduler, {}, is not built here; hint: --scheduler ddim",
            files.scheduler_config.display(),
            schedule.class_name
        )
    })?;
    let sampler = Sampler::new(&schedule, kind, config.steps)?;
    Ok((kind, sampler.timesteps().len()))
}

fn tokenizers(files: &PipelineFiles) -> Result<Vec<HuggingFaceTokenizer>> {
    let mut tokenizers = Vec::with_capacity(files.tokenizers.len());
    for (folder, encoder) in files.tokenizers.iter().zip(files.text_configs()?) {
        let tokenizer = HuggingFaceTokenizer::open(folder)?;
        let sizes = encoder.sizes;
        let (context, vocabulary) = (tokenizer.context_length(), tokenizer.vocabulary_size());
        let fits =
            |ours: usize, limit: i64| usize::try_from(limit).is_ok_and(|limit| ours <= limit);
        if !fits(context, sizes.context_length) || !fits(vocabulary, sizes.vocabulary_size) {
            bail!(
                "{}: it gives {context} of {vocabulary} tokens, its text encoder reads {} of {}; \
                 hint: the two folders are of different models",
                folder.display(),
                sizes.context_length,
                sizes.vocabulary_size
            );
        }
        tokenizers.push(tokenizer);
    }
    Ok(tokenizers)
}

/// What every part is, as [`ModelRecord::parts`] holds it. Large files are hashed side by side.
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

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_and_written() {
        let plain: ModelSource = "sd-1.5=models/sd,15".parse().unwrap();
        assert_eq!((&*plain.name, plain.folder.as_path()), ("sd-1.5", Path::new("models/sd,15")));
        assert_eq!(plain.unet, None);
        let dpo: ModelSource = "dpo=base=1,unet=runs/x".parse().unwrap();
        assert_eq!(dpo.folder, Path::new("base=1"));
        assert_eq!(dpo.unet.as_deref(), Some(Path::new("runs/x")));
        for source in [plain, dpo] {
            assert_eq!(source.to_string().parse::<ModelSource>().unwrap(), source);
        }
        for wrong in
            ["", "sd", "=dir", "sd=", "sd=a,unet=", "a/b=c", "../x=y", ".a=b", "a b=c", "é=c"]
        {
            let error = wrong.parse::<ModelSource>().unwrap_err();
            assert!(error.contains("name") || error.contains("NAME"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        let square: Size = "512".parse().unwrap();
        assert_eq!(square, Size { height: 512, width: 512 });
        let wide: Size = "64x128".parse().unwrap();
        assert_eq!((wide.height, wide.width), (64, 128));
        assert_eq!(wide.to_string(), "64x128");
        for wrong in ["", "x", "0", "64x", "x64", "64x0", "-64", "+64", "64.0", "64X64", "99999"] {
            let error = wrong.parse::<Size>().unwrap_err();
            assert!(error.contains("512x768"), "{wrong:?}: {error}");
        }
    }
}
