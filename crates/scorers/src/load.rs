//! From `scorers.toml` to networks: finds each checkpoint's files, works out what is shared, reads
//! every distinct checkpoint once.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hub::Repository;
use media::preprocess::{CLIP_MEAN, CLIP_STD, Kind as RecipeKind, Recipe};
use media::text::Tokenizer;
use nn::aesthetic::AestheticHead;
use nn::clip::{ClipConfig, ClipLayout, ClipModel, ClipParts, TextTower, VisionTower};
use nn::weights::Weights;
use serde::Deserialize;

use crate::manifest::{ImageTowerRecord, ScorerRecord, TextTowerRecord, WeightsRecord};
use crate::score::{AestheticScorer, CosineScorer};
use crate::set::{CaptionTower, Compute, ImageTower};
use crate::{
    Kind, PreprocessName, Scorer, ScorerConfig, ScorerError, ScorerSet, ScorersConfig,
    ScorersManifest,
};

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
struct Model {
    layout: ClipLayout,
    /// The scorer that named it first, for errors.
    scorer: String,
    config: ClipConfig,
    files: Vec<PathBuf>,
    records: Vec<WeightsRecord>,
    revision: Option<String>,
    folder: Option<PathBuf>,
    mean: [f32; 3],
    std: [f32; 3],
    parts: ClipParts,
}

/// Where each scorer's parts are, before any weights are read.
struct Layouts {
    models: Vec<Model>,
    recipes: Vec<Recipe>,
    tokenizers: Vec<Box<dyn Tokenizer>>,
    /// (model, recipe) of each image tower.
    image_towers: Vec<(usize, usize)>,
    /// (model, tokenizer) of each text tower.
    text_towers: Vec<(usize, usize)>,
    /// (image tower, text tower, head file) of each scorer.
    scorers: Vec<(usize, Option<usize>, Option<PathBuf>)>,
    manifest: ScorersManifest,
}

pub(crate) fn describe(
    config: &ScorersConfig,
    compute: Compute,
) -> Result<ScorersManifest, ScorerError> {
    Ok(lay_out(config, compute)?.manifest)
}

pub(crate) fn load(config: &ScorersConfig, compute: Compute) -> Result<ScorerSet, ScorerError> {
    let layouts = lay_out(config, compute)?;
    let mut networks: Vec<(Option<Arc<VisionTower>>, Option<Arc<TextTower>>)> = Vec::new();
    for model in &layouts.models {
        let network = |source| ScorerError::Network { scorer: model.scorer.clone(), source };
        tracing::info!(scorer = model.scorer, weights = %show(&model.files), "loading");
        let weights = Weights::open_files(&model.files).map_err(|error| network(error.into()))?;
        let clip = ClipModel::load(
            &model.config,
            model.layout,
            &weights,
            model.parts,
            compute.device,
            compute.precision,
        )
        .map_err(network)?;
        networks.push((clip.vision.map(Arc::new), clip.text.map(Arc::new)));
    }
    let mut image_towers = Vec::new();
    for &(model, recipe) in &layouts.image_towers {
        if let Some(network) = &networks[model].0 {
            let name = format!("image tower of {}", layouts.models[model].scorer);
            image_towers.push(ImageTower { name, network: Arc::clone(network), recipe });
        }
    }
    let mut text_towers = Vec::new();
    for &(model, tokenizer) in &layouts.text_towers {
        if let Some(network) = &networks[model].1 {
            let name = format!("text tower of {}", layouts.models[model].scorer);
            text_towers.push(CaptionTower { name, network: Arc::clone(network), tokenizer });
        }
    }
    let mut scorers: Vec<Box<dyn Scorer>> = Vec::new();
    for (entry, (image_tower, text_tower, head)) in config.scorer.iter().zip(&layouts.scorers) {
        let (name, image_tower) = (entry.name.clone(), *image_tower);
        match (text_tower, head) {
            (Some(text_tower), _) => {
                scorers.push(Box::new(CosineScorer { name, image_tower, text_tower: *text_tower }));
            }
            (None, Some(file)) => {
                let network = |source| ScorerError::Network { scorer: entry.name.clone(), source };
                let weights = Weights::open(file).map_err(|error| network(error.into()))?;
                let embedding =
                    layouts.models[layouts.image_towers[image_tower].0].config.embed_dim;
                let head = AestheticHead::load(&weights, compute.device)
                    .map_err(|error| network(error.into()))?;
                if head.input_width() != embedding {
                    return Err(ScorerError::File {
                        scorer: entry.name.clone(),
                        file: file.clone(),
                        problem: format!(
                            "the head takes features of {} numbers but model `{}` gives {embedding}; hint: LAION's \
                             published head belongs to openai/clip-vit-large-patch14",
                            head.input_width(),
                            entry.model
                        ),
                    });
                }
                scorers.push(Box::new(AestheticScorer { name, image_tower, head }));
            }
            (None, None) => {
                return Err(invalid(
                    config,
                    entry,
                    "it has neither a text tower nor a head".to_owned(),
                ));
            }
        }
    }
    Ok(ScorerSet {
        scorers,
        image_towers,
        text_towers,
        recipes: layouts.recipes,
        tokenizers: layouts.tokenizers,
        manifest: layouts.manifest,
        compute,
        network_time: Cell::new(Duration::ZERO),
    })
}

fn lay_out(config: &ScorersConfig, compute: Compute) -> Result<Layouts, ScorerError> {
    config.validate()?;
    let mut layouts = Layouts {
        models: Vec::new(),
        recipes: Vec::new(),
        tokenizers: Vec::new(),
        image_towers: Vec::new(),
        text_towers: Vec::new(),
        scorers: Vec::new(),
        manifest: ScorersManifest {
            scorers: Vec::new(),
            dtype: compute.precision.to_string(),
            device: if compute.device.is_cuda() { "cuda" } else { "cpu" }.to_owned(),
        },
    };
    let mut tokenizer_keys: Vec<String> = Vec::new();
    for entry in &config.scorer {
        let model = find_model(config, entry, &mut layouts.models)?;
        layouts.models[model].parts.vision = true;

        let recipe = recipe_of(entry, &layouts.models[model])?;
        let recipe = index_of(&mut layouts.recipes, recipe);
        let image_tower = index_of(&mut layouts.image_towers, (model, recipe));

        let (text_tower, head) = match entry.kind {
            Kind::Clip => {
                layouts.models[model].parts.text = true;
                let tokenizer = tokenizer_of(entry, &layouts.models[model])?;
                let key = format!("{} {}", tokenizer.fingerprint(), tokenizer.context_length());
                let known = tokenizer_keys.iter().position(|other| *other == key);
                let index = known.unwrap_or_else(|| {
                    tokenizer_keys.push(key);
                    layouts.tokenizers.push(tokenizer);
                    layouts.tokenizers.len() - 1
                });
                (Some(index_of(&mut layouts.text_towers, (model, index))), None)
            }
            Kind::Aesthetic => (None, Some(head_file(config, entry)?)),
        };
        let text = text_tower.map(|tower| {
            let tokenizer = &layouts.tokenizers[layouts.text_towers[tower].1];
            TextTowerRecord {
                tokenizer: tokenizer.fingerprint(),
                context_length: tokenizer.context_length(),
            }
        });
        let model = &layouts.models[model];
        layouts.manifest.scorers.push(ScorerRecord {
            name: entry.name.clone(),
            kind: match entry.kind {
                Kind::Clip => "clip",
                Kind::Aesthetic => "aesthetic",
            }
            .to_owned(),
            image: ImageTowerRecord {
                weights: model.records.clone(),
                revision: model.revision.clone(),
                layout: model.layout.to_string(),
                preprocess: layouts.recipes[recipe].name(),
            },
            text,
            head: head.as_deref().map(|file| record(entry, file)).transpose()?,
        });
        layouts.scorers.push((image_tower, text_tower, head));
    }
    Ok(layouts)
}

/// The index of `item`, added when new.
fn index_of<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    items.iter().position(|other| *other == item).unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

fn find_model(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    models: &mut Vec<Model>,
) -> Result<usize, ScorerError> {
    let hub = |source| ScorerError::Hub { scorer: entry.name.clone(), source };
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
    let records = files.iter().map(|file| record(entry, file)).collect::<Result<_, _>>()?;
    let (mean, std) = statistics.unwrap_or_default().or_published();
    models.push(Model {
        layout: entry.layout,
        scorer: entry.name.clone(),
        config: clip,
        records,
        revision: repository.revision().map(str::to_owned),
        folder: files.first().and_then(|file| file.parent()).map(Path::to_path_buf),
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
        let published = ClipConfig::published(architecture).map_err(|source| {
            ScorerError::Network { scorer: entry.name.clone(), source: source.into() }
        })?;
        return Ok((published, None));
    }
    let file = repository
        .optional_file("open_clip_config.json")
        .map_err(|source| ScorerError::Hub { scorer: entry.name.clone(), source })?;
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
    ClipConfig::read(file, entry.layout).map_err(|source| ScorerError::Network {
        scorer: entry.name.clone(),
        source: source.into(),
    })
}

fn weight_files(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    repository: &Repository,
) -> Result<Vec<PathBuf>, ScorerError> {
    let hub = |source| ScorerError::Hub { scorer: entry.name.clone(), source };
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
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Pixel mean and standard deviation, as `preprocessor_config.json` (transformers) or
/// `open_clip_config.json` spell them.
#[derive(Default, Deserialize)]
struct Statistics {
    #[serde(alias = "mean")]
    image_mean: Option<[f32; 3]>,
    #[serde(alias = "std")]
    image_std: Option<[f32; 3]>,
    preprocess_cfg: Option<Box<Statistics>>,
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

fn recipe_of(entry: &ScorerConfig, model: &Model) -> Result<Recipe, ScorerError> {
    let kind = match entry.preprocess {
        PreprocessName::Hf => RecipeKind::Hf,
        PreprocessName::Hps => {
            RecipeKind::Hps { resize: entry.hps_resize.unwrap_or_default().into() }
        }
        PreprocessName::OpenClip => RecipeKind::OpenClip,
    };
    let size = u32::try_from(model.config.vision.image_size).unwrap_or(u32::MAX);
    Recipe::new(kind, size, model.mean, model.std)
        .map_err(|source| ScorerError::Recipe { scorer: entry.name.clone(), source })
}

fn tokenizer_of(entry: &ScorerConfig, model: &Model) -> Result<Box<dyn Tokenizer>, ScorerError> {
    let context_length = usize::try_from(model.config.text.context_length).unwrap_or(0);
    let tokenizer =
        media::text::load(entry.tokenizer_kind(), model.folder.as_deref(), context_length)
            .map_err(|source| ScorerError::Tokenizer { scorer: entry.name.clone(), source })?;
    let (has, takes) = (tokenizer.vocabulary_size(), model.config.text.vocabulary_size);
    if has as i64 > takes {
        return Err(ScorerError::File {
            scorer: entry.name.clone(),
            file: model.folder.clone().unwrap_or_default(),
            problem: format!(
                "the vocabulary has {has} entries but the text tower embeds {takes}; hint: put the model's own \
                 vocab.json and merges.txt beside its weights"
            ),
        });
    }
    Ok(tokenizer)
}

fn head_file(config: &ScorersConfig, entry: &ScorerConfig) -> Result<PathBuf, ScorerError> {
    let head = entry.head.as_deref().unwrap_or_default();
    let hub = |source| ScorerError::Hub { scorer: entry.name.clone(), source };
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
            format!("head `{head}` names no file; expected hf://owner/name/file"),
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

fn record(entry: &ScorerConfig, file: &Path) -> Result<WeightsRecord, ScorerError> {
    let sha256 = hub::sha256_file(file)
        .map_err(|source| ScorerError::Hub { scorer: entry.name.clone(), source })?;
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

fn invalid(config: &ScorersConfig, entry: &ScorerConfig, problem: String) -> ScorerError {
    ScorerError::Invalid { file: config.file.clone(), scorer: entry.name.clone(), problem }
}

fn show(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    names.join(", ")
}
