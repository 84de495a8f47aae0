//! A Parquet file whose columns a layout reads by name.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

use crate::exact::{self, Failure, Target};
use crate::input::{InputError, ParquetInput};
use crate::pairs::{ImageColumn, RowGroup};

/// An opened file. It holds the footer, not the rows, and no open file.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) parquet: ParquetInput,
    /// With the types as Parquet stores them: large, view and dictionary text is all plain text.
    pub(super) reader: ArrowReaderMetadata,
}

impl Table {
    pub(super) fn open(path: &Path) -> Result<Self, InputError> {
        let parquet = ParquetInput::open(path)?;
        let metadata = Arc::clone(parquet.metadata());
        let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let reader = parquet.contained(|| ArrowReaderMetadata::try_new(metadata, plain))?;
        Ok(Self { parquet, reader })
    }

    pub(super) fn schema(&self) -> &Schema {
        self.reader.schema()
    }

    pub(super) fn has(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.schema().column_with_name(name).is_some())
    }

    /// The type of a column at the top level.
    pub(super) fn type_of(&self, name: &str) -> Option<&DataType> {
        self.schema().column_with_name(name).map(|(_, field)| field.data_type())
    }

    /// The leaf columns of a column at the top level, or of one field of it.
    pub(super) fn leaves(&self, name: &str, field: Option<&str>) -> Vec<usize> {
        let stored = self.reader.parquet_schema();
        (0..stored.num_columns())
            .filter(|&leaf| {
                let column = stored.column(leaf);
                let mut parts = column.path().parts().iter();
                parts.next().is_some_and(|root| root == name)
                    && field.is_none_or(|field| parts.next().is_some_and(|part| part == field))
            })
            .collect()
    }

    /// Readers of some rows, which lie in the file: of the leaf columns `leaves`, and of each of
    /// the leaf columns of images.
    pub(super) fn read(
        &self,
        leaves: &[usize],
        image_leaves: &[usize],
        rows: &Range<i64>,
        batch_rows: usize,
    ) -> Result<(ParquetRecordBatchReader, Vec<ImageColumn>), InputError> {
        let (groups, first_row) = self.parquet.row_groups_of(rows);
        let (file, index) = self.parquet.reopen_part(&groups, leaves, image_leaves, rows)?;
        // Between 0 and the number of rows.
        let skipped = (rows.start - first_row) as usize;
        let images = self.parquet.contained(|| {
            let columns = image_leaves.iter().map(|&leaf| {
                let metadata = index.as_ref().unwrap_or_else(|| self.parquet.metadata());
                let mut column = ImageColumn::new(file.clone(), metadata, groups.clone(), leaf)?;
                column.skip(skipped)?;
                Ok(column)
            });
            columns.collect::<Result<Vec<_>, ParquetError>>()
        })?;
        let reader = self.parquet.contained(|| {
            let builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.reader.clone());
            let mask = ProjectionMask::leaves(builder.parquet_schema(), leaves.iter().copied());
            builder
                .with_batch_size(batch_rows.max(1))
                .with_row_groups(groups)
                .with_projection(mask)
                .with_offset(skipped)
                .with_limit((rows.end - rows.start) as usize)
                .build()
        })?;
        Ok((reader, images))
    }

    /// The next batch of a reader of this file.
    pub(super) fn next(
        &self,
        reader: &mut ParquetRecordBatchReader,
    ) -> Result<Option<RecordBatch>, InputError> {
        self.parquet.contained(|| reader.next().transpose().map_err(ParquetError::from))
    }

    /// A column of a batch, or one field of it, read as `target`; none if there is no such column.
    pub(super) fn column(
        &self,
        batch: &RecordBatch,
        name: &str,
        field: Option<&str>,
        target: Target<'_>,
    ) -> Result<Option<ArrayRef>, InputError> {
        let column = batch.column_by_name(name).cloned();
        let column = match field {
            None => column,
            Some(field) => column.and_then(|column| {
                use arrow::array::{Array as _, AsArray as _};
                let structs = column.as_struct_opt()?;
                let inner = structs.column_by_name(field)?;
                // A null struct has null fields.
                let nulls = arrow::buffer::NullBuffer::union(inner.nulls(), structs.nulls());
                let data = inner.to_data().into_builder().nulls(nulls).build().ok()?;
                Some(arrow::array::make_array(data))
            }),
        };
        let Some(column) = column else { return Ok(None) };
        exact::read(&column, target).map(Some).map_err(|failure| {
            self.parquet.damaged(match failure {
                Failure::Inexact(inexact) => {
                    format!("column {name:?}: found {}, expected text", inexact.found)
                }
                Failure::Arrow(error) => format!("column {name:?}: {error}"),
            })
        })
    }

    /// The row groups, with the sizes of the leaf columns that are read.
    pub(super) fn row_groups(&self, text: &[usize], images: &[usize]) -> Vec<RowGroup> {
        let mut first_row = 0;
        let groups = self.parquet.metadata().row_groups().iter();
        groups
            .map(|group| {
                let sum = |sizes: &mut dyn Iterator<Item = i64>| {
                    sizes.fold(0_i64, |sum, size| sum.saturating_add(size.max(0)))
                };
                let compressed_bytes =
                    sum(&mut group.columns().iter().map(ColumnChunkMetaData::compressed_size));
                let leaves = text.iter().chain(images);
                let uncompressed_bytes = sum(&mut leaves
                    .filter_map(|&leaf| group.columns().get(leaf))
                    .map(ColumnChunkMetaData::uncompressed_size));
                let missing = |image: usize| {
                    let leaf = images.get(image)?;
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
}
