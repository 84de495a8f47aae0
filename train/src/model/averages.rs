//! Weights beside those of the networks: the moving average of the model, and the reference model
//! in f32.

use std::path::Path;

use anyhow::{Context as _, Result};
use nn::average::WeightAverage;
use nn::weights::Weights;
use tch::{Device, Tensor};

use super::Networks;
use crate::config::Config;
use crate::reference::ReferenceUpdates;
use crate::run::checkpoint::{EMA, REFERENCE};

impl Networks {
    /// Makes the averages that a run asks for: those of a checkpoint, or of the weights as they
    /// are. A checkpoint of another run may be one without them.
    ///
    /// # Errors
    /// If a file of the checkpoint holds something else, or the device is out of memory.
    pub fn start_averages(&mut self, config: &Config, checkpoint: Option<&Path>) -> Result<()> {
        let trained = self.pipeline.unet.parameters();
        let device = config.device;
        let file = self.pipeline.unet.saved_file();
        // Adapters of a reference are f32 already.
        if config.lora.is_none()
            && ReferenceUpdates::of(&config.settings).need_f32(config.precision)
        {
            // A checkpoint without a reference model has the base model in its place.
            let has_none = checkpoint.is_some_and(|folder| !folder.join(REFERENCE).is_dir());
            let start = match &self.reference {
                Some(reference) if has_none => reference.parameters(),
                _ => trained,
            };
            self.reference_f32 = Some(average(checkpoint, REFERENCE, file, start, device)?);
        }
        if config.settings.ema.is_some() {
            self.ema = Some(average(checkpoint, EMA, file, trained, config.ema_device())?);
        }
        Ok(())
    }

    /// Exchanges the weights of the model and its moving average, if there is one.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub(crate) fn exchange_average(&mut self) -> Result<()> {
        if let Some(ema) = &mut self.ema {
            ema.swap(self.pipeline.unet.parameters())?;
            self.pipeline.unet.cast_weights()?;
        }
        Ok(())
    }
}

/// The average in a part of a checkpoint; without it, that of the weights as they are.
fn average(
    checkpoint: Option<&Path>,
    part: &str,
    name: &str,
    trained: &[(String, Tensor)],
    device: Device,
) -> Result<WeightAverage> {
    let file = checkpoint.map(|folder| folder.join(part).join(name));
    match file.filter(|file| file.is_file()) {
        None => Ok(WeightAverage::of(trained, device)?),
        Some(file) => WeightAverage::load(&Weights::open(&file)?, trained, device)
            .with_context(|| format!("reading {}", file.display())),
    }
}
