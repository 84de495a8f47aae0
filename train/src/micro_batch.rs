//! A micro-batch: the pairs of one forward and backward pass, as tensors. Each tensor has a name,
//! the same in records and in the probe's file, so that a batch is written, read, split and joined
//! tensor by tensor.
//!
//! `P` pairs, `C` channels, `H` and `W` height and width of latents, `L` tokens, `D` features of a
//! token.

use anyhow::{Context as _, Result};
use nn::pipeline::PromptEmbeds;
use tch::{Kind, TchError, Tensor};

const LATENTS: [&str; 2] = ["latents_0", "latents_1"];
const NOISE: &str = "noise";
const TIMESTEPS: &str = "timesteps";
const HIDDEN: &str = "prompt_embeds";
const POOLED: &str = "pooled_embeds";
const TIME_IDS: &str = "time_ids";
const PROBABILITY: &str = "label_p";
const WEIGHT: &str = "weight_w";

/// A micro-batch on the device, f32 unless said otherwise.
#[derive(Debug)]
pub struct MicroBatch {
    /// The ids of the pairs.
    pub pair_ids: Vec<String>,
    /// Latents of images 0 and of images 1, scaled for the UNet, `[P, C, H, W]` each.
    pub latents_PCHW: [Tensor; 2],
    /// Noise, one for both images of a pair, `[P, C, H, W]`.
    pub noise_PCHW: Tensor,
    /// Timesteps, one for both images of a pair, i64 `[P]`.
    pub timesteps_P: Tensor,
    /// The captions, `[P, L, D]`, and for SDXL pooled, `[P, D']`.
    pub text: PromptEmbeds,
    /// SDXL's micro-conditioning on size and crop, `[P, 6]`.
    pub time_ids_P6: Option<Tensor>,
    /// The probability that image 0 is the chosen one, `[P]`.
    pub probability_P: Tensor,
    /// The weight of each pair in the batch's mean, `[P]`.
    pub weight_P: Tensor,
    /// The sum of the weights.
    pub weight: f64,
}

impl MicroBatch {
    /// The tensors by name. They share memory with the batch.
    pub fn to_tensors(&self) -> Vec<(&'static str, Tensor)> {
        let [first, second] = &self.latents_PCHW;
        let tensors = [
            (LATENTS[0], Some(first)),
            (LATENTS[1], Some(second)),
            (NOISE, Some(&self.noise_PCHW)),
            (TIMESTEPS, Some(&self.timesteps_P)),
            (HIDDEN, Some(&self.text.embeds_BLD)),
            (POOLED, self.text.pooled_BD.as_ref()),
            (TIME_IDS, self.time_ids_P6.as_ref()),
            (PROBABILITY, Some(&self.probability_P)),
            (WEIGHT, Some(&self.weight_P)),
        ];
        let present = tensors.into_iter();
        present.filter_map(|(name, tensor)| Some((name, tensor?.shallow_clone()))).collect()
    }

    /// Makes a batch from tensors by name, as [`MicroBatch::to_tensors`] returns them; `get`
    /// returns `None` for a name that it does not have.
    ///
    /// # Errors
    /// If `get` fails, or lacks a tensor that every batch has.
    pub fn from_tensors(
        pair_ids: Vec<String>,
        mut get: impl FnMut(&str) -> Result<Option<Tensor>>,
    ) -> Result<Self> {
        let (pooled_BD, time_ids_P6) = (get(POOLED)?, get(TIME_IDS)?);
        let mut needed =
            |name: &str| get(name)?.with_context(|| format!("the tensor {name:?} is missing"));
        let weight_P = needed(WEIGHT)?;
        Ok(Self {
            pair_ids,
            latents_PCHW: [needed(LATENTS[0])?, needed(LATENTS[1])?],
            noise_PCHW: needed(NOISE)?,
            timesteps_P: needed(TIMESTEPS)?,
            text: PromptEmbeds { embeds_BLD: needed(HIDDEN)?, pooled_BD },
            time_ids_P6,
            probability_P: needed(PROBABILITY)?,
            weight: weight_P.f_sum(Kind::Double)?.f_double_value(&[])?,
            weight_P,
        })
    }

    /// The number of pairs.
    pub fn len(&self) -> i64 {
        self.probability_P.size().first().copied().unwrap_or(0)
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `length` pairs from `start` on; each tensor is a view.
    ///
    /// # Errors
    /// If there are fewer pairs.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self> {
        let names = usize::try_from(start)?..usize::try_from(start + length)?;
        // A batch made from tensors alone has no ids.
        let pair_ids = self.pair_ids.get(names).unwrap_or_default().to_vec();
        self.map(pair_ids, |tensor| tensor.f_narrow(0, start, length))
    }

    /// Concatenates batches. Either all or none of them have pooled prompt embeddings.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn cat(parts: &[Self]) -> Result<Self> {
        let tensors: Vec<Vec<(&str, Tensor)>> = parts.iter().map(Self::to_tensors).collect();
        let pair_ids = parts.iter().flat_map(|part| part.pair_ids.clone()).collect();
        Self::from_tensors(pair_ids, |wanted| {
            let all: Vec<&Tensor> = tensors
                .iter()
                .flatten()
                .filter_map(|(name, tensor)| (*name == wanted).then_some(tensor))
                .collect();
            Ok(if all.is_empty() { None } else { Some(Tensor::f_cat(&all, 0)?) })
        })
    }

    /// Repeats every pair `times` times; the copies of a pair are neighbours.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn repeat(&self, times: usize) -> Result<Self> {
        let copies = |name: &String| std::iter::repeat_n(name.clone(), times);
        let pair_ids = self.pair_ids.iter().flat_map(copies).collect();
        let times = i64::try_from(times)?;
        self.map(pair_ids, |tensor| tensor.f_repeat_interleave_self_int(times, 0, None))
    }

    /// Applies `change` to every tensor.
    fn map(
        &self,
        pair_ids: Vec<String>,
        change: impl Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Self> {
        let tensors = self.to_tensors();
        Self::from_tensors(pair_ids, |wanted| {
            let found = tensors.iter().find(|(name, _)| *name == wanted);
            Ok(found.map(|(_, tensor)| change(tensor)).transpose()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(pairs: i64, pooled: bool) -> MicroBatch {
        let numbers = |shape: &[i64]| {
            let count: i64 = shape.iter().product();
            Tensor::arange(count, (Kind::Float, tch::Device::Cpu)).view(shape)
        };
        MicroBatch {
            pair_ids: (0..pairs).map(|pair| pair.to_string()).collect(),
            latents_PCHW: [numbers(&[pairs, 4, 2, 2]), numbers(&[pairs, 4, 2, 2]) * 2.0],
            noise_PCHW: numbers(&[pairs, 4, 2, 2]) * 3.0,
            timesteps_P: Tensor::arange(pairs, (Kind::Int64, tch::Device::Cpu)),
            text: PromptEmbeds {
                embeds_BLD: numbers(&[pairs, 3, 5]),
                pooled_BD: pooled.then(|| numbers(&[pairs, 6])),
            },
            time_ids_P6: pooled.then(|| numbers(&[pairs, 6]) * 7.0),
            probability_P: numbers(&[pairs]) / 10.0,
            weight_P: numbers(&[pairs]) + 1.0,
            weight: (1..=pairs).sum::<i64>() as f64,
        }
    }

    fn assert_same(found: &MicroBatch, expected: &MicroBatch) {
        assert_eq!(found.pair_ids, expected.pair_ids);
        assert_eq!(found.to_tensors(), expected.to_tensors());
        assert_eq!(found.weight, expected.weight);
    }

    #[test]
    fn narrowing_and_concatenating_are_inverse() {
        for pooled in [false, true] {
            let whole = batch(5, pooled);
            let parts = [(0, 2), (2, 1), (3, 2)];
            let parts: Vec<MicroBatch> =
                parts.map(|(start, length)| whole.narrow(start, length).unwrap()).into();
            assert_eq!(parts[1].pair_ids, ["2"]);
            assert_eq!((parts[1].len(), parts[1].weight), (1, 3.0));
            assert_same(&MicroBatch::cat(&parts).unwrap(), &whole);
        }
    }

    #[test]
    fn a_repeated_pair_stands_beside_itself() {
        let twice = batch(2, true).repeat(2).unwrap();
        assert_eq!(twice.pair_ids, ["0", "0", "1", "1"]);
        assert_eq!(Vec::<i64>::try_from(&twice.timesteps_P).unwrap(), [0, 0, 1, 1]);
        assert_eq!(twice.weight, 6.0);
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let tensors = batch(1, false).to_tensors();
        let error = MicroBatch::from_tensors(Vec::new(), |wanted| {
            let found = tensors.iter().find(|(name, _)| *name == wanted && wanted != NOISE);
            Ok(found.map(|(_, tensor)| tensor.shallow_clone()))
        });
        assert!(error.unwrap_err().to_string().contains("\"noise\" is missing"));
    }
}
