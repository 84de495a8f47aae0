//! Streams the rows of a pairs file.

use std::ops::Range;

use arrow::array::{Array, AsArray, BooleanArray, Float64Array, RecordBatch, StringViewArray};
use arrow::datatypes::Float64Type;
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::errors::ParquetError;

use super::PairsError;
use super::columns::{LABEL_1, target};
use super::images::ImageColumn;
use crate::columns::{PairType, is_human_label};
use crate::exact::{self, Failure, Inexact};
use crate::input::ParquetInput;
use crate::layouts::Batches;

/// The most text in one item of the iterator, in bytes. Only captions far beyond the usual reach
/// it; a single larger row still comes whole.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// The values of `label_0`.
pub(crate) const LABELS: &str = "1 (image 0), 0 (image 1), 0.5 (a tie) or null; hint: if the values are 1, 0 \
                      and -1, write (label_0 + 1) / 2; if they are 1 and 2, write 2 - label_0; leave \
                      out a column of ratings or ranks";
/// The values of a caption.
const TEXTS: &str = "text in UTF-8; hint: pandas reads bytes in another encoding with \
                     df.caption.str.decode('latin-1')";
/// The values of an id.
const NAMES: &str = "text, a whole number or a UUID; hint: in DuckDB CAST(… AS VARCHAR)";
/// The values of a flag.
const FLAGS: &str = "true or false, 1 or 0";
/// The values of a number.
const NUMBERS: &str = "a number that float64 holds";

/// Why a row has no human label although `label_0` holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoVote {
    /// `has_label` is false: nobody gave a label.
    HasLabelFalse,
    /// `label_1` is not 1 minus `label_0`.
    Contradiction,
    /// `label_0` is NaN.
    NotANumber,
}

/// One pair of images.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRow {
    /// The row in the file, from 0.
    pub row: i64,
    /// `ranking_id` if the row has one, else [`positional_pair_id`]. Unique if the input's ids are.
    pub pair_id: String,
    /// The prompt of both images.
    pub caption: Option<String>,
    /// The names of the two images.
    pub image_uid: [Option<String>; 2],
    /// The human label, `label_0` of the input: 1, 0 or 0.5.
    pub human_label_0: Option<f64>,
    /// Why `human_label_0` is `None` although the input has a value.
    pub no_vote: Option<NoVote>,
    /// `label_0` of the input if `no_vote` says why it does not count; `None` of NaN.
    pub unused_label_0: Option<f64>,
    /// The two encoded images, if images are read and the row has them.
    pub image: [Option<Bytes>; 2],
    /// Why the file has no such image, if it says more than null.
    pub absent: [Option<String>; 2],
}

/// The id of a pair by its position: `source_file:row`.
pub fn positional_pair_id(source_file: &str, row: i64) -> String {
    format!("{source_file}:{row}")
}

/// The rows of a file in order, a batch at a time. Ends after the first error.
pub struct PairRows {
    batches: Batches,
    source_file: String,
}

impl std::fmt::Debug for PairRows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PairRows")
            .field("source_file", &self.source_file)
            .finish_non_exhaustive()
    }
}

impl PairRows {
    pub(super) fn new(batches: Batches, source_file: &str) -> Self {
        Self { batches, source_file: source_file.to_owned() }
    }

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

impl Iterator for PairRows {
    type Item = Result<Vec<PairRow>, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batches.next()
    }
}

/// The rows of a Parquet file in Pick-a-Pic's columns. Ends after the first error.
pub(crate) struct ParquetRows {
    /// `None` after the end or an error.
    reader: Option<ParquetRecordBatchReader>,
    /// The columns of image 0 and image 1, if images are read.
    images: Vec<ImageColumn>,
    parquet: ParquetInput,
    source_file: String,
    /// The rows that are left.
    rows: Range<i64>,
    /// A decoded batch, and how many of its rows were returned.
    pending: Option<(Batch, usize)>,
}

impl ParquetRows {
    pub(crate) fn new(
        reader: ParquetRecordBatchReader,
        images: Vec<ImageColumn>,
        parquet: ParquetInput,
        source_file: &str,
        rows: Range<i64>,
    ) -> Self {
        let source_file = source_file.to_owned();
        Self { reader: Some(reader), images, parquet, source_file, rows, pending: None }
    }

    /// Decodes the next batch that has rows; `None` at the end.
    fn decode(&mut self) -> Result<Option<Batch>, PairsError> {
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        let batch =
            self.parquet.contained(|| reader.next().transpose().map_err(ParquetError::from))?;
        let images = self.parquet.contained(|| {
            let count = batch.as_ref().map_or(0, RecordBatch::num_rows);
            self.images.iter_mut().map(|column| column.take(count)).collect::<Result<Vec<_>, _>>()
        })?;
        let columns =
            batch.map(|batch| Batch::new(&batch, images)).transpose().map_err(|problem| {
                match problem {
                    Problem::Value { index, column, found, expected } => PairsError::Value {
                        path: self.parquet.path().to_owned(),
                        row: self.rows.start + index as i64,
                        column,
                        found,
                        expected,
                    },
                    Problem::Arrow(error) => self.parquet.damaged(error.to_string()).into(),
                }
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
            let row = row.map_err(|found| PairsError::Value {
                path: self.parquet.path().to_owned(),
                row: self.rows.start,
                column: "label_0",
                found,
                expected: LABELS,
            })?;
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

impl Iterator for ParquetRows {
    type Item = Result<Vec<PairRow>, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.take().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.reader = None;
            self.images.clear();
            self.pending = None;
        }
        item
    }
}

/// The columns of one decoded batch.
struct Batch {
    len: usize,
    caption: StringViewArray,
    image_uid: [StringViewArray; 2],
    label: [Option<Float64Array>; 2],
    has_label: Option<BooleanArray>,
    ranking_id: Option<StringViewArray>,
    /// Image 0 and image 1, if images are read.
    images: Vec<Vec<Option<Bytes>>>,
}

/// Why a batch cannot be used.
enum Problem {
    Value { index: usize, column: &'static str, found: String, expected: &'static str },
    Arrow(ArrowError),
}

impl From<ArrowError> for Problem {
    fn from(error: ArrowError) -> Self {
        Self::Arrow(error)
    }
}

impl Batch {
    fn new(batch: &RecordBatch, images: Vec<Vec<Option<Bytes>>>) -> Result<Self, Problem> {
        let read = |name: &'static str, kind: PairType, expected: &'static str| {
            let Some(column) = batch.column_by_name(name) else { return Ok(None) };
            exact::read(column, target(kind)).map(Some).map_err(|failure| match failure {
                Failure::Inexact(Inexact { index, found }) => {
                    Problem::Value { index, column: name, found, expected }
                }
                Failure::Arrow(error) => Problem::Arrow(error),
            })
        };
        let text = |name, kind, expected| {
            let column = read(name, kind, expected)?;
            let column = column.ok_or_else(|| unexpected(name, "no such column"))?;
            Ok::<_, Problem>(column.as_string_view().clone())
        };
        let number = |name| {
            let column = read(name, PairType::Number, NUMBERS)?;
            Ok::<_, Problem>(column.map(|column| column.as_primitive::<Float64Type>().clone()))
        };
        let uid = |name| text(name, PairType::Identifier, NAMES);
        let has_label = read("has_label", PairType::Boolean, FLAGS)?;
        let ranking_id = read("ranking_id", PairType::Identifier, NAMES)?;
        Ok(Self {
            len: batch.num_rows(),
            caption: text("caption", PairType::Text, TEXTS)?,
            image_uid: [uid("image_0_uid")?, uid("image_1_uid")?],
            label: [number("label_0")?, number(LABEL_1)?],
            has_label: has_label.map(|column| column.as_boolean().clone()),
            ranking_id: ranking_id.map(|column| column.as_string_view().clone()),
            images,
        })
    }

    /// The human label of a row, or why it has none.
    ///
    /// # Errors
    /// The value, if it is not a label.
    fn human_label(&self, index: usize) -> Result<(Option<f64>, Option<NoVote>), String> {
        let number = |column: &Option<Float64Array>| {
            column.as_ref().filter(|column| column.is_valid(index)).map(|c| c.value(index))
        };
        let [first, second] = &self.label;
        let flag = self.has_label.as_ref().filter(|flags| flags.is_valid(index));
        let Some(label) = number(first) else { return Ok((None, None)) };
        let no_vote = if flag.is_some_and(|flags| !flags.value(index)) {
            NoVote::HasLabelFalse
        } else if label.is_nan() {
            NoVote::NotANumber
        } else if !is_human_label(label) {
            return Err(label.to_string());
        } else if number(second).is_some_and(|other| !other.is_nan() && other != 1.0 - label) {
            NoVote::Contradiction
        } else {
            return Ok((Some(label), None));
        };
        Ok((None, Some(no_vote)))
    }

    fn row(&self, index: usize, row: i64, source_file: &str) -> Result<PairRow, String> {
        let (human_label_0, no_vote) = self.human_label(index)?;
        let unused = self.label[0].as_ref().filter(|_| no_vote.is_some());
        let ranking_id = self.ranking_id.as_ref().and_then(|ids| text_at(ids, index));
        Ok(PairRow {
            row,
            pair_id: ranking_id
                .filter(|id| !id.is_empty())
                .unwrap_or_else(|| positional_pair_id(source_file, row)),
            caption: text_at(&self.caption, index),
            image_uid: self.image_uid.each_ref().map(|uids| text_at(uids, index)),
            human_label_0,
            no_vote,
            unused_label_0: unused.map(|label| label.value(index)).filter(|label| !label.is_nan()),
            image: [0, 1].map(|side| self.images.get(side)?.get(index)?.clone()),
            absent: [None, None],
        })
    }
}

fn text_at(column: &StringViewArray, index: usize) -> Option<String> {
    column.is_valid(index).then(|| column.value(index).to_owned())
}

fn unexpected(column: &str, found: &str) -> ArrowError {
    ArrowError::SchemaError(format!("column {column:?}: {found}"))
}
