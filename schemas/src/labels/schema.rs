//! The columns of a labels file for a list of scorers.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};

use super::LabelsError;
use crate::columns::{Column, ColumnType, VOTE_SUFFIX, labels_columns, schema_of};

/// The most scorers of one file: the sum of their votes is an 8-bit number.
pub const MAX_SCORERS: usize = i8::MAX as usize;
/// The longest name of a scorer, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The columns of a labels file for a list of scorers. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelsSchema {
    scorers: Arc<[String]>,
    memory: SchemaRef,
}

impl LabelsSchema {
    /// The schema for these scorers, in this order.
    ///
    /// # Errors
    /// When the list is empty or longer than [`MAX_SCORERS`], when a name is not made of `a-z 0-9
    /// _` or is longer than 64 bytes, or when a name occurs twice.
    pub fn new<S: AsRef<str>>(scorers: &[S]) -> Result<Self, LabelsError> {
        let scorers: Arc<[String]> = scorers.iter().map(|name| name.as_ref().to_owned()).collect();
        match problem(&scorers) {
            Some(problem) => Err(LabelsError::Scorers { problem }),
            None => {
                let memory = schema_of(&labels_columns(&scorers), ColumnType::memory_type);
                Ok(Self { memory, scorers })
            }
        }
    }

    /// The names of the scorers, in the order of their columns.
    pub fn scorers(&self) -> &[String] {
        &self.scorers
    }

    /// The columns with their meaning.
    pub fn columns(&self) -> Vec<Column> {
        labels_columns(&self.scorers)
    }

    /// The Arrow schema of a [`super::LabelBatch`], which holds text as views.
    pub fn memory_schema(&self) -> &SchemaRef {
        &self.memory
    }

    /// The Arrow schema that the file declares.
    pub fn file_schema(&self) -> SchemaRef {
        schema_of(&self.columns(), ColumnType::file_type)
    }

    /// The scorers in the column names of a file, in file order.
    pub(super) fn scorers_in(schema: &Schema) -> Vec<String> {
        let names = schema.fields().iter().map(|field| field.name());
        names.filter_map(|name| name.strip_suffix(VOTE_SUFFIX)).map(str::to_owned).collect()
    }
}

fn problem(scorers: &[String]) -> Option<String> {
    if scorers.is_empty() || scorers.len() > MAX_SCORERS {
        return Some(format!("expected 1 to {MAX_SCORERS} scorers, found {}", scorers.len()));
    }
    for (index, name) in scorers.iter().enumerate() {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
            return Some(format!(
                "expected 1 to {MAX_NAME_BYTES} of a-z, 0-9 and _, found {name:?}"
            ));
        }
        if scorers.iter().take(index).any(|other| other == name) {
            return Some(format!("expected each name once, found {name:?} twice"));
        }
    }
    None
}
