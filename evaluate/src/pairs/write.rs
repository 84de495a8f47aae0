//! The folder of pairs: files of pairs, then `labels.parquet`, each complete when it has its name.
//!
//! A stopped run resumes behind the last file of pairs. `labels.parquet` comes last, so that it says
//! that all is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runkit::output::foreign;
use runkit::progress::Progress;
use runkit::run_folder::{FolderKind, RunFolder, names_in};
use schemas::labels::{
    KEY_FINGERPRINT, KEY_MANIFEST, LabelRow, LabelsFile, LabelsSchema, LabelsWriter, Status,
    consensus, vote,
};
use schemas::layouts::{
    DEALING, KEY_DEALING, KEY_FIRST_ROW, LabelsOf, Layout, PairsWriter, Sizes, is_swapped,
};
use schemas::pairs::{InputFile, NoVote, PairFile, PairRow};
use serde_json::{Value, json};

use super::images::Images;
use super::plan::{Plan, PlannedPrompt};
use super::rank::RankedPair;
use super::{LABELS, PairsError};

/// The metadata key, in a file of pairs, of the checksum of the manifest.
const KEY_RUN: &str = "balanceddpo.pairs.run";
const PROGRAM: &str = "evaluate pairs";
const FLAG: &str = "--out";
/// Letters of a pair's id.
const ID_LETTERS: usize = 32;

/// The folder that `evaluate pairs` writes.
pub(super) const FOLDER: FolderKind = FolderKind {
    name: "pairs of evaluate",
    flag: FLAG,
    lock: ".lock",
    is_ours: |manifest| manifest["program"] == PROGRAM,
    numerics: &[],
    notes: &[],
    hint: None,
};

/// What identifies a run of this program.
pub(super) fn manifest(mut fields: Value) -> Value {
    fields["program"] = json!(PROGRAM);
    fields["dealing"] = json!(DEALING);
    fields["schema_version"] = json!(schemas::labels::SCHEMA_VERSION);
    fields
}

/// Writes the pairs of a plan into a folder.
pub(super) struct Output<'run> {
    pub(super) folder: &'run RunFolder,
    pub(super) plan: &'run Plan,
    pub(super) manifest: &'run Value,
    pub(super) fingerprint: String,
    pub(super) sizes: Sizes,
}

impl Output<'_> {
    fn path(&self, number: u32) -> PathBuf {
        self.folder.path().join(name(number))
    }

    fn labels(&self) -> PathBuf {
        self.folder.path().join(LABELS)
    }

    /// Deletes the pairs and labels of an earlier run. What is not ours stays.
    pub(super) fn clear(&self) -> Result<(), PairsError> {
        let folder = self.folder.path();
        let is_ours = |name: &str| match name {
            LABELS => run_of_labels(&folder.join(name)).is_some(),
            _ => is_name(name) && run_of_pairs(&folder.join(name)).is_some(),
        };
        // Labels first: they say that the pairs are there.
        let mut outputs = names_in(folder, is_ours)?;
        outputs.sort_by_key(|name| name != LABELS);
        Ok(self.folder.clear(outputs, None)?)
    }

    /// Whether the labels and pairs of this run are there.
    ///
    /// # Errors
    /// If other labels are.
    pub(super) fn is_complete(&self) -> Result<bool, PairsError> {
        let labels = self.labels();
        if labels.symlink_metadata().is_err() {
            return Ok(false);
        }
        if run_of_labels(&labels).is_none_or(|run| run != self.fingerprint) {
            return Err(foreign(FLAG, &labels, "the labels of these pairs").into());
        }
        // Labels outlive pairs that somebody removed.
        let (mut number, mut rows) = (0, 0);
        while let Some(run) = run_of_pairs(&self.path(number)) {
            if run != self.run_of_file(rows) {
                break;
            }
            rows += open(&self.path(number), number)?.num_rows().unsigned_abs();
            number += 1;
        }
        Ok(rows == self.plan.num_pairs())
    }

    /// What a file of pairs says of itself that begins with this row.
    fn run_of_file(&self, first_row: u64) -> (String, String) {
        (self.fingerprint.clone(), first_row.to_string())
    }

    /// Writes what is missing. Returns how many pairs were written now.
    ///
    /// # Errors
    /// If an image is not the one that was scored, a file of the output is not ours, or the disk
    /// fails.
    pub(super) fn write(&self, images: &mut Images<'_>) -> Result<u64, PairsError> {
        let mut metadata = BTreeMap::from([
            (KEY_RUN.to_owned(), self.fingerprint.clone()),
            (KEY_DEALING.to_owned(), DEALING.to_owned()),
        ]);
        let mut labels = self.labels_writer()?;
        let mut pairs = self.plan.pairs().peekable();
        let progress = Progress::new("writing", "pairs", self.plan.num_pairs());
        let (mut number, mut first_row) = (0_u32, 0_u64);
        while pairs.peek().is_some() && self.path(number).symlink_metadata().is_ok() {
            let rows = self.written(number, first_row)?;
            let count = rows.len() as u64;
            for row in rows {
                let next = pairs.next();
                let fits = next.filter(|(prompt, _)| row.caption.as_ref() == Some(&prompt.text));
                let (prompt, pair) = fits.ok_or_else(|| self.foreign(number))?;
                labels.write(&label_row(prompt, pair, &row, number))?;
            }
            progress.already_done(count);
            (number, first_row) = (number + 1, first_row + count);
        }
        let mut new = 0;
        while pairs.peek().is_some() {
            metadata.insert(KEY_FIRST_ROW.to_owned(), first_row.to_string());
            let path = self.path(number);
            let is_ours = run_of_pairs(&path).is_some_and(|(run, _)| run == self.fingerprint);
            if path.symlink_metadata().is_ok() && !is_ours {
                return Err(self.foreign(number));
            }
            let mut file = PairsWriter::create(&path, &metadata, LabelsOf::Program, self.sizes)?;
            while !file.is_full()
                && let Some((prompt, pair)) = pairs.next()
            {
                runkit::signals::check_at("pair")?;
                let row = pair_row(prompt, pair, images, file.num_rows() as i64)?;
                labels.write(&label_row(prompt, pair, &row, number))?;
                file.write(row)?;
                progress.add(1);
            }
            let rows = file.num_rows();
            file.finish()?;
            (number, first_row, new) = (number + 1, first_row + rows, new + rows);
        }
        progress.finish();
        labels.finish()?;
        Ok(new)
    }

    fn labels_writer(&self) -> Result<LabelsWriter, PairsError> {
        let mut manifest = self.manifest.clone();
        manifest["crate_version"] = json!(env!("CARGO_PKG_VERSION"));
        let metadata = BTreeMap::from([
            (KEY_FINGERPRINT.to_owned(), self.fingerprint.clone()),
            (KEY_MANIFEST.to_owned(), runkit::manifest::canonical_json(&manifest)?),
        ]);
        let schema = LabelsSchema::new(&self.plan.voters)?;
        Ok(LabelsWriter::create(self.labels(), &schema, &metadata)?)
    }

    /// The rows of a file that an earlier start wrote.
    fn written(&self, number: u32, first_row: u64) -> Result<Vec<PairRow>, PairsError> {
        if run_of_pairs(&self.path(number)) != Some(self.run_of_file(first_row)) {
            return Err(self.foreign(number));
        }
        let rows = open(&self.path(number), number)?.plan_rows()?;
        Ok(rows.collect_rows()?)
    }

    fn foreign(&self, number: u32) -> PairsError {
        foreign(FLAG, &self.path(number), "a file of these pairs").into()
    }
}

fn name(number: u32) -> String {
    format!("pairs-{number:05}.parquet")
}

fn is_name(name: &str) -> bool {
    let number = name.strip_prefix("pairs-").and_then(|rest| rest.strip_suffix(".parquet"));
    number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit()))
}

fn open(path: &Path, number: u32) -> Result<PairFile, schemas::pairs::PairsError> {
    let input = InputFile {
        path: path.to_owned(),
        source_file: name(number),
        layout: Some(Layout::PickAPic),
    };
    PairFile::open(&input)
}

/// The checksum of the manifest of the run that wrote these labels, if this command did.
fn run_of_labels(path: &Path) -> Option<String> {
    let labels = LabelsFile::open(path).ok()?;
    let manifest: Value = serde_json::from_str(labels.metadata().get(KEY_MANIFEST)?).ok()?;
    let run = labels.metadata().get(KEY_FINGERPRINT)?;
    (FOLDER.is_ours)(&manifest).then(|| run.clone())
}

/// The checksum of the manifest of the run that wrote a file of pairs, and the number of its first
/// row, if this command did.
fn run_of_pairs(path: &Path) -> Option<(String, String)> {
    let keys = PairsWriter::metadata_of(path)?;
    Some((keys.get(KEY_RUN)?.clone(), keys.get(KEY_FIRST_ROW)?.clone()))
}

/// The name of a pair: a checksum of its caption and images, whichever of them is better.
fn pair_id(prompt: &PlannedPrompt, pair: &RankedPair, uids: [&str; 2]) -> String {
    let mut images: Vec<(&str, i64, &str)> = pair
        .images
        .iter()
        .zip(uids)
        .map(|(&image, uid)| (prompt.images[image].model.as_str(), prompt.images[image].seed, uid))
        .collect();
    images.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    text(&prompt.text);
    for (model, seed, uid) in images {
        text(model);
        text(&seed.to_string());
        text(uid);
    }
    hasher.finalize().to_hex().chars().take(ID_LETTERS).collect()
}

/// A pair with its images, dealt out.
fn pair_row(
    prompt: &PlannedPrompt,
    pair: &RankedPair,
    images: &mut Images<'_>,
    row: i64,
) -> Result<PairRow, PairsError> {
    let [better, other] = pair.images;
    let (better, other) = (images.read(prompt, better)?, images.read(prompt, other)?);
    let pair_id = pair_id(prompt, pair, [&better.uid, &other.uid]);
    let label = if pair.equal { 0.5 } else { 1.0 };
    let (first, second, label) = match is_swapped(&pair_id) {
        true => (other, better, 1.0 - label),
        false => (better, other, label),
    };
    Ok(PairRow {
        row,
        pair_id,
        caption: Some(prompt.text.clone()),
        image_uid: [Some(first.uid), Some(second.uid)],
        human_label_0: Some(label),
        no_vote: Some(NoVote::HasLabelFalse),
        unused_label_0: None,
        image: [Some(first.bytes), Some(second.bytes)],
        absent: [None, None],
    })
}

/// The labels of a pair: the scores that are there, and what follows from them.
fn label_row(prompt: &PlannedPrompt, pair: &RankedPair, row: &PairRow, number: u32) -> LabelRow {
    let [mut first, mut second] = pair.images;
    if is_swapped(&row.pair_id) {
        (first, second) = (second, first);
    }
    let [first, second] = [first, second].map(|image| &prompt.images[image].scores);
    let scores = first.iter().zip(second).map(|(&first, &second)| [first, second]);
    let votes: Vec<i8> = scores.clone().map(|[first, second]| vote(first, second)).collect();
    let vote_sum: i8 = votes.iter().sum();
    LabelRow {
        pair_id: row.pair_id.clone(),
        source_file: name(number),
        source_row: row.row,
        caption: row.caption.clone(),
        image_uid: row.image_uid.clone(),
        human_label_0: None,
        scores: scores.map(|scores| scores.map(Some)).collect(),
        votes: votes.into_iter().map(Some).collect(),
        vote_sum: Some(vote_sum),
        consensus: Some(consensus(vote_sum)),
        status: Status::Ok,
        error: None,
    }
}
