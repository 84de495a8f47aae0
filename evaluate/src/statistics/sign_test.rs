//! The exact sign test.

/// Numbers are scaled by this power of two, so that none of them leaves the range of f64.
const SCALE_BITS: i32 = 512;

/// The exact two-sided sign test: how likely so uneven a split of `wins + losses` prompts is when
/// both sides are equally likely (ties are dropped), as `scipy.stats.binomtest(wins, wins +
/// losses)`.
///
/// The sum over the tail is taken exactly, term by term, relative to its largest term; for the
/// 100,000 prompts of no evaluation yet that is still below a millisecond.
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    let (few, count) = (wins.min(losses), wins + losses);
    if wins == losses {
        return 1.0;
    }
    // The largest term, C(count, few) / 2^count, as `term * 2^exponent`.
    let scale = 2_f64.powi(SCALE_BITS);
    let (mut term, mut exponent) = (1.0_f64, -i64::try_from(count).unwrap_or(i64::MAX));
    for i in 1..=few {
        term *= (count - few + i) as f64 / i as f64;
        if term > scale {
            term /= scale;
            exponent += i64::from(SCALE_BITS);
        }
    }
    // C(count, k - 1) = C(count, k) * k / (count - k + 1)
    let (mut sum, mut relative) = (1.0_f64, 1.0_f64);
    for k in (1..=few).rev() {
        relative *= k as f64 / (count - k + 1) as f64;
        sum += relative;
        if relative < sum * f64::EPSILON / 16.0 {
            break;
        }
    }
    // In steps, since the power alone may be too small for f64 where the product is not.
    let mut p_value = 2.0 * term * sum;
    while exponent < 0 && p_value > 0.0 {
        let step = exponent.max(-i64::from(SCALE_BITS));
        p_value *= 2_f64.powi(i32::try_from(step).unwrap_or(-SCALE_BITS));
        exponent -= step;
    }
    p_value.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::sign_test;

    #[test]
    fn small_numbers_by_hand() {
        assert_eq!(sign_test(0, 0), 1.0);
        assert_eq!(sign_test(7, 7), 1.0);
        assert_eq!(sign_test(0, 1), 1.0);
        assert_eq!(sign_test(5, 0), 2.0 / 32.0);
        // 1 + 10 + 45 of 1024, on both sides.
        assert_eq!(sign_test(8, 2), 112.0 / 1024.0);
        assert_eq!(sign_test(2, 8), sign_test(8, 2));
    }

    #[test]
    fn certainty_is_0_and_not_nan() {
        assert_eq!(sign_test(100_000, 0), 0.0);
        assert!(sign_test(1000, 0) > 0.0);
    }
}
