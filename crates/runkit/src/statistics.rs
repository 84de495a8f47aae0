//! The interval that every rate of this workspace is reported with.

/// The quantile of the standard normal distribution at 0.975.
pub const Z_TWO_SIDED_5_PERCENT: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % score interval of a proportion `rate` (0 to 1) of `count` cases, as
/// `statsmodels.stats.proportion.proportion_confint(method="wilson")`. Without a
/// case it is 0 to 1.
///
/// The rate may contain half of the ties. A tie has less variance than a win or a loss, so the
/// interval is on the safe side.
#[must_use]
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

#[cfg(test)]
mod tests {
    use super::*;

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
