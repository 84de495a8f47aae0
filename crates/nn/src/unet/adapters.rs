//! A network whose weights are frozen and whose adapters are trained (LoRA), and its reference,
//! which shares the weights and has adapters of its own.

use std::path::Path;

use tch::{Device, Tensor};

use super::{ANCHORS, SAVED_WEIGHTS, UNet, UNetConfig};
use crate::device::Precision;
use crate::error::ModelError;
use crate::lora::{LoraConfig, Module, SAVED_ADAPTERS};
use crate::weights::{AdapterPlan, AdapterStart, Frozen, Loader, Weights};

/// The adapters of a network in training, or of its reference.
#[derive(Debug)]
pub(super) struct Adapters {
    config: LoraConfig,
    /// The layers that have one, sorted by name.
    modules: Vec<Module>,
    /// All other weights.
    frozen: Frozen,
}

impl UNet {
    /// Loads the network for training of adapters: its own weights are in `precision` and record no
    /// gradients; [`UNet::parameters`] are the adapters, f32, as `MODULE.lora_A.weight` and
    /// `MODULE.lora_B.weight`. New adapters add nothing to the output yet; `seed` gives each layer
    /// its seed, by its place in the sorted names. `stored`, if there is one, are the adapters of a
    /// checkpoint ([`UNet::save`]).
    ///
    /// # Errors
    /// As [`UNet::load_for_training`]; and if a target fits no layer, or the stored adapters are
    /// those of other layers or of another rank.
    pub fn load_with_adapters(
        config: &UNetConfig,
        weights: &Weights,
        lora: &LoraConfig,
        stored: Option<&Weights>,
        seed: &dyn Fn(u64) -> u64,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let weights = weights.rooted(ANCHORS);
        let modules = lora.targets.modules(&weights)?;
        let start = match stored {
            None => AdapterStart::New(seed),
            Some(stored) => {
                lora.check_stored(stored, &modules)?;
                AdapterStart::Stored(stored)
            }
        };
        let loader = Loader::for_training(&weights, "UNet", device, precision);
        Self::build_with_adapters(config, loader, lora, &modules, start, Frozen::default())
    }

    /// The reference model of a network with adapters: it shares the weights of that network, and
    /// has a second set of adapters, which record no gradients. With `stored` they are those of a
    /// checkpoint; without, they add nothing, so that it computes what the base model does.
    ///
    /// It goes through the same layers in the same way, so with equal adapters its output equals
    /// that of the network bit for bit.
    ///
    /// # Errors
    /// If this network has no adapters, or the stored ones do not fit.
    pub fn adapter_reference(&self, stored: Option<&Weights>) -> Result<Self, ModelError> {
        let Some(Adapters { config, modules, frozen }) = &self.adapters else {
            return Err(ModelError::Folder {
                folder: Path::new("UNet").to_owned(),
                reason: "only a network with adapters shares its weights with a reference"
                    .to_owned(),
            });
        };
        let start = match stored {
            None => AdapterStart::Without(&self.parameters),
            Some(stored) => {
                config.check_stored(stored, modules)?;
                AdapterStart::Stored(stored)
            }
        };
        let none = Weights::default();
        let loader = Loader::for_reference(&none, "UNet", self.device, self.precision);
        Self::build_with_adapters(&self.config, loader, config, modules, start, frozen.share())
    }

    fn build_with_adapters(
        config: &UNetConfig,
        loader: Loader<'_>,
        lora: &LoraConfig,
        modules: &[Module],
        start: AdapterStart<'_>,
        frozen: Frozen,
    ) -> Result<Self, ModelError> {
        let plan = AdapterPlan::new(lora, modules, start);
        let (mut network, frozen) = Self::build(config, loader.with_adapters(plan, frozen))?;
        network.adapters =
            Some(Adapters { config: lora.clone(), modules: modules.to_vec(), frozen });
        Ok(network)
    }

    /// The name of the file that [`UNet::save`] writes, beside `config.json` if the network has no
    /// adapters.
    pub fn saved_file(&self) -> &'static str {
        if self.adapters.is_some() { SAVED_ADAPTERS } else { SAVED_WEIGHTS }
    }

    /// The configuration of its adapters, if it has any.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.adapters.as_ref().map(|adapters| &adapters.config)
    }

    /// A leaf that records gradients, for the parts of the network before which nothing does: with
    /// gradient checkpointing, a part is recomputed only if one of its inputs records. `None` if
    /// nothing is recorded now.
    pub(super) fn recording_leaf(&self) -> Result<Option<Tensor>, tch::TchError> {
        if self.adapters.is_none() || !self.checkpointing {
            return Ok(None);
        }
        let options = (tch::Kind::Float, self.device);
        let leaf = Tensor::f_zeros([1], options)?.set_requires_grad(true);
        // Without recording, the result of an operation records nothing.
        let records = leaf.f_neg()?.requires_grad();
        Ok(records.then_some(leaf))
    }
}
