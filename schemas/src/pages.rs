//! Reads the pages of images without holding large ones in memory.
//!
//! Writers do not end pages by bytes if values are large: pyarrow writes one dictionary page and
//! then data pages of 1,024 values each, which is 170 MB for images of 165 kB, in each of two
//! columns. A page of more than [`IN_MEMORY_BYTES`], compressed or not, lies in a scratch file
//! ([`crate::scratch`]), so that reading holds a few times that for each column.
//!
//! The Parquet library decompresses into memory. So this module opens each chunk as if it were not
//! compressed, and decompresses the pages itself.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::serialized_reader::SerializedPageReader;

use crate::checksums::CheckedFile;
use crate::input::MAX_PAGE_BYTES;
use crate::scratch::{Growing, IN_MEMORY_BYTES, Space};

/// The pages of a chunk: one column of one row group.
pub(crate) struct Pages {
    reader: SerializedPageReader<CheckedFile>,
    codec: Compression,
}

impl Pages {
    /// The pages of the leaf column `column`, found by `index` or else one after another.
    pub(crate) fn open(
        file: &Arc<CheckedFile>,
        group: &RowGroupMetaData,
        column: usize,
        index: Option<Vec<PageLocation>>,
    ) -> Result<Self> {
        let chunk = group
            .columns()
            .get(column)
            .ok_or_else(|| ParquetError::General(format!("a row group without column {column}")))?;
        let rows = usize::try_from(group.num_rows())?;
        let codec = chunk.compression();
        // An index without pages is that of a column without rows, or a slip of its writer.
        let index = index.filter(|pages| !pages.is_empty());
        let reader = match codec {
            // A raw block does not say its length, and the old form has three variants. The library
            // handles them, in memory.
            Compression::LZ4 | Compression::LZ4_RAW => {
                SerializedPageReader::new(Arc::clone(file), chunk, rows, index)?
            }
            _ => {
                let plain = chunk.clone().into_builder();
                let plain = plain.set_compression(Compression::UNCOMPRESSED).build()?;
                SerializedPageReader::new(Arc::clone(file), &plain, rows, index)?
            }
        };
        Ok(Self { reader, codec })
    }

    fn decompressed(&self, page: Page) -> Result<Page> {
        let whole = |bytes: Bytes| decompress(self.codec, &bytes, 0);
        Ok(match page {
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            } => Page::DataPage {
                buf: whole(buf)?,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            },
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                Page::DictionaryPage { buf: whole(buf)?, num_values, encoding, is_sorted }
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls,
                num_rows,
                def_levels_byte_len,
                rep_levels_byte_len,
                is_compressed,
                statistics,
            } => {
                // Levels come first and are not compressed.
                let levels = def_levels_byte_len.saturating_add(rep_levels_byte_len) as usize;
                let buf = match is_compressed {
                    true => decompress(self.codec, &buf, levels)?,
                    false => buf,
                };
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: false,
                    statistics,
                }
            }
        })
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.reader.get_next_page()?.map(|page| self.decompressed(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.reader.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.reader.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.reader.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.reader.take_deferred_dictionary()?.map(|page| self.decompressed(page)).transpose()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.reader.at_record_boundary()
    }
}

/// `bytes` with all but the first `plain` decompressed.
fn decompress(codec: Compression, bytes: &Bytes, plain: usize) -> Result<Bytes> {
    let invalid = |what: &str| ParquetError::General(format!("{what} in a page of {codec}"));
    let (levels, compressed) =
        bytes.split_at_checked(plain).ok_or_else(|| invalid("too few bytes"))?;
    // A page without values has no compressed bytes at all.
    if compressed.is_empty() {
        return Ok(bytes.clone());
    }
    let into_space = |length: usize, write: &mut dyn FnMut(&mut [u8]) -> Result<usize>| {
        let total = plain.saturating_add(length);
        if total > MAX_PAGE_BYTES as usize {
            return Err(invalid("more than 2 GiB"));
        }
        let mut space = Space::of(total);
        let (first, rest) = space.bytes_mut().split_at_mut(plain);
        first.copy_from_slice(levels);
        match write(rest)? {
            written if written == length => Ok(space.into_bytes()?),
            _ => Err(invalid("another length than promised")),
        }
    };
    match codec {
        Compression::UNCOMPRESSED => Ok(bytes.clone()),
        // The library has decompressed the page; it does not stay in memory.
        Compression::LZ4 | Compression::LZ4_RAW => {
            if bytes.len() <= IN_MEMORY_BYTES {
                return Ok(bytes.clone());
            }
            let mut space = Space::of(bytes.len());
            space.bytes_mut().copy_from_slice(bytes);
            Ok(space.into_bytes()?)
        }
        Compression::SNAPPY => {
            into_space(snap::raw::decompress_len(compressed)?, &mut |into: &mut [u8]| {
                Ok(snap::raw::Decoder::new().decompress(compressed, into)?)
            })
        }
        Compression::GZIP(_) => unpack(flate2::read::MultiGzDecoder::new(compressed), levels),
        Compression::BROTLI(_) => unpack(brotli::Decompressor::new(compressed, 1 << 16), levels),
        Compression::ZSTD(_) => unpack(zstd::stream::read::Decoder::new(compressed)?, levels),
        Compression::LZO => Err(invalid("an unknown codec")),
    }
}

fn unpack(mut from: impl Read, levels: &[u8]) -> Result<Bytes> {
    let mut into = Growing::new(MAX_PAGE_BYTES as usize);
    io::Write::write_all(&mut into, levels)?;
    io::copy(&mut from, &mut into)?;
    Ok(into.into_bytes()?)
}
