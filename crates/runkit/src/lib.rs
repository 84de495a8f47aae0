//! What every long-running program of this workspace needs around its real work: durable files,
//! ownership of output folders, signals, exit codes, progress, logs, settings, manifests and
//! shards.
//!
//! The crate knows nothing of machine learning, images or Parquet. Its promises:
//!
//! * a file under its final name is complete and synced ([`files`]);
//! * one output has one writer, and a refusal names the holder ([`lock`]);
//! * what is not ours is never overwritten or removed ([`output`], [`run_folder`]);
//! * a stop request is seen between two pieces of work, a second one ends the process
//!   ([`signals`]);
//! * log lines and the progress bar do not mix ([`logging`], [`progress`]);
//! * a resumed run has the metrics of an uninterrupted one ([`metrics`]);
//! * input that a message quotes is short and safe ([`text`]);
//! * every program has the same command-line manners and exit codes ([`program`], [`settings`]);
//! * a rate is reported with the same interval everywhere ([`statistics`]);
//! * what differs between two runs is named field by field ([`manifest`]).

pub mod config;
pub mod exit;
pub mod fault;
pub mod files;
pub mod launch;
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
pub mod statistics;
pub mod text;
