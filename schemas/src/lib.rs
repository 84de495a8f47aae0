//! The contract of the files that pass between the stages: their columns, their readers and their
//! writers. One module per file: [`pairs`] (the input of `relabel`), [`labels`] (its output),
//! [`latents`] (what `train cache` encodes of pairs), [`scores`] (the reward models' scores of an
//! evaluation's images) and [`winrates`] (the tables computed from them). The Arrow schemas, the
//! reference pages `docs/*-schema.md` and the DuckDB views `schemas/duckdb/*.sql` all follow from
//! [`columns`] ([`reference`](mod@reference)). [`text_columns`] reads text from any other Parquet
//! file, such as a list of prompts; [`table_writer`] writes every file.
//!
//! All programs read and write these files through this crate, so that a file has one meaning in
//! the whole workspace. The crate knows Arrow and Parquet; it knows nothing of networks, and of
//! images only where their bytes lie.
//!
//! Input files are not trusted: [`input`] checks limits in the footer before it reads a byte of
//! data, and turns a panic of the Parquet library on hostile bytes into an error.
//!
//! # Example
//!
//! Reading `labels.parquet`, whichever program wrote it:
//!
//! ```
//! use schemas::labels::LabelsFile;
//! # use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("labels.parquet");
//! # let schema = LabelsSchema::new(&["clip"])?;
//! # let mut writer = LabelsWriter::create(&path, &schema, &Default::default())?;
//! # writer.write(&LabelRow {
//! #     pair_id: "1".to_owned(),
//! #     source_file: "pairs.parquet".to_owned(),
//! #     source_row: 0,
//! #     caption: Some("a fox".to_owned()),
//! #     image_uid: [None, None],
//! #     human_label_0: Some(1.0),
//! #     scores: vec![[Some(0.31), Some(0.27)]],
//! #     votes: vec![Some(1)],
//! #     vote_sum: Some(1),
//! #     consensus: Some(1),
//! #     status: Status::Ok,
//! #     error: None,
//! # })?;
//! # writer.finish()?;
//!
//! let labels = LabelsFile::open(&path)?;
//! println!("{} pairs, scorers {:?}", labels.num_rows(), labels.schema().scorers());
//! for batch in labels.batches()? {
//!     let batch = batch?;
//!     for index in 0..batch.num_rows() {
//!         let row = batch.row(index)?;
//!         println!("{}: votes {:?}, consensus {:?}", row.pair_id, row.votes, row.consensus);
//!     }
//! }
//! # assert_eq!(labels.read_rows()?[0].consensus, Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod checksums;
pub mod columns;
pub mod evaluation;
mod exact;
mod foreign;
pub mod input;
pub mod labels;
pub mod latents;
pub mod layouts;
mod pages;
pub mod pairs;
pub mod reference;
pub mod scores;
pub mod scratch;
pub mod table_writer;
pub mod text_columns;
pub mod winrates;
