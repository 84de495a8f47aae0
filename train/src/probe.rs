//! The probe: a few pairs that are looked at again and again, at the same timesteps and with the same
//! noise, measured against the model that training began with. Batches differ and the reference
//! moves, so that the loss of training is a noisy line that returns to ln 2 at every refresh; the
//! probe's is smooth, and tells how far the model has come.
//!
//! Its pairs are held out of training ([`crate::prepared`]). Their latents, texts and the base model's errors are kept
//! in `probe.safetensors`, so that a run that goes on looks at the very same.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nn::schedule::TrainingSchedule;
use nn::unet::UNet;
use nn::weights::{Weights, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::data::Example;
use crate::loss::{self, PairErrors};
use crate::model::Networks;
use crate::preference::Judgement;
use crate::randomness::Choice;
use crate::report::Values;
use crate::statistics::Summary;
use crate::step::{self, Inputs, MicroBatch, Preparation};

/// Timesteps of each pair, one in each quarter of the schedule.
const TIMESTEPS: u64 = 4;
pub(crate) const TENSORS: &str = "probe.safetensors";
pub(crate) const NAMES: &str = "probe.json";

/// The probe's pairs, ready to be looked at.
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

/// What a look at the probe has found.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// The mean loss against the base model.
    pub loss: f64,
    /// The share of rows on which the model sides with the labels, ties one half.
    pub accuracy: f64,
    /// z against the base model.
    pub logits: Summary,
    /// The model's mean error on the better images and on the others.
    pub errors: [f64; 2],
    /// The base model's.
    pub base_errors: [f64; 2],
}

impl ProbeReport {
    /// As metrics.
    pub fn values(&self) -> Values {
        vec![
            ("probe/loss", json!(self.loss)),
            ("probe/accuracy", json!(self.accuracy)),
            ("probe/z_mean", json!(self.logits.mean)),
            ("probe/z_deviation", json!(self.logits.deviation)),
            ("probe/error_better", json!(self.errors[0])),
            ("probe/error_other", json!(self.errors[1])),
            ("probe/base_error_better", json!(self.base_errors[0])),
            ("probe/base_error_other", json!(self.base_errors[1])),
        ]
    }

    /// What the base model itself looks like.
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

    /// By what share of the base model's error the model's has risen, on the better images and on
    /// the others.
    pub fn rises(&self) -> [f64; 2] {
        [0, 1].map(|side| match self.base_errors[side] {
            base if base > 0.0 => self.errors[side] / base - 1.0,
            _ => 0.0,
        })
    }
}

impl Probe {
    /// Makes the probe of `examples` and writes it to the run's folder. `base` is the base model as
    /// a reference, `scorers` how many vote, `rows` how many rows are computed at once.
    ///
    /// # Errors
    /// Where an image cannot be encoded, or a file cannot be written.
    pub fn make(
        preparation: &Preparation<'_>,
        networks: &Networks,
        base: &UNet,
        examples: Vec<Example<Judgement>>,
        scorers: usize,
        rows: u64,
        run: &Path,
    ) -> Result<Self> {
        let captions: Vec<String> =
            examples.iter().map(|example| example.caption.clone()).collect();
        // No caption is dropped: the probe asks what the model makes of captions.
        let preparation = Preparation { caption_dropout: 0.0, ..*preparation };
        let seed = preparation.seed;
        let steps = u64::try_from(networks.schedule.alphas_cumprod().size1()?)?;
        let mut parts = Vec::with_capacity(examples.len());
        for (pair, mut example) in (0u64..).zip(examples) {
            if let Judgement::ByScorer { votes } = example.judgement {
                // Whoever's turn it is.
                let share = votes.count_ones() as f32 / scorers.max(1) as f32;
                example.judgement = Judgement::Fixed { probability: share, weight: 1.0 };
            }
            // On a CPU an image takes seconds.
            runkit::signals::check_at("probe")?;
            let single = step::prepare(&preparation, networks, vec![example], 0)?;
            parts.push(spread(&single, seed, pair, steps)?);
        }
        let whole = MicroBatch::cat(&parts)?;
        let names = Names { pair_ids: whole.pair_ids.clone(), captions: captions.clone() };
        let batches = cut(&whole, rows)?;
        let base = batches
            .iter()
            .map(|batch| {
                runkit::signals::check()?;
                errors_of(&networks.schedule, base, batch)
            })
            .collect::<Result<Vec<_>>>()?;
        write(run, &whole, &base, &names)?;
        Ok(Self { batches, base, captions })
    }

    /// The probe that an earlier run wrote; none where there is none.
    ///
    /// # Errors
    /// Where it is there and damaged.
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
            // A copy: the file may be removed while the run goes on.
            let copy = |tensor: Tensor| tensor.f_to_device(device)?.f_add_scalar(0);
            Ok(tensor.with_context(context)?.map(copy).transpose()?)
        };
        let count = names.pair_ids.len();
        let whole = MicroBatch::from_tensors(names.pair_ids, &optional).with_context(context)?;
        ensure!(usize::try_from(whole.len())? == count, "{}", context());
        let tensor = |name: &str| optional(name)?.with_context(context);
        let batches = cut(&whole, rows)?;
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

    /// Looks at the model.
    ///
    /// # Errors
    /// Where there is not enough memory.
    pub fn look(
        &self,
        model: &UNet,
        schedule: &TrainingSchedule,
        beta: f64,
    ) -> Result<ProbeReport> {
        let mut rows = Vec::with_capacity(self.batches.len());
        for (batch, base) in self.batches.iter().zip(&self.base) {
            let errors = PairErrors {
                model_P: errors_of(schedule, model, batch)?,
                reference_P: [base[0].shallow_clone(), base[1].shallow_clone()],
            };
            let logits_P = errors.logits(beta)?;
            let numbers = [
                &loss::losses(&logits_P, &batch.probability_P)?,
                &loss::agreement(&logits_P, &batch.probability_P)?,
                &logits_P,
                &batch.probability_P,
                &errors.model_P[0],
                &errors.model_P[1],
                &errors.reference_P[0],
                &errors.reference_P[1],
            ];
            rows.push(Tensor::f_stack(&numbers, 0)?);
        }
        let all = Tensor::f_cat(&rows, 1)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
        let column = |index: i64| -> Result<Vec<f64>> { Ok(Vec::try_from(&all.f_get(index)?)?) };
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
        let probability = column(3)?;
        let sides = |first: &[f64], second: &[f64]| better_and_other(&probability, first, second);
        Ok(ProbeReport {
            loss: mean(&column(0)?),
            accuracy: mean(&column(1)?),
            logits: Summary::of(&column(2)?),
            errors: sides(&column(4)?, &column(5)?),
            base_errors: sides(&column(6)?, &column(7)?),
        })
    }
}

/// Means of the errors on the better images and on the others, each image as much as the labels say
/// that it is the better one.
pub(crate) fn better_and_other(probability: &[f64], first: &[f64], second: &[f64]) -> [f64; 2] {
    let count = probability.len().max(1) as f64;
    let mut sums = [0.0; 2];
    for ((p, first), second) in probability.iter().zip(first).zip(second) {
        sums[0] += p * first + (1.0 - p) * second;
        sums[1] += (1.0 - p) * first + p * second;
    }
    sums.map(|sum| sum / count)
}

/// A network's errors on images 0 and images 1, without gradients.
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

/// A pair at each of its timesteps, each with noise of its own.
fn spread(single: &MicroBatch, seed: u64, pair: u64, steps: u64) -> Result<MicroBatch> {
    let device = single.noise_PCHW.device();
    let size = single.noise_PCHW.size();
    let mut noise = Vec::new();
    let mut timesteps = Vec::new();
    for index in 0..TIMESTEPS {
        let numbers = nn::rng::normal(Choice::Probe.number(seed, pair, index + 1), &size[1..])?;
        noise.push(numbers);
        // A place in the quarter, the same for all of a pair's.
        let place = Choice::Probe.below(seed, pair, steps.div_ceil(TIMESTEPS));
        let timestep = (index * steps / TIMESTEPS + place).min(steps.saturating_sub(1));
        timesteps.push(i64::try_from(timestep)?);
    }
    Ok(MicroBatch {
        noise_PCHW: Tensor::f_stack(&noise, 0)?.f_to_device(device)?,
        timesteps_P: Tensor::f_from_slice(&timesteps)?.f_to_device(device)?,
        ..single.repeat(usize::try_from(TIMESTEPS)?)?
    })
}

/// A batch in parts of at most `rows` rows.
fn cut(whole: &MicroBatch, rows: u64) -> Result<Vec<MicroBatch>> {
    let rows = i64::try_from(rows)?.max(1);
    let starts = (0..whole.len()).step_by(usize::try_from(rows)?);
    starts.map(|start| whole.narrow(start, rows.min(whole.len() - start))).collect()
}

fn write(run: &Path, whole: &MicroBatch, base: &[[Tensor; 2]], names: &Names) -> Result<()> {
    let errors =
        |image: usize| Tensor::f_cat(&base.iter().map(|both| &both[image]).collect::<Vec<_>>(), 0);
    let mut tensors = whole.to_tensors();
    tensors.extend([("base_error_0", errors(0)?), ("base_error_1", errors(1)?)]);
    let tensors: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    write_safetensors(&run.join(TENSORS), &tensors)?;
    // The names stand there when the tensors do.
    runkit::files::write_json_atomic(run.join(NAMES), names)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_follow_the_labels() {
        let [better, other] =
            better_and_other(&[1.0, 0.0, 0.5], &[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
        assert!((better - (1.0 + 5.0 + 4.5) / 3.0).abs() < 1e-12);
        assert!((other - (4.0 + 2.0 + 4.5) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_rise_is_measured_in_parts_of_the_base_models_error() {
        let report = ProbeReport {
            loss: 0.0,
            accuracy: 0.0,
            logits: Summary::of(&[]),
            errors: [0.3, 0.1],
            base_errors: [0.2, 0.0],
        };
        let [better, other] = report.rises();
        assert!((better - 0.5).abs() < 1e-12 && other == 0.0);
    }
}
