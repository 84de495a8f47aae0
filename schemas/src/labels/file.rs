//! Reads `labels.parquet`, whichever tool wrote it: column order, extra columns and nullability are
//! free; names and types are not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use super::batch::LabelBatch;
use super::schema::LabelsSchema;
use super::{KEY_SCHEMA_VERSION, LabelsError, SCHEMA_VERSION};
use crate::exact::{self, Failure, Inexact, Target};
use crate::input::ParquetInput;

/// The rows of a batch.
const BATCH_ROWS: usize = 16_384;

/// A labels file with checked columns. It holds the footer, not the rows, and no open file.
#[derive(Clone, Debug)]
pub struct LabelsFile {
    parquet: ParquetInput,
    schema: LabelsSchema,
    metadata: BTreeMap<String, String>,
    reader: ArrowReaderMetadata,
    /// The position of each of our columns in the file.
    positions: Vec<usize>,
}

impl LabelsFile {
    /// Opens and checks a file. The names of the vote columns name the scorers.
    ///
    /// # Errors
    /// When it is not readable Parquet, breaks a limit of [`crate::input`], was written by another
    /// schema version, or is not a labels file: then one error lists all columns that are missing
    /// or of the wrong type.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LabelsError> {
        let path = path.as_ref();
        let parquet = ParquetInput::open(path)?;
        let metadata = Arc::clone(parquet.metadata());
        let stored = parquet.contained(|| {
            let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            ArrowReaderMetadata::try_new(Arc::clone(&metadata), plain)
        })?;
        let columns = |problems| LabelsError::Columns { path: path.to_owned(), problems };
        let scorers = LabelsSchema::scorers_in(stored.schema());
        if scorers.is_empty() {
            let problem = "expected a column SCORER_vote for each scorer, found none".to_owned();
            return Err(columns(vec![problem]));
        }
        let schema =
            LabelsSchema::new(&scorers).map_err(|error| columns(vec![error.to_string()]))?;
        let key_values = parquet.key_values();
        if let Some(found) = key_values.get(KEY_SCHEMA_VERSION)
            && *found != SCHEMA_VERSION.to_string()
        {
            return Err(LabelsError::Version { path: path.to_owned(), found: found.clone() });
        }
        let (positions, views) = find_columns(&schema, stored.schema()).map_err(columns)?;
        let reader = parquet.contained(|| {
            let views = ArrowReaderOptions::new().with_schema(Arc::new(views));
            ArrowReaderMetadata::try_new(metadata, views)
        })?;
        let file = Self { parquet, schema, metadata: key_values, reader, positions };
        file.parquet.check_chunks(&file.leaves()?)?;
        Ok(file)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.parquet.path()
    }

    /// Its columns.
    pub fn schema(&self) -> &LabelsSchema {
        &self.schema
    }

    /// The file's key-value metadata without Arrow's own entry; empty if another tool wrote it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// How many pairs it holds.
    pub fn num_rows(&self) -> i64 {
        self.parquet.num_rows()
    }

    /// blake3 of the file's length and footer, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.parquet.fingerprint().to_owned()
    }

    /// Streams all rows.
    ///
    /// # Errors
    /// When the file is missing, changed or damaged; the same for each item.
    pub fn batches(&self) -> Result<LabelBatches, LabelsError> {
        let leaves = self.leaves()?;
        let groups: Vec<usize> = (0..self.parquet.metadata().num_row_groups()).collect();
        let file = self.parquet.reopen_reading(&groups, &leaves, &[])?;
        let reader = self.parquet.contained(|| {
            let builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.reader.clone());
            let mask = ProjectionMask::leaves(builder.parquet_schema(), leaves);
            builder.with_batch_size(BATCH_ROWS).with_projection(mask).build()
        })?;
        // The projected columns come in file order.
        let mut file_order = self.positions.clone();
        file_order.sort_unstable();
        let order =
            self.positions.iter().filter_map(|position| file_order.binary_search(position).ok());
        Ok(LabelBatches {
            order: order.collect(),
            rows_left: self.num_rows(),
            reader: Some(reader),
            parquet: self.parquet.clone(),
            schema: self.schema.clone(),
        })
    }

    /// All rows at once, for small files and tests.
    ///
    /// # Errors
    /// The first error of a batch, or a status that this version does not know.
    pub fn read_rows(&self) -> Result<Vec<super::LabelRow>, LabelsError> {
        let mut rows = Vec::new();
        for batch in self.batches()? {
            let batch = batch?;
            for index in 0..batch.num_rows() {
                rows.push(batch.row(index)?);
            }
        }
        Ok(rows)
    }

    /// The leaf columns of our columns, which are all flat.
    fn leaves(&self) -> Result<Vec<usize>, LabelsError> {
        let leaves = self.parquet.contained(|| {
            let parquet = self.reader.parquet_schema();
            let ours = |leaf: &usize| self.positions.contains(&parquet.get_column_root_idx(*leaf));
            Ok((0..parquet.num_columns()).filter(ours).collect())
        })?;
        Ok(leaves)
    }
}

/// The rows of a labels file in order, a batch at a time. Ends after the first error.
pub struct LabelBatches {
    /// `None` after the end or an error.
    reader: Option<ParquetRecordBatchReader>,
    parquet: ParquetInput,
    schema: LabelsSchema,
    order: Vec<usize>,
    rows_left: i64,
}

impl std::fmt::Debug for LabelBatches {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LabelBatches")
            .field("path", &self.parquet.path())
            .field("rows_left", &self.rows_left)
            .finish_non_exhaustive()
    }
}

impl LabelBatches {
    fn decode(&mut self) -> Result<Option<LabelBatch>, LabelsError> {
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        let batch: Option<RecordBatch> =
            self.parquet.contained(|| reader.next().transpose().map_err(ParquetError::from))?;
        let Some(batch) = batch else {
            return match self.rows_left {
                0 => Ok(None),
                left => {
                    Err(self.parquet.damaged(format!("{left} rows fewer than promised")).into())
                }
            };
        };
        let first_row = (self.parquet.num_rows() - self.rows_left) as usize;
        let columns = self.order.iter().filter_map(|&position| batch.columns().get(position));
        let columns = columns.zip(self.schema.memory_schema().fields()).map(|(column, field)| {
            exact::read(column, target(field.data_type())).map_err(|failure| match failure {
                Failure::Inexact(Inexact { index, found }) => LabelsError::Value {
                    path: self.parquet.path().to_owned(),
                    row: first_row + index,
                    problem: format!("{} is {found}, expected {}", field.name(), field.data_type()),
                },
                Failure::Arrow(error) => self.parquet.damaged(error.to_string()).into(),
            })
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let batch = LabelBatch::try_new(&self.schema, columns)
            .map_err(|error| self.parquet.damaged(error.to_string()))?;
        batch.check().map_err(|error| match error {
            LabelsError::Row { row, problem, .. } => {
                let path = self.parquet.path().to_owned();
                LabelsError::Value { path, row: first_row + row, problem }
            }
            other => other,
        })?;
        self.rows_left -= batch.num_rows() as i64;
        Ok(Some(batch))
    }
}

impl Iterator for LabelBatches {
    type Item = Result<LabelBatch, LabelsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.decode().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.reader = None;
        }
        item
    }
}

/// How a column of this type in memory is read.
fn target(memory: &DataType) -> Target<'_> {
    match memory {
        DataType::Utf8View => Target::Text,
        number => Target::Number(number),
    }
}

/// The position of each of our columns in the file, and the schema to read the file with.
fn find_columns(
    schema: &LabelsSchema,
    stored: &Schema,
) -> Result<(Vec<usize>, Schema), Vec<String>> {
    let mut fields: Vec<Arc<Field>> = stored.fields().iter().cloned().collect();
    let (mut positions, mut problems) = (Vec::new(), Vec::new());
    for column in schema.columns() {
        let expected = column.kind.stored_type();
        let Some((position, _)) = stored.column_with_name(&column.name) else {
            problems.push(format!("column {:?}: expected {expected}, found none", column.name));
            continue;
        };
        let Some(field) = fields.get_mut(position) else { continue };
        if *field.data_type() == expected {
            *field = Arc::new(field.as_ref().clone().with_data_type(column.kind.memory_type()));
            positions.push(position);
        } else if exact::is_possible(field.data_type(), target(&column.kind.memory_type())) {
            // pandas turns integers with gaps into floats and gives a column without values the
            // type "null".
            positions.push(position);
        } else {
            let found = field.data_type();
            problems.push(format!("column {:?}: expected {expected}, found {found}", column.name));
        }
    }
    if problems.is_empty() { Ok((positions, Schema::new(fields))) } else { Err(problems) }
}
