//! Opens Parquet files that are not trusted: one clear sentence if a file is not Parquet, limits on
//! the claims of its footer, and containment of panics in the Parquet library.
//!
//! The footer is checked against the limits below before any data is read. Data is then read page
//! by page. The format gives the size of a page in 31 bits, so a hostile file can make a reader
//! hold at most one page of [`MAX_PAGE_BYTES`] for each column.

mod lanes;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use locations::{File, Location, LocationError};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMask, ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader,
};
use parquet::file::reader::Length as _;

use crate::checksums::{CheckedFile, Checksums, LastError};
use crate::foreign::{LOOKED_AT, describe};

/// The largest footer that is parsed. A Pick-a-Pic shard has about 100 kB; parsing takes up to some
/// ten times this in memory.
pub const MAX_FOOTER_BYTES: u64 = 64 << 20;
/// The largest uncompressed size that a column chunk (one column of one row group) may claim.
/// Chunks are never held whole, so this does not bound memory; DuckDB's row groups of 122,880
/// images of 150 kB have 18 GB in a chunk, those of pandas (1,048,576 rows) up to 1 TB.
pub const MAX_COLUMN_CHUNK_BYTES: i64 = 1 << 44;
/// The largest page that the 31 bits of a page header can express.
pub const MAX_PAGE_BYTES: i64 = i32::MAX as i64;
/// The most rows that one file may claim; the largest published split has under 2²⁰.
pub const MAX_ROWS: i64 = 1 << 32;

const MAGIC: &[u8; 4] = b"PAR1";
const ENCRYPTED_MAGIC: &[u8; 4] = b"PARE";
/// The length of the footer (4 bytes) and the mark.
const TAIL_BYTES: u64 = 8;
/// The mark at the start, and the tail.
const SMALLEST_FILE: u64 = 4 + TAIL_BYTES;
/// The end of a remote file that the first request fetches: enough for most footers.
const REMOTE_TAIL_BYTES: u64 = 512 << 10;

/// Why a file could not be read as Parquet.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The operating system reported an error.
    #[error("cannot read {}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        #[source]
        cause: io::Error,
    },
    /// A remote file cannot be reached, or changed while it was read.
    #[error(transparent)]
    Remote(#[from] LocationError),
    /// The file does not have the outer form of Parquet.
    #[error("{}: expected a Parquet file, found {found}", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What it looks like instead.
        found: String,
    },
    /// The footer claims more than a named limit allows.
    #[error(
        "{}: {what}: expected at most {limit} {unit}, found a claim of {found}; \
         hint: rewrite the file with smaller row groups, or check where it comes from",
        path.display()
    )]
    Limit {
        /// The file.
        path: PathBuf,
        /// What claims it.
        what: String,
        /// What is counted.
        unit: &'static str,
        /// The claimed number.
        found: i64,
        /// The limit it breaks.
        limit: i64,
    },
    /// A column is compressed with a codec that this crate does not read.
    #[error(
        "{}: column {column} of row group {row_group} is compressed with {codec}: expected none, \
         snappy, gzip, brotli, zstd or lz4; hint: write the file again, in DuckDB COPY (FROM \
         'FILE') TO 'NEW.parquet' (FORMAT parquet, COMPRESSION zstd)",
        path.display()
    )]
    Codec {
        /// The file.
        path: PathBuf,
        /// The path of the column.
        column: String,
        /// The first row group with it, from 0.
        row_group: usize,
        /// The name of the codec.
        codec: String,
    },
    /// The file is damaged, or uses a feature that is not supported.
    #[error("{}: damaged or unsupported Parquet: {detail}; hint: fetch or write the file again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the Parquet library reported.
        detail: String,
    },
}

/// A Parquet file with a footer that was read and is plausible.
#[derive(Clone, Debug)]
pub(crate) struct ParquetInput {
    path: PathBuf,
    /// The file, if it is remote: a local one is opened for each reader.
    remote: Option<File>,
    checksums: Checksums,
    last_error: LastError,
    metadata: Arc<ParquetMetaData>,
    fingerprint: String,
    file_length: u64,
    /// The footer with the index of the pages of images, once a remote file needed it.
    index: Arc<OnceLock<Arc<ParquetMetaData>>>,
}

impl CheckedFile {
    /// Opens a Parquet file. If this workspace wrote it, its footer and every later read are
    /// verified.
    ///
    /// # Errors
    /// When it cannot be read, is not Parquet, or its checksums do not fit its footer.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        open(&Location::parse(path)?).map(|(file, ..)| file)
    }
}

/// Opens a local file that is not a folder.
fn open_local(path: &Path) -> Result<File, InputError> {
    let fail = |cause| InputError::Io { path: path.to_owned(), cause };
    let file = std::fs::File::open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(not_parquet(path, "a folder or a device"));
    }
    File::from_local(path, file).map_err(fail)
}

/// Opens a file and reads its footer: the metadata, their length and the mark. The file, if it is
/// remote, is returned as well.
fn open(location: &Location) -> Result<(CheckedFile, Vec<u8>, Option<File>), InputError> {
    let path = location.path();
    let (file, remote) = match location {
        Location::Local(path) => (open_local(path)?, None),
        Location::Remote(_) => {
            let file = File::open(location)?;
            let tail = file.len().saturating_sub(REMOTE_TAIL_BYTES)..file.len();
            (file.reading(vec![vec![vec![tail]]]), Some(file))
        }
    };
    let footer = read_footer(&file, path)?;
    let file = CheckedFile::new(file, &footer).map_err(|cause| match cause.kind() {
        io::ErrorKind::InvalidData => {
            InputError::Damaged { path: path.to_owned(), detail: cause.to_string() }
        }
        _ => unread(path, cause),
    })?;
    Ok((file, footer, remote))
}

/// The error of a read, by what was behind it.
pub(crate) fn unread(path: &Path, cause: io::Error) -> InputError {
    match LocationError::behind(&cause) {
        Some(remote) => InputError::Remote(remote.clone()),
        None => InputError::Io { path: path.to_owned(), cause },
    }
}

impl ParquetInput {
    /// Reads and checks the footer of a local or remote file.
    pub(crate) fn open(path: &Path) -> Result<Self, InputError> {
        Self::open_at(&Location::parse(path)?)
    }

    /// Reads and checks the footer.
    pub(crate) fn open_at(location: &Location) -> Result<Self, InputError> {
        let path = location.path();
        let (file, footer, remote) = open(location)?;
        let file_length = file.len();
        // read_footer returns the tail too.
        let footer = footer.get(..footer.len().saturating_sub(TAIL_BYTES as usize));
        let footer = footer.unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&file_length.to_le_bytes()).update(footer);
        let metadata = contained(path, || ParquetMetaDataReader::decode_metadata(footer))?;
        let input = Self {
            path: path.to_owned(),
            remote,
            checksums: file.checksums(),
            last_error: LastError::default(),
            metadata: Arc::new(metadata),
            fingerprint: hasher.finalize().to_hex().to_string(),
            file_length,
            index: Arc::default(),
        };
        input.check_rows()?;
        Ok(input)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn metadata(&self) -> &Arc<ParquetMetaData> {
        &self.metadata
    }

    /// blake3 of the file's length and footer, in hexadecimal.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The bytes of the file.
    pub(crate) fn file_length(&self) -> u64 {
        self.file_length
    }

    pub(crate) fn num_rows(&self) -> i64 {
        self.metadata.file_metadata().num_rows()
    }

    /// The file, opened anew, so that readers do not share a position.
    pub(crate) fn reopen(&self) -> Result<CheckedFile, InputError> {
        let file = match &self.remote {
            Some(remote) => remote.clone(),
            None => {
                let fail = |cause| InputError::Io { path: self.path.clone(), cause };
                let file = std::fs::File::open(&self.path).map_err(fail)?;
                File::from_local(&self.path, file).map_err(fail)?
            }
        };
        let found = file.len();
        if found != self.file_length {
            return Err(self.damaged(format!(
                "the file had {} bytes when it was opened and has {found} now",
                self.file_length
            )));
        }
        Ok(CheckedFile::with(file, &self.checksums, &self.last_error))
    }

    /// The footer together with the offsets of all pages of the leaf columns `leaves`, read again
    /// from `file`. With it a reader touches only the pages of the rows it wants.
    pub(crate) fn with_page_offsets(
        &self,
        file: &CheckedFile,
        leaves: &[usize],
    ) -> Result<Arc<ParquetMetaData>, InputError> {
        self.contained(|| {
            let mut reader =
                ParquetMetaDataReader::new_with_metadata(self.metadata.as_ref().clone())
                    .with_column_index_policy(PageIndexPolicy::Skip)
                    .with_offset_index_policy(PageIndexPolicy::Optional)
                    .with_offset_index_mask(ColumnChunkMask::columns(leaves.iter().copied()));
            reader.read_page_indexes(file)?;
            reader.finish().map(Arc::new)
        })
    }

    /// The file's key-value metadata without Arrow's own entry.
    pub(crate) fn key_values(&self) -> BTreeMap<String, String> {
        let pairs = self.metadata.file_metadata().key_value_metadata();
        pairs
            .into_iter()
            .flatten()
            .filter(|pair| pair.key != parquet::arrow::ARROW_SCHEMA_META_KEY)
            .map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default()))
            .collect()
    }

    pub(crate) fn damaged(&self, detail: impl Into<String>) -> InputError {
        InputError::Damaged { path: self.path.clone(), detail: detail.into() }
    }

    /// Runs a step of the Parquet library on this file.
    pub(crate) fn contained<T>(
        &self,
        step: impl FnOnce() -> Result<T, ParquetError>,
    ) -> Result<T, InputError> {
        contained(&self.path, step).map_err(|error| match self.last_error.take() {
            // What the library reports is only a consequence.
            Some(cause) => InputError::Remote(cause),
            None => error,
        })
    }

    /// The row groups that hold rows of `rows`, and the row at which the first of them starts.
    pub(crate) fn row_groups_of(&self, rows: &Range<i64>) -> (Vec<usize>, i64) {
        let (mut chosen, mut first_row, mut start) = (Vec::new(), rows.start, 0_i64);
        for (index, group) in self.metadata.row_groups().iter().enumerate() {
            let end = start.saturating_add(group.num_rows());
            if start < rows.end && end > rows.start {
                if chosen.is_empty() {
                    first_row = start;
                }
                chosen.push(index);
            }
            start = end;
        }
        (chosen, first_row)
    }

    fn check_rows(&self) -> Result<(), InputError> {
        let columns = self.metadata.file_metadata().schema_descr().num_columns();
        let mut total = 0_i64;
        for (index, group) in self.metadata.row_groups().iter().enumerate() {
            if group.num_rows() < 0 || group.num_columns() != columns {
                return Err(self.damaged(format!(
                    "row group {index} claims {} rows in {} columns; the schema has {columns}",
                    group.num_rows(),
                    group.num_columns()
                )));
            }
            total = total.saturating_add(group.num_rows());
        }
        if total > MAX_ROWS {
            return Err(self.limit("the file", "rows", total, MAX_ROWS));
        }
        if total != self.num_rows() {
            return Err(self.damaged(format!(
                "the footer claims {} rows, its row groups {total}",
                self.num_rows()
            )));
        }
        Ok(())
    }

    /// Checks the sizes and offsets that the footer claims for the leaf columns to be read.
    pub(crate) fn check_chunks(&self, leaves: &[usize]) -> Result<(), InputError> {
        for (index, group) in self.metadata.row_groups().iter().enumerate() {
            for &leaf in leaves {
                let Some(chunk) = group.columns().get(leaf) else { continue };
                let named =
                    || format!("column {} of row group {index}", chunk.column_path().string());
                if chunk.compression() == Compression::LZO {
                    return Err(InputError::Codec {
                        path: self.path.clone(),
                        column: chunk.column_path().string(),
                        row_group: index,
                        codec: "LZO".to_owned(),
                    });
                }
                if chunk.uncompressed_size() > MAX_COLUMN_CHUNK_BYTES {
                    let found = chunk.uncompressed_size();
                    return Err(self.limit(&named(), "bytes", found, MAX_COLUMN_CHUNK_BYTES));
                }
                if !self.lies_inside(chunk) {
                    return Err(self.damaged(format!(
                        "the footer places {} outside the file's {} bytes",
                        named(),
                        self.file_length
                    )));
                }
            }
        }
        Ok(())
    }

    fn lies_inside(&self, chunk: &ColumnChunkMetaData) -> bool {
        let start = start_of(chunk);
        let end = start.checked_add(chunk.compressed_size());
        start >= 0
            && chunk.compressed_size() >= 0
            && chunk.uncompressed_size() >= 0
            && chunk.num_values() >= 0
            && end
                .and_then(|end| u64::try_from(end).ok())
                .is_some_and(|end| end <= self.file_length - TAIL_BYTES)
    }

    fn limit(&self, what: &str, unit: &'static str, found: i64, limit: i64) -> InputError {
        InputError::Limit { path: self.path.clone(), what: what.to_owned(), unit, found, limit }
    }
}

/// Where the first page of a chunk begins, according to the footer.
fn start_of(chunk: &ColumnChunkMetaData) -> i64 {
    match chunk.dictionary_page_offset() {
        Some(dictionary) if dictionary > 0 => dictionary.min(chunk.data_page_offset()),
        _ => chunk.data_page_offset(),
    }
}

fn not_parquet(path: &Path, found: impl Into<String>) -> InputError {
    InputError::NotParquet { path: path.to_owned(), found: found.into() }
}

/// Checks the outer form and the length of a file and returns the bytes of its footer: metadata,
/// their length, the mark.
fn read_footer(file: &File, path: &Path) -> Result<Vec<u8>, InputError> {
    let length = file.len();
    let fail = |cause| unread(path, cause);
    if length == 0 {
        return Err(not_parquet(path, "an empty file"));
    }
    if length < SMALLEST_FILE {
        let found = format!("{length} bytes, too few for any Parquet file");
        return Err(not_parquet(path, found));
    }
    let beginning = || file.bytes(0..length.min(LOOKED_AT as u64)).map_err(fail);
    let mut tail = [0_u8; TAIL_BYTES as usize];
    file.read_exact_at(&mut tail, length - TAIL_BYTES).map_err(fail)?;
    let is_whole = tail.ends_with(MAGIC) && file.is_remote();
    // A remote file costs a request for its beginning, which adds nothing to the mark at its end.
    let beginning = if is_whole { MAGIC.to_vec().into() } else { beginning()? };
    let head = beginning.get(..MAGIC.len()).unwrap_or_default();
    let [a, b, c, d, mark @ ..] = tail;
    match (head == MAGIC, &mark) {
        (true, MAGIC) => {}
        (_, ENCRYPTED_MAGIC) => return Err(not_parquet(path, "an encrypted one")),
        (true, _) => {
            let found = format!(
                "only the beginning of one: its {length} bytes do not end with the mark PAR1; \
                 hint: the download or copy is incomplete"
            );
            return Err(not_parquet(path, found));
        }
        (false, _) => return Err(not_parquet(path, describe(&beginning, length, mark))),
    }
    let footer_length = u64::from(u32::from_le_bytes([a, b, c, d]));
    if footer_length > length - SMALLEST_FILE {
        return Err(InputError::Damaged {
            path: path.to_owned(),
            detail: format!("a footer of {footer_length} bytes in a file of {length}"),
        });
    }
    if footer_length > MAX_FOOTER_BYTES {
        return Err(InputError::Limit {
            path: path.to_owned(),
            what: "the footer".to_owned(),
            unit: "bytes",
            found: i64::from(u32::from_le_bytes([a, b, c, d])),
            limit: MAX_FOOTER_BYTES as i64,
        });
    }
    let mut footer = vec![0_u8; (footer_length + TAIL_BYTES) as usize];
    file.read_exact_at(&mut footer, length - TAIL_BYTES - footer_length).map_err(fail)?;
    Ok(footer)
}

/// Runs a step of the Parquet library and turns an error or a panic into an [`InputError`] that
/// names the file. The library may panic on malformed bytes (apache/arrow-rs, `SECURITY.md`).
pub(crate) fn contained<T>(
    path: &Path,
    step: impl FnOnce() -> Result<T, ParquetError>,
) -> Result<T, InputError> {
    let damaged = |detail: String| InputError::Damaged { path: path.to_owned(), detail };
    // After a panic the caller drops whatever the step worked on and never uses it again.
    match catch_unwind(AssertUnwindSafe(step)) {
        // The library's own words for an error from outside are no help.
        Ok(Err(ParquetError::External(cause))) => Err(damaged(cause.to_string())),
        Ok(result) => result.map_err(|error| damaged(error.to_string())),
        Err(payload) => {
            let message = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(damaged(format!("the Parquet library panicked ({message})")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_library_becomes_an_error() {
        let path = Path::new("some.parquet");
        let result = contained::<()>(path, || panic!("index {} out of bounds", 7));
        let message = result.unwrap_err().to_string();
        assert!(message.starts_with("some.parquet: damaged"), "{message}");
        assert!(message.contains("index 7 out of bounds"), "{message}");
    }
}
