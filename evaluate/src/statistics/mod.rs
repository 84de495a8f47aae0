//! The statistics beside every win rate: pure functions of counts or of one value a prompt, because
//! a prompt is the unit of inference.

mod bootstrap;
mod holm;
mod proportion;
mod sign_test;

pub use bootstrap::{Resampled, Resamples, interval};
pub use holm::holm;
pub use proportion::{minimum_detectable_effect, wilson};
pub use sign_test::sign_test;

/// How many of all pairs (an image of A, an image of B) A wins, and how many are equal: the
/// U-statistic of P(A > B), without the inflation that comparing maxima has.
pub fn all_pairs(a: &[f32], b: &[f32]) -> (usize, usize) {
    let count = |wanted: fn(&f32, &f32) -> bool| {
        a.iter().map(|a| b.iter().filter(|b| wanted(a, b)).count()).sum()
    };
    (count(|a, b| a > b), count(|a, b| a == b))
}

#[cfg(test)]
mod tests {
    use super::all_pairs;

    #[test]
    fn pairs_are_counted_as_the_definition_says() {
        assert_eq!(all_pairs(&[1.0, 3.0], &[0.0, 1.0, 2.0, 3.0]), (4, 2));
        assert_eq!(all_pairs(&[2.0], &[2.0]), (0, 1));
        assert_eq!(all_pairs(&[], &[2.0]), (0, 0));
    }
}
