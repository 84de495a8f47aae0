//! The columns of every file, one module per stage. The Arrow schemas, the checks of the readers,
//! the reference pages and the DuckDB views are made from them, so they cannot disagree.

mod evaluation;
mod labels;
mod latents;
mod pairs;

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

pub use evaluation::{scores_columns, win_rates_columns};
pub(crate) use labels::{COLUMNS_BEFORE_SCORERS, COLUMNS_PER_SCORER, VOTE_SUFFIX};
pub use labels::{is_human_label, labels_columns};
pub use latents::{StoredFloat, captions_columns, latents_columns};
pub use pairs::{PAIR_COLUMNS, PairColumn, PairType, Presence};

/// The type of a column of a file that this workspace writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// UTF-8 text.
    Text,
    /// UTF-8 text with few distinct values, an Arrow dictionary (pandas reads it as a category).
    Category,
    /// 64-bit signed integer.
    Int64,
    /// 32-bit signed integer.
    Int32,
    /// 8-bit signed integer.
    Int8,
    /// Single precision number, never NaN or infinite.
    Float32,
    /// Double precision number, never NaN or infinite.
    Float64,
    /// A list of half precision numbers, never NaN or infinite.
    Float16List,
    /// A list of single precision numbers, never NaN or infinite.
    Float32List,
}

impl ColumnType {
    /// The Arrow type that the file declares to its readers.
    pub fn file_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Category => {
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
            }
            Self::Int64 => DataType::Int64,
            Self::Int32 => DataType::Int32,
            Self::Int8 => DataType::Int8,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Float16List => list_of(DataType::Float16),
            Self::Float32List => list_of(DataType::Float32),
        }
    }

    /// The Arrow type in memory. Text is held as views of its pages, which needs no copy and has no
    /// limit of 2 GiB on the text of one batch.
    pub fn memory_type(self) -> DataType {
        match self {
            Self::Text | Self::Category => DataType::Utf8View,
            other => other.file_type(),
        }
    }

    /// The type that Parquet itself stores, in Arrow's name for it if no Arrow schema is embedded.
    pub(crate) fn stored_type(self) -> DataType {
        match self {
            Self::Text | Self::Category => DataType::Utf8,
            other => other.file_type(),
        }
    }

    /// The name in the reference page.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Category => "string (dictionary)",
            Self::Int64 => "int64",
            Self::Int32 => "int32",
            Self::Int8 => "int8",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Float16List => "list of float16",
            Self::Float32List => "list of float32",
        }
    }
}

/// A list whose elements are never null, named as the Parquet format asks for.
fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element, false)))
}

/// One column of a file that this workspace writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name in the file.
    pub name: String,
    /// The type of its values.
    pub kind: ColumnType,
    /// Whether a value may be null: not computed, or not in the input.
    pub nullable: bool,
    /// One sentence for the reference page.
    pub meaning: Cow<'static, str>,
}

impl Column {
    fn new(
        name: impl Into<String>,
        kind: ColumnType,
        nullable: bool,
        meaning: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { name: name.into(), kind, nullable, meaning: meaning.into() }
    }
}

/// The Arrow schema of `columns`, with the types that `kind` names.
pub(crate) fn schema_of(columns: &[Column], kind: fn(ColumnType) -> DataType) -> SchemaRef {
    let field = |column: &Column| Field::new(&column.name, kind(column.kind), column.nullable);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}
