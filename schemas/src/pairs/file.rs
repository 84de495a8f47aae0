//! One file of pairs, opened and checked, in any layout.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::rows::PairRows;
use super::{InputFile, PairsError};
use crate::layouts::{self, Kept, Layout, Records, TextStore};

/// The rows of a batch of [`PairFile::plan_rows`]; texts are small, so a batch is about 2 MB.
const PLAN_BATCH_ROWS: usize = 8192;

/// Neighbouring rows that are read together; a reader can start at any of them. A row group of a
/// Parquet file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroup {
    /// The number of its first row in the file.
    pub first_row: i64,
    /// How many rows it has.
    pub num_rows: i64,
    /// The size of all its columns on the disk, in bytes, according to the footer; a guess where
    /// the images lie in other files.
    pub compressed_bytes: i64,
    /// The decompressed size of the columns that are read, in bytes, according to the footer.
    pub uncompressed_bytes: i64,
    /// How many rows lack image 0, and how many image 1, according to the footer; 0 if nothing
    /// says so before the images are read.
    pub missing_images: [u64; 2],
}

/// A file of pairs in one of the [`Layout`]s, checked. It holds an index, not the rows, and no open
/// file.
#[derive(Clone, Debug)]
pub struct PairFile {
    input: InputFile,
    records: Arc<dyn Records>,
}

impl PairFile {
    /// Opens a file that must have images. Parquet is opened by its footer; a tar by its headers
    /// and texts, and a file of records by all its records.
    ///
    /// # Errors
    /// When it is in no layout, not readable, breaks a limit of [`crate::input`], or lacks columns:
    /// then one error lists all that are missing or of the wrong type.
    pub fn open(input: &InputFile) -> Result<Self, PairsError> {
        Ok(Self { input: input.clone(), records: layouts::open(input, true)? })
    }

    /// [`PairFile::open`]; of a tar that lies elsewhere the texts are kept in `texts`, for
    /// [`PairFile::open_kept`].
    ///
    /// # Errors
    /// As for [`PairFile::open`], and when the store cannot be written.
    pub fn open_keeping(
        input: &InputFile,
        texts: &TextStore,
    ) -> Result<(Self, Option<Kept>), PairsError> {
        let (records, kept) = layouts::open_keeping(input, texts)?;
        Ok((Self { input: input.clone(), records }, kept))
    }

    /// Opens a file whose texts are kept: nothing of it is read before its images.
    ///
    /// # Errors
    /// When it has another version than it had, or the store cannot be read.
    pub fn open_kept(
        input: &InputFile,
        texts: &TextStore,
        kept: &Kept,
    ) -> Result<Self, PairsError> {
        Ok(Self { input: input.clone(), records: layouts::open_kept(input, texts, kept)? })
    }

    /// Opens a file for its texts and labels alone, such as the `no_images` variants of Pick-a-Pic.
    ///
    /// # Errors
    /// As for [`PairFile::open`], except that image columns need not exist.
    pub fn open_without_images(input: &InputFile) -> Result<Self, PairsError> {
        Ok(Self { input: input.clone(), records: layouts::open(input, false)? })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.input.path
    }

    /// Its name in the output.
    pub fn source_file(&self) -> &str {
        &self.input.source_file
    }

    /// Its layout.
    pub fn layout(&self) -> Layout {
        self.records.layout()
    }

    /// How many pairs it holds.
    pub fn num_rows(&self) -> i64 {
        self.records.num_rows()
    }

    /// blake3 of what identifies the file, in hexadecimal: of Parquet its length and footer, which
    /// holds the sizes, offsets and statistics of all data; of a tar its headers and texts; of
    /// records their bytes; of a folder its names and sizes. This is cheap, and enough to notice a
    /// replaced file.
    pub fn fingerprint(&self) -> String {
        self.records.fingerprint().to_owned()
    }

    /// The groups of rows, in file order.
    pub fn row_groups(&self) -> Vec<RowGroup> {
        self.records.row_groups()
    }

    /// Rows and uncompressed bytes of each row group: what the order of training is made of.
    ///
    /// # Errors
    /// [`PairsError::TooManyRows`].
    pub fn row_group_sizes(&self) -> Result<Vec<(u32, u64)>, PairsError> {
        if u32::try_from(self.num_rows()).is_err() {
            let path = self.path().to_owned();
            return Err(PairsError::TooManyRows { path, rows: self.num_rows() });
        }
        let size = |group: RowGroup| {
            let bytes = u64::try_from(group.uncompressed_bytes).unwrap_or(0);
            (u32::try_from(group.num_rows).unwrap_or(0), bytes)
        };
        Ok(self.row_groups().into_iter().map(size).collect())
    }

    /// The bytes of the largest row group, if the images of some of its rows cost those of all rows
    /// before them: in remote Parquet that has no index of its pages.
    pub fn bytes_of_whole_groups(&self) -> Option<u64> {
        let bytes = |group: RowGroup| u64::try_from(group.compressed_bytes).unwrap_or(0);
        let costs = self.records.costs_whole_groups();
        costs.then(|| self.row_groups().into_iter().map(bytes).max()).flatten()
    }

    /// Whether the file was opened with its images.
    pub fn has_images(&self) -> bool {
        self.records.has_images()
    }

    /// Streams all rows without their images ([`PairRow::image`](super::PairRow::image) is `None`
    /// twice).
    ///
    /// # Errors
    /// When the file is missing, changed or damaged; the same for each item.
    pub fn plan_rows(&self) -> Result<PairRows, PairsError> {
        self.plan_rows_in(0..self.num_rows())
    }

    /// [`PairFile::plan_rows`] for some of the rows; rows beyond the file do not count.
    pub fn plan_rows_in(&self, rows: Range<i64>) -> Result<PairRows, PairsError> {
        self.stream(rows, PLAN_BATCH_ROWS, false)
    }

    /// Streams all rows with their images, at most `batch_rows` at a time.
    pub fn rows_with_images(&self, batch_rows: usize) -> Result<PairRows, PairsError> {
        self.rows_with_images_in(0..self.num_rows(), batch_rows)
    }

    /// [`PairFile::rows_with_images`] for some of the rows; rows beyond the file do not count. It
    /// begins to read at the row group, the sample or the record of the first.
    pub fn rows_with_images_in(
        &self,
        rows: Range<i64>,
        batch_rows: usize,
    ) -> Result<PairRows, PairsError> {
        self.stream(rows, batch_rows, true)
    }

    fn stream(
        &self,
        rows: Range<i64>,
        batch_rows: usize,
        images: bool,
    ) -> Result<PairRows, PairsError> {
        let start = rows.start.clamp(0, self.num_rows());
        let rows = start..rows.end.clamp(start, self.num_rows());
        let batches = self.records.rows(rows, batch_rows, images && self.has_images())?;
        Ok(PairRows::new(batches, self.source_file()))
    }
}
