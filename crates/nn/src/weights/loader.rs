//! Loads a network from a checkpoint, strictly.

use std::collections::HashSet;
use std::fmt::Write;

use tch::{Device, Kind, TchError, Tensor};

use super::copies::WeightCopies;
use super::frozen::{AdapterPlan, Frozen};
use super::{Weights, WeightsError, f16_born};
use crate::device::Precision;
use crate::lora::Adapter;
use crate::shim;

/// How many names of each kind an error lists.
const LISTED: usize = 10;

/// The purpose for which a network is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Layers may keep weights in the layout of the kernels.
    Inference,
    /// Weights are f32 leaves that record gradients.
    Training,
    /// Weights are in the compute precision, and layers compute exactly as in training.
    Reference,
}

/// Hands out tensors by name and shape, and collects what does not fit; [`Loader::finish`] reports
/// all of it at once. Until then, zeros of the right shape that occupy no memory replace a missing
/// tensor, so that a network can be built before the checkpoint is known to fit.
pub struct Loader<'a> {
    weights: &'a Weights,
    network: String,
    device: Device,
    precision: Precision,
    /// Whether a NaN or an infinity among the weights is an error.
    refuses_non_finite: bool,
    purpose: Purpose,
    /// All tensors handed out so far, except for inference; in training the f32 weights.
    parameters: Vec<(String, Tensor)>,
    /// In training, the weights that have copies in half precision.
    copies: WeightCopies,
    /// With adapters, which layers have them; all other weights are frozen.
    adapters: Option<AdapterPlan<'a>>,
    /// With adapters, the weights handed out so far, or those of the network that shares them.
    frozen: Frozen,
    /// In training in half precision, whether layers cast weights themselves.
    casts_at_use: bool,
    asked: HashSet<String>,
    missing: Vec<String>,
    misshapen: Vec<String>,
    /// How many weights `f16_born::spread` moved.
    spread: u64,
    failure: Option<WeightsError>,
}

impl<'a> Loader<'a> {
    /// A loader for one network, named for messages (`ViT-H/14 vision tower`).
    pub fn new(
        weights: &'a Weights,
        network: impl Into<String>,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self {
            weights,
            network: network.into(),
            device,
            precision,
            refuses_non_finite: false,
            purpose: Purpose::Inference,
            parameters: Vec::new(),
            copies: WeightCopies::default(),
            adapters: None,
            frozen: Frozen::default(),
            casts_at_use: false,
            asked: HashSet::new(),
            missing: Vec::new(),
            misshapen: Vec::new(),
            spread: 0,
            failure: None,
        }
    }

    /// [`Loader::new`] for a network in training: every tensor is an f32 copy that records
    /// gradients, and [`Loader::take_parameters`] lists them. The layers compute in `precision`.
    pub fn for_training(
        weights: &'a Weights,
        network: impl Into<String>,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self { purpose: Purpose::Training, ..Self::new(weights, network, device, precision) }
    }

    /// [`Loader::new`] for a reference model, which computes what the network in training would,
    /// bit for bit, and is updated with its weights: every tensor is a copy in `precision`, with
    /// the layout of the trained one, and [`Loader::take_parameters`] lists them.
    pub fn for_reference(
        weights: &'a Weights,
        network: impl Into<String>,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self { purpose: Purpose::Reference, ..Self::new(weights, network, device, precision) }
    }

    /// The same loader for a network whose weights are frozen, in the compute precision, and some of
    /// whose layers have adapters. Only the adapters are its parameters. They record gradients in
    /// training.
    pub(crate) fn with_adapters(self, plan: AdapterPlan<'a>, frozen: Frozen) -> Self {
        Self { adapters: Some(plan), frozen, ..self }
    }

    /// The adapter of the layer `name`, whose weight has this shape, if it has one.
    pub(crate) fn adapter(&mut self, name: &str, shape: &[i64]) -> Option<Adapter> {
        let plan = self.adapters.as_ref().filter(|plan| plan.has(name))?;
        let (scale, device) = (plan.scale(), self.device);
        let made = plan.weights(name, shape);
        let records = self.purpose == Purpose::Training;
        let mut place = |part: &str, tensor: Result<Tensor, WeightsError>| {
            let tensor = tensor.unwrap_or_else(|error| {
                self.failure.get_or_insert(error);
                Tensor::new()
            });
            let copy = tensor.f_to_device(device).and_then(|tensor| tensor.f_to_kind(Kind::Float));
            // A copy, because the optimizer writes to it.
            let copy = copy.and_then(|tensor| {
                let mut copy = tensor.f_contiguous()?.f_empty_like()?;
                copy.f_copy_(&tensor)?;
                Ok(copy.set_requires_grad(records))
            });
            let copy = copy.unwrap_or_else(|source| {
                self.fail(source);
                Tensor::new()
            });
            let name = format!("{name}.{part}.weight");
            if self.refuses_non_finite {
                self.check_finite(&name, &copy);
            }
            self.parameters.push((name, copy.shallow_clone()));
            copy
        };
        let [down, up] = made;
        let (down, up) = (place("lora_A", down), place("lora_B", up));
        Some(Adapter::new(down, up, scale))
    }

    /// The frozen weights of a network with adapters, for another network that shares them.
    pub(crate) fn take_frozen(&mut self) -> Frozen {
        std::mem::take(&mut self.frozen)
    }

    /// From now on, a weight that is NaN or infinite is an error. Reads every weight once.
    ///
    /// A reward model with such weights can still score inputs that do not reach them; a network
    /// whose output is its next input cannot.
    #[must_use]
    pub fn refusing_non_finite(self) -> Self {
        Self { refuses_non_finite: true, ..self }
    }

    /// The purpose of the network.
    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// True if layers may keep weights in the layout of the kernels, instead of plain tensors that
    /// are written to later.
    pub(crate) fn may_pack(&self) -> bool {
        self.purpose == Purpose::Inference
    }

    /// The tensors of a network in training, or of its reference, by the names of the checkpoint,
    /// in the order of loading.
    pub fn take_parameters(&mut self) -> Vec<(String, Tensor)> {
        std::mem::take(&mut self.parameters)
    }

    /// The copies of weights in training.
    pub(crate) fn take_copies(&mut self) -> WeightCopies {
        std::mem::take(&mut self.copies)
    }

    /// How many weights were stored in f16 and are trained in bf16: `f16_born::spread` moved
    /// them, each by less than the rounding of their file.
    pub fn spread_weights(&self) -> u64 {
        self.spread
    }

    /// The checkpoint it reads from.
    pub fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// The precision tensors are converted to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The device tensors go to.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A tensor in the network's precision and on its device, contiguous. If the file stores it
    /// that way, it uses the memory of the file.
    ///
    /// In training it is the f32 weight, or for half precision its copy (`WeightCopies`).
    pub fn tensor(&mut self, name: &str, shape: &[i64]) -> Tensor {
        let weight = self.tensor_cast_at_use(name, shape);
        if !self.has_copies() {
            return weight;
        }
        match self.copies.add(&weight, self.precision.kind()) {
            Ok(copy) => copy,
            Err(source) => {
                self.fail(source);
                weight
            }
        }
    }

    /// True in training in half precision; where bf16 is upcast, layers read the f32 weight, whose
    /// gradient is then not rounded.
    fn has_copies(&self) -> bool {
        self.purpose == Purpose::Training
            && !self.casts_at_use
            && self.adapters.is_none()
            && self.precision != Precision::F32
            && !self.precision.upcasts_bf16(self.device)
    }

    /// [`Loader::for_training`] without copies of weights in half precision: each layer casts its
    /// weights whenever it computes.
    pub(crate) fn casting_at_use(self) -> Self {
        Self { casts_at_use: true, ..self }
    }

    /// [`Loader::tensor`] that is f32 in training, whatever the precision: for small tensors that
    /// kernels read in f32, and whose gradients they round only once.
    pub(crate) fn tensor_cast_at_use(&mut self, name: &str, shape: &[i64]) -> Tensor {
        if self.adapters.is_some() {
            return self.frozen_tensor(name, shape);
        }
        let kind = match self.purpose {
            Purpose::Inference => return self.tensor_in(name, shape, self.precision.kind()),
            Purpose::Training => Kind::Float,
            Purpose::Reference => self.precision.kind(),
        };
        let stored = self.tensor_in(name, shape, kind);
        // A copy, because the optimizer writes to it, and the file's pages are private copies per
        // process.
        let copy = match (self.device, shape.len()) {
            // Convolutions on a GPU are fastest in this layout, and their gradients have it.
            (Device::Cuda(_), 4) => shim::channels_last(&stored),
            _ => stored.f_empty_like().and_then(|mut copy| copy.f_copy_(&stored).map(|()| copy)),
        };
        let copy = self.or_stand_in(copy, shape, kind);
        self.release_pages(name);
        let copy = copy.set_requires_grad(self.purpose == Purpose::Training);
        self.parameters.push((name.to_owned(), copy.shallow_clone()));
        copy
    }

    /// A weight that is never written to, in the compute precision: as stored if it can be.
    fn frozen_tensor(&mut self, name: &str, shape: &[i64]) -> Tensor {
        let kind = self.precision.kind();
        if let Some(shared) = self.frozen.shared(name, shape) {
            return shared;
        }
        let stored = self.tensor_in(name, shape, kind);
        let tensor = match (self.device, shape.len()) {
            // Convolutions on a GPU are fastest in this layout.
            (Device::Cuda(_), 4) => shim::channels_last(&stored),
            _ => Ok(stored),
        };
        let tensor = self.or_stand_in(tensor, shape, kind);
        self.frozen.keep(name, &tensor);
        tensor
    }

    /// [`Loader::tensor`] in another dtype.
    pub fn tensor_in(&mut self, name: &str, shape: &[i64], kind: Kind) -> Tensor {
        match self.stored(name, shape) {
            Some(stored) => {
                // Weights that stay as they are need not be spread.
                let trains_in_bf16 = self.purpose != Purpose::Inference
                    && self.adapters.is_none()
                    && self.precision == Precision::Bf16;
                let as_stored = stored.shallow_clone();
                let converted = match trains_in_bf16 {
                    true => f16_born::spread(name, as_stored).map(|(spread, count)| {
                        self.spread += count;
                        spread
                    }),
                    false => Ok(as_stored),
                };
                let converted = converted.and_then(|tensor| convert(&tensor, kind, self.device));
                let tensor = self.or_stand_in(converted, shape, kind);
                if self.refuses_non_finite {
                    self.check_finite(name, &tensor);
                }
                if stored.kind() != kind || self.device != Device::Cpu {
                    self.release_pages(name);
                }
                tensor
            }
            None => stand_in(shape, kind, self.device),
        }
    }

    /// Releases the pages of a tensor that was copied. The next access reads them from the file
    /// again.
    pub(crate) fn release_pages(&self, name: &str) {
        self.weights.release_pages(name);
    }

    /// The error that lists all differences, if there is one. `elsewhere` says which names of the
    /// file belong to parts that are not loaded.
    pub fn finish(self, elsewhere: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        let unexpected: Vec<String> = self
            .weights
            .names()
            .filter(|name| !self.asked.contains(*name) && !is_ignorable(name) && !elsewhere(name))
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && self.misshapen.is_empty() && unexpected.is_empty() {
            return self.failure.map_or(Ok(()), Err);
        }
        let mut listing = String::new();
        list(&mut listing, "missing", &self.missing);
        list(&mut listing, "misshapen", &self.misshapen);
        list(&mut listing, "unexpected", &unexpected);
        let hint = match self.missing.first().and_then(|name| common_beginning(name, &unexpected)) {
            Some(before) => format!(
                "\nhint: some names begin with {}; keep those alone, and it is taken off",
                before.escape_debug()
            ),
            None => String::new(),
        };
        Err(WeightsError::Mismatch {
            file: self.weights.describe(),
            network: self.network,
            missing_count: self.missing.len(),
            misshapen_count: self.misshapen.len(),
            unexpected_count: unexpected.len(),
            listing,
            hint,
        })
    }

    /// The tensor as stored; `None` after noting what is wrong with it.
    fn stored(&mut self, name: &str, shape: &[i64]) -> Option<Tensor> {
        self.asked.insert(name.to_owned());
        // Loading from a slow disk takes minutes, so a signal ends it here.
        if let Err(stopped) = runkit::signals::check_at("load") {
            self.failure.get_or_insert(WeightsError::Stopped(stopped));
            return None;
        }
        match self.weights.shape(name) {
            None => {
                self.missing.push(name.to_owned());
                None
            }
            Some(found) if found != shape => {
                self.misshapen.push(format!("{name}: expected {shape:?}, found {found:?}"));
                None
            }
            Some(_) => match self.weights.tensor(name) {
                Ok(tensor) => Some(tensor),
                Err(error) => {
                    self.failure.get_or_insert(error);
                    None
                }
            },
        }
    }

    fn or_stand_in(
        &mut self,
        tensor: Result<Tensor, TchError>,
        shape: &[i64],
        kind: Kind,
    ) -> Tensor {
        tensor.unwrap_or_else(|source| {
            self.fail(source);
            stand_in(shape, kind, self.device)
        })
    }

    /// Notes a tensor that holds a NaN or an infinity: its sum is not finite.
    fn check_finite(&mut self, name: &str, tensor: &Tensor) {
        let sum = tensor.f_sum(Kind::Float).and_then(|sum| sum.f_double_value(&[]));
        match sum {
            Ok(sum) if sum.is_finite() => {}
            Ok(_) => {
                let file = self.weights.describe();
                let name = name.to_owned();
                self.failure.get_or_insert(WeightsError::NotFinite { file, name });
            }
            Err(source) => self.fail(source),
        }
    }

    /// Keeps the first failure of libtorch for [`Loader::finish`].
    pub(crate) fn fail(&mut self, source: TchError) {
        let file = self.weights.describe();
        self.failure.get_or_insert(WeightsError::Torch { file, source });
    }
}

/// Names without weights of a tower: position ids that older `transformers` saved, the causal mask
/// of old `open_clip`, the sizes in OpenAI's archives, and the scale and bias of the logits, which
/// a cosine does not need.
pub(super) fn is_ignorable(name: &str) -> bool {
    name == "position_ids"
        // The number of networks in an average of weights.
        || name == "n_averaged"
        || name.ends_with(".position_ids")
        || matches!(
            name.strip_prefix("text.").unwrap_or(name),
            "attn_mask"
                | "input_resolution"
                | "context_length"
                | "vocab_size"
                | "logit_scale"
                | "logit_bias"
        )
}

fn convert(stored: &Tensor, kind: Kind, device: Device) -> Result<Tensor, TchError> {
    // Separate calls: each returns the same memory if it has nothing to change.
    stored.f_to_device(device)?.f_to_kind(kind)?.f_contiguous()
}

/// Zeros of any shape in the memory of one number.
fn stand_in(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    Tensor::f_zeros([] as [i64; 0], (kind, device))
        .and_then(|zero| zero.f_expand(shape, false))
        .unwrap_or_default()
}

/// The prefix that turns a missing name into an unexpected one.
fn common_beginning<'name>(missing: &str, unexpected: &'name [String]) -> Option<&'name str> {
    let mut before = unexpected.iter().filter_map(|name| name.strip_suffix(missing));
    before.find(|before| before.ends_with('.'))
}

fn list(text: &mut String, sort: &str, names: &[String]) {
    for name in names.iter().take(LISTED) {
        // Writing to a String cannot fail. Names come from a file: escape what a terminal obeys.
        let _ = write!(text, "\n  {sort}: {}", name.escape_debug());
    }
    if names.len() > LISTED {
        let _ = write!(text, "\n  {sort}: … and {} more", names.len() - LISTED);
    }
}
