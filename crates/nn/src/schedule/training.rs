//! Noise for training: huggingface/diffusers `src/diffusers/schedulers/scheduling_ddpm.py` at
//! v0.42.1.

use tch::{Device, TchError, Tensor};

use super::config::{PredictionType, ScheduleConfig};
use super::kind::ScheduleError;
use super::noise;

/// The forward process, with one timestep per sample.
///
/// Sums are computed in f32 and rounded at the end, also if latents are not f32 (diffusers first
/// rounds ᾱ to their dtype).
#[derive(Debug)]
pub struct TrainingSchedule {
    alphas_cumprod_T: Tensor,
    signal_T: Tensor,
    noise_T: Tensor,
    prediction_type: PredictionType,
}

impl TrainingSchedule {
    /// The schedule of a configuration, whatever its class, with tables on `device`.
    ///
    /// # Errors If the betas are not a noise schedule.
    pub fn new(config: &ScheduleConfig, device: Device) -> Result<Self, ScheduleError> {
        let alphas_cumprod_T = noise::alphas_cumprod(config, true)?;
        let signal_T = alphas_cumprod_T.f_sqrt()?.f_to_device(device)?;
        let noise_T = alphas_cumprod_T.f_rsub_scalar(1.0)?.f_sqrt()?.f_to_device(device)?;
        let prediction_type = config.prediction_type;
        Ok(Self {
            alphas_cumprod_T: alphas_cumprod_T.f_to_device(device)?,
            signal_T,
            noise_T,
            prediction_type,
        })
    }

    /// √ᾱ·latents + √(1−ᾱ)·noise, in the dtype of `latents`.
    ///
    /// `latents` and `noise` are `[B, …]`, `timesteps_B` i64 `[B]` in `0..num_train_timesteps`, all
    /// on the device of the schedule.
    ///
    /// # Errors If shapes differ or a timestep is out of range. On a GPU a timestep out of range
    /// makes the device unusable for the process.
    pub fn add_noise(
        &self,
        latents: &Tensor,
        noise: &Tensor,
        timesteps_B: &Tensor,
    ) -> Result<Tensor, TchError> {
        let (signal_weight, noise_weight) = self.weights(latents, noise, timesteps_B)?;
        signal_weight.f_mul(latents)?.f_add(&noise_weight.f_mul(noise)?)?.f_to_kind(latents.kind())
    }

    /// √ᾱ·noise − √(1−ᾱ)·latents, the target of a network with [`PredictionType::VPrediction`].
    /// Arguments and errors as for [`Self::add_noise`].
    pub fn velocity(
        &self,
        latents: &Tensor,
        noise: &Tensor,
        timesteps_B: &Tensor,
    ) -> Result<Tensor, TchError> {
        let (signal_weight, noise_weight) = self.weights(latents, noise, timesteps_B)?;
        signal_weight.f_mul(noise)?.f_sub(&noise_weight.f_mul(latents)?)?.f_to_kind(latents.kind())
    }

    /// The weights of signal and noise for each sample, f32 `[B, 1, …]`.
    fn weights(
        &self,
        latents: &Tensor,
        noise: &Tensor,
        timesteps_B: &Tensor,
    ) -> Result<(Tensor, Tensor), TchError> {
        let size = latents.size();
        let batch = size.first().copied().unwrap_or(0);
        if noise.size() != size || timesteps_B.size() != [batch] || size.is_empty() {
            return Err(TchError::Shape(format!(
                "latents {size:?}, noise {:?} and timesteps {:?}: expected equal shapes, and a \
                 timestep for each sample",
                noise.size(),
                timesteps_B.size()
            )));
        }
        let mut column = vec![1; size.len()];
        column[0] = batch;
        let rows = |table_T: &Tensor| table_T.f_index_select(0, timesteps_B)?.f_reshape(&column);
        Ok((rows(&self.signal_T)?, rows(&self.noise_T)?))
    }

    /// ᾱ: the fraction of the signal's power that remains at each timestep, f32
    /// `[num_train_timesteps]`.
    pub fn alphas_cumprod(&self) -> &Tensor {
        &self.alphas_cumprod_T
    }

    /// The target that the network predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}
