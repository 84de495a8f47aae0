//! Streaming the rows of a pairs file.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Float64Array, RecordBatch,
    StringViewArray, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::errors::ParquetError;

use super::PairsError;
use crate::input::ParquetInput;

/// How much text one item of the iterator may hold before it is cut short, in bytes. Only captions
/// far beyond the usual reach it; a single larger row still comes whole.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// The longest value that a view holds in itself rather than in a buffer, by the Arrow format.
const INLINE_BYTES: u32 = 12;

/// One pair of images.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRow {
    /// The row in the file, from 0.
    pub row: i64,
    /// `ranking_id` where the file has one for this row, else [`positional_pair_id`]. Unique if the
    /// input's own ids are.
    pub pair_id: String,
    /// The prompt of both images.
    pub caption: Option<String>,
    /// The names of the two images.
    pub image_uid: [Option<String>; 2],
    /// People's choice, `label_0` of the input: 1, 0 or 0.5; never NaN or infinite.
    pub human_label_0: Option<f64>,
    /// Whether the label was given by a person.
    pub has_label: Option<bool>,
    /// The two encoded images, where they were asked for and are there.
    pub image: [Option<Bytes>; 2],
}

/// The id of a pair by its place: `source_file:row`.
pub fn positional_pair_id(source_file: &str, row: i64) -> String {
    format!("{source_file}:{row}")
}

/// The rows of a file in order, some at a time. Ends after the first error.
pub struct PairRows {
    /// `None` once the end or an error was reached.
    reader: Option<ParquetRecordBatchReader>,
    parquet: ParquetInput,
    source_file: String,
    /// The rows that have not been handed out.
    rows: Range<i64>,
    /// A decoded batch and how many of its rows were handed out.
    pending: Option<(Columns, usize)>,
}

impl std::fmt::Debug for PairRows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PairRows")
            .field("source_file", &self.source_file)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl PairRows {
    pub(super) fn new(
        reader: ParquetRecordBatchReader,
        parquet: ParquetInput,
        source_file: &str,
        rows: Range<i64>,
    ) -> Self {
        let source_file = source_file.to_owned();
        Self { reader: Some(reader), parquet, source_file, rows, pending: None }
    }

    /// Decodes the next batch with rows in it; `None` at the end.
    fn decode(&mut self) -> Result<Option<Columns>, PairsError> {
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        let columns = self.parquet.contained(|| {
            match reader.next() {
                None => Ok(None),
                Some(batch) => batch.and_then(|batch| Columns::new(&batch)).map(Some),
            }
            .map_err(ParquetError::from)
        })?;
        let missing = self.rows.end - self.rows.start;
        match columns {
            None if missing > 0 => {
                Err(self.parquet.damaged(format!("{missing} rows fewer than promised")).into())
            }
            other => Ok(other),
        }
    }

    fn take(&mut self) -> Result<Option<Vec<PairRow>>, PairsError> {
        let (columns, start) = match self.pending.take() {
            Some(pending) => pending,
            None => match self.decode()? {
                Some(columns) => (columns, 0),
                None => return Ok(None),
            },
        };
        let (mut rows, mut text, mut index) = (Vec::new(), 0, start);
        while index < columns.len && (rows.is_empty() || text < MAX_TEXT_BYTES) {
            let row = columns.row(index, self.rows.start, &self.source_file);
            text += row.caption.as_ref().map_or(0, String::len) + row.pair_id.len();
            text += row.image_uid.iter().flatten().map(String::len).sum::<usize>();
            rows.push(row);
            self.rows.start += 1;
            index += 1;
        }
        if index < columns.len {
            self.pending = Some((columns, index));
        }
        Ok(Some(rows))
    }
}

impl Iterator for PairRows {
    type Item = Result<Vec<PairRow>, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.take().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.reader = None;
            self.pending = None;
        }
        item
    }
}

/// The columns of one decoded batch.
struct Columns {
    len: usize,
    caption: StringViewArray,
    image_uid: [StringViewArray; 2],
    label: Option<Float64Array>,
    has_label: Option<BooleanArray>,
    ranking_id: Option<StringViewArray>,
    image: [Option<Images>; 2],
}

/// The bytes of one image column; for the struct form a null struct counts as a null image.
struct Images {
    bytes: BinaryViewArray,
    outer: Option<ArrayRef>,
}

impl Columns {
    fn new(batch: &RecordBatch) -> Result<Self, ArrowError> {
        let text = |name: &str| {
            optional_text(batch, name)?.ok_or_else(|| unexpected(name, "no such column"))
        };
        let label = match batch.column_by_name("label_0") {
            Some(column) => {
                Some(cast(column, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
            }
            None => None,
        };
        let has_label =
            batch.column_by_name("has_label").and_then(|column| column.as_boolean_opt().cloned());
        Ok(Self {
            len: batch.num_rows(),
            caption: text("caption")?,
            image_uid: [text("image_0_uid")?, text("image_1_uid")?],
            label,
            has_label,
            ranking_id: optional_text(batch, "ranking_id")?,
            image: [Images::find(batch, "jpg_0")?, Images::find(batch, "jpg_1")?],
        })
    }

    fn row(&self, index: usize, row: i64, source_file: &str) -> PairRow {
        let ranking_id = self.ranking_id.as_ref().and_then(|ids| text_at(ids, index));
        let [first, second] = &self.image;
        PairRow {
            row,
            pair_id: ranking_id
                .filter(|id| !id.is_empty())
                .unwrap_or_else(|| positional_pair_id(source_file, row)),
            caption: text_at(&self.caption, index),
            image_uid: self.image_uid.each_ref().map(|uids| text_at(uids, index)),
            human_label_0: self
                .label
                .as_ref()
                .filter(|labels| labels.is_valid(index))
                .map(|labels| labels.value(index))
                .filter(|label| label.is_finite()),
            has_label: self
                .has_label
                .as_ref()
                .filter(|flags| flags.is_valid(index))
                .map(|flags| flags.value(index)),
            image: [first, second].map(|images| images.as_ref().and_then(|i| i.at(index))),
        }
    }
}

impl Images {
    fn find(batch: &RecordBatch, name: &str) -> Result<Option<Self>, ArrowError> {
        let Some(column) = batch.column_by_name(name) else { return Ok(None) };
        let (bytes, outer) = match column.as_any().downcast_ref::<StructArray>() {
            Some(outer) => (outer.column_by_name("bytes"), Some(Arc::clone(column))),
            None => (Some(column), None),
        };
        let bytes = bytes
            .and_then(|column| column.as_any().downcast_ref::<BinaryViewArray>())
            .ok_or_else(|| unexpected(name, "no bytes"))?;
        Ok(Some(Self { bytes: bytes.clone(), outer }))
    }

    /// The image without copying it out of its page, but for the few bytes a view holds itself.
    fn at(&self, index: usize) -> Option<Bytes> {
        if self.outer.as_ref().is_some_and(|outer| outer.is_null(index))
            || self.bytes.is_null(index)
        {
            return None;
        }
        let value = self.bytes.value(index);
        let view = arrow::array::ByteView::from(self.bytes.views().get(index).copied()?);
        if view.length <= INLINE_BYTES {
            return Some(Bytes::copy_from_slice(value));
        }
        let buffer = self.bytes.data_buffers().get(view.buffer_index as usize)?;
        Some(Bytes::from(buffer.slice_with_length(view.offset as usize, view.length as usize)))
    }
}

fn optional_text(batch: &RecordBatch, name: &str) -> Result<Option<StringViewArray>, ArrowError> {
    match batch.column_by_name(name) {
        None => Ok(None),
        Some(column) => match column.as_string_view_opt() {
            Some(text) => Ok(Some(text.clone())),
            None => Ok(Some(cast(column, &DataType::Utf8View)?.as_string_view().clone())),
        },
    }
}

fn text_at(column: &StringViewArray, index: usize) -> Option<String> {
    column.is_valid(index).then(|| column.value(index).to_owned())
}

fn unexpected(column: &str, found: &str) -> ArrowError {
    ArrowError::SchemaError(format!("column {column:?}: {found}"))
}
