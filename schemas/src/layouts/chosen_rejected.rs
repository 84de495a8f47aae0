//! Parquet with the preferred and the other image: `prompt, chosen, rejected`
//! (`data-is-better-together/open-image-preferences-v1-binarized`), or verl-omni's offline pairs,
//! `img_win` and `img_lose`, with paths relative to the file and the prompt as a chat, whose plain
//! text is in `extra_info.raw_prompt`.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, StringViewArray};
use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

use super::Layout;
use super::beside::Beside;
use super::records::{Batched, Batches, Draft, Image, Origin, Records, guessed_groups};
use super::source::Folder;
use super::table::Table;
use crate::exact::Target;
use crate::input::InputError;
use crate::pairs::{ImageColumn, InputFile, PairsError, RowGroup};

/// Rows that are decoded together, without and with images.
const TEXT_ROWS: usize = 1024;
const IMAGE_ROWS: usize = 32;
/// The names of the two images in the sets that are read.
pub(super) const NAMES: [[&str; 2]; 2] = [["chosen", "rejected"], ["img_win", "img_lose"]];
/// The names of the prompt, and of the pair.
const PROMPTS: [&str; 2] = ["prompt", "caption"];
const IDS: [&str; 2] = ["pair_id", "ranking_id"];
/// The fields of the `datasets` library's `Image`.
const BYTES: &str = "bytes";
const PATH: &str = "path";
/// Where verl-omni keeps the plain prompt.
const EXTRA: &str = "extra_info";
const RAW_PROMPT: &str = "raw_prompt";

/// A file of chosen and rejected images.
#[derive(Debug)]
pub(super) struct ChosenRejected {
    reading: Arc<Reading>,
    has_images: bool,
}

/// Which columns are read, and how.
#[derive(Debug)]
struct Reading {
    table: Table,
    origin: Arc<Origin>,
    images: [Column; 2],
    prompt: Prompt,
    id: Option<&'static str>,
    text_leaves: Vec<usize>,
    /// Those that hold the bytes of the images, if any does.
    image_leaves: Vec<usize>,
}

/// A column of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    name: &'static str,
    holds: Holds,
}

/// What a column of images holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Bytes,
    BytesOrPath,
    Path,
}

/// Where the prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prompt {
    Text(&'static str),
    Raw,
    Chat(&'static str),
}

impl ChosenRejected {
    /// Checks the columns.
    ///
    /// # Errors
    /// When columns are missing or have the wrong type; one error lists them all.
    pub(super) fn open(input: &InputFile, table: Table, images: bool) -> Result<Self, PairsError> {
        let names = NAMES.iter().find(|names| table.has(&names[..])).unwrap_or(&NAMES[0]);
        let mut problems = Vec::new();
        let columns = names.map(|name| {
            let holds = match table.type_of(name) {
                Some(DataType::Binary) => Some(Holds::Bytes),
                Some(DataType::Utf8) => Some(Holds::Path),
                Some(DataType::Struct(fields)) => {
                    let of = |name: &str| fields.iter().find(|field| field.name() == name);
                    let kind = of(BYTES).map(|field| field.data_type().clone());
                    match (kind, of(PATH).is_some()) {
                        (Some(DataType::Binary), true) => Some(Holds::BytesOrPath),
                        (Some(DataType::Binary), false) => Some(Holds::Bytes),
                        _ => None,
                    }
                }
                _ => None,
            };
            let found =
                table.type_of(name).map_or("no such column".to_owned(), DataType::to_string);
            holds.map(|holds| Column { name, holds }).unwrap_or_else(|| {
                problems.push(format!(
                    "column {name:?}: expected binary, struct{{bytes, path}} or paths, found {found}"
                ));
                Column { name, holds: Holds::Path }
            })
        });
        let prompt = prompt(&table);
        if prompt.is_none() {
            problems.push(format!(
                "column {:?}: expected text, or a chat with {EXTRA}.{RAW_PROMPT}, found {}",
                PROMPTS[0],
                table.type_of(PROMPTS[0]).map_or("no such column".to_owned(), DataType::to_string)
            ));
        }
        let Some(prompt) = prompt.filter(|_| problems.is_empty()) else {
            let path = input.path.clone();
            let hint = "hint: docs/data.md has the columns of every layout".to_owned();
            return Err(PairsError::Columns { path, problems, hint });
        };
        let id = IDS.into_iter().find(|name| table.has(&[*name]));
        let mut text_leaves = match prompt {
            Prompt::Text(name) | Prompt::Chat(name) => table.leaves(name, None),
            Prompt::Raw => table.leaves(EXTRA, Some(RAW_PROMPT)),
        };
        text_leaves.extend(id.into_iter().flat_map(|name| table.leaves(name, None)));
        let mut image_leaves = Vec::new();
        for Column { name, holds } in &columns {
            let is_struct = matches!(table.type_of(name), Some(DataType::Struct(_)));
            if *holds != Holds::Path {
                image_leaves.extend(table.leaves(name, is_struct.then_some(BYTES)));
            }
            if *holds != Holds::Bytes {
                text_leaves.extend(table.leaves(name, is_struct.then_some(PATH)));
            }
        }
        table.parquet.check_chunks(&text_leaves)?;
        table.parquet.check_chunks(&image_leaves)?;
        let origin = Arc::new(Origin {
            path: input.path.clone(),
            source_file: input.source_file.clone(),
            beside: Beside::new(Folder::around(&input.path).map_err(InputError::from)?, &[]),
        });
        let images_of = columns;
        let reading =
            Reading { table, origin, images: images_of, prompt, id, text_leaves, image_leaves };
        Ok(Self { reading: Arc::new(reading), has_images: images })
    }
}

/// Where the prompt is, if it is anywhere.
fn prompt(table: &Table) -> Option<Prompt> {
    let is_text = |name: &&str| table.type_of(name) == Some(&DataType::Utf8);
    if let Some(name) = PROMPTS.into_iter().find(is_text) {
        return Some(Prompt::Text(name));
    }
    if let Some(DataType::Struct(fields)) = table.type_of(EXTRA)
        && fields
            .iter()
            .any(|field| field.name() == RAW_PROMPT && *field.data_type() == DataType::Utf8)
    {
        return Some(Prompt::Raw);
    }
    PROMPTS.into_iter().find_map(|name| match table.type_of(name)? {
        DataType::List(item) => match item.data_type() {
            DataType::Struct(fields) => fields
                .iter()
                .any(|field| field.name() == "content" && *field.data_type() == DataType::Utf8)
                .then_some(Prompt::Chat(name)),
            _ => None,
        },
        _ => None,
    })
}

impl Records for ChosenRejected {
    fn layout(&self) -> Layout {
        Layout::ChosenRejected
    }

    fn num_rows(&self) -> i64 {
        self.reading.table.parquet.num_rows()
    }

    fn fingerprint(&self) -> &str {
        self.reading.table.parquet.fingerprint()
    }

    fn row_groups(&self) -> Vec<RowGroup> {
        let Reading { table, text_leaves, image_leaves, .. } = &*self.reading;
        match image_leaves.as_slice() {
            [] => guessed_groups(self.num_rows()),
            // A row with a path lacks no image, so the footer tells nothing of missing ones.
            leaves => {
                let mut groups = table.row_groups(text_leaves, leaves);
                groups.iter_mut().for_each(|group| group.missing_images = [0, 0]);
                groups
            }
        }
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
        let reading = Arc::clone(&self.reading);
        let (leaves, together) = match images {
            true => (reading.image_leaves.as_slice(), batch_rows.clamp(1, IMAGE_ROWS)),
            false => (&[][..], TEXT_ROWS),
        };
        let (reader, columns) =
            reading.table.read(&reading.text_leaves, leaves, &rows, together)?;
        let origin = Arc::clone(&reading.origin);
        let ready = Vec::new().into_iter();
        let drafts = Drafts { reading, reader, columns, images, row: rows.start, ready };
        Ok(Box::new(Batched::new(drafts, origin, rows, batch_rows, images)))
    }
}

/// The pairs from some row on.
struct Drafts {
    reading: Arc<Reading>,
    reader: ParquetRecordBatchReader,
    columns: Vec<ImageColumn>,
    images: bool,
    /// The row after those that are ready.
    row: i64,
    ready: std::vec::IntoIter<Draft>,
}

impl Drafts {
    fn read(&mut self) -> Result<bool, PairsError> {
        let Some(batch) = self.reading.table.next(&mut self.reader)? else { return Ok(false) };
        let count = batch.num_rows();
        let columns = &mut self.columns;
        let images: Vec<Vec<Option<Bytes>>> = self.reading.table.parquet.contained(|| {
            columns.iter_mut().map(|column| column.take(count)).collect::<Result<Vec<_>, _>>()
        })?;
        let drafts = self.reading.drafts(&batch, images, self.images, self.row)?;
        self.row += count as i64;
        self.ready = drafts.into_iter();
        Ok(true)
    }
}

impl Iterator for Drafts {
    type Item = Result<Draft, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(draft) = self.ready.next() {
                return Some(Ok(draft));
            }
            match self.read() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Reading {
    fn drafts(
        &self,
        batch: &RecordBatch,
        images: Vec<Vec<Option<Bytes>>>,
        with_images: bool,
        first_row: i64,
    ) -> Result<Vec<Draft>, PairsError> {
        let captions = self.captions(batch)?;
        let ids = match self.id {
            Some(name) => self.table.column(batch, name, None, Target::Name)?,
            None => None,
        };
        let mut images = images.into_iter();
        let mut sides = Vec::new();
        for Column { name, holds } in self.images {
            let field = matches!(self.table.type_of(name), Some(DataType::Struct(_)));
            let paths = match holds {
                Holds::Bytes => None,
                _ => self.table.column(batch, name, field.then_some(PATH), Target::Text)?,
            };
            let bytes = if holds == Holds::Path { None } else { images.next() };
            sides.push((name, holds, paths, bytes));
        }
        let mut drafts = Vec::with_capacity(batch.num_rows());
        for index in 0..batch.num_rows() {
            let row = first_row + index as i64;
            let side = |side: usize| -> (Image, Option<String>) {
                let Some((name, holds, paths, bytes)) = sides.get(side) else {
                    return (Image::Unread, None);
                };
                let path = paths.as_ref().and_then(|paths| text_at(paths, index));
                // Bytes have no name that can be trusted: many sets call every image the same.
                let uid = || Some(format!("{}:{row}:{name}", self.origin.source_file));
                match (holds, bytes.as_ref().and_then(|bytes| bytes.get(index)?.clone()), path) {
                    (Holds::Path, _, Some(path)) => (Image::Named(path.into()), None),
                    (Holds::Path, ..) => (Image::Absent(format!("{name} is null")), None),
                    (_, Some(bytes), _) if !bytes.is_empty() => (Image::Bytes(bytes), uid()),
                    (..) if !with_images => (Image::Unread, uid()),
                    (_, _, Some(path)) => (Image::Named(path.into()), uid()),
                    _ => (Image::Absent(format!("{name} is null or empty")), uid()),
                }
            };
            let ((first, first_uid), (second, second_uid)) = (side(0), side(1));
            drafts.push(Draft {
                pair_id: ids.as_ref().and_then(|ids| text_at(ids, index)),
                caption: captions.get(index).cloned().flatten().map(Into::into),
                images: [first, second],
                uids: [first_uid, second_uid],
                label_0: Some(1.0),
                no_vote: None,
                is_winner_first: true,
            });
        }
        Ok(drafts)
    }

    fn captions(&self, batch: &RecordBatch) -> Result<Vec<Option<String>>, PairsError> {
        let (name, field) = match self.prompt {
            Prompt::Text(name) => (name, None),
            Prompt::Raw => (EXTRA, Some(RAW_PROMPT)),
            Prompt::Chat(name) => {
                let chats = batch.column_by_name(name);
                let of = |index| chats.and_then(|chats| said(chats, index));
                return Ok((0..batch.num_rows()).map(of).collect());
            }
        };
        let column = self.table.column(batch, name, field, Target::Text)?;
        let of = |index| column.as_ref().and_then(|column| text_at(column, index));
        Ok((0..batch.num_rows()).map(of).collect())
    }
}

/// What the user says last in a chat, a list of `{role, content}`.
fn said(chats: &ArrayRef, index: usize) -> Option<String> {
    let chats = chats.as_list_opt::<i32>()?;
    if chats.is_null(index) {
        return None;
    }
    let turns = chats.value(index);
    let turns = turns.as_struct_opt()?;
    let contents = turns.column_by_name("content")?.as_string_opt::<i32>()?;
    let roles = turns.column_by_name("role").and_then(|roles| roles.as_string_opt::<i32>());
    let is_user = |turn: &usize| {
        roles.is_none_or(|roles| roles.is_valid(*turn) && roles.value(*turn) == "user")
    };
    let turn = (0..turns.len()).rev().filter(|turn| contents.is_valid(*turn)).find(is_user)?;
    Some(contents.value(turn).to_owned())
}

/// A text of a column that was read as text.
pub(super) fn text_at(column: &ArrayRef, index: usize) -> Option<String> {
    let column: &StringViewArray = column.as_string_view_opt()?;
    column.is_valid(index).then(|| column.value(index).to_owned())
}
