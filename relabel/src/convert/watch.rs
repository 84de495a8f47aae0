//! The progress of a conversion, and the pairs that lack an image.

use bytes::Bytes;
use runkit::progress::{PARTS, Progress};
use runkit::signals::{StopFlag, Stopped};
use schemas::layouts::Conversion;
use schemas::pairs::PairRow;

use super::sources::{Source, Sources};

/// Pairs that lack an image are named up to this number.
const MOST_NAMED: u64 = 20;
const MIB: f64 = (1 << 20) as f64;

/// Shows the progress: in pairs, or in bytes of the inputs if the number of pairs is not known.
pub(super) struct Watch<'run> {
    progress: Progress,
    by_bytes: bool,
    stop: &'run StopFlag,
    /// The input that is being converted.
    source_file: String,
    /// Its bytes, its rows, and how many of them are done.
    bytes: u64,
    rows: u64,
    done: u64,
    /// Parts of a MiB that were shown of it.
    shown: u64,
    absent: u64,
}

impl<'run> Watch<'run> {
    pub(super) fn new(sources: &Sources, limit: Option<u64>, stop: &'run StopFlag) -> Self {
        let total = sources.pairs(limit);
        let mib = || sources.all.iter().map(|source| source.bytes).sum::<u64>() >> 20;
        let progress = match total {
            Some(pairs) => Progress::new("converting", "pairs", pairs),
            // How much of it the limit takes is not known either.
            None => Progress::new("converting", "MiB", limit.is_none().then(mib)),
        };
        let (source_file, by_bytes) = (String::new(), total.is_none());
        let (bytes, rows, done, shown, absent) = (0, 0, 0, 0, 0);
        Self { progress, by_bytes, stop, source_file, bytes, rows, done, shown, absent }
    }

    /// What follows is of this input.
    pub(super) fn begin(&mut self, source: &Source) {
        self.source_file.clone_from(&source.input.source_file);
        (self.bytes, self.rows, self.done, self.shown) = (source.bytes, 0, 0, 0);
        self.progress.message(&self.source_file);
    }

    /// The input has so many rows to convert.
    pub(super) fn rows(&mut self, rows: i64) {
        self.rows = rows.unsigned_abs();
    }

    /// The input was converted by an earlier start.
    pub(super) fn is_done(&mut self, rows: u64) {
        self.rows = rows;
        self.earlier(rows);
    }

    pub(super) fn finish(self) {
        self.progress.message("");
        self.progress.finish();
    }

    /// Parts of a MiB of the input that are done and were not shown.
    fn parts(&mut self, rows: u64) -> u64 {
        self.done += rows;
        let share = self.done as f64 / self.rows.max(1) as f64;
        let parts = (self.bytes as f64 / MIB * PARTS as f64 * share) as u64;
        let new = parts.saturating_sub(self.shown);
        self.shown = parts;
        new
    }
}

impl Conversion for Watch<'_> {
    fn done(&mut self, rows: u64) {
        match self.by_bytes {
            true => {
                let parts = self.parts(rows);
                self.progress.add_parts(parts);
            }
            false => self.progress.add(rows),
        }
    }

    fn earlier(&mut self, rows: u64) {
        let amount = if self.by_bytes { self.parts(rows) / PARTS } else { rows };
        self.progress.already_done(amount);
    }

    fn absent(&mut self, row: &PairRow) {
        self.absent += 1;
        if self.absent == MOST_NAMED + 1 {
            tracing::warn!("more pairs lack an image; they are counted");
        }
        if self.absent > MOST_NAMED {
            return;
        }
        for (side, (image, reason)) in row.image.iter().zip(&row.absent).enumerate() {
            if image.as_ref().is_none_or(Bytes::is_empty) {
                let reason = reason.as_deref().unwrap_or("it is null or has no bytes");
                let (file, pair, row) = (&self.source_file, &row.pair_id, row.row);
                tracing::warn!("{file}: row {row}, pair {pair}: no image {side}: {reason}");
            }
        }
    }

    fn check(&mut self) -> Result<(), Stopped> {
        self.stop.check()
    }
}
