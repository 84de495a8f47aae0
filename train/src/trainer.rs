//! One optimizer step after another.
//!
//! A step takes `batch_size` pairs in micro-batches, whose gradients add up to those of the weighted
//! mean of their losses. Numbers are brought to the CPU once in a step, before the weights are
//! changed: a loss or a gradient that is not finite changes nothing.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nn::NetworkError;
use nn::optimizer::{Adafactor, AdafactorConfig, AdamW, AdamWConfig, Optimizer, clip_grad_norm};
use runkit::signals::{Signal, StopFlag};
use tch::{Device, Kind, Tensor};

use crate::cli::OptimizerKind;
use crate::config::Config;
use crate::data::Stream;
use crate::loss;
use crate::model::{BaseModel, Networks};
use crate::preference::{Judgement, scorer_of_step};
use crate::probe::better_and_other;
use crate::record::{Record, StepFacts};
use crate::statistics::{Summary, weighted_mean};
use crate::step::{self, Preparation};

/// A run between two steps.
pub struct Trainer<'run> {
    config: &'run Config,
    base: &'run BaseModel,
    /// The networks.
    pub networks: Networks,
    /// The optimizer with its moments.
    pub optimizer: Box<dyn Optimizer>,
    stream: Stream<Judgement>,
    /// How many scorers take turns.
    scorers: usize,
    /// Optimizer steps done.
    pub step: u64,
    /// The step whose weights the reference has.
    pub reference_step: u64,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Trainer")
            .field("step", &self.step)
            .field("reference_step", &self.reference_step)
            .finish_non_exhaustive()
    }
}

/// How a step ended.
#[derive(Debug)]
pub enum StepEnd {
    /// The weights are changed.
    Done(Box<StepReport>),
    /// A signal came; nothing is changed.
    Stopped(Signal),
}

/// What is known of a step. Errors and z are those before its update.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The optimizer step, from 1.
    pub step: u64,
    /// The weighted mean of the losses.
    pub loss: f64,
    /// The share of pairs on which the model sides with the labels, ties one half.
    pub accuracy: f64,
    /// z.
    pub logits: Summary,
    /// The model's mean error on the better images and on the others.
    pub model_errors: [f64; 2],
    /// The reference's.
    pub reference_errors: [f64; 2],
    /// The norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The step whose weights the reference had.
    pub reference_step: u64,
    /// How far the update took the model from the reference ([`Trainer::distance`]), before the reference
    /// may have become the model; where it was to be measured.
    pub distance: Option<f64>,
    /// The scorer whose turn it was.
    pub scorer: usize,
    /// Seconds.
    pub times: Times,
}

/// Where the seconds of a step went. On a GPU work is only begun in `encode`, `forward` and
/// `backward`, and waited for where the first number is needed, in `optimizer`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// Waiting for the next examples.
    pub data: f64,
    /// Autoencoder and text encoders.
    pub encode: f64,
    /// Both UNets.
    pub forward: f64,
    /// Gradients.
    pub backward: f64,
    /// Clipping, the update, the reference.
    pub optimizer: f64,
}

impl Times {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.data + self.encode + self.forward + self.backward + self.optimizer
    }
}

/// Adds the seconds that `body` takes to `sum`.
fn timed<T>(sum: &mut f64, body: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = body();
    *sum += start.elapsed().as_secs_f64();
    result
}

/// Rows of the numbers that are kept of every pair.
const ROWS: i64 = 9;

/// The numbers of a step, on the CPU.
struct Numbers {
    losses: Vec<f64>,
    agreement: Vec<f64>,
    logits: Vec<f64>,
    probability: Vec<f64>,
    weight: Vec<f64>,
    /// The model's on images 0 and 1, the reference's on images 0 and 1.
    errors: [Vec<f64>; 4],
    grad_norm: f64,
}

/// The optimizer that `config` names.
///
/// # Errors
/// Where there is not enough memory.
pub fn optimizer(config: &Config, parameters: &[(String, Tensor)]) -> Result<Box<dyn Optimizer>> {
    Ok(match config.optimizer {
        OptimizerKind::Adamw => Box::new(AdamW::new(
            parameters,
            AdamWConfig {
                betas: config.adam_betas,
                epsilon: config.adam_epsilon,
                weight_decay: config.weight_decay,
            },
        )?),
        OptimizerKind::Adafactor => Box::new(Adafactor::new(
            parameters,
            AdafactorConfig { weight_decay: config.weight_decay, ..AdafactorConfig::default() },
        )?),
    })
}

impl<'run> Trainer<'run> {
    /// A run that has done `step` steps, with networks, an optimizer and a stream that stand there.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the parts of a run, each of its own kind"
    )]
    pub fn new(
        config: &'run Config,
        base: &'run BaseModel,
        mut networks: Networks,
        optimizer: Box<dyn Optimizer>,
        stream: Stream<Judgement>,
        scorers: usize,
        step: u64,
        reference_step: u64,
    ) -> Self {
        networks.pipeline.unet.set_gradient_checkpointing(config.grad_checkpointing);
        Self { config, base, networks, optimizer, stream, scorers, step, reference_step }
    }

    /// Pairs consumed since the start of training.
    pub fn position(&self) -> u64 {
        self.step * self.config.batch_size
    }

    /// Takes one optimizer step. After an error or a stop nothing of the run has changed but the
    /// position of its stream: it must not be gone on with.
    ///
    /// # Errors
    /// Where the data cannot be read, a loss or the gradients are not finite, which names the
    /// pairs, or there is not enough memory.
    pub fn step(&mut self, run: &Path, stop: &StopFlag) -> Result<StepEnd> {
        let config = self.config;
        let step = self.step + 1;
        let learning_rate = config.learning_rate.at(self.step);
        let scorer = scorer_of_step(config.seed, step, self.scorers);
        let mut times = Times::default();
        let mut parts = Vec::new();
        let mut pair_ids = Vec::new();
        let mut weight = 0.0;
        let mut records = Vec::new();
        for _ in 0..config.batch_size / config.micro_batch {
            if let Some(signal) = stop.requested() {
                return Ok(StepEnd::Stopped(signal));
            }
            let part = self
                .micro_batch(scorer, step, &mut times)
                .map_err(|error| out_of_memory_hint(error, config))?;
            parts.push(part.numbers);
            pair_ids.extend(part.pair_ids);
            weight += part.weight;
            records.extend(part.record);
        }
        let numbers = timed(&mut times.optimizer, || self.gather(&parts, weight))?;
        self.refuse_non_finite(step, &numbers, &pair_ids)?;
        let facts = StepFacts {
            step,
            learning_rate,
            grad_norm: numbers.grad_norm,
            reference_step: self.reference_step,
        };
        for (micro, record) in records.iter().enumerate() {
            record.write(run, &facts, micro)?;
        }
        let reference_step = self.reference_step;
        timed(&mut times.optimizer, || self.update(step, learning_rate))?;
        let distance = config.looks_after(step).then(|| self.distance()).transpose()?;
        timed(&mut times.optimizer, || self.renew_reference())?;
        let sides = |first: usize| {
            let [first, second] = [&numbers.errors[first], &numbers.errors[first + 1]];
            better_and_other(&numbers.probability, first, second)
        };
        Ok(StepEnd::Done(Box::new(StepReport {
            step,
            loss: weighted_mean(&numbers.losses, &numbers.weight),
            accuracy: weighted_mean(&numbers.agreement, &numbers.weight),
            logits: Summary::of(&numbers.logits),
            model_errors: sides(0),
            reference_errors: sides(2),
            grad_norm: numbers.grad_norm,
            learning_rate,
            reference_step,
            distance,
            scorer,
            times,
        })))
    }

    /// Adds the gradients of one micro-batch.
    fn micro_batch(&mut self, scorer: usize, step: u64, times: &mut Times) -> Result<MicroResult> {
        let config = self.config;
        let examples = timed(&mut times.data, || {
            (0..config.micro_batch).map(|_| self.stream.next()).collect::<Result<Vec<_>, _>>()
        })?;
        let preparation = Preparation {
            base: self.base,
            seed: config.seed,
            caption_dropout: config.caption_dropout,
        };
        let batch = timed(&mut times.encode, || {
            step::prepare(&preparation, &self.networks, examples, scorer)
        })?;
        let networks = &self.networks;
        let (predictions, loss) = timed(&mut times.forward, || -> Result<_> {
            let predictions = step::predict(
                &networks.pipeline.unet,
                &networks.reference,
                &networks.schedule,
                config.beta,
                &batch,
            )?;
            let loss = predictions.losses_P.f_mul(&batch.weight_P)?.f_sum(Kind::Float)?;
            Ok((predictions, loss.f_div_scalar(config.batch_size as f64)?))
        })?;
        timed(&mut times.backward, || loss.f_backward()).map_err(NetworkError::from)?;
        let errors = &predictions.errors;
        let logits_P = predictions.logits_P.f_detach()?;
        let rows = [
            &predictions.losses_P.f_detach()?,
            &loss::agreement(&logits_P, &batch.probability_P)?,
            &logits_P,
            &batch.probability_P,
            &batch.weight_P,
            &errors.model_P[0].f_detach()?,
            &errors.model_P[1].f_detach()?,
            &errors.reference_P[0],
            &errors.reference_P[1],
        ];
        let record = match step <= config.record_steps {
            true => Some(Record::of(&batch, &predictions)?),
            false => None,
        };
        Ok(MicroResult {
            numbers: Tensor::f_stack(&rows, 0)?,
            pair_ids: batch.pair_ids,
            weight: batch.weight,
            record,
        })
    }

    /// Brings the gradients to their final scale and the numbers to the CPU.
    fn gather(&mut self, parts: &[Tensor], weight: f64) -> Result<Numbers> {
        let parameters = self.networks.pipeline.unet.parameters();
        let batch = self.config.batch_size as f64;
        if weight != batch && weight > 0.0 {
            // The losses were divided by the number of pairs, and the mean is that of their weights.
            tch::no_grad(|| -> Result<()> {
                for (_, parameter) in parameters {
                    let mut gradient = parameter.grad();
                    if gradient.defined() {
                        let _ = gradient.f_mul_scalar_(batch / weight)?;
                    }
                }
                Ok(())
            })?;
        }
        let norm = clip_grad_norm(parameters, self.config.max_grad_norm)?;
        let table = Tensor::f_cat(parts, 1)?.f_flatten(0, -1)?;
        let all = Tensor::f_cat(&[table, norm.f_view([1])?], 0)?;
        let all = Vec::<f64>::try_from(&all.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?;
        let grad_norm = all.last().copied().unwrap_or(f64::NAN);
        let pairs = (all.len() - 1) / usize::try_from(ROWS)?;
        let mut rows = all.chunks_exact(pairs.max(1)).map(<[f64]>::to_vec);
        let mut row = || rows.next().context("a row of numbers is missing");
        Ok(Numbers {
            losses: row()?,
            agreement: row()?,
            logits: row()?,
            probability: row()?,
            weight: row()?,
            errors: [row()?, row()?, row()?, row()?],
            grad_norm,
        })
    }

    fn refuse_non_finite(&self, step: u64, numbers: &Numbers, pair_ids: &[String]) -> Result<()> {
        let is_finite = |index: usize| {
            numbers.losses[index].is_finite()
                && numbers.logits[index].is_finite()
                && numbers.errors.iter().all(|errors| errors[index].is_finite())
        };
        let hint = format!(
            "the weights are as step {} left them, the last checkpoint is untouched; hint: a lower \
             --lr, --dtype f32, or leave the pairs out",
            self.step
        );
        let guilty: Vec<String> = (0..numbers.losses.len())
            .filter(|index| !is_finite(*index))
            .filter_map(|index| pair_ids.get(index).cloned())
            .collect();
        if !guilty.is_empty() {
            bail!(
                "step {step}: the loss is NaN or infinite for the pairs {}; {hint}",
                step::shown(&guilty)
            );
        }
        if !numbers.grad_norm.is_finite() {
            bail!(
                "step {step}: the gradients are NaN or infinite for the pairs {}; {hint}",
                step::shown(pair_ids)
            );
        }
        Ok(())
    }

    /// Changes the weights.
    fn update(&mut self, step: u64, learning_rate: f64) -> Result<()> {
        self.optimizer.step(learning_rate)?;
        self.optimizer.zero_grad()?;
        self.step = step;
        Ok(())
    }

    /// Makes the reference the current weights where it is time.
    fn renew_reference(&mut self) -> Result<()> {
        if self.config.renews_reference_after(self.step) {
            self.networks.reference.copy_weights_from(&self.networks.pipeline.unet)?;
            self.reference_step = self.step;
        }
        Ok(())
    }

    /// How far the model's weights are from the reference's, as both compute with them: the 2-norm
    /// of the difference in the compute type. Exactly 0 where the reference was just renewed.
    ///
    /// # Errors
    /// Where there is not enough memory.
    pub fn distance(&self) -> Result<f64> {
        let trained = self.networks.pipeline.unet.parameters();
        let reference = self.networks.reference.parameters();
        tch::no_grad(|| {
            let norms = trained
                .iter()
                .zip(reference)
                .map(|((_, own), (_, other))| {
                    let own = own.f_to_kind(other.kind())?.f_to_kind(Kind::Float)?;
                    own.f_sub(&other.f_to_kind(Kind::Float)?)?.f_norm()
                })
                .collect::<Result<Vec<_>, _>>()?;
            let norms = Tensor::f_stack(&norms, 0)?.f_to_kind(Kind::Double)?;
            Ok(norms.f_norm()?.f_double_value(&[])?)
        })
    }
}

/// What is kept of a micro-batch.
struct MicroResult {
    /// `[ROWS, P]`.
    numbers: Tensor,
    pair_ids: Vec<String>,
    weight: f64,
    record: Option<Record>,
}

fn out_of_memory_hint(error: anyhow::Error, config: &Config) -> anyhow::Error {
    let lacks_memory = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<NetworkError>())
        .any(NetworkError::is_out_of_memory);
    if !lacks_memory {
        return error;
    }
    let hint = match (config.micro_batch, config.grad_checkpointing) {
        (2.., _) => "a smaller --micro-batch, which leaves the result the same",
        (_, false) => "--grad-checkpointing",
        _ => "--optimizer adafactor or a smaller --resolution",
    };
    error.context(format!(
        "not enough memory for {} pairs at once; hint: {hint}",
        config.micro_batch
    ))
}
