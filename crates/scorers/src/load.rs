//! From `scorers.toml` to networks: works out what the scorers share and reads every distinct
//! checkpoint once.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use media::preprocess::Recipe;
use media::text::{SiglipTokenizer, Tokenizer};
use nn::aesthetic::{AestheticHead, HeadNames};
use nn::clip::{ClipModel, ClipSource};
use nn::image_reward::{CaptionReader, ImageReward};
use nn::siglip::{SiglipLogits, SiglipModel};
use nn::weights::Weights;
use runkit::files::FileHashes;

use crate::config::{ScorerConfig, ScorersConfig};
use crate::error::ScorerError;
use crate::external::script_files;
use crate::files;
use crate::image_reward::{self, CaptionIds, ImageRewardScorer};
use crate::kind::Kind;
use crate::manifest::{
    CommandRecord, ImageTowerRecord, ScorerRecord, ScorersManifest, TextTowerRecord, VlmRecord,
    WeightsRecord,
};
use crate::memory::Limits;
use crate::model::{Model, Network, find_model, invalid};
use crate::preprocess;
use crate::score::{AestheticScorer, CosineScorer, Scorer, SiglipScorer};
use crate::set::{CaptionTower, Compute, ImagePreprocessor, ImageTower, ScorerSet};
use crate::towers::{ClipText, ImageNetwork, SiglipCaptions, TextNetwork};

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

/// The networks of a model, loaded.
struct Networks {
    image: Option<Arc<dyn ImageNetwork>>,
    text: Option<Arc<dyn TextNetwork>>,
    /// What reads both sides together.
    reader: Option<Arc<CaptionReader>>,
    /// What makes a probability of a cosine.
    logits: Option<SiglipLogits>,
}

impl std::fmt::Debug for DescribedScorers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DescribedScorers")
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

impl ScorerSet {
    /// Reads `scorers.toml` and loads the models that it names; those on the hub are downloaded
    /// first.
    pub fn open(file: impl AsRef<Path>, compute: Compute) -> Result<Self, ScorerError> {
        DescribedScorers::of(&ScorersConfig::read(file.as_ref())?, compute)?.load()
    }
}

impl DescribedScorers {
    /// Finds the files of every scorer of `config`, checks their configurations and works out what
    /// the scorers share. Names the first file that is missing or does not parse.
    pub fn of(config: &ScorersConfig, compute: Compute) -> Result<Self, ScorerError> {
        Self::of_hashed(config, compute, &mut FileHashes::default())
    }

    /// As [`DescribedScorers::of`]. Weights whose checksums `hashes` knows are not read for them;
    /// the others are added to it.
    pub fn of_hashed(
        config: &ScorersConfig,
        compute: Compute,
        hashes: &mut FileHashes,
    ) -> Result<Self, ScorerError> {
        config.validate()?;
        let mut local = config.clone();
        local.scorer.retain(|entry| !entry.kind.is_external());
        files::check(&local)?;
        let mut described = Self {
            config: local,
            compute,
            models: Vec::new(),
            recipes: Vec::new(),
            tokenizers: Vec::new(),
            image_towers: Vec::new(),
            text_towers: Vec::new(),
            scorers: Vec::new(),
            manifest: ScorersManifest {
                scorers: Vec::new(),
                dtype: nn::device::dtype_name(compute.precision, compute.device),
                device: if compute.device.is_cuda() { "cuda" } else { "cpu" }.to_owned(),
            },
        };
        for entry in &described.config.scorer.clone() {
            described.add(entry)?;
        }
        let mut local = records(&described, hashes)?.into_iter();
        for entry in &config.scorer {
            let record = match entry.kind.is_external() {
                true => Some(external_record(config, entry, hashes)?),
                false => local.next(),
            };
            described.manifest.scorers.extend(record);
        }
        Ok(described)
    }

    /// Adds a scorer; what an earlier one has already is shared.
    fn add(&mut self, entry: &ScorerConfig) -> Result<(), ScorerError> {
        let model = find_model(&self.config, entry, &mut self.models)?;
        self.models[model].parts.vision = true;
        let Model { network, preprocessing, .. } = &self.models[model];
        let recipe = preprocess::recipe(entry, preprocessing, network.vision().image_size)?;
        let recipe = index_of(&mut self.recipes, recipe);
        let image_tower = index_of(&mut self.image_towers, (model, recipe));
        let (text_tower, head) = match entry.kind {
            Kind::Clip | Kind::ImageReward | Kind::Siglip => {
                self.models[model].parts.text = true;
                let tokenizer = tokenizer_of(&self.config, entry, &self.models[model])?;
                let mut known = self.tokenizers.iter().map(|known| known.fingerprint());
                let known = known.position(|known| known == tokenizer.fingerprint());
                let tokenizer = known.unwrap_or_else(|| {
                    self.tokenizers.push(tokenizer);
                    self.tokenizers.len() - 1
                });
                (Some(index_of(&mut self.text_towers, (model, tokenizer))), None)
            }
            Kind::Aesthetic | Kind::AestheticSiglip => {
                (None, Some(files::head(&self.config, entry)?))
            }
            // They have no networks here, and are not in this configuration.
            Kind::Vlm | Kind::Command => (None, None),
        };
        self.scorers.push(Parts { image_tower, text_tower, head });
        Ok(())
    }

    /// What the scores depend on.
    #[must_use]
    pub fn manifest(&self) -> &ScorersManifest {
        &self.manifest
    }

    /// The length of each text tower's features, in the order of the set's text towers.
    #[must_use]
    pub fn text_widths(&self) -> Vec<usize> {
        let towers = self.text_towers.iter();
        towers.map(|&(model, _)| self.models[model].network.text_width()).collect()
    }

    /// The preprocessing, which needs no weights.
    #[must_use]
    pub fn image_preprocessor(&self) -> ImagePreprocessor {
        ImagePreprocessor::new(&self.recipes)
    }

    /// Reads the weights into networks.
    pub fn load(self) -> Result<ScorerSet, ScorerError> {
        let networks: Vec<Networks> =
            self.models.iter().map(|model| self.networks(model)).collect::<Result<_, _>>()?;
        let mut image_towers = Vec::new();
        for &(model, recipe) in &self.image_towers {
            if let Some(network) = &networks[model].image {
                let name = format!("image tower of {}", self.models[model].scorer);
                image_towers.push(ImageTower { name, network: Arc::clone(network), recipe });
            }
        }
        let mut text_towers = Vec::new();
        for &(model, tokenizer) in &self.text_towers {
            if let Some(network) = &networks[model].text {
                let name = format!("text tower of {}", self.models[model].scorer);
                text_towers.push(CaptionTower { name, network: Arc::clone(network), tokenizer });
            }
        }
        let scorers = self.config.scorer.iter().zip(&self.scorers);
        Ok(ScorerSet {
            scorers: scorers
                .map(|(entry, parts)| self.scorer(entry, parts, &networks))
                .collect::<Result<_, _>>()?,
            image_towers,
            text_towers,
            recipes: self.recipes,
            tokenizers: self.tokenizers,
            manifest: self.manifest,
            compute: self.compute,
            network_time: Cell::new(Duration::ZERO),
            limits: Limits::default(),
        })
    }

    /// Reads the towers of a model that scorers need.
    fn networks(&self, model: &Model) -> Result<Networks, ScorerError> {
        tracing::debug!(scorer = model.scorer, weights = %show(&model.files), "loading");
        let weights =
            Weights::open_files(&model.files).map_err(ScorerError::network(&model.scorer))?;
        let Compute { device, precision } = self.compute;
        match &model.network {
            Network::Clip { layout, config } => {
                let source = ClipSource { config, layout: *layout, weights: &weights };
                let clip = ClipModel::load(source, model.parts, device, precision)
                    .map_err(ScorerError::network(&model.scorer))?;
                let text = clip.text.map(|tower| ClipText { tower, pooling: config.pooling });
                Ok(Networks {
                    image: clip.vision.map(|tower| Arc::new(tower) as _),
                    text: text.map(|text| Arc::new(text) as _),
                    reader: None,
                    logits: None,
                })
            }
            Network::ImageReward(config) => {
                let ImageReward { vision, reader } =
                    ImageReward::load(config, &weights, device, precision)
                        .map_err(ScorerError::network(&model.scorer))?;
                Ok(Networks {
                    image: Some(Arc::new(vision)),
                    text: Some(Arc::new(CaptionIds { device })),
                    reader: Some(Arc::new(reader)),
                    logits: None,
                })
            }
            Network::Siglip(config) => {
                let failed = ScorerError::network(&model.scorer);
                let towers = SiglipModel::load(config, &weights, model.parts, device, precision)
                    .map_err(failed)?;
                let logits = model.parts.text.then(|| SiglipLogits::load(&weights));
                Ok(Networks {
                    image: towers.vision.map(|tower| Arc::new(tower) as _),
                    text: towers.text.map(|tower| Arc::new(SiglipCaptions(tower)) as _),
                    reader: None,
                    logits: logits.transpose().map_err(ScorerError::network(&model.scorer))?,
                })
            }
        }
    }

    fn scorer(
        &self,
        entry: &ScorerConfig,
        parts: &Parts,
        networks: &[Networks],
    ) -> Result<Box<dyn Scorer>, ScorerError> {
        let (name, image_tower) = (entry.name.clone(), parts.image_tower);
        let Networks { reader, logits, .. } = &networks[self.image_towers[image_tower].0];
        if let (Some(text_tower), Some(reader)) = (parts.text_tower, reader) {
            let reader = Arc::clone(reader);
            return Ok(Box::new(ImageRewardScorer { name, image_tower, text_tower, reader }));
        }
        if let (Some(text_tower), Some(logits)) = (parts.text_tower, *logits) {
            let cosine = CosineScorer { name, image_tower, text_tower };
            return Ok(Box::new(SiglipScorer { cosine, logits }));
        }
        let file = match (parts.text_tower, &parts.head) {
            (Some(text_tower), _) => {
                return Ok(Box::new(CosineScorer { name, image_tower, text_tower }));
            }
            (None, Some(file)) => file,
            (None, None) => {
                let problem = "it has neither a text tower nor a head".to_owned();
                return Err(invalid(&self.config, entry, problem));
            }
        };
        let weights = Weights::open(file).map_err(ScorerError::network(&entry.name))?;
        let (names, owner) = match entry.kind {
            Kind::AestheticSiglip => (
                HeadNames::V2_5,
                "that of aesthetic-predictor-v2-5 belongs to google/siglip-so400m-patch14-384",
            ),
            _ => (
                HeadNames::LAION,
                "LAION's published head belongs to openai/clip-vit-large-patch14",
            ),
        };
        let head = AestheticHead::load_named(&weights, names, self.compute.device)
            .map_err(ScorerError::network(&entry.name))?;
        let embedding = self.models[self.image_towers[image_tower].0].network.embed_dim();
        if head.input_width() != embedding {
            return Err(ScorerError::File {
                scorer: name,
                file: file.clone(),
                problem: format!(
                    "the head needs features of {} numbers, but model `{}` has {embedding}; hint: {owner}",
                    head.input_width(),
                    entry.model()
                ),
            });
        }
        Ok(Box::new(AestheticScorer { name, image_tower, head }))
    }
}

/// The manifest's records, with the checksum of every weights file, each file read at most once.
fn records(
    described: &DescribedScorers,
    hashes: &mut FileHashes,
) -> Result<Vec<ScorerRecord>, ScorerError> {
    let heads = described.scorers.iter().filter_map(|parts| parts.head.as_ref());
    let files: Vec<&Path> = described
        .models
        .iter()
        .flat_map(|model| &model.files)
        .chain(heads)
        .map(PathBuf::as_path)
        .collect();
    tracing::debug!(files = files.len(), "checksums of the weights");
    hashes.learn(files)?;
    let record = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Some(WeightsRecord { file: name, sha256: hashes.of(file)?.to_owned() })
    };
    let of = |files: &[PathBuf]| files.iter().filter_map(record).collect::<Vec<_>>();
    let scorers = described.config.scorer.iter().zip(&described.scorers).map(|(entry, parts)| {
        let (model, recipe) = described.image_towers[parts.image_tower];
        let model = &described.models[model];
        ScorerRecord {
            name: entry.name.clone(),
            kind: entry.kind.name().to_owned(),
            image: Some(ImageTowerRecord {
                weights: of(&model.files),
                revision: model.revision.clone(),
                layout: model.network.layout(),
                preprocess: described.recipes[recipe].name(),
                embed_dim: Some(model.network.embed_dim()),
                network: Some(model.network.vision().clone()),
            }),
            text: parts.text_tower.map(|tower| {
                let (model, tokenizer) = described.text_towers[tower];
                let (model, tokenizer) =
                    (&described.models[model], &described.tokenizers[tokenizer]);
                TextTowerRecord {
                    tokenizer: tokenizer.fingerprint(),
                    context_length: tokenizer.context_length(),
                    network: Some(model.network.text().clone()),
                    pooling: model.network.pooling(),
                }
            }),
            head: parts.head.as_ref().and_then(record),
            vlm: None,
            command: None,
        }
    });
    Ok(scorers.collect())
}

/// The record of a scorer outside of this process, with the checksums of the files that its program
/// is called with.
fn external_record(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    hashes: &mut FileHashes,
) -> Result<ScorerRecord, ScorerError> {
    let mut command = None;
    if let Some(program) = entry.program() {
        let found = script_files(&program, &config.folder);
        hashes.learn(found.iter().map(|(_, path)| path.as_path()))?;
        let file = |(name, path): &(String, PathBuf)| {
            Some(WeightsRecord { file: name.clone(), sha256: hashes.of(path)?.to_owned() })
        };
        let files = found.iter().filter_map(file).collect();
        command = Some(CommandRecord { command: program.command, files });
    }
    Ok(ScorerRecord {
        name: entry.name.clone(),
        kind: entry.kind.name().to_owned(),
        image: None,
        text: None,
        head: None,
        vlm: entry.vlm().as_ref().map(VlmRecord::from),
        command,
    })
}

/// The index of `item`, added if it is new.
fn index_of<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    items.iter().position(|other| *other == item).unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

fn tokenizer_of(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    model: &Model,
) -> Result<Box<dyn Tokenizer>, ScorerError> {
    let tokenizer = match &model.network {
        Network::Clip { config: clip, .. } => {
            let context_length = usize::try_from(clip.text.context_length).unwrap_or(0);
            media::text::load(entry.tokenizer_kind(), model.folder.as_deref(), context_length)
                .map_err(|source| ScorerError::Tokenizer { scorer: entry.name.clone(), source })?
        }
        Network::ImageReward(_) => image_reward::tokenizer(config, entry, model.folder.as_deref())?,
        Network::Siglip(siglip) => {
            let context_length = usize::try_from(siglip.text.context_length).unwrap_or(0);
            let folder = model.folder.as_deref().unwrap_or_else(|| Path::new(""));
            let class = entry.siglip_tokenizer();
            let tokenizer = SiglipTokenizer::load(folder, class, context_length)
                .map_err(|source| ScorerError::Tokenizer { scorer: entry.name.clone(), source })?;
            Box::new(tokenizer)
        }
    };
    let (has, takes) = (tokenizer.vocabulary_size(), model.network.text().vocabulary_size);
    if has as i64 > takes {
        return Err(ScorerError::File {
            scorer: entry.name.clone(),
            file: model.folder.clone().unwrap_or_default(),
            problem: format!(
                "the vocabulary has {has} entries but the text tower embeds {takes}; hint: put the model's own \
                 {} beside its weights",
                match model.network {
                    Network::Clip { .. } => "vocab.json and merges.txt",
                    Network::ImageReward(_) => "vocab.txt",
                    Network::Siglip(_) => "spiece.model or tokenizer.json",
                }
            ),
        });
    }
    Ok(tokenizer)
}

fn show(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    names.join(", ")
}
