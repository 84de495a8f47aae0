//! One pairs file, opened and checked.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use super::images::ImageColumn;
use super::layout::Layout;
use super::rows::{PairRow, PairRows};
use super::{InputFile, PairsError};
use crate::input::ParquetInput;

/// The rows of a batch of [`PairFile::plan_rows`]; texts are small, so a batch is about 2 MB.
const PLAN_BATCH_ROWS: usize = 8192;

/// A row group: a reader can start at any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroup {
    /// The number of its first row in the file.
    pub first_row: i64,
    /// How many rows it has.
    pub num_rows: i64,
    /// The size of all its columns on the disk, in bytes, according to the footer.
    pub compressed_bytes: i64,
    /// The decompressed size of the columns that are read, in bytes, according to the footer.
    pub uncompressed_bytes: i64,
    /// How many rows lack image 0, and how many image 1, according to the footer.
    pub missing_images: [u64; 2],
}

/// A pairs file with checked columns. It holds the footer, not the rows, and no open file.
#[derive(Clone, Debug)]
pub struct PairFile {
    input: InputFile,
    parquet: ParquetInput,
    reader: ArrowReaderMetadata,
    layout: Layout,
}

impl PairFile {
    /// Opens a file that must have images.
    ///
    /// # Errors
    /// When it is not readable Parquet, breaks a limit of [`crate::input`], or lacks columns: then
    /// one error lists all that are missing or of the wrong type.
    pub fn open(input: &InputFile) -> Result<Self, PairsError> {
        Self::open_as(input, true)
    }

    /// Opens a file for its texts and labels alone, such as the `no_images` variants of Pick-a-Pic.
    ///
    /// # Errors
    /// As for [`PairFile::open`], except that image columns need not exist.
    pub fn open_without_images(input: &InputFile) -> Result<Self, PairsError> {
        Self::open_as(input, false)
    }

    fn open_as(input: &InputFile, images: bool) -> Result<Self, PairsError> {
        let parquet = ParquetInput::open(&input.path)?;
        let metadata = Arc::clone(parquet.metadata());
        let stored = parquet.contained(|| {
            let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            ArrowReaderMetadata::try_new(Arc::clone(&metadata), plain)
        })?;
        let layout = parquet
            .contained(|| Ok(Layout::find(stored.schema(), stored.parquet_schema(), images)))?
            .map_err(|problems| problems.error(&input.path, stored.schema()))?;
        parquet.check_chunks(&layout.text_leaves)?;
        parquet.check_chunks(&layout.image_leaves)?;
        // A column that cannot be read with this schema fails here, not after hours.
        let reader = parquet.contained(|| {
            let views = ArrowReaderOptions::new().with_schema(Arc::clone(&layout.schema));
            ArrowReaderMetadata::try_new(metadata, views)
        })?;
        Ok(Self { input: input.clone(), parquet, reader, layout })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.input.path
    }

    /// Its name in the output.
    pub fn source_file(&self) -> &str {
        &self.input.source_file
    }

    /// How many pairs it holds.
    pub fn num_rows(&self) -> i64 {
        self.parquet.num_rows()
    }

    /// blake3 of the file's length and footer, in hexadecimal. The footer holds the sizes, offsets
    /// and statistics of all data: this is cheap, and enough to notice a replaced file.
    pub fn fingerprint(&self) -> String {
        self.parquet.fingerprint().to_owned()
    }

    /// The row groups, in file order.
    pub fn row_groups(&self) -> Vec<RowGroup> {
        let mut first_row = 0;
        let groups = self.parquet.metadata().row_groups().iter();
        groups
            .map(|group| {
                let compressed_bytes = group
                    .columns()
                    .iter()
                    .fold(0_i64, |sum, chunk| sum.saturating_add(chunk.compressed_size().max(0)));
                let leaves = self.layout.text_leaves.iter().chain(&self.layout.image_leaves);
                let uncompressed_bytes = leaves
                    .filter_map(|&leaf| group.columns().get(leaf))
                    .fold(0_i64, |sum, chunk| sum.saturating_add(chunk.uncompressed_size().max(0)));
                let missing = |image: usize| {
                    let leaf = self.layout.image_leaves.get(image)?;
                    group.columns().get(*leaf)?.statistics()?.null_count_opt()
                };
                let here = RowGroup {
                    first_row,
                    num_rows: group.num_rows(),
                    compressed_bytes,
                    uncompressed_bytes,
                    missing_images: [0, 1].map(|image| missing(image).unwrap_or(0)),
                };
                first_row += group.num_rows();
                here
            })
            .collect()
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

    /// Whether the file was opened with its images.
    pub fn has_images(&self) -> bool {
        !self.layout.image_leaves.is_empty()
    }

    /// Streams all rows without their images ([`PairRow::image`] is `None` twice).
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
    ///
    /// Images are not copied: each keeps its page. A page of more than
    /// [`crate::scratch::IN_MEMORY_BYTES`] lies in a scratch file, not in memory, so that a column
    /// holds at most a dictionary page and a data page of that size.
    pub fn rows_with_images(&self, batch_rows: usize) -> Result<PairRows, PairsError> {
        self.rows_with_images_in(0..self.num_rows(), batch_rows)
    }

    /// [`PairFile::rows_with_images`] for some of the rows; rows beyond the file do not count. It
    /// does not touch row groups before the range, nor decompress pages before it.
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
        let (groups, first_row) = self.parquet.row_groups_of(&rows);
        let file = self.parquet.reopen()?;
        // Between 0 and the number of rows.
        let skipped = (rows.start - first_row) as usize;
        let images = self.parquet.contained(|| {
            let leaves = self.layout.image_leaves.iter().filter(|_| images);
            let columns = leaves.map(|&leaf| {
                let metadata = self.parquet.metadata();
                let mut column = ImageColumn::new(file.clone(), metadata, groups.clone(), leaf)?;
                column.skip(skipped)?;
                Ok(column)
            });
            columns.collect::<Result<Vec<_>, ParquetError>>()
        })?;
        let reader = self.parquet.contained(|| {
            let builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.reader.clone());
            let leaves = self.layout.text_leaves.iter().copied();
            let mask = ProjectionMask::leaves(builder.parquet_schema(), leaves);
            builder
                .with_batch_size(batch_rows.max(1))
                .with_row_groups(groups)
                .with_projection(mask)
                .with_offset(skipped)
                .with_limit((rows.end - rows.start) as usize)
                .build()
        })?;
        Ok(PairRows::new(reader, images, self.parquet.clone(), &self.input.source_file, rows))
    }
}

/// The rows of a file, batch by batch.
impl PairRows {
    /// All rows of the remaining batches at once, for small files and tests.
    ///
    /// # Errors
    /// The first error of a batch.
    pub fn collect_rows(self) -> Result<Vec<PairRow>, PairsError> {
        let mut rows = Vec::new();
        for batch in self {
            rows.extend(batch?);
        }
        Ok(rows)
    }
}
