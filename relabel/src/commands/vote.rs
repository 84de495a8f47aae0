//! `relabel vote`: decides again from the scores of a labels file, column by column. Other commands
//! that vote again ([`Voting`]) do it here too.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use arrow::array::{Array as _, Int8Builder, StringViewBuilder};
use runkit::exit::ExitStatus;
use runkit::output::State;
use runkit::prefetch::prefetch;
use schemas::labels::{
    KEY_FINGERPRINT, KEY_MANIFEST, LabelBatch, LabelsFile, LabelsSchema, LabelsWriter, Status,
};
use serde_json::{Map, Value, json};

use crate::cli::{VoteArguments, VotingArguments};
use crate::inspect::{Counting, Report};
use crate::score;
use crate::vote::{Decider, MarginScale, Missing, TiePolicy, cast};

/// Batches of 16,384 rows that wait for the writer at most.
const BATCHES_AHEAD: usize = 2;

/// Runs the command.
pub(super) fn run(arguments: &VoteArguments) -> Result<ExitStatus> {
    let labels = LabelsFile::open(&arguments.labels)?;
    let voters = voters(&labels, arguments)?;
    let schema = LabelsSchema::new(&voters)?;
    let manifest = manifest(&labels, &voters, &arguments.voting).with_context(|| {
        format!("{}: its manifest cannot be read", locations::shown(&arguments.labels).display())
    })?;
    let voting = Voting {
        arguments: &arguments.voting,
        inputs: std::slice::from_ref(&arguments.labels),
        schema: &schema,
        manifest,
        metadata: labels.metadata().clone(),
    };
    voting.run(|| Ok(labels.batches()?.map(|batch| of_voters(&batch?, &schema))))
}

/// A labels file of scores that are there, with votes decided again.
pub(super) struct Voting<'run> {
    pub(super) arguments: &'run VotingArguments,
    /// What is read, and so must not be overwritten.
    pub(super) inputs: &'run [PathBuf],
    pub(super) schema: &'run LabelsSchema,
    /// What the new labels depend on.
    pub(super) manifest: Value,
    /// Other metadata to keep.
    pub(super) metadata: BTreeMap<String, String>,
}

impl Voting<'_> {
    /// Writes the labels, unless they are there. `batches` reads the rows, once or twice.
    pub(super) fn run<B>(mut self, batches: impl Fn() -> Result<B>) -> Result<ExitStatus>
    where
        B: Iterator<Item = Result<LabelBatch>> + Send,
    {
        let VotingArguments { out, fresh, json, .. } = self.arguments;
        let output = score::labels_output(out, *fresh);
        if output.examine(self.inputs, &self.manifest, score::manifest_of_labels)?
            == State::Complete
        {
            tracing::info!(labels = %out.display(), "already complete");
            super::say_report(*json, out, &Report::of(out)?)?;
            return Ok(ExitStatus::Done);
        }
        let decider = self.decider(&batches)?;
        let fingerprint = runkit::manifest::fingerprint(&self.manifest)?;
        let manifest = runkit::manifest::canonical_json(&self.manifest)?;
        self.metadata.insert(KEY_FINGERPRINT.to_owned(), fingerprint);
        self.metadata.insert(KEY_MANIFEST.to_owned(), manifest);

        let mut writer = LabelsWriter::create(out, self.schema, &self.metadata)?;
        let mut counting = Counting::new(self.schema.scorers());
        let decided = batches()?.map(|batch| -> Result<LabelBatch> {
            let batch = decide(&batch?, &decider)?;
            counting.add(&batch);
            Ok(batch)
        });
        // Writing takes as long as reading, deciding and counting together, so they run side by side.
        prefetch(decided, BATCHES_AHEAD, |batches| -> Result<()> {
            for batch in batches {
                writer.write_batch(&batch?)?;
            }
            Ok(())
        })?;
        writer.finish()?;
        super::say_report(*json, out, &counting.finish())?;
        Ok(ExitStatus::Done)
    }

    /// How ties and missing votes are decided: ties by the margins of all rows if asked for it.
    fn decider<B>(&self, batches: &impl Fn() -> Result<B>) -> Result<Decider>
    where
        B: Iterator<Item = Result<LabelBatch>>,
    {
        let VotingArguments { ties, missing, .. } = *self.arguments;
        let scorers = self.schema.scorers().len();
        let mut scale = MarginScale::new(scorers, missing);
        if ties == TiePolicy::Margin {
            let (mut scores, mut votes) = (vec![[None; 2]; scorers], vec![None; scorers]);
            for batch in batches()? {
                let batch = batch?;
                for row in 0..batch.num_rows() {
                    read_row(&batch, row, &mut scores, &mut votes);
                    scale.add(&scores, &votes);
                }
            }
        }
        Ok(Decider::new(ties, &scale))
    }
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
                locations::shown(&arguments.labels).display(),
                runkit::text::choices(scorers)
            );
        }
    }
    Ok(scorers.iter().filter(|name| asked.contains(name)).cloned().collect())
}

/// The manifest of the new file: that of the old one with other voters and other policies. If
/// the old one has no manifest, because another tool wrote it, its checksum says what was voted on.
fn manifest(labels: &LabelsFile, voters: &[String], arguments: &VotingArguments) -> Result<Value> {
    let mut manifest = manifest_of(labels)?;
    let Some(fields) = manifest.as_object_mut() else { bail!("expected a JSON object") };
    fields.insert("voters".to_owned(), json!(voters));
    set_policies(fields, arguments);
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

/// The manifest of labels; their checksum if another tool wrote them.
pub(super) fn manifest_of(labels: &LabelsFile) -> Result<Value> {
    Ok(match labels.metadata().get(KEY_MANIFEST) {
        Some(text) => serde_json::from_str(text)?,
        None => json!({ "labels": labels.fingerprint() }),
    })
}

/// Writes into a manifest how votes decide.
pub(super) fn set_policies(fields: &mut Map<String, Value>, arguments: &VotingArguments) {
    fields.insert("ties".to_owned(), json!(arguments.ties));
    match arguments.missing {
        Missing::Drop => fields.remove("missing"),
        Missing::Vote => fields.insert("missing".to_owned(), json!(Missing::Vote)),
    };
}

/// Whether the votes decide a row: it did not fail, or only because a scorer did.
pub(super) fn is_open(batch: &LabelBatch, row: usize) -> bool {
    let status = batch.status().value(row);
    [Status::Ok, Status::Partial, Status::NonFinite].iter().any(|open| open.as_str() == status)
}

/// The scores of a row in column order, and the votes that they and votes without scores are. A row
/// that failed in another way gets no votes, whatever its columns hold.
fn read_row(
    batch: &LabelBatch,
    row: usize,
    scores: &mut [[Option<f32>; 2]],
    votes: &mut [Option<i8>],
) {
    votes.fill(None);
    scores.fill([None; 2]);
    if !is_open(batch, row) {
        return;
    }
    for (scorer, (scores, vote)) in scores.iter_mut().zip(votes.iter_mut()).enumerate() {
        *scores = batch.scores(scorer).map(|it| it.is_valid(row).then(|| it.value(row)));
        let column = batch.votes(scorer);
        *vote = column.is_valid(row).then(|| column.value(row));
    }
    cast(scores, votes);
}

/// The batch with votes, sums and consensus decided again. A row that failed only for a scorer that
/// no longer votes is sound again.
fn decide(batch: &LabelBatch, decider: &Decider) -> Result<LabelBatch> {
    let (rows, scorers) = (batch.num_rows(), batch.schema().scorers().len());
    let mut columns: Vec<Int8Builder> =
        (0..scorers).map(|_| Int8Builder::with_capacity(rows)).collect();
    let mut sums = Int8Builder::with_capacity(rows);
    let mut consensus = Int8Builder::with_capacity(rows);
    let mut status = StringViewBuilder::new().with_deduplicate_strings();
    let mut error = StringViewBuilder::new();
    let (mut scores, mut votes) = (vec![[None; 2]; scorers], vec![None; scorers]);
    let (human, errors) = (batch.human_label_0(), batch.error());
    for row in 0..rows {
        read_row(batch, row, &mut scores, &mut votes);
        let human = human.is_valid(row).then(|| human.value(row));
        let decision = decider.decide(&scores, &votes, human);
        for (column, vote) in columns.iter_mut().zip(&votes) {
            column.append_option(*vote);
        }
        sums.append_option(decision.map(|(sum, _)| sum));
        consensus.append_option(decision.map(|(_, consensus)| consensus));
        if decision.is_some() && votes.iter().all(Option::is_some) {
            status.append_value(Status::Ok.as_str());
            error.append_null();
        } else {
            status.append_value(batch.status().value(row));
            error.append_option(errors.is_valid(row).then(|| errors.value(row)));
        }
    }
    let votes = columns.iter_mut().map(Int8Builder::finish).collect();
    let decided = batch.with_decisions(votes, sums.finish(), consensus.finish())?;
    Ok(decided.with_status(status.finish(), error.finish())?)
}
