//! What a reader of a remote file will read, so that it is fetched before it is asked for.

use std::ops::Range;
use std::sync::Arc;

use locations::PIECE_BYTES;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

use super::{InputError, ParquetInput, start_of};
use crate::checksums::{BLOCK_BYTES, CheckedFile, HEADER_BYTES};

/// Whether each of these leaf columns has an index of its pages.
fn is_indexed(group: &RowGroupMetaData, leaves: &[usize]) -> bool {
    let mut chunks = leaves.iter().filter_map(|&leaf| group.columns().get(leaf));
    chunks.all(|chunk| chunk.offset_index_range().is_some())
}

impl ParquetInput {
    /// The file, opened anew to read the row groups `groups` in order. The leaf columns `small` are
    /// read together, each of `large` by itself. The next ranges of a remote file are fetched in
    /// the background.
    pub(crate) fn reopen_reading(
        &self,
        groups: &[usize],
        small: &[usize],
        large: &[usize],
    ) -> Result<CheckedFile, InputError> {
        let Some(remote) = &self.remote else { return self.reopen() };
        let chunks = large.iter().map(|&leaf| self.chunks(groups, &[leaf])).collect();
        let file = remote.reading(self.lanes(groups, small, chunks));
        Ok(CheckedFile::with(file, &self.checksums, &self.last_error))
    }

    /// [`ParquetInput::reopen_reading`] for the rows `rows` of these row groups. If they are a part of
    /// them, and a remote file has an index of the pages of `large`, only the pages with these rows
    /// are fetched, and the footer with the index is returned.
    pub(crate) fn reopen_part(
        &self,
        groups: &[usize],
        small: &[usize],
        large: &[usize],
        rows: &Range<i64>,
    ) -> Result<(CheckedFile, Option<Arc<ParquetMetaData>>), InputError> {
        let of = |&group: &usize| self.metadata.row_groups().get(group);
        let whole = groups.iter().filter_map(of).map(RowGroupMetaData::num_rows).sum();
        let is_indexed = groups.iter().filter_map(of).all(|group| is_indexed(group, large));
        let remote = self.remote.as_ref().filter(|_| rows.end - rows.start < whole && is_indexed);
        let (Some(remote), false) = (remote, large.is_empty()) else {
            return Ok((self.reopen_reading(groups, small, large)?, None));
        };
        let index = match self.index.get() {
            Some(index) => Arc::clone(index),
            // Another thread may read it as well; the bytes are the same.
            None => {
                let read = self.with_page_offsets(&self.reopen()?, large)?;
                Arc::clone(self.index.get_or_init(|| read))
            }
        };
        let [start, end] = [rows.start, rows.end].map(|row| usize::try_from(row).unwrap_or(0));
        let of_pages = |&leaf: &usize| {
            let mut pages = self.pages(&index, &[leaf], std::slice::from_ref(&(start..end)));
            pages.sort_unstable_by_key(|range| range.start);
            pages.into_iter().map(|range| vec![range]).collect()
        };
        let pages = large.iter().map(of_pages).collect();
        let file = remote.reading(self.lanes(groups, small, pages));
        Ok((CheckedFile::with(file, &self.checksums, &self.last_error), Some(index)))
    }

    /// The file, opened anew to read all rows of the leaf columns `leaves`, and its footer.
    pub(crate) fn reopen_whole(
        &self,
        leaves: &[usize],
    ) -> Result<(CheckedFile, Arc<ParquetMetaData>), InputError> {
        if self.remote.is_none() {
            let file = self.reopen()?;
            let metadata = self.with_page_offsets(&file, leaves)?;
            return Ok((file, metadata));
        }
        let groups: Vec<usize> = (0..self.metadata.num_row_groups()).collect();
        Ok((self.reopen_reading(&groups, leaves, &[])?, Arc::clone(&self.metadata)))
    }

    /// The file, opened anew to read some rows of the leaf columns `leaves`, and its footer with the
    /// offsets of pages. The pages of a remote file are fetched together, so `rows` are few.
    pub(crate) fn reopen_rows(
        &self,
        leaves: &[usize],
        rows: &[Range<usize>],
    ) -> Result<(CheckedFile, Arc<ParquetMetaData>), InputError> {
        let file = self.reopen()?;
        let metadata = self.with_page_offsets(&file, leaves)?;
        let Some(remote) = &self.remote else { return Ok((file, metadata)) };
        let file = remote.reading(vec![vec![self.pages(&metadata, leaves, rows)]]);
        Ok((CheckedFile::with(file, &self.checksums, &self.last_error), metadata))
    }

    /// Whether some rows of a row group cost all of the leaf columns `large` before them: in a remote
    /// file without an index of their pages.
    pub(crate) fn costs_whole_groups(&self, large: &[usize]) -> bool {
        let groups = self.metadata.row_groups();
        self.remote.is_some() && !groups.iter().all(|group| is_indexed(group, large))
    }

    /// The ranges of the pages with these rows; of a column without an index of its pages, the whole
    /// chunk.
    fn pages(
        &self,
        metadata: &ParquetMetaData,
        leaves: &[usize],
        rows: &[Range<usize>],
    ) -> Vec<Range<u64>> {
        let row = |number: i64| usize::try_from(number).unwrap_or(0);
        let wants =
            |first: usize, end: usize| rows.iter().any(|rows| rows.start < end && rows.end > first);
        let (mut ranges, mut start) = (Vec::new(), 0);
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let end = start + row(group.num_rows());
            for &leaf in leaves.iter().filter(|_| wants(start, end)) {
                let Some(chunk) = group.columns().get(leaf) else { continue };
                let index = metadata.page_index().and_then(|all| all.offset_index(number, leaf));
                let pages = index.map_or(&[][..], |index| index.page_locations());
                if pages.is_empty() {
                    ranges.push(self.read_range(chunk));
                    continue;
                }
                let mut end_of_page = end;
                for page in pages.iter().rev() {
                    let first = start + row(page.first_row_index);
                    if wants(first, end_of_page) {
                        ranges.push(self.blocks(page.offset, i64::from(page.compressed_page_size)));
                    }
                    end_of_page = first;
                }
                // A dictionary comes before the first page.
                let (begin, first) = (start_of(chunk), pages.first().map_or(0, |page| page.offset));
                if begin < first {
                    ranges.push(self.blocks(begin, first - begin));
                }
            }
            start = end;
        }
        ranges
    }

    /// The chunks of some columns, row group by row group.
    fn chunks(&self, groups: &[usize], leaves: &[usize]) -> Vec<Vec<Range<u64>>> {
        let of = |&group: &usize| {
            let group = self.metadata.row_groups().get(group);
            let columns = group.map_or(&[][..], |group| group.columns());
            let here = leaves.iter().filter_map(|&leaf| columns.get(leaf));
            here.map(|chunk| self.read_range(chunk)).collect()
        };
        groups.iter().map(of).collect()
    }

    /// The ranges of the columns, as [`locations::File::reading`] takes them; each of `large` is a column's.
    fn lanes(
        &self,
        groups: &[usize],
        small: &[usize],
        large: Vec<Vec<Vec<Range<u64>>>>,
    ) -> Vec<Vec<Vec<Range<u64>>>> {
        let together = self.chunks(groups, small);
        let all: Vec<Range<u64>> =
            together.iter().chain(large.iter().flatten()).flatten().cloned().collect();
        let first = all.iter().map(|range| range.start).min().unwrap_or(0);
        let last = all.iter().map(|range| range.end).max().unwrap_or(0);
        if last.saturating_sub(first) <= PIECE_BYTES {
            return vec![vec![vec![first..last]]];
        }
        let total = |group: &Vec<Range<u64>>| -> u64 {
            group.iter().map(|range| range.end.saturating_sub(range.start)).sum()
        };
        let mut lanes = Vec::new();
        if together.iter().all(|group| total(group) <= PIECE_BYTES) {
            lanes.push(together);
        } else {
            lanes.extend(small.iter().map(|&leaf| self.chunks(groups, &[leaf])));
        }
        lanes.extend(large);
        lanes
    }

    /// The bytes that reading a chunk touches: whole blocks if they are verified, and what is read
    /// for the header of a page.
    fn read_range(&self, chunk: &ColumnChunkMetaData) -> Range<u64> {
        self.blocks(start_of(chunk), chunk.compressed_size())
    }

    /// So many bytes from `start` on, a header after them, and what is verified with them.
    fn blocks(&self, start: i64, length: i64) -> Range<u64> {
        let block = if self.checksums.is_some() { BLOCK_BYTES as u64 } else { 1 };
        let [start, length] = [start, length].map(|number| u64::try_from(number).unwrap_or(0));
        let end = start.saturating_add(length).saturating_add(HEADER_BYTES as u64);
        start / block * block..end.div_ceil(block).saturating_mul(block)
    }
}
