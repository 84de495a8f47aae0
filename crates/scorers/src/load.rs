//! From `scorers.toml` to networks: works out what the scorers share and reads every distinct
//! checkpoint once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use media::preprocess::Recipe;
use media::text::Tokenizer;
use nn::aesthetic::AestheticHead;
use nn::clip::{ClipModel, TextTower, VisionTower};
use nn::weights::Weights;
use rayon::prelude::*;

use crate::config::{Kind, ScorerConfig, ScorersConfig};
use crate::error::ScorerError;
use crate::files;
use crate::manifest::{
    ImageTowerRecord, ScorerRecord, ScorersManifest, TextTowerRecord, WeightsRecord,
};
use crate::memory::Limits;
use crate::model::{Model, find_model, invalid, record};
use crate::preprocess;
use crate::score::{AestheticScorer, CosineScorer, Scorer};
use crate::set::{CaptionTower, Compute, ImagePreprocessor, ImageTower, ScorerSet};

/// The scorers of a configuration with every file found and checked, before any weights are read.
pub struct DescribedScorers {
    config: ScorersConfig,
    compute: Compute,
    models: Vec<Model>,
    recipes: Vec<Recipe>,
    tokenizers: Vec<Box<dyn Tokenizer>>,
    /// (model, recipe) of each image tower.
    image_towers: Vec<(usize, usize)>,
    /// (model, tokenizer) of each text tower.
    text_towers: Vec<(usize, usize)>,
    scorers: Vec<Parts>,
    manifest: ScorersManifest,
}

/// What a scorer is made of.
struct Parts {
    image_tower: usize,
    text_tower: Option<usize>,
    head: Option<PathBuf>,
}

impl std::fmt::Debug for DescribedScorers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DescribedScorers")
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

impl DescribedScorers {
    /// Finds the files of every scorer of `config`, checks their configurations and works out what the
    /// scorers share. Names the first file that is missing or does not parse.
    pub fn of(config: &ScorersConfig, compute: Compute) -> Result<Self, ScorerError> {
        describe(config, compute)
    }

    /// What the scores depend on.
    #[must_use]
    pub fn manifest(&self) -> &ScorersManifest {
        &self.manifest
    }

    /// How many numbers each text tower gives for a caption, in the order of the set's text towers.
    #[must_use]
    pub fn text_widths(&self) -> Vec<usize> {
        let width = |model: usize| self.models[model].config.embed_dim;
        let towers = self.text_towers.iter();
        towers.map(|&(model, _)| usize::try_from(width(model)).unwrap_or(0)).collect()
    }

    /// The preprocessing, which needs no weights.
    #[must_use]
    pub fn image_preprocessor(&self) -> ImagePreprocessor {
        ImagePreprocessor::new(&self.recipes)
    }

    /// Reads the weights into networks.
    pub fn load(self) -> Result<ScorerSet, ScorerError> {
        load(self)
    }
}

impl ScorerSet {
    /// Reads `scorers.toml` and loads all that it names, downloaded first if it is on the hub.
    pub fn open(file: impl AsRef<Path>, compute: Compute) -> Result<Self, ScorerError> {
        DescribedScorers::of(&ScorersConfig::read(file.as_ref())?, compute)?.load()
    }
}

fn load(layouts: DescribedScorers) -> Result<ScorerSet, ScorerError> {
    let (config, compute) = (&layouts.config, layouts.compute);
    let mut visions: Vec<Option<Arc<VisionTower>>> = Vec::new();
    let mut texts: Vec<Option<Arc<TextTower>>> = Vec::new();
    for model in &layouts.models {
        tracing::debug!(scorer = model.scorer, weights = %show(&model.files), "loading");
        let weights =
            Weights::open_files(&model.files).map_err(ScorerError::network(&model.scorer))?;
        let clip = ClipModel::load(
            &model.config,
            model.layout,
            &weights,
            model.parts,
            compute.device,
            compute.precision,
        )
        .map_err(ScorerError::network(&model.scorer))?;
        visions.push(clip.vision.map(Arc::new));
        texts.push(clip.text.map(Arc::new));
    }
    let mut image_towers = Vec::new();
    for &(model, recipe) in &layouts.image_towers {
        if let Some(network) = &visions[model] {
            let name = format!("image tower of {}", layouts.models[model].scorer);
            image_towers.push(ImageTower { name, network: Arc::clone(network), recipe });
        }
    }
    let mut text_towers = Vec::new();
    for &(model, tokenizer) in &layouts.text_towers {
        if let Some(network) = &texts[model] {
            let name = format!("text tower of {}", layouts.models[model].scorer);
            let pooling = layouts.models[model].config.pooling;
            text_towers.push(CaptionTower {
                name,
                network: Arc::clone(network),
                tokenizer,
                pooling,
            });
        }
    }
    let mut scorers: Vec<Box<dyn Scorer>> = Vec::new();
    for (entry, parts) in config.scorer.iter().zip(&layouts.scorers) {
        let (name, image_tower) = (entry.name.clone(), parts.image_tower);
        match (parts.text_tower, &parts.head) {
            (Some(text_tower), _) => {
                scorers.push(Box::new(CosineScorer { name, image_tower, text_tower }));
            }
            (None, Some(file)) => {
                let network = ScorerError::network(&entry.name);
                let weights = Weights::open(file).map_err(network)?;
                let embedding =
                    layouts.models[layouts.image_towers[image_tower].0].config.embed_dim;
                let head = AestheticHead::load(&weights, compute.device).map_err(network)?;
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
        limits: Limits::default(),
    })
}

fn describe(config: &ScorersConfig, compute: Compute) -> Result<DescribedScorers, ScorerError> {
    config.validate()?;
    files::prepare(config)?;
    let mut described = DescribedScorers {
        config: config.clone(),
        compute,
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
    for entry in &config.scorer {
        let model = find_model(config, entry, &mut described.models)?;
        described.models[model].parts.vision = true;
        let Model { config: clip, preprocessing, .. } = &described.models[model];
        let recipe = preprocess::recipe(entry, preprocessing, clip.vision.image_size)?;
        let recipe = index_of(&mut described.recipes, recipe);
        let image_tower = index_of(&mut described.image_towers, (model, recipe));
        let (text_tower, head) = match entry.kind {
            Kind::Clip => {
                described.models[model].parts.text = true;
                let tokenizer = tokenizer_of(entry, &described.models[model])?;
                let known = described.tokenizers.iter();
                let known = known
                    .map(|known| known.fingerprint())
                    .position(|known| known == tokenizer.fingerprint());
                let tokenizer = known.unwrap_or_else(|| {
                    described.tokenizers.push(tokenizer);
                    described.tokenizers.len() - 1
                });
                (Some(index_of(&mut described.text_towers, (model, tokenizer))), None)
            }
            Kind::Aesthetic => (None, Some(files::head(config, entry)?)),
        };
        described.scorers.push(Parts { image_tower, text_tower, head });
    }
    described.manifest.scorers = records(&described)?;
    Ok(described)
}

/// The manifest's records, with the checksum of every weights file, each file read once.
fn records(described: &DescribedScorers) -> Result<Vec<ScorerRecord>, ScorerError> {
    let heads = described.config.scorer.iter().zip(&described.scorers);
    let heads =
        heads.filter_map(|(entry, parts)| Some((entry.name.as_str(), parts.head.as_ref()?)));
    let models = described.models.iter();
    let files: BTreeMap<&PathBuf, &str> = models
        .flat_map(|model| model.files.iter().map(|file| (model.scorer.as_str(), file)))
        .chain(heads)
        .map(|(scorer, file)| (file, scorer))
        .collect();
    tracing::debug!(files = files.len(), "checksums of the weights");
    let checksums: BTreeMap<&PathBuf, WeightsRecord> = files
        .into_par_iter()
        .map(|(file, scorer)| record(scorer, file).map(|record| (file, record)))
        .collect::<Result<_, ScorerError>>()?;
    let of = |files: &[PathBuf]| {
        files.iter().filter_map(|file| checksums.get(file).cloned()).collect::<Vec<_>>()
    };
    let scorers = described.config.scorer.iter().zip(&described.scorers).map(|(entry, parts)| {
        let (model, recipe) = described.image_towers[parts.image_tower];
        let model = &described.models[model];
        ScorerRecord {
            name: entry.name.clone(),
            kind: match entry.kind {
                Kind::Clip => "clip",
                Kind::Aesthetic => "aesthetic",
            }
            .to_owned(),
            image: ImageTowerRecord {
                weights: of(&model.files),
                revision: model.revision.clone(),
                layout: model.layout.to_string(),
                preprocess: described.recipes[recipe].name(),
                embed_dim: Some(model.config.embed_dim),
                network: Some(model.config.vision.clone()),
            },
            text: parts.text_tower.map(|tower| {
                let (model, tokenizer) = described.text_towers[tower];
                let (model, tokenizer) =
                    (&described.models[model], &described.tokenizers[tokenizer]);
                TextTowerRecord {
                    tokenizer: tokenizer.fingerprint(),
                    context_length: tokenizer.context_length(),
                    network: Some(model.config.text.clone()),
                    pooling: Some(model.config.pooling),
                }
            }),
            head: parts.head.as_ref().and_then(|head| checksums.get(head).cloned()),
        }
    });
    Ok(scorers.collect())
}

/// The index of `item`, added when new.
fn index_of<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    items.iter().position(|other| *other == item).unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
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

fn show(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    names.join(", ")
}
