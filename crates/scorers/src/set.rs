//! All scorers of a run with what they share, and the batches that go through them.
//!
//! Shape legend: B images of a batch, T captions, N image-caption pairs, D embedding, S image side,
//! L context length.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use media::decode::Image;
use media::preprocess::{PreprocessError, Recipe};
use media::text::{Tokenizer, Tokens};
use nn::NetworkError;
use nn::device::{Precision, inference, upload, upload_rows};
use tch::{Device, Kind, TchError, Tensor};

use crate::error::ScorerError;
use crate::inputs::{PreprocessedImage, TokenizedTexts};
use crate::manifest::ScorersManifest;
use crate::memory::{Limits, MemoryLimits, in_pieces};
use crate::outcome::{Score, score_of};
use crate::score::Scorer;
use crate::towers::{ImageNetwork, TextNetwork};

/// Captions per forward of a text tower. Short captions of one forward share its length, so a
/// larger batch pads more; 16 keeps the processor busy.
const CAPTIONS_PER_FORWARD: usize = 16;

/// Where and in which dtype the networks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// The device.
    pub device: Device,
    /// The dtype of weights and activations; normalisation of features and scores are always f32.
    pub precision: Precision,
}

/// The CPU in f32.
impl Default for Compute {
    fn default() -> Self {
        Self { device: Device::Cpu, precision: Precision::F32 }
    }
}

/// An image tower with the recipe that feeds it. Two entries may share the network.
pub(crate) struct ImageTower {
    pub(crate) name: String,
    pub(crate) network: Arc<dyn ImageNetwork>,
    pub(crate) recipe: usize,
}

/// A text tower with the tokenizer that feeds it. Two entries may share the network.
pub(crate) struct CaptionTower {
    pub(crate) name: String,
    pub(crate) network: Arc<dyn TextNetwork>,
    pub(crate) tokenizer: usize,
}

/// The scorers of a run, loaded.
#[doc(alias = "reward_model")]
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

/// The preprocessing of a set without its networks, for threads that decode images.
///
/// Separate from [`ScorerSet`] because threads cannot share libtorch modules.
#[doc(alias = "image_processor")]
#[derive(Clone)]
pub struct ImagePreprocessor {
    recipes: Arc<[Recipe]>,
}

/// What scorers read of images or captions, in f32: one `[rows, D]` tensor per tower of the set. Of
/// unit length if the tower is CLIP's.
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
    pub fn to_rows(&self, tower: usize) -> Result<Vec<f32>, ScorerError> {
        numbers(&self.towers[tower]).map_err(forward("features", self.rows()))
    }
}

impl ImagePreprocessor {
    pub(crate) fn new(recipes: &[Recipe]) -> Self {
        Self { recipes: recipes.into() }
    }

    /// Preprocesses one image by each recipe of the set. Fails for an image that a recipe cannot
    /// resize.
    pub fn preprocess(&self, image: &Image) -> Result<PreprocessedImage, PreprocessError> {
        let mut blocks = Vec::with_capacity(self.recipes.len());
        for recipe in self.recipes.iter() {
            let mut block = vec![0f32; recipe.output_len()];
            recipe.apply(image, &mut block)?;
            blocks.push(block);
        }
        let on_white = self.recipes.iter().any(Recipe::composites) && image.is_transparent();
        Ok(PreprocessedImage { blocks, on_white })
    }
}

impl ScorerSet {
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

    /// How many text towers there are, for a caller that keeps caption features.
    #[must_use]
    pub fn text_tower_count(&self) -> usize {
        self.text_towers.len()
    }

    /// The preprocessing, for decoding threads.
    #[must_use]
    pub fn image_preprocessor(&self) -> ImagePreprocessor {
        ImagePreprocessor::new(&self.recipes)
    }

    /// Time spent inside the networks so far, transfers and normalisation included.
    #[must_use]
    pub fn network_time(&self) -> Duration {
        self.network_time.get()
    }

    /// How many rows a forward has at most, if the device ran out of memory. The last bits of a
    /// score depend on it.
    #[must_use]
    pub fn memory_limits(&self) -> MemoryLimits {
        self.limits.get()
    }

    /// The scores of one image with one caption, by name, in column order. For many images,
    /// preprocess on other threads ([`ScorerSet::image_preprocessor`]) and score in batches.
    pub fn score_one(
        &self,
        image: &Image,
        caption: &str,
    ) -> Result<Vec<(&str, Score)>, ScorerError> {
        let image = self.image_preprocessor().preprocess(image).map_err(ScorerError::Image)?;
        let images = self.encode_images(&[&image])?;
        let texts = self.encode_texts(&self.tokenize(&[caption]))?;
        let scores = self.score(&images, &texts, &[(0, 0)])?;
        let names = self.scorers.iter().map(|scorer| scorer.name());
        Ok(names.zip(scores.into_iter().flatten()).collect())
    }

    /// Tokenizes captions for every text tower.
    #[must_use]
    pub fn tokenize(&self, captions: &[&str]) -> TokenizedTexts {
        let tokens = self
            .tokenizers
            .iter()
            .map(|tokenizer| captions.iter().map(|caption| tokenizer.encode(caption)).collect())
            .collect();
        TokenizedTexts { tokens, captions: captions.len() }
    }

    /// Runs every image tower over a batch of images.
    ///
    /// If the device runs out of memory, halves the batch and tries again. Later batches then have
    /// at most the size that fitted ([`ScorerSet::memory_limits`]); the features are the same up to
    /// rounding.
    pub fn encode_images(&self, images: &[&PreprocessedImage]) -> Result<Features, ScorerError> {
        let started = Instant::now();
        // Uploaded once per recipe, for all towers that it feeds.
        let uploaded: Vec<OnceCell<Tensor>> =
            self.recipes.iter().map(|_| OnceCell::new()).collect();
        let rows: Vec<i64> = (0..).take(images.len()).collect();
        let mut towers = Vec::with_capacity(self.image_towers.len());
        for tower in &self.image_towers {
            towers.push(in_pieces(&rows, &self.limits.images, &tower.name, &|part| {
                let pixels_BCHW = match uploaded[tower.recipe].get() {
                    Some(pixels_BCHW) => pixels_BCHW.shallow_clone(),
                    None => {
                        let pixels_BCHW = self.pixels(images, tower.recipe)?;
                        uploaded[tower.recipe].get_or_init(|| pixels_BCHW).shallow_clone()
                    }
                };
                let first = part.first().copied().unwrap_or(0);
                let pixels_BCHW = pixels_BCHW.f_narrow(0, first, part.len() as i64)?;
                tower.network.features(&pixels_BCHW)
            })?);
        }
        self.network_time.set(self.network_time.get() + started.elapsed());
        Ok(Features { towers })
    }

    /// Runs every text tower over captions.
    pub fn encode_texts(&self, texts: &TokenizedTexts) -> Result<Features, ScorerError> {
        let started = Instant::now();
        let mut towers = Vec::with_capacity(self.text_towers.len());
        for tower in &self.text_towers {
            let tokens = &texts.tokens[tower.tokenizer];
            // Captions of similar length go together, since a forward is as long as its longest.
            let mut order: Vec<usize> = (0..tokens.len()).collect();
            let lengths: Vec<usize> =
                tokens.iter().map(|tokens| tower.network.length(tokens)).collect();
            order.sort_by_key(|&index| (lengths[index], index));
            let mut parts = Vec::new();
            for group in order.chunks(CAPTIONS_PER_FORWARD) {
                parts.push(in_pieces(group, &self.limits.captions, &tower.name, &|part| {
                    let captions: Vec<&Tokens> = part.iter().map(|&index| &tokens[index]).collect();
                    tower.network.features(&captions)
                })?);
            }
            let mut back = vec![0i64; order.len()];
            for (position, &index) in order.iter().enumerate() {
                back[index] = position as i64;
            }
            let in_order = || {
                let sorted_TD = Tensor::f_cat(&parts, 0)?;
                let back_T = Tensor::f_from_slice(&back)?.f_to_device(sorted_TD.device())?;
                sorted_TD.f_index_select(0, &back_T)
            };
            towers.push(in_order().map_err(forward(&tower.name, order.len()))?);
        }
        self.network_time.set(self.network_time.get() + started.elapsed());
        Ok(Features { towers })
    }

    /// Scores `pairs` of an image (row of `images`) and a caption (row of `texts`).
    ///
    /// Returns one vector per scorer, in column order, with one score per pair. An error is one of
    /// the device; what a scorer cannot score is a failure of that score alone.
    pub fn score(
        &self,
        images: &Features,
        texts: &Features,
        pairs: &[(usize, usize)],
    ) -> Result<Vec<Vec<Score>>, ScorerError> {
        if pairs.is_empty() || self.scorers.is_empty() {
            return Ok(self.scorers.iter().map(|_| Vec::new()).collect());
        }
        let started = Instant::now();
        let scores = inference(|| {
            let failed = |error: TchError| forward("scores", pairs.len())(error);
            let [image_rows, text_rows] = [
                pairs.iter().map(|pair| pair.0 as i64).collect::<Vec<_>>(),
                pairs.iter().map(|pair| pair.1 as i64).collect::<Vec<_>>(),
            ];
            let rows = |rows: &[i64]| upload(&Tensor::f_from_slice(rows)?, self.compute.device);
            let rows = [rows(&image_rows).map_err(failed)?, rows(&text_rows).map_err(failed)?];
            let scorers = self
                .scorers
                .iter()
                .map(|scorer| self.score_with(scorer.as_ref(), images, texts, &rows));
            let scores: Vec<Tensor> = scorers.collect::<Result<_, ScorerError>>()?;
            // One copy from the device for all scorers.
            let all = Tensor::f_stack(&scores, 0).and_then(|all| numbers(&all)).map_err(failed)?;
            let scores = |numbers: &[f32]| numbers.iter().copied().map(score_of).collect();
            Ok(all.chunks(pairs.len()).map(scores).collect())
        });
        self.network_time.set(self.network_time.get() + started.elapsed());
        scores
    }

    /// Caption features from the numbers of [`Features::to_rows`], one vector per text tower.
    pub fn text_features(
        &self,
        towers: &[Vec<f32>],
        captions: usize,
    ) -> Result<Features, ScorerError> {
        let tower = |rows: &Vec<f32>| {
            let rows = Tensor::f_from_slice(rows)?.f_view([captions as i64, -1])?;
            upload(&rows, self.compute.device)
        };
        let towers = towers.iter().map(tower).collect::<Result<_, _>>();
        Ok(Features { towers: towers.map_err(forward("features", captions))? })
    }

    /// The scores of one scorer on the device, in f32; `rows` are those of images and of captions.
    fn score_with(
        &self,
        scorer: &dyn Scorer,
        images: &Features,
        texts: &Features,
        [image_rows, text_rows]: &[Tensor; 2],
    ) -> Result<Tensor, ScorerError> {
        let score = |first: i64, pairs: i64| -> Result<Tensor, NetworkError> {
            let rows = |features: &Tensor, rows: &Tensor| {
                features.f_index_select(0, &rows.f_narrow(0, first, pairs)?)
            };
            let image_ND = rows(&images.towers[scorer.image_tower()], image_rows)?;
            let text_ND = scorer.text_tower().map(|tower| rows(&texts.towers[tower], text_rows));
            let scores = scorer.score(&image_ND, text_ND.transpose()?.as_ref())?;
            Ok(scores.f_to_kind(Kind::Float)?.f_reshape([-1])?)
        };
        let pairs = image_rows.numel();
        let Some(most) = scorer.pairs_per_forward() else {
            return score(0, pairs as i64).map_err(forward(scorer.name(), pairs));
        };
        let places: Vec<i64> = (0..).take(pairs).collect();
        let mut parts = Vec::new();
        for group in places.chunks(most.max(1)) {
            parts.push(in_pieces(group, &self.limits.captions, scorer.name(), &|part| {
                score(part.first().copied().unwrap_or(0), part.len() as i64)
            })?);
        }
        Tensor::f_cat(&parts, 0).map_err(forward(scorer.name(), pairs))
    }

    fn pixels(&self, images: &[&PreprocessedImage], recipe: usize) -> Result<Tensor, TchError> {
        let side = i64::from(self.recipes[recipe].size());
        let blocks: Vec<&[f32]> = images.iter().map(|image| &image.blocks[recipe][..]).collect();
        upload_rows(&blocks, &[images.len() as i64, 3, side, side], self.compute.device)
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

/// The numbers of a tensor in f32, row by row.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut numbers = vec![0f32; tensor.numel()];
    tensor.f_copy_data(&mut numbers, tensor.numel())?;
    Ok(numbers)
}

/// For `map_err`: names what failed and how many rows it had.
fn forward<E: Into<NetworkError>>(tower: &str, batch: usize) -> impl Fn(E) -> ScorerError + '_ {
    move |source| ScorerError::Forward { tower: tower.to_owned(), batch, source: source.into() }
}
