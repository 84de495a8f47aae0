//! The micro-batches of a step: their examples, predictions, losses and gradients.

use anyhow::{Context as _, Result};
use nn::NetworkError;
use nn::optimizer::FlatGradients;
use runkit::signals::StopFlag;
use tch::{Device, TchError, Tensor};

use super::{Computed, Trainer, exchanging, timed};
use crate::data::Example;
use crate::loss::others::reference_point;
use crate::loss::{self, Objective};
use crate::loss_scale::LossScaling;
use crate::preference::PreferenceTarget;
use crate::record::Record;
use crate::report::Times;
use crate::run::ranks;
use crate::settings::RunSettings;
use crate::step::{self, Accumulation, Inputs, MicroBatch, MicroBatchBuilder, ReferencePrediction};

/// A micro-batch, and what the reference model predicts for it if that is known.
type Surveyed = (MicroBatch, Option<ReferencePrediction>);

/// What is kept of a computed micro-batch.
pub(super) struct MicroResult {
    /// `[ROWS, P]`.
    pub(super) numbers: Tensor,
    pub(super) pair_ids: Vec<String>,
    pub(super) record: Option<Record>,
}

impl Trainer<'_> {
    /// The accumulation of this step.
    pub(super) fn accumulation(&self) -> Accumulation {
        let accumulation = Accumulation::new(self.config.settings.batch_size);
        match self.config.loss_scaling {
            LossScaling::None => accumulation,
            _ => accumulation.with_loss_scale(self.state.position.loss_scale.factor()),
        }
    }

    /// The loss of the next step, but for KTO's reference point.
    pub(super) fn objective(&self) -> Objective {
        let objective = Objective::of(&self.config.settings);
        match self.config.settings.auto_beta {
            None => objective,
            Some(target) => {
                let numbers = self.base.latent_size.iter().product::<i64>() as f64;
                let margin = self.state.position.margin;
                objective.with_beta(margin.beta(target, objective.beta, numbers))
            }
        }
    }

    /// Computes the micro-batches of this rank and accumulates their gradients. Sets KTO's reference
    /// point, for which all pairs of the batch are predicted before the first backward pass.
    pub(super) fn micro_batches(
        &mut self,
        step: u64,
        scorer: usize,
        objective: &mut Objective,
        parts: &mut Vec<Option<MicroResult>>,
        times: &mut Times,
        stop: &StopFlag,
    ) -> Result<Computed> {
        let RunSettings { batch_size, micro_batch, .. } = self.config.settings;
        let count = batch_size / micro_batch / self.world.size() as u64;
        let mut surveyed = None;
        if objective.needs_reference_point() {
            let (batches, point) = self.survey(count, scorer, times, stop)?;
            surveyed = Some(batches.into_iter());
            *objective = objective.with_reference_point(point);
        }
        let mut accumulation = self.accumulation();
        let mut pairs = 0;
        for _ in 0..count {
            runkit::fault::point("micro-batch");
            stop.check()?;
            let prepared = match &mut surveyed {
                Some(surveyed) => surveyed.next().flatten(),
                None => self.prepare(scorer, times)?.map(|batch| (batch, None)),
            };
            let Some((batch, reference)) = prepared else {
                parts.push(None);
                continue;
            };
            pairs += batch.pair_ids.len() as u64;
            let result =
                self.micro_batch(batch, reference, objective, step, &mut accumulation, times)?;
            parts.push(Some(result));
        }
        Ok(Computed { weight: accumulation.weight(), pairs })
    }

    /// Predicts all pairs of this rank without gradients. Returns its micro-batches with what the
    /// reference model predicts for them, and KTO's reference point of all ranks.
    fn survey(
        &mut self,
        count: u64,
        scorer: usize,
        times: &mut Times,
        stop: &StopFlag,
    ) -> Result<(Vec<Option<Surveyed>>, f64)> {
        let mut batches = Vec::new();
        let gains = self.survey_own(count, scorer, &mut batches, times, stop);
        let ranks = exchanging(self.world, times, || ranks::gather(self.world, gains))?;
        // In order of position, so that the sum is that of one process.
        let micro_batches = usize::try_from(count)?;
        let ordered = (0..micro_batches)
            .flat_map(|micro| ranks.iter().filter_map(move |rank| rank.get(micro)))
            .flatten();
        let gains = ordered.map(|bits| f64::from(f32::from_bits(*bits)));
        Ok((batches, reference_point(gains)))
    }

    /// The gains of this rank's images, of each micro-batch, as the bits of f32 numbers.
    fn survey_own(
        &mut self,
        count: u64,
        scorer: usize,
        batches: &mut Vec<Option<Surveyed>>,
        times: &mut Times,
        stop: &StopFlag,
    ) -> Result<Vec<Vec<u32>>> {
        let mut gains = Vec::new();
        for _ in 0..count {
            stop.check()?;
            let Some(batch) = self.prepare(scorer, times)? else {
                batches.push(None);
                gains.push(Vec::new());
                continue;
            };
            let networks = &self.state.networks;
            let reference = networks.reference.as_ref();
            let reference = reference.context("the loss needs a reference model")?;
            let (own, reference) = timed(&mut times.forward, || {
                let (model, schedule) = (&networks.pipeline.unet, &networks.schedule);
                step::gains(model, reference, schedule, &batch)
            })?;
            let own = Vec::<f32>::try_from(&own.f_to_device(Device::Cpu)?)?;
            gains.push(own.into_iter().map(f32::to_bits).collect());
            batches.push(Some((batch, Some(reference))));
        }
        Ok(gains)
    }

    /// The next micro-batch, on the device; `None` if all of its pairs are skipped.
    fn prepare(&mut self, scorer: usize, times: &mut Times) -> Result<Option<MicroBatch>> {
        let examples = self.examples(times)?;
        if examples.is_empty() {
            return Ok(None);
        }
        let config = self.config;
        // Lets tests simulate that the device is out of memory.
        runkit::fault::error_at("memory")
            .map_err(|_| NetworkError::Torch(TchError::Torch("out of memory".to_owned())))?;
        let builder = MicroBatchBuilder {
            base: self.base,
            seed: config.settings.seed,
            caption_dropout: config.settings.caption_dropout,
        };
        timed(&mut times.encode, || builder.build(&self.state.networks, examples, scorer)).map(Some)
    }

    /// The next pairs of a micro-batch, without the skipped ones.
    fn examples(&mut self, times: &mut Times) -> Result<Vec<Example<PreferenceTarget>>> {
        let mut examples = Vec::new();
        for _ in 0..self.config.settings.micro_batch {
            let example = timed(&mut times.data, || self.stream.next())?;
            if !example.label.is_skipped {
                examples.push(example.map(|label| label.target));
            }
        }
        Ok(examples)
    }

    /// Computes one micro-batch and accumulates its gradients.
    fn micro_batch(
        &mut self,
        batch: MicroBatch,
        reference: Option<ReferencePrediction>,
        objective: &Objective,
        step: u64,
        accumulation: &mut Accumulation,
        times: &mut Times,
    ) -> Result<MicroResult> {
        let config = self.config;
        let networks = &self.state.networks;
        let predictions = timed(&mut times.forward, || {
            let (model, schedule) = (&networks.pipeline.unet, &networks.schedule);
            match (reference, &networks.reference) {
                (None, Some(reference)) => {
                    step::predict(model, reference, schedule, objective, &batch)
                }
                (predicted, _) => {
                    let inputs = Inputs::of(schedule, &batch)?;
                    step::predict_beside(model, predicted, &inputs, objective, &batch)
                }
            }
        })?;
        if !self.world.is_alone() && self.gradients.is_none() {
            self.gradients = Some(FlatGradients::attach(networks.pipeline.unet.parameters())?);
        }
        timed(&mut times.backward, || accumulation.add(&batch, &predictions))?;
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
        let record = match step <= config.settings.record_steps {
            true => Some(Record::of(&batch, &predictions)?),
            false => None,
        };
        Ok(MicroResult { numbers: Tensor::f_stack(&rows, 0)?, pair_ids: batch.pair_ids, record })
    }
}
