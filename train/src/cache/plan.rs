//! What to encode: the parts of a cache, from the footers and small columns of the input.
//!
//! A cache is a list of parts that only grows. The parts of a file follow from its row groups and
//! from the rows that are missing, so that equal commands plan equal parts, whoever plans them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use schemas::latents::{CacheManifest, LatentsFile, PartPlan, captions_name, latents_name};
use schemas::pairs::{EmptyCaption, FileRecord, InputFile, InputRecord, PairFile, caption_problem};
use xxhash_rust::xxh3::xxh3_128;

use crate::data::PairInputs;

/// The most pairs of a part, unless one row group has more: what a killed process loses, and what
/// a rank takes at a time. At 512 px in half precision some 70 MB.
pub(super) const PART_ROWS: u64 = 512;

/// The files given, and the parts of the whole cache.
pub(super) struct Plan {
    files: Vec<PlannedFile>,
    /// The files of the cache in the order of training, with the rows that it holds of each.
    records: Vec<FileRecord>,
    pub(super) parts: Vec<PartPlan>,
    /// The number of a caption by its checksum: 0 is the empty one, the others are in order of
    /// first occurrence.
    captions: HashMap<u128, i64>,
}

/// One input file.
pub(super) struct PlannedFile {
    pub(super) input: InputFile,
    /// What manifests say of it, with all its rows.
    record: FileRecord,
    pub(super) row_groups: Vec<(u32, u64)>,
}

impl Plan {
    /// Plans the parts of the first `limit` pairs, after those of an `earlier` start in the folder
    /// `out`. `says` whether to log what is read.
    ///
    /// # Errors
    /// If the input cannot be read, or is not the one that the cache was begun with.
    pub(super) fn make(
        inputs: &PairInputs,
        limit: Option<u64>,
        earlier: Option<&CacheManifest>,
        out: &Path,
        says: bool,
    ) -> Result<Self> {
        let opened = inputs.open(|input, file| -> Result<PlannedFile> {
            Ok(PlannedFile {
                row_groups: file.row_group_sizes()?,
                record: file.record(u64::try_from(file.num_rows())?),
                input,
            })
        })?;
        if says {
            opened.say();
        }
        let files = opened.files;
        let parts = earlier.map_or_else(Vec::new, |earlier| earlier.parts.clone());
        let records = earlier.map_or_else(Vec::new, |earlier| earlier.manifest.input.files.clone());
        let mut plan = Self { files, records, parts, captions: HashMap::new() };
        plan.refuse_changed(out)?;
        let known = plan.parts.len();
        plan.add_parts(limit.unwrap_or(u64::MAX));
        plan.refuse_unknown_missing(out)?;
        if known < plan.parts.len() || (0..known).any(|part| !is_there(out, part)) {
            plan.number_captions(known, out)?;
        }
        Ok(plan)
    }

    /// Refuses files that were changed after a part of them was planned.
    fn refuse_changed(&self, out: &Path) -> Result<()> {
        for file in &self.files {
            let same_name = |record: &&FileRecord| record.source_file == file.input.source_file;
            let Some(record) = self.records.iter().find(same_name) else { continue };
            ensure!(
                record.fingerprint == file.record.fingerprint,
                "{}: the cache {} holds pairs of another {}: the file was changed or replaced; \
                 hint: choose another --out, or start over with --fresh",
                file.input.path.display(),
                out.display(),
                record.source_file
            );
        }
        Ok(())
    }

    /// Adds parts for the first `limit` pairs of the files, as far as the cache lacks them.
    fn add_parts(&mut self, limit: u64) {
        let (known, mut left) = (self.parts.len(), limit);
        let mut given = Vec::new();
        for file in &self.files {
            let name = &file.input.source_file;
            let of_file = self.parts.iter().filter(|part| part.source_file == *name);
            let held = of_file.map(|part| part.first_row + part.rows).max().unwrap_or(0);
            let wanted = file.record.rows.min(left);
            left -= wanted;
            for rows in tile(&file.row_groups, held..wanted) {
                self.parts.push(PartPlan {
                    source_file: name.clone(),
                    first_row: rows.start,
                    rows: rows.end - rows.start,
                    first_caption: 0,
                    captions: 0,
                });
            }
            let rows = held.max(wanted);
            // A file without pairs is recorded as well, so that labels may name it.
            if rows > 0 || limit == u64::MAX {
                given.push(FileRecord { rows, ..file.record.clone() });
            }
        }
        if self.parts.len() == known && !self.records.is_empty() {
            return;
        }
        let names: HashSet<&str> = given.iter().map(|file| file.source_file.as_str()).collect();
        if self.records.iter().all(|record| names.contains(record.source_file.as_str())) {
            self.records = given;
            return;
        }
        for file in given {
            let mut records = self.records.iter_mut();
            match records.find(|record| record.source_file == file.source_file) {
                Some(record) => *record = file,
                None => self.records.push(file),
            }
        }
    }

    /// Refuses to leave parts unfinished because their file is not given.
    fn refuse_unknown_missing(&self, out: &Path) -> Result<()> {
        for (number, part) in self.parts.iter().enumerate() {
            let name = latents_name(number);
            ensure!(
                self.file(part).is_some() || is_there(out, number),
                "{}: {name} is missing, and its pairs are in {}, which is not among the files \
                 given; hint: give them with --pairs as well",
                out.display(),
                part.source_file
            );
        }
        Ok(())
    }

    /// Numbers the captions; those of the first `known` parts have their numbers already.
    fn number_captions(&mut self, known: usize, out: &Path) -> Result<()> {
        self.captions.insert(xxh3_128(b""), 0);
        let mut opened: Option<PairFile> = None;
        for number in 0..self.parts.len() {
            let part = self.parts.get(number).context("a part was lost")?.clone();
            let first = if number == 0 { 0 } else { self.next() };
            let Some(planned) = self.file(&part) else {
                self.read_captions(&out.join(latents_name(number)))?;
                continue;
            };
            let file = match opened.take() {
                Some(file) if file.source_file() == part.source_file => file,
                _ => planned.open()?,
            };
            let mut rows = 0;
            for batch in file.plan_rows_in(part.file_rows())? {
                runkit::signals::check_at("plan")?;
                for row in batch? {
                    rows += 1;
                    if let Some(caption) = &row.caption
                        && caption_problem(Some(caption), EmptyCaption::Allowed).is_none()
                    {
                        let next = self.next();
                        self.captions.entry(xxh3_128(caption.as_bytes())).or_insert(next);
                    }
                }
            }
            ensure!(
                rows == part.rows,
                "{}: its footer promises rows {} to {} but {rows} of these could be read",
                file.path().display(),
                part.first_row,
                part.first_row + part.rows
            );
            let (first_caption, captions) = (first, self.next() - first);
            let new = PartPlan { first_caption, captions, ..part.clone() };
            if number < known && new != part {
                bail!(
                    "{}: the captions of {} are not those of {} in {}; hint: choose another --out, \
                     or start over with --fresh",
                    file.path().display(),
                    latents_name(number),
                    runkit::run_folder::MANIFEST,
                    out.display()
                );
            }
            if let Some(part) = self.parts.get_mut(number) {
                *part = new;
            }
            opened = Some(file);
        }
        Ok(())
    }

    /// Takes the captions of a part from the part itself.
    fn read_captions(&mut self, path: &Path) -> Result<()> {
        for batch in LatentsFile::open(path)?.rows()? {
            runkit::signals::check_at("plan")?;
            for row in batch? {
                if let (Some(caption), Some(number)) = (row.caption, row.caption_index) {
                    self.captions.insert(xxh3_128(caption.as_bytes()), number);
                }
            }
        }
        Ok(())
    }

    fn next(&self) -> i64 {
        i64::try_from(self.captions.len()).unwrap_or(i64::MAX)
    }

    /// The file of a part, if it is among those given.
    pub(super) fn file(&self, part: &PartPlan) -> Option<&PlannedFile> {
        self.files.iter().find(|file| file.input.source_file == part.source_file)
    }

    /// All pairs of the cache.
    pub(super) fn input(&self) -> InputRecord {
        let rows = self.records.iter().map(|file| file.rows).sum();
        InputRecord::new(rows, None, self.records.clone())
    }

    /// The number of a planned caption.
    pub(super) fn caption(&self, caption: &str) -> Option<i64> {
        self.captions.get(&xxh3_128(caption.as_bytes())).copied()
    }
}

impl PlannedFile {
    /// Opens the file again and checks that it has not changed.
    pub(super) fn open(&self) -> Result<PairFile> {
        let file = PairFile::open(&self.input)?;
        ensure!(
            file.fingerprint() == self.record.fingerprint,
            "{}: the file has changed since the run began; hint: run the same command again",
            self.input.path.display()
        );
        Ok(file)
    }

    /// The file as a part's manifest records it.
    pub(super) fn record(&self) -> InputRecord {
        InputRecord::new(self.record.rows, None, vec![self.record.clone()])
    }
}

/// Whether both files of a part exist.
pub(super) fn is_there(out: &Path, part: usize) -> bool {
    [latents_name(part), captions_name(part)].iter().all(|name| out.join(name).exists())
}

/// Splits the wanted rows of a file into parts. The file is split in one way, into neighbouring row
/// groups of together at most [`PART_ROWS`] rows, and a larger row group into equal pieces; the
/// parts are what is wanted of that.
fn tile(row_groups: &[(u32, u64)], wanted: Range<u64>) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut start = 0;
    for rows in row_groups.iter().map(|(rows, _)| u64::from(*rows)) {
        let end = start + rows;
        match parts.last_mut() {
            Some(last) if end - last.start <= PART_ROWS => last.end = end,
            _ => {
                let pieces = rows.div_ceil(PART_ROWS);
                let cut = |piece: u64| start + piece * rows / pieces.max(1);
                parts.extend((0..pieces).map(|piece| cut(piece)..cut(piece + 1)));
            }
        }
        start = end;
    }
    let wanted = |part: Range<u64>| part.start.max(wanted.start)..part.end.min(wanted.end);
    parts.into_iter().map(wanted).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::tile;

    #[test]
    fn parts_are_whole_row_groups_or_pieces_of_large_ones() {
        let groups = |rows: &[u32]| rows.iter().map(|rows| (*rows, 1)).collect::<Vec<_>>();
        let small = groups(&[200, 200, 200, 0, 1300, 5]);
        let all = tile(&small, 0..1905);
        assert_eq!(all, [0..400, 400..600, 600..1033, 1033..1466, 1466..1905]);
        // A limit ends the last part earlier and changes no other.
        let some = tile(&small, 0..1100);
        assert_eq!(some, [0..400, 400..600, 600..1033, 1033..1100]);
        assert_eq!(tile(&small, 0..450), [0..400, 400..450]);
        // What is missing begins where the last part ended.
        assert_eq!(tile(&small, 450..650), [450..600, 600..650]);
        assert!(tile(&small, 5..5).is_empty());
        assert!(tile(&[], 0..5).is_empty());
        for limit in 1..=1905 {
            let parts = tile(&small, 0..limit);
            assert_eq!((parts[0].start, parts.last().unwrap().end), (0, limit));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(parts.iter().all(|part| part.end - part.start <= 512 && !part.is_empty()));
        }
    }
}
