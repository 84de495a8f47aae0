//! The files of an ImageReward model, and its captions as features.
//!
//! Image and caption meet inside the network. So the features of an image are all tokens of the
//! vision tower, those of a caption its token ids, and the scorer does the rest for each pair.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hub::Repository;
use media::text::{PaddedWordPiece, Tokenizer, Tokens};
use nn::NetworkError;
use nn::device::upload;
use nn::image_reward::{
    CONFIG_FILE, CONTEXT_LENGTH, CaptionReader, ImageRewardConfig, VisionTokens,
};
use nn::weights::Weights;
use tch::{Device, Kind, Tensor};

use crate::config::{ScorerConfig, ScorersConfig};
use crate::error::ScorerError;
use crate::score::Scorer;
use crate::towers::{ImageNetwork, TextNetwork};

/// Where BERT's vocabulary comes from if neither the entry nor the model's folder has it: the model
/// is published without.
pub(crate) const VOCABULARY: &str = "hf://google-bert/bert-base-uncased";

/// The files of a vocabulary: one of the first two, and its options.
pub(crate) const VOCABULARY_FILES: [&str; 3] =
    ["tokenizer.json", "vocab.txt", "tokenizer_config.json"];

/// Image-caption pairs of one forward: few enough that their tokens stay below 100 MB.
const PAIRS_PER_FORWARD: usize = 32;

/// Numbers of a caption's features: how many of its tokens are no padding, and the tokens.
pub(crate) const TEXT_WIDTH: usize = 1 + CONTEXT_LENGTH;

/// The sizes of the network in a model folder.
pub(crate) fn config(
    entry: &ScorerConfig,
    repository: &Repository,
    files: &[PathBuf],
) -> Result<ImageRewardConfig, ScorerError> {
    let file = repository.file(CONFIG_FILE).map_err(ScorerError::hub(&entry.name))?;
    let weights = Weights::open_files(files).map_err(ScorerError::network(&entry.name))?;
    ImageRewardConfig::read(&file, &weights).map_err(ScorerError::network(&entry.name))
}

/// True if a folder holds a vocabulary.
fn has_vocabulary(folder: &Path) -> bool {
    VOCABULARY_FILES[..2].iter().any(|name| folder.join(name).is_file())
}

/// BERT's tokenizer: of the folder that the entry names, else of the model's own, else of
/// [`VOCABULARY`].
pub(crate) fn tokenizer(
    config: &ScorersConfig,
    entry: &ScorerConfig,
    model: Option<&Path>,
) -> Result<Box<dyn Tokenizer>, ScorerError> {
    let own = model.filter(|folder| entry.vocabulary.is_none() && has_vocabulary(folder));
    let folder = match own {
        Some(folder) => folder.to_path_buf(),
        None => fetch_vocabulary(config, entry)?,
    };
    let tokenizer = PaddedWordPiece::image_reward(&folder, CONTEXT_LENGTH)
        .map_err(|source| ScorerError::Tokenizer { scorer: entry.name.clone(), source })?;
    Ok(Box::new(tokenizer))
}

/// The repository on the hub that a vocabulary certainly comes from: the one that the entry names.
/// Whether the default is needed shows only once the model's folder is there.
pub(crate) fn vocabulary_on_hub(entry: &ScorerConfig) -> Option<&str> {
    entry.vocabulary.as_deref().filter(|name| runkit::path::is_address(Path::new(name)))
}

/// The local folder of the vocabulary that the entry or the default names.
fn fetch_vocabulary(config: &ScorersConfig, entry: &ScorerConfig) -> Result<PathBuf, ScorerError> {
    let name = entry.vocabulary.as_deref().unwrap_or(VOCABULARY);
    let invalid = |problem: String| ScorerError::Invalid {
        file: config.file.clone(),
        scorer: entry.name.clone(),
        problem,
    };
    let fetched = Repository::open(name, &config.folder).and_then(|repository| {
        for file in VOCABULARY_FILES {
            repository.optional_file(file)?;
        }
        Ok(repository.folder().map(Path::to_path_buf))
    });
    match fetched {
        Ok(Some(folder)) if has_vocabulary(&folder) => Ok(folder),
        Ok(_) => Err(invalid(format!(
            "`vocabulary` {name} holds neither tokenizer.json nor vocab.txt; hint: name the folder of \
             a BERT, such as {VOCABULARY}"
        ))),
        Err(error) if entry.vocabulary.is_none() => Err(invalid(format!(
            "the model has no vocabulary of BERT's, and that of {name} is not available: {error}\n\
             hint: put its vocab.txt into the folder of the model, or name its folder with `vocabulary`"
        ))),
        Err(error) => Err(ScorerError::hub(&entry.name)(error)),
    }
}

/// All tokens of an image, one after the other.
impl ImageNetwork for VisionTokens {
    fn features(&self, pixels_BCHW: &Tensor) -> Result<Tensor, NetworkError> {
        Ok(self.try_forward(pixels_BCHW)?.f_flatten(1, -1)?.f_to_kind(Kind::Float)?)
    }
}

/// Captions as their token ids, which f32 holds exactly.
pub(crate) struct CaptionIds {
    pub(crate) device: Device,
}

impl TextNetwork for CaptionIds {
    fn length(&self, tokens: &Tokens) -> usize {
        tokens.end_index
    }

    fn features(&self, captions: &[&Tokens]) -> Result<Tensor, NetworkError> {
        let mut numbers = Vec::with_capacity(captions.len() * TEXT_WIDTH);
        for tokens in captions {
            numbers.push((tokens.end_index + 1) as f32);
            numbers.extend(tokens.ids.iter().map(|&id| id as f32));
        }
        let numbers = Tensor::f_from_slice(&numbers)?.f_view([captions.len() as i64, -1])?;
        Ok(upload(&numbers, self.device)?)
    }
}

/// The ids of a caption from its features, without padding.
fn ids(features: &[f32]) -> Vec<i64> {
    let length = features.first().map_or(0, |length| *length as usize);
    features.iter().skip(1).take(length).map(|&id| id as i64).collect()
}

/// ImageReward: BERT reads the caption and the tokens of the image, and a head scores what it
/// made of the first token; a normal number for images and captions of the published training set.
///
/// THUDM/ImageReward `ImageReward/ImageReward.py` (`score`) at v1.5.
#[derive(Debug)]
pub struct ImageRewardScorer {
    pub(crate) name: String,
    pub(crate) image_tower: usize,
    pub(crate) text_tower: usize,
    pub(crate) reader: Arc<CaptionReader>,
}

impl Scorer for ImageRewardScorer {
    fn name(&self) -> &str {
        &self.name
    }

    fn image_tower(&self) -> usize {
        self.image_tower
    }

    fn text_tower(&self) -> Option<usize> {
        Some(self.text_tower)
    }

    fn pairs_per_forward(&self) -> Option<usize> {
        Some(PAIRS_PER_FORWARD)
    }

    fn score(
        &self,
        image_features_ND: &Tensor,
        text_features_ND: Option<&Tensor>,
    ) -> Result<Tensor, NetworkError> {
        let pairs = image_features_ND.size()[0];
        let Some(text_features_ND) = text_features_ND else {
            // A score without a caption is undefined; NaN is recorded as `non_finite`.
            let options = (Kind::Float, image_features_ND.device());
            return Ok(Tensor::f_full([pairs], f64::NAN, options)?);
        };
        let numbers = crate::set::numbers(text_features_ND)?;
        let captions: Vec<Vec<i64>> = numbers.chunks(TEXT_WIDTH).map(ids).collect();
        let captions: Vec<&[i64]> = captions.iter().map(Vec::as_slice).collect();
        let image_BTV = image_features_ND.f_view([pairs, -1, self.reader.image_width()])?;
        self.reader.try_forward(&image_BTV, &captions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_survive_as_features() {
        let captions = [vec![101, 30521, 30523, 102], vec![101, 102]].map(|mut own| {
            let end_index = own.len() - 1;
            own.resize(CONTEXT_LENGTH, 0);
            Tokens { ids: own, end_index }
        });
        let network = CaptionIds { device: Device::Cpu };
        let features = network.features(&captions.each_ref()).unwrap();
        assert_eq!(features.size(), [2, TEXT_WIDTH as i64]);
        let numbers = crate::set::numbers(&features).unwrap();
        let found: Vec<Vec<i64>> = numbers.chunks(TEXT_WIDTH).map(ids).collect();
        assert_eq!(found, [vec![101, 30521, 30523, 102], vec![101, 102]]);
    }
}
