//! What can go wrong between processes.

use std::time::Duration;

/// Processes cannot work together, or no longer can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DistributedError {
    /// The launcher does not say where the processes meet.
    #[error(
        "{world} processes were started and MASTER_ADDR and MASTER_PORT are not set, so they cannot find \
         each other\nhint: start them with torchrun --nproc-per-node {world} --no-python, or set both"
    )]
    NoStore {
        /// How many processes.
        world: usize,
    },
    /// No store answers at the launcher's address, or it no longer does.
    #[error("{server}, which serves the store at {host}:{port}, {what}")]
    NoAnswer {
        /// Who serves it: "rank 0", or "torchrun's agent".
        server: &'static str,
        /// `MASTER_ADDR`.
        host: String,
        /// `MASTER_PORT`.
        port: u16,
        /// What was seen: "does not answer within 600 s", "is gone".
        what: String,
    },
    /// A rank is gone or hangs.
    #[error("rank {rank} of {world} {what}")]
    LostRank {
        /// The rank.
        rank: usize,
        /// How many ranks there are.
        world: usize,
        /// What is known of it: "has died", "does not answer for 600 s".
        what: String,
    },
    /// All ranks live, and an operation did not end in time.
    #[error("{what} did not end within {} s", limit.as_secs())]
    TimedOut {
        /// The operation.
        what: String,
        /// The time limit.
        limit: Duration,
    },
    /// Another rank failed and says why.
    #[error("rank {rank}: {message}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error.
        message: String,
    },
    /// Ranks hold different values where all must be equal.
    #[error("{0}")]
    Differ(String),
    /// c10d or NCCL failed.
    #[error("{operation}: {reason}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// The library's message.
        reason: String,
    },
}
