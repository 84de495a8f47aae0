//! β that adapts to the margins, `--auto-beta`.
//!
//! The gradient of the loss of a pair whose chosen image is image 0 has the factor σ(−z). As the
//! model moves away from the reference model, z grows and the factor falls. With a target t, β is
//! such that at the running mean m̄ of |m| the factor is t: β/2·m̄ = log((1 − t)/t).
//!
//! As in bghira/SimpleTuner: m̄ ← 0.99·m̄ + 0.01·mean |m| and β = −2·logit(t)/m̄ within 1e-3 and 1,
//! there with errors summed over channels, height and width. Ours are means over them, so the bounds
//! are those times their number.

use serde::{Deserialize, Serialize};

/// What m̄ keeps of itself in a step.
const KEPT: f64 = 0.99;
/// The bounds of β if errors are sums.
const BOUNDS: [f64; 2] = [1e-3, 1.0];

/// m̄, the running mean of |m|, part of a checkpoint. It begins with the first mean that is not
/// zero; before that, β is `--beta`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunningMargin {
    /// The bits of the number, so that a resumed run has the very same.
    bits: u64,
}

impl RunningMargin {
    /// Whether no margin has counted yet.
    pub fn is_unset(&self) -> bool {
        self.bits == 0
    }

    /// m̄; 0 if no margin has counted yet.
    pub fn value(self) -> f64 {
        f64::from_bits(self.bits)
    }

    /// m̄ after a step whose mean of |m| is `mean`.
    #[must_use]
    pub fn after(self, mean: f64) -> Self {
        let value = match self.is_unset() {
            true => mean,
            false => KEPT * self.value() + (1.0 - KEPT) * mean,
        };
        // Zero and NaN do not count: a mean of equal networks says nothing.
        if value > 0.0 && value.is_finite() { Self { bits: value.to_bits() } } else { self }
    }

    /// β at which the gradient's factor is `target` (above 0, below one half) for a pair of this
    /// margin; `given` if no margin has counted yet. `numbers` are those of an image's latents.
    pub fn beta(self, target: f64, given: f64, numbers: f64) -> f64 {
        if self.is_unset() {
            return given;
        }
        let [least, most] = BOUNDS.map(|bound| bound * numbers);
        (2.0 * ((1.0 - target) / target).ln() / self.value()).clamp(least, most)
    }
}

/// The mean of |m| of pairs with these z at this β.
pub fn mean_margin(logits: &[f64], beta: f64) -> f64 {
    let sum: f64 = logits.iter().map(|logit| (2.0 * logit / beta).abs()).sum();
    sum / logits.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beta_holds_the_factor_of_the_gradient_at_its_target() {
        let margin = RunningMargin::default();
        assert!(margin.is_unset());
        assert_eq!(margin.beta(0.2, 5000.0, 16384.0), 5000.0);
        // Equal networks do not count, and neither does a step without a pair.
        assert_eq!(margin.after(0.0), margin);
        assert_eq!(margin.after(f64::NAN), margin);
        let margin = margin.after(4e-4);
        assert_eq!(margin.value(), 4e-4);
        let beta = margin.beta(0.2, 5000.0, 16384.0);
        let z = 0.5 * beta * 4e-4;
        assert!((1.0 / (1.0 + f64::exp(z)) - 0.2).abs() < 1e-12, "{z}");
        let next = margin.after(8e-4);
        assert!((next.value() - (0.99 * 4e-4 + 0.01 * 8e-4)).abs() < 1e-18);
        assert!(next.beta(0.2, 5000.0, 16384.0) < beta);
    }

    #[test]
    fn beta_stays_within_its_bounds() {
        let numbers = 4.0 * 64.0 * 64.0;
        let tiny = RunningMargin::default().after(1e-9);
        assert_eq!(tiny.beta(0.2, 1.0, numbers), numbers);
        let huge = RunningMargin::default().after(1e3);
        assert_eq!(huge.beta(0.2, 1.0, numbers), 1e-3 * numbers);
    }

    #[test]
    fn a_margin_survives_a_checkpoint_bit_for_bit() {
        let margin = RunningMargin::default().after(0.1 + 0.2).after(1.0 / 3.0);
        let text = serde_json::to_string(&margin).unwrap();
        assert_eq!(serde_json::from_str::<RunningMargin>(&text).unwrap(), margin);
    }

    #[test]
    fn the_margin_is_twice_z_over_beta() {
        assert!((mean_margin(&[1.0, -3.0], 100.0) - 0.04).abs() < 1e-15);
        assert_eq!(mean_margin(&[], 100.0), 0.0);
    }
}
