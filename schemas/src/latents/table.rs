//! What both files of a cache share: how columns are stored, and reading rows in random order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, Float16Array, Float32Array, ListArray,
    RecordBatch,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{KEY_SCHEMA_VERSION, LatentsError, SCHEMA_VERSION};
use crate::checksums::CheckedFile;
use crate::columns::{Column, ColumnType, StoredFloat, schema_of};
use crate::input::ParquetInput;
use crate::table_writer::{Format, TableWriter};

/// A data page ends when it reaches this many bytes: the cost of reading one row.
pub const PAGE_BYTES: usize = 16 << 10;
/// The bytes of lists in a row group: what the writer keeps in memory.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// The bytes of lists in a batch for the encoder.
const BATCH_BYTES: usize = 8 << 20;

/// The rows to collect before they are written.
pub(super) fn batch_rows(row_bytes: usize) -> usize {
    (BATCH_BYTES / row_bytes.max(1)).clamp(1, 1024)
}

/// Starts a file; each row has `row_bytes` of lists.
pub(super) fn create(
    path: &Path,
    columns: &[Column],
    row_bytes: usize,
    metadata: &BTreeMap<String, String>,
) -> Result<TableWriter, LatentsError> {
    let schema = schema_of(columns, written_type);
    Ok(TableWriter::create(path, schema, properties(columns, row_bytes, metadata))?)
}

/// A category is written from plain text: the Parquet library makes the dictionary.
fn written_type(kind: ColumnType) -> DataType {
    match kind {
        ColumnType::Category => DataType::Utf8,
        other => other.file_type(),
    }
}

fn properties(
    columns: &[Column],
    row_bytes: usize,
    metadata: &BTreeMap<String, String>,
) -> WriterProperties {
    let format = Format {
        version_key: KEY_SCHEMA_VERSION,
        version: SCHEMA_VERSION,
        // Latents are close to noise: higher levels cost time and gain nothing.
        zstd_level: 1,
        row_group_rows: (ROW_GROUP_BYTES / row_bytes.max(1)).clamp(1, 1 << 16),
    };
    let mut builder = format
        .properties(metadata)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_dictionary_enabled(false);
    for column in columns {
        let path = ColumnPath::from(column.name.as_str());
        builder = match column.kind {
            ColumnType::Category | ColumnType::Int32 => {
                builder.set_column_dictionary_enabled(path, true)
            }
            ColumnType::Text if matches!(column.name.as_str(), "caption" | "status" | "error") => {
                builder.set_column_dictionary_enabled(path, true)
            }
            ColumnType::Float16List => {
                let path = list_path(&column.name);
                builder.set_column_statistics_enabled(path, EnabledStatistics::None)
            }
            ColumnType::Float32List => {
                let path = list_path(&column.name);
                builder
                    .set_column_statistics_enabled(path.clone(), EnabledStatistics::None)
                    .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT)
            }
            _ => builder,
        };
    }
    builder.build()
}

fn list_path(column: &str) -> ColumnPath {
    ColumnPath::new([column, "list", "element"].map(str::to_owned).to_vec())
}

/// A column of lists; `None` is a null list. All numbers must be finite and, in half precision, not
/// too large.
pub(super) fn lists<'a>(
    stored: StoredFloat,
    rows: impl Iterator<Item = Option<&'a [f32]>>,
) -> Result<ArrayRef, String> {
    let (mut numbers, mut offsets, mut valid) = (Vec::new(), vec![0_i32], Vec::new());
    for row in rows {
        numbers.extend_from_slice(row.unwrap_or_default());
        offsets.push(i32::try_from(numbers.len()).map_err(|_| "too many numbers".to_owned())?);
        valid.push(row.is_some());
    }
    if let Some(wrong) = numbers.iter().find(|number| !number.is_finite()) {
        return Err(format!("expected finite numbers, found {wrong}"));
    }
    let values: ArrayRef = match stored {
        StoredFloat::Float32 => Arc::new(Float32Array::from(numbers)),
        StoredFloat::Float16 => {
            let mut halves = vec![f16::ZERO; numbers.len()];
            halves.convert_from_f32_slice(&numbers);
            if let Some(position) = halves.iter().position(|half| !half.is_finite()) {
                let found = numbers.get(position).copied().unwrap_or_default();
                return Err(format!("expected numbers below 65520, found {found}"));
            }
            Arc::new(Float16Array::from(halves))
        }
    };
    let DataType::List(field) = stored.list().file_type() else {
        return Err("a list has another type".to_owned());
    };
    let offsets = OffsetBuffer::new(offsets.into());
    let list = ListArray::try_new(field, offsets, values, Some(NullBuffer::from(valid)));
    list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| error.to_string())
}

/// A file with checked columns. It holds the footer, not the rows, and no open file.
#[derive(Clone, Debug)]
pub(super) struct Table {
    parquet: ParquetInput,
    metadata: BTreeMap<String, String>,
    schema: SchemaRef,
    /// The name of each of our columns and its position in the file.
    positions: Vec<(String, usize)>,
}

impl Table {
    /// Opens a file. `columns` names its columns for the dtype of the list column `probe`.
    pub(super) fn open(
        path: &Path,
        what: &'static str,
        probe: &str,
        columns: impl FnOnce(StoredFloat, &Schema) -> Vec<Column>,
    ) -> Result<(Self, StoredFloat), LatentsError> {
        let parquet = ParquetInput::open(path)?;
        let stored = parquet.contained(|| {
            let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            ArrowReaderMetadata::try_new(Arc::clone(parquet.metadata()), plain)
        })?;
        let unusable = |problems| LatentsError::Columns { path: path.to_owned(), what, problems };
        let metadata = parquet.key_values();
        let Some(version) = metadata.get(KEY_SCHEMA_VERSION) else {
            let problem = format!("expected metadata {KEY_SCHEMA_VERSION:?}, found none");
            return Err(unusable(vec![problem]));
        };
        if *version != SCHEMA_VERSION.to_string() {
            return Err(LatentsError::Version { path: path.to_owned(), found: version.clone() });
        }
        let kind = match stored.schema().field_with_name(probe).map(Field::data_type) {
            Ok(DataType::List(element)) if *element.data_type() == DataType::Float16 => {
                StoredFloat::Float16
            }
            Ok(DataType::List(element)) if *element.data_type() == DataType::Float32 => {
                StoredFloat::Float32
            }
            Ok(other) => {
                let expected = "a list of float16 or float32";
                return Err(unusable(vec![format!(
                    "column {probe:?}: expected {expected}, found {other}"
                )]));
            }
            Err(_) => {
                return Err(unusable(vec![format!("column {probe:?}: expected it, found none")]));
            }
        };
        let columns = columns(kind, stored.schema());
        let positions = find(&columns, stored.schema()).map_err(unusable)?;
        let table = Self { parquet, metadata, schema: Arc::clone(stored.schema()), positions };
        let leaves = table.leaves(|_| true)?;
        table.parquet.check_chunks(&leaves)?;
        Ok((table, kind))
    }

    pub(super) fn path(&self) -> &Path {
        self.parquet.path()
    }

    pub(super) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub(super) fn num_rows(&self) -> i64 {
        self.parquet.num_rows()
    }

    pub(super) fn fingerprint(&self) -> &str {
        self.parquet.fingerprint()
    }

    pub(super) fn row_error(&self, row: i64, problem: impl Into<String>) -> LatentsError {
        LatentsError::Row { path: self.path().to_owned(), row, problem: problem.into() }
    }

    /// The leaf columns of those of our columns that `wanted` names.
    fn leaves(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<usize>, LatentsError> {
        Ok(self.parquet.contained(|| {
            let parquet = self.parquet.metadata().file_metadata().schema_descr();
            let ours = |leaf: &usize| {
                let root = parquet.get_column_root_idx(*leaf);
                self.positions.iter().any(|(name, position)| *position == root && wanted(name))
            };
            Ok((0..parquet.num_columns()).filter(ours).collect())
        })?)
    }

    /// Reads rows, in ascending order and each once, of the columns that `wanted` names.
    pub(super) fn read(
        &self,
        rows: &[i64],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<TableRows, LatentsError> {
        if let Some(row) = rows.iter().find(|row| !(0..self.num_rows()).contains(row)) {
            return Err(self.row_error(*row, format!("the file has {} rows", self.num_rows())));
        }
        if let Some(pair) = rows.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(self.row_error(pair[1], "rows must be asked for in ascending order"));
        }
        let ranges = consecutive(rows);
        let leaves = self.leaves(wanted)?;
        let opened = self.parquet.reopen_rows(&leaves, &ranges)?;
        self.select(opened, leaves, &ranges, rows.len())
    }

    /// Reads all rows of the columns that `wanted` names, in order.
    pub(super) fn read_all(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<TableRows, LatentsError> {
        let rows = usize::try_from(self.num_rows()).unwrap_or(0);
        let leaves = self.leaves(wanted)?;
        let opened = self.parquet.reopen_whole(&leaves)?;
        self.select(opened, leaves, std::slice::from_ref(&(0..rows)), rows)
    }

    fn select(
        &self,
        (file, metadata): (CheckedFile, Arc<ParquetMetaData>),
        leaves: Vec<usize>,
        ranges: &[Range<usize>],
        rows: usize,
    ) -> Result<TableRows, LatentsError> {
        let total = usize::try_from(self.num_rows()).unwrap_or(0);
        let reader = self.parquet.contained(|| {
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            let metadata = ArrowReaderMetadata::try_new(metadata, options)?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
            let mask = ProjectionMask::leaves(builder.parquet_schema(), leaves);
            let selection = RowSelection::from_consecutive_ranges(ranges.iter().cloned(), total);
            builder
                .with_batch_size(BATCH_ROWS)
                .with_projection(mask)
                .with_row_selection(selection)
                .build()
        })?;
        Ok(TableRows { reader: Some(reader), parquet: self.parquet.clone(), left: rows })
    }

    /// Whether the file has a column of this name.
    pub(super) fn has(&self, column: &str) -> bool {
        self.schema.column_with_name(column).is_some()
    }
}

/// Rows of a batch of [`TableRows`].
const BATCH_ROWS: usize = 64;

/// Batches of rows. Ends after the first error.
pub(super) struct TableRows {
    /// `None` after the end or an error.
    reader: Option<ParquetRecordBatchReader>,
    parquet: ParquetInput,
    left: usize,
}

impl TableRows {
    fn decode(&mut self) -> Result<Option<RecordBatch>, LatentsError> {
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        let batch =
            self.parquet.contained(|| reader.next().transpose().map_err(ParquetError::from))?;
        match batch {
            Some(batch) => {
                self.left = self.left.saturating_sub(batch.num_rows());
                Ok(Some(batch))
            }
            None if self.left > 0 => {
                Err(self.parquet.damaged(format!("{} rows fewer than promised", self.left)).into())
            }
            None => Ok(None),
        }
    }
}

impl Iterator for TableRows {
    type Item = Result<RecordBatch, LatentsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.decode().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.reader = None;
        }
        item
    }
}

fn consecutive(rows: &[i64]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for row in rows.iter().filter_map(|&row| usize::try_from(row).ok()) {
        match ranges.last_mut() {
            Some(last) if last.end == row => last.end += 1,
            _ => ranges.push(row..row + 1),
        }
    }
    ranges
}

/// The name of each of our columns and its position in the file, or what is wrong.
fn find(columns: &[Column], stored: &Schema) -> Result<Vec<(String, usize)>, Vec<String>> {
    let (mut positions, mut problems) = (Vec::new(), Vec::new());
    for column in columns {
        let Some((position, field)) = stored.column_with_name(&column.name) else {
            let expected = column.kind.name();
            problems.push(format!("column {:?}: expected {expected}, found none", column.name));
            continue;
        };
        let fits = match (column.kind.stored_type(), field.data_type()) {
            (DataType::List(expected), DataType::List(found)) => {
                expected.data_type() == found.data_type()
            }
            (expected, found) => expected == *found,
        };
        if fits {
            positions.push((column.name.clone(), position));
        } else {
            let (expected, found) = (column.kind.name(), field.data_type());
            problems.push(format!("column {:?}: expected {expected}, found {found}", column.name));
        }
    }
    if problems.is_empty() { Ok(positions) } else { Err(problems) }
}

fn column<'batch>(
    batch: &'batch RecordBatch,
    name: &str,
) -> Result<&'batch ArrayRef, LatentsError> {
    let missing = || ArrowError::SchemaError(format!("no column {name:?}"));
    Ok(batch.column_by_name(name).ok_or_else(missing)?)
}

/// A column of text.
pub(super) fn texts(batch: &RecordBatch, name: &str) -> Result<Vec<Option<String>>, LatentsError> {
    let texts = cast(column(batch, name)?, &DataType::Utf8)?;
    Ok(texts.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

/// A column of numbers.
pub(super) fn numbers<T: ArrowPrimitiveType>(
    batch: &RecordBatch,
    name: &str,
) -> Result<Vec<Option<T::Native>>, LatentsError> {
    let column = column(batch, name)?;
    let wrong = || ArrowError::SchemaError(format!("column {name:?} is {}", column.data_type()));
    Ok(column.as_primitive_opt::<T>().ok_or_else(wrong)?.iter().collect())
}

/// A column of lists, each null or of `length` finite numbers.
///
/// # Errors
/// The row in the batch and what is wrong with it.
pub(super) fn lists_of(
    batch: &RecordBatch,
    name: &str,
    length: usize,
) -> Result<Vec<Option<Vec<f32>>>, (usize, String)> {
    let wrong = |row, problem: String| (row, format!("column {name:?}: {problem}"));
    let lists = batch.column_by_name(name).and_then(|column| column.as_list_opt::<i32>());
    let lists = lists.ok_or_else(|| wrong(0, "no lists".to_owned()))?;
    let read = |row: usize| {
        if lists.is_null(row) {
            return Ok(None);
        }
        let values = lists.value(row);
        if values.len() != length || values.null_count() > 0 {
            return Err(wrong(row, format!("expected {length} numbers, found {}", values.len())));
        }
        let numbers = match values.data_type() {
            DataType::Float16 => values.as_primitive::<Float16Type>().values().to_f32_vec(),
            _ => match values.as_primitive_opt::<Float32Type>() {
                Some(values) => values.values().to_vec(),
                None => return Err(wrong(row, format!("numbers are {}", values.data_type()))),
            },
        };
        match numbers.iter().find(|number| !number.is_finite()) {
            Some(number) => Err(wrong(row, format!("expected finite numbers, found {number}"))),
            None => Ok(Some(numbers)),
        }
    };
    (0..lists.len()).map(read).collect()
}
