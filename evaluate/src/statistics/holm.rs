//! Holm's correction for many tests.

/// The p-values of one table, corrected so that the chance of a single false claim in all of it
/// stays below the level (Holm 1979), as
/// `statsmodels.stats.multitest.multipletests(method="holm")`.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = p_values.iter().copied().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut corrected = vec![1.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, (number, p_value)) in order.into_iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_value).min(1.0);
        if let Some(corrected) = corrected.get_mut(number) {
            *corrected = largest;
        }
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::holm;

    #[test]
    fn the_textbook_example() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-15, "{corrected:?}");
        }
        assert_eq!(holm(&[]), [0.0; 0]);
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }
}
