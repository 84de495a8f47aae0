//! The scale of the loss in f16, so that small gradients do not round to zero.
//!
//! The loss is multiplied by the scale before the backward pass, and the gradients are divided by
//! it in f32 afterwards. A dynamic scale is that of `torch.amp.GradScaler` (pytorch/pytorch
//! `torch/amp/grad_scaler.py` at v2.11.0): a step whose gradients overflow changes no weight and
//! halves the scale; 2,000 steps without an overflow double it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The start of a dynamic scale: 2^16.
const START: i32 = 16;
/// Steps without an overflow after which a dynamic scale doubles.
const GROWTH_INTERVAL: u32 = 2000;
/// Exponents of f32.
const EXPONENTS: std::ops::RangeInclusive<i32> = 0..=127;

/// The value of `--loss-scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossScaling {
    /// The loss is not scaled.
    None,
    /// Always 2 to the power of this.
    Fixed(i32),
    /// Adapts to the gradients, starting at 2 to the power of this.
    Dynamic(i32),
}

/// The text is not `none`, `dynamic`, `dynamic:START` or a power of two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--loss-scale: expected dynamic, dynamic:START, none or a power of two from 1 to 2^127, found \
     {0:?}; hint: dynamic, or 65536"
)]
pub struct UnknownLossScale(String);

impl FromStr for LossScaling {
    type Err = UnknownLossScale;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownLossScale(runkit::text::excerpt(text));
        match text {
            "none" => return Ok(Self::None),
            "dynamic" => return Ok(Self::Dynamic(START)),
            _ => {}
        }
        let (number, make): (_, fn(i32) -> Self) = match text.strip_prefix("dynamic:") {
            Some(start) => (start, Self::Dynamic),
            None => (text, Self::Fixed),
        };
        let scale: f64 = match number.strip_prefix("2^") {
            Some(exponent) => 2f64.powi(exponent.parse().map_err(|_| unknown())?),
            None => number.parse().map_err(|_| unknown())?,
        };
        let exponent = EXPONENTS.clone().find(|exponent| 2f64.powi(*exponent) == scale);
        exponent.map(make).ok_or_else(unknown)
    }
}

impl fmt::Display for LossScaling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Fixed(exponent) => write!(formatter, "2^{exponent}"),
            Self::Dynamic(exponent) => write!(formatter, "dynamic:2^{exponent}"),
        }
    }
}

/// The scale between two steps, part of a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The scale is 2 to the power of this.
    exponent: i32,
    /// Steps since the last overflow or doubling.
    steps: u32,
}

impl LossScale {
    /// The scale of a run's first step.
    pub fn first(scaling: LossScaling) -> Self {
        let exponent = match scaling {
            LossScaling::None => 0,
            LossScaling::Fixed(exponent) | LossScaling::Dynamic(exponent) => exponent,
        };
        Self { exponent, steps: 0 }
    }

    /// The factor of the loss.
    pub fn factor(self) -> f64 {
        2f64.powi(self.exponent)
    }

    /// The scale after a step whose gradients are finite.
    #[must_use]
    pub fn grown(self, scaling: LossScaling) -> Self {
        match scaling {
            LossScaling::Dynamic(_) if self.steps + 1 == GROWTH_INTERVAL => {
                Self { exponent: (self.exponent + 1).min(*EXPONENTS.end()), steps: 0 }
            }
            LossScaling::Dynamic(_) => Self { steps: self.steps + 1, ..self },
            _ => self,
        }
    }

    /// The scale after a step whose gradients overflow: half of it. `None` if the scale is not
    /// dynamic or is already 1: then the gradients are not finite by themselves.
    #[must_use]
    pub fn shrunk(self, scaling: LossScaling) -> Option<Self> {
        let dynamic = matches!(scaling, LossScaling::Dynamic(_));
        (dynamic && self.exponent > 0).then_some(Self { exponent: self.exponent - 1, steps: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for (text, expected) in [
            ("none", LossScaling::None),
            ("dynamic", LossScaling::Dynamic(16)),
            ("dynamic:65536", LossScaling::Dynamic(16)),
            ("1024", LossScaling::Fixed(10)),
            ("2^10", LossScaling::Fixed(10)),
            ("1", LossScaling::Fixed(0)),
        ] {
            assert_eq!(text.parse::<LossScaling>(), Ok(expected));
            assert_eq!(expected.to_string().parse::<LossScaling>(), Ok(expected));
        }
        for text in ["", "0", "-2", "1000", "2^128", "2^x", "dynamic:3", "auto", "inf", "NaN"] {
            let error = text.parse::<LossScaling>().unwrap_err().to_string();
            assert!(error.contains("expected dynamic"), "{text}: {error}");
        }
    }

    #[test]
    fn a_dynamic_scale_halves_at_overflow_and_doubles_after_two_thousand_steps() {
        let dynamic = LossScaling::Dynamic(1);
        let mut scale = LossScale::first(dynamic);
        for _ in 0..1999 {
            scale = scale.grown(dynamic);
        }
        assert_eq!(scale.factor(), 2.0);
        assert_eq!(scale.grown(dynamic).factor(), 4.0);
        // An overflow starts the count again.
        scale = scale.shrunk(dynamic).unwrap().grown(dynamic);
        assert_eq!(scale, LossScale { exponent: 0, steps: 1 });
        assert_eq!(scale.shrunk(dynamic), None);
        let fixed = LossScaling::Fixed(4);
        let scale = LossScale::first(fixed);
        assert_eq!((scale.grown(fixed), scale.shrunk(fixed)), (scale, None));
    }
}
