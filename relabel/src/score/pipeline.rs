//! One input file through the networks: read → decode and preprocess → batches → scores → part.
//!
//! On a CPU the stages take turns, each with every core: libtorch's threads spin while they wait, and
//! two pools that want the same cores slow each other. On a GPU decoding runs
//! ahead in its own threads, a bounded number of batches at most.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use media::decode::{Limits, decode};
use rayon::prelude::*;
use runkit::progress::Progress;
use runkit::signals::StopFlag;
use schemas::labels::Status;
use schemas::pairs::{PairFile, PairRows};
use scorers::{ImagePreparation, PreparedImage, ScorerSet};
use xxhash_rust::xxh3::xxh3_64;

use super::captions::CaptionFeatures;
use super::part::{PartRow, PartWriter};
use super::plan::{NONE, Plan};

/// Rows read from Parquet at a time: with 2 images of some 150 kB each, about 10 MB.
const ROWS_PER_READ: usize = 32;

/// Batches decoded ahead of a GPU.
const BATCHES_AHEAD: usize = 4;

/// A place in the file where an image stands, after decoding.
struct Place {
    slot: u64,
    content: Option<u64>,
    /// The image's index when this place owns it.
    owned: Option<u32>,
    outcome: std::result::Result<Option<PreparedImage>, (Status, String)>,
}

/// Why a file was left before its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The part is on disk.
    Done,
    /// A signal came; the part of this file is not kept.
    Stopped,
}

/// What [`score_file`] works with.
pub(crate) struct Scoring<'run> {
    pub(crate) plan: &'run Plan,
    pub(crate) set: &'run ScorerSet,
    pub(crate) batch_size: usize,
    pub(crate) fingerprint: &'run str,
    pub(crate) stop: StopFlag,
    pub(crate) progress: &'run Progress,
    /// Images that could not be scored, so far.
    pub(crate) failed_images: u64,
}

/// Scores the images that `file` owns and writes its part to `path`.
pub(crate) fn score_file(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    file: usize,
    path: &Path,
) -> Result<Outcome> {
    let mut part = PartWriter::create(path, &scoring.set.names(), scoring.fingerprint)?;
    let batches = Batches::open(scoring.plan, scoring.set, scoring.batch_size, file)?;
    let outcome = if scoring.set.compute().device.is_cuda() {
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
            score_batches(scoring, captions, receiver.into_iter(), &mut part)
        })?
    } else {
        score_batches(scoring, captions, batches, &mut part)?
    };
    if outcome == Outcome::Done {
        part.finish()?;
    }
    Ok(outcome)
}

fn score_batches(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    batches: impl Iterator<Item = Result<Vec<Place>>>,
    part: &mut PartWriter,
) -> Result<Outcome> {
    for batch in batches {
        score_batch(scoring, captions, batch?, part)?;
        if scoring.stop.requested().is_some() {
            return Ok(Outcome::Stopped);
        }
    }
    Ok(Outcome::Done)
}

/// Images per second, decoding included, measured on the first batches after one to warm up.
pub(crate) fn rate(
    plan: &Plan,
    set: &ScorerSet,
    batch_size: usize,
    captions: &mut CaptionFeatures<'_>,
) -> Result<Option<f64>> {
    let mut rate = None;
    for _ in 0..2 {
        let started = Instant::now();
        let Some(batch) = Batches::open(plan, set, batch_size, 0)?.next() else { break };
        let places = batch?;
        let batch = Batch::of(plan, &places);
        if batch.images.is_empty() {
            break;
        }
        batch.scores(plan, set, captions)?;
        rate = Some(batch.images.len() as f64 / started.elapsed().as_secs_f64());
    }
    Ok(rate)
}

/// The pictures of a batch with what is to be scored of them.
struct Batch<'places> {
    images: Vec<&'places PreparedImage>,
    /// (row of `images`, combination), in the order of the places.
    wanted: Vec<(usize, u32)>,
    /// The distinct captions, sorted.
    captions: Vec<u32>,
}

impl<'places> Batch<'places> {
    fn of(plan: &Plan, places: &'places [Place]) -> Self {
        let mut batch = Self { images: Vec::new(), wanted: Vec::new(), captions: Vec::new() };
        for place in places {
            if let (Some(image), Ok(Some(prepared))) = (place.owned, &place.outcome) {
                for combination in plan.combinations_of(image) {
                    batch.wanted.push((batch.images.len(), combination));
                    batch.captions.push(plan.combinations[combination as usize].caption);
                }
                batch.images.push(prepared);
            }
        }
        batch.captions.sort_unstable();
        batch.captions.dedup();
        batch
    }

    /// For each wanted combination one score per scorer.
    fn scores(
        &self,
        plan: &Plan,
        set: &ScorerSet,
        captions: &mut CaptionFeatures<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        if self.images.is_empty() {
            return Ok(Vec::new());
        }
        let image_features = set.encode_images(&self.images)?;
        let text_features = captions.get(&self.captions)?;
        let rows: Vec<(usize, usize)> = self
            .wanted
            .iter()
            .map(|&(image, combination)| {
                let caption = plan.combinations[combination as usize].caption;
                (image, self.captions.partition_point(|&other| other < caption))
            })
            .collect();
        let by_scorer = set.score(&image_features, &text_features, &rows);
        Ok((0..rows.len())
            .map(|row| by_scorer.iter().map(|scores| scores[row]).collect())
            .collect())
    }
}

fn score_batch(
    scoring: &mut Scoring<'_>,
    captions: &mut CaptionFeatures<'_>,
    places: Vec<Place>,
    part: &mut PartWriter,
) -> Result<()> {
    let plan = scoring.plan;
    let names = scoring.set.names();
    let mut scores = Batch::of(plan, &places).scores(plan, scoring.set, captions)?.into_iter();
    let mut done = 0;
    for place in places {
        let row = |combination, status, error, scores| PartRow {
            slot: place.slot,
            content: place.content,
            combination,
            status,
            error,
            scores,
        };
        let Some(image) = place.owned else {
            part.write(row(None, Status::Ok, None, Vec::new()))?;
            continue;
        };
        done += 1;
        let mut failed = false;
        for combination in plan.combinations_of(image) {
            let problem = match &place.outcome {
                Err((status, error)) => Err((*status, error.clone())),
                Ok(_) => finite(scores.next().unwrap_or_default(), &names),
            };
            failed |= problem.is_err();
            part.write(match problem {
                Ok(scores) => row(Some(combination), Status::Ok, None, scores),
                Err((status, error)) => row(Some(combination), status, Some(error), Vec::new()),
            })?;
        }
        scoring.failed_images += u64::from(failed);
    }
    scoring.progress.add(done);
    if scoring.failed_images > 0 {
        scoring.progress.message(format!("{} failed", scoring.failed_images));
    }
    Ok(())
}

/// The scores, or which scorer gave something that is not a number.
fn finite(scores: Vec<f32>, names: &[String]) -> std::result::Result<Vec<f32>, (Status, String)> {
    match scores.iter().zip(names).find(|(score, _)| !score.is_finite()) {
        None => Ok(scores),
        Some((score, name)) => Err((Status::NonFinite, format!("scorer `{name}` gave {score}"))),
    }
}

/// The places of one file, a batch of owned images at a time, decoded and preprocessed.
struct Batches<'run> {
    preparer: Preparer<'run>,
    rows_left: u64,
    rows: PairRows,
    pending: VecDeque<(u64, Option<Bytes>)>,
    batch_size: usize,
}

/// From encoded bytes to a place, on any thread.
struct Preparer<'run> {
    plan: &'run Plan,
    first_slot: u64,
    preparation: ImagePreparation,
    limits: Limits,
}

impl<'run> Batches<'run> {
    fn open(plan: &'run Plan, set: &ScorerSet, batch_size: usize, file: usize) -> Result<Self> {
        let planned = &plan.files[file];
        let pairs = PairFile::open(&planned.input)?;
        anyhow::ensure!(
            pairs.fingerprint() == planned.fingerprint,
            "{}: the file has changed since the run was planned; hint: run the same command again",
            planned.input.path.display()
        );
        Ok(Self {
            preparer: Preparer {
                plan,
                first_slot: 2 * planned.first_row,
                preparation: set.image_preparation(),
                limits: Limits::default(),
            },
            rows_left: planned.rows,
            rows: pairs.rows_with_images(ROWS_PER_READ)?,
            pending: VecDeque::new(),
            batch_size,
        })
    }

    /// Places up to and including the `batch_size`-th owned image.
    fn take(&mut self) -> Result<Vec<(u64, Option<Bytes>)>> {
        let mut taken = Vec::new();
        let mut owned = 0;
        while owned < self.batch_size {
            if let Some((slot, bytes)) = self.pending.pop_front() {
                owned += usize::from(self.preparer.owned(slot).is_some());
                taken.push((slot, bytes));
                continue;
            }
            if self.rows_left == 0 {
                break;
            }
            let Some(rows) = self.rows.next() else { break };
            for row in rows? {
                if self.rows_left == 0 {
                    break;
                }
                self.rows_left -= 1;
                for (position, image) in (0u64..).zip(row.image) {
                    self.pending.push_back((2 * u64::try_from(row.row)? + position, image));
                }
            }
        }
        Ok(taken)
    }
}

impl Preparer<'_> {
    /// The image whose owner stands in `slot`, if this is it.
    fn owned(&self, slot: u64) -> Option<u32> {
        let slot = self.first_slot + slot;
        self.plan.owner_slot.binary_search(&slot).ok().and_then(|image| u32::try_from(image).ok())
    }

    fn place(&self, slot: u64, bytes: Option<&[u8]>) -> Option<Place> {
        let global = self.first_slot + slot;
        // A row whose caption cannot be scored has no combination, and nothing to do here.
        if self.plan.rows[(global / 2) as usize][(global % 2) as usize] == NONE {
            return None;
        }
        let owned = self.owned(slot);
        let bytes = bytes.filter(|bytes| !bytes.is_empty());
        let outcome = match (owned, bytes) {
            (None, _) => Ok(None),
            (Some(_), None) => Err((Status::MissingImage, "image is null or empty".to_owned())),
            (Some(_), Some(bytes)) => self.pixels(bytes).map(Some),
        };
        Some(Place { slot, content: bytes.map(xxh3_64), owned, outcome })
    }

    fn pixels(&self, bytes: &[u8]) -> std::result::Result<PreparedImage, (Status, String)> {
        let image = decode(bytes, &self.limits).map_err(|error| {
            (error.reason().parse().unwrap_or(Status::DecodeError), error.to_string())
        })?;
        self.preparation.prepare(&image).map_err(|error| (Status::DecodeError, error.to_string()))
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Vec<Place>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.take() {
            Ok(taken) if taken.is_empty() => None,
            Ok(taken) => {
                let preparer = &self.preparer;
                let places = taken
                    .par_iter()
                    .filter_map(|(slot, bytes)| preparer.place(*slot, bytes.as_deref()));
                Some(Ok(places.collect()))
            }
            // Reading ends with the first error: the next call finds the reader exhausted.
            Err(error) => {
                self.rows_left = 0;
                Some(Err(error))
            }
        }
    }
}
