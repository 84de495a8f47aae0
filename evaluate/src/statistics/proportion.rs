//! Interval and power of a proportion of prompts.

/// The quantile of the standard normal distribution at 0.975.
const Z_TWO_SIDED_5_PERCENT: f64 = 1.959_963_984_540_054;
/// The quantile at 0.8.
const Z_POWER_80_PERCENT: f64 = 0.841_621_233_572_914_3;

/// Wilson's 95 % score interval of a proportion `rate` (0 to 1) of `count` prompts, as
/// `statsmodels.stats.proportion.proportion_confint(method="wilson")`. Without a
/// prompt it is 0 to 1.
///
/// The rate may contain half of the ties. A tie has less variance than a win or a loss, so the
/// interval is on the safe side.
pub fn wilson(rate: f64, count: u64) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (count as f64, Z_TWO_SIDED_5_PERCENT);
    let shrink = 1.0 + z * z / n;
    let centre = (rate + z * z / (2.0 * n)) / shrink;
    let half = z / shrink * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt();
    // The interval contains the rate, also after rounding at 0 and 1.
    ((centre - half).max(0.0).min(rate), (centre + half).min(1.0).max(rate))
}

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

    #[test]
    fn intervals_stay_inside_0_and_1_and_are_symmetric() {
        assert_eq!(wilson(0.5, 0), (0.0, 1.0));
        for count in [1, 2, 297, 100_000] {
            for rate in [0.0, 0.25, 0.5, 0.999, 1.0] {
                let ((low, high), (other_low, other_high)) =
                    (wilson(rate, count), wilson(1.0 - rate, count));
                assert!(0.0 <= low && low <= rate && rate <= high && high <= 1.0);
                assert!((low - (1.0 - other_high)).abs() < 1e-12, "{rate} of {count}");
                assert!((high - (1.0 - other_low)).abs() < 1e-12, "{rate} of {count}");
            }
        }
    }
}
