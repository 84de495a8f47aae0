//! The data loader: examples in the order of an epoch, epoch after epoch, prefetched while the
//! device trains.
//!
//! One thread reads windows of encoded pairs, or chunks of cached latents; others decode pairs.
//! [`StreamOptions::memory`] bounds what is read and not yet used, except that one window of
//! [`super::WINDOW_BYTES`] always fits.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use media::resize::Resizer;

use super::cached::CacheLoader;
use super::encoded::PairLoader;
use super::loader::{DecodedExample, Encoded, Item, Loader, Row, Work};
use super::memory_budget::MemoryBudget;
use super::order::EpochOrder;
use super::transform::Transform;
use super::{DataError, Dataset, Example, Selection, Source, StreamOptions};

/// The largest number of decoded examples to prefetch, however much memory there is.
const MOST_PREFETCHED: u64 = 256;
/// The largest side of an image: a larger one is a typo.
const LARGEST_SIDE: i64 = 16_384;

/// How many decoded examples of so many bytes are prefetched: those that fit a quarter of the memory,
/// but one for each thread in any case.
pub(crate) fn decoded_ahead(memory: u64, threads: usize, bytes: u64) -> u64 {
    (memory / 4 / bytes.max(1)).min(MOST_PREFETCHED).max(threads as u64 + 1)
}

/// A request to a decoding thread.
struct Job {
    encoded: Encoded,
    reply: SyncSender<Result<DecodedExample, DataError>>,
}

/// An example on its way to the caller.
enum Pending {
    Working(Receiver<Result<DecodedExample, DataError>>),
    Ready(DecodedExample),
}

/// An endless stream of the examples of [`StreamOptions::positions`]. Dropping it ends its threads.
#[doc(alias = "data loader")]
#[doc(alias = "prefetch")]
pub struct Stream<L> {
    dataset: Arc<Dataset<L>>,
    /// `None` once the stream is being dropped.
    chunks: Option<Receiver<Result<Vec<Item>, DataError>>>,
    /// `None` once the stream is being dropped.
    jobs: Option<Sender<Job>>,
    waiting: VecDeque<Item>,
    pending: VecDeque<(usize, u64, Pending)>,
    /// The error that ended the reading thread; the caller gets it after the examples before it.
    failure: Option<DataError>,
    ahead: usize,
    budget: Arc<MemoryBudget>,
    threads: Vec<JoinHandle<()>>,
}

impl<L> std::fmt::Debug for Stream<L> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Stream")
            .field("waiting", &self.waiting.len())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

impl<L: Clone> Stream<L> {
    /// Starts to read.
    ///
    /// # Errors
    /// If the resolution is impossible, or a cache lacks what the options ask for: this resolution,
    /// flipped images, or random crops, which no cache has.
    pub fn start(dataset: Arc<Dataset<L>>, options: StreamOptions) -> Result<Self, DataError> {
        let transform = check(&dataset.selection, &options)?;
        let threads = options.threads.max(1);
        let pixels = 2 * 4 * transform.numbers() as u64;
        let ahead = decoded_ahead(options.memory, threads, pixels);
        let budget = MemoryBudget::new(options.memory.saturating_sub(ahead.saturating_mul(pixels)));
        let mut stream = Self {
            dataset,
            chunks: None,
            jobs: None,
            waiting: VecDeque::new(),
            pending: VecDeque::new(),
            failure: None,
            ahead: usize::try_from(ahead).unwrap_or(usize::MAX),
            budget,
            threads: Vec::new(),
        };
        let selection = Arc::clone(&stream.dataset.selection);
        let budget = Arc::clone(&stream.budget);
        let cached = matches!(*selection.source, Source::Cache(_));
        // Windows are large, so a complete one waits in the sending thread and the channel holds
        // none; cached chunks are small, so one more waits in the channel.
        let (chunk_sender, chunks) = sync_channel(usize::from(cached));
        stream.chunks = Some(chunks);
        stream.spawn("reads", move || read(&selection, &options, &budget, &chunk_sender))?;
        if !cached {
            let (sender, jobs) = channel();
            stream.jobs = Some(sender);
            let jobs = Arc::new(Mutex::new(jobs));
            for _ in 0..threads {
                let (jobs, selection) = (Arc::clone(&jobs), Arc::clone(&stream.dataset.selection));
                stream
                    .spawn("decodes", move || decode(&jobs, &selection, transform, options.seed))?;
            }
        }
        Ok(stream)
    }

    fn spawn(
        &mut self,
        what: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), DataError> {
        let thread = std::thread::Builder::new().name(format!("data-{what}")).spawn(body);
        let failed = |error: std::io::Error| DataError::Thread { what, reason: error.to_string() };
        self.threads.push(thread.map_err(failed)?);
        Ok(())
    }

    /// The next example; waits until it is ready.
    ///
    /// # Errors
    /// If a file cannot be read or an image cannot be decoded. Discard the stream after an error.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and ends with an error")]
    pub fn next(&mut self) -> Result<Example<L>, DataError> {
        self.prefetch();
        let Some((index, position, pending)) = self.pending.pop_front() else {
            let ended = DataError::Thread { what: "reads", reason: "no reason given".to_owned() };
            return Err(self.failure.take().unwrap_or(ended));
        };
        let decoded = match pending {
            Pending::Ready(decoded) => decoded,
            Pending::Working(reply) => reply.recv().map_err(|_| DataError::Thread {
                what: "decodes",
                reason: "it panicked".to_owned(),
            })??,
        };
        // The threads work on later examples while the caller uses this one.
        self.prefetch();
        let Some(label) = self.dataset.labels.get(index).cloned() else {
            let reason = format!("pair {index} is unknown");
            return Err(DataError::Thread { what: "reads", reason });
        };
        Ok(Example {
            pair_id: decoded.pair_id,
            caption: decoded.caption,
            label,
            position,
            content: decoded.content,
        })
    }

    /// Bytes that were read and not yet decoded.
    #[cfg(test)]
    pub(super) fn bytes_held(&self) -> u64 {
        self.budget.held()
    }

    /// Requests examples until enough are on their way; waits only if no example is.
    fn prefetch(&mut self) {
        while self.pending.len() < self.ahead {
            let Some(item) = self.waiting.pop_front() else {
                let Some(chunks) = &self.chunks else { return };
                let chunk = match self.pending.is_empty() {
                    true => chunks.recv().map_err(|_| TryRecvError::Disconnected),
                    false => chunks.try_recv(),
                };
                match chunk {
                    Ok(Ok(items)) => self.waiting.extend(items),
                    Ok(Err(error)) => self.failure = Some(error),
                    Err(_) => return,
                }
                continue;
            };
            let pending = match item.work {
                Work::Ready(decoded) => Pending::Ready(decoded),
                Work::Decode(encoded) => {
                    let (reply, answer) = sync_channel(1);
                    if let Some(jobs) = &self.jobs {
                        // If all threads are gone, `recv` fails and `next` reports it.
                        let _gone = jobs.send(Job { encoded, reply });
                    }
                    Pending::Working(answer)
                }
            };
            self.pending.push_back((item.index, item.position, pending));
        }
    }
}

impl<L> Drop for Stream<L> {
    fn drop(&mut self) {
        self.budget.close();
        self.chunks = None;
        self.jobs = None;
        self.waiting.clear();
        self.pending.clear();
        for thread in self.threads.drain(..) {
            // The thread has already reported a panic.
            let _ended = thread.join();
        }
    }
}

/// The transform that the options ask for, if the data supports it.
pub(super) fn check(
    selection: &Selection,
    options: &StreamOptions,
) -> Result<Transform, DataError> {
    let (height, width) = options.resolution;
    let side = |side: i64| (1..=LARGEST_SIDE).contains(&side).then(|| u32::try_from(side).ok());
    let sides = (side(height).flatten(), side(width).flatten());
    let (Some(height), Some(width)) = sides else {
        return Err(DataError::Options(format!(
            "expected a resolution of 1 to {LARGEST_SIDE} pixels, found {height}x{width}"
        )));
    };
    if let Source::Cache(cache) = &*selection.source {
        let folder = cache.folder().display();
        let manifest = cache.manifest();
        let refuse = |reason: String| Err(DataError::Options(format!("{folder}: {reason}")));
        let [cached_height, cached_width] = manifest.resolution;
        if (cached_height, cached_width) != (height, width) {
            return refuse(format!(
                "resolution: the cache was made for {cached_height}x{cached_width}, the run is of \
                 {height}x{width}; hint: --resolution {cached_height}, or make another cache"
            ));
        }
        if options.hflip && !manifest.hflip {
            return refuse(
                "hflip: the cache holds no flipped images; hint: run without --hflip, or make the \
                 cache with it"
                    .to_owned(),
            );
        }
        if options.random_crop {
            return refuse(
                "random_crop: a cache holds central crops only; hint: train on the pairs themselves"
                    .to_owned(),
            );
        }
    }
    Ok(Transform { height, width, random_crop: options.random_crop, hflip: options.hflip })
}

/// The body of the reading thread.
fn read(
    selection: &Arc<Selection>,
    options: &StreamOptions,
    budget: &Arc<MemoryBudget>,
    chunks: &SyncSender<Result<Vec<Item>, DataError>>,
) {
    let result = match &*selection.source {
        Source::Pairs(files) => {
            let mut loader = PairLoader { selection, files, budget };
            read_epochs(selection, options, &mut loader, chunks)
        }
        Source::Cache(cache) => read_epochs(
            selection,
            options,
            &mut CacheLoader::new(selection, cache, options),
            chunks,
        ),
    };
    if let Err(error) = result {
        // Nobody receives it if the stream was dropped.
        let _gone = chunks.send(Err(error));
    }
}

fn read_epochs(
    selection: &Selection,
    options: &StreamOptions,
    loader: &mut dyn Loader,
    chunks: &SyncSender<Result<Vec<Item>, DataError>>,
) -> Result<(), DataError> {
    let length = selection.rows.len() as u64;
    if length == 0 {
        return Ok(());
    }
    let mut position = options.position;
    loop {
        let (epoch, inside) = (position / length, position % length);
        let order = EpochOrder::new(&selection.geometry, &selection.rows, options.seed, epoch);
        for window in order.window_at(inside)..order.windows() {
            let rows = order.rows_of(window, &selection.rows);
            let used = usize::try_from(inside.saturating_sub(order.start_of(window)));
            let rows = rows.get(used.unwrap_or(usize::MAX)..).unwrap_or_default();
            let placed = rows.iter().zip(position..);
            position += rows.len() as u64;
            let own: Vec<Row> = placed
                .filter(|(_, position)| options.positions.contain(position - options.position))
                .map(|(&index, position)| Row { index, position })
                .collect();
            for chunk in own.chunks(loader.chunk_rows().max(1)) {
                let Some(items) = loader.load(chunk, epoch)? else { return Ok(()) };
                if chunks.send(Ok(items)).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// The body of a decoding thread.
fn decode(jobs: &Mutex<Receiver<Job>>, selection: &Selection, transform: Transform, seed: u64) {
    let mut resizer = Resizer::new();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { encoded, reply }) = job else { return };
        // Nobody receives it if the stream was dropped.
        let _gone = reply.send(encoded.decode(selection, transform, seed, &mut resizer));
    }
}
