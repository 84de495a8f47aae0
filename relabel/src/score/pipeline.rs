//! One input file through the networks: read → hash → decode and preprocess → batches → scores →
//! part.
//!
//! On a CPU the stages take turns, each with every core: libtorch's threads spin while they wait,
//! and two pools that want the same cores slow each other. On a GPU a bounded number of batches is
//! prefetched.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use runkit::prefetch::prefetch;
use runkit::progress::Progress;
use scorers::{PreprocessedImage, ScorerSet};

use super::batches::{Batch, Batches, Choice, Chosen, Source};
use super::captions::CaptionFeatures;
use super::part::{Found, PartRow, PartWriter};
use super::plan::Plan;

/// Batches that are prefetched for a GPU.
const BATCHES_AHEAD: usize = 4;

/// What [`score_file`] works with.
pub(crate) struct Scoring<'run> {
    pub(crate) source: Source<'run>,
    pub(crate) fingerprint: &'run str,
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
    let source = scoring.source;
    let mut part = PartWriter::create(path, &source.set.names(), scoring.fingerprint)?;
    let batches = Batches::open(source, file, choice)?;
    let ahead = if source.set.compute().device.is_cuda() { BATCHES_AHEAD } else { 0 };
    prefetch(batches, ahead, |batches| -> Result<()> {
        for batch in batches {
            score_batch(scoring, captions, batch?, file, &mut part)?;
            source.stop.check()?;
        }
        Ok(())
    })?;
    // The batches end early once a stop is asked for.
    source.stop.check()?;
    part.finish()
}

/// Images per second, decoding included, measured on the first batches after one to warm up.
pub(crate) fn rate(source: Source<'_>, captions: &mut CaptionFeatures<'_>) -> Result<Option<f64>> {
    let mut rate = None;
    for _ in 0..2 {
        let started = Instant::now();
        let mut batches = Batches::open(source, 0, Choice::First)?;
        let Some(batch) = batches.next() else { break };
        let batch = batch?;
        let decoded = DecodedBatch::of(source.plan, &batch.images);
        if decoded.images.is_empty() {
            break;
        }
        decoded.scores(source.set, captions)?;
        rate = Some(decoded.images.len() as f64 / started.elapsed().as_secs_f64());
    }
    Ok(rate)
}

/// The images of a batch that could be decoded, with what is to be scored of them.
struct DecodedBatch<'batch> {
    images: Vec<&'batch PreprocessedImage>,
    /// (row of `images`, caption), in the order of the batch.
    wanted: Vec<(usize, u32)>,
    /// The distinct captions, sorted.
    captions: Vec<u32>,
}

impl<'batch> DecodedBatch<'batch> {
    fn of(plan: &Plan, chosen: &'batch [Chosen]) -> Self {
        let mut decoded = Self { images: Vec::new(), wanted: Vec::new(), captions: Vec::new() };
        for chosen in chosen {
            if let Ok(pixels) = &chosen.pixels {
                let image_captions = chosen.image_captions.iter();
                for caption in image_captions.filter_map(|&index| plan.image_caption(index)) {
                    decoded.wanted.push((decoded.images.len(), caption.caption));
                    decoded.captions.push(caption.caption);
                }
                decoded.images.push(pixels);
            }
        }
        decoded.captions.sort_unstable();
        decoded.captions.dedup();
        decoded
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
    file: usize,
    part: &mut PartWriter,
) -> Result<()> {
    let first_slot = scoring.source.plan.files[file].slots().start;
    let decoded = DecodedBatch::of(scoring.source.plan, &batch.images);
    let mut scores = decoded.scores(scoring.source.set, captions)?.into_iter();
    for (slot, content) in batch.slots {
        part.write(PartRow { slot: slot - first_slot, content, found: Found::Occurrence })?;
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
    part.note.memory = scoring.source.set.memory_limits();
    scoring.progress.add(batch.owners);
    if scoring.failed_images > 0 {
        scoring.progress.message(format!("{} failed", scoring.failed_images));
    }
    Ok(())
}
