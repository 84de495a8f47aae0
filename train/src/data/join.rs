//! Labels and pairs, joined by (`source_file`, `source_row`), and checked to be of each other.

use std::collections::HashMap;
use std::path::Path;

use arrow::array::Array as _;
use schemas::labels::{LabelRow, LabelsFile, Status};
use schemas::pairs::positional_pair_id;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::order::Rows;
use super::{Counts, DataError, FileCounts};

/// What labels can be joined with.
pub(super) trait Source {
    /// How many files there are.
    fn files(&self) -> usize;
    /// The name of a file in the labels.
    fn source_file(&self, file: usize) -> &str;
    /// The file, for messages.
    fn path(&self, file: usize) -> &Path;
    /// The fingerprint of the file of pairs.
    fn fingerprint(&self, file: usize) -> String;
    /// The pairs of a file.
    fn num_rows(&self, file: usize) -> u32;
    /// Whether a pair of a file is there: a cache may hold the first pairs of a file.
    fn has_row(&self, file: usize, row: u32) -> bool;
    /// Calls `each` for every pair of a file, in order.
    fn each_row(
        &self,
        file: usize,
        each: &mut dyn FnMut(SmallRow<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError>;
}

/// The small columns of a pair.
pub(super) struct SmallRow<'a> {
    pub(super) row: u32,
    pub(super) pair_id: &'a str,
    pub(super) caption: Option<&'a str>,
    pub(super) image_uid: [Option<&'a str>; 2],
    /// Whether the pair can be trained on: a cache lacks the latents of some.
    pub(super) usable: bool,
}

/// The result of a join.
pub(super) struct Joined<L> {
    /// The rows to train on.
    pub(super) rows: Rows,
    /// The rows whose labels are ok or partial: the selected ones, and those whose label was dropped
    /// or lacks a vote that the preference needs.
    pub(super) labelled: Rows,
    pub(super) positional: Vec<bool>,
    pub(super) labels: Vec<L>,
    pub(super) counts: Counts,
}

/// A row of labels, as it is kept until its pair is read.
struct Entry<L> {
    row: u32,
    pair_id: u64,
    content: u64,
    outcome: Outcome<L>,
}

enum Outcome<L> {
    Failed,
    /// A partial row that lacks what the preference needs.
    Partial,
    Dropped,
    Selected(L),
}

/// Joins `labels` with `source`.
pub(super) fn join<L>(
    source: &impl Source,
    labels: &LabelsFile,
    label: &mut dyn FnMut(&LabelRow) -> Option<L>,
) -> Result<Joined<L>, DataError> {
    let Found { by_file: entries, elsewhere } = read(source, labels, label)?;
    let mut joined = Joined {
        rows: Rows::new(),
        labelled: Rows::new(),
        positional: Vec::new(),
        labels: Vec::new(),
        counts: Counts { elsewhere, ..Counts::default() },
    };
    for (file, mut entries) in entries.into_iter().enumerate() {
        if !entries.is_sorted_by_key(|entry| entry.row) {
            entries.sort_by_key(|entry| entry.row);
        }
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].row == pair[1].row) {
            return Err(DataError::Twice {
                labels: labels.path().to_owned(),
                source_file: source.source_file(file).to_owned(),
                source_row: pair[0].row,
            });
        }
        joined.add_file(source, labels, file, entries)?;
    }
    let counts = &joined.counts;
    if counts.selected == 0 {
        let Counts { rows, failed, dropped, uncached, .. } = *counts;
        let labels = labels.path().to_owned();
        return Err(DataError::Empty { labels, rows, failed, dropped, uncached });
    }
    Ok(joined)
}

/// The rows of labels.
struct Found<L> {
    /// Those of pairs that are there, by file of pairs.
    by_file: Vec<Vec<Entry<L>>>,
    /// How many others there are.
    elsewhere: u64,
}

/// Reads the rows of the labels. At least one must be of a file that is there.
fn read<L>(
    source: &impl Source,
    labels: &LabelsFile,
    label: &mut dyn FnMut(&LabelRow) -> Option<L>,
) -> Result<Found<L>, DataError> {
    let numbers: HashMap<&str, usize> =
        (0..source.files()).map(|file| (source.source_file(file), file)).collect();
    let mut entries: Vec<Vec<Entry<L>>> = (0..source.files()).map(|_| Vec::new()).collect();
    let (mut number, mut elsewhere) = (0_u64, 0_u64);
    let mut unknown = None;
    for batch in labels.batches()? {
        runkit::signals::check_at("labels")?;
        let batch = batch?;
        for index in 0..batch.num_rows() {
            let source_file = batch.source_file().value(index);
            let source_row = batch.source_row().value(index);
            let number_of_file = numbers.get(source_file).copied();
            let Some((file, entries)) =
                number_of_file.and_then(|file| Some((file, entries.get_mut(file)?)))
            else {
                unknown.get_or_insert_with(|| (number, source_file.to_owned()));
                (number, elsewhere) = (number + 1, elsewhere + 1);
                continue;
            };
            let rows = source.num_rows(file);
            let row = u32::try_from(source_row).ok().filter(|row| *row < rows);
            let row = row.ok_or_else(|| DataError::UnknownRow {
                labels: labels.path().to_owned(),
                row: number,
                source_file: source_file.to_owned(),
                source_row,
                rows,
            })?;
            if !source.has_row(file, row) {
                (number, elsewhere) = (number + 1, elsewhere + 1);
                continue;
            }
            let text = |column: &arrow::array::StringViewArray| {
                column.is_valid(index).then(|| column.value(index).to_owned())
            };
            let (caption, image_uid) = (text(batch.caption()), batch.image_uid().map(text));
            let uids = image_uid.each_ref().map(Option::as_deref);
            // A status that this version does not know is a failure without votes.
            let status = batch.status().value(index).parse();
            let fine = matches!(status, Ok(Status::Ok | Status::Partial));
            let outcome = match fine.then(|| batch.row(index)).transpose()? {
                None => Outcome::Failed,
                Some(row) => match label(&row) {
                    None if row.status == Status::Partial => Outcome::Partial,
                    None => Outcome::Dropped,
                    Some(_) if caption.is_none() => {
                        let labels = labels.path().to_owned();
                        return Err(DataError::NoCaption { labels, row: number });
                    }
                    Some(label) => Outcome::Selected(label),
                },
            };
            entries.push(Entry {
                row,
                pair_id: xxh3_64(batch.pair_id().value(index).as_bytes()),
                content: content(caption.as_deref(), uids),
                outcome,
            });
            number += 1;
        }
    }
    match unknown {
        Some((row, source_file)) if elsewhere == number => {
            Err(unknown_file(source, labels, row, &source_file))
        }
        _ => Ok(Found { by_file: entries, elsewhere }),
    }
}

impl<L> Joined<L> {
    /// Adds the rows of a file, after comparing each pair with its row of labels.
    fn add_file(
        &mut self,
        source: &impl Source,
        labels: &LabelsFile,
        file: usize,
        entries: Vec<Entry<L>>,
    ) -> Result<(), DataError> {
        let pairs = source.num_rows(file);
        let mut counts = FileCounts {
            source_file: source.source_file(file).to_owned(),
            pairs: u64::from(pairs),
            labelled: entries.len() as u64,
            ..FileCounts::default()
        };
        let mut entries = entries.into_iter().peekable();
        if entries.peek().is_some() {
            source.each_row(file, &mut |pair| {
                let Some(entry) = entries.next_if(|entry| entry.row == pair.row) else {
                    return Ok(());
                };
                let positional_id =
                    positional_pair_id(source.source_file(file), i64::from(pair.row));
                let named = entry.pair_id == xxh3_64(pair.pair_id.as_bytes());
                let positional = !named && entry.pair_id == xxh3_64(positional_id.as_bytes());
                let same = entry.content == content(pair.caption, pair.image_uid);
                if !same || !(named || positional) {
                    return Err(difference(source, labels, file, &pair));
                }
                if !matches!(entry.outcome, Outcome::Failed) {
                    self.labelled.push(pair.row);
                }
                match entry.outcome {
                    Outcome::Failed | Outcome::Partial => counts.failed += 1,
                    Outcome::Dropped => counts.dropped += 1,
                    Outcome::Selected(_) if !pair.usable => counts.uncached += 1,
                    Outcome::Selected(label) => {
                        counts.selected += 1;
                        self.rows.push(pair.row);
                        self.positional.push(positional);
                        self.labels.push(label);
                    }
                }
                Ok(())
            })?;
        }
        self.rows.end_file();
        self.labelled.end_file();
        self.counts.rows += counts.labelled;
        self.counts.failed += counts.failed;
        self.counts.dropped += counts.dropped;
        self.counts.uncached += counts.uncached;
        self.counts.selected += counts.selected;
        self.counts.unlabelled += counts.pairs.saturating_sub(counts.labelled);
        self.counts.by_file.push(counts);
        Ok(())
    }
}

/// A checksum of the columns that must be equal in labels and pairs.
fn content(caption: Option<&str>, image_uid: [Option<&str>; 2]) -> u64 {
    let mut hasher = Xxh3::new();
    for text in [caption].into_iter().chain(image_uid) {
        hasher.update(&text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
        hasher.update(text.unwrap_or_default().as_bytes());
    }
    hasher.digest()
}

fn unknown_file(
    source: &impl Source,
    labels: &LabelsFile,
    row: u64,
    source_file: &str,
) -> DataError {
    const SHOWN: usize = 3;
    let count = source.files();
    let mut files: Vec<&str> = (0..count.min(SHOWN)).map(|file| source.source_file(file)).collect();
    let more = format!("and {} more", count.saturating_sub(SHOWN));
    if count > SHOWN {
        files.push(&more);
    }
    DataError::UnknownFile {
        labels: labels.path().to_owned(),
        row,
        source_file: source_file.to_owned(),
        files: runkit::text::choices(&files),
    }
}

/// The error that names what differs between a pair and its row of labels. It reads the labels
/// again to find that row: the join kept a checksum only.
fn difference(
    source: &impl Source,
    labels: &LabelsFile,
    file: usize,
    pair: &SmallRow<'_>,
) -> DataError {
    let shown = |text: Option<&str>| match text {
        None => "null".to_owned(),
        Some(text) => {
            let short: String = text.chars().take(80).collect();
            format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
        }
    };
    let error = |field, expected: Option<&str>, found: Option<&str>| DataError::OtherPairs {
        labels: labels.path().to_owned(),
        pairs: source.path(file).to_owned(),
        source_row: pair.row,
        field,
        expected: shown(expected),
        found: shown(found),
    };
    let mut batches = match labels.batches() {
        Ok(batches) => batches,
        Err(cause) => return cause.into(),
    };
    loop {
        let batch = match batches.next() {
            None => return error("a row", None, Some(pair.pair_id)),
            Some(Err(cause)) => return cause.into(),
            Some(Ok(batch)) => batch,
        };
        let here = |index: &usize| {
            batch.source_row().value(*index) == i64::from(pair.row)
                && batch.source_file().value(*index) == source.source_file(file)
        };
        let Some(index) = (0..batch.num_rows()).find(here) else { continue };
        let text = |column: &arrow::array::StringViewArray| {
            column.is_valid(index).then(|| column.value(index).to_owned())
        };
        let fields = [
            ("caption", text(batch.caption()), pair.caption),
            ("image_0_uid", text(batch.image_uid()[0]), pair.image_uid[0]),
            ("image_1_uid", text(batch.image_uid()[1]), pair.image_uid[1]),
            ("the id", text(batch.pair_id()), Some(pair.pair_id)),
        ];
        let differing = fields.iter().find(|(_, label, pair)| label.as_deref() != *pair);
        return match differing {
            Some((field, label, pair)) => error(field, label.as_deref(), *pair),
            None => error("a row", None, Some(pair.pair_id)),
        };
    }
}
