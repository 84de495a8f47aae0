//! The statistics equal scipy's, statsmodels' and numpy's
//! (`scripts/goldens/evaluation_statistics.py`).
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use evaluate::statistics::{holm, interval, sign_test, wilson};
use serde_json::Value;

fn golden(name: &str) -> Vec<Value> {
    let text = include_str!("fixtures/statistics.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    golden[name].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn close(found: f64, expected: f64, relative: f64) -> bool {
    // Below the smallest normal number the last bits are no longer there.
    found == expected || (found - expected).abs() <= relative * expected.abs() + 1e-300
}

#[test]
fn sign_tests_equal_scipys() {
    let mut largest = 0.0_f64;
    for case in golden("sign_test") {
        let [wins, losses, expected] = numbers(&case)[..] else { panic!("{case}") };
        let found = sign_test(wins as u64, losses as u64);
        if expected > 1e-300 {
            largest = largest.max((found - expected).abs() / expected);
        }
        assert!(close(found, expected, 1e-10), "{wins}:{losses} {found:e} {expected:e}");
        // What anyone looks at is equal to twelve places.
        assert!(expected < 1e-12 || close(found, expected, 1e-12), "{wins}:{losses} {found:e}");
    }
    println!("largest relative difference {largest:e}");
}

#[test]
fn wilson_intervals_equal_statsmodels() {
    for case in golden("wilson") {
        let [wins, count, low, high] = numbers(&case)[..] else { panic!("{case}") };
        let found = wilson(wins / count, count as u64);
        assert!(
            (found.0 - low).abs() < 1e-12 && (found.1 - high).abs() < 1e-12,
            "{case} {found:?}"
        );
    }
}

#[test]
fn holms_correction_equals_statsmodels() {
    for case in golden("holm") {
        let (p_values, expected) = (numbers(&case[0]), numbers(&case[1]));
        for (found, expected) in holm(&p_values).into_iter().zip(expected) {
            assert!(close(found, expected, 1e-12), "{found:e} {expected:e}");
        }
    }
}

#[test]
fn percentiles_equal_numpys() {
    for case in golden("percentiles") {
        let (low, high) = interval(numbers(&case[0]));
        for (found, expected) in [low, high].into_iter().zip(numbers(&case[1])) {
            assert!(close(found, expected, 1e-12), "{found} {expected}");
        }
    }
}
