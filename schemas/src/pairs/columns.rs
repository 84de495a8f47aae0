//! Finds the columns of a pairs file and checks their types.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use parquet::schema::types::SchemaDescriptor;

use super::PairsError;
use crate::columns::{PAIR_COLUMNS, PairColumn, PairType, Presence};
use crate::exact::{self, Target};

/// The column that is 1 minus `label_0`.
pub(super) const LABEL_1: &str = "label_1";

/// The name of the bytes inside the struct of the `datasets` library's `Image`.
const IMAGE_BYTES: &str = "bytes";
/// How many columns of a file an error lists if one is missing.
const NAMES_SAID: usize = 20;
/// The names of our columns in other data sets.
pub(crate) const ALIASES: [(&str, &[&str]); 5] = [
    ("caption", &["prompt", "text", "original_prompt", "captions", "txt"]),
    ("jpg_0", &["image_0", "img_0", "jpg0", "image0"]),
    ("jpg_1", &["image_1", "img_1", "jpg1", "image1"]),
    ("image_0_uid", &["uid_0", "image_uid_0", "image_0_id", "image0_uid"]),
    ("image_1_uid", &["uid_1", "image_uid_1", "image_1_id", "image1_uid"]),
];

/// The columns of [`PAIR_COLUMNS`] that one file has.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    /// The schema to read with: text as views, everything else as stored.
    pub(crate) schema: Arc<Schema>,
    /// The leaf columns without images.
    pub(crate) text_leaves: Vec<usize>,
    /// The leaf columns of the two images; empty when the file has none.
    pub(crate) image_leaves: Vec<usize>,
}

/// What is wrong with the columns of a file, and the SQL that repairs it.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    sentences: Vec<String>,
    missing: bool,
    renamed: Vec<(String, &'static str)>,
    casts: Vec<(&'static str, &'static str)>,
    /// Columns of images that hold text.
    paths: Vec<&'static str>,
}

impl Problems {
    /// The error for a file of this schema.
    pub(crate) fn error(self, path: &Path, stored: &Schema) -> PairsError {
        let mut hints = Vec::new();
        if self.missing {
            let names = stored.fields().iter().map(|field| field.name().as_str());
            let mut names: Vec<&str> = names.take(NAMES_SAID).collect();
            if stored.fields().len() > NAMES_SAID {
                names.push("…");
            }
            hints.push(format!("the file has the columns: {}", names.join(", ")));
        }
        if !self.renamed.is_empty() || !self.casts.is_empty() {
            hints.push(format!("hint: in DuckDB {}", self.sql(path)));
        }
        for column in &self.paths {
            hints.push(format!(
                "hint: {column} must hold the bytes of the files; of paths, in pandas \
                 df[{column:?}] = [open(path, 'rb').read() for path in df[{column:?}]]; of base64, \
                 in DuckDB from_base64({column})"
            ));
        }
        if hints.is_empty() {
            hints.push("hint: docs/labels-schema.md has the columns of pairs".to_owned());
        }
        PairsError::Columns {
            path: path.to_owned(),
            problems: self.sentences,
            hint: hints.join("\n"),
        }
    }

    fn sql(&self, path: &Path) -> String {
        let quoted = |name: &str| match name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            true => name.to_owned(),
            false => format!("\"{}\"", name.replace('"', "\"\"")),
        };
        let mut columns = "*".to_owned();
        let names: Vec<String> = self.renamed.iter().map(|(from, _)| quoted(from)).collect();
        if !names.is_empty() {
            columns += &format!(" EXCLUDE ({})", names.join(", "));
        }
        let casts =
            self.casts.iter().map(|(name, kind)| format!("CAST({name} AS {kind}) AS {name}"));
        let casts: Vec<String> = casts.collect();
        if !casts.is_empty() {
            columns += &format!(" REPLACE ({})", casts.join(", "));
        }
        for (from, to) in &self.renamed {
            columns += &format!(", {} AS {to}", quoted(from));
        }
        let path = path.display().to_string().replace('\'', "''");
        format!("COPY (SELECT {columns} FROM '{path}') TO 'pairs.parquet' (FORMAT parquet)")
    }
}

impl Columns {
    /// Finds the columns by name and checks their types.
    ///
    /// `stored` is the schema as Arrow derives it from Parquet alone, so each type has one form:
    /// large, view and dictionary text is all plain text here.
    pub(crate) fn find(
        stored: &Schema,
        parquet: &SchemaDescriptor,
        images: bool,
    ) -> Result<Self, Problems> {
        let mut fields: Vec<Arc<Field>> = stored.fields().iter().cloned().collect();
        let mut problems = Problems::default();
        let (mut text_leaves, mut image_leaves) = (Vec::new(), Vec::new());
        for column in &PAIR_COLUMNS {
            if column.presence == Presence::WithImages && !images {
                continue;
            }
            let positions: Vec<usize> = (0..fields.len())
                .filter(|&position| fields.get(position).is_some_and(|f| f.name() == column.name))
                .collect();
            let position = match positions.as_slice() {
                [] if column.presence == Presence::Optional => continue,
                [] => {
                    problems.is_missing(column, stored);
                    continue;
                }
                [position] => *position,
                several => {
                    let (name, count) = (column.name, several.len());
                    let sentence = format!("column {name:?}: expected once, found {count}");
                    problems.sentences.push(sentence);
                    continue;
                }
            };
            let Some(field) = fields.get_mut(position) else { continue };
            match target_type(column, field.data_type()) {
                Some(target) => *field = Arc::new(field.as_ref().clone().with_data_type(target)),
                // It only checks label_0.
                None if column.name == LABEL_1 => continue,
                None => {
                    problems.has_type(column, field.data_type());
                    continue;
                }
            }
            let leaves = (0..parquet.num_columns()).filter(|&leaf| {
                parquet.get_column_root_idx(leaf) == position
                    && (column.kind != PairType::Image || is_image_leaf(parquet, leaf))
            });
            match column.kind {
                PairType::Image => image_leaves.extend(leaves),
                _ => text_leaves.extend(leaves),
            }
        }
        if !problems.sentences.is_empty() {
            return Err(problems);
        }
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { schema, text_leaves, image_leaves })
    }
}

impl Problems {
    fn is_missing(&mut self, column: &PairColumn, stored: &Schema) {
        self.missing = true;
        let (name, kind) = (column.name, column.kind.name());
        let mut sentence = format!("column {name:?}: expected {kind}, found no such column");
        let spelled = |field: &&Arc<Field>| field.name().trim().eq_ignore_ascii_case(name);
        let aliases =
            ALIASES.iter().find(|(ours, _)| *ours == name).map_or(&[][..], |(_, all)| all);
        let alias = |field: &&Arc<Field>| {
            aliases.iter().any(|alias| field.name().trim().eq_ignore_ascii_case(alias))
        };
        let mut fields = stored.fields().iter();
        if let Some(field) = fields.clone().find(spelled).or_else(|| fields.find(alias)) {
            sentence += &format!("; is it {:?}?", field.name());
            self.renamed.push((field.name().clone(), name));
        }
        self.sentences.push(sentence);
    }

    fn has_type(&mut self, column: &PairColumn, found: &DataType) {
        let (name, kind) = (column.name, column.kind.name());
        let called = match found {
            DataType::Utf8 => "text".to_owned(),
            other => other.to_string(),
        };
        self.sentences.push(format!("column {name:?}: expected {kind}, found {called}"));
        match column.kind {
            PairType::Image if *found == DataType::Utf8 => self.paths.push(name),
            PairType::Image => {}
            PairType::Text | PairType::Identifier => self.casts.push((name, "VARCHAR")),
            PairType::Number => self.casts.push((name, "DOUBLE")),
            PairType::Boolean => self.casts.push((name, "BOOLEAN")),
        }
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

/// How the values of a column are read.
pub(super) fn target(kind: PairType) -> Target<'static> {
    match kind {
        PairType::Text | PairType::Image => Target::Text,
        PairType::Identifier => Target::Name,
        PairType::Number => Target::Number(&DataType::Float64),
        PairType::Boolean => Target::Boolean,
    }
}

/// The type to read a column with, if its stored type is usable.
fn target_type(column: &PairColumn, stored: &DataType) -> Option<DataType> {
    match (column.kind, stored) {
        (PairType::Image, DataType::Struct(inner)) => {
            let bytes = inner.iter().find(|field| field.name() == IMAGE_BYTES)?;
            (*bytes.data_type() == DataType::Binary).then(|| stored.clone())
        }
        // pandas gives a column without values the type "null".
        (PairType::Image, DataType::Binary | DataType::Null) => Some(stored.clone()),
        (PairType::Image, _) => None,
        (PairType::Text | PairType::Identifier, DataType::Utf8) => Some(DataType::Utf8View),
        (kind, _) => exact::is_possible(stored, target(kind)).then(|| stored.clone()),
    }
}
