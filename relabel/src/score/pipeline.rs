//! Units through the networks: read → hash → decode and preprocess → batches → scores → parts.
//!
//! On a CPU the stages take turns, each with every core: libtorch's threads spin while they wait,
//! and two pools that want the same cores slow each other. On a GPU a thread reads, another one
//! decodes, both a bounded number of batches ahead, also beyond the end of a unit, and a third one
//! makes finished parts durable: the networks wait for neither.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use runkit::prefetch::prefetch;
use runkit::progress::Progress;
use schemas::labels::Status;
use scorers::{EncodedImage, PreprocessedImage, Score, ScorerSet};

use super::batches::{
    Batch, Batches, Choice, Chosen, Decoder, Encoded, Occurrence, OpenFile, Source,
};
use super::captions::CaptionFeatures;
use super::external::{Externals, PairImages, Wants};
use super::part::{Found, PartKey, PartRow, PartWriter};
use super::plan::{Digest, Plan};

/// Batches that are read for a GPU before they are decoded.
const BATCHES_READ: usize = 2;
/// Batches that are decoded for a GPU before it takes them.
const BATCHES_DECODED: usize = 4;

/// A unit to score, and where its part goes.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) unit: usize,
    pub(crate) choice: Choice,
    pub(crate) path: PathBuf,
    pub(crate) key: PartKey,
}

/// What the stages hand on.
enum Step<B> {
    /// A unit begins.
    Begin {
        unit: usize,
        path: PathBuf,
        key: PartKey,
    },
    Batch(B),
    /// All batches of the unit came before.
    End,
}

/// Reads units one after the other.
struct Reader<'run, T> {
    source: Source<'run>,
    tasks: T,
    file: OpenFile,
    /// The unit that is read, if one is.
    batches: Option<(usize, Batches<'run>)>,
    /// A unit that begins before its first batch.
    opening: Option<(usize, Choice)>,
    failed: bool,
}

impl<T: Iterator<Item = Result<Task>>> Reader<'_, T> {
    fn step(&mut self) -> Result<Option<Step<Encoded>>> {
        let about = |plan: &Plan, unit: usize| {
            format!("scoring {}", plan.files[plan.units[unit].file].input.path.display())
        };
        if let Some((unit, choice)) = self.opening.take() {
            let batches = Batches::open(self.source, unit, choice, &mut self.file);
            self.batches = Some((unit, batches.with_context(|| about(self.source.plan, unit))?));
        }
        if let Some((unit, batches)) = &mut self.batches {
            if let Some(batch) = batches.next() {
                let batch = batch.with_context(|| about(self.source.plan, *unit))?;
                return Ok(Some(Step::Batch(batch)));
            }
            // The batches end early once a stop is asked for.
            self.source.stop.check()?;
            self.batches = None;
            return Ok(Some(Step::End));
        }
        self.source.stop.check()?;
        let Some(task) = self.tasks.next() else { return Ok(None) };
        let Task { unit, choice, path, key } = task?;
        self.opening = Some((unit, choice));
        Ok(Some(Step::Begin { unit, path, key }))
    }
}

impl<T: Iterator<Item = Result<Task>>> Iterator for Reader<'_, T> {
    type Item = Result<Step<Encoded>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.step().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

/// What [`score`] works with.
pub(crate) struct Scoring<'run> {
    pub(crate) source: Source<'run>,
    pub(crate) set: &'run ScorerSet,
    pub(crate) externals: &'run mut Externals,
    /// Of each scorer of the run whether it is wanted.
    pub(crate) wanted: &'run [bool],
    pub(crate) progress: &'run Progress,
    /// Images that could not be scored by every scorer, so far.
    pub(crate) failed_images: u64,
}

/// Scores units and writes their parts.
pub(crate) fn score(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    tasks: impl Iterator<Item = Result<Task>> + Send,
) -> Result<()> {
    let source = scoring.source;
    let (read, decoded) = match scoring.set.compute().device.is_cuda() {
        true => (BATCHES_READ, BATCHES_DECODED),
        false => (0, 0),
    };
    let decoder = Decoder::new(scoring.set.image_preprocessor(), source.wants);
    let reader = Reader {
        source,
        tasks,
        file: OpenFile::default(),
        batches: None,
        opening: None,
        failed: false,
    };
    let decode = |step: Result<Step<Encoded>>| {
        step.map(|step| match step {
            Step::Begin { unit, path, key } => Step::Begin { unit, path, key },
            Step::Batch(batch) => Step::Batch(decoder.decode(batch)),
            Step::End => Step::End,
        })
    };
    let finish_beside = read > 0;
    std::thread::scope(|scope| {
        let mut finishing = VecDeque::new();
        let mut finish = |part: PartWriter| -> Result<()> {
            if !finish_beside {
                return part.finish();
            }
            finishing.push_back(scope.spawn(move || part.finish()));
            // One is being synced while the next is scored.
            while finishing.len() > 1 {
                if let Some(earlier) = finishing.pop_front() {
                    joined(earlier)?;
                }
            }
            Ok(())
        };
        prefetch(reader, read, |steps| {
            prefetch(steps.map(decode), decoded, |steps| {
                let mut open: Option<(usize, PartWriter)> = None;
                // Batches that wait until there are questions enough for external scorers.
                let mut waiting: Vec<LocalBatch> = Vec::new();
                let together = scoring.externals.together(scoring.wanted);
                for step in steps {
                    match (step?, &mut open) {
                        (Step::Begin { unit, path, key }, _) => {
                            open = Some((unit, PartWriter::create(&path, &key)?));
                        }
                        (Step::Batch(batch), Some((unit, part))) => {
                            waiting.push(score_locally(scoring, captions, batch)?);
                            let questions: usize = waiting.iter().map(LocalBatch::questions).sum();
                            if questions >= together {
                                score_outside(scoring, std::mem::take(&mut waiting), *unit, part)?;
                            }
                            source.stop.check()?;
                        }
                        (Step::End, part) => {
                            if let Some((unit, mut part)) = part.take() {
                                let waiting = std::mem::take(&mut waiting);
                                score_outside(scoring, waiting, unit, &mut part)?;
                                finish(part)?;
                                tracing::debug!(unit, "unit scored");
                            }
                        }
                        // The reader begins a unit before its first batch.
                        (Step::Batch(_), None) => {}
                    }
                }
                Ok::<_, anyhow::Error>(())
            })
        })?;
        finishing.into_iter().try_for_each(joined)
    })
}

/// Reads and hashes the images of units whose scores are all taken over, and writes their parts:
/// what is in every slot, and which scores belong there.
pub(crate) fn read_alone(
    source: Source<'_>,
    tasks: impl Iterator<Item = Result<Task>>,
    progress: &Progress,
) -> Result<()> {
    let mut file = OpenFile::default();
    for task in tasks {
        let Task { unit, choice, path, key } = task?;
        let input = &source.plan.files[source.plan.units[unit].file].input;
        let about = || format!("reading {}", input.path.display());
        let first_slot = source.plan.units[unit].slots().start;
        let mut part = PartWriter::create(&path, &key)?;
        let batches = Batches::open(source, unit, choice, &mut file).with_context(about)?;
        for batch in batches {
            let (batch, waiting) = batch.with_context(about)?;
            write_slots(batch.slots, first_slot, &mut part)?;
            for waiting in waiting {
                for caption in captions_of(source.plan, &waiting.image_captions) {
                    let found = Found::Scores { caption, scores: Vec::new() };
                    let content = Some(waiting.content);
                    part.write(PartRow { slot: waiting.slot - first_slot, content, found })?;
                }
            }
        }
        source.stop.check()?;
        part.finish()?;
        progress.add(1);
        tracing::debug!(unit, "unit read");
    }
    Ok(())
}

/// The captions of image-caption pairs.
fn captions_of(plan: &Plan, image_captions: &[u32]) -> impl Iterator<Item = u32> {
    image_captions.iter().filter_map(|&index| Some(plan.image_caption(index)?.caption))
}

/// Writes what is in the slots of a batch.
fn write_slots(
    slots: Vec<(u64, Occurrence)>,
    first_slot: u64,
    part: &mut PartWriter,
) -> Result<()> {
    for (slot, occurrence) in slots {
        let (content, found) = match occurrence {
            Occurrence::Image(content) => (Some(content), Found::Occurrence),
            Occurrence::Null => (None, Found::Occurrence),
            Occurrence::Absent(error) => {
                (None, Found::Failure { status: Status::MissingImage, error })
            }
        };
        part.write(PartRow { slot: slot - first_slot, content, found })?;
    }
    Ok(())
}

/// The result of a thread; its panic is a panic here.
fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Images per second, decoding included, measured on the first batches after one to warm up.
pub(crate) fn rate(
    source: Source<'_>,
    set: &ScorerSet,
    captions: &mut CaptionFeatures<'_>,
) -> Result<Option<f64>> {
    if set.scorers().is_empty() {
        return Ok(None);
    }
    let decoder = Decoder::new(set.image_preprocessor(), Wants::default());
    let mut rate = None;
    for _ in 0..2 {
        let started = Instant::now();
        let mut batches = Batches::open(source, 0, Choice::First, &mut OpenFile::default())?;
        let Some(batch) = batches.next() else { break };
        let batch = decoder.decode(batch?);
        let decoded = DecodedBatch::of(source.plan, &batch.images);
        if decoded.images.is_empty() {
            break;
        }
        decoded.scores(set, captions)?;
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
                for caption in captions_of(plan, &chosen.image_captions) {
                    decoded.wanted.push((decoded.images.len(), caption));
                    decoded.captions.push(caption);
                }
                decoded.images.push(pixels);
            }
        }
        decoded.captions.sort_unstable();
        decoded.captions.dedup();
        decoded
    }

    /// For each wanted image-caption pair one score or failure per scorer.
    fn scores(
        &self,
        set: &ScorerSet,
        captions: &mut CaptionFeatures<'_>,
    ) -> Result<Vec<Vec<Score>>> {
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
            .map(|row| by_scorer.iter().map(|scores| scores[row].clone()).collect())
            .collect())
    }
}

/// A batch with the scores of the networks, without its pixels.
struct LocalBatch {
    slots: Vec<(u64, Occurrence)>,
    images: Vec<LocalImage>,
    pairs: Vec<PairImages>,
    owners: u64,
}

/// An image with the scores of the networks.
struct LocalImage {
    slot: u64,
    content: Digest,
    /// For external scorers.
    encoded: Option<EncodedImage>,
    on_white: bool,
    /// The captions with their scores, or why the image has no scores.
    scored: std::result::Result<Vec<(u32, Vec<Score>)>, (Status, String)>,
}

impl LocalBatch {
    /// How many questions it has for an external scorer.
    fn questions(&self) -> usize {
        let of = |image: &LocalImage| image.scored.as_ref().map_or(0, Vec::len);
        self.images.iter().map(of).sum::<usize>().max(self.pairs.len())
    }
}

/// Scores a batch with the networks of this process.
fn score_locally(
    scoring: &Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    batch: Batch,
) -> Result<LocalBatch> {
    let plan = scoring.source.plan;
    let decoded = DecodedBatch::of(plan, &batch.images);
    let mut scores = decoded.scores(scoring.set, captions)?.into_iter();
    let images = batch.images.into_iter().map(|chosen| LocalImage {
        slot: chosen.slot,
        content: chosen.content,
        encoded: chosen.bytes.map(EncodedImage::new),
        on_white: chosen.pixels.as_ref().is_ok_and(PreprocessedImage::on_white),
        scored: chosen.pixels.map(|_| {
            let captions = captions_of(plan, &chosen.image_captions);
            captions.map(|caption| (caption, scores.next().unwrap_or_default())).collect()
        }),
    });
    let images = images.collect();
    Ok(LocalBatch { slots: batch.slots, images, pairs: batch.pairs, owners: batch.owners })
}

/// Asks external scorers what batches want of them, and writes the batches.
fn score_outside(
    scoring: &mut Scoring<'_>,
    mut batches: Vec<LocalBatch>,
    unit: usize,
    part: &mut PartWriter,
) -> Result<()> {
    let (plan, wanted) = (scoring.source.plan, scoring.wanted);
    let (mut questions, mut local) = (Vec::new(), Vec::new());
    for image in batches.iter_mut().flat_map(|batch| &mut batch.images) {
        if let (Some(encoded), Ok(scored)) = (&image.encoded, &mut image.scored) {
            for (caption, scores) in scored {
                questions.push((encoded, *caption));
                local.push(std::mem::take(scores));
            }
        }
    }
    let mut scores = scoring.externals.score(plan, wanted, &questions, local)?.into_iter();
    let mut votes = Vec::new();
    for batch in &batches {
        votes.push(scoring.externals.compare(plan, wanted, &batch.pairs)?);
    }
    for (batch, votes) in batches.into_iter().zip(votes) {
        write_batch(scoring, batch, votes, &mut scores, unit, part)?;
    }
    Ok(())
}

/// Writes a batch. `all` are the scores of all columns, if external scorers have some of them.
fn write_batch(
    scoring: &mut Scoring<'_>,
    batch: LocalBatch,
    votes: Vec<Vec<Score>>,
    all: &mut impl Iterator<Item = Vec<Score>>,
    unit: usize,
    part: &mut PartWriter,
) -> Result<()> {
    let first_slot = scoring.source.plan.units[unit].slots().start;
    write_slots(batch.slots, first_slot, part)?;
    for (pair, votes) in batch.pairs.into_iter().zip(votes) {
        let slot = 2 * pair.row - first_slot;
        part.write(PartRow { slot, content: None, found: Found::Votes(votes) })?;
    }
    for image in batch.images {
        let row =
            |found| PartRow { slot: image.slot - first_slot, content: Some(image.content), found };
        let mut failed = false;
        match image.scored {
            Err((status, error)) => {
                failed = true;
                part.write(row(Found::Failure { status, error }))?;
            }
            Ok(scored) => {
                part.note.on_white += u64::from(image.on_white);
                for (caption, mut scores) in scored {
                    if image.encoded.is_some() {
                        scores = all.next().unwrap_or_default();
                    }
                    failed |= scores.iter().any(Result::is_err);
                    part.write(row(Found::Scores { caption, scores }))?;
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
