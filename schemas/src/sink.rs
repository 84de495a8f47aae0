//! Where a Parquet writer puts its bytes: a durable file that is taken back after the footer, with
//! checksums of all of it ([`crate::checksums`]).
//!
//! `into_inner` of the Parquet writers turns an error of the disk into text inside text. With a
//! [`Sink`] the writer is finished in place, and [`write_error`] finds the original error.

use std::io::{self, Write};
use std::path::Path;

use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use runkit::files::{AtomicFile, FileError, Operation};

use crate::checksums::Summing;

/// The length of the footer and the mark.
const TAIL_BYTES: usize = 8;

/// An [`AtomicFile`] inside a Parquet writer.
#[derive(Debug)]
pub struct Sink {
    /// `None` once the file is in its place.
    file: Option<AtomicFile>,
    sums: Summing,
    /// Page indexes and footer, held back so that the checksums can stand between them.
    end: Option<Vec<u8>>,
}

impl Sink {
    /// Opens the temporary file.
    ///
    /// # Errors
    /// As [`AtomicFile::create`].
    pub fn create(path: &Path) -> Result<Self, FileError> {
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

    /// Puts the file under its final name, once the writer was finished by [`finish`] or
    /// [`finish_file`]; does nothing a second time.
    ///
    /// # Errors
    /// As [`AtomicFile::commit`].
    pub fn commit(&mut self) -> Result<(), FileError> {
        self.file.take().map_or(Ok(()), AtomicFile::commit)
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

/// Writes the rest of a file, its footer and the checksums. [`Sink::commit`] comes next.
///
/// # Errors
/// What the Parquet library or the disk says.
pub fn finish(writer: &mut ArrowWriter<Sink>) -> Result<(), ParquetError> {
    writer.flush()?;
    writer.inner_mut().end = Some(Vec::new());
    writer.finish()?;
    Ok(writer.inner_mut().write_end()?)
}

/// [`finish`] for a writer of columns.
///
/// # Errors
/// As [`finish`].
pub fn finish_file(writer: &mut SerializedFileWriter<Sink>) -> Result<(), ParquetError> {
    writer.inner_mut().end = Some(Vec::new());
    writer.finish()?;
    Ok(writer.inner_mut().write_end()?)
}

/// The error of the disk that a Parquet writer passed on, if it is one.
///
/// # Errors
/// The Parquet library's own error, as it was.
pub fn write_error(path: &Path, error: ParquetError) -> Result<FileError, ParquetError> {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(cause) => Ok(FileError::new(path, Operation::Write, *cause)),
            Err(cause) => Err(ParquetError::External(cause)),
        },
        other => Err(other),
    }
}
