//! The contract of the files that pass between the stages: their columns, their readers and their
//! writers. One module per file: [`pairs`] (what goes into `relabel`), [`labels`] (what comes out of
//! it), [`latents`] (what `train cache` makes of pairs), [`scores`] (what the reward models say of an
//! evaluation's images) and [`winrates`] (what is made of that). [`columns`] is the one table from
//! which the Arrow schemas, the reference pages `docs/*-schema.md` and the DuckDB views
//! `schemas/duckdb/*.sql` all follow ([`reference`](mod@reference)). [`text_columns`] reads the
//! text of any other Parquet file, such as a list of prompts.
//!
//! Whoever reads or writes one of these files goes through this crate, so that a file has one meaning
//! in the whole workspace. The crate knows Arrow and Parquet; it knows nothing of images, networks or
//! how a consensus is formed.
//!
//! Input files are not trusted: [`input`] holds the limits that are checked in the footer before a
//! byte of data is read, and a panic of the Parquet library on hostile bytes becomes an error there.

pub mod checksums;
pub mod columns;
pub mod evaluation;
mod exact;
mod foreign;
pub mod input;
pub mod labels;
pub mod latents;
mod pages;
pub mod pairs;
pub mod reference;
pub mod scores;
pub mod scratch;
pub mod table_writer;
pub mod text_columns;
pub mod winrates;
