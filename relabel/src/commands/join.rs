//! `relabel join`: the scorers of two labels files of the same pairs side by side, voted on again.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use arrow::array::{Array as _, ArrayRef, Int8Array, StringViewBuilder};
use arrow::util::display::array_value_to_string;
use runkit::exit::ExitStatus;
use runkit::text::{choices, quoted};
use schemas::labels::{LabelBatch, LabelBatches, LabelsFile, LabelsSchema, Status};
use serde_json::{Value, json};

use super::vote::{Voting, is_open, manifest_of, set_policies};
use crate::cli::JoinArguments;

/// The columns of a pair, which come before those of the scorers.
const PAIR_COLUMNS: usize = 7;
/// The columns of a scorer.
const SCORER_COLUMNS: usize = 3;

/// Runs the command.
pub(super) fn run(arguments: &JoinArguments) -> Result<ExitStatus> {
    let paths = [arguments.first.clone(), arguments.second.clone()];
    let [first, second] = [LabelsFile::open(&paths[0])?, LabelsFile::open(&paths[1])?];
    let (ours, theirs) = (first.schema().scorers(), second.schema().scorers());
    let both: Vec<&String> = ours.iter().filter(|name| theirs.contains(name)).collect();
    if !both.is_empty() {
        bail!(
            "{} and {} both have scores of {}; hint: relabel vote --voters leaves a scorer out of \
             one of them",
            locations::shown(&paths[0]).display(),
            locations::shown(&paths[1]).display(),
            choices(&both)
        );
    }
    let schema = LabelsSchema::new(&[ours, theirs].concat())?;
    let manifest = manifest(&first, &second, arguments)?;
    let voting = Voting {
        arguments: &arguments.voting,
        inputs: &paths,
        schema: &schema,
        manifest,
        metadata: std::collections::BTreeMap::new(),
    };
    voting.run(|| Joined::of(&first, &second, &schema))
}

/// The manifest of the new file: those of both, and what of them other stages read.
fn manifest(first: &LabelsFile, second: &LabelsFile, arguments: &JoinArguments) -> Result<Value> {
    let of = |labels: &LabelsFile| {
        manifest_of(labels).with_context(|| {
            format!("{}: its manifest cannot be read", locations::shown(labels.path()).display())
        })
    };
    let joined = [of(first)?, of(second)?];
    let of_all = |name: &str| {
        let lists = joined.iter().filter_map(|manifest| manifest[name].as_array()).flatten();
        Value::Array(lists.cloned().collect())
    };
    let voters = [first.schema().scorers(), second.schema().scorers()].concat();
    let mut manifest = json!({
        "crate_version": env!("CARGO_PKG_VERSION"),
        "schema_version": schemas::labels::SCHEMA_VERSION,
        "scorers": of_all("scorers"),
        "voters": voters,
        "input": joined.iter().find_map(|manifest| manifest.get("input")),
        "joined": joined,
    });
    if let Some(fields) = manifest.as_object_mut() {
        set_policies(fields, &arguments.voting);
    }
    Ok(manifest)
}

/// The rows of two files, side by side. Ends after the first error.
struct Joined<'run> {
    sides: [Side<'run>; 2],
    schema: &'run LabelsSchema,
    /// The rows before.
    row: usize,
    is_over: bool,
}

/// One of the files.
struct Side<'run> {
    path: &'run Path,
    batches: LabelBatches,
    /// Rows that were read and are not joined yet.
    waiting: Option<LabelBatch>,
    rows: i64,
}

impl<'run> Side<'run> {
    fn of(labels: &'run LabelsFile) -> Result<Self> {
        let (path, rows) = (labels.path(), labels.num_rows());
        Ok(Self { path, batches: labels.batches()?, waiting: None, rows })
    }

    /// Reads on if nothing waits.
    fn fill(&mut self) -> Result<usize> {
        while self.waiting.as_ref().is_none_or(|batch| batch.num_rows() == 0) {
            let Some(batch) = self.batches.next() else { return Ok(0) };
            let shown = || format!("reading {}", locations::shown(self.path).display());
            self.waiting = Some(batch.with_context(shown)?);
        }
        Ok(self.waiting.as_ref().map_or(0, LabelBatch::num_rows))
    }

    /// The next rows, of those that wait.
    fn take(&mut self, rows: usize) -> Option<LabelBatch> {
        let batch = self.waiting.take()?;
        self.waiting = Some(batch.slice(rows, batch.num_rows()));
        Some(batch.slice(0, rows))
    }
}

impl<'run> Joined<'run> {
    fn of(
        first: &'run LabelsFile,
        second: &'run LabelsFile,
        schema: &'run LabelsSchema,
    ) -> Result<Self> {
        let sides = [Side::of(first)?, Side::of(second)?];
        Ok(Self { sides, schema, row: 0, is_over: false })
    }

    fn step(&mut self) -> Result<Option<LabelBatch>> {
        let [first, second] = &mut self.sides;
        let rows = first.fill()?.min(second.fill()?);
        let taken = if rows == 0 { None } else { first.take(rows).zip(second.take(rows)) };
        let Some((one, two)) = taken else {
            if first.rows != second.rows {
                bail!(
                    "{} has {} rows and {} has {}: expected the same pairs; they differ first in \
                     row {} (counted from 0), which one of them does not have",
                    locations::shown(first.path).display(),
                    first.rows,
                    locations::shown(second.path).display(),
                    second.rows,
                    self.row
                );
            }
            return Ok(None);
        };
        self.refuse_other_pairs(&one, &two)?;
        self.row += rows;
        side_by_side(self.schema, &one, &two).map(Some)
    }

    /// Refuses rows that are not of the same pairs, naming the first that differs.
    fn refuse_other_pairs(&self, one: &LabelBatch, two: &LabelBatch) -> Result<()> {
        let mut first: Option<(usize, usize)> = None;
        let (ours, theirs) = (one.record_batch(), two.record_batch());
        for column in 0..PAIR_COLUMNS {
            let (ours, theirs) = (ours.column(column), theirs.column(column));
            if ours == theirs {
                continue;
            }
            let differs = |row: &usize| ours.slice(*row, 1) != theirs.slice(*row, 1);
            let before = first.map_or(one.num_rows(), |(row, _)| row);
            first = (0..before).find(differs).map(|row| (row, column)).or(first);
        }
        let Some((row, column)) = first else { return Ok(()) };
        let shown = |batch: &LabelBatch| {
            let values = batch.record_batch().column(column);
            match values.is_null(row) {
                true => Ok("null".to_owned()),
                false => array_value_to_string(values, row).map(|text| quoted(&text)),
            }
        };
        let schema = ours.schema();
        let [path_one, path_two] = self.sides.each_ref().map(|side| locations::shown(side.path));
        Err(anyhow!(
            "{} and {}: expected the same pairs, found another {} in row {} (counted from 0): {} \
             and {}; hint: label the same --pairs in the same order",
            path_one.display(),
            path_two.display(),
            schema.field(column).name(),
            self.row + row,
            shown(one)?,
            shown(two)?
        ))
    }
}

impl Iterator for Joined<'_> {
    type Item = Result<LabelBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let item = self.step().transpose();
        self.is_over = !matches!(item, Some(Ok(_)));
        item
    }
}

/// The columns of both, with a status for both and no decision yet.
fn side_by_side(schema: &LabelsSchema, one: &LabelBatch, two: &LabelBatch) -> Result<LabelBatch> {
    let rows = one.num_rows();
    let of_scorers = |batch: &LabelBatch| {
        let count = batch.schema().scorers().len() * SCORER_COLUMNS;
        batch.record_batch().columns()[PAIR_COLUMNS..PAIR_COLUMNS + count].to_vec()
    };
    let mut columns = one.record_batch().columns()[..PAIR_COLUMNS].to_vec();
    columns.extend(of_scorers(one));
    columns.extend(of_scorers(two));
    let undecided: ArrayRef = Arc::new(Int8Array::new_null(rows));
    columns.extend([Arc::clone(&undecided), undecided]);
    let mut statuses = StringViewBuilder::new().with_deduplicate_strings();
    let mut errors = StringViewBuilder::new();
    for row in 0..rows {
        let (status, error) = status_of(one, two, row);
        statuses.append_value(status);
        errors.append_option(error);
    }
    columns.push(Arc::new(statuses.finish()));
    columns.push(Arc::new(errors.finish()));
    Ok(LabelBatch::try_new(schema, columns)?)
}

/// The status of a row of both: what fails a row in one of them fails it, else the scorers that
/// failed in either are named.
fn status_of(one: &LabelBatch, two: &LabelBatch, row: usize) -> (String, Option<String>) {
    let status = |batch: &LabelBatch| batch.status().value(row).to_owned();
    let error = |batch: &LabelBatch| {
        batch.error().is_valid(row).then(|| batch.error().value(row).to_owned())
    };
    let sides = [one, two];
    if let Some(failed) = sides.into_iter().find(|batch| !is_open(batch, row)) {
        return (status(failed), error(failed));
    }
    let failed = sides.into_iter().filter(|batch| status(batch) != Status::Ok.as_str());
    let failed: Vec<&LabelBatch> = failed.collect();
    let errors: Vec<String> = failed.iter().filter_map(|batch| error(batch)).collect();
    match failed.first() {
        None => (Status::Ok.to_string(), None),
        Some(first) => (status(first), Some(errors.join("; ")).filter(|text| !text.is_empty())),
    }
}
