//! The probe: a small fixed evaluation batch of held-out pairs, always with the same timesteps and
//! the same noise, measured against the base model. Training batches differ and the reference model
//! is updated, so the training loss is a noisy curve that returns to ln 2 after every update of the
//! reference; the probe loss is smooth and shows the progress of training.
//!
//! Its pairs are held out of training ([`crate::run::opened`]). Their latents, prompt embeddings
//! and the base model's errors are kept in `probe.safetensors`, so that a resumed run measures the
//! very same batch.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nn::distributed::World;
use nn::schedule::TrainingSchedule;
use nn::unet::UNet;
use nn::weights::{Weights, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::ranks;
use crate::data::Example;
use crate::loss::{self, PairErrors};
use crate::model::Networks;
use crate::preference::PreferenceTarget;
use crate::randomness::Choice;
use crate::report::Values;
use crate::statistics::{Summary, chosen_and_rejected};
use crate::step::{Inputs, MicroBatch, MicroBatchBuilder};

/// Timesteps per pair, one in each quarter of the noise schedule.
const TIMESTEPS: u64 = 4;
pub(crate) const TENSORS: &str = "probe.safetensors";
pub(crate) const NAMES: &str = "probe.json";

/// The probe's pairs as micro-batches, with the base model's errors.
#[doc(alias = "held-out")]
#[doc(alias = "evaluation batch")]
#[derive(Debug)]
pub struct Probe {
    batches: Vec<MicroBatch>,
    /// The base model's errors on images 0 and images 1 of each row.
    base: Vec<[Tensor; 2]>,
    /// The captions of the pairs, in order.
    pub captions: Vec<String>,
}

/// `probe.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Names {
    pair_ids: Vec<String>,
    captions: Vec<String>,
}

/// One measurement of the probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// The mean loss against the base model.
    pub loss: f64,
    /// Implicit accuracy: the fraction of rows where the sign of z agrees with the label; z = 0
    /// counts one half.
    pub accuracy: f64,
    /// z against the base model.
    pub logits: Summary,
    /// The model's mean error on the chosen and on the rejected images.
    pub errors: [f64; 2],
    /// The base model's.
    pub base_errors: [f64; 2],
}

impl ProbeReport {
    /// The report as metrics.
    pub fn values(&self) -> Values {
        vec![
            ("probe/loss", json!(self.loss)),
            ("probe/accuracy", json!(self.accuracy)),
            ("probe/z_mean", json!(self.logits.mean)),
            ("probe/z_std", json!(self.logits.std)),
            ("probe/error_chosen", json!(self.errors[0])),
            ("probe/error_rejected", json!(self.errors[1])),
            ("probe/base_error_chosen", json!(self.base_errors[0])),
            ("probe/base_error_rejected", json!(self.base_errors[1])),
        ]
    }

    /// The measurement of the base model itself: z is 0 everywhere.
    #[must_use]
    pub fn before(&self) -> Self {
        Self {
            loss: std::f64::consts::LN_2,
            accuracy: 0.5,
            logits: Summary::of(&[]),
            errors: self.base_errors,
            base_errors: self.base_errors,
        }
    }

    /// The relative rise of the error over the base model's, on the chosen and on the rejected
    /// images.
    pub fn rises(&self) -> [f64; 2] {
        [0, 1].map(|side| match self.base_errors[side] {
            base if base > 0.0 => self.errors[side] / base - 1.0,
            _ => 0.0,
        })
    }
}

impl Probe {
    /// Builds the probe from `examples` and measures `base`, the base model, on it. `rows` is the
    /// micro-batch size.
    ///
    /// # Errors
    /// If an image cannot be encoded.
    pub fn build(
        builder: &MicroBatchBuilder<'_>,
        networks: &Networks,
        base: &UNet,
        examples: Vec<Example<PreferenceTarget>>,
        rows: u64,
    ) -> Result<Self> {
        let captions: Vec<String> =
            examples.iter().map(|example| example.caption.clone()).collect();
        let seed = builder.seed;
        let steps = u64::try_from(networks.schedule.alphas_cumprod().size1()?)?;
        let mut parts = Vec::with_capacity(examples.len());
        for (pair, example) in (0u64..).zip(examples) {
            // On a CPU an image takes seconds.
            runkit::signals::check_at("probe")?;
            let single = builder.build(networks, vec![example], 0)?;
            parts.push(at_timesteps(&single, seed, pair, steps)?);
        }
        let whole = MicroBatch::cat(&parts)?;
        let batches = micro_batches(&whole, rows)?;
        let base = batches
            .iter()
            .map(|batch| {
                runkit::signals::check()?;
                errors_of(&networks.schedule, base, batch)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { batches, base, captions })
    }

    /// Reads the probe that an earlier start of the run wrote, if there is one.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(run: &Path, rows: u64, device: Device) -> Result<Option<Self>> {
        let (names, tensors) = (run.join(NAMES), run.join(TENSORS));
        if !names.exists() {
            return Ok(None);
        }
        let context = || {
            format!(
                "{}: not the probe of a run; hint: remove it and {NAMES} beside it, and the same command \
                 makes them again",
                tensors.display()
            )
        };
        let text = std::fs::read_to_string(&names).with_context(context)?;
        let names: Names = serde_json::from_str(&text).with_context(context)?;
        let weights = Weights::open(&tensors).with_context(context)?;
        let optional = |name: &str| -> Result<Option<Tensor>> {
            let tensor = weights.contains(name).then(|| weights.tensor(name)).transpose();
            // A copy, since the tensor is a view of the mapped file, which may be removed during
            // the run.
            let copy = |tensor: Tensor| tensor.f_to_device(device)?.f_add_scalar(0);
            Ok(tensor.with_context(context)?.map(copy).transpose()?)
        };
        let count = names.pair_ids.len();
        let whole = MicroBatch::from_tensors(names.pair_ids, &optional).with_context(context)?;
        ensure!(usize::try_from(whole.len())? == count, "{}", context());
        let tensor = |name: &str| optional(name)?.with_context(context);
        let batches = micro_batches(&whole, rows)?;
        let (first, second) = (tensor("base_error_0")?, tensor("base_error_1")?);
        let mut start = 0;
        let base = batches
            .iter()
            .map(|batch| {
                let length = batch.len();
                let both = [first.f_narrow(0, start, length)?, second.f_narrow(0, start, length)?];
                start += length;
                Ok(both)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Some(Self { batches, base, captions: names.captions }))
    }

    /// Measures the model: its loss and implicit accuracy against the base model. Each rank computes
    /// every W-th micro-batch, with the bits of one process, and all ranks return the same report.
    ///
    /// # Errors
    /// If the device of a rank is out of memory.
    pub fn measure(
        &self,
        model: &UNet,
        schedule: &TrainingSchedule,
        beta: f64,
        world: &World,
    ) -> Result<ProbeReport> {
        let own = self.batches.iter().zip(&self.base).skip(world.rank()).step_by(world.size());
        let own: Result<Vec<[Vec<u64>; ROWS]>> =
            own.map(|(batch, base)| numbers(model, schedule, beta, batch, base)).collect();
        let all = ranks::gather_late(world, own)?;
        let mut rows: [Vec<f64>; ROWS] = Default::default();
        for index in 0..self.batches.len() {
            let batch = all
                .get(index % world.size())
                .and_then(|own| own.get(index / world.size()))
                .context("a rank has measured less of the probe than it should")?;
            for (row, bits) in rows.iter_mut().zip(batch) {
                row.extend(bits.iter().map(|bits| f64::from_bits(*bits)));
            }
        }
        let [losses, agreement, logits, probability, model_0, model_1, base_0, base_1] = rows;
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
        Ok(ProbeReport {
            loss: mean(&losses),
            accuracy: mean(&agreement),
            logits: Summary::of(&logits),
            errors: chosen_and_rejected(&probability, &model_0, &model_1),
            base_errors: chosen_and_rejected(&probability, &base_0, &base_1),
        })
    }
}

/// Numbers per row of the probe: loss, agreement, z, label, the model's errors on images 0 and 1,
/// the base model's.
const ROWS: usize = 8;

/// The numbers of a micro-batch, each as the bits of an f64: JSON has no NaN.
fn numbers(
    model: &UNet,
    schedule: &TrainingSchedule,
    beta: f64,
    batch: &MicroBatch,
    base: &[Tensor; 2],
) -> Result<[Vec<u64>; ROWS]> {
    let errors = PairErrors {
        model_P: errors_of(schedule, model, batch)?,
        reference_P: [base[0].shallow_clone(), base[1].shallow_clone()],
    };
    let logits_P = errors.logits(beta)?;
    let numbers: [&Tensor; ROWS] = [
        &loss::losses(&logits_P, &batch.probability_P)?,
        &loss::agreement(&logits_P, &batch.probability_P)?,
        &logits_P,
        &batch.probability_P,
        &errors.model_P[0],
        &errors.model_P[1],
        &errors.reference_P[0],
        &errors.reference_P[1],
    ];
    let table = Tensor::f_stack(&numbers, 0)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
    let mut rows: [Vec<u64>; ROWS] = Default::default();
    for (row, numbers) in (0..).zip(&mut rows) {
        let values = Vec::<f64>::try_from(&table.f_get(row)?)?;
        *numbers = values.into_iter().map(f64::to_bits).collect();
    }
    Ok(rows)
}

/// A network's errors on images 0 and on images 1, without gradients.
fn errors_of(
    schedule: &TrainingSchedule,
    network: &UNet,
    batch: &MicroBatch,
) -> Result<[Tensor; 2]> {
    tch::no_grad(|| {
        let inputs = Inputs::of(schedule, batch)?;
        let (_, errors_2P) = inputs.predict(network)?;
        let pairs = batch.len();
        Ok([errors_2P.f_narrow(0, 0, pairs)?, errors_2P.f_narrow(0, pairs, pairs)?])
    })
}

/// One pair at each of its timesteps, each with its own noise.
fn at_timesteps(single: &MicroBatch, seed: u64, pair: u64, steps: u64) -> Result<MicroBatch> {
    let device = single.noise_PCHW.device();
    let size = single.noise_PCHW.size();
    let mut noise = Vec::new();
    let mut timesteps = Vec::new();
    for index in 0..TIMESTEPS {
        let numbers = nn::rng::normal(Choice::Probe.number(seed, pair, index + 1), &size[1..])?;
        noise.push(numbers);
        // The offset in the quarter is the same for all timesteps of a pair.
        let offset = Choice::Probe.below(seed, pair, steps.div_ceil(TIMESTEPS));
        let timestep = (index * steps / TIMESTEPS + offset).min(steps.saturating_sub(1));
        timesteps.push(i64::try_from(timestep)?);
    }
    Ok(MicroBatch {
        noise_PCHW: Tensor::f_stack(&noise, 0)?.f_to_device(device)?,
        timesteps_P: Tensor::f_from_slice(&timesteps)?.f_to_device(device)?,
        ..single.repeat(usize::try_from(TIMESTEPS)?)?
    })
}

/// Splits a batch into micro-batches of at most `rows` rows.
fn micro_batches(whole: &MicroBatch, rows: u64) -> Result<Vec<MicroBatch>> {
    let rows = i64::try_from(rows)?.max(1);
    let starts = (0..whole.len()).step_by(usize::try_from(rows)?);
    starts.map(|start| whole.narrow(start, rows.min(whole.len() - start))).collect()
}

impl Probe {
    /// Writes the probe to the run's folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, run: &Path) -> Result<()> {
        let errors = |image: usize| {
            Tensor::f_cat(&self.base.iter().map(|both| &both[image]).collect::<Vec<_>>(), 0)
        };
        let whole = MicroBatch::cat(&self.batches)?;
        let mut tensors = whole.to_tensors();
        tensors.extend([("base_error_0", errors(0)?), ("base_error_1", errors(1)?)]);
        let tensors: Vec<(String, Tensor)> =
            tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        write_safetensors(&run.join(TENSORS), &tensors)?;
        // Last: `probe.json` says that the tensors are complete.
        let names = Names { pair_ids: whole.pair_ids.clone(), captions: self.captions.clone() };
        runkit::files::write_json_atomic(run.join(NAMES), &names)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_is_relative_to_the_base_models_error() {
        let report = ProbeReport {
            loss: 0.0,
            accuracy: 0.0,
            logits: Summary::of(&[]),
            errors: [0.3, 0.1],
            base_errors: [0.2, 0.0],
        };
        let [chosen, rejected] = report.rises();
        assert!((chosen - 0.5).abs() < 1e-12 && rejected == 0.0);
    }
}
