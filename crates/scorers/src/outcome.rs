//! What a scorer gives for an image and its caption: a number, or why it has none.

/// The score of one scorer for an image and its caption: a finite number, larger is better, or why
/// this scorer has none. It says nothing about the other scorers of the set.
pub type Score = Result<f32, ScoreFailure>;

/// Why a scorer has no score for an image and its caption.
///
/// Its text follows the scorer's name: "gave NaN", "gave no answer within 60 s".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScoreFailure(String);

impl ScoreFailure {
    /// A failure for this reason, in the words of [`ScoreFailure`].
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0
    }
}

/// The score that a network's output is: NaN and infinities are failures.
///
/// # Errors
/// The failure that names the number.
pub fn score_of(number: f32) -> Score {
    if number.is_finite() { Ok(number) } else { Err(ScoreFailure(format!("gave {number}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finite_numbers_are_scores() {
        assert_eq!(score_of(-0.5), Ok(-0.5));
        for (number, reason) in
            [(f32::NAN, "gave NaN"), (f32::INFINITY, "gave inf"), (f32::NEG_INFINITY, "gave -inf")]
        {
            assert_eq!(score_of(number).unwrap_err().reason(), reason);
        }
    }
}
