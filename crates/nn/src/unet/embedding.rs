//! Embeddings of the timestep and of SDXL's added conditions.
//!
//! huggingface/diffusers `src/diffusers/models/embeddings.py` at v0.42.1.

use tch::{Device, Kind, TchError, Tensor};

use super::{AddedConditions, UNetConfig};
use crate::error::NetworkError;
use crate::layers::{Linear, silu};
use crate::weights::Loader;

/// The longest period of the waves.
const LONGEST_PERIOD: f64 = 10_000.0;
/// Numbers of `time_ids`.
const TIME_IDS: i64 = 6;

/// Sinusoidal embeddings of `values_N`, with geometrically falling frequencies: `[N, width]` f32.
fn sinusoids(
    values_N: &Tensor,
    width: i64,
    cosine_first: bool,
    frequency_shift: f64,
) -> Result<Tensor, TchError> {
    let half = width / 2;
    let exponents = Tensor::f_arange(half, (Kind::Float, values_N.device()))?
        .f_mul_scalar(-LONGEST_PERIOD.ln())?
        .f_div_scalar(half as f64 - frequency_shift)?;
    let angles = values_N.f_unsqueeze(1)?.f_mul(&exponents.f_exp()?)?;
    let (sine, cosine) = (angles.f_sin()?, angles.f_cos()?);
    if cosine_first { Tensor::f_cat(&[cosine, sine], 1) } else { Tensor::f_cat(&[sine, cosine], 1) }
}

/// Two layers with an activation between them.
#[derive(Debug)]
struct TwoLayers {
    linear_1: Linear,
    linear_2: Linear,
}

impl TwoLayers {
    fn load(loader: &mut Loader<'_>, name: &str, input: i64, width: i64) -> Self {
        Self {
            linear_1: Linear::load(loader, &format!("{name}.linear_1"), input, width),
            linear_2: Linear::load(loader, &format!("{name}.linear_2"), width, width),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.linear_2.forward(&silu(self.linear_1.forward(x)?)?)
    }
}

/// `time_embedding`.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    layers: TwoLayers,
    width: i64,
    cosine_first: bool,
    frequency_shift: f64,
}

impl TimeEmbedding {
    pub(super) fn load(config: &UNetConfig, loader: &mut Loader<'_>) -> Self {
        let width = config.first_channels();
        Self {
            layers: TwoLayers::load(loader, "time_embedding", width, config.embedding_width()),
            width,
            cosine_first: config.flip_sin_to_cos,
            frequency_shift: config.freq_shift,
        }
    }

    /// `timesteps_B` f32 to `[B, D]`.
    pub(super) fn forward(&self, timesteps_B: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        let waves = sinusoids(timesteps_B, self.width, self.cosine_first, self.frequency_shift)?;
        self.layers.forward(&waves.f_to_kind(kind)?)
    }
}

/// `add_embedding` of SDXL: pooled text, and sizes and crop as waves.
#[derive(Debug)]
pub(super) struct AddedEmbedding {
    layers: TwoLayers,
    waves: i64,
    pooled_width: i64,
    cosine_first: bool,
    frequency_shift: f64,
}

impl AddedEmbedding {
    pub(super) fn load(config: &UNetConfig, loader: &mut Loader<'_>) -> Option<Self> {
        let (waves, input) = config.added_sizes()?;
        Some(Self {
            layers: TwoLayers::load(loader, "add_embedding", input, config.embedding_width()),
            waves,
            pooled_width: input - TIME_IDS * waves,
            cosine_first: config.flip_sin_to_cos,
            frequency_shift: config.freq_shift,
        })
    }

    pub(super) fn check(&self, added: &AddedConditions, batch: i64) -> Result<(), NetworkError> {
        let (pooled, ids) = (added.pooled_BD.size(), added.time_ids_B6.size());
        if pooled == [batch, self.pooled_width] && ids == [batch, TIME_IDS] {
            return Ok(());
        }
        let width = self.pooled_width;
        Err(NetworkError::Input {
            network: "UNet",
            reason: format!(
                "expected pooled text [{batch}, {width}] and time ids [{batch}, {TIME_IDS}], \
                 found {pooled:?} and {ids:?}"
            ),
        })
    }

    /// `[B, D]`.
    pub(super) fn forward(
        &self,
        added: &AddedConditions,
        device: Device,
        kind: Kind,
    ) -> Result<Tensor, TchError> {
        let ids = added.time_ids_B6.f_to_device(device)?.f_to_kind(Kind::Float)?;
        let batch = ids.size2()?.0;
        let ids = ids.f_flatten(0, -1)?;
        let waves = sinusoids(&ids, self.waves, self.cosine_first, self.frequency_shift)?;
        let waves = waves.f_reshape([batch, TIME_IDS * self.waves])?.f_to_kind(kind)?;
        let pooled = added.pooled_BD.f_to_device(device)?.f_to_kind(kind)?;
        self.layers.forward(&Tensor::f_cat(&[pooled, waves], 1)?)
    }
}
