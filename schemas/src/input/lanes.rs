//! What a reader of a remote file will read, so that it is fetched before it is asked for.

use std::ops::Range;

use locations::PIECE_BYTES;
use parquet::file::metadata::ColumnChunkMetaData;

use super::{InputError, ParquetInput, start_of};
use crate::checksums::{BLOCK_BYTES, CheckedFile, HEADER_BYTES};

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
        let file = remote.reading(self.lanes(groups, small, large));
        Ok(CheckedFile::with(file, &self.checksums, &self.last_error))
    }

    /// The ranges of the columns, as [`File::reading`] takes them.
    fn lanes(
        &self,
        groups: &[usize],
        small: &[usize],
        large: &[usize],
    ) -> Vec<Vec<Vec<Range<u64>>>> {
        let chunks = |leaves: &[usize]| -> Vec<Vec<Range<u64>>> {
            let of = |&group: &usize| {
                let group = self.metadata.row_groups().get(group);
                let columns = group.map_or(&[][..], |group| group.columns());
                let here = leaves.iter().filter_map(|&leaf| columns.get(leaf));
                here.map(|chunk| self.read_range(chunk)).collect()
            };
            groups.iter().map(of).collect()
        };
        let all: Vec<Range<u64>> = chunks(&[small, large].concat()).concat();
        let first = all.iter().map(|range| range.start).min().unwrap_or(0);
        let last = all.iter().map(|range| range.end).max().unwrap_or(0);
        if last.saturating_sub(first) <= PIECE_BYTES {
            return vec![vec![vec![first..last]]];
        }
        let total = |group: &Vec<Range<u64>>| -> u64 {
            group.iter().map(|range| range.end.saturating_sub(range.start)).sum()
        };
        let mut lanes = Vec::new();
        let together = chunks(small);
        if together.iter().all(|group| total(group) <= PIECE_BYTES) {
            lanes.push(together);
        } else {
            lanes.extend(small.iter().map(|&leaf| chunks(&[leaf])));
        }
        lanes.extend(large.iter().map(|&leaf| chunks(&[leaf])));
        lanes
    }

    /// The bytes that reading a chunk touches: whole blocks if they are verified, and what is read
    /// for the header of a page.
    fn read_range(&self, chunk: &ColumnChunkMetaData) -> Range<u64> {
        let block = if self.checksums.is_some() { BLOCK_BYTES as u64 } else { 1 };
        let start = u64::try_from(start_of(chunk)).unwrap_or(0);
        let length = u64::try_from(chunk.compressed_size()).unwrap_or(0);
        let end = start.saturating_add(length).saturating_add(HEADER_BYTES as u64);
        start / block * block..end.div_ceil(block).saturating_mul(block)
    }
}
