//! Reads text columns of any Parquet file, for example of a list of prompts.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray, StringViewArray};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use crate::exact::{self, Failure, Inexact, Target};
use crate::input::{InputError, ParquetInput};

const BATCH_ROWS: usize = 8192;

/// A Parquet file with text columns. It holds the footer, not the rows.
#[derive(Debug)]
pub struct TextFile {
    parquet: ParquetInput,
    reader: ArrowReaderMetadata,
}

/// A column at the top level of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextColumn {
    /// Its name.
    pub name: String,
    /// Whether it holds text.
    pub is_text: bool,
    /// The type of its values, for messages.
    pub type_name: String,
}

impl TextFile {
    /// Opens a file and reads its footer.
    ///
    /// # Errors
    /// When it is not readable Parquet, or breaks a limit of [`crate::input`].
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let parquet = ParquetInput::open(path)?;
        let metadata = Arc::clone(parquet.metadata());
        // As Parquet stores it: large, view and dictionary text is all plain text there.
        let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let reader = parquet.contained(|| ArrowReaderMetadata::try_new(metadata, plain))?;
        Ok(Self { parquet, reader })
    }

    /// The columns, in file order.
    pub fn columns(&self) -> Vec<TextColumn> {
        let fields = self.reader.schema().fields().iter();
        fields
            .map(|field| TextColumn {
                name: field.name().clone(),
                is_text: exact::is_possible(field.data_type(), Target::Text),
                type_name: field.data_type().to_string(),
            })
            .collect()
    }

    /// Calls `body` for each row in order with the row's number, from 1, and its texts in
    /// `columns`, which are positions in [`TextFile::columns`].
    ///
    /// # Errors
    /// When a column is not a text column, or the file is damaged.
    pub fn for_each(
        &self,
        columns: &[usize],
        mut body: impl FnMut(usize, &[Option<&str>]),
    ) -> Result<(), InputError> {
        let parquet_schema = self.reader.parquet_schema();
        let leaves: Vec<usize> = (0..parquet_schema.num_columns())
            .filter(|&leaf| columns.contains(&parquet_schema.get_column_root_idx(leaf)))
            .collect();
        self.parquet.check_chunks(&leaves)?;
        let file = self.parquet.reopen()?;
        let mut reader = self.parquet.contained(|| {
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.reader.clone())
                .with_projection(ProjectionMask::leaves(parquet_schema, leaves))
                .with_batch_size(BATCH_ROWS)
                .build()
        })?;
        let mut row = 0;
        // The batches have their columns in file order, each once.
        let position = |column: usize| (0..column).filter(|other| columns.contains(other)).count();
        while let Some(batch) =
            self.parquet.contained(|| reader.next().transpose().map_err(ParquetError::from))?
        {
            let texts = columns.iter().map(|&column| {
                let name = |column: usize| self.reader.schema().field(column).name().clone();
                let values = batch.columns().get(position(column));
                let values = values.filter(|it| exact::is_possible(it.data_type(), Target::Text));
                let values = values.ok_or_else(|| {
                    self.parquet.damaged(format!("column {:?} holds no text", name(column)))
                })?;
                exact::read(values, Target::Text).map_err(|failure| match failure {
                    Failure::Inexact(Inexact { index, .. }) => self.parquet.damaged(format!(
                        "row {} of column {:?} holds bytes that are not text",
                        row + index + 1,
                        name(column)
                    )),
                    Failure::Arrow(error) => self.parquet.damaged(error.to_string()),
                })
            });
            let texts = texts.collect::<Result<Vec<ArrayRef>, _>>()?;
            let texts: Vec<_> = texts.iter().map(AsArray::as_string_view).collect();
            for index in 0..batch.num_rows() {
                row += 1;
                let values: Vec<Option<&str>> =
                    texts.iter().map(|text| value(text, index)).collect();
                body(row, &values);
            }
        }
        match usize::try_from(self.parquet.num_rows()) {
            Ok(promised) if promised == row => Ok(()),
            _ => Err(self.parquet.damaged(format!(
                "{row} rows, but its footer promises {}",
                self.parquet.num_rows()
            ))),
        }
    }
}

fn value(texts: &StringViewArray, index: usize) -> Option<&str> {
    texts.is_valid(index).then(|| texts.value(index))
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int64Array, LargeStringArray, StringArray};
    use arrow::datatypes::Int32Type;
    use arrow::record_batch::RecordBatch;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn written(columns: Vec<(&str, ArrayRef)>) -> tempfile::NamedTempFile {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer =
            ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        file
    }

    fn rows(file: &TextFile, columns: &[usize]) -> Vec<(usize, Vec<Option<String>>)> {
        let mut found = Vec::new();
        file.for_each(columns, |row, texts| {
            found.push((row, texts.iter().map(|text| text.map(str::to_owned)).collect()));
        })
        .unwrap();
        found
    }

    #[test]
    fn text_of_every_kind_is_read_in_the_order_asked_for() {
        let style: DictionaryArray<Int32Type> =
            vec!["anime", "photo", "anime"].into_iter().collect();
        let file = written(vec![
            ("style", Arc::new(style)),
            ("number", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            ("caption", Arc::new(LargeStringArray::from(vec![Some("a fox"), None, Some("")]))),
            ("note", Arc::new(StringArray::from(vec!["x", "y", "z"]))),
        ]);
        let file = TextFile::open(file.path()).unwrap();
        let names: Vec<_> = file.columns().into_iter().map(|c| (c.name, c.is_text)).collect();
        let expected = [("style", true), ("number", false), ("caption", true), ("note", true)];
        assert_eq!(names, expected.map(|(name, is_text)| (name.to_owned(), is_text)));
        assert_eq!(file.columns()[1].type_name, "Int64");
        let text = |text: &str| Some(text.to_owned());
        let expected = [
            (1, vec![text("a fox"), text("anime")]),
            (2, vec![None, text("photo")]),
            (3, vec![text(""), text("anime")]),
        ];
        assert_eq!(rows(&file, &[2, 0]), expected);
        assert_eq!(rows(&file, &[3])[2], (3, vec![text("z")]));
        let error = file.for_each(&[1], |_, _| ()).unwrap_err().to_string();
        assert!(error.contains("holds no text"), "{error}");
    }

    #[test]
    fn more_rows_than_a_batch_are_numbered_through() {
        let texts: Vec<String> = (1..=20_000).map(|row| format!("prompt {row}")).collect();
        let file = written(vec![("text", Arc::new(StringArray::from(texts)))]);
        let found = rows(&TextFile::open(file.path()).unwrap(), &[0]);
        assert_eq!(found.len(), 20_000);
        assert!(found.iter().all(|(row, text)| text[0] == Some(format!("prompt {row}"))));
    }
}
