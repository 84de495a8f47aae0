//! ImageRewardDB (`zai-org/ImageRewardDB`): `metadata-*.parquet`, a row an image, beside folders or
//! zips of images. A prompt's four to nine images give every pair of different rank.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

use super::beside::Beside;
use super::chosen_rejected::text_at;
use super::hpdv2::ranked;
use super::records::{Batched, Batches, Checkpoints, Draft, Origin, Records, guessed_groups};
use super::source::Folder;
use super::table::Table;
use super::{Layout, MAX_RANKED_IMAGES};
use crate::exact::{self, Target};
use crate::input::InputError;
use crate::pairs::{InputFile, PairsError, RowGroup};

/// The columns that are read.
pub(super) const COLUMNS: [&str; 4] = ["image_path", "prompt_id", "prompt", "rank"];
/// Rows that are decoded together.
const ROWS: usize = 1024;

/// A file of ranked images.
#[derive(Debug)]
pub(super) struct ImageRewardDb {
    table: Table,
    origin: Arc<Origin>,
    has_images: bool,
    rows: i64,
    /// Rows of the table at which a prompt begins.
    checkpoints: Checkpoints,
    leaves: Vec<usize>,
}

impl ImageRewardDb {
    /// Reads the whole table once to count its pairs.
    ///
    /// # Errors
    /// When columns are missing or of the wrong type, it cannot be read, or the images of a prompt
    /// do not stand together.
    pub(super) fn open(input: &InputFile, table: Table, images: bool) -> Result<Self, PairsError> {
        let mut problems = Vec::new();
        for name in COLUMNS {
            let (target, expected) = match name {
                "rank" => (Target::Number(&DataType::Float64), "a number"),
                "prompt_id" => (Target::Name, "text or a whole number"),
                _ => (Target::Text, "text"),
            };
            let found = table.type_of(name);
            if !found.is_some_and(|stored| exact::is_possible(stored, target)) {
                let found = found.map_or("no such column".to_owned(), DataType::to_string);
                problems.push(format!("column {name:?}: expected {expected}, found {found}"));
            }
        }
        if !problems.is_empty() {
            let path = input.path.clone();
            let hint = "hint: docs/data.md has the columns of every layout".to_owned();
            return Err(PairsError::Columns { path, problems, hint });
        }
        let leaves: Vec<usize> = COLUMNS.iter().flat_map(|name| table.leaves(name, None)).collect();
        table.parquet.check_chunks(&leaves)?;
        let origin = Arc::new(Origin {
            path: input.path.clone(),
            source_file: input.source_file.clone(),
            beside: Beside::new(Folder::around(&input.path).map_err(InputError::from)?, &[]),
        });
        let mut opened = Self {
            table,
            origin,
            has_images: images,
            rows: 0,
            checkpoints: Checkpoints::default(),
            leaves,
        };
        let mut prompts = Prompts::open(&opened, 0)?;
        let mut seen = HashSet::new();
        while let Some(prompt) = prompts.next_prompt()? {
            let hash = blake3::hash(prompt.id.as_bytes());
            let hash = hash.as_bytes().first_chunk::<16>().copied();
            if !seen.insert(hash) {
                let path = input.path.display().to_string().replace('\'', "''");
                return Err(opened.origin.broken(
                    format!("row {} (counted from 0)", prompt.row),
                    format!(
                        "expected all images of the prompt {:?} in rows that follow each other; \
                         hint: in DuckDB COPY (FROM '{path}' ORDER BY prompt_id) TO \
                         'metadata-sorted.parquet' (FORMAT parquet), in the same folder",
                        prompt.id
                    ),
                ));
            }
            let row = prompt.row.unsigned_abs();
            let pairs = prompt.pairs(&opened.origin)?.len() as i64;
            if pairs > 0 {
                opened.checkpoints.offer(opened.rows, row);
            }
            opened.rows += pairs;
        }
        Ok(opened)
    }
}

impl Records for ImageRewardDb {
    fn layout(&self) -> Layout {
        Layout::Ranked
    }

    fn num_rows(&self) -> i64 {
        self.rows
    }

    fn fingerprint(&self) -> &str {
        self.table.parquet.fingerprint()
    }

    fn row_groups(&self) -> Vec<RowGroup> {
        guessed_groups(self.rows)
    }

    fn has_images(&self) -> bool {
        self.has_images
    }

    fn rows(
        &self,
        rows: Range<i64>,
        batch_rows: usize,
        images: bool,
    ) -> Result<Batches, PairsError> {
        let (_, first, place) = self.checkpoints.before(rows.start).unwrap_or_default();
        let prompts = Prompts::open(self, i64::try_from(place).unwrap_or(0))?;
        let skip = usize::try_from(rows.start - first).unwrap_or(0);
        let origin = Arc::clone(&self.origin);
        let drafts = Drafts { prompts, origin, skip, ready: Vec::new().into_iter() };
        let origin = Arc::clone(&self.origin);
        Ok(Box::new(Batched::new(drafts, origin, rows, batch_rows, images)))
    }
}

/// The images of a prompt.
#[derive(Debug, Default)]
struct Prompt {
    id: String,
    /// The row of its first image.
    row: i64,
    caption: Option<Arc<str>>,
    names: Vec<Arc<str>>,
    ranks: Vec<Option<f64>>,
}

impl Prompt {
    fn pairs(self, origin: &Origin) -> Result<Vec<Draft>, PairsError> {
        ranked(self.caption.as_ref(), &self.names, &self.ranks)
            .map_err(|detail| origin.broken(format!("prompt {:?}", self.id), detail))
    }
}

/// The prompts from some row on.
struct Prompts {
    table: Table,
    origin: Arc<Origin>,
    reader: ParquetRecordBatchReader,
    /// The columns that were decoded last, how many of their rows were taken, and the first row.
    batch: Option<(Vec<ArrayRef>, usize, i64)>,
    next_row: i64,
}

impl Prompts {
    fn open(file: &ImageRewardDb, row: i64) -> Result<Self, PairsError> {
        let rows = row..file.table.parquet.num_rows();
        let (reader, _) = file.table.read(&file.leaves, &[], &rows, ROWS)?;
        Ok(Self {
            table: file.table.clone(),
            origin: Arc::clone(&file.origin),
            reader,
            batch: None,
            next_row: row,
        })
    }

    fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, PairsError> {
        let targets =
            [Target::Text, Target::Name, Target::Text, Target::Number(&DataType::Float64)];
        let columns = COLUMNS.iter().zip(targets).map(|(name, target)| {
            let column = self.table.column(batch, name, None, target)?;
            column.ok_or_else(|| self.table.parquet.damaged(format!("no column {name:?}")).into())
        });
        columns.collect()
    }

    fn next_prompt(&mut self) -> Result<Option<Prompt>, PairsError> {
        let mut prompt: Option<Prompt> = None;
        loop {
            let (columns, index, first_row) = match self.batch.take() {
                Some(batch) => batch,
                None => {
                    let Some(batch) = self.table.next(&mut self.reader)? else { return Ok(prompt) };
                    let first = self.next_row;
                    self.next_row += batch.num_rows() as i64;
                    (self.columns(&batch)?, 0, first)
                }
            };
            let [names, ids, captions, ranks] = columns.as_slice() else { return Ok(prompt) };
            let Some(ranks) = ranks.as_primitive_opt::<Float64Type>() else { return Ok(prompt) };
            let mut at = index;
            while at < ids.len() {
                let row = first_row + at as i64;
                let id = text_at(ids, at).ok_or_else(|| {
                    let place = format!("row {row} (counted from 0)");
                    self.origin.broken(place, "prompt_id is null")
                })?;
                if prompt.as_ref().is_some_and(|prompt| prompt.id != id) {
                    self.batch = Some((columns, at, first_row));
                    return Ok(prompt);
                }
                let prompt = prompt.get_or_insert_with(|| Prompt {
                    id,
                    row,
                    caption: text_at(captions, at).map(Into::into),
                    ..Prompt::default()
                });
                if prompt.names.len() > MAX_RANKED_IMAGES {
                    let found =
                        format!("expected at most {MAX_RANKED_IMAGES} images of one prompt");
                    return Err(self.origin.broken(format!("prompt {:?}", prompt.id), found));
                }
                // An image without a name is missing when it is read.
                prompt.names.push(text_at(names, at).unwrap_or_default().into());
                prompt.ranks.push(ranks.is_valid(at).then(|| ranks.value(at)));
                at += 1;
            }
        }
    }
}

/// The pairs from some row on.
struct Drafts {
    prompts: Prompts,
    origin: Arc<Origin>,
    skip: usize,
    ready: std::vec::IntoIter<Draft>,
}

impl Iterator for Drafts {
    type Item = Result<Draft, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(draft) = self.ready.next() {
                match self.skip {
                    0 => return Some(Ok(draft)),
                    _ => self.skip -= 1,
                }
                continue;
            }
            let prompt = match self.prompts.next_prompt() {
                Ok(None) => return None,
                Ok(Some(prompt)) => prompt,
                Err(error) => return Some(Err(error)),
            };
            match prompt.pairs(&self.origin) {
                Ok(pairs) => self.ready = pairs.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
