//! Reads the two files of a part: small columns as a stream, latents and embeddings row by row.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::{Int32Type, Int64Type};

use super::layout::read;
use super::row::{CaptionRow, Geometry, LatentRow, Moments};
use super::table::{Table, TableRows, lists_of, numbers, texts};
use super::{CaptionsLayout, KEY_SHAPE, LatentsError, LatentsLayout};
use crate::columns::{captions_columns, latents_columns};
use crate::labels::Status;

/// The ends of the names of list columns.
const LIST_ENDINGS: [&str; 2] = ["_mean", "_std"];

/// `latents-*.parquet` with checked columns. It holds the footer, not the rows, and no open file.
#[derive(Clone, Debug)]
pub struct LatentsFile {
    table: Table,
    layout: LatentsLayout,
}

impl LatentsFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// When it is not readable Parquet, breaks a limit of [`crate::input`], was written by another
    /// schema version, or lacks columns: then one error lists them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LatentsError> {
        let path = path.as_ref();
        let mut flipped = false;
        let what = "cached latents";
        let (table, stored) = Table::open(path, what, "image_0_mean", |stored, schema| {
            flipped = schema.column_with_name("image_0_flipped_mean").is_some();
            latents_columns(stored, flipped)
        })?;
        let shape = shape(&table, &[3], what)?;
        let shape = [shape[0], shape[1], shape[2]];
        Ok(Self { table, layout: LatentsLayout { stored, shape, flipped } })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.table.path()
    }

    /// Dtype and shape.
    pub fn layout(&self) -> LatentsLayout {
        self.layout
    }

    /// The file's key-value metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.table.metadata()
    }

    /// How many pairs it holds.
    pub fn num_rows(&self) -> i64 {
        self.table.num_rows()
    }

    /// blake3 of the file's length and footer, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.table.fingerprint().to_owned()
    }

    /// Streams all rows without their latents.
    ///
    /// # Errors
    /// When the file is missing, changed or damaged; the same for each item.
    pub fn rows(&self) -> Result<LatentRows, LatentsError> {
        let batches = self.table.read_all(is_small)?;
        Ok(LatentRows { batches, table: self.table.clone(), next: 0 })
    }

    /// Some rows without their latents, in ascending order and each once.
    ///
    /// # Errors
    /// As for [`LatentsFile::rows`], and when the file does not have a row.
    pub fn rows_at(&self, rows: &[i64]) -> Result<Vec<LatentRow>, LatentsError> {
        let mut found = Vec::with_capacity(rows.len());
        for batch in self.table.read(rows, is_small)? {
            let first = rows.get(found.len()).copied().unwrap_or(0);
            found.extend(small_columns(&self.table, &batch?, first)?);
        }
        Ok(found)
    }

    /// The latents of image 0 or 1 in some rows, in ascending order and each once; with `flipped`,
    /// of the horizontally flipped image.
    ///
    /// # Errors
    /// As for [`LatentsFile::rows_at`], when a row has no latents, and when the file holds no
    /// flipped images.
    pub fn moments_at(
        &self,
        image: usize,
        flipped: bool,
        rows: &[i64],
    ) -> Result<Vec<Moments>, LatentsError> {
        let variant = if flipped { "flipped_" } else { "" };
        let names = LIST_ENDINGS.map(|end| format!("image_{image}_{variant}{}", &end[1..]));
        if let Some(missing) = names.iter().find(|name| !self.table.has(name)) {
            let first = rows.first().copied().unwrap_or(0);
            return Err(self.table.row_error(first, format!("the file has no column {missing:?}")));
        }
        let mut found = Vec::with_capacity(rows.len());
        for batch in self.table.read(rows, |name| names.iter().any(|wanted| wanted == name))? {
            let batch = batch?;
            let first = found.len();
            let position = |index: usize| rows.get(first + index).copied().unwrap_or(0);
            let fail =
                |(index, problem): (usize, String)| self.table.row_error(position(index), problem);
            let [mean, std] = names
                .each_ref()
                .map(|name| lists_of(&batch, name, self.layout.numbers()).map_err(fail));
            for (index, pair) in mean?.into_iter().zip(std?).enumerate() {
                let (Some(mean), Some(std)) = pair else {
                    return Err(fail((index, format!("it has no latents of image {image}"))));
                };
                found.push(Moments { mean, std });
            }
        }
        Ok(found)
    }
}

fn is_small(name: &str) -> bool {
    !LIST_ENDINGS.iter().any(|end| name.ends_with(end))
}

/// The rows of a part without their latents, a batch at a time. Ends after the first error.
pub struct LatentRows {
    batches: TableRows,
    table: Table,
    next: i64,
}

impl std::fmt::Debug for LatentRows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LatentRows")
            .field("path", &self.table.path())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Iterator for LatentRows {
    type Item = Result<Vec<LatentRow>, LatentsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.batches.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let rows = small_columns(&self.table, &batch, self.next);
        self.next += i64::try_from(batch.num_rows()).unwrap_or(0);
        Some(rows)
    }
}

/// The rows of a batch; `first` is the number of its first row in the file, for errors.
fn small_columns(
    table: &Table,
    batch: &RecordBatch,
    first: i64,
) -> Result<Vec<LatentRow>, LatentsError> {
    let text = |name: &str| texts(batch, name).map(Vec::into_iter);
    let mut pair_ids = text("pair_id")?;
    let mut source_files = text("source_file")?;
    let source_rows = numbers::<Int64Type>(batch, "source_row")?;
    let mut captions = text("caption")?;
    let caption_indices = numbers::<Int64Type>(batch, "caption_index")?;
    let mut uids = [text("image_0_uid")?, text("image_1_uid")?];
    let sides = [0, 1].map(|image| {
        ["height", "width", "crop_top", "crop_left"]
            .map(|side| numbers::<Int32Type>(batch, &format!("image_{image}_{side}")))
    });
    let mut statuses = text("status")?;
    let mut errors = text("error")?;
    let [first_sides, second_sides] = sides;
    let geometry = |sides: &[Vec<Option<i32>>; 4], index: usize| {
        let side = |position: usize| {
            let value = sides[position].get(index).copied().flatten()?;
            u32::try_from(value).ok()
        };
        Some(Geometry { size: (side(0)?, side(1)?), crop: (side(2)?, side(3)?) })
    };
    let all = |sides: [Result<Vec<Option<i32>>, LatentsError>; 4]| {
        let [height, width, top, left] = sides;
        Ok::<_, LatentsError>([height?, width?, top?, left?])
    };
    let sides = [all(first_sides)?, all(second_sides)?];
    let mut rows = Vec::with_capacity(batch.num_rows());
    for index in 0..batch.num_rows() {
        let number = first.saturating_add(i64::try_from(index).unwrap_or(0));
        let missing = |name: &str| table.row_error(number, format!("{name} is null"));
        let status = statuses.next().flatten().ok_or_else(|| missing("status"))?;
        let status = status.parse::<Status>().map_err(|unknown| {
            table.row_error(number, format!("{unknown}; hint: make the cache again"))
        })?;
        rows.push(LatentRow {
            pair_id: pair_ids.next().flatten().ok_or_else(|| missing("pair_id"))?,
            source_file: source_files.next().flatten().ok_or_else(|| missing("source_file"))?,
            source_row: source_rows
                .get(index)
                .copied()
                .flatten()
                .ok_or_else(|| missing("source_row"))?,
            caption: captions.next().flatten(),
            caption_index: caption_indices.get(index).copied().flatten(),
            image_uid: uids.each_mut().map(|uids| uids.next().flatten()),
            geometry: sides.each_ref().map(|sides| geometry(sides, index)),
            status,
            error: errors.next().flatten(),
        });
    }
    Ok(rows)
}

/// `captions-*.parquet` with checked columns. It holds the footer, not the rows, and no open file.
#[derive(Clone, Debug)]
pub struct CaptionsFile {
    table: Table,
    layout: CaptionsLayout,
}

impl CaptionsFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// As for [`LatentsFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LatentsError> {
        let what = "cached captions";
        let (table, stored) = Table::open(path.as_ref(), what, "prompt_embeds", |stored, _| {
            captions_columns(stored)
        })?;
        let shape = shape(&table, &[2, 3], what)?;
        let layout =
            CaptionsLayout { stored, shape: [shape[0], shape[1]], pooled: shape.get(2).copied() };
        Ok(Self { table, layout })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.table.path()
    }

    /// Dtype and shape.
    pub fn layout(&self) -> CaptionsLayout {
        self.layout
    }

    /// The file's key-value metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.table.metadata()
    }

    /// How many captions it holds.
    pub fn num_rows(&self) -> i64 {
        self.table.num_rows()
    }

    /// Some rows, in ascending order and each once.
    ///
    /// # Errors
    /// When the file is missing, changed or damaged, or does not have a row.
    pub fn rows_at(&self, rows: &[i64]) -> Result<Vec<CaptionRow>, LatentsError> {
        let mut found = Vec::with_capacity(rows.len());
        for batch in self.table.read(rows, |_| true)? {
            let batch = batch?;
            let first = found.len();
            let fail = |(index, problem): (usize, String)| {
                let row = rows.get(first + index).copied().unwrap_or(0);
                self.table.row_error(row, problem)
            };
            let null = |index| fail((index, "a value is null".to_owned()));
            let indices = numbers::<Int64Type>(&batch, "caption_index")?;
            let captions = texts(&batch, "caption")?;
            let hidden = lists_of(&batch, "prompt_embeds", self.layout.numbers()).map_err(fail)?;
            let length = self.layout.pooled_numbers().unwrap_or(0);
            let pooled = lists_of(&batch, "pooled_prompt_embeds", length).map_err(fail)?;
            let columns = indices.into_iter().zip(captions).zip(hidden.into_iter().zip(pooled));
            for (index, ((caption_index, caption), (hidden, pooled))) in columns.enumerate() {
                if pooled.is_some() != self.layout.pooled.is_some() {
                    return Err(fail((
                        index,
                        "the pooled prompt embedding does not fit the shape".to_owned(),
                    )));
                }
                found.push(CaptionRow {
                    caption_index: caption_index.ok_or_else(|| null(index))?,
                    caption: caption.ok_or_else(|| null(index))?,
                    prompt_embeds: hidden.ok_or_else(|| null(index))?,
                    pooled_prompt_embeds: pooled,
                });
            }
        }
        Ok(found)
    }
}

fn shape(table: &Table, sides: &[usize], what: &'static str) -> Result<Vec<i64>, LatentsError> {
    let text = table.metadata().get(KEY_SHAPE).map(String::as_str).unwrap_or_default();
    read(text, sides).map_err(|problem| LatentsError::Columns {
        path: table.path().to_owned(),
        what,
        problems: vec![format!("metadata {KEY_SHAPE:?}: {problem}")],
    })
}
