//! Captions and their features, on disk so that memory does not grow with the data set.
//!
//! Captions are encoded in fixed groups ([`Groups`]): a feature's last bits depend on the group it was
//! computed in, and this way the group is the same whichever process needs it. Each caption is encoded once per run: the features are in the work
//! folder ([`SharedFeatures`]), some groups to a file. A process copies what it needs into scratch
//! files of its own.

mod groups;
mod shared;
mod text;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use runkit::files::{FileError, Operation};
use runkit::signals::StopFlag;
use scorers::{Features, ScorerSet};

use super::plan::Plan;

use self::groups::CHUNK;
pub(crate) use self::groups::Groups;
pub(crate) use self::shared::SharedFeatures;
pub use self::text::CaptionText;

/// How often a process looks for features that another one is encoding.
const POLL: Duration = Duration::from_millis(20);
/// A process waits for another at least so long before it encodes the captions itself.
const LEAST_WAIT: Duration = Duration::from_secs(10);

/// Bytes that the features of `captions` take in the scratch folder, in the portions in which they
/// are kept: `widths` are the numbers that each text tower gives for a caption.
pub(super) fn feature_bytes(
    captions: impl Iterator<Item = u32>,
    groups: &Groups,
    widths: &[usize],
) -> u64 {
    let mut needed = vec![false; groups.chunks()];
    for caption in captions {
        if let Some(chunk) = needed.get_mut(groups.chunk_of(groups.group_of(caption))) {
            *chunk = true;
        }
    }
    let encoded = |(chunk, _): (usize, &bool)| groups.captions_in(&groups.groups_in(chunk)).len();
    let captions: usize =
        needed.iter().enumerate().filter(|(_, needed)| **needed).map(encoded).sum();
    (captions * widths.iter().sum::<usize>() * size_of::<f32>()) as u64
}

/// Features of captions, one scratch file per text tower, filled as they are needed.
pub(crate) struct CaptionFeatures<'run> {
    text: &'run CaptionText,
    groups: Groups,
    set: &'run ScorerSet,
    stop: &'run StopFlag,
    /// What the processes of the run share; nothing in a check.
    shared: Option<SharedFeatures>,
    /// The folder of the scratch files, for messages.
    scratch: PathBuf,
    towers: Vec<TowerFile>,
    /// The groups that are in the scratch files.
    known: Vec<bool>,
    /// Chunks that another process has taken and may be encoding.
    elsewhere: Vec<bool>,
    /// Captions that this process encoded, and the time it took.
    encoded: usize,
    encoding: Duration,
}

struct TowerFile {
    file: File,
    /// Numbers per caption, known once the first group is.
    width: usize,
}

impl<'run> CaptionFeatures<'run> {
    pub(crate) fn new(
        plan: &'run Plan,
        set: &'run ScorerSet,
        scratch: &Path,
        shared: Option<SharedFeatures>,
        stop: &'run StopFlag,
    ) -> Result<Self> {
        let towers = (0..set.text_tower_count())
            .map(|_| Ok(TowerFile { file: scratch_file(scratch)?, width: 0 }))
            .collect::<Result<Vec<_>>>()?;
        let groups = Groups::of(plan);
        Ok(Self {
            text: &plan.captions,
            set,
            stop,
            shared: shared.filter(|_| !towers.is_empty()),
            scratch: scratch.to_path_buf(),
            towers,
            known: vec![false; groups.len()],
            elsewhere: vec![false; groups.chunks()],
            groups,
            encoded: 0,
            encoding: Duration::ZERO,
        })
    }

    /// Captions that this process has encoded so far.
    pub(crate) fn encoded(&self) -> usize {
        self.encoded
    }

    /// Encodes the chunks that this process gets, before they are needed, so that the processes of
    /// a run share the work. `chunks` are the numbers it gets, in ascending order.
    pub(crate) fn encode_dealt<E>(
        &mut self,
        chunks: impl Iterator<Item = Result<usize, E>>,
        others_work: bool,
    ) -> Result<()>
    where
        anyhow::Error: From<E>,
    {
        let mut next = 0;
        let count = self.elsewhere.len();
        for chunk in chunks {
            self.stop.check()?;
            let chunk = chunk?;
            self.elsewhere[next.min(count)..chunk.min(count)].fill(others_work);
            next = chunk + 1;
            let is_missing = self.shared.as_ref().is_some_and(|shared| !shared.has(chunk));
            if chunk < count && is_missing {
                self.obtain(self.groups.groups_in(chunk).start)?;
            }
        }
        self.elsewhere[next.min(count)..].fill(others_work);
        Ok(())
    }

    /// The features of `captions`, in that order.
    pub(crate) fn get(&mut self, captions: &[u32]) -> Result<Features> {
        for &caption in captions {
            let group = self.groups.group_of(caption);
            if !self.known[group] {
                self.obtain(group)?;
            }
        }
        let mut towers = Vec::with_capacity(self.towers.len());
        for tower in &self.towers {
            let mut rows = vec![0f32; captions.len() * tower.width];
            let mut bytes = vec![0u8; tower.width * size_of::<f32>()];
            for (row, &caption) in rows.chunks_exact_mut(tower.width).zip(captions) {
                let start = u64::from(caption) * bytes.len() as u64;
                tower.file.read_exact_at(&mut bytes, start)?;
                for (value, bytes) in row.iter_mut().zip(bytes.chunks_exact(size_of::<f32>())) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            towers.push(rows);
        }
        Ok(self.set.text_features(&towers, captions.len())?)
    }

    /// Brings a group into the scratch files: alone, or with the chunk it is in, read from the work
    /// folder, or encoded and written there.
    fn obtain(&mut self, group: usize) -> Result<()> {
        let Some(shared) = self.shared.clone() else {
            let features = self.encode(group)?;
            return self.keep(group..group + 1, &features);
        };
        let chunk = self.groups.chunk_of(group);
        let groups = self.groups.groups_in(chunk);
        if let Some(features) = self.wait_for(&shared, chunk)? {
            return self.keep(groups, &features);
        }
        let mut features = vec![Vec::new(); self.towers.len()];
        for group in groups.clone() {
            self.stop.check()?;
            for (tower, part) in features.iter_mut().zip(self.encode(group)?) {
                tower.extend(part);
            }
        }
        shared.write(chunk, &features)?;
        self.keep(groups, &features)
    }

    /// The features of a chunk from the work folder. If another process has taken it, waits a while:
    /// that one may be slow, or gone.
    fn wait_for(&mut self, shared: &SharedFeatures, chunk: usize) -> Result<Option<Vec<Vec<u8>>>> {
        let mean = self.encoding.div_f64((self.encoded as f64 / CHUNK as f64).max(1.0));
        let (asked, longest) = (Instant::now(), LEAST_WAIT.max(4 * mean));
        loop {
            let found = shared.read(chunk);
            if found.is_some() || !self.elsewhere[chunk] || asked.elapsed() > longest {
                self.elsewhere[chunk] = false;
                return Ok(found);
            }
            self.stop.check()?;
            std::thread::sleep(POLL);
        }
    }

    /// Encodes a group: the bytes of each tower's features.
    fn encode(&mut self, group: usize) -> Result<Vec<Vec<u8>>> {
        let started = Instant::now();
        let captions: Vec<String> =
            self.groups.captions(group).map(|index| self.text.get(index)).collect::<Result<_>>()?;
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let features = self.set.encode_texts(&self.set.tokenize(&captions))?;
        let bytes = |tower| {
            let rows = features.to_rows(tower)?;
            Ok(rows.iter().flat_map(|value| value.to_le_bytes()).collect())
        };
        let towers = (0..self.towers.len()).map(bytes).collect::<Result<_>>()?;
        self.encoded += captions.len();
        self.encoding += started.elapsed();
        Ok(towers)
    }

    /// Writes the features of groups to the scratch files.
    fn keep(&mut self, groups: Range<usize>, features: &[Vec<u8>]) -> Result<()> {
        let kept = self.groups.captions_in(&groups);
        let (first, captions) = (kept.start, kept.len());
        for (tower, bytes) in self.towers.iter_mut().zip(features) {
            tower.width = bytes.len() / captions / size_of::<f32>();
            let start = (first * tower.width * size_of::<f32>()) as u64;
            tower
                .file
                .write_all_at(bytes, start)
                .map_err(|cause| FileError::new(&self.scratch, Operation::Write, cause))?;
        }
        self.known[groups].fill(true);
        Ok(())
    }
}

/// An unnamed file: the system removes it when the process ends, however it ends.
fn scratch_file(folder: &Path) -> Result<File> {
    tempfile::tempfile_in(folder).with_context(|| no_scratch(folder))
}

/// Why there is no scratch file.
pub(super) fn no_scratch(folder: &Path) -> String {
    format!(
        "{}: cannot make a scratch file; hint: --scratch FOLDER that exists and can be written",
        folder.display()
    )
}
