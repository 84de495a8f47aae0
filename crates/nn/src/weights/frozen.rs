//! The weights of a network with adapters: those that stay as they are, and those of the adapters.

use std::collections::{BTreeMap, HashSet};

use tch::{Kind, Tensor};

use super::{Weights, WeightsError};
use crate::lora::{LoraConfig, Module};

/// Weights that no network writes to, by name. A network and its reference share them.
#[derive(Debug, Default)]
pub(crate) struct Frozen(BTreeMap<String, Tensor>);

impl Frozen {
    /// The weight of this name and shape, if it is there.
    pub(super) fn shared(&self, name: &str, shape: &[i64]) -> Option<Tensor> {
        self.0.get(name).filter(|tensor| tensor.size() == shape).map(Tensor::shallow_clone)
    }

    pub(super) fn keep(&mut self, name: &str, tensor: &Tensor) {
        self.0.insert(name.to_owned(), tensor.shallow_clone());
    }

    /// The same weights for another network.
    pub(crate) fn share(&self) -> Self {
        let shared = self.0.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        Self(shared.collect())
    }
}

/// Where the numbers of adapters come from.
pub(crate) enum AdapterStart<'a> {
    /// `lora_A` is normal with a standard deviation of one over the rank, `lora_B` zero: PEFT's
    /// initialisation `gaussian`. The seed of a layer is a function of its place among all.
    New(&'a dyn Fn(u64) -> u64),
    /// A file with `MODULE.lora_A.weight` and `MODULE.lora_B.weight` of every layer, in its shape.
    Stored(&'a Weights),
    /// Those of a network, with its `lora_A` and with zeros as `lora_B`: adapters that add nothing.
    Without(&'a [(String, Tensor)]),
}

/// Which layers have adapters, and the numbers in them.
pub(crate) struct AdapterPlan<'a> {
    rank: i64,
    scale: f64,
    /// Sorted by name.
    modules: &'a [Module],
    names: HashSet<&'a str>,
    start: AdapterStart<'a>,
}

impl<'a> AdapterPlan<'a> {
    pub(crate) fn new(config: &LoraConfig, modules: &'a [Module], start: AdapterStart<'a>) -> Self {
        let names = modules.iter().map(|module| module.name.as_str()).collect();
        Self { rank: config.rank, scale: config.scale(), modules, names, start }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn scale(&self) -> f64 {
        self.scale
    }

    /// `lora_A` and `lora_B` of the layer `name`, whose weight has this shape: f32 on the CPU, or as
    /// stored.
    pub(super) fn weights(&self, name: &str, shape: &[i64]) -> [Result<Tensor, WeightsError>; 2] {
        let module = Module { name: name.to_owned(), shape: shape.to_vec() };
        let (down, up) = (module.down_shape(self.rank), module.up_shape(self.rank));
        let torch = |source| WeightsError::Torch { file: name.into(), source };
        let zeros =
            |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, tch::Device::Cpu)).map_err(torch);
        match &self.start {
            AdapterStart::New(seed) => {
                let place = self.modules.iter().position(|module| module.name == name);
                let number = seed(place.unwrap_or_default() as u64);
                let normal = crate::shim::normal(number, &down);
                let normal = normal.and_then(|normal| normal.f_div_scalar(self.rank as f64));
                [normal.map_err(torch), zeros(&up)]
            }
            AdapterStart::Without(others) => {
                let wanted = format!("{name}.lora_A.weight");
                let found = others.iter().find(|(other, _)| *other == wanted);
                let down = match found {
                    Some((_, tensor)) => tensor.f_detach().map_err(torch),
                    None => zeros(&down),
                };
                [down, zeros(&up)]
            }
            AdapterStart::Stored(weights) => {
                ["lora_A", "lora_B"].map(|part| weights.tensor(&format!("{name}.{part}.weight")))
            }
        }
    }
}
