//! One optimizer step after another.
//!
//! A step computes `batch_size` pairs in micro-batches; gradient accumulation gives the gradients
//! of the weighted mean of their losses. Numbers are copied to the CPU once per step, before the
//! weights change: a loss or a gradient that is not finite changes nothing.
//!
//! On W ranks, each computes every W-th micro-batch. They exchange twice a step: before they sum
//! their gradients, whether all of them can go on; after it, the numbers of their pairs. What
//! follows is a function of the sum and of the numbers of all, so all ranks end a step with equal
//! weights.

mod batches;
mod numbers;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use nn::distributed::World;
use nn::optimizer::FlatGradients;
use runkit::signals::{StopFlag, Stoppable, stoppable};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use self::batches::MicroResult;
use self::numbers::{Numbers, RankNumbers};
use crate::config::Config;
use crate::data::Stream;
use crate::loss::{RunningMargin, mean_margin};
use crate::loss_scale::{LossScale, LossScaling};
use crate::model::{BaseModel, Networks};
use crate::optimizer::RankOptimizer;
use crate::preference::{PairLabel, scorer_of_step};
use crate::record::StepFacts;
use crate::reference::{self, ReferenceUpdates};
pub use crate::report::{StepReport, Times};
use crate::run::ranks;
use crate::statistics::{Summary, chosen_and_rejected, weighted_mean};
use crate::step;

/// Where a run stands between two steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Optimizer steps done.
    pub step: u64,
    /// Pairs consumed since the start of training, over all epochs.
    pub pairs: u64,
    /// The step whose weights the reference model has; 0 for the base model's.
    pub reference_step: u64,
    /// The factor of the next loss.
    pub loss_scale: LossScale,
    /// The running mean of the margins, for a β that adapts.
    pub margin: RunningMargin,
}

/// What changes in training, and what a checkpoint holds.
pub struct TrainingState {
    /// The networks, with the model and the reference model.
    pub networks: Networks,
    /// The optimizer with its moments.
    pub optimizer: RankOptimizer,
    /// Where the run stands.
    pub position: Position,
}

/// A run between two steps.
pub struct Trainer<'run> {
    config: &'run Config,
    base: &'run BaseModel,
    state: TrainingState,
    stream: Stream<PairLabel>,
    /// How many scorers there are, for [`scorer_of_step`].
    scorers: usize,
    world: &'run World,
    /// The gradients of the step under way, if there are several ranks.
    gradients: Option<FlatGradients>,
    /// Whether weights, moments, reference and position are those of the same step.
    is_whole: bool,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Trainer")
            .field("position", &self.state.position)
            .field("is_whole", &self.is_whole)
            .finish_non_exhaustive()
    }
}

/// A loss or the gradients are not finite. The step has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step {step}: {what} NaN or infinite for the pairs {}", step::shown(pairs))]
pub struct NotFinite {
    /// The step.
    pub step: u64,
    /// "the loss is" or "the gradients are".
    pub what: &'static str,
    /// The pairs whose losses are not finite; for gradients all pairs of the batch.
    pub pairs: Vec<String>,
}

/// Runs `body` and adds its seconds to `sum`.
fn timed<T>(sum: &mut f64, body: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = body();
    *sum += start.elapsed().as_secs_f64();
    result
}

/// Runs `body`, which waits for other ranks, and adds its seconds to the time of that. Alone, that
/// time is zero.
fn exchanging<T>(world: &World, times: &mut Times, body: impl FnOnce() -> T) -> T {
    let mut none = 0.0;
    timed(if world.is_alone() { &mut none } else { &mut times.exchange }, body)
}

impl<'run> Trainer<'run> {
    /// A run at the position of `state` and `stream`.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(
        config: &'run Config,
        base: &'run BaseModel,
        mut state: TrainingState,
        stream: Stream<PairLabel>,
        scorers: usize,
        world: &'run World,
    ) -> Result<Self> {
        state.networks.pipeline.unet.set_gradient_checkpointing(config.settings.grad_checkpointing);
        let mut trainer =
            Self { config, base, state, stream, scorers, world, gradients: None, is_whole: true };
        // After its last step a run does not update the reference. If --steps has grown since, that
        // step is no longer the last one.
        if trainer.state.position.step > 0 {
            trainer.update_reference()?;
        }
        Ok(trainer)
    }

    /// The networks.
    pub fn networks(&self) -> &Networks {
        &self.state.networks
    }

    /// Runs `body`, which changes no weight, with the model that is exported: the moving average
    /// takes the place of the weights for that time, if it is the one.
    ///
    /// # Errors
    /// That of `body`, or if the device is out of memory; then the weights may not be whole.
    pub fn with_exported<T>(&mut self, body: impl FnOnce(&mut Networks) -> Result<T>) -> Result<T> {
        let exports_ema = self.config.exports_ema();
        let networks = &mut self.state.networks;
        if !exports_ema {
            return body(networks);
        }
        let was_whole = std::mem::replace(&mut self.is_whole, false);
        networks.exchange_average()?;
        let result = body(networks);
        networks.exchange_average()?;
        self.is_whole = was_whole;
        result
    }

    /// The optimizer with its moments.
    pub fn optimizer(&self) -> &RankOptimizer {
        &self.state.optimizer
    }

    /// Where the run stands.
    pub fn position(&self) -> Position {
        self.state.position
    }

    /// Whether weights, moments, reference and position are those of the same step, so that they
    /// can be saved: always, except after an error in the middle of an update.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Takes one optimizer step, at all ranks. After a stop, or an error that left the run whole
    /// ([`Trainer::is_whole`]), only the position of the stream has advanced: save the state, and
    /// do not call `step` again. All ranks stop after the same step, and report the same numbers.
    ///
    /// # Errors
    /// If the data cannot be read, a loss or the gradients are not finite (the error names the
    /// pairs), or the device is out of memory, at this rank or at another one, or a rank is lost.
    pub fn step(&mut self, run: &Path, stop: &StopFlag) -> Result<Stoppable<Box<StepReport>>> {
        let (config, world) = (self.config, self.world);
        let step = self.state.position.step + 1;
        let learning_rate = config.learning_rate.at(self.state.position.step);
        let scorer = scorer_of_step(config.settings.seed, step, self.scorers);
        let mut times = Times::default();
        let loss_scale = self.state.position.loss_scale;
        let mut parts = Vec::new();
        let mut objective = self.objective();
        let outcome =
            self.micro_batches(step, scorer, &mut objective, &mut parts, &mut times, stop);
        let agreed = exchanging(world, &mut times, || ranks::gather(world, outcome));
        let computed = match stoppable(agreed.map(ControlFlow::Continue))? {
            ControlFlow::Continue(all) => Computed::of_all(&all),
            ControlFlow::Break(signal) => return Ok(ControlFlow::Break(signal)),
        };
        exchanging(world, &mut times, || self.sum_gradients(computed))?;
        let numbers = timed(&mut times.optimizer, || self.rank_numbers(&parts, computed));
        let numbers = exchanging(world, &mut times, || ranks::gather(world, numbers))?;
        let numbers = numbers::in_order(&numbers)?;
        let overflow = !numbers.grad_norm.is_finite() && numbers.losses_are_finite();
        let lowered = loss_scale.shrunk(config.loss_scaling).filter(|_| overflow);
        if lowered.is_none() {
            self.refuse_non_finite(step, &numbers, &parts)?;
        }
        let reference_step = self.state.position.reference_step;
        let beta = config.settings.auto_beta.map(|_| objective.beta);
        let reference_point =
            objective.needs_reference_point().then_some(objective.reference_point);
        let grad_norm = numbers.grad_norm;
        let facts =
            StepFacts { step, learning_rate, grad_norm, reference_step, beta, reference_point };
        self.write_records(run, &facts, &numbers, &parts)?;
        drop(parts);
        self.is_whole = false;
        timed(&mut times.optimizer, || match lowered {
            Some(lowered) => self.skip_update(step, lowered),
            None => {
                if beta.is_some() {
                    let mean = mean_margin(&numbers.logits, objective.beta);
                    self.state.position.margin = self.state.position.margin.after(mean);
                }
                self.update(step, learning_rate)
            }
        })?;
        let distance = (config.measures_after(step) && objective.uses_reference())
            .then(|| reference::distance(&self.state.networks))
            .transpose()?;
        timed(&mut times.optimizer, || self.update_reference())?;
        self.is_whole = true;
        let sides = |first: usize| {
            let [first, second] = [&numbers.errors[first], &numbers.errors[first + 1]];
            chosen_and_rejected(&numbers.probability, first, second)
        };
        Ok(ControlFlow::Continue(Box::new(StepReport {
            step,
            loss: weighted_mean(&numbers.losses, &numbers.weight),
            accuracy: weighted_mean(&numbers.agreement, &numbers.weight),
            logits: Summary::of(&numbers.logits),
            model_errors: sides(0),
            reference_errors: objective.uses_reference().then(|| sides(2)),
            grad_norm: numbers.grad_norm,
            learning_rate,
            reference_step,
            loss_scale: (config.loss_scaling != LossScaling::None).then(|| loss_scale.factor()),
            overflow: lowered.is_some(),
            beta,
            reference_point,
            skipped: config.settings.batch_size - numbers.losses.len() as u64,
            distance,
            scorer,
            times,
        })))
    }

    /// Sums the gradients of all ranks. If no rank has computed a pair, there is no gradient.
    fn sum_gradients(&mut self, computed: Computed) -> Result<()> {
        if self.world.is_alone() || computed.pairs == 0 {
            return Ok(());
        }
        let gradients = match self.gradients.take() {
            Some(gradients) => gradients,
            None => FlatGradients::attach(self.state.networks.pipeline.unet.parameters())?,
        };
        gradients.all_reduce(self.world)?;
        Ok(())
    }

    /// Brings the gradients to their final scale, and copies this rank's numbers to the CPU.
    fn rank_numbers(
        &self,
        parts: &[Option<MicroResult>],
        computed: Computed,
    ) -> Result<RankNumbers> {
        let parameters = self.state.networks.pipeline.unet.parameters();
        let accumulation = self.accumulation().of_weight(computed.weight);
        let norm = accumulation.finish(parameters, self.config.max_grad_norm)?;
        let tables: Vec<Option<&Tensor>> =
            parts.iter().map(|part| part.as_ref().map(|part| &part.numbers)).collect();
        RankNumbers::of(&tables, &norm)
    }

    /// Refuses a step whose numbers are not finite, at all ranks: each names the pairs of all.
    fn refuse_non_finite(
        &self,
        step: u64,
        numbers: &Numbers,
        parts: &[Option<MicroResult>],
    ) -> Result<()> {
        let losses_are_finite = numbers.losses_are_finite();
        if losses_are_finite && numbers.grad_norm.is_finite() {
            return Ok(());
        }
        let ids: Vec<Vec<String>> = parts
            .iter()
            .map(|part| part.as_ref().map_or_else(Vec::new, |part| part.pair_ids.clone()))
            .collect();
        let ranks = self.world.gather(ids)?;
        let pairs = (0..parts.len())
            .flat_map(|micro| ranks.iter().filter_map(move |rank| rank.get(micro)))
            .flatten();
        let pairs = pairs
            .enumerate()
            .filter(|(index, _)| losses_are_finite || !numbers.is_finite(*index))
            .map(|(_, id)| id.clone())
            .collect();
        let what = if losses_are_finite { "the gradients are" } else { "the loss is" };
        bail!(NotFinite { step, what, pairs })
    }

    /// Writes the records of this rank's micro-batches, each under its number among those of the
    /// step that have pairs.
    fn write_records(
        &self,
        run: &Path,
        facts: &StepFacts,
        numbers: &Numbers,
        parts: &[Option<MicroResult>],
    ) -> Result<()> {
        if facts.step > self.config.settings.record_steps {
            return Ok(());
        }
        let (rank, world) = (self.world.rank(), self.world.size());
        let write = || -> Result<()> {
            for (own, part) in parts.iter().enumerate() {
                let before = numbers.pairs.iter().take(own * world + rank);
                let number = before.filter(|pairs| **pairs > 0).count();
                if let Some(record) = part.as_ref().and_then(|part| part.record.as_ref()) {
                    record.write(run, facts, number)?;
                }
            }
            Ok(())
        };
        ranks::agree(self.world, write())
    }

    /// Updates the weights.
    fn update(&mut self, step: u64, learning_rate: f64) -> Result<()> {
        self.state.optimizer.step(learning_rate, self.world)?;
        self.state.optimizer.zero_grad()?;
        let networks = &mut self.state.networks;
        networks.pipeline.unet.cast_weights()?;
        if let (Some(ema), Some(kept)) = (&mut networks.ema, self.config.settings.ema) {
            ema.update(networks.pipeline.unet.parameters(), 1.0 - kept)?;
        }
        self.state.position.loss_scale =
            self.state.position.loss_scale.grown(self.config.loss_scaling);
        self.advance(step);
        Ok(())
    }

    /// Skips the update, since the gradients overflow at this loss scale.
    fn skip_update(&mut self, step: u64, lowered: LossScale) -> Result<()> {
        self.state.optimizer.zero_grad()?;
        self.state.position.loss_scale = lowered;
        self.advance(step);
        tracing::info!(
            "step {step}: the gradients overflow; the loss scale is now {}",
            lowered.factor()
        );
        Ok(())
    }

    fn advance(&mut self, step: u64) {
        self.state.position.step = step;
        self.state.position.pairs += self.config.settings.batch_size;
    }

    /// Updates the reference model if it is due after this step (Algorithm 1).
    fn update_reference(&mut self) -> Result<()> {
        let Position { step, reference_step, .. } = self.state.position;
        let settings = &self.config.settings;
        let updates = ReferenceUpdates::of(settings);
        if updates.is_due_after(step, settings.steps) && reference_step != step {
            updates.update(&mut self.state.networks)?;
            self.state.position.reference_step = step;
            if settings.reference_reset_optimizer.unwrap_or_default() {
                self.state.optimizer.reset()?;
            }
        }
        Ok(())
    }
}

/// What a rank, or all ranks, have computed of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Computed {
    /// The sum of the pairs' weights.
    weight: f64,
    /// How many pairs there are, without the skipped ones.
    pairs: u64,
}

impl Computed {
    /// What ranks have computed together.
    fn of_all(ranks: &[Self]) -> Self {
        let add = |all: Self, one: &Self| Self {
            weight: all.weight + one.weight,
            pairs: all.pairs + one.pairs,
        };
        ranks.iter().fold(Self { weight: 0.0, pairs: 0 }, add)
    }
}
