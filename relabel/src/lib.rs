//! `relabel`: from image pairs to a Parquet file of votes and consensus labels.
//!
//! Several reward models score both images of a pair, each score difference is a vote (Equation 6),
//! and the sign of the sum is the consensus (Equation 7). Where to find what:
//!
//! | sentence of the paper | module |
//! |---|---|
//! | votes, majority, ties | [`vote`] |
//! | scoring of a whole collection | [`score`]: [`score::plan`] → parts, one per input file → merge |
//! | who agrees with whom | [`inspect`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.

pub mod cli;
pub mod commands;
pub mod inspect;
pub mod score;
pub mod vote;
