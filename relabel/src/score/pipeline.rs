//! One input file through the networks: read → hash → decode and preprocess → batches → scores → part.
//!
//! On a CPU the stages take turns, each with every core: libtorch's threads spin while they wait, and
//! two pools that want the same cores slow each other. On a GPU decoding runs
//! ahead in its own threads, a bounded number of batches at most.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Result;
use runkit::progress::Progress;
use runkit::signals::StopFlag;
use scorers::{PreprocessedImage, ScorerSet};

use super::batches::{Batch, Batches, Choice, Chosen};
use super::captions::CaptionFeatures;
use super::part::{Found, PartRow, PartWriter};
use super::plan::Plan;

/// Batches decoded ahead of a GPU.
const BATCHES_AHEAD: usize = 4;

/// What [`score_file`] works with.
pub(crate) struct Scoring<'run> {
    pub(crate) plan: &'run Plan,
    pub(crate) set: &'run ScorerSet,
    pub(crate) batch_size: usize,
    pub(crate) fingerprint: &'run str,
    pub(crate) stop: StopFlag,
    pub(crate) progress: &'run Progress,
    /// Images that could not be scored by every scorer, so far.
    pub(crate) failed_images: u64,
}

/// Scores what is chosen of `file` and writes its part to `path`.
pub(crate) fn score_file(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    file: usize,
    choice: Choice,
    path: &Path,
) -> Result<()> {
    let mut part = PartWriter::create(path, &scoring.set.names(), scoring.fingerprint)?;
    let (plan, set, batch_size) = (scoring.plan, scoring.set, scoring.batch_size);
    let batches = Batches::open(plan, set, batch_size, file, choice, &scoring.stop)?;
    if scoring.set.compute().device.is_cuda() {
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(BATCHES_AHEAD);
            scope.spawn(move || {
                for batch in batches {
                    // The receiver is gone when the run stops; then this thread ends as well.
                    if sender.send(batch).is_err() {
                        break;
                    }
                }
            });
            score_batches(scoring, captions, receiver.into_iter(), file, &mut part)
        })?;
    } else {
        score_batches(scoring, captions, batches, file, &mut part)?;
    }
    part.finish()
}

fn score_batches(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    batches: impl Iterator<Item = Result<Batch>>,
    file: usize,
    part: &mut PartWriter,
) -> Result<()> {
    let first_slot = scoring.plan.files[file].slots().start;
    for batch in batches {
        score_batch(scoring, captions, batch?, first_slot, part)?;
        scoring.stop.check()?;
    }
    // The batches end early once a stop is asked for.
    Ok(scoring.stop.check()?)
}

/// Images per second, decoding included, measured on the first batches after one to warm up.
pub(crate) fn rate(
    plan: &Plan,
    set: &ScorerSet,
    batch_size: usize,
    captions: &mut CaptionFeatures<'_>,
    stop: &StopFlag,
) -> Result<Option<f64>> {
    let mut rate = None;
    for _ in 0..2 {
        let started = Instant::now();
        let mut batches = Batches::open(plan, set, batch_size, 0, Choice::First, stop)?;
        let Some(batch) = batches.next() else { break };
        let batch = batch?;
        let prepared = Prepared::of(plan, &batch.images);
        if prepared.images.is_empty() {
            break;
        }
        prepared.scores(set, captions)?;
        rate = Some(prepared.images.len() as f64 / started.elapsed().as_secs_f64());
    }
    Ok(rate)
}

/// The images of a batch that could be decoded, with what is to be scored of them.
struct Prepared<'batch> {
    images: Vec<&'batch PreprocessedImage>,
    /// (row of `images`, caption), in the order of the batch.
    wanted: Vec<(usize, u32)>,
    /// The distinct captions, sorted.
    captions: Vec<u32>,
}

impl<'batch> Prepared<'batch> {
    fn of(plan: &Plan, chosen: &'batch [Chosen]) -> Self {
        let mut prepared = Self { images: Vec::new(), wanted: Vec::new(), captions: Vec::new() };
        for chosen in chosen {
            if let Ok(pixels) = &chosen.pixels {
                let image_captions = chosen.image_captions.iter();
                for caption in image_captions.filter_map(|&index| plan.image_caption(index)) {
                    prepared.wanted.push((prepared.images.len(), caption.caption));
                    prepared.captions.push(caption.caption);
                }
                prepared.images.push(pixels);
            }
        }
        prepared.captions.sort_unstable();
        prepared.captions.dedup();
        prepared
    }

    /// For each wanted image-caption pair one score per scorer, which may be no number.
    fn scores(&self, set: &ScorerSet, captions: &mut CaptionFeatures<'_>) -> Result<Vec<Vec<f32>>> {
        if self.images.is_empty() {
            return Ok(Vec::new());
        }
        let image_features = set.encode_images(&self.images)?;
        let text_features = captions.get(&self.captions)?;
        let rows: Vec<(usize, usize)> = self
            .wanted
            .iter()
            .map(|&(image, caption)| {
                (image, self.captions.partition_point(|&other| other < caption))
            })
            .collect();
        let by_scorer = set.score(&image_features, &text_features, &rows)?;
        Ok((0..rows.len())
            .map(|row| by_scorer.iter().map(|scores| scores[row]).collect())
            .collect())
    }
}

fn score_batch(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    batch: Batch,
    first_slot: u64,
    part: &mut PartWriter,
) -> Result<()> {
    let prepared = Prepared::of(scoring.plan, &batch.images);
    let mut scores = prepared.scores(scoring.set, captions)?.into_iter();
    for (slot, content) in batch.places {
        part.write(PartRow { slot: slot - first_slot, content, found: Found::Place })?;
    }
    for chosen in batch.images {
        let row = |found| PartRow {
            slot: chosen.slot - first_slot,
            content: Some(chosen.content),
            found,
        };
        let mut failed = false;
        match chosen.pixels {
            Err((status, error)) => {
                failed = true;
                part.write(row(Found::Failure { status, error }))?;
            }
            Ok(image) => {
                part.note.on_white += u64::from(image.on_white());
                for image_caption in chosen.image_captions {
                    let scores = scores.next().unwrap_or_default();
                    failed |= scores.iter().any(|score| !score.is_finite());
                    part.write(row(Found::Scores { image_caption, scores }))?;
                }
            }
        }
        scoring.failed_images += u64::from(failed);
    }
    part.note.memory = scoring.set.memory_limits();
    scoring.progress.add(batch.owners);
    if scoring.failed_images > 0 {
        scoring.progress.message(format!("{} failed", scoring.failed_images));
    }
    Ok(())
}
