//! Writes a file of pairs in our Parquet: Pick-a-Pic's columns, row groups that end by their bytes,
//! small pages with an index, so that every row can be read alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, BooleanArray, Float64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::input::ParquetInput;
use crate::pairs::PairRow;
use crate::table_writer::{Format, TableWriter, WriteError};

/// The metadata key of the number that a file's first row has among all rows of its output.
pub const KEY_FIRST_ROW: &str = "balanceddpo.pairs.first_row";
/// The metadata key of the rule by which winner-first pairs were dealt out
/// ([`super::DEALING`]).
pub const KEY_DEALING: &str = "balanceddpo.pairs.dealing";

const KEY_VERSION: &str = "balanceddpo.pairs.schema_version";
/// A page of images, in bytes.
const PAGE_BYTES: usize = 1 << 20;

/// How large row groups and files are, in bytes of their images and texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A row group ends behind the row with which it has as many. It is also what is in memory.
    pub row_group: usize,
    /// A file ends behind the row group with which it has as many.
    pub file: usize,
}

impl Default for Sizes {
    /// Row groups of 64 MiB and a row, files of 1 GiB and a row group.
    fn default() -> Self {
        Self { row_group: 64 << 20, file: 1 << 30 }
    }
}

/// Who gave the labels of the rows, [`PairRow::human_label_0`]: the column `has_label`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelsOf {
    /// People, if a row has a label. One that does not count ([`PairRow::unused_label_0`]) is kept.
    Humans,
    /// A program: no row has a label of a person.
    Program,
}

/// Writes a file of pairs, which gets its final name in [`PairsWriter::finish`]. Equal rows and
/// metadata give equal bytes.
#[derive(Debug)]
pub struct PairsWriter {
    table: TableWriter,
    labels: LabelsOf,
    sizes: Sizes,
    /// The rows of the row group that is not written yet, and their bytes.
    pending: Vec<PairRow>,
    pending_bytes: usize,
    /// All rows and bytes.
    rows: u64,
    bytes: usize,
}

impl PairsWriter {
    /// Starts a file with this key-value metadata and the version of its columns.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        labels: LabelsOf,
        sizes: Sizes,
    ) -> Result<Self, WriteError> {
        let table = TableWriter::create(path, schema(), properties(metadata))?;
        let (pending, pending_bytes, rows, bytes) = (Vec::new(), 0, 0, 0);
        Ok(Self { table, labels, sizes, pending, pending_bytes, rows, bytes })
    }

    /// The key-value metadata of a file that this writer wrote; `None` of any other.
    #[must_use]
    pub fn metadata_of(path: &Path) -> Option<BTreeMap<String, String>> {
        let keys = ParquetInput::open(path).ok()?.key_values();
        keys.contains_key(KEY_VERSION).then_some(keys)
    }

    /// Adds a pair. Its number in the file is that of the rows before it, not [`PairRow::row`].
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&mut self, mut pair: PairRow) -> Result<(), WriteError> {
        // A slice keeps its page, or a scratch file, alive.
        for image in pair.image.iter_mut().flatten() {
            *image = Bytes::copy_from_slice(image);
        }
        let images = pair.image.iter().flatten().map(Bytes::len).sum::<usize>();
        let bytes = images + pair.caption.as_ref().map_or(0, String::len);
        self.pending.push(pair);
        self.pending_bytes += bytes;
        self.bytes += bytes;
        self.rows += 1;
        if self.pending_bytes >= self.sizes.row_group { self.flush() } else { Ok(()) }
    }

    /// Adds an entry to the key-value metadata.
    pub fn add_metadata(&mut self, key: &str, value: String) {
        self.table.add_metadata(key, value);
    }

    /// How many pairs were added.
    #[must_use]
    pub fn num_rows(&self) -> u64 {
        self.rows
    }

    /// Whether the file has reached its size, at the end of a row group.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pending.is_empty() && self.bytes >= self.sizes.file
    }

    /// Writes the pending rows as a row group.
    fn flush(&mut self) -> Result<(), WriteError> {
        let rows = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let text = |value: fn(&PairRow) -> Option<&str>| -> ArrayRef {
            Arc::new(rows.iter().map(value).collect::<StringArray>())
        };
        let image = |side: usize| -> ArrayRef {
            let bytes = rows.iter().map(|row| row.image.get(side)?.as_deref());
            Arc::new(bytes.collect::<BinaryArray>())
        };
        let label = |of: fn(f64) -> f64| -> ArrayRef {
            let label_0 = |row: &PairRow| row.human_label_0.or(row.unused_label_0).map(of);
            Arc::new(rows.iter().map(label_0).collect::<Float64Array>())
        };
        let is_human = self.labels == LabelsOf::Humans;
        let has_label = |row: &PairRow| Some(is_human && row.human_label_0.is_some());
        let columns = vec![
            text(|row| row.caption.as_deref()),
            text(|row| row.image_uid[0].as_deref()),
            text(|row| row.image_uid[1].as_deref()),
            image(0),
            image(1),
            label(|label| label),
            label(|label| 1.0 - label),
            text(|row| Some(&row.pair_id)),
            Arc::new(rows.iter().map(has_label).collect::<BooleanArray>()),
        ];
        self.table.write(columns)?;
        self.table.end_row_group()
    }

    /// Writes the rest and makes the file durable under its final name.
    ///
    /// # Errors
    /// When the disk fails; nothing changes under the final name then.
    pub fn finish(mut self) -> Result<(), WriteError> {
        self.flush()?;
        self.table.finish()
    }
}

fn schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, true);
    let image = |name| Field::new(name, DataType::Binary, true);
    let number = |name| Field::new(name, DataType::Float64, true);
    Arc::new(Schema::new(vec![
        text("caption"),
        text("image_0_uid"),
        text("image_1_uid"),
        image("jpg_0"),
        image("jpg_1"),
        number("label_0"),
        number("label_1"),
        Field::new("ranking_id", DataType::Utf8, false),
        Field::new("has_label", DataType::Boolean, false),
    ]))
}

fn properties(metadata: &BTreeMap<String, String>) -> WriterProperties {
    let format = Format {
        version_key: KEY_VERSION,
        version: 1,
        zstd_level: 3,
        // Row groups end by their bytes.
        row_group_rows: usize::MAX,
    };
    let mut builder = format
        .properties(metadata)
        .set_data_page_size_limit(PAGE_BYTES)
        // The size of a page is looked at this often.
        .set_write_batch_size(1)
        .set_dictionary_enabled(false);
    for image in ["jpg_0", "jpg_1"] {
        let path = || ColumnPath::from(image);
        // Images are compressed already; the footer counts those that are missing.
        builder = builder
            .set_column_compression(path(), parquet::basic::Compression::UNCOMPRESSED)
            .set_column_statistics_enabled(path(), EnabledStatistics::Chunk);
    }
    builder.build()
}
