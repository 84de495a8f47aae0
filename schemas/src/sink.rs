//! Where a Parquet writer puts its bytes: a durable file that is taken back after the footer.
//!
//! `into_inner` of the Parquet writers turns an error of the disk into text inside text. With a
//! [`Sink`] the writer is finished in place, and [`write_error`] finds the original error.

use std::io::{self, Write};
use std::path::Path;

use parquet::errors::ParquetError;
use runkit::files::{AtomicFile, FileError, Operation};

/// An [`AtomicFile`] inside a Parquet writer.
#[derive(Debug)]
pub struct Sink(Option<AtomicFile>);

impl Sink {
    /// Opens the temporary file.
    ///
    /// # Errors
    /// As [`AtomicFile::create`].
    pub fn create(path: &Path) -> Result<Self, FileError> {
        Ok(Self(Some(AtomicFile::create(path)?)))
    }

    /// Puts the file under its final name, once the writer was finished; does nothing a second time.
    ///
    /// # Errors
    /// As [`AtomicFile::commit`].
    pub fn commit(&mut self) -> Result<(), FileError> {
        self.0.take().map_or(Ok(()), AtomicFile::commit)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Some(file) => file.write(bytes),
            None => Err(io::Error::other("the file is already in its place")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), AtomicFile::flush)
    }
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
