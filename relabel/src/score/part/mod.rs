//! Parts: what has been scored of one unit, complete or not there at all.
//!
//! A part holds a row for every slot of the unit, with the digest of the bytes found there, and a
//! row for every score. It names what its scores depend on: the key of its unit
//! ([`Plan::unit_keys`]), and of each scorer whose scores it holds the checksum of the full record.
//! A part serves whoever wants scores with these keys; any other counts as absent. If a uid names
//! other bytes elsewhere, the merge notices it by the digests, and does not give them foreign
//! scores.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryBuilder, Float32Array, Float32Builder, StringArray,
    StringBuilder, UInt32Builder, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Float32Type, Schema, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use schemas::checksums::CheckedFile;
use schemas::labels::Status;
use schemas::table_writer::TableWriter;
use scorers::{MemoryLimits, Score, ScoreFailure};
use serde::{Deserialize, Serialize};

use super::plan::Digest;
#[cfg(doc)]
use super::plan::Plan;

/// The metadata key of the key of a part's unit.
const UNIT: &str = "relabel.unit";

/// The metadata key of a part's scorers, with their keys.
const SCORERS: &str = "relabel.scorers";

/// A scorer, and what its scores depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScorerKey {
    /// Its name.
    pub(crate) name: String,
    /// A checksum of its full record, dtype and kind of device.
    pub(crate) key: String,
}

/// What the scores of a part depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartKey {
    /// The key of the unit.
    pub(crate) unit: String,
    /// The scorers, in the order of their columns.
    pub(crate) scorers: Vec<ScorerKey>,
}

/// The metadata key of a part's [`Note`].
const NOTE: &str = "relabel.note";

/// Rows kept in memory before they are encoded.
const ROWS_PER_BATCH: usize = 4096;

/// One row of a part.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartRow {
    /// 2·row + position, within the unit.
    pub(crate) slot: u64,
    /// The digest of the encoded image; `None` if it is null or empty.
    pub(crate) content: Option<Digest>,
    /// What is known of the image there.
    pub(crate) found: Found,
}

/// What a row of a part says about the image in its slot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found {
    /// That there is one. Every slot has one such row in the part of its unit, or the failure of an
    /// image that is not there.
    Occurrence,
    /// Its scores with this caption, one per scorer.
    Scores {
        /// Index of the caption.
        caption: u32,
        /// In scorer order.
        scores: Vec<Score>,
    },
    /// The votes of scorers that compare the images of the row that the slot begins, one for each
    /// scorer: +1 or -1, or why it has no vote. It means nothing for other scorers.
    Votes(Vec<Score>),
    /// Why it has no scores.
    Failure {
        /// In a word.
        status: Status,
        /// In a sentence.
        error: String,
    },
}

/// What the log reports of the images of a part once they are scored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Images with transparency that a recipe laid on white.
    pub(crate) on_white: u64,
    /// To how many rows forward passes were reduced because memory ran out.
    pub(crate) memory: MemoryLimits,
}

impl Note {
    /// Both together: counts add up, and the smaller limit is the one to know.
    pub(crate) fn with(self, other: Self) -> Self {
        let least = |one: Option<usize>, other: Option<usize>| one.into_iter().chain(other).min();
        Self {
            on_white: self.on_white + other.on_white,
            memory: MemoryLimits {
                images: least(self.memory.images, other.memory.images),
                captions: least(self.memory.captions, other.memory.captions),
            },
        }
    }

    /// The note of a complete part.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match entry(&open(path)?, NOTE) {
            Some(text) => serde_json::from_str(text).with_context(|| damaged(path)),
            None => Ok(Self::default()),
        }
    }
}

/// The file of part `index` of `count`.
pub(crate) fn path(folder: &Path, index: usize, count: usize) -> PathBuf {
    folder.join(format!("part-{index:05}-of-{count:05}.parquet"))
}

/// The file of what an earlier run's scores lack in unit `index` of `count`: scores that failed in it.
pub(crate) fn more_path(folder: &Path, index: usize, count: usize) -> PathBuf {
    folder.join(format!("more-{index:05}-of-{count:05}.parquet"))
}

/// The file of what part `index` of `count` left to the end: images that only all parts together
/// show to be scored nowhere.
pub(crate) fn rest_path(folder: &Path, index: usize, count: usize) -> PathBuf {
    folder.join(format!("rest-{index:05}-of-{count:05}.parquet"))
}

/// Whether a file of this name is a part.
fn is_part(name: &str) -> bool {
    let begins = ["part-", "rest-", "more-"].iter().any(|head| name.starts_with(head));
    begins && name.ends_with(".parquet")
}

/// Makes the parts of a run over fewer pairs those of a run of `count` units. What was left to its
/// end is removed, since more pairs may bring the images that it lacked.
pub(crate) fn adopt(folder: &Path, count: usize) -> Result<()> {
    let ours = format!("-of-{count:05}.parquet");
    for name in runkit::run_folder::names_in(folder, is_part)? {
        let old = folder.join(&name);
        let index = name.strip_prefix("part-").and_then(|name| name.get(..5)?.parse().ok());
        let new = index.filter(|&index| index < count).map(|index| path(folder, index, count));
        if index.is_some() && name.ends_with(&ours) {
            continue;
        }
        if let Some(new) = new.filter(|new| !new.exists()) {
            let bytes = std::fs::read(&old).with_context(|| damaged(&old))?;
            runkit::files::write_atomic(&new, |file| file.write_all(&bytes))?;
        }
        runkit::run_folder::remove_file(&old)?;
    }
    Ok(())
}

/// A part in `folder` that is of another number of units than `count`, if there is one.
pub(crate) fn of_other_units(folder: &Path, count: usize) -> Result<Option<PathBuf>> {
    let ours = format!("-of-{count:05}.parquet");
    let is_other = |name: &str| is_part(name) && !name.ends_with(&ours);
    let found = runkit::run_folder::names_in(folder, is_other)?;
    Ok(found.first().map(|name| folder.join(name)))
}

/// The status of a row of votes. It is not a [`Status`].
const VOTES: &str = "votes";

/// The column of why a scorer failed. No scorer has such a name.
fn failure_column(scorer: &str) -> String {
    format!("{scorer} failure")
}

fn schema(scorers: &[ScorerKey]) -> Schema {
    let mut fields = vec![
        Field::new("slot", DataType::UInt64, false),
        Field::new("content", DataType::FixedSizeBinary(size_of::<Digest>() as i32), true),
        Field::new("caption", DataType::UInt32, true),
        Field::new("status", DataType::Utf8, true),
        Field::new("error", DataType::Utf8, true),
    ];
    for ScorerKey { name, .. } in scorers {
        fields.push(Field::new(name, DataType::Float32, true));
        fields.push(Field::new(failure_column(name), DataType::Utf8, true));
    }
    Schema::new(fields)
}

/// Writes one part. The file appears under its name at [`PartWriter::finish`].
pub(crate) struct PartWriter {
    table: TableWriter,
    rows: Vec<PartRow>,
    scorers: usize,
    /// Written at the end.
    pub(crate) note: Note,
}

impl PartWriter {
    pub(crate) fn create(path: &Path, key: &PartKey) -> Result<Self> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by("relabel".to_owned())
            .set_key_value_metadata(Some(vec![
                KeyValue::new(UNIT.to_owned(), key.unit.clone()),
                KeyValue::new(SCORERS.to_owned(), serde_json::to_string(&key.scorers)?),
            ]))
            .build();
        Ok(Self {
            table: TableWriter::create(path, Arc::new(schema(&key.scorers)), properties)?,
            rows: Vec::new(),
            scorers: key.scorers.len(),
            note: Note::default(),
        })
    }

    pub(crate) fn write(&mut self, row: PartRow) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() >= ROWS_PER_BATCH { self.flush() } else { Ok(()) }
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush()?;
        let note = serde_json::to_string(&self.note)?;
        self.table.add_metadata(NOTE, note);
        Ok(self.table.finish()?)
    }

    fn flush(&mut self) -> Result<()> {
        let (mut slot, mut caption) = (UInt64Builder::new(), UInt32Builder::new());
        let mut content = FixedSizeBinaryBuilder::new(size_of::<Digest>() as i32);
        let (mut status, mut error) = (StringBuilder::new(), StringBuilder::new());
        let mut scores: Vec<(Float32Builder, StringBuilder)> =
            (0..self.scorers).map(|_| Default::default()).collect();
        for row in self.rows.drain(..) {
            slot.append_value(row.slot);
            match row.content {
                Some(digest) => content.append_value(digest)?,
                None => content.append_null(),
            }
            let (index, says, why, values) = match row.found {
                Found::Occurrence => (None, None, None, Vec::new()),
                Found::Scores { caption, scores } => (Some(caption), None, None, scores),
                Found::Votes(votes) => (None, Some(VOTES), None, votes),
                Found::Failure { status, error } => {
                    (None, Some(status.as_str()), Some(error), Vec::new())
                }
            };
            caption.append_option(index);
            status.append_option(says);
            error.append_option(why);
            for (index, (numbers, failures)) in scores.iter_mut().enumerate() {
                let score = values.get(index);
                numbers.append_option(score.and_then(|score| score.as_ref().ok()).copied());
                let failure = score.and_then(|score| score.as_ref().err());
                failures.append_option(failure.map(ScoreFailure::reason));
            }
        }
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(slot.finish()),
            Arc::new(content.finish()),
            Arc::new(caption.finish()),
            Arc::new(status.finish()),
            Arc::new(error.finish()),
        ];
        for (numbers, failures) in &mut scores {
            columns.push(Arc::new(numbers.finish()));
            columns.push(Arc::new(failures.finish()));
        }
        Ok(self.table.write(columns)?)
    }
}

/// Whether `path` is a complete part with these scores, and maybe others.
///
/// # Errors
/// A part that is damaged: it cannot come from an interrupted run, so the user decides what happens
/// to it.
pub(crate) fn is_done(path: &Path, wanted: &PartKey) -> Result<bool> {
    Ok(key(path)?.is_some_and(|found| {
        let has = |scorer| found.scorers.contains(scorer);
        found.unit == wanted.unit && wanted.scorers.iter().all(has)
    }))
}

/// What the scores of a part depend on; `None` if there is no such part.
///
/// # Errors
/// As for [`is_done`].
pub(crate) fn key(path: &Path) -> Result<Option<PartKey>> {
    if !path.exists() {
        return Ok(None);
    }
    let reader = match open(path) {
        // Another shard has merged and removed it just now.
        Err(_) if !path.exists() => return Ok(None),
        reader => reader?,
    };
    let (Some(unit), Some(scorers)) = (entry(&reader, UNIT), entry(&reader, SCORERS)) else {
        return Ok(None);
    };
    let scorers = serde_json::from_str(scorers).with_context(|| damaged(path))?;
    Ok(Some(PartKey { unit: unit.to_owned(), scorers }))
}

/// A value of the metadata.
fn entry<'reader>(
    reader: &'reader ParquetRecordBatchReaderBuilder<CheckedFile>,
    key: &str,
) -> Option<&'reader str> {
    let entries = reader.metadata().file_metadata().key_value_metadata();
    entries.into_iter().flatten().find(|entry| entry.key == key)?.value.as_deref()
}

/// Calls `each` for every row of a part with these scorers, in order.
pub(crate) fn read(
    path: &Path,
    scorers: &[ScorerKey],
    mut each: impl FnMut(PartRow) -> Result<()>,
) -> Result<()> {
    let reader = open(path)?;
    let column = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
    let found: Vec<String> = reader.schema().fields().iter().map(column).collect();
    let expected: Vec<String> = schema(scorers).fields().iter().map(column).collect();
    ensure!(
        found == expected,
        "{}: expected the columns of a part, found {}; hint: start over with --fresh",
        path.display(),
        found.join(", ")
    );
    for batch in reader.build()? {
        let batch = batch.with_context(|| damaged(path))?;
        let slot = batch.column(0).as_primitive::<UInt64Type>();
        let content = batch.column(1).as_fixed_size_binary();
        let caption = batch.column(2).as_primitive::<UInt32Type>();
        let status = batch.column(3).as_string::<i32>();
        let error = batch.column(4).as_string::<i32>();
        let scores: Vec<_> = (5..batch.num_columns())
            .step_by(2)
            .map(|index| {
                let numbers = batch.column(index).as_primitive::<Float32Type>();
                (numbers, batch.column(index + 1).as_string::<i32>())
            })
            .collect();
        for row in 0..batch.num_rows() {
            let score = |(numbers, failures): &(&Float32Array, &StringArray)| match (
                numbers.is_valid(row),
                failures.is_valid(row),
            ) {
                (true, false) => Ok(Ok(numbers.value(row))),
                (false, true) => Ok(Err(ScoreFailure::new(failures.value(row)))),
                _ => Err(anyhow::anyhow!(damaged(path))),
            };
            let of_row = || scores.iter().map(score).collect::<Result<Vec<Score>>>();
            let found = if caption.is_valid(row) {
                Found::Scores { caption: caption.value(row), scores: of_row()? }
            } else if status.is_valid(row) && status.value(row) == VOTES {
                Found::Votes(of_row()?)
            } else if status.is_valid(row) {
                let status = status.value(row).parse();
                let status = status.map_err(|_| anyhow::anyhow!(damaged(path)))?;
                Found::Failure { status, error: error.value(row).to_owned() }
            } else {
                Found::Occurrence
            };
            let content = content.is_valid(row).then(|| content.value(row).try_into());
            let content = content.transpose().with_context(|| damaged(path))?;
            each(PartRow { slot: slot.value(row), content, found })?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<CheckedFile>> {
    // It verifies the footer, which is behind everything else that it reads.
    let file = CheckedFile::open(path).with_context(|| damaged(path))?;
    let footer = std::fs::File::open(path).with_context(|| damaged(path))?;
    let metadata = ArrowReaderMetadata::load(&footer, ArrowReaderOptions::new());
    let metadata = metadata.with_context(|| damaged(path))?;
    Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata))
}

fn damaged(path: &Path) -> String {
    format!(
        "{}: this part is damaged; hint: remove it and run the same command again",
        path.display()
    )
}
