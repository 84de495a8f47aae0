//! Where the columns of a pairs file are, and whether they are all there and of a usable type.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use parquet::schema::types::SchemaDescriptor;

use crate::columns::{PAIR_COLUMNS, PairColumn, PairType, Presence};

/// The name of the bytes inside the struct of the `datasets` library's `Image`.
const IMAGE_BYTES: &str = "bytes";

/// The columns of [`PAIR_COLUMNS`] that one file has.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The schema to read with: text and images as views, everything else as stored.
    pub(super) schema: Arc<Schema>,
    /// The leaf columns without images.
    pub(super) text_leaves: Vec<usize>,
    /// The leaf columns of the two images; empty when the file has none.
    pub(super) image_leaves: Vec<usize>,
}

impl Layout {
    /// Finds the columns by name and checks their types.
    ///
    /// `stored` is the schema as Arrow derives it from Parquet alone, so each type has one form:
    /// large, view and dictionary text is all plain text here.
    pub(super) fn find(
        stored: &Schema,
        parquet: &SchemaDescriptor,
        images: bool,
    ) -> Result<Self, Vec<String>> {
        let mut fields: Vec<Arc<Field>> = stored.fields().iter().cloned().collect();
        let mut problems = Vec::new();
        let (mut text_leaves, mut image_leaves) = (Vec::new(), Vec::new());
        for column in &PAIR_COLUMNS {
            if column.presence == Presence::WithImages && !images {
                continue;
            }
            let places: Vec<usize> = (0..fields.len())
                .filter(|&place| fields.get(place).is_some_and(|f| f.name() == column.name))
                .collect();
            let place = match places.as_slice() {
                [] if column.presence == Presence::Optional => continue,
                [] => {
                    problems.push(format!(
                        "column {:?}: expected {}, found no such column{}",
                        column.name,
                        column.kind.name(),
                        nearest(stored, column.name)
                    ));
                    continue;
                }
                [place] => *place,
                several => {
                    let count = several.len();
                    problems
                        .push(format!("column {:?}: expected once, found {count}", column.name));
                    continue;
                }
            };
            let Some(field) = fields.get_mut(place) else { continue };
            match target_type(column, field.data_type()) {
                Some(target) => *field = Arc::new(field.as_ref().clone().with_data_type(target)),
                None => {
                    problems.push(format!(
                        "column {:?}: expected {}, found {}",
                        column.name,
                        column.kind.name(),
                        field.data_type()
                    ));
                    continue;
                }
            }
            let leaves = (0..parquet.num_columns()).filter(|&leaf| {
                parquet.get_column_root_idx(leaf) == place
                    && (column.kind != PairType::Image || is_image_leaf(parquet, leaf))
            });
            match column.kind {
                PairType::Image => image_leaves.extend(leaves),
                _ => text_leaves.extend(leaves),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { schema, text_leaves, image_leaves })
    }
}

/// The column itself, or the bytes of the struct.
fn is_image_leaf(parquet: &SchemaDescriptor, leaf: usize) -> bool {
    match parquet.column(leaf).path().parts() {
        [_] => true,
        [_, inner] => inner == IMAGE_BYTES,
        _ => false,
    }
}

/// The type to read a column with, where its stored type will do.
fn target_type(column: &PairColumn, stored: &DataType) -> Option<DataType> {
    match (column.kind, stored) {
        // pandas writes a column without any value as type "null"
        (_, DataType::Null) if column.presence == Presence::Optional => Some(DataType::Null),
        (PairType::Text | PairType::Identifier, DataType::Utf8) => Some(DataType::Utf8View),
        (PairType::Identifier, whole) if whole.is_integer() => Some(whole.clone()),
        (PairType::Number, number) if number.is_integer() => Some(number.clone()),
        (PairType::Number, DataType::Float64 | DataType::Float32) => Some(stored.clone()),
        (PairType::Boolean, DataType::Boolean) => Some(DataType::Boolean),
        (PairType::Image, DataType::Binary) => Some(DataType::BinaryView),
        (PairType::Image, DataType::Struct(inner)) => {
            let bytes = inner.iter().find(|field| field.name() == IMAGE_BYTES)?;
            if *bytes.data_type() != DataType::Binary {
                return None;
            }
            let inner = inner.iter().map(|field| match field.name() == IMAGE_BYTES {
                true => Arc::new(field.as_ref().clone().with_data_type(DataType::BinaryView)),
                false => Arc::clone(field),
            });
            Some(DataType::Struct(inner.collect()))
        }
        _ => None,
    }
}

/// A hint when the same name stands there in another case or with blanks around it.
fn nearest(stored: &Schema, name: &str) -> String {
    let same = |field: &&Arc<Field>| field.name().trim().eq_ignore_ascii_case(name);
    match stored.fields().iter().find(same) {
        Some(field) => format!("; hint: {:?} is spelled differently", field.name()),
        None => String::new(),
    }
}
