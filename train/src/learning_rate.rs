//! The learning rate over the steps of a run.
//!
//! Names and values are those of huggingface/diffusers `src/diffusers/optimization.py`
//! (`get_scheduler`) at v0.42.1. Steps are optimizer steps counted from zero: with warm-up, the
//! learning rate of the first update is zero.

use std::f64::consts::PI;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The end of `polynomial`, whatever its start.
const POLYNOMIAL_END: f64 = 1e-7;

/// The shape of the learning rate over the steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// One value, without warm-up.
    Constant,
    /// Rises from zero, then one value.
    #[default]
    #[value(alias = "constant_with_warmup")]
    #[serde(alias = "constant_with_warmup")]
    ConstantWithWarmup,
    /// Rises from zero, then falls linearly to zero at the last step.
    Linear,
    /// Rises from zero, then falls in half a cosine to zero at the last step.
    Cosine,
    /// Like `cosine`, and zero from there on.
    #[value(alias = "cosine_with_restarts")]
    #[serde(alias = "cosine_with_restarts")]
    CosineWithRestarts,
    /// Rises from zero, then falls linearly to 1e-7 at the last step.
    Polynomial,
}

impl Schedule {
    /// Whether the rate falls towards the last step.
    pub fn falls(self) -> bool {
        !matches!(self, Self::Constant | Self::ConstantWithWarmup)
    }
}

/// A learning rate is impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LearningRateError {
    /// The peak is negative or not finite.
    #[error("the learning rate is {0:e}, expected a finite number that is not negative")]
    Rate(f64),
    /// A polynomial decay ends above where it starts.
    #[error(
        "the polynomial schedule ends at {POLYNOMIAL_END:e}, expected a learning rate above that, \
         found {0:e}\nhint: choose another schedule, such as linear"
    )]
    PolynomialEnd(f64),
    /// The learning rate would never reach its peak.
    #[error(
        "warm-up takes {warmup_steps} steps of {training_steps}, expected fewer than all\n\
         hint: lower the warm-up steps, or choose constant-with-warmup"
    )]
    Warmup {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// Steps of the run.
        training_steps: u64,
    },
}

/// The learning rate of every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    schedule: Schedule,
    peak: f64,
    warmup_steps: u64,
    training_steps: u64,
}

impl LearningRate {
    /// A schedule that rises to `peak` over `warmup_steps` (which `constant` ignores), and from
    /// there covers the rest of `training_steps`.
    ///
    /// # Errors
    /// If the peak is negative or not finite, or a falling schedule would have no step left to
    /// fall, or would rise.
    pub fn new(
        schedule: Schedule,
        peak: f64,
        warmup_steps: u64,
        training_steps: u64,
    ) -> Result<Self, LearningRateError> {
        if !peak.is_finite() || peak < 0.0 {
            return Err(LearningRateError::Rate(peak));
        }
        if schedule == Schedule::Polynomial && peak <= POLYNOMIAL_END {
            return Err(LearningRateError::PolynomialEnd(peak));
        }
        if schedule.falls() && warmup_steps >= training_steps {
            return Err(LearningRateError::Warmup { warmup_steps, training_steps });
        }
        Ok(Self { schedule, peak, warmup_steps, training_steps })
    }

    /// Steps over which the learning rate rises; 0 for a schedule without warm-up.
    pub fn warmup_steps(&self) -> u64 {
        if self.schedule == Schedule::Constant { 0 } else { self.warmup_steps }
    }

    /// Whether the learning rate of a step depends on the number of steps.
    pub fn falls(&self) -> bool {
        self.schedule.falls()
    }

    /// The highest learning rate.
    pub fn peak(&self) -> f64 {
        self.peak
    }

    /// The learning rate of the update after `step` earlier ones.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.multiplier(step)
    }

    /// The learning rate as a fraction of the peak.
    pub fn multiplier(&self, step: u64) -> f64 {
        if self.schedule == Schedule::Constant {
            return 1.0;
        }
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let falling_steps = self.training_steps.saturating_sub(self.warmup_steps) as f64;
        let progress = (step - self.warmup_steps) as f64 / falling_steps.max(1.0);
        match self.schedule {
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
            Schedule::Linear => {
                let left = self.training_steps as f64 - step as f64;
                (left / falling_steps.max(1.0)).max(0.0)
            }
            Schedule::Cosine => half_wave(progress),
            // One restart, as diffusers has it without `num_cycles`: half a cosine that stays at
            // its end.
            Schedule::CosineWithRestarts if progress >= 1.0 => 0.0,
            Schedule::CosineWithRestarts => half_wave(progress),
            Schedule::Polynomial if step > self.training_steps => POLYNOMIAL_END / self.peak,
            Schedule::Polynomial => {
                let range = self.peak - POLYNOMIAL_END;
                // The first power, as diffusers has it without `power`.
                (range * (1.0 - progress) + POLYNOMIAL_END) / self.peak
            }
        }
    }
}

/// A cosine from one at 0 to zero at 1.
fn half_wave(progress: f64) -> f64 {
    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `s = get_scheduler(name, AdamW([p], lr=1.28e-6), num_warmup_steps=4,
    /// num_training_steps=13)`, then 15 times the rate before `o.step(); s.step()`: diffusers
    /// 0.42.1. All rise alike over the first four.
    #[test]
    fn rates_are_those_of_diffusers() {
        let rise = [0.0, 3.2e-7, 6.4e-7, 9.600000000000001e-7, 1.28e-6];
        let cases: [(Schedule, [f64; 10]); 5] = [
            (Schedule::ConstantWithWarmup, [1.28e-6; 10]),
            (
                Schedule::Linear,
                [
                    1.1377777777777777e-6,
                    9.955555555555556e-7,
                    8.533333333333334e-7,
                    7.111111111111112e-7,
                    5.688888888888889e-7,
                    4.266666666666667e-7,
                    2.8444444444444443e-7,
                    1.4222222222222222e-7,
                    0.0,
                    0.0,
                ],
            ),
            (
                Schedule::Cosine,
                [
                    1.2414032773029814e-6,
                    1.1302684435961458e-6,
                    9.600000000000001e-7,
                    7.511348337068356e-7,
                    5.288651662931647e-7,
                    3.2000000000000017e-7,
                    1.4973155640385415e-7,
                    3.8596722697018676e-8,
                    0.0,
                    3.859672269701861e-8,
                ],
            ),
            (
                Schedule::CosineWithRestarts,
                [
                    1.2414032773029814e-6,
                    1.1302684435961458e-6,
                    9.600000000000001e-7,
                    7.511348337068356e-7,
                    5.288651662931647e-7,
                    3.2000000000000017e-7,
                    1.4973155640385415e-7,
                    3.8596722697018676e-8,
                    0.0,
                    0.0,
                ],
            ),
            (
                Schedule::Polynomial,
                [
                    1.1488888888888891e-6,
                    1.0177777777777778e-6,
                    8.866666666666668e-7,
                    7.555555555555556e-7,
                    6.244444444444445e-7,
                    4.933333333333334e-7,
                    3.622222222222222e-7,
                    2.3111111111111118e-7,
                    1e-7,
                    1e-7,
                ],
            ),
        ];
        for (schedule, fall) in cases {
            let rate = LearningRate::new(schedule, 1.28e-6, 4, 13).unwrap();
            for (step, expected) in (0_u64..).zip(rise.iter().chain(&fall)) {
                let found = rate.at(step);
                assert!(
                    (found - expected).abs() <= 1e-15 * 1.28e-6,
                    "{schedule:?}, step {step}: {found:e} for {expected:e}"
                );
            }
        }
        let constant = LearningRate::new(Schedule::Constant, 1.28e-6, 4, 13).unwrap();
        assert!((0..20).all(|step| constant.at(step) == 1.28e-6));
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        for schedule in Schedule::value_variants() {
            let rate = LearningRate::new(*schedule, 1e-4, 0, 10).unwrap();
            assert!((rate.at(0) - 1e-4).abs() < 1e-18, "{schedule:?}");
        }
    }

    #[test]
    fn impossible_rates_are_refused() {
        let refused = |schedule, peak, warmup, steps| {
            LearningRate::new(schedule, peak, warmup, steps).unwrap_err().to_string()
        };
        assert!(refused(Schedule::Constant, f64::NAN, 0, 1).contains("finite"));
        assert!(refused(Schedule::Constant, -1e-8, 0, 1).contains("negative"));
        assert!(refused(Schedule::Polynomial, 1e-8, 0, 1).contains("hint"));
        assert!(refused(Schedule::Linear, 1e-8, 10, 10).contains("hint"));
        // A run shorter than its warm-up is a usual first try.
        assert!(LearningRate::new(Schedule::ConstantWithWarmup, 1e-8, 500, 10).is_ok());
    }

    #[test]
    fn names_are_read_as_written_and_as_diffusers_writes_them() {
        for schedule in Schedule::value_variants() {
            let name = schedule.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(serde_json::to_value(schedule).unwrap(), name);
            let theirs = name.replace('-', "_");
            assert_eq!(Schedule::from_str(&theirs, false), Ok(*schedule));
            assert_eq!(serde_json::from_value::<Schedule>(theirs.into()).unwrap(), *schedule);
        }
    }
}
