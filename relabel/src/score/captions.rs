//! Captions and their features, on disk so that memory does not grow with the data set.
//!
//! Captions are encoded in fixed groups, in order of first appearance over the whole input: a
//! feature's last bits depend on the group it was computed in, and this way the group is the same
//! whichever process needs it, and each caption is encoded once per process.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use runkit::files::{FileError, Operation};
use scorers::{Features, ScorerSet};

/// Captions encoded together.
const GROUP: usize = 32;

/// Buffered caption bytes before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// The distinct captions of a run, in a scratch file that the system removes with the process.
#[derive(Debug)]
pub struct CaptionText {
    file: File,
    /// Where the file is, for messages.
    folder: PathBuf,
    /// End of each caption in the file.
    ends: Vec<u64>,
    buffer: Vec<u8>,
}

impl CaptionText {
    pub(crate) fn new(scratch: &Path) -> Result<Self> {
        Ok(Self {
            file: scratch_file(scratch)?,
            folder: scratch.to_path_buf(),
            ends: Vec::new(),
            buffer: Vec::new(),
        })
    }

    pub(crate) fn push(&mut self, caption: &str) -> Result<(), FileError> {
        let end = self.ends.last().copied().unwrap_or(0) + caption.len() as u64;
        self.ends.push(end);
        self.buffer.extend_from_slice(caption.as_bytes());
        if self.buffer.len() >= BUFFER_BYTES { self.finish() } else { Ok(()) }
    }

    pub(crate) fn finish(&mut self) -> Result<(), FileError> {
        let end = self.ends.last().copied().unwrap_or(0);
        self.file
            .write_all_at(&self.buffer, end - self.buffer.len() as u64)
            .map_err(|cause| FileError::new(&self.folder, Operation::Write, cause))?;
        self.buffer.clear();
        Ok(())
    }

    /// How many distinct captions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no captions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of the scratch file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn get(&self, index: usize) -> Result<String> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let mut bytes = vec![0; (self.ends[index] - start) as usize];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(String::from_utf8(bytes)?)
    }
}

/// Bytes that the features of `captions` take in the scratch folder, in groups as they are encoded:
/// `widths` are the numbers that each text tower gives for a caption.
pub(super) fn feature_bytes(
    captions: impl Iterator<Item = u32>,
    total: usize,
    widths: &[usize],
) -> u64 {
    let mut needed = vec![false; total.div_ceil(GROUP)];
    for caption in captions {
        if let Some(group) = needed.get_mut(caption as usize / GROUP) {
            *group = true;
        }
    }
    let encoded = |(group, _): (usize, &bool)| total.min((group + 1) * GROUP) - group * GROUP;
    let captions: usize =
        needed.iter().enumerate().filter(|(_, needed)| **needed).map(encoded).sum();
    (captions * widths.iter().sum::<usize>() * size_of::<f32>()) as u64
}

/// Features of captions, one scratch file per text tower, filled group by group as they are needed.
pub(crate) struct CaptionFeatures<'run> {
    text: &'run CaptionText,
    set: &'run ScorerSet,
    towers: Vec<TowerFile>,
    encoded: Vec<bool>,
}

struct TowerFile {
    file: File,
    /// Numbers per caption, known once the first group is encoded.
    width: usize,
}

impl<'run> CaptionFeatures<'run> {
    pub(crate) fn new(
        text: &'run CaptionText,
        set: &'run ScorerSet,
        scratch: &Path,
    ) -> Result<Self> {
        let towers = (0..set.text_tower_count())
            .map(|_| Ok(TowerFile { file: scratch_file(scratch)?, width: 0 }))
            .collect::<Result<_>>()?;
        Ok(Self { text, set, towers, encoded: vec![false; text.len().div_ceil(GROUP)] })
    }

    /// The features of `captions`, in that order.
    pub(crate) fn get(&mut self, captions: &[u32]) -> Result<Features> {
        for &caption in captions {
            let group = caption as usize / GROUP;
            if !self.encoded[group] {
                self.encode(group)?;
                self.encoded[group] = true;
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

    fn encode(&mut self, group: usize) -> Result<()> {
        let indices = group * GROUP..self.text.len().min((group + 1) * GROUP);
        let captions: Vec<String> =
            indices.clone().map(|index| self.text.get(index)).collect::<Result<_>>()?;
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let features = self.set.encode_texts(&self.set.tokenize(&captions))?;
        for (index, tower) in self.towers.iter_mut().enumerate() {
            let rows = features.to_rows(index)?;
            tower.width = rows.len() / captions.len();
            let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
            tower
                .file
                .write_all_at(&bytes, (indices.start * tower.width * size_of::<f32>()) as u64)
                .map_err(|cause| FileError::new(&self.text.folder, Operation::Write, cause))?;
        }
        Ok(())
    }
}

/// An unnamed file: the system removes it when the process ends, however it ends.
fn scratch_file(folder: &Path) -> Result<File> {
    tempfile::tempfile_in(folder).with_context(|| {
        format!(
            "{}: cannot make a scratch file; hint: --scratch FOLDER that exists and can be written",
            folder.display()
        )
    })
}
