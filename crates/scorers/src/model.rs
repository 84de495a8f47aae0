//! One checkpoint: its files, its configuration, and their checksums.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hub::Repository;
use nn::clip::{ClipConfig, ClipLayout, ClipParts, Pooling, TextConfig, VisionConfig};
use nn::config::ConfigError;
use nn::image_reward::ImageRewardConfig;
use nn::siglip::SiglipConfig;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{ScorerConfig, ScorersConfig};
use crate::error::ScorerError;
use crate::image_reward;
use crate::kind::Kind;
use crate::preprocess::{Preprocessing, Processor, Section};

/// Names under which the Python libraries save weights, most wanted first.
const TRANSFORMERS_WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
const OPEN_CLIP_WEIGHTS: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
];
/// Files that a tokenizer may read. All are fetched, so that a hub model has the same tokens as a
/// folder of the same files.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "bpe_simple_vocab_16e6.txt.gz",
];

/// As [`TOKENIZER_FILES`], for SigLIP.
const SIGLIP_TOKENIZER_FILES: [&str; 5] = [
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Configuration files that are read beside the weights, if a repository has them.
const CONFIGURATIONS: [&str; 4] =
    ["config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json"];

/// The files beside the weights from which a kind's tokenizer is made.
fn tokenizer_files(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Clip | Kind::Aesthetic => &TOKENIZER_FILES,
        Kind::ImageReward => &image_reward::VOCABULARY_FILES,
        Kind::Siglip | Kind::AestheticSiglip => &SIGLIP_TOKENIZER_FILES,
        Kind::Vlm | Kind::Command => &[],
    }
}

/// The files beside the weights that are read, if a repository has them.
pub(crate) fn companions(kind: Kind) -> impl Iterator<Item = &'static str> {
    let configurations: &[&str] = match kind {
        Kind::Clip | Kind::Aesthetic => &CONFIGURATIONS,
        Kind::Siglip | Kind::AestheticSiglip => &CONFIGURATIONS[..3],
        Kind::ImageReward => &[nn::image_reward::CONFIG_FILE],
        Kind::Vlm | Kind::Command => &[],
    };
    configurations.iter().chain(tokenizer_files(kind)).copied()
}

/// A checkpoint that one or more scorers use.
pub(crate) struct Model {
    /// The scorer that named it first, for errors.
    pub(crate) scorer: String,
    pub(crate) network: Network,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) revision: Option<String>,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) preprocessing: Preprocessing,
    /// The towers that scorers read.
    pub(crate) parts: ClipParts,
}

/// What the files of a model hold, as it was resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Network {
    /// A CLIP-type model.
    Clip { layout: ClipLayout, config: ClipConfig },
    /// An ImageReward model.
    ImageReward(ImageRewardConfig),
    /// A SigLIP model.
    Siglip(SiglipConfig),
}

impl Network {
    /// The vision tower.
    pub(crate) fn vision(&self) -> &VisionConfig {
        match self {
            Self::Clip { config, .. } => &config.vision,
            Self::ImageReward(config) => &config.vision,
            Self::Siglip(config) => &config.vision,
        }
    }

    /// The network that reads captions.
    pub(crate) fn text(&self) -> &TextConfig {
        match self {
            Self::Clip { config, .. } => &config.text,
            Self::ImageReward(config) => &config.text,
            Self::Siglip(config) => &config.text,
        }
    }

    /// The token whose hidden state becomes the caption's feature, if one does.
    pub(crate) fn pooling(&self) -> Option<Pooling> {
        match self {
            Self::Clip { config, .. } => Some(config.pooling),
            Self::ImageReward(_) | Self::Siglip(_) => None,
        }
    }

    /// Numbers of an image's feature.
    pub(crate) fn embed_dim(&self) -> i64 {
        match self {
            Self::Clip { config, .. } => config.embed_dim,
            Self::ImageReward(config) => config.vision.tokens() * config.vision.width,
            Self::Siglip(config) => config.vision.width,
        }
    }

    /// Numbers of a caption's feature.
    pub(crate) fn text_width(&self) -> usize {
        match self {
            Self::Clip { config, .. } => usize::try_from(config.embed_dim).unwrap_or(0),
            Self::ImageReward(_) => image_reward::TEXT_WIDTH,
            Self::Siglip(config) => usize::try_from(config.projection).unwrap_or(0),
        }
    }

    /// The layout, for the manifest.
    pub(crate) fn layout(&self) -> String {
        match self {
            Self::Clip { layout, .. } => layout.to_string(),
            Self::ImageReward(_) => "blip".to_owned(),
            Self::Siglip(_) => ClipLayout::Transformers.to_string(),
        }
    }
}

pub(crate) fn find_model(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    models: &mut Vec<Model>,
) -> Result<usize, ScorerError> {
    let hub = ScorerError::hub(&entry.name);
    let repository = Repository::open(entry.model(), &config.folder).map_err(hub)?;
    let files = weight_files(config, entry, &repository)?;
    let (network, preprocessing) = match entry.kind {
        Kind::Clip | Kind::Aesthetic => clip(config, entry, &repository)?,
        Kind::ImageReward => {
            let sizes = image_reward::config(entry, &repository, &files)?;
            (Network::ImageReward(sizes), Preprocessing::Absent)
        }
        Kind::Siglip | Kind::AestheticSiglip => siglip(entry, &repository)?,
        Kind::Vlm | Kind::Command => {
            let problem = format!("kind = \"{}\" has no files", entry.kind.name());
            return Err(invalid(config, entry, problem));
        }
    };
    let folder = repository.folder().map(Path::to_path_buf);
    let same =
        |model: &Model| model.files == files && model.network == network && model.folder == folder;
    if let Some(known) = models.iter().position(same) {
        return Ok(known);
    }
    match &preprocessing {
        Preprocessing::Absent => {}
        Preprocessing::Hf(section) => section.warn_unread_hf(Processor::of(entry.kind)),
        Preprocessing::OpenClip(section) => section.warn_unread_open_clip(),
    }
    for name in tokenizer_files(entry.kind) {
        repository.optional_file(name).map_err(hub)?;
    }
    models.push(Model {
        scorer: entry.name.clone(),
        network,
        revision: repository.revision().map(str::to_owned),
        folder,
        files,
        preprocessing,
        parts: ClipParts { vision: false, text: false },
    });
    Ok(models.len() - 1)
}

/// A CLIP-type model, and the preprocessing that its folder describes.
fn clip(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<(Network, Preprocessing), ScorerError> {
    let layout = entry.clip_layout();
    let (clip, preprocessing) = match layout {
        ClipLayout::Transformers => {
            let file = repository.file("config.json").map_err(ScorerError::hub(&entry.name))?;
            (read_config(entry, &file)?, hf_preprocessing(entry, repository)?)
        }
        ClipLayout::OpenClip => open_clip_config(config, entry, repository)?,
    };
    Ok((Network::Clip { layout, config: clip }, preprocessing))
}

/// A SigLIP model, and the preprocessing that its folder describes.
fn siglip(
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<(Network, Preprocessing), ScorerError> {
    let failed = ScorerError::network(&entry.name);
    let file = repository.file("config.json").map_err(ScorerError::hub(&entry.name))?;
    let config = SiglipConfig::read(&file).map_err(ScorerError::network(&entry.name))?;
    if entry.kind == Kind::Siglip && config.projection != config.vision.width {
        let (text, image) = (config.projection, config.vision.width);
        return Err(failed(ConfigError::Size {
            what: "projection_size",
            found: text,
            expected: format!("{image}, the length of an image's features"),
        }));
    }
    Ok((Network::Siglip(config), hf_preprocessing(entry, repository)?))
}

/// The image processor's values: `image_processor` in `processor_config.json`, as transformers 5
/// saves them, else `preprocessor_config.json`.
fn hf_preprocessing(
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<Preprocessing, ScorerError> {
    #[derive(Deserialize)]
    struct Combined {
        image_processor: Option<Map<String, Value>>,
    }
    let hub = ScorerError::hub(&entry.name);
    if let Some(file) = repository.optional_file("processor_config.json").map_err(hub)?
        && let Some(keys) = read_json::<Combined>(entry, &file)?.image_processor
    {
        return Ok(Preprocessing::Hf(Section { file, keys }));
    }
    match repository.optional_file("preprocessor_config.json").map_err(hub)? {
        Some(file) => {
            let keys = read_json(entry, &file)?;
            Ok(Preprocessing::Hf(Section { file, keys }))
        }
        None => Ok(Preprocessing::Absent),
    }
}

fn open_clip_config(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<(ClipConfig, Preprocessing), ScorerError> {
    #[derive(Deserialize)]
    struct Config {
        preprocess_cfg: Option<Map<String, Value>>,
    }
    let file =
        repository.optional_file("open_clip_config.json").map_err(ScorerError::hub(&entry.name))?;
    let named = entry
        .architecture
        .as_ref()
        .map(|name| ClipConfig::published(name).map_err(ScorerError::network(&entry.name)));
    let named = named.transpose()?;
    let Some(file) = file else {
        let Some(named) = named else {
            let problem = format!(
                "model `{}` has no open_clip_config.json; hint: name its architecture, for example \
                 architecture = \"ViT-H-14\"",
                entry.model()
            );
            return Err(invalid(config, entry, problem));
        };
        return Ok((named, Preprocessing::Absent));
    };
    let clip = read_config(entry, &file)?;
    if let (Some(named), Some(name)) = (named, &entry.architecture)
        && named != clip
    {
        let problem = format!(
            "architecture = \"{name}\" is another network than {} describes; hint: remove \
             `architecture`, or the file if it is wrong",
            file.display()
        );
        return Err(invalid(config, entry, problem));
    }
    Ok(match read_json::<Config>(entry, &file)?.preprocess_cfg {
        Some(keys) => (clip, Preprocessing::OpenClip(Section { file, keys })),
        None => (clip, Preprocessing::Absent),
    })
}

fn read_config(entry: &ScorerConfig, file: &Path) -> Result<ClipConfig, ScorerError> {
    ClipConfig::read(file, entry.clip_layout()).map_err(ScorerError::network(&entry.name))
}

fn weight_files(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<Vec<PathBuf>, ScorerError> {
    let hub = ScorerError::hub(&entry.name);
    let names = weight_names(entry);
    let mut found = None;
    for name in &names {
        found = match &entry.weights {
            Some(_) => Some(repository.file(name).map_err(hub)?),
            None => repository.optional_file(name).map_err(hub)?,
        };
        if found.is_some() {
            break;
        }
    }
    // A folder may hold only another variant, such as fp16.
    let found = match (found, &entry.weights, repository.folder()) {
        (None, None, Some(folder)) => {
            nn::weights::find_file(folder, &names).map_err(ScorerError::network(&entry.name))?
        }
        (found, ..) => found,
    };
    let Some(file) = found else {
        let problem = format!(
            "model `{}` holds none of {}; hint: name the file with `weights`",
            entry.model(),
            names.join(", ")
        );
        return Err(invalid(config, entry, problem));
    };
    if file.extension().is_none_or(|extension| extension != "json") {
        return Ok(vec![file]);
    }
    // Each shard of a sharded checkpoint goes through the repository's path checks.
    shards(entry, &file)?.iter().map(|shard| repository.file(shard).map_err(hub)).collect()
}

/// Names of weights to look for, most wanted first.
pub(crate) fn weight_names(entry: &ScorerConfig) -> Vec<&str> {
    if let Some(name) = &entry.weights {
        return vec![name.as_str()];
    }
    match (entry.kind, entry.clip_layout()) {
        (Kind::ImageReward, _) => nn::image_reward::WEIGHT_FILES.to_vec(),
        (_, ClipLayout::Transformers) => TRANSFORMERS_WEIGHTS.to_vec(),
        (_, ClipLayout::OpenClip) => OPEN_CLIP_WEIGHTS.to_vec(),
    }
}

/// The shards that an index names.
pub(crate) fn shards(entry: &ScorerConfig, index: &Path) -> Result<Vec<String>, ScorerError> {
    let index: ShardIndex = read_json(entry, index)?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn read_json<T: for<'a> Deserialize<'a>>(
    entry: &ScorerConfig,
    file: &Path,
) -> Result<T, ScorerError> {
    let fail = |problem: String| ScorerError::File {
        scorer: entry.name.clone(),
        file: file.to_path_buf(),
        problem,
    };
    let text = fs_err::read_to_string(file).map_err(|error| fail(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| fail(format!("expected JSON: {error}")))
}

pub(crate) fn invalid(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    problem: String,
) -> ScorerError {
    ScorerError::Invalid { file: config.file.clone(), scorer: entry.name.clone(), problem }
}
