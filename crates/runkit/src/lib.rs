//! What every long-running program of this workspace needs around its real work: durable files,
//! output locks, signals, exit codes, progress, logs, configuration, manifests and work shards.
//!
//! The crate knows nothing of machine learning, images or Parquet. Its promises:
//!
//! * a file under its final name is complete and synced ([`files`]);
//! * one output has one writer, and who is refused learns who holds it ([`lock`]);
//! * what is not ours is never overwritten or removed ([`output`]);
//! * a stop request is seen between two pieces of work, a second one ends the process ([`signals`]);
//! * the log and the progress bar do not tear each other ([`logging`], [`progress`]);
//! * the figures of a resumed run are those of an uninterrupted one ([`metrics`]);
//! * input that a message quotes is short and safe ([`text`]);
//! * every program ends alike: usage errors, other errors, exit codes ([`program`]);
//! * what differs between two runs is named field by field ([`manifest`]).

pub mod config;
pub mod exit;
pub mod fault;
pub mod files;
pub mod lists;
pub mod lock;
pub mod logging;
pub mod manifest;
pub mod metrics;
pub mod output;
pub mod path;
pub mod prefetch;
pub mod program;
pub mod progress;
pub mod run_folder;
pub mod settings;
pub mod shard;
pub mod signals;
pub mod text;
