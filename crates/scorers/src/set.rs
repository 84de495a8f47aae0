//! All scorers of a run with what they share, and the batches that go through them.
//!
//! Shape legend: B images of a batch, T captions, N (image, caption) combinations, D embedding,
//! S image side, L context length.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use media::decode::Image;
use media::preprocess::{PreprocessError, Recipe};
use media::text::Tokenizer;
use nn::clip::{Pooling, TextTower, VisionTower};
use nn::device::{Precision, inference};
use tch::{Device, Kind, Tensor};

use crate::memory::{Limits, in_pieces};
use crate::{
    DescribedScorers, MemoryLimits, PreparedImage, PreparedTexts, Scorer, ScorerError,
    ScorersConfig, ScorersManifest, load,
};

/// Captions per forward of a text tower. Short captions of one forward share its length, so a larger
/// batch pads more; 16 keeps the processor busy.
const CAPTIONS_PER_FORWARD: usize = 16;

/// Where and in which type the networks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// The device.
    pub device: Device,
    /// The type of weights and activations; normalisation of features and scores are always f32.
    pub precision: Precision,
}

/// A vision tower with the recipe that feeds it. Two entries may share the network.
pub(crate) struct ImageTower {
    pub(crate) name: String,
    pub(crate) network: Arc<VisionTower>,
    pub(crate) recipe: usize,
}

/// A text tower with the tokenizer that feeds it. Two entries may share the network.
pub(crate) struct CaptionTower {
    pub(crate) name: String,
    pub(crate) network: Arc<TextTower>,
    pub(crate) tokenizer: usize,
    pub(crate) pooling: Pooling,
}

/// The scorers of a run, loaded.
pub struct ScorerSet {
    pub(crate) scorers: Vec<Box<dyn Scorer>>,
    pub(crate) image_towers: Vec<ImageTower>,
    pub(crate) text_towers: Vec<CaptionTower>,
    pub(crate) recipes: Vec<Recipe>,
    pub(crate) tokenizers: Vec<Box<dyn Tokenizer>>,
    pub(crate) manifest: ScorersManifest,
    pub(crate) compute: Compute,
    pub(crate) network_time: Cell<Duration>,
    pub(crate) limits: Limits,
}

/// The preprocessing of a set without its networks: what decoding threads need.
///
/// Separate from [`ScorerSet`] because libtorch modules are not shared between threads.
#[derive(Clone)]
pub struct ImagePreparation {
    recipes: Arc<[Recipe]>,
}

/// Unit-length f32 features: one `[rows, D]` tensor per tower of the set.
#[derive(Debug)]
pub struct Features {
    pub(crate) towers: Vec<Tensor>,
}

impl Features {
    /// How many rows every tower's tensor has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.towers.first().map_or(0, |tensor| usize::try_from(tensor.size()[0]).unwrap_or(0))
    }

    /// The features of one tower as plain numbers, row by row.
    #[must_use]
    pub fn to_rows(&self, tower: usize) -> Vec<f32> {
        let flat = self.towers[tower].to_device(Device::Cpu).contiguous().view(-1);
        let mut rows = vec![0f32; flat.numel()];
        let count = rows.len();
        flat.copy_data(&mut rows, count);
        rows
    }
}

impl ImagePreparation {
    pub(crate) fn new(recipes: &[Recipe]) -> Self {
        Self { recipes: recipes.into() }
    }

    /// Preprocesses one image by each recipe of the set.
    ///
    /// # Errors
    /// An image that a recipe cannot take.
    pub fn prepare(&self, image: &Image) -> Result<PreparedImage, PreprocessError> {
        let mut blocks = Vec::with_capacity(self.recipes.len());
        for recipe in self.recipes.iter() {
            let mut block = vec![0f32; recipe.output_len()];
            recipe.apply(image, &mut block)?;
            blocks.push(block);
        }
        let on_white = self.recipes.iter().any(Recipe::composites) && image.is_transparent();
        Ok(PreparedImage { blocks, on_white })
    }
}

impl ScorerSet {
    /// Finds the files of every scorer of `config`, checks their configurations and works out what the
    /// scorers share; [`DescribedScorers::load`] reads the weights.
    ///
    /// # Errors
    /// The first file that is missing or does not parse.
    pub fn describe(
        config: &ScorersConfig,
        compute: Compute,
    ) -> Result<DescribedScorers, ScorerError> {
        load::describe(config, compute)
    }

    /// The scorers, in column order.
    #[must_use]
    pub fn scorers(&self) -> &[Box<dyn Scorer>] {
        &self.scorers
    }

    /// Column prefixes, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.scorers.iter().map(|scorer| scorer.name().to_owned()).collect()
    }

    /// What the scores depend on.
    #[must_use]
    pub fn manifest(&self) -> &ScorersManifest {
        &self.manifest
    }

    /// Where the networks compute.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The names of the text towers, for a caller that keeps caption features.
    #[must_use]
    pub fn text_tower_count(&self) -> usize {
        self.text_towers.len()
    }

    /// The preprocessing, to be handed to decoding threads.
    #[must_use]
    pub fn image_preparation(&self) -> ImagePreparation {
        ImagePreparation::new(&self.recipes)
    }

    /// Time spent inside the networks so far, transfers and normalisation included.
    #[must_use]
    pub fn network_time(&self) -> Duration {
        self.network_time.get()
    }

    /// To how many rows a forward was cut because the device ran out of memory. The last bits of a
    /// score depend on it.
    #[must_use]
    pub fn memory_limits(&self) -> MemoryLimits {
        self.limits.get()
    }

    /// Tokenizes captions for every text tower.
    #[must_use]
    pub fn prepare_texts(&self, captions: &[&str]) -> PreparedTexts {
        let tokens = self
            .tokenizers
            .iter()
            .map(|tokenizer| captions.iter().map(|caption| tokenizer.encode(caption)).collect())
            .collect();
        PreparedTexts { tokens, captions: captions.len() }
    }

    /// Runs every image tower over a batch of images.
    ///
    /// On a device that runs out of memory the batch is halved and tried again, and later batches are
    /// cut to the size that fitted ([`ScorerSet::memory_limits`]); the features are the same up to
    /// rounding.
    ///
    /// # Errors
    /// A failure inside libtorch, named with the tower and the batch size.
    pub fn encode_images(&self, images: &[&PreparedImage]) -> Result<Features, ScorerError> {
        let started = Instant::now();
        let mut towers = Vec::with_capacity(self.image_towers.len());
        for tower in &self.image_towers {
            towers.push(in_pieces(images, &self.limits.images, &tower.name, &|part| {
                let pixels_BCHW = self.pixels(part, tower.recipe);
                Ok(unit_length(&tower.network.try_forward(&pixels_BCHW)?))
            })?);
        }
        self.network_time.set(self.network_time.get() + started.elapsed());
        Ok(Features { towers })
    }

    /// Runs every text tower over captions.
    ///
    /// # Errors
    /// A failure inside libtorch, named with the tower and the batch size.
    pub fn encode_texts(&self, texts: &PreparedTexts) -> Result<Features, ScorerError> {
        let started = Instant::now();
        let mut towers = Vec::with_capacity(self.text_towers.len());
        for tower in &self.text_towers {
            let tokens = &texts.tokens[tower.tokenizer];
            // Captions of similar length go together, since a forward is as long as its longest.
            let mut order: Vec<usize> = (0..tokens.len()).collect();
            let ends: Vec<usize> =
                tokens.iter().map(|tokens| tower.pooling.place(&tokens.ids)).collect();
            order.sort_by_key(|&index| (ends[index], index));
            let mut parts = Vec::new();
            for group in order.chunks(CAPTIONS_PER_FORWARD) {
                parts.push(in_pieces(group, &self.limits.captions, &tower.name, &|part| {
                    let ids: Vec<i64> =
                        part.iter().flat_map(|&index| tokens[index].ids.iter().copied()).collect();
                    let ends: Vec<i64> = part.iter().map(|&index| ends[index] as i64).collect();
                    let tokens_BL = Tensor::from_slice(&ids).view([part.len() as i64, -1]);
                    let end_index_B = Tensor::from_slice(&ends);
                    Ok(unit_length(&tower.network.try_forward(&tokens_BL, &end_index_B)?))
                })?);
            }
            let mut back = vec![0i64; order.len()];
            for (position, &index) in order.iter().enumerate() {
                back[index] = position as i64;
            }
            let sorted_TD = Tensor::cat(&parts, 0);
            towers.push(
                sorted_TD.index_select(0, &Tensor::from_slice(&back).to_device(sorted_TD.device())),
            );
        }
        self.network_time.set(self.network_time.get() + started.elapsed());
        Ok(Features { towers })
    }

    /// Scores combinations of an image (row of `images`) and a caption (row of `texts`).
    ///
    /// Returns one vector per scorer, in column order, with one number per combination.
    #[must_use]
    pub fn score(
        &self,
        images: &Features,
        texts: &Features,
        combinations: &[(usize, usize)],
    ) -> Vec<Vec<f32>> {
        let device = self.compute.device;
        let image_N =
            Tensor::from_slice(&combinations.iter().map(|pair| pair.0 as i64).collect::<Vec<_>>());
        let caption_N =
            Tensor::from_slice(&combinations.iter().map(|pair| pair.1 as i64).collect::<Vec<_>>());
        let (image_N, caption_N) = (image_N.to_device(device), caption_N.to_device(device));
        inference(|| {
            self.scorers
                .iter()
                .map(|scorer| {
                    let image_ND = images.towers[scorer.image_tower()].index_select(0, &image_N);
                    let text_ND = scorer
                        .text_tower()
                        .map(|tower| texts.towers[tower].index_select(0, &caption_N));
                    let scores_N = scorer
                        .score(&image_ND, text_ND.as_ref())
                        .to_device(Device::Cpu)
                        .to_kind(Kind::Float);
                    let mut scores = vec![0f32; combinations.len()];
                    scores_N.contiguous().copy_data(&mut scores, combinations.len());
                    scores
                })
                .collect()
        })
    }

    /// Caption features from numbers that [`Features::to_rows`] gave, one vector per text tower.
    #[must_use]
    pub fn text_features(&self, towers: &[Vec<f32>], captions: usize) -> Features {
        let towers = towers
            .iter()
            .map(|rows| {
                Tensor::from_slice(rows).view([captions as i64, -1]).to_device(self.compute.device)
            })
            .collect();
        Features { towers }
    }

    fn pixels(&self, images: &[&PreparedImage], recipe: usize) -> Tensor {
        let side = i64::from(self.recipes[recipe].size());
        let mut flat = Vec::with_capacity(images.len() * 3 * (side * side) as usize);
        for image in images {
            flat.extend_from_slice(&image.blocks[recipe]);
        }
        Tensor::from_slice(&flat).view([images.len() as i64, 3, side, side])
    }
}

impl std::fmt::Debug for ScorerSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ScorerSet")
            .field("scorers", &self.names())
            .field("compute", &self.compute)
            .finish_non_exhaustive()
    }
}

fn unit_length(features_BD: &Tensor) -> Tensor {
    let features_BD = features_BD.to_kind(Kind::Float);
    let length_B1 = features_BD.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12);
    features_BD / length_B1
}
