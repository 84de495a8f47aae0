//! Power of a proportion of prompts. Its interval is [`wilson`].

use runkit::statistics::Z_TWO_SIDED_5_PERCENT;
pub use runkit::statistics::wilson;

/// The quantile of the standard normal distribution at 0.8.
const Z_POWER_80_PERCENT: f64 = 0.841_621_233_572_914_3;

/// The minimum detectable effect: the smallest distance of a win rate from one half that a
/// two-sided test at 5 % finds with 80 % power in `count` prompts, by the normal approximation; at
/// most one half.
pub fn minimum_detectable_effect(count: u64) -> f64 {
    let z = Z_TWO_SIDED_5_PERCENT + Z_POWER_80_PERCENT;
    (z * 0.5 / (count as f64).sqrt()).min(0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample sizes behind the paper's tables, and those of the usual sets of prompts.
    #[test]
    fn effects_that_the_usual_sample_sizes_detect() {
        let points = |count| format!("{:.1}", 100.0 * minimum_detectable_effect(count));
        let sizes = [100, 150, 297, 500, 1129, 1632];
        assert_eq!(sizes.map(points), ["14.0", "11.4", "8.1", "6.3", "4.2", "3.5"]);
        assert_eq!((minimum_detectable_effect(0), minimum_detectable_effect(1)), (0.5, 0.5));
    }
}
