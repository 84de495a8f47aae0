//! Checksums in the Parquet files that this workspace writes, so that a flipped bit is noticed when
//! it is read, wherever it is.
//!
//! The Parquet library writes no page checksums (it verifies those that others wrote). So our files
//! hold a region of their own between the last page index and the footer. A reader that does not
//! know the region never looks there, because all offsets in a footer are absolute:
//!
//! | bytes | what |
//! |---|---|
//! | 4 each | CRC-32C of every 16 KiB before the region; the last block may be short |
//! | 4 | CRC-32C of the footer, its length and the final mark |
//! | 4 | CRC-32C of all of the region that stands before this |
//! | 8 | how many bytes stand before the region |
//! | 8 | the mark `BDPOSUM1` |
//!
//! Numbers are little-endian. Another tool that rewrites a file drops the region; this crate then
//! reads the file as any other.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use locations::{File, LocationError};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use crate::scratch::Space;

/// The unit of verification: a reader of single rows reads little more than their pages.
pub(crate) const BLOCK_BYTES: usize = 16 << 10;
/// The end of the region.
const MARK: &[u8; 8] = b"BDPOSUM1";
/// What stands in the region after the blocks' checksums.
const FIXED_BYTES: usize = 4 + 4 + 8 + 8;
/// How many bytes one read takes from a file without checksums, for the header of a page.
pub(crate) const HEADER_BYTES: usize = 8 << 10;

/// Collects the checksums of bytes that are written in order.
#[derive(Debug, Default)]
pub(crate) struct Summing {
    blocks: Vec<u32>,
    /// The checksum of the block that is not full, and how much of it there is.
    open: u32,
    filled: usize,
    total: u64,
}

impl Summing {
    /// Takes the next bytes of the file.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.total += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.open = crc32c::crc32c_append(self.open, now);
            self.filled += now.len();
            if self.filled == BLOCK_BYTES {
                self.blocks.push(std::mem::take(&mut self.open));
                self.filled = 0;
            }
            bytes = later;
        }
    }

    /// The region, for a file that ends with `footer`: its metadata, their length and the mark.
    pub(crate) fn region(mut self, footer: &[u8]) -> Vec<u8> {
        if self.filled > 0 {
            self.blocks.push(self.open);
        }
        let mut region = Vec::with_capacity(4 * self.blocks.len() + FIXED_BYTES);
        for block in &self.blocks {
            region.extend(block.to_le_bytes());
        }
        region.extend(crc32c::crc32c(footer).to_le_bytes());
        region.extend(crc32c::crc32c(&region).to_le_bytes());
        region.extend(self.total.to_le_bytes());
        region.extend(MARK);
        region
    }
}

/// The checksums of a file.
#[derive(Debug)]
struct Sums {
    blocks: Vec<u32>,
    /// How many bytes they cover, from the start.
    covered: u64,
}

impl Sums {
    /// Reads the region before a footer and verifies both. `None` if another tool wrote the file.
    fn read(file: &File, footer_start: u64, footer: &[u8]) -> io::Result<Option<Self>> {
        let mut fixed = [0_u8; FIXED_BYTES];
        let Some(fixed_start) = footer_start.checked_sub(FIXED_BYTES as u64) else {
            return Ok(None);
        };
        file.read_exact_at(&mut fixed, fixed_start)?;
        let (numbers, mark) = fixed.split_at(FIXED_BYTES - MARK.len());
        if mark != MARK {
            return Ok(None);
        }
        let number = |position: usize| {
            let mut four = [0_u8; 4];
            four.copy_from_slice(&numbers[position..position + 4]);
            u32::from_le_bytes(four)
        };
        let covered = u64::from(number(8)) | (u64::from(number(12)) << 32);
        let blocks = covered.div_ceil(BLOCK_BYTES as u64);
        if blocks.checked_mul(4).and_then(|bytes| bytes.checked_add(covered)) != Some(fixed_start) {
            return Err(damaged("the list of checksums has another length than it says"));
        }
        let mut region = vec![0_u8; (fixed_start - covered) as usize];
        file.read_exact_at(&mut region, covered)?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&region), &numbers[..4]);
        if sum != number(4) {
            return Err(damaged("the list of checksums is not what was written"));
        }
        if crc32c::crc32c(footer) != number(0) {
            return Err(damaged("the footer is not what was written"));
        }
        let block =
            |four: &[u8]| four.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
        Ok(Some(Self { blocks: region.chunks_exact(4).map(block).collect(), covered }))
    }
}

/// The checksums of a file that is not open; `None` if another tool wrote the file.
#[derive(Clone, Debug)]
pub(crate) struct Checksums(Option<Arc<Sums>>);

impl Checksums {
    /// Whether there are any.
    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} (checksum)", what.into()))
}

/// Keeps the last error of a remote file, because the Arrow library passes on only its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastError(Arc<Mutex<Option<LocationError>>>);

impl LastError {
    /// Takes the error out.
    pub(crate) fn take(&self) -> Option<LocationError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, error: &io::Error) {
        if let Some(found) = LocationError::behind(error) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        }
    }
}

/// An open Parquet file, here or elsewhere. If this workspace wrote it, every read is verified.
/// Clones share the open file, which has no position.
#[derive(Clone, Debug)]
pub struct CheckedFile {
    file: File,
    length: u64,
    sums: Option<Arc<Sums>>,
    last_error: LastError,
}

impl CheckedFile {
    /// A file whose `footer` (metadata, their length, the mark) was read.
    ///
    /// # Errors
    /// When the file cannot be read, or has checksums that do not fit the footer.
    pub(crate) fn new(file: File, footer: &[u8]) -> io::Result<Self> {
        let length = file.len();
        let sums = Sums::read(&file, length.saturating_sub(footer.len() as u64), footer)?;
        Ok(Self { file, length, sums: sums.map(Arc::new), last_error: LastError::default() })
    }

    /// The checksums, to open the file again with.
    pub(crate) fn checksums(&self) -> Checksums {
        Checksums(self.sums.clone())
    }

    /// The file opened again.
    pub(crate) fn with(file: File, checksums: &Checksums, last_error: &LastError) -> Self {
        let (length, sums) = (file.len(), checksums.0.clone());
        Self { file, length, sums, last_error: last_error.clone() }
    }

    fn fill(&self, into: &mut [u8], start: u64) -> io::Result<()> {
        self.file.read_exact_at(into, start).inspect_err(|error| self.last_error.keep(error))
    }

    /// Whether reads are verified.
    pub fn has_checksums(&self) -> bool {
        self.sums.is_some()
    }

    /// The bytes from `start` on: at least one before the end of the file, at most `wanted` or a
    /// block.
    fn some(&self, start: u64, wanted: usize) -> io::Result<Bytes> {
        match &self.sums {
            Some(sums) => {
                let end = start.saturating_add(wanted as u64).min(sums.covered);
                self.verified(sums, start.min(end), end)
            }
            None => {
                let end = start.saturating_add(wanted as u64).min(self.length);
                let mut space = Space::of(end.saturating_sub(start) as usize);
                self.fill(space.bytes_mut(), start)?;
                space.into_bytes()
            }
        }
    }

    /// Reads and verifies whole blocks, and returns the bytes from `start` to `end`.
    fn verified(&self, sums: &Sums, start: u64, end: u64) -> io::Result<Bytes> {
        if start >= end {
            return Ok(Bytes::new());
        }
        let block = BLOCK_BYTES as u64;
        let first = start / block;
        let read_start = first * block;
        let read_end = end.div_ceil(block).saturating_mul(block).min(sums.covered);
        let mut space = Space::of((read_end - read_start) as usize);
        self.fill(space.bytes_mut(), read_start)?;
        let bytes = space.into_bytes()?;
        for (number, found) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            let expected =
                usize::try_from(number).ok().and_then(|position| sums.blocks.get(position));
            if expected != Some(&crc32c::crc32c(found)) {
                let from = number * block;
                let what = format!(
                    "bytes {from} to {} are not what was written",
                    from + found.len() as u64
                );
                return Err(damaged(what));
            }
        }
        // Both lie inside the bytes: read_start ≤ start < end ≤ read_end.
        Ok(bytes.slice((start - read_start) as usize..(end - read_start) as usize))
    }
}

impl Length for CheckedFile {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for CheckedFile {
    type T = CheckedReader;

    fn get_read(&self, start: u64) -> Result<CheckedReader> {
        Ok(CheckedReader { file: self.clone(), position: start, buffer: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.some(start, length)?;
        if bytes.len() != length {
            return Err(ParquetError::EOF(format!(
                "expected {length} bytes at {start}, found {}",
                bytes.len()
            )));
        }
        Ok(bytes)
    }
}

/// Reads a [`CheckedFile`] in order.
#[derive(Debug)]
pub struct CheckedReader {
    file: CheckedFile,
    position: u64,
    buffer: Bytes,
}

impl Read for CheckedReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            self.buffer = self.file.some(self.position, HEADER_BYTES)?;
            self.position += self.buffer.len() as u64;
        }
        let bytes = self.buffer.split_to(self.buffer.len().min(into.len()));
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn opened(file: std::fs::File) -> File {
        File::from_local(std::path::Path::new("x.parquet"), file).unwrap()
    }

    fn file_of(data: &[u8], footer: &[u8]) -> tempfile::NamedTempFile {
        let mut sums = Summing::default();
        data.chunks(1000).for_each(|part| sums.update(part));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for part in [data, &sums.region(footer), footer] {
            file.write_all(part).unwrap();
        }
        file
    }

    #[test]
    fn every_range_is_verified_and_equal() {
        let data: Vec<u8> =
            (0..3 * BLOCK_BYTES + 77).map(|position| (position % 251) as u8).collect();
        let file = file_of(&data, b"footer");
        let checked = CheckedFile::new(opened(file.reopen().unwrap()), b"footer").unwrap();
        assert!(checked.has_checksums());
        for (start, count) in [(0, 1), (0, data.len()), (BLOCK_BYTES - 1, 2), (data.len() - 5, 5)] {
            let bytes = checked.get_bytes(start as u64, count).unwrap();
            assert!(bytes == data[start..start + count]);
        }
        assert!(checked.get_bytes(data.len() as u64 - 1, 2).is_err());
        let mut all = Vec::new();
        checked.get_read(3).unwrap().read_to_end(&mut all).unwrap();
        assert!(all == data[3..]);
    }

    #[test]
    fn every_flipped_bit_of_data_and_footer_is_noticed() {
        let data: Vec<u8> = (0..BLOCK_BYTES + 9).map(|position| (position % 7) as u8).collect();
        let file = file_of(&data, b"footer");
        let whole = std::fs::read(file.path()).unwrap();
        for position in (0..whole.len()).step_by(101).chain(data.len()..whole.len()) {
            let mut bytes = whole.clone();
            bytes[position] ^= 1 << (position % 8);
            let mut other = tempfile::tempfile().unwrap();
            other.write_all(&bytes).unwrap();
            let footer = bytes[bytes.len() - 6..].to_vec();
            let read = CheckedFile::new(opened(other), &footer)
                .and_then(|checked| checked.some(0, data.len()));
            let mark = whole.len() - 6 - MARK.len()..whole.len() - 6;
            assert!(read.is_err() || mark.contains(&position), "byte {position}");
            if let Ok(read) = read {
                assert!(read == data, "without its mark the file is one of others, and equal");
            }
        }
    }
}
