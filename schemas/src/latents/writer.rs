//! Writes the two files of a part: durable, and the same bytes for the same rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};

use super::layout::written;
use super::row::{CaptionRow, Geometry, ImageMoments, LatentRow, Moments};
use super::table::{batch_rows, create, lists};
use super::{CaptionsLayout, KEY_SHAPE, LatentsError, LatentsLayout};
use crate::labels::Status;
use crate::table_writer::TableWriter;

/// Writes `latents-*.parquet`, which gets its final name in [`LatentsWriter::finish`].
#[derive(Debug)]
pub struct LatentsWriter {
    table: TableWriter,
    layout: LatentsLayout,
    rows: Vec<(LatentRow, [Option<ImageMoments>; 2])>,
    written: i64,
}

impl LatentsWriter {
    /// Starts a file with this key-value metadata, the schema version and the shape.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: impl AsRef<Path>,
        layout: LatentsLayout,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, LatentsError> {
        let mut metadata = metadata.clone();
        metadata.insert(KEY_SHAPE.to_owned(), written(&layout.shape));
        let columns = layout.columns();
        let table = create(path.as_ref(), &columns, layout.row_bytes(), &metadata)?;
        Ok(Self { table, layout, rows: Vec::new(), written: 0 })
    }

    /// Adds a row. Geometry and latents of both images must be there if and only if the status is
    /// `ok`.
    ///
    /// # Errors
    /// When the row does not fit the layout, holds a number that cannot be stored, or the disk
    /// fails.
    pub fn write(
        &mut self,
        row: LatentRow,
        moments: [Option<ImageMoments>; 2],
    ) -> Result<(), LatentsError> {
        let number = self.written + i64::try_from(self.rows.len()).unwrap_or(i64::MAX);
        if let Err(problem) = self.check(&row, &moments) {
            return Err(LatentsError::Row {
                path: self.table.path().to_owned(),
                row: number,
                problem,
            });
        }
        self.rows.push((row, moments));
        if self.rows.len() >= batch_rows(self.layout.row_bytes()) {
            self.flush()?;
        }
        Ok(())
    }

    fn check(&self, row: &LatentRow, moments: &[Option<ImageMoments>; 2]) -> Result<(), String> {
        let (numbers, fine) = (self.layout.numbers(), row.status == Status::Ok);
        let fits =
            |moments: &Moments| moments.mean.len() == numbers && moments.std.len() == numbers;
        for (image, moments) in moments.iter().enumerate() {
            let geometry = row.geometry.get(image).is_some_and(Option::is_some);
            if moments.is_some() != fine || geometry != fine {
                let status = row.status;
                return Err(format!("status {status} does not fit the data of image {image}"));
            }
            let Some(moments) = moments else { continue };
            if !fits(&moments.plain) || moments.flipped.as_ref().is_some_and(|other| !fits(other)) {
                return Err(format!("expected {numbers} numbers of each list of image {image}"));
            }
            if moments.flipped.is_some() != self.layout.flipped {
                return Err(format!("the flipped image {image} does not fit the layout"));
            }
        }
        Ok(())
    }

    /// Writes the rest and makes the file durable under its final name.
    ///
    /// # Errors
    /// As for [`LatentsWriter::write`]; nothing changes under the final name then.
    pub fn finish(mut self) -> Result<(), LatentsError> {
        self.flush()?;
        Ok(self.table.finish()?)
    }

    fn flush(&mut self) -> Result<(), LatentsError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let text = |value: fn(&LatentRow) -> Option<&str>| -> ArrayRef {
            Arc::new(rows.iter().map(|(row, _)| value(row)).collect::<StringArray>())
        };
        let mut columns = vec![
            text(|row| Some(&row.pair_id)),
            text(|row| Some(&row.source_file)),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|(row, _)| row.source_row))),
            text(|row| row.caption.as_deref()),
            Arc::new(rows.iter().map(|(row, _)| row.caption_index).collect::<Int64Array>()),
            text(|row| row.image_uid[0].as_deref()),
            text(|row| row.image_uid[1].as_deref()),
        ];
        let unfit = |problem| LatentsError::Row {
            path: self.table.path().to_owned(),
            row: self.written,
            problem: format!("{problem}, in this row or soon after it"),
        };
        for image in [0, 1] {
            for side in [
                |geometry: Geometry| geometry.size.0,
                |geometry: Geometry| geometry.size.1,
                |geometry: Geometry| geometry.crop.0,
                |geometry: Geometry| geometry.crop.1,
            ] {
                let sides = rows.iter().map(|(row, _)| {
                    row.geometry[image].and_then(|geometry| i32::try_from(side(geometry)).ok())
                });
                columns.push(Arc::new(sides.collect::<Int32Array>()));
            }
            let plain = |moments: &ImageMoments| Some(moments.plain.clone());
            let flipped = |moments: &ImageMoments| moments.flipped.clone();
            let variants: &[fn(&ImageMoments) -> Option<Moments>] =
                if self.layout.flipped { &[plain, flipped] } else { &[plain] };
            for variant in variants {
                let moments: Vec<Option<Moments>> = rows
                    .iter()
                    .map(|(_, moments)| moments[image].as_ref().and_then(variant))
                    .collect();
                let mean = moments.iter().map(|found| found.as_ref().map(|it| &it.mean[..]));
                columns.push(lists(self.layout.stored, mean).map_err(unfit)?);
                let std = moments.iter().map(|found| found.as_ref().map(|it| &it.std[..]));
                columns.push(lists(self.layout.stored, std).map_err(unfit)?);
            }
        }
        columns.push(text(|row| Some(row.status.as_str())));
        columns.push(text(|row| row.error.as_deref()));
        self.table.write(columns)?;
        self.written += i64::try_from(rows.len()).unwrap_or(0);
        Ok(())
    }
}

/// Writes `captions-*.parquet`, which gets its final name in [`CaptionsWriter::finish`].
#[derive(Debug)]
pub struct CaptionsWriter {
    table: TableWriter,
    layout: CaptionsLayout,
    rows: Vec<CaptionRow>,
    written: i64,
}

impl CaptionsWriter {
    /// Starts a file with this key-value metadata, the schema version and the shape.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        path: impl AsRef<Path>,
        layout: CaptionsLayout,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, LatentsError> {
        let mut metadata = metadata.clone();
        let sides: Vec<i64> = layout.shape.into_iter().chain(layout.pooled).collect();
        metadata.insert(KEY_SHAPE.to_owned(), written(&sides));
        let columns = layout.columns();
        let table = create(path.as_ref(), &columns, layout.row_bytes(), &metadata)?;
        Ok(Self { table, layout, rows: Vec::new(), written: 0 })
    }

    /// Adds a caption; captions are numbered without gaps.
    ///
    /// # Errors
    /// When the row does not fit the layout, holds a number that cannot be stored, or the disk
    /// fails.
    pub fn write(&mut self, row: CaptionRow) -> Result<(), LatentsError> {
        let (numbers, pooled) = (self.layout.numbers(), self.layout.pooled_numbers());
        let found = (row.prompt_embeds.len(), row.pooled_prompt_embeds.as_ref().map(Vec::len));
        if found != (numbers, pooled) {
            return Err(LatentsError::Row {
                path: self.table.path().to_owned(),
                row: self.written + i64::try_from(self.rows.len()).unwrap_or(0),
                problem: format!("expected {numbers} and {pooled:?} numbers, found {found:?}"),
            });
        }
        self.rows.push(row);
        if self.rows.len() >= batch_rows(self.layout.row_bytes()) {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the rest and makes the file durable under its final name.
    ///
    /// # Errors
    /// As for [`CaptionsWriter::write`]; nothing changes under the final name then.
    pub fn finish(mut self) -> Result<(), LatentsError> {
        self.flush()?;
        Ok(self.table.finish()?)
    }

    fn flush(&mut self) -> Result<(), LatentsError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let unfit = |problem| LatentsError::Row {
            path: self.table.path().to_owned(),
            row: self.written,
            problem: format!("{problem}, in this row or soon after it"),
        };
        let hidden = rows.iter().map(|row| Some(&row.prompt_embeds[..]));
        let pooled = rows.iter().map(|row| row.pooled_prompt_embeds.as_deref());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.caption_index))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.caption))),
            lists(self.layout.stored, hidden).map_err(unfit)?,
            lists(self.layout.stored, pooled).map_err(unfit)?,
        ];
        self.table.write(columns)?;
        self.written += i64::try_from(rows.len()).unwrap_or(0);
        Ok(())
    }
}
