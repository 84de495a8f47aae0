//! From `scorers.toml` to networks: works out what the scorers share and reads every distinct
//! checkpoint once.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use media::preprocess::{Kind as RecipeKind, Recipe};
use media::text::Tokenizer;
use nn::aesthetic::AestheticHead;
use nn::clip::{ClipModel, TextTower, VisionTower};
use nn::weights::Weights;

use crate::manifest::{ImageTowerRecord, ScorerRecord, ScorersManifest, TextTowerRecord};
use crate::model::{Model, find_model, head_file, invalid, record};
use crate::score::{AestheticScorer, CosineScorer};
use crate::set::{CaptionTower, Compute, ImageTower};
use crate::{Kind, PreprocessName, Scorer, ScorerConfig, ScorerError, ScorerSet, ScorersConfig};

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
    let mut visions: Vec<Option<Arc<VisionTower>>> = Vec::new();
    let mut texts: Vec<Option<Arc<TextTower>>> = Vec::new();
    for model in &layouts.models {
        tracing::info!(scorer = model.scorer, weights = %show(&model.files), "loading");
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

fn show(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    names.join(", ")
}
