//! Writes `labels.parquet`: durable, and the same bytes for the same rows however they arrive.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::concat;
use arrow::datatypes::DataType;
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::batch::{LabelBatch, LabelBatchBuilder};
use super::row::LabelRow;
use super::schema::LabelsSchema;
use super::{KEY_SCHEMA_VERSION, LabelsError, SCHEMA_VERSION};
use crate::columns::ColumnType;
use crate::table_writer::{Format, RowGroupsWriter, TableWriter};

/// The rows of a row group: the unit in which DuckDB reads in parallel
/// (duckdb.org/docs/stable/data/parquet/tips).
pub const ROW_GROUP_ROWS: usize = 122_880;
/// A row group also ends when its text reaches this many bytes, so that huge captions do not pile
/// up in memory.
const ROW_GROUP_TEXT_BYTES: usize = 256 << 20;
/// zstd level 3 has most of the gain of the higher ones at a fraction of their time.
const FORMAT: Format = Format {
    version_key: KEY_SCHEMA_VERSION,
    version: SCHEMA_VERSION,
    zstd_level: 3,
    row_group_rows: ROW_GROUP_ROWS,
};
/// How many single rows are collected before they become a batch.
const BUFFERED_ROWS: usize = 8192;

/// Writes a labels file, which gets its final name in [`LabelsWriter::finish`].
///
/// The bytes depend on the rows, the schema and the metadata alone, not on how calls group the
/// rows: the writer counts rows and bytes of text to end a row group, and encodes the group whole.
#[derive(Debug)]
pub struct LabelsWriter {
    schema: LabelsSchema,
    file: RowGroupsWriter,
    single_rows: LabelBatchBuilder,
    /// Slices of the row group in progress.
    pending: Vec<LabelBatch>,
    pending_rows: usize,
    pending_text_bytes: usize,
    written_rows: usize,
}

impl LabelsWriter {
    /// Starts a file with this key-value metadata and the schema version.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: impl AsRef<Path>,
        schema: &LabelsSchema,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, LabelsError> {
        let properties = properties(schema, metadata);
        let table = TableWriter::create(path.as_ref(), schema.file_schema(), properties)?;
        Ok(Self {
            schema: schema.clone(),
            file: table.by_row_groups()?,
            single_rows: LabelBatchBuilder::new(schema),
            pending: Vec::new(),
            pending_rows: 0,
            pending_text_bytes: 0,
            written_rows: 0,
        })
    }

    /// Adds one row.
    ///
    /// # Errors
    /// When the row does not fit the schema or holds NaN, an infinity or an impossible vote, or
    /// when the disk fails. The writer checks values when a batch of rows is full, so the error may
    /// come with a later row or with `finish`; it names the row.
    pub fn write(&mut self, row: &LabelRow) -> Result<(), LabelsError> {
        self.single_rows.push(row)?;
        if self.single_rows.len() >= BUFFERED_ROWS { self.take_single_rows() } else { Ok(()) }
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// As for [`LabelsWriter::write`], and when the batch has other scorers.
    pub fn write_batch(&mut self, batch: &LabelBatch) -> Result<(), LabelsError> {
        self.take_single_rows()?;
        self.append(batch)
    }

    /// How many rows were added.
    pub fn num_rows(&self) -> usize {
        self.written_rows + self.pending_rows + self.single_rows.len()
    }

    /// Writes the rest and makes the file durable under its final name.
    ///
    /// # Errors
    /// As for [`LabelsWriter::write`]; nothing changes under the final name then.
    pub fn finish(mut self) -> Result<(), LabelsError> {
        self.take_single_rows()?;
        self.flush_row_group()?;
        Ok(self.file.finish()?)
    }

    fn take_single_rows(&mut self) -> Result<(), LabelsError> {
        if self.single_rows.is_empty() {
            return Ok(());
        }
        let batch = self.single_rows.finish()?;
        self.append(&batch)
    }

    /// Adds a batch to the row group, and splits it at the end of row groups.
    fn append(&mut self, batch: &LabelBatch) -> Result<(), LabelsError> {
        if batch.schema() != &self.schema {
            let problem = format!(
                "expected a batch of {:?}, found one of {:?}",
                self.schema.scorers(),
                batch.schema().scorers()
            );
            return Err(LabelsError::Scorers { problem });
        }
        let before = self.written_rows + self.pending_rows;
        batch.check().map_err(|error| match error {
            LabelsError::Row { row, pair_id, problem } => {
                LabelsError::Row { row: before + row, pair_id, problem }
            }
            other => other,
        })?;
        let text = text_bytes(batch);
        let mut start = 0;
        for (row, bytes) in text.into_iter().enumerate() {
            self.pending_rows += 1;
            self.pending_text_bytes += bytes;
            if self.pending_rows == ROW_GROUP_ROWS
                || self.pending_text_bytes >= ROW_GROUP_TEXT_BYTES
            {
                self.pending.push(batch.slice(start, row + 1 - start));
                self.flush_row_group()?;
                start = row + 1;
            }
        }
        if start < batch.num_rows() {
            self.pending.push(batch.slice(start, batch.num_rows() - start));
        }
        Ok(())
    }

    fn flush_row_group(&mut self) -> Result<(), LabelsError> {
        if self.pending_rows == 0 {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let fields = self.schema.memory_schema().fields();
        self.file.write(fields, |column| {
            let slices: Vec<&dyn Array> =
                pending.iter().map(|batch| batch.record_batch().column(column).as_ref()).collect();
            Ok(concat(&slices)?)
        })?;
        self.written_rows += self.pending_rows;
        self.pending_rows = 0;
        self.pending_text_bytes = 0;
        Ok(())
    }
}

/// The bytes of text in each row.
fn text_bytes(batch: &LabelBatch) -> Vec<usize> {
    let mut bytes = vec![0_usize; batch.num_rows()];
    for column in batch.record_batch().columns() {
        if *column.data_type() == DataType::Utf8View {
            for (sum, length) in bytes.iter_mut().zip(column.as_string_view().lengths()) {
                *sum += length as usize;
            }
        }
    }
    bytes
}

fn properties(schema: &LabelsSchema, metadata: &BTreeMap<String, String>) -> WriterProperties {
    let mut builder = FORMAT
        .properties(metadata)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_enabled(false);
    for column in schema.columns() {
        let path = ColumnPath::from(column.name.as_str());
        if has_few_values(&column.name, column.kind) {
            builder = builder.set_column_dictionary_enabled(path, true);
        } else if column.kind == ColumnType::Float32 {
            // Scores are alike in their high bytes only: split by byte they take 11 % less
            // (benches/labels.rs), and DuckDB and pyarrow read them so.
            builder = builder.set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
        }
    }
    builder.build()
}

/// Whether a dictionary pays: for columns with a handful of values, and for captions, which recur
/// in neighbouring pairs. Uids and scores are nearly all different.
fn has_few_values(name: &str, kind: ColumnType) -> bool {
    matches!(kind, ColumnType::Category | ColumnType::Int8)
        || matches!(name, "human_label_0" | "status" | "error" | "caption")
}

#[expect(dead_code, reason = "asserts at compile time that a writer can move between threads")]
fn writer_is_send(writer: LabelsWriter) -> impl Send {
    Arc::new(std::sync::Mutex::new(writer))
}
