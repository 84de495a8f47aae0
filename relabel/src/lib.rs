//! `relabel`: from image pairs to a Parquet file of votes and consensus labels.
//!
//! Several reward models score both images of a pair, each score difference is a vote (Equation 6),
//! and the sign of the sum is the consensus (Equation 7). Where to find what:
//!
//! | in the paper | module |
//! |---|---|
//! | votes, majority, ties | [`vote`] |
//! | scoring of a whole collection | [`score`]: [`score::plan`] → parts, one per input file → merge |
//! | pairs of any layout as our Parquet | [`convert`] |
//! | who agrees with whom | [`inspect`] |
//!
//! [`cli`] is the command line as typed, [`commands`] gives it meaning.
//!
//! ```no_run
//! use relabel::vote::{consensus, vote};
//!
//! // CLIP and PickScore prefer image 0, HPS prefers image 1.
//! let votes = [vote(0.31, 0.27), vote(0.26, 0.28), vote(21.9, 20.4)];
//! assert_eq!(votes, [1, -1, 1]);
//! assert_eq!(consensus(votes.iter().sum()), 1);
//! ```

pub mod cli;
pub mod commands;
pub mod convert;
pub mod inspect;
pub mod score;
pub mod vote;
