//! `DistilBertForSequenceClassification` of `transformers`: a class for each text. The paper uses
//! only prompts that one such network calls safe.
//!
//! Behaviour follows huggingface/transformers
//! `src/transformers/models/distilbert/modeling_distilbert.py` at v5.23.0; logits agree to 1e-5 in
//! f32 (`tests/distilbert.rs`, `scripts/parity/distilbert_parity.py`).
//!
//! `B` batch, `L` tokens, `W` width, `H` heads, `E` width of a head, `N` classes.

mod block;
mod config;

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor};

pub use config::DistilBertConfig;

use self::block::{Block, EPSILON};
use crate::device::{Precision, inference};
use crate::error::{ModelError, NetworkError};
use crate::layers::{LayerNorm, Linear};
use crate::weights::{Loader, Weights};

/// The usual names of the weights in a folder, the best first, for [`Weights::open_folder`].
pub const WEIGHT_FILES: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The name in error messages.
const NETWORK: &str = "DistilBERT classifier";

/// Tokens of a batch, padding included: memory stays below a few hundred megabytes.
const BATCH_TOKENS: usize = 4096;

/// A classifier of texts.
#[derive(Debug)]
pub struct DistilBert {
    config: DistilBertConfig,
    token_embedding_VW: Tensor,
    position_embedding_LW: Tensor,
    embedding_norm: LayerNorm,
    blocks: Vec<Block>,
    pre_classifier: Linear,
    classifier: Linear,
    device: Device,
}

impl DistilBert {
    /// Loads the network of a folder with `config.json` and a weights file ([`WEIGHT_FILES`]).
    ///
    /// # Errors As [`DistilBert::load`], or if a file is missing or unreadable.
    pub fn open(folder: &Path, device: Device, precision: Precision) -> Result<Self, ModelError> {
        let config = DistilBertConfig::read(&folder.join("config.json"))?;
        let weights = Weights::open_folder(folder, WEIGHT_FILES)?;
        Self::load(&config, &weights, device, precision)
    }

    /// Loads the network, strictly.
    ///
    /// # Errors If the checkpoint does not fit the configuration or holds NaN, or the precision
    /// does not fit the device.
    pub fn load(
        config: &DistilBertConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        precision.check(device)?;
        let weights = weights.rooted(&["pre_classifier.weight"]);
        let mut loader = Loader::new(&weights, NETWORK, device, precision).refusing_non_finite();
        let width = config.width;
        let classes = i64::try_from(config.labels.len()).unwrap_or(i64::MAX);
        let embeddings = "distilbert.embeddings";
        let (tokens, positions) = (
            format!("{embeddings}.word_embeddings.weight"),
            format!("{embeddings}.position_embeddings.weight"),
        );
        let network = Self {
            config: config.clone(),
            token_embedding_VW: loader.tensor(&tokens, &[config.vocabulary_size, width]),
            position_embedding_LW: loader.tensor(&positions, &[config.context_length, width]),
            embedding_norm: LayerNorm::load(
                &mut loader,
                &format!("{embeddings}.LayerNorm"),
                width,
                EPSILON,
            ),
            blocks: (0..config.layers)
                .map(|index| format!("distilbert.transformer.layer.{index}"))
                .map(|name| Block::load(&mut loader, &name, config))
                .collect(),
            pre_classifier: Linear::load(&mut loader, "pre_classifier", width, width),
            classifier: Linear::load(&mut loader, "classifier", width, classes),
            device,
        };
        loader.finish(|_| false)?;
        Ok(network)
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &DistilBertConfig {
        &self.config
    }

    /// The logits of texts, one number for each label: f32 `[texts, N]` on the CPU. A text is its
    /// tokens with start and end, at most [`DistilBertConfig::context_length`], without padding.
    /// Texts of similar length are computed together; after each batch, `done` receives its number
    /// of texts.
    ///
    /// # Errors If a text is empty or too long, or a token is impossible.
    pub fn logits(
        &self,
        texts: &[Vec<i64>],
        mut done: impl FnMut(usize),
    ) -> Result<Tensor, NetworkError> {
        texts.iter().try_for_each(|text| self.check(text))?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| texts[text].len());
        let classes = i64::try_from(self.config.labels.len()).unwrap_or(i64::MAX);
        let mut parts = vec![Tensor::f_zeros([0, classes], (Kind::Float, Device::Cpu))?];
        for batch in batches(&order, texts) {
            let rows: Vec<&[i64]> = batch.iter().map(|&text| texts[text].as_slice()).collect();
            let logits_BN = inference(|| self.compute(&rows))?;
            parts.push(logits_BN.f_to_device(Device::Cpu)?);
            done(batch.len());
        }
        let sorted_TN = Tensor::f_cat(&parts, 0)?;
        let mut places = vec![0_i64; texts.len()];
        for (place, &text) in (0..).zip(&order) {
            places[text] = place;
        }
        Ok(sorted_TN.f_index_select(0, &Tensor::f_from_slice(&places)?)?)
    }

    /// The probability of each label for each text: the softmax of [`DistilBert::logits`].
    pub fn probabilities(
        &self,
        texts: &[Vec<i64>],
        done: impl FnMut(usize),
    ) -> Result<Vec<Vec<f32>>, NetworkError> {
        let probabilities_TN = self.logits(texts, done)?.f_softmax(-1, Kind::Float)?;
        let classes = self.config.labels.len();
        let mut flat = vec![0_f32; texts.len() * classes];
        let count = flat.len();
        probabilities_TN.f_contiguous()?.f_copy_data(&mut flat, count)?;
        Ok(flat.chunks(classes).map(<[f32]>::to_vec).collect())
    }

    /// A batch of texts, sorted by length, `[B, N]`.
    fn compute(&self, rows: &[&[i64]]) -> Result<Tensor, TchError> {
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut padded = Vec::with_capacity(rows.len() * longest);
        for row in rows {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + longest - row.len(), self.config.padding);
        }
        let size = [rows.len() as i64, longest as i64];
        let tokens_BL = Tensor::f_from_slice(&padded)?.f_view(size)?.f_to_device(self.device)?;
        // Without padding no mask is needed, and a faster kernel works.
        let mask_B11L = if rows.iter().all(|row| row.len() == longest) {
            None
        } else {
            let lengths: Vec<i64> = rows.iter().map(|row| row.len() as i64).collect();
            let lengths_B1 = Tensor::f_from_slice(&lengths)?.f_view([-1, 1])?;
            let places_L = Tensor::f_arange(size[1], (Kind::Int64, Device::Cpu))?;
            let mask_BL = places_L.f_lt_tensor(&lengths_B1)?.f_to_device(self.device)?;
            Some(mask_BL.f_view([size[0], 1, 1, size[1]])?)
        };
        let embedded_BLW =
            Tensor::f_embedding(&self.token_embedding_VW, &tokens_BL, -1, false, false)?;
        let positions_LW = self.position_embedding_LW.f_narrow(0, 0, size[1])?;
        let mut x_BLW = self.embedding_norm.forward(&embedded_BLW.f_add(&positions_LW)?)?;
        for block in &self.blocks {
            x_BLW = block.forward(x_BLW, mask_B11L.as_ref())?;
        }
        let first_BW = x_BLW.f_select(1, 0)?.f_contiguous()?;
        let hidden_BW = self.pre_classifier.forward(&first_BW)?.f_relu()?;
        self.classifier.forward(&hidden_BW)?.f_to_kind(Kind::Float)
    }

    /// Checks the values too, because a wrong index on a GPU ends the whole process.
    fn check(&self, text: &[i64]) -> Result<(), NetworkError> {
        let unfit = |reason: String| Err(NetworkError::Input { network: NETWORK, reason });
        let most = usize::try_from(self.config.context_length).unwrap_or(usize::MAX);
        if text.is_empty() || text.len() > most {
            return unfit(format!("expected 1 to {most} tokens, found {}", text.len()));
        }
        let vocabulary = 0..self.config.vocabulary_size;
        match text.iter().find(|token| !vocabulary.contains(token)) {
            Some(token) => {
                unfit(format!("expected tokens from 0 to {}, found {token}", vocabulary.end - 1))
            }
            None => Ok(()),
        }
    }
}

/// Splits texts, sorted by length, into batches of at most [`BATCH_TOKENS`], padding included; a
/// longer text is a batch by itself.
fn batches<'order>(order: &'order [usize], texts: &[Vec<i64>]) -> Vec<&'order [usize]> {
    let (mut batches, mut start) = (Vec::new(), 0);
    for (end, &text) in order.iter().enumerate() {
        if end > start && (end + 1 - start) * texts[text].len() > BATCH_TOKENS {
            batches.push(&order[start..end]);
            start = end;
        }
    }
    if start < order.len() {
        batches.push(&order[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_text_once_and_few_tokens() {
        let lengths = [1, 1, 3, 100, 100, 500, 512, 512, 512, 512, 512, 512, 512, 512, 512, 5000];
        let texts: Vec<Vec<i64>> = lengths.iter().map(|&length| vec![0; length]).collect();
        let order: Vec<usize> = (0..texts.len()).collect();
        let found = batches(&order, &texts);
        assert_eq!(found.concat(), order);
        for batch in &found {
            let longest = batch.iter().map(|&text| lengths[text]).max().unwrap();
            assert!(batch.len() == 1 || batch.len() * longest <= BATCH_TOKENS, "{batch:?}");
        }
        assert!(found.len() <= 5, "{found:?}");
        assert!(batches(&[], &[]).is_empty());
    }
}
