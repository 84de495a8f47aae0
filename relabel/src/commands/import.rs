//! `relabel import`: scores that another program made, as one more scorer of a labels file.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use arrow::array::{
    Array as _, ArrayRef, Float32Builder, Int8Builder, StringViewArray, StringViewBuilder,
};
use runkit::exit::ExitStatus;
use runkit::files::FileHashes;
use runkit::logging::counted;
use runkit::text::quoted;
use schemas::labels::{LabelBatch, LabelsFile, LabelsSchema, Status};
use serde_json::{Value, json};

use super::table::{Scores, Table};
use super::vote::{Voting, is_open, manifest_of, set_policies};
use crate::cli::ImportArguments;
use crate::vote::vote;

/// The columns after those of the scorers: sum, consensus, status, error.
const COLUMNS_AFTER: usize = 4;

/// Runs the command.
pub(super) fn run(arguments: &ImportArguments) -> Result<ExitStatus> {
    let labels = LabelsFile::open(&arguments.labels)?;
    let name = &arguments.name;
    let known = labels.schema().scorers();
    if known.contains(name) {
        bail!(
            "{} has scores of `{name}` already; hint: another --name, or relabel vote --voters to \
             leave them out",
            locations::shown(&arguments.labels).display()
        );
    }
    let names = [known, std::slice::from_ref(name)].concat();
    let schema = LabelsSchema::new(&names)?;
    let table = Table::read(&arguments.scores)?;
    let import = Import { arguments, table: &table, schema: &schema };
    import.say(&labels)?;
    let voting = Voting {
        arguments: &arguments.voting,
        inputs: &[arguments.labels.clone(), arguments.scores.clone()],
        schema: &schema,
        manifest: manifest(&labels, arguments)?,
        metadata: labels.metadata().clone(),
    };
    voting.run(|| Ok(labels.batches()?.map(|batch| import.with_scores(&batch?))))
}

/// The manifest of the new file: that of the labels, with one more scorer, which is its table.
fn manifest(labels: &LabelsFile, arguments: &ImportArguments) -> Result<Value> {
    let mut manifest = manifest_of(labels).with_context(|| {
        format!("{}: its manifest cannot be read", locations::shown(&arguments.labels).display())
    })?;
    let mut hashes = FileHashes::default();
    hashes.learn([arguments.scores.as_path()])?;
    let file = arguments.scores.file_name().unwrap_or_default().to_string_lossy();
    let table = json!({ "file": file, "sha256": hashes.of(&arguments.scores) });
    let record = json!({ "name": arguments.name, "kind": "imported", "table": table });
    let names = [labels.schema().scorers(), std::slice::from_ref(&arguments.name)].concat();
    let Some(fields) = manifest.as_object_mut() else { bail!("expected a JSON object") };
    match fields.entry("scorers").or_insert_with(|| json!([])).as_array_mut() {
        Some(scorers) => scorers.push(record),
        None => bail!("expected a list of scorers"),
    }
    fields.insert("voters".to_owned(), json!(names));
    set_policies(fields, &arguments.voting);
    Ok(manifest)
}

/// A table that becomes a scorer.
struct Import<'run> {
    arguments: &'run ImportArguments,
    table: &'run Table,
    schema: &'run LabelsSchema,
}

impl Import<'_> {
    /// Says how the table fits the labels: rows that are of no pair, keys that stand twice, pairs
    /// without scores.
    fn say(&self, labels: &LabelsFile) -> Result<()> {
        let table = self.arguments.scores.display();
        let (mut pairs, mut images) = (HashSet::new(), HashSet::new());
        let (mut scored, mut missing) = (0_u64, 0_u64);
        for batch in labels.batches()? {
            let batch = batch?;
            for row in 0..batch.num_rows() {
                match &self.table.scores {
                    Scores::ByPair(scores) => {
                        if let Some((known, _)) = scores.get_key_value(batch.pair_id().value(row)) {
                            pairs.insert(known.as_str());
                        }
                    }
                    Scores::ByImage(scores) => {
                        let keys = [0, 1].map(|position| key_of(&batch, row, position));
                        let keys = keys.into_iter().flatten();
                        let known = keys.filter_map(|key| Some(scores.get_key_value(&key)?.0));
                        images.extend(known);
                    }
                }
                if is_open(&batch, row) {
                    let is_scored = self.scores_of(&batch, row).iter().all(Option::is_some);
                    scored += u64::from(is_scored);
                    missing += u64::from(!is_scored);
                }
            }
        }
        let (used, first) = match &self.table.scores {
            Scores::ByPair(scores) => {
                let unknown = scores.keys().filter(|key| !pairs.contains(key.as_str()));
                (pairs.len(), unknown.min().map(|pair_id| quoted(pair_id)))
            }
            Scores::ByImage(scores) => {
                let unknown = scores.keys().filter(|key| !images.contains(key)).min();
                let shown =
                    unknown.map(|(uid, caption)| format!("{} {}", quoted(uid), quoted(caption)));
                (images.len(), shown)
            }
        };
        let unknown = self.table.rows - self.table.duplicates - used as u64;
        ensure!(
            used > 0,
            "{table}: none of its {} is of a pair of {}; hint: pair_id, or image_uid and caption, as \
             in the labels",
            counted(self.table.rows, "rows"),
            locations::shown(&self.arguments.labels).display()
        );
        tracing::info!(scored, "{} have both scores", counted(scored, "pairs"));
        if let Some(first) = first {
            let rows = counted(unknown, "rows");
            tracing::warn!(unknown, "{table}: left out {rows} of no pair, such as {first}");
        }
        if self.table.duplicates > 0 {
            let rows = counted(self.table.duplicates, "rows");
            tracing::warn!(
                duplicates = self.table.duplicates,
                contradictions = self.table.contradictions,
                "{table}: left out {rows} whose pair or image stood before, {} with another score",
                self.table.contradictions
            );
        }
        if missing > 0 {
            let pairs = counted(missing, "pairs");
            tracing::warn!(missing, "{table} lacks a score of {pairs}: they are partial");
        }
        Ok(())
    }

    /// The table's scores for a row.
    fn scores_of(&self, batch: &LabelBatch, row: usize) -> [Option<f32>; 2] {
        match &self.table.scores {
            Scores::ByPair(pairs) => {
                pairs.get(batch.pair_id().value(row)).copied().unwrap_or_default()
            }
            Scores::ByImage(images) => [0, 1].map(|position| {
                key_of(batch, row, position).and_then(|key| images.get(&key).copied().flatten())
            }),
        }
    }

    /// The batch with the columns of the new scorer, not decided yet.
    fn with_scores(&self, batch: &LabelBatch) -> Result<LabelBatch> {
        let rows = batch.num_rows();
        let mut scores = [Float32Builder::with_capacity(rows), Float32Builder::with_capacity(rows)];
        let mut votes = Int8Builder::with_capacity(rows);
        let mut statuses = StringViewBuilder::new().with_deduplicate_strings();
        let mut errors = StringViewBuilder::new();
        for row in 0..rows {
            let mut found = self.scores_of(batch, row);
            let status = batch.status().value(row);
            let error = batch.error().is_valid(row).then(|| batch.error().value(row));
            if is_open(batch, row) && found.contains(&None) {
                let sentences = [0, 1].into_iter().filter(|&position| found[position].is_none());
                let sentences = sentences.map(|position| {
                    format!("image_{position}: scorer `{}` has no score", self.arguments.name)
                });
                let all: Vec<String> =
                    error.map(str::to_owned).into_iter().chain(sentences).collect();
                statuses.append_value(Status::Partial.as_str());
                errors.append_value(all.join("; "));
                found = [None; 2];
            } else {
                statuses.append_value(status);
                errors.append_option(error);
            }
            for (column, score) in scores.iter_mut().zip(found) {
                column.append_option(score);
            }
            votes.append_option(found[0].zip(found[1]).map(|(first, second)| vote(first, second)));
        }
        let mut columns = batch.record_batch().columns().to_vec();
        let after = columns.split_off(columns.len() - COLUMNS_AFTER);
        columns.extend(scores.iter_mut().map(|scores| Arc::new(scores.finish()) as ArrayRef));
        columns.push(Arc::new(votes.finish()));
        columns.extend(after.into_iter().take(2));
        columns.push(Arc::new(statuses.finish()));
        columns.push(Arc::new(errors.finish()));
        Ok(LabelBatch::try_new(self.schema, columns)?)
    }
}

/// The uid of an image of a row and its caption, if both are there.
fn key_of(batch: &LabelBatch, row: usize, position: usize) -> Option<(String, String)> {
    let text =
        |column: &StringViewArray| column.is_valid(row).then(|| column.value(row).to_owned());
    Some((text(batch.image_uid()[position])?, text(batch.caption())?))
}
