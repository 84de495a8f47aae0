//! What to encode, from the small columns of the input.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use schemas::pairs::{EmptyCaption, InputFile, PairFile, caption_problem, discover};
use xxhash_rust::xxh3::xxh3_128;

/// The input files and the numbers of all captions.
pub(super) struct Plan {
    pub(super) files: Vec<PlannedFile>,
    /// The number of a caption by its checksum: 0 is the empty one, the others are in order of
    /// first occurrence.
    captions: HashMap<u128, i64>,
}

/// One input file.
pub(super) struct PlannedFile {
    pub(super) input: InputFile,
    pub(super) fingerprint: String,
    pub(super) rows: u64,
    pub(super) row_groups: Vec<(u32, u64)>,
    /// The number of its first new caption: one that occurs in no earlier file.
    pub(super) first_caption: i64,
    /// How many new captions it has.
    pub(super) captions: i64,
}

impl Plan {
    pub(super) fn make(pairs: &[PathBuf], splits: &[String]) -> Result<Self> {
        let mut plan = Self { files: Vec::new(), captions: HashMap::new() };
        let found = discover(pairs, splits)?;
        if let Some(skipped) = found.skipped() {
            tracing::info!("{skipped}");
        }
        for input in found.files {
            let file = PairFile::open(&input)?;
            let first_caption = plan.next();
            if plan.files.is_empty() {
                plan.captions.insert(xxh3_128(b""), 0);
            }
            let mut rows = 0_u64;
            for batch in file.plan_rows()? {
                runkit::signals::check_at("plan")?;
                for row in batch? {
                    rows += 1;
                    if let Some(caption) = &row.caption
                        && caption_problem(Some(caption), EmptyCaption::Allowed).is_none()
                    {
                        let next = plan.next();
                        plan.captions.entry(xxh3_128(caption.as_bytes())).or_insert(next);
                    }
                }
            }
            ensure!(
                i64::try_from(rows) == Ok(file.num_rows()),
                "{}: its footer promises {} rows but {rows} could be read",
                input.path.display(),
                file.num_rows()
            );
            plan.files.push(PlannedFile {
                fingerprint: file.fingerprint(),
                rows,
                row_groups: file.row_group_sizes()?,
                first_caption,
                captions: plan.next() - first_caption,
                input,
            });
        }
        Ok(plan)
    }

    fn next(&self) -> i64 {
        i64::try_from(self.captions.len()).unwrap_or(i64::MAX)
    }

    /// The number of all pairs.
    pub(super) fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// The number of a planned caption.
    pub(super) fn caption(&self, caption: &str) -> Option<i64> {
        self.captions.get(&xxh3_128(caption.as_bytes())).copied()
    }

    /// Opens an input file again and checks that it has not changed.
    pub(super) fn open(&self, index: usize) -> Result<PairFile> {
        let planned = &self.files[index];
        let file = PairFile::open(&planned.input)?;
        ensure!(
            file.fingerprint() == planned.fingerprint,
            "{}: the file has changed since the run began; hint: run the same command again",
            planned.input.path.display()
        );
        Ok(file)
    }
}
