//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds": linear multistep,
//! after Runge-Kutta steps if `skip_prk_steps` is false. huggingface/diffusers
//! `src/diffusers/schedulers/scheduling_pndm.py` at v0.42.1.

use std::collections::VecDeque;

use tch::{TchError, Tensor};

use super::config::{PredictionType, ScheduleConfig};
use super::kind::{SamplerKind, ScheduleError};
use super::noise;
use super::steps::{AlphaTable, Alphas, StepTable, finite, weighted_sum};

const KIND: SamplerKind = SamplerKind::Pndm;

/// The number of predictions that the multistep method combines.
const ORDER: usize = 4;

/// Calls of one Runge-Kutta step.
const RUNGE_KUTTA_CALLS: usize = 4;

#[derive(Debug)]
pub(super) struct Pndm {
    calls: Vec<Call>,
    prediction_type: PredictionType,
    /// The latest predictions, the newest first.
    predictions: VecDeque<Tensor>,
    /// The sample at the start of a step that takes several calls.
    start: Option<Tensor>,
    /// The weighted sum of the predictions of a Runge-Kutta step.
    sum: Option<Tensor>,
}

/// The use of the prediction of one call, and the weights of its step.
#[derive(Debug, Clone, Copy)]
struct Call {
    rule: Rule,
    /// √ᾱ and √(1−ᾱ).
    signal: f32,
    noise: f32,
    /// The weights of formula (9): of the sample, of the prediction, and the divisor of the latter.
    keep: f32,
    change: f32,
    divisor: f32,
}

impl Call {
    fn new(rule: Rule, Alphas { now, next }: Alphas) -> Result<Self, TchError> {
        let product = now * (1.0 - now) * next;
        let [signal, noise, next_noise, keep, product] =
            noise::sqrt([now, 1.0 - now, 1.0 - next, next / now, product])?;
        let divisor = now * next_noise + product;
        Ok(Self { rule, signal, noise, keep, change: next - now, divisor })
    }
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// This call of a Runge-Kutta step, from 0.
    RungeKutta(usize),
    /// The first linear step: Euler's.
    First,
    /// The first step again from its start, with the mean of both predictions.
    Again,
    /// A linear step with the predictions so far, at most four.
    Linear,
}

impl Pndm {
    pub(super) fn new(
        config: &ScheduleConfig,
        steps: usize,
    ) -> Result<(StepTable, Self), ScheduleError> {
        let trained = config.num_train_timesteps;
        let alpha_table = AlphaTable::new(config, false, config.set_alpha_to_one.unwrap_or(false))?;
        let spaced = noise::timesteps(config, KIND, steps, trained)?;
        let stride = (trained / steps) as f64;
        // Each call: the timestep that the network reads, and the two timesteps between which the
        // sample moves.
        let mut calls: Vec<(Rule, f64, f64, f64)> = Vec::with_capacity(steps + 9);
        if config.skip_prk_steps {
            for (place, time) in spaced.iter().copied().enumerate() {
                if place == 0 {
                    calls.push((Rule::First, time, time, time - stride));
                    continue;
                }
                if place == 1 {
                    calls.push((Rule::Again, time, time + stride, time));
                }
                calls.push((Rule::Linear, time, time, time - stride));
            }
        } else {
            if spaced.len() < ORDER {
                let reason = format!(
                    "at least {ORDER} are needed to start with Runge-Kutta steps\n\
                     hint: set skip_prk_steps to true"
                );
                return Err(ScheduleError::Steps { sampler: KIND, steps, reason });
            }
            let half = (trained / steps / 2) as f64;
            for pair in spaced.windows(2).take(ORDER - 1) {
                let (time, next) = (pair[0], pair[1]);
                // The last of the four calls is at the next timestep.
                for (call, given) in [time, next + half, next + half, next].into_iter().enumerate()
                {
                    let end = if call % 2 == 0 { given - half } else { given };
                    calls.push((Rule::RungeKutta(call), given, time, end));
                }
            }
            for time in spaced.iter().copied().skip(ORDER - 1) {
                calls.push((Rule::Linear, time, time, time - stride));
            }
        }
        let mut rules = Vec::with_capacity(calls.len());
        let mut timesteps = Vec::with_capacity(calls.len());
        let mut levels = Vec::with_capacity(calls.len() + 1);
        let mut last = None;
        for (rule, given, from, to) in calls {
            let error = || ScheduleError::NotFinite { sampler: KIND, timestep: given };
            let alphas = alpha_table.between(from, to).ok_or_else(error)?;
            let call = Call::new(rule, alphas)?;
            finite(KIND, given, &[call.keep, call.divisor.recip()])?;
            rules.push(call);
            timesteps.push(given);
            levels.push(alpha_table.between(given, -1.0).ok_or_else(error)?.now);
            last = Some(alphas.next);
        }
        levels.extend(last);
        let table =
            StepTable { timesteps, sigmas: noise::sigmas(&levels)?, initial_noise_sigma: 1.0 };
        let method = Self {
            calls: rules,
            prediction_type: config.prediction_type,
            predictions: VecDeque::with_capacity(ORDER + 1),
            start: None,
            sum: None,
        };
        Ok((table, method))
    }

    pub(super) fn step(
        &mut self,
        model_output: &Tensor,
        index: usize,
        sample: &Tensor,
    ) -> Result<Tensor, TchError> {
        let call = self.calls[index];
        let output = match call.rule {
            Rule::RungeKutta(part) => {
                if part == 0 {
                    self.remember(model_output);
                    self.start = Some(sample.shallow_clone());
                    self.sum = None;
                }
                let weight = if part == 0 || part + 1 == RUNGE_KUTTA_CALLS { 6.0 } else { 3.0 };
                let mut sum = model_output.f_mul_scalar(1.0 / weight)?;
                if let Some(before) = &self.sum {
                    sum = before.f_add(&sum)?;
                }
                let sum = self.sum.insert(sum);
                if part + 1 == RUNGE_KUTTA_CALLS { sum } else { model_output }.shallow_clone()
            }
            Rule::First => {
                self.remember(model_output);
                self.start = Some(sample.shallow_clone());
                model_output.shallow_clone()
            }
            Rule::Again => match self.predictions.front() {
                Some(first) => model_output.f_add(first)?.f_div_scalar(2.0)?,
                None => model_output.shallow_clone(),
            },
            Rule::Linear => {
                self.remember(model_output);
                self.start = None;
                self.extrapolated()?
            }
        };
        let start = self.start.as_ref().unwrap_or(sample);
        let next = self.moved(start, call, &output)?;
        if matches!(call.rule, Rule::Again) {
            self.start = None;
        }
        Ok(next)
    }

    fn remember(&mut self, prediction: &Tensor) {
        self.predictions.truncate(ORDER - 1);
        self.predictions.push_front(prediction.shallow_clone());
    }

    /// The Adams-Bashforth sum of the predictions so far.
    fn extrapolated(&self) -> Result<Tensor, TchError> {
        let predictions: Vec<&Tensor> = self.predictions.iter().collect();
        match predictions[..] {
            [a, b, c, d, ..] => weighted_sum((55.0, a), &[(-59.0, b), (37.0, c), (-9.0, d)])?
                .f_mul_scalar(1.0 / 24.0),
            [a, b, c] => weighted_sum((23.0, a), &[(-16.0, b), (5.0, c)])?.f_div_scalar(12.0),
            [a, b] => weighted_sum((3.0, a), &[(-1.0, b)])?.f_div_scalar(2.0),
            [a] => Ok(a.shallow_clone()),
            [] => Err(TchError::Shape("no prediction yet".to_owned())),
        }
    }

    /// Formula (9) of the paper.
    fn moved(&self, sample: &Tensor, call: Call, output: &Tensor) -> Result<Tensor, TchError> {
        let epsilon = match self.prediction_type {
            PredictionType::Epsilon => output.shallow_clone(),
            PredictionType::VPrediction => {
                weighted_sum((call.signal, output), &[(call.noise, sample)])?
            }
        };
        let change =
            epsilon.f_mul_scalar(f64::from(call.change))?.f_div_scalar(f64::from(call.divisor))?;
        weighted_sum((call.keep, sample), &[(-1.0, &change)])
    }
}
