//! Statistics of the numbers of a step.

/// Mean, standard deviation and quantiles of some numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The standard deviation (of the population, not of a sample).
    pub std: f64,
    /// The quantiles 5, 25, 50, 75 and 95 %, linearly interpolated.
    pub quantiles: [f64; 5],
}

impl Summary {
    /// Statistics of `numbers`; zeros if it is empty.
    pub fn of(numbers: &[f64]) -> Self {
        let count = numbers.len().max(1) as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quantile = |fraction: f64| {
            let position = fraction * sorted.len().saturating_sub(1) as f64;
            let (low, part) = (position.floor(), position.fract());
            // The cast is exact: an index is neither negative nor near 2⁵³.
            let at = |index: f64| sorted.get(index as usize).or(sorted.last()).copied();
            let (low, high) = (at(low).unwrap_or(0.0), at(low + 1.0).unwrap_or(0.0));
            low + (high - low) * part
        };
        Self {
            mean,
            std: (squares / count).sqrt(),
            quantiles: [0.05, 0.25, 0.5, 0.75, 0.95].map(quantile),
        }
    }
}

/// The weighted mean; 0 if the weights sum to 0.
pub fn weighted_mean(numbers: &[f64], weights: &[f64]) -> f64 {
    let total: f64 = weights.iter().sum();
    let sum: f64 = numbers.iter().zip(weights).map(|(number, weight)| number * weight).sum();
    if total > 0.0 { sum / total } else { 0.0 }
}

/// Mean errors of the chosen and of the rejected images. Each image counts as much as the labels
/// say that it is the chosen one: `probability` is that of image 0.
#[doc(alias = "chosen")]
#[doc(alias = "rejected")]
pub fn chosen_and_rejected(probability: &[f64], first: &[f64], second: &[f64]) -> [f64; 2] {
    let count = probability.len().max(1) as f64;
    let mut sums = [0.0; 2];
    for ((p, first), second) in probability.iter().zip(first).zip(second) {
        sums[0] += p * first + (1.0 - p) * second;
        sums[1] += (1.0 - p) * first + p * second;
    }
    sums.map(|sum| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_that_of_numpy() {
        // numpy.quantile([4, 1, 3, 2], [.05, .25, .5, .75, .95]), .mean(), .std()
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(summary.mean, 2.5);
        assert!((summary.std - 1.118_033_988_749_895).abs() < 1e-15);
        let expected = [1.15, 1.75, 2.5, 3.25, 3.85];
        for (found, expected) in summary.quantiles.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{summary:?}");
        }
        assert_eq!(Summary::of(&[]).quantiles, [0.0; 5]);
        assert_eq!(Summary::of(&[7.0]).quantiles, [7.0; 5]);
    }

    #[test]
    fn chosen_images_follow_the_labels() {
        let [chosen, rejected] =
            chosen_and_rejected(&[1.0, 0.0, 0.5], &[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
        assert!((chosen - (1.0 + 5.0 + 4.5) / 3.0).abs() < 1e-12);
        assert!((rejected - (4.0 + 2.0 + 4.5) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn weights_count() {
        assert_eq!(weighted_mean(&[1.0, 4.0], &[3.0, 1.0]), 1.75);
        assert_eq!(weighted_mean(&[1.0], &[0.0]), 0.0);
    }
}
