//! The two files of an evaluation, [`crate::scores`] and [`crate::winrates`], are flat tables with
//! one [`Record`] per row, small enough to be read whole. This module holds their reader and
//! writer.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, ArrowPrimitiveType, AsArray as _, PrimitiveArray, RecordBatch,
    StringArray, StringDictionaryBuilder,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::columns::{Column, ColumnType, schema_of};
use crate::exact::{self, Failure, Inexact, Target};
use crate::input::{InputError, ParquetInput};
use crate::table_writer::{Format, TableWriter, WriteError};

/// The metadata key of [`Record::SCHEMA_VERSION`]; the writers set it.
pub const KEY_SCHEMA_VERSION: &str = "evaluate.schema_version";
/// The metadata key of the fingerprint of everything the file was computed from.
pub const KEY_FINGERPRINT: &str = "evaluate.fingerprint";
/// The metadata key of the manifest, as JSON.
pub const KEY_MANIFEST: &str = "evaluate.manifest";
/// The rows of a row group.
pub const ROW_GROUP_ROWS: usize = 1 << 16;

/// The rows of a batch while reading.
const BATCH_ROWS: usize = 16_384;

/// Why a file of an evaluation could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The file is not readable Parquet.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The file is Parquet but holds something else; all reasons are listed.
    #[error("{}: not {what}:\n  {}\nhint: {hint}", path.display(), problems.join("\n  "))]
    Columns {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// One sentence for each column.
        problems: Vec<String>,
        /// Which file to name.
        hint: &'static str,
    },
    /// The file was written by another version of the schema.
    #[error(
        "{}: expected {what} of schema version {expected}, found version {found}; hint: make the \
         file again, or read it with the release that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: &'static str,
        /// The version that this release reads.
        expected: u32,
        /// The version in the file's metadata.
        found: String,
    },
    /// A row that must not be in the file.
    #[error("{}: row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A row of a file of an evaluation.
pub trait Record: Sized {
    /// The version of the columns and their meaning. It grows when a reader of the old version
    /// would misread a file or miss a column; a new column does not change it.
    const SCHEMA_VERSION: u32;
    /// What the file holds, in errors.
    const WHAT: &'static str;
    /// Which file to name instead of a wrong one.
    const HINT: &'static str;

    /// The columns, in file order.
    fn columns() -> Vec<Column>;

    /// Checks what types cannot express, above all that numbers are finite.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    fn check(&self) -> Result<(), String>;

    /// An array for each of [`Record::columns`], of the types of the file.
    fn to_arrays(rows: &[Self]) -> Vec<ArrayRef>;

    /// The rows of a batch.
    ///
    /// # Errors
    /// When a column is missing or of another type, or holds a text that is not one of its values.
    fn from_arrays(columns: &Columns<'_>) -> Result<Vec<Self>, ArrowError>;
}

/// The columns of a batch, by name.
#[derive(Debug)]
pub struct Columns<'batch>(&'batch RecordBatch);

impl<'batch> Columns<'batch> {
    /// How many rows there are.
    pub fn num_rows(&self) -> usize {
        self.0.num_rows()
    }

    /// A column of text.
    ///
    /// # Errors
    /// When no column has this name and type.
    pub fn text(&self, name: &str) -> Result<&'batch StringArray, ArrowError> {
        self.named(name)?.as_string_opt().ok_or_else(|| wrong(name))
    }

    /// A column of numbers.
    ///
    /// # Errors
    /// When no column has this name and type.
    pub fn number<T: ArrowPrimitiveType>(
        &self,
        name: &str,
    ) -> Result<&'batch PrimitiveArray<T>, ArrowError> {
        self.named(name)?.as_primitive_opt().ok_or_else(|| wrong(name))
    }

    fn named(&self, name: &str) -> Result<&'batch ArrayRef, ArrowError> {
        self.0.column_by_name(name).ok_or_else(|| wrong(name))
    }
}

fn wrong(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("column {name:?} is missing or of another type"))
}

/// A column of text with few distinct values.
pub(crate) fn categories<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    let mut builder = StringDictionaryBuilder::<Int32Type>::new();
    values.for_each(|value| builder.append_option(value));
    Arc::new(builder.finish())
}

/// A column of text.
pub(crate) fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

/// Writes a file, which gets its final name in [`RecordWriter::finish`]. The bytes depend on the
/// rows and the metadata alone.
#[derive(Debug)]
pub struct RecordWriter<R> {
    table: TableWriter,
    rows: Vec<R>,
    written: usize,
}

impl<R: Record> RecordWriter<R> {
    /// Starts a file with this key-value metadata and the schema version.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: impl AsRef<Path>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, EvaluationError> {
        let columns = R::columns();
        let schema = schema_of(&columns, ColumnType::file_type);
        let properties = properties::<R>(&columns, metadata);
        let table = TableWriter::create(path.as_ref(), schema, properties)?;
        Ok(Self { table, rows: Vec::new(), written: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the row holds NaN, an infinity or numbers that contradict each other, or the disk
    /// fails.
    pub fn write(&mut self, row: R) -> Result<(), EvaluationError> {
        let number = self.written + self.rows.len();
        row.check().map_err(|problem| EvaluationError::Row {
            path: self.table.path().to_owned(),
            row: number,
            problem,
        })?;
        self.rows.push(row);
        if self.rows.len() == ROW_GROUP_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes the rest and makes the file durable under its final name.
    ///
    /// # Errors
    /// When the disk fails; nothing changes under the final name then.
    pub fn finish(mut self) -> Result<(), EvaluationError> {
        self.flush()?;
        Ok(self.table.finish()?)
    }

    fn flush(&mut self) -> Result<(), EvaluationError> {
        self.table.write(R::to_arrays(&self.rows))?;
        self.written += self.rows.len();
        self.rows.clear();
        Ok(())
    }
}

fn properties<R: Record>(
    columns: &[Column],
    metadata: &BTreeMap<String, String>,
) -> WriterProperties {
    let format = Format {
        version_key: KEY_SCHEMA_VERSION,
        version: R::SCHEMA_VERSION,
        // Most of the gain of the higher levels at a fraction of their time.
        zstd_level: 3,
        row_group_rows: ROW_GROUP_ROWS,
    };
    let mut builder = format.properties(metadata).set_statistics_enabled(EnabledStatistics::Chunk);
    for column in columns {
        if column.kind == ColumnType::Float32 {
            let path = ColumnPath::from(column.name.as_str());
            builder = builder
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
        }
    }
    builder.build()
}

/// A file with checked columns. It holds the footer, not the rows, and no open file. Column order,
/// extra columns and nullability are free; names and types are not.
#[derive(Clone, Debug)]
pub struct RecordFile<R> {
    parquet: ParquetInput,
    metadata: BTreeMap<String, String>,
    /// The positions of our columns in the file.
    positions: Vec<usize>,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> RecordFile<R> {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// When it is not readable Parquet, breaks a limit of [`crate::input`], was written by another
    /// schema version, or lacks columns: then one error lists them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EvaluationError> {
        let path = path.as_ref();
        let parquet = ParquetInput::open(path)?;
        let stored = parquet.contained(|| {
            ArrowReaderMetadata::try_new(Arc::clone(parquet.metadata()), plain_types())
        })?;
        let metadata = parquet.key_values();
        let columns = R::columns();
        let positions = find(&columns, stored.schema());
        // Both files of an evaluation have the key: a version counts only in a file of this kind,
        // and one with most of the columns is of this kind.
        let is_this_kind = positions.as_ref().map_or_else(Vec::len, |_| 0) < columns.len() / 2;
        if let Some(found) = metadata.get(KEY_SCHEMA_VERSION)
            && *found != R::SCHEMA_VERSION.to_string()
            && is_this_kind
        {
            return Err(EvaluationError::Version {
                path: path.to_owned(),
                what: R::WHAT,
                expected: R::SCHEMA_VERSION,
                found: found.clone(),
            });
        }
        let positions = positions.map_err(|problems| {
            let path = path.to_owned();
            EvaluationError::Columns { path, what: R::WHAT, problems, hint: R::HINT }
        })?;
        let file = Self { parquet, metadata, positions, record: PhantomData };
        file.parquet.check_chunks(&file.leaves()?)?;
        Ok(file)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.parquet.path()
    }

    /// The file's key-value metadata without Arrow's own entry; empty if another tool wrote it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// How many rows it holds.
    pub fn num_rows(&self) -> i64 {
        self.parquet.num_rows()
    }

    /// blake3 of the file's length and footer, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.parquet.fingerprint().to_owned()
    }

    /// All rows.
    ///
    /// # Errors
    /// When the file is missing, changed or damaged, or holds NaN or another impossible value.
    pub fn read(&self) -> Result<Vec<R>, EvaluationError> {
        let file = self.parquet.reopen()?;
        let leaves = self.leaves()?;
        let mut reader = self.parquet.contained(|| {
            let metadata =
                ArrowReaderMetadata::try_new(Arc::clone(self.parquet.metadata()), plain_types())?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
            let mask = ProjectionMask::leaves(builder.parquet_schema(), leaves);
            builder.with_batch_size(BATCH_ROWS).with_projection(mask).build()
        })?;
        let mut rows: Vec<R> = Vec::new();
        while let Some(batch) = self.next_batch(&mut reader)? {
            let batch = self.of_our_types(&batch, rows.len())?;
            self.check_nulls(&batch, rows.len())?;
            let decoded = R::from_arrays(&Columns(&batch))
                .map_err(|error| self.parquet.damaged(error.to_string()))?;
            for row in decoded {
                row.check().map_err(|problem| self.row_error(rows.len(), problem))?;
                rows.push(row);
            }
        }
        match usize::try_from(self.num_rows()) {
            Ok(promised) if promised == rows.len() => Ok(rows),
            _ => {
                let (found, promised) = (rows.len(), self.num_rows());
                Err(self.parquet.damaged(format!("{found} rows, {promised} promised")).into())
            }
        }
    }

    fn next_batch(
        &self,
        reader: &mut ParquetRecordBatchReader,
    ) -> Result<Option<RecordBatch>, EvaluationError> {
        let next = || reader.next().transpose().map_err(ParquetError::from);
        Ok(self.parquet.contained(next)?)
    }

    /// The columns with the types that the writer uses, if no value changes by that. pandas gives a
    /// column without values the type "null", and turns integers with gaps into floats.
    fn of_our_types(
        &self,
        batch: &RecordBatch,
        first: usize,
    ) -> Result<RecordBatch, EvaluationError> {
        let fail = |error: ArrowError| self.parquet.damaged(error.to_string());
        let mut columns = Vec::new();
        for column in R::columns() {
            let stored = column.kind.stored_type();
            let Some(array) = batch.column_by_name(&column.name) else { continue };
            let array = exact::read(array, target(&stored)).map_err(|failure| match failure {
                Failure::Inexact(Inexact { index, found }) => {
                    let name = &column.name;
                    self.row_error(first + index, format!("{name} is {found}, expected {stored}"))
                }
                Failure::Arrow(error) => fail(error).into(),
            })?;
            columns.push((column.name, cast(&array, &stored).map_err(fail)?, true));
        }
        Ok(RecordBatch::try_from_iter_with_nullable(columns).map_err(fail)?)
    }

    fn check_nulls(&self, batch: &RecordBatch, first: usize) -> Result<(), EvaluationError> {
        for column in R::columns().iter().filter(|column| !column.nullable) {
            let Some(array) = batch.column_by_name(&column.name) else { continue };
            if let Some(row) = (0..array.len()).find(|&row| array.is_null(row)) {
                let problem = format!("{} is null, expected a value", column.name);
                return Err(self.row_error(first + row, problem));
            }
        }
        Ok(())
    }

    fn row_error(&self, row: usize, problem: String) -> EvaluationError {
        EvaluationError::Row { path: self.path().to_owned(), row, problem }
    }

    /// The leaf columns of our columns, which are all flat.
    fn leaves(&self) -> Result<Vec<usize>, EvaluationError> {
        Ok(self.parquet.contained(|| {
            let parquet = self.parquet.metadata().file_metadata().schema_descr();
            let ours = |leaf: &usize| self.positions.contains(&parquet.get_column_root_idx(*leaf));
            Ok((0..parquet.num_columns()).filter(ours).collect())
        })?)
    }
}

/// Reads with the types that Parquet itself stores, so that it does not matter which tool wrote the
/// file.
fn plain_types() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}

/// How a column of this stored type is read.
fn target(stored: &DataType) -> Target<'_> {
    match stored {
        DataType::Utf8 => Target::Text,
        number => Target::Number(number),
    }
}

/// The position of each of our columns in the file, or what is wrong.
fn find(columns: &[Column], stored: &Schema) -> Result<Vec<usize>, Vec<String>> {
    let (mut positions, mut problems) = (Vec::new(), Vec::new());
    for column in columns {
        let expected = column.kind.stored_type();
        match stored.column_with_name(&column.name) {
            Some((position, field)) if exact::is_possible(field.data_type(), target(&expected)) => {
                positions.push(position);
            }
            Some((_, field)) => {
                let found = field.data_type();
                problems
                    .push(format!("column {:?}: expected {expected}, found {found}", column.name));
            }
            None => {
                problems.push(format!("column {:?}: expected {expected}, found none", column.name));
            }
        }
    }
    if problems.is_empty() { Ok(positions) } else { Err(problems) }
}
