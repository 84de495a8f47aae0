//! One checkpoint: which files it is made of, what its configuration says, and their checksums.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hub::Repository;
use media::preprocess::{CLIP_MEAN, CLIP_STD};
use nn::clip::{ClipConfig, ClipLayout, ClipParts};
use serde::Deserialize;

use crate::manifest::WeightsRecord;
use crate::{ScorerConfig, ScorerError, ScorersConfig};

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
/// Files a tokenizer may read; fetched so that a hub model has them beside its weights.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "vocab.json", "merges.txt"];

/// A checkpoint that one or more scorers use.
pub(crate) struct Model {
    pub(crate) layout: ClipLayout,
    /// The scorer that named it first, for errors.
    pub(crate) scorer: String,
    pub(crate) config: ClipConfig,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) revision: Option<String>,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) mean: [f32; 3],
    pub(crate) std: [f32; 3],
    pub(crate) parts: ClipParts,
}

pub(crate) fn find_model(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    models: &mut Vec<Model>,
) -> Result<usize, ScorerError> {
    let hub = ScorerError::hub(&entry.name);
    let repository = Repository::open(&entry.model, &config.folder).map_err(hub)?;
    let files = weight_files(config, entry, &repository)?;
    if let Some(known) =
        models.iter().position(|model| model.files == files && model.layout == entry.layout)
    {
        return Ok(known);
    }
    let (clip, statistics) = match entry.layout {
        ClipLayout::Transformers => {
            let clip = read_config(entry, &repository.file("config.json").map_err(hub)?)?;
            let statistics = repository.optional_file("preprocessor_config.json").map_err(hub)?;
            (clip, statistics.map(|file| Statistics::read(entry, &file)).transpose()?)
        }
        ClipLayout::OpenClip => open_clip_config(config, entry, &repository)?,
    };
    for name in TOKENIZER_FILES {
        repository.optional_file(name).map_err(hub)?;
    }
    let (mean, std) = statistics.unwrap_or_default().or_published();
    models.push(Model {
        layout: entry.layout,
        scorer: entry.name.clone(),
        config: clip,
        revision: repository.revision().map(str::to_owned),
        folder: repository.folder().map(Path::to_path_buf),
        files,
        mean,
        std,
        parts: ClipParts { vision: false, text: false },
    });
    Ok(models.len() - 1)
}

fn open_clip_config(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<(ClipConfig, Option<Statistics>), ScorerError> {
    if let Some(architecture) = &entry.architecture {
        let published =
            ClipConfig::published(architecture).map_err(ScorerError::network(&entry.name))?;
        return Ok((published, None));
    }
    let file =
        repository.optional_file("open_clip_config.json").map_err(ScorerError::hub(&entry.name))?;
    let Some(file) = file else {
        let problem = format!(
            "model `{}` has no open_clip_config.json; hint: name its architecture, for example architecture = \"ViT-H-14\"",
            entry.model
        );
        return Err(invalid(config, entry, problem));
    };
    Ok((read_config(entry, &file)?, Some(Statistics::read(entry, &file)?)))
}

fn read_config(entry: &ScorerConfig, file: &Path) -> Result<ClipConfig, ScorerError> {
    ClipConfig::read(file, entry.layout).map_err(ScorerError::network(&entry.name))
}

fn weight_files(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<Vec<PathBuf>, ScorerError> {
    let hub = ScorerError::hub(&entry.name);
    let names: &[&str] = match (&entry.weights, entry.layout) {
        (Some(name), _) => &[name.as_str()],
        (None, ClipLayout::Transformers) => &TRANSFORMERS_WEIGHTS,
        (None, ClipLayout::OpenClip) => &OPEN_CLIP_WEIGHTS,
    };
    let mut found = None;
    for name in names {
        found = match &entry.weights {
            Some(_) => Some(repository.file(name).map_err(hub)?),
            None => repository.optional_file(name).map_err(hub)?,
        };
        if found.is_some() {
            break;
        }
    }
    let Some(file) = found else {
        let problem = format!(
            "model `{}` holds none of {}; hint: name the file with `weights`",
            entry.model,
            names.join(", ")
        );
        return Err(invalid(config, entry, problem));
    };
    if file.extension().is_none_or(|extension| extension != "json") {
        return Ok(vec![file]);
    }
    // A sharded checkpoint: every shard its index names, each through the repository's path checks.
    let index: ShardIndex = read_json(entry, &file)?;
    let mut shards: Vec<&String> = index.weight_map.values().collect();
    shards.sort();
    shards.dedup();
    shards.into_iter().map(|shard| repository.file(shard).map_err(hub)).collect()
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Pixel mean and standard deviation, as `preprocessor_config.json` (transformers) or
/// `open_clip_config.json` spell them.
#[derive(Default, Deserialize)]
struct Statistics {
    #[serde(alias = "mean")]
    image_mean: Option<[f32; 3]>,
    #[serde(alias = "std")]
    image_std: Option<[f32; 3]>,
    preprocess_cfg: Option<Box<Self>>,
}

impl Statistics {
    fn read(entry: &ScorerConfig, file: &Path) -> Result<Self, ScorerError> {
        let read: Self = read_json(entry, file)?;
        Ok(match read.preprocess_cfg {
            Some(nested) => *nested,
            None => read,
        })
    }

    fn or_published(self) -> ([f32; 3], [f32; 3]) {
        (self.image_mean.unwrap_or(CLIP_MEAN), self.image_std.unwrap_or(CLIP_STD))
    }
}

pub(crate) fn head_file(
    config: &ScorersConfig,
    entry: &ScorerConfig,
) -> Result<PathBuf, ScorerError> {
    let head = entry.head.as_deref().unwrap_or_default();
    let hub = ScorerError::hub(&entry.name);
    if let Some(rest) = head.strip_prefix("hf://") {
        let mut parts = rest.splitn(3, '/');
        if let (Some(owner), Some(name), Some(file)) = (parts.next(), parts.next(), parts.next()) {
            return Repository::open(&format!("hf://{owner}/{name}"), &config.folder)
                .and_then(|repository| repository.file(file))
                .map_err(hub);
        }
        return Err(invalid(
            config,
            entry,
            format!("head `{head}` names no file; expected hf://owner/name[@revision]/file"),
        ));
    }
    let file = config.folder.join(head);
    if !file.is_file() {
        let problem = format!(
            "head {} is not a file; hint: the path is relative to the TOML file",
            file.display()
        );
        return Err(invalid(config, entry, problem));
    }
    Ok(file)
}

/// Name and checksum of a file; `scorer` is named in errors.
pub(crate) fn record(scorer: &str, file: &Path) -> Result<WeightsRecord, ScorerError> {
    let sha256 = hub::sha256_file(file).map_err(ScorerError::hub(scorer))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(WeightsRecord { file: name, sha256 })
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
