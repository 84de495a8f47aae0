//! The one way to write a Parquet table: [`TableWriter`], a durable file with checksums of all its
//! bytes ([`crate::checksums`]). Equal columns and metadata give equal bytes.
//!
//! `into_inner` of the Parquet writers turns an error of the disk into text inside text. Here the
//! writer is finished in place, so that [`WriteError`] holds the original error.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Fields, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::SerializedFileWriter;
use rayon::prelude::*;
use runkit::files::{AtomicFile, FileError, Operation};

use crate::checksums::Summing;

/// Why a table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The columns could not be encoded.
    #[error("cannot write {}: {cause}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the Parquet library reported.
        #[source]
        cause: ParquetError,
    },
    /// The file could not be created, written or made durable.
    #[error(transparent)]
    File(#[from] FileError),
}

impl WriteError {
    /// The disk's error if the Parquet writer passed one on, else the writer's own.
    pub(crate) fn new(path: &Path, cause: impl Into<ParquetError>) -> Self {
        let cause = match cause.into() {
            ParquetError::External(cause) => match cause.downcast::<io::Error>() {
                Ok(cause) => return FileError::new(path, Operation::Write, *cause).into(),
                Err(cause) => ParquetError::External(cause),
            },
            cause => cause,
        };
        Self::Parquet { path: path.to_owned(), cause }
    }
}

/// What all tables of one kind have in common.
pub(crate) struct Format {
    /// The metadata key of the version.
    pub(crate) version_key: &'static str,
    /// The version of the columns and their meaning.
    pub(crate) version: u32,
    /// The zstd level.
    pub(crate) zstd_level: i32,
    /// The rows of a row group.
    pub(crate) row_group_rows: usize,
}

impl Format {
    /// How the columns are stored. No time, host or version of this program is part of it.
    pub(crate) fn properties(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> WriterPropertiesBuilder {
        let mut metadata = metadata.clone();
        metadata.insert(self.version_key.to_owned(), self.version.to_string());
        let pairs = metadata.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
        let level = ZstdLevel::try_new(self.zstd_level).unwrap_or_default();
        WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_max_row_group_row_count(Some(self.row_group_rows))
            .set_key_value_metadata(Some(pairs))
    }
}

/// Writes a table. Nothing stands under the final name before [`TableWriter::finish`].
#[derive(Debug)]
pub struct TableWriter {
    path: PathBuf,
    writer: ArrowWriter<Sink>,
    schema: SchemaRef,
}

impl TableWriter {
    /// Starts a file.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: &Path,
        schema: SchemaRef,
        properties: WriterProperties,
    ) -> Result<Self, WriteError> {
        let sink = Sink::create(path)?;
        let writer = ArrowWriter::try_new(sink, Arc::clone(&schema), Some(properties))
            .map_err(|cause| WriteError::new(path, cause))?;
        Ok(Self { path: path.to_owned(), writer, schema })
    }

    /// The final name of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds rows, one array for each column.
    ///
    /// # Errors
    /// When the arrays do not fit the schema, or the disk fails.
    pub fn write(&mut self, columns: Vec<ArrayRef>) -> Result<(), WriteError> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| WriteError::new(&self.path, error))?;
        self.writer.write(&batch).map_err(|cause| WriteError::new(&self.path, cause))
    }

    /// Ends the row group; what follows begins another.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn end_row_group(&mut self) -> Result<(), WriteError> {
        self.writer.flush().map_err(|cause| WriteError::new(&self.path, cause))
    }

    /// Adds an entry to the key-value metadata.
    pub fn add_metadata(&mut self, key: &str, value: String) {
        self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }

    /// Writes the rest and makes the file durable under its final name.
    ///
    /// # Errors
    /// When the disk fails; nothing changes under the final name then.
    pub fn finish(mut self) -> Result<(), WriteError> {
        let finished = self.writer.flush().and_then(|()| {
            self.writer.inner_mut().hold_back();
            self.writer.finish()
        });
        finished.map_err(|cause| WriteError::new(&self.path, cause))?;
        self.writer.inner_mut().commit(&self.path)
    }

    /// The same file, written by whole row groups.
    pub(crate) fn by_row_groups(self) -> Result<RowGroupsWriter, WriteError> {
        let parts = self.writer.into_serialized_writer();
        let (file, encoders) = parts.map_err(|cause| WriteError::new(&self.path, cause))?;
        Ok(RowGroupsWriter { path: self.path, file, encoders })
    }
}

/// Writes a table by whole row groups, whose columns are encoded in parallel.
#[derive(Debug)]
pub(crate) struct RowGroupsWriter {
    path: PathBuf,
    file: SerializedFileWriter<Sink>,
    encoders: ArrowRowGroupWriterFactory,
}

impl RowGroupsWriter {
    /// Adds a row group; `column` makes the array of a column, of the types that `fields` say.
    pub(crate) fn write(
        &mut self,
        fields: &Fields,
        column: impl Fn(usize) -> Result<ArrayRef, ParquetError> + Sync,
    ) -> Result<(), WriteError> {
        let fail = |cause| WriteError::new(&self.path, cause);
        let index = self.file.flushed_row_groups().len();
        let encoders = self.encoders.create_column_writers(index).map_err(fail)?;
        let chunks: Vec<_> = encoders
            .into_par_iter()
            .zip(fields.par_iter())
            .enumerate()
            .map(|(number, (mut encoder, field))| {
                for leaf in compute_leaves(field, &column(number)?)? {
                    encoder.write(&leaf)?;
                }
                encoder.close()
            })
            .collect();
        let mut group = self.file.next_row_group().map_err(fail)?;
        for chunk in chunks {
            chunk.and_then(|chunk| chunk.append_to_row_group(&mut group)).map_err(fail)?;
        }
        group.close().map_err(fail)?;
        Ok(())
    }

    /// [`TableWriter::finish`].
    pub(crate) fn finish(mut self) -> Result<(), WriteError> {
        self.file.inner_mut().hold_back();
        self.file.finish().map_err(|cause| WriteError::new(&self.path, cause))?;
        self.file.inner_mut().commit(&self.path)
    }
}

/// The length of the footer and the mark.
const TAIL_BYTES: usize = 8;

/// An [`AtomicFile`] inside a Parquet writer, which is taken back after the footer.
#[derive(Debug)]
struct Sink {
    /// `None` once the file is in its place.
    file: Option<AtomicFile>,
    sums: Summing,
    /// Page indexes and footer, held back so that the checksums can stand between them.
    end: Option<Vec<u8>>,
}

impl Sink {
    fn create(path: &Path) -> Result<Self, FileError> {
        let file = Some(AtomicFile::create(path)?);
        Ok(Self { file, sums: Summing::default(), end: None })
    }

    /// Writes what was held back, the checksums before the footer.
    fn write_end(&mut self) -> io::Result<()> {
        let Some(end) = self.end.take() else { return Ok(()) };
        let too_short = || io::Error::other("the Parquet library wrote no footer");
        let length = end.len().checked_sub(TAIL_BYTES).ok_or_else(too_short)?;
        let footer_length = end[length..length + 4].iter().rev();
        let footer_length = footer_length.fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        let (indexes, footer) =
            end.split_at_checked(length.wrapping_sub(footer_length)).ok_or_else(too_short)?;
        let file = self.file.as_mut().ok_or_else(in_its_place)?;
        file.write_all(indexes)?;
        self.sums.update(indexes);
        file.write_all(&std::mem::take(&mut self.sums).region(footer))?;
        file.write_all(footer)
    }

    /// Keeps what is written from now on: page indexes and footer.
    fn hold_back(&mut self) {
        self.end = Some(Vec::new());
    }

    /// Writes the end and puts the file under its final name.
    fn commit(&mut self, path: &Path) -> Result<(), WriteError> {
        self.write_end().map_err(|cause| FileError::new(path, Operation::Write, cause))?;
        Ok(self.file.take().map_or(Ok(()), AtomicFile::commit)?)
    }
}

fn in_its_place() -> io::Error {
    io::Error::other("the file is already in its place")
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(end) = &mut self.end {
            end.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let written = self.file.as_mut().ok_or_else(in_its_place)?.write(bytes)?;
        self.sums.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), AtomicFile::flush)
    }
}
