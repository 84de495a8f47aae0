//! Pick-a-Pic's Parquet (v1, v2 and mirrors), which is ours too: the columns of
//! [`crate::columns::PAIR_COLUMNS`].

use std::ops::Range;
use std::sync::Arc;

use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};

use super::table::Table;
use super::{Batches, Layout, Records};
use crate::pairs::{Columns, InputFile, PairsError, ParquetRows, RowGroup};

/// A file of pairs in Pick-a-Pic's columns.
#[derive(Clone, Debug)]
pub(super) struct PickAPic {
    input: InputFile,
    table: Table,
    columns: Columns,
}

impl PickAPic {
    /// Checks the columns.
    ///
    /// # Errors
    /// When columns are missing or have the wrong type; one error lists them all.
    pub(super) fn open(input: &InputFile, table: Table, images: bool) -> Result<Self, PairsError> {
        let Table { parquet, reader } = table;
        let columns = parquet
            .contained(|| Ok(Columns::find(reader.schema(), reader.parquet_schema(), images)))?
            .map_err(|problems| problems.error(&input.path, reader.schema()))?;
        parquet.check_chunks(&columns.text_leaves)?;
        parquet.check_chunks(&columns.image_leaves)?;
        // A column that cannot be read with this schema fails here, not after hours.
        let metadata = Arc::clone(parquet.metadata());
        let reader = parquet.contained(|| {
            let views = ArrowReaderOptions::new().with_schema(Arc::clone(&columns.schema));
            ArrowReaderMetadata::try_new(metadata, views)
        })?;
        Ok(Self { input: input.clone(), table: Table { parquet, reader }, columns })
    }
}

impl Records for PickAPic {
    fn layout(&self) -> Layout {
        Layout::PickAPic
    }

    fn num_rows(&self) -> i64 {
        self.table.parquet.num_rows()
    }

    fn fingerprint(&self) -> &str {
        self.table.parquet.fingerprint()
    }

    fn row_groups(&self) -> Vec<RowGroup> {
        self.table.row_groups(&self.columns.text_leaves, &self.columns.image_leaves)
    }

    fn has_images(&self) -> bool {
        !self.columns.image_leaves.is_empty()
    }

    fn costs_whole_groups(&self) -> bool {
        self.table.parquet.costs_whole_groups(&self.columns.image_leaves)
    }

    /// Images are not copied: each keeps its page. A page of more than
    /// [`crate::scratch::IN_MEMORY_BYTES`] lies in a scratch file, not in memory, so that a column
    /// holds at most a dictionary page and a data page of that size. Row groups before the range
    /// are not touched, nor pages before it decompressed.
    fn rows(
        &self,
        rows: Range<i64>,
        batch_rows: usize,
        images: bool,
    ) -> Result<Batches, PairsError> {
        let image_leaves = if images { self.columns.image_leaves.as_slice() } else { &[] };
        let leaves = &self.columns.text_leaves;
        let (reader, images) = self.table.read(leaves, image_leaves, &rows, batch_rows)?;
        let parquet = self.table.parquet.clone();
        Ok(Box::new(ParquetRows::new(reader, images, parquet, &self.input.source_file, rows)))
    }
}
