//! Equations 6 and 7 of the paper: what the vote columns and the column `consensus` hold.

/// Equation 6: +1 when the first image scores at least as high as the second, otherwise −1.
///
/// An exact tie of scores is a vote for the first image. Both scores must be finite; a NaN never
/// reaches this function, because a scorer that gave one has no score there and does not vote.
#[must_use]
pub fn vote(score_0: f32, score_1: f32) -> i8 {
    if score_0 >= score_1 { 1 } else { -1 }
}

/// Equation 7: the sign of the sum of votes; 0 is a tie.
#[must_use]
pub fn consensus(vote_sum: i8) -> i8 {
    vote_sum.signum()
}
