//! The latents of one part: read → decode and transform on all cores → encode → write.
//!
//! A thread writes a batch while the encoder works at the next one. On a CPU reading, decoding and
//! encoding take turns, each with every core; for a GPU a thread reads and others decode several
//! batches at a time, in advance and in order. A batch is a function of the part alone.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use media::decode::{Limits, decode};
use media::resize::Resizer;
use nn::NetworkError;
use nn::pipeline::Encoders;
use rayon::prelude::*;
use runkit::prefetch::prefetch_map;
use runkit::progress::Progress;
use runkit::signals::StopFlag;
use schemas::labels::Status;
use schemas::latents::{Geometry, ImageMoments, LatentRow, LatentsLayout, LatentsWriter, Moments};
use schemas::pairs::{EmptyCaption, PairFile, PairRow, PairRows, caption_problem};
use xxhash_rust::xxh3::xxh3_128;

use super::manifest::stored;
use super::plan::Plan;
use super::{Part, networks};
use crate::data::transform::{Pixels, Transform};

/// Rows read from Parquet at a time: with 2 images of some 150 kB each, about 10 MB.
const ROWS_PER_READ: usize = 32;
/// Decoded batches to prefetch for a GPU.
const BATCHES_AHEAD: usize = 4;
/// Encoded batches that wait to be written.
const BATCHES_TO_WRITE: usize = 2;

type Failure = (Status, String);

/// Writes the part.
///
/// # Errors
/// [`Stopped`](runkit::signals::Stopped) after a signal; what is wrong with an input or the disk.
pub(super) fn write(
    part: &Part<'_>,
    encoders: &Encoders,
    progress: &Progress,
    stop: &StopFlag,
) -> Result<()> {
    let [height, width] = part.manifest.resolution;
    let layout = LatentsLayout {
        stored: stored(part.config.precision),
        shape: part.manifest.latent_shape,
        flipped: part.config.hflip,
    };
    let file = part.file.open()?;
    let rows = part.planned.file_rows();
    let batches = Batches {
        repeated: repeated(&file, rows.clone())?,
        rows: file.rows_with_images_in(rows, ROWS_PER_READ)?,
        pending: Vec::new().into_iter(),
        seen: HashSet::new(),
        batch_size: part.config.batch_size,
    };
    let sink = PartSink {
        plan: part.plan,
        source_file: file.source_file(),
        writer: LatentsWriter::create(part.latents_path(), layout, &part.metadata()?)?,
        scratch: Scratch::new(part, layout)?,
        progress,
        failed: 0,
    };
    let encoder = Encoder { encoders, resolution: part.manifest.resolution, layout };
    let transform = Transform { height, width, random_crop: false, hflip: false };
    let ahead = if part.config.device.is_cuda() { BATCHES_AHEAD } else { 0 };
    let decode = |batch: Result<Vec<Ordered>>| {
        batch.map(|batch| part.pool.install(|| decoded(batch, transform)))
    };
    prefetch_map(batches, ahead, decode, |batches| encode_all(batches, &encoder, sink, stop))
}

/// Encodes batches, and writes each while the next one is encoded.
fn encode_all(
    batches: &mut dyn Iterator<Item = Result<Vec<DecodedRow>>>,
    encoder: &Encoder<'_>,
    sink: PartSink<'_>,
    stop: &StopFlag,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(BATCHES_TO_WRITE);
        let writer = scope.spawn(move || sink.take_all(&receiver));
        let encode_and_send = || {
            for batch in batches {
                // The writer is gone if it has failed; it says why.
                if sender.send(encoder.encode_batch(batch?)?).is_err() {
                    break;
                }
                stop.check()?;
            }
            Ok(())
        };
        let end: Result<()> = encode_and_send();
        drop(sender);
        let written = match writer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        end?;
        Ok(written?.finish()?)
    })
}

/// The checksums of the image uids that occur more than once in some rows of a file.
fn repeated(file: &PairFile, rows: Range<i64>) -> Result<HashSet<u128>> {
    let (mut seen, mut repeated) = (HashSet::new(), HashSet::new());
    for batch in file.plan_rows_in(rows)? {
        runkit::signals::check()?;
        for row in batch? {
            for uid in row.image_uid.iter().flatten().filter(|uid| !uid.is_empty()) {
                let uid = xxh3_128(uid.as_bytes());
                if !seen.insert(uid) {
                    repeated.insert(uid);
                }
            }
        }
    }
    Ok(repeated)
}

/// One image of a row, after decoding.
enum LatentImage {
    /// To be encoded, and kept under its checksum if it occurs again.
    New(Box<Pixels>, Option<u128>),
    /// Encoded before, under this checksum.
    Known(u128),
    /// Not decoded; the failure is kept as well if the image occurs again.
    Failed(Failure, Option<u128>),
}

/// One row and what to do with its images.
type Ordered = (PairRow, [Order; 2]);

/// One row with its images decoded.
struct DecodedRow {
    row: PairRow,
    images: [LatentImage; 2],
}

/// One row with its new images encoded.
struct EncodedRow {
    row: PairRow,
    images: [EncodedImage; 2],
}

/// One image of a row, after encoding.
enum EncodedImage {
    /// Encoded, and kept under its checksum if it occurs again.
    New(Encoded, Option<u128>),
    /// Encoded before, under this checksum.
    Known(u128),
}

/// The rows of a part in groups, each with a batch of new images.
struct Batches {
    repeated: HashSet<u128>,
    rows: PairRows,
    pending: std::vec::IntoIter<PairRow>,
    /// The checksums of repeated images that were already returned.
    seen: HashSet<u128>,
    batch_size: usize,
}

/// What to do with one image.
enum Order {
    Decode(Bytes, Option<u128>),
    Reuse(u128),
    /// There is none, and why.
    Missing(String),
}

impl Batches {
    fn take(&mut self) -> Result<Vec<Ordered>> {
        let (mut taken, mut new) = (Vec::new(), 0);
        while new < self.batch_size {
            let Some(mut row) = self.pending.next() else {
                match self.rows.next() {
                    None => break,
                    Some(rows) => self.pending = rows?.into_iter(),
                }
                continue;
            };
            let [first, second] = std::mem::take(&mut row.image);
            let [why_first, why_second] = std::mem::take(&mut row.absent);
            let orders = [
                self.order(first, row.image_uid[0].as_deref(), why_first),
                self.order(second, row.image_uid[1].as_deref(), why_second),
            ];
            new += orders.iter().filter(|order| matches!(order, Order::Decode(..))).count();
            taken.push((row, orders));
        }
        Ok(taken)
    }

    fn order(&mut self, image: Option<Bytes>, uid: Option<&str>, why: Option<String>) -> Order {
        let Some(bytes) = image.filter(|bytes| !bytes.is_empty()) else {
            return Order::Missing(why.unwrap_or_else(|| "image is null or empty".to_owned()));
        };
        let again = uid.is_some_and(|uid| self.repeated.contains(&xxh3_128(uid.as_bytes())));
        if !again {
            return Order::Decode(bytes, None);
        }
        // By its content rather than by its uid: one uid may name two images.
        let content = xxh3_128(&bytes);
        match self.seen.insert(content) {
            true => Order::Decode(bytes, Some(content)),
            false => Order::Reuse(content),
        }
    }
}

impl Order {
    fn image(self, transform: Transform) -> LatentImage {
        let (bytes, key) = match self {
            Self::Decode(bytes, key) => (bytes, key),
            Self::Reuse(content) => return LatentImage::Known(content),
            Self::Missing(why) => {
                return LatentImage::Failed((Status::MissingImage, why), None);
            }
        };
        match decode(&bytes, &Limits::default()) {
            Ok(image) => {
                let pixels =
                    RESIZER.with_borrow_mut(|resizer| transform.apply_centrally(&image, resizer));
                LatentImage::New(Box::new(pixels), key)
            }
            Err(error) => {
                let status = error.reason().parse().unwrap_or(Status::DecodeError);
                LatentImage::Failed((status, error.to_string()), key)
            }
        }
    }
}

thread_local! {
    /// The resizer of this thread, with its coefficients and buffers.
    static RESIZER: std::cell::RefCell<Resizer> = std::cell::RefCell::new(Resizer::new());
}

impl Iterator for Batches {
    type Item = Result<Vec<Ordered>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.take() {
            Ok(taken) if taken.is_empty() => None,
            taken => Some(taken),
        }
    }
}

/// Decodes the images of a batch.
fn decoded(batch: Vec<Ordered>, transform: Transform) -> Vec<DecodedRow> {
    let rows = batch.into_par_iter().map(|(row, orders)| DecodedRow {
        images: orders.map(|order| order.image(transform)),
        row,
    });
    rows.collect()
}

/// The moments of an image, or why it has none.
type Encoded = Result<(Geometry, ImageMoments), Failure>;

/// Encodes batches.
struct Encoder<'run> {
    encoders: &'run Encoders,
    resolution: [u32; 2],
    layout: LatentsLayout,
}

impl Encoder<'_> {
    fn encode_batch(&self, batch: Vec<DecodedRow>) -> Result<Vec<EncodedRow>> {
        let new: Vec<&Pixels> = batch
            .iter()
            .flat_map(|decoded| &decoded.images)
            .filter_map(|image| match image {
                LatentImage::New(pixels, _) => Some(pixels.as_ref()),
                _ => None,
            })
            .collect();
        let mut encoded = self.encode(&new)?.into_iter();
        let mut finished = |image: LatentImage| {
            Ok::<_, anyhow::Error>(match image {
                LatentImage::New(_, key) => {
                    EncodedImage::New(encoded.next().context("an image was lost")?, key)
                }
                LatentImage::Failed(failure, key) => EncodedImage::New(Err(failure), key),
                LatentImage::Known(content) => EncodedImage::Known(content),
            })
        };
        let rows = batch.into_iter().map(|DecodedRow { row, images }| {
            let [first, second] = images;
            Ok(EncodedRow { row, images: [finished(first)?, finished(second)?] })
        });
        rows.collect()
    }

    /// Encodes images together. If a moment is not finite, encodes them one by one to find the
    /// image.
    fn encode(&self, images: &[&Pixels]) -> Result<Vec<Encoded>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        match self.moments(images) {
            Ok(moments) => Ok(images
                .iter()
                .zip(moments)
                .map(|(pixels, moments)| Ok((geometry(pixels), moments)))
                .collect()),
            Err(NetworkError::Input { reason, .. }) if images.len() == 1 => {
                Ok(vec![Err((Status::NonFinite, format!("autoencoder: {reason}")))])
            }
            Err(NetworkError::Input { .. }) => images
                .iter()
                .map(|image| self.encode(std::slice::from_ref(image)))
                .collect::<Result<Vec<_>>>()
                .map(|all| all.into_iter().flatten().collect()),
            Err(error) if error.is_out_of_memory() && images.len() > 1 => {
                let hint = format!("hint: --batch-size {}", images.len() / 2);
                Err(anyhow::Error::new(error).context(format!("out of memory; {hint}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn moments(&self, images: &[&Pixels]) -> Result<Vec<ImageMoments>, NetworkError> {
        let [height, width] = self.resolution;
        let size = (i64::from(height), i64::from(width));
        let pixels: Vec<&[f32]> = images.iter().map(|image| &image.values[..]).collect();
        let plain = networks::latents(self.encoders, &pixels, size, false)?;
        let flipped: Vec<Option<Moments>> = match self.layout.flipped {
            false => plain.iter().map(|_| None).collect(),
            true => networks::latents(self.encoders, &pixels, size, true)?
                .into_iter()
                .map(Some)
                .collect(),
        };
        let both = plain.into_iter().zip(flipped);
        Ok(both.map(|(plain, flipped)| ImageMoments { plain, flipped }).collect())
    }
}

/// Writes encoded batches.
struct PartSink<'run> {
    plan: &'run Plan,
    source_file: &'run str,
    writer: LatentsWriter,
    scratch: Scratch,
    progress: &'run Progress,
    failed: u64,
}

impl PartSink<'_> {
    fn take_all(mut self, batches: &Receiver<Vec<EncodedRow>>) -> Result<LatentsWriter> {
        for batch in batches {
            let rows = batch.len() as u64;
            for EncodedRow { row, images } in batch {
                let [first, second] = images;
                let images = [self.image(first)?, self.image(second)?];
                self.write(row, images)?;
            }
            self.progress.add(rows);
            if self.failed > 0 {
                self.progress.message(format!("{} failed", self.failed));
            }
        }
        Ok(self.writer)
    }

    fn image(&mut self, image: EncodedImage) -> Result<Encoded> {
        match image {
            EncodedImage::Known(content) => self.scratch.get(content),
            EncodedImage::New(image, key) => {
                if let Some(key) = key {
                    self.scratch.put(key, &image)?;
                }
                Ok(image)
            }
        }
    }

    fn write(&mut self, row: PairRow, images: [Encoded; 2]) -> Result<()> {
        let [first, second] = images;
        let caption = caption_problem(row.caption.as_deref(), EmptyCaption::Allowed);
        let outcome = match (caption, first, second) {
            (Some(failure), _, _) => Err(failure),
            (None, Err((status, error)), _) => Err((status, format!("image 0: {error}"))),
            (None, _, Err((status, error))) => Err((status, format!("image 1: {error}"))),
            (None, Ok(first), Ok(second)) => Ok([first, second]),
        };
        let (images, failure) = match outcome {
            Ok(images) => (images.map(Some), None),
            Err(failure) => ([None, None], Some(failure)),
        };
        self.failed += u64::from(failure.is_some());
        let (status, error) = match failure {
            None => (Status::Ok, None),
            Some((status, error)) => (status, Some(error)),
        };
        let caption_index = row
            .caption
            .as_deref()
            .filter(|caption| caption_problem(Some(caption), EmptyCaption::Allowed).is_none())
            .and_then(|caption| self.plan.caption(caption));
        let geometry = images.each_ref().map(|image| image.as_ref().map(|(geometry, _)| *geometry));
        let row = LatentRow {
            pair_id: row.pair_id,
            source_file: self.source_file.to_owned(),
            source_row: row.row,
            caption: row.caption,
            caption_index,
            image_uid: row.image_uid,
            geometry,
            status,
            error,
        };
        Ok(self.writer.write(row, images.map(|image| image.map(|(_, moments)| moments)))?)
    }
}

fn geometry(pixels: &Pixels) -> Geometry {
    Geometry { size: pixels.original_size, crop: pixels.crop }
}

/// The moments of images that occur again in the part. They are in a scratch file, which the system
/// deletes with the process, so that memory does not grow with the part.
struct Scratch {
    file: File,
    /// Per image its failure, or its geometry and its index in the file.
    known: HashMap<u128, Result<(Geometry, u64), Failure>>,
    stored: u64,
    layout: LatentsLayout,
}

impl Scratch {
    fn new(part: &Part<'_>, layout: LatentsLayout) -> Result<Self> {
        let folder = &part.config.out;
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("{}: cannot make a scratch file", folder.display()))?;
        Ok(Self { file, known: HashMap::new(), stored: 0, layout })
    }

    /// The lists of numbers per image: mean and std, and the same of the flipped image.
    fn lists(&self) -> usize {
        if self.layout.flipped { 4 } else { 2 }
    }

    fn bytes(&self) -> usize {
        self.lists() * self.layout.numbers() * size_of::<f32>()
    }

    fn put(&mut self, key: u128, image: &Encoded) -> Result<()> {
        let known = match image {
            Err(failure) => Err(failure.clone()),
            Ok((geometry, moments)) => {
                let both = std::iter::once(&moments.plain).chain(&moments.flipped);
                let bytes: Vec<u8> = both
                    .flat_map(|moments| moments.mean.iter().chain(&moments.std))
                    .flat_map(|number| number.to_le_bytes())
                    .collect();
                let at = self.stored * self.bytes() as u64;
                self.file.write_all_at(&bytes, at).context("writing a scratch file")?;
                self.stored += 1;
                Ok((*geometry, self.stored - 1))
            }
        };
        self.known.insert(key, known);
        Ok(())
    }

    fn get(&self, key: u128) -> Result<Encoded> {
        let (geometry, number) = match self.known.get(&key).context("an image was lost")? {
            Err(failure) => return Ok(Err(failure.clone())),
            Ok(known) => *known,
        };
        let mut bytes = vec![0; self.bytes()];
        self.file
            .read_exact_at(&mut bytes, number * self.bytes() as u64)
            .context("reading a scratch file")?;
        let (words, _) = bytes.as_chunks();
        let numbers: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let mut lists = numbers.chunks_exact(self.layout.numbers()).map(<[f32]>::to_vec);
        let mut moments = || Some(Moments { mean: lists.next()?, std: lists.next()? });
        let plain = moments().context("an image was lost")?;
        Ok(Ok((geometry, ImageMoments { plain, flipped: moments() })))
    }
}
