//! `relabel vote`: decides again from the scores of a labels file, column by column.

use std::sync::mpsc::sync_channel;

use anyhow::{Context as _, Result, bail};
use arrow::array::{Array as _, Int8Array, Int8Builder};
use runkit::exit::ExitStatus;
use runkit::output::State;
use schemas::labels::{
    KEY_FINGERPRINT, KEY_MANIFEST, LabelBatch, LabelsFile, LabelsSchema, LabelsWriter, Status,
};
use serde_json::{Value, json};

use crate::cli::VoteArguments;
use crate::inspect::{Counting, Report};
use crate::score;
use crate::vote::{Moments, TiePolicy, vote};

/// Batches of 16,384 rows that wait for the writer at most.
const BATCHES_AHEAD: usize = 2;

/// Runs the command.
pub(super) fn run(arguments: &VoteArguments) -> Result<ExitStatus> {
    let labels = LabelsFile::open(&arguments.labels)?;
    let voters = voters(&labels, arguments)?;
    let schema = LabelsSchema::new(&voters)?;
    let scale = match arguments.ties {
        TiePolicy::Margin => margin_scale(&labels, &schema)?,
        _ => vec![1.0; voters.len()],
    };
    let mut metadata = labels.metadata().clone();
    let manifest = manifest(&labels, &voters, arguments.ties)
        .with_context(|| format!("{}: its manifest cannot be read", arguments.labels.display()))?;
    let output = score::labels_output(&arguments.out, arguments.fresh);
    let inputs = std::slice::from_ref(&arguments.labels);
    if output.examine(inputs, &manifest, score::manifest_of_labels)? == State::Complete {
        tracing::info!(labels = %arguments.out.display(), "already complete");
        let report = Report::of(&arguments.out)?;
        super::say(&format!("{}\nlabels: {}\n", report.to_text(), arguments.out.display()))?;
        return Ok(ExitStatus::Done);
    }
    metadata.insert(KEY_FINGERPRINT.to_owned(), runkit::manifest::fingerprint(&manifest)?);
    metadata.insert(KEY_MANIFEST.to_owned(), runkit::manifest::canonical_json(&manifest)?);

    // Reading, deciding and counting run beside the writing, which takes as long as all of them.
    let mut writer = LabelsWriter::create(&arguments.out, &schema, &metadata)?;
    let report = std::thread::scope(|scope| -> Result<Report> {
        let (sender, receiver) = sync_channel(BATCHES_AHEAD);
        let (schema, scale) = (&schema, &scale);
        let reader = scope.spawn(move || -> Result<Report> {
            let mut counting = Counting::new(schema.scorers());
            for batch in labels.batches()? {
                let batch = decide(&of_voters(&batch?, schema)?, arguments.ties, scale)?;
                counting.add(&batch);
                // The writer is gone when it failed; its error is the one to report.
                if sender.send(batch).is_err() {
                    break;
                }
            }
            Ok(counting.finish())
        });
        for batch in receiver {
            writer.write_batch(&batch)?;
        }
        // The closure does not panic; if it did, the panic goes on here.
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    writer.finish()?;
    super::say(&format!("{}\nlabels: {}\n", report.to_text(), arguments.out.display()))?;
    Ok(ExitStatus::Done)
}

/// The scorers that vote, in column order.
fn voters(labels: &LabelsFile, arguments: &VoteArguments) -> Result<Vec<String>> {
    let scorers = labels.schema().scorers();
    let Some(asked) = &arguments.voters else { return Ok(scorers.to_vec()) };
    for name in asked {
        if !scorers.contains(name) {
            let nearest = runkit::config::nearest_name(name, scorers.iter().map(String::as_str));
            let hint =
                nearest.map(|name| format!("; hint: did you mean `{name}`?")).unwrap_or_default();
            bail!(
                "{} has no scorer `{name}`, only {}{hint}",
                arguments.labels.display(),
                runkit::text::choices(scorers)
            );
        }
    }
    Ok(scorers.iter().filter(|name| asked.contains(name)).cloned().collect())
}

/// The manifest of the new file: that of the old one with other voters and another tie policy. Where the
/// old one has none, as another tool wrote it, its checksum says what was voted on.
fn manifest(labels: &LabelsFile, voters: &[String], ties: TiePolicy) -> Result<Value> {
    let mut manifest: Value = match labels.metadata().get(KEY_MANIFEST) {
        Some(text) => serde_json::from_str(text)?,
        None => json!({ "labels": labels.fingerprint() }),
    };
    let Some(fields) = manifest.as_object_mut() else { bail!("expected a JSON object") };
    fields.insert("voters".to_owned(), json!(voters));
    fields.insert("ties".to_owned(), json!(ties));
    if let Some(Value::Array(scorers)) = fields.get_mut("scorers") {
        scorers.retain(|scorer| voters.iter().any(|name| scorer["name"] == name.as_str()));
    }
    Ok(manifest)
}

/// The columns of the voters alone.
fn of_voters(batch: &LabelBatch, schema: &LabelsSchema) -> Result<LabelBatch> {
    let columns = schema
        .columns()
        .iter()
        .map(|column| {
            let found = batch.record_batch().column_by_name(&column.name);
            found.cloned().with_context(|| format!("the labels have no column {}", column.name))
        })
        .collect::<Result<_>>()?;
    Ok(LabelBatch::try_new(schema, columns)?)
}

/// Whether a row can be voted on: it was, and every voter scored both images.
fn can_vote(batch: &LabelBatch, row: usize) -> bool {
    batch.status().value(row) == Status::Ok.as_str()
        && (0..batch.schema().scorers().len())
            .all(|scorer| batch.scores(scorer).iter().all(|scores| scores.is_valid(row)))
}

fn decide(batch: &LabelBatch, ties: TiePolicy, scale: &[f64]) -> Result<LabelBatch> {
    let rows = batch.num_rows();
    let able: Vec<bool> = (0..rows).map(|row| can_vote(batch, row)).collect();
    let mut sums = vec![0i8; rows];
    let mut margins = vec![0f64; rows];
    let mut votes: Vec<Int8Array> = Vec::with_capacity(scale.len());
    for (scorer, scale) in scale.iter().enumerate() {
        let [first, second] = batch.scores(scorer);
        let mut column = Int8Builder::with_capacity(rows);
        for row in 0..rows {
            if !able[row] {
                column.append_null();
                continue;
            }
            let (first, second) = (first.value(row), second.value(row));
            let vote = vote(first, second);
            column.append_value(vote);
            sums[row] += vote;
            margins[row] += (f64::from(first) - f64::from(second)) / scale;
        }
        votes.push(column.finish());
    }
    let human = batch.human_label_0();
    let decisions = (0..rows).map(|row| {
        let human = human.is_valid(row).then(|| human.value(row));
        able[row].then(|| ties.decide(sums[row], human, margins[row]))
    });
    let consensus = decisions.collect::<Int8Array>();
    let sums =
        sums.iter().zip(&able).map(|(&sum, &able)| able.then_some(sum)).collect::<Int8Array>();
    Ok(batch.with_decisions(votes, sums, consensus)?)
}

/// The standard deviation of each voter's margins over the rows that have votes.
fn margin_scale(labels: &LabelsFile, schema: &LabelsSchema) -> Result<Vec<f64>> {
    let mut moments = vec![Moments::default(); schema.scorers().len()];
    for batch in labels.batches()? {
        let batch = of_voters(&batch?, schema)?;
        for row in (0..batch.num_rows()).filter(|&row| can_vote(&batch, row)) {
            for (scorer, moments) in moments.iter_mut().enumerate() {
                let [first, second] = batch.scores(scorer);
                moments.add(f64::from(first.value(row)) - f64::from(second.value(row)));
            }
        }
    }
    Ok(moments.iter().map(|moments| moments.standard_deviation().max(f64::MIN_POSITIVE)).collect())
}
