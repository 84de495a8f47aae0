//! The text of the captions, on disk so that memory does not grow with the data set.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use runkit::files::{FileError, Operation};

use super::scratch_file;

/// Buffered caption bytes before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// The distinct captions of a run: in a scratch file that the system removes with the process, or
/// in the file of a saved plan.
#[derive(Debug)]
pub struct CaptionText {
    file: File,
    /// Where the file is, for messages.
    place: PathBuf,
    /// Where the text begins in the file.
    base: u64,
    /// End of each caption, from there.
    ends: Vec<u64>,
    buffer: Vec<u8>,
}

impl CaptionText {
    /// None yet.
    pub(crate) fn new(scratch: &Path) -> Result<Self> {
        Ok(Self {
            file: scratch_file(scratch)?,
            place: scratch.to_path_buf(),
            base: 0,
            ends: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Captions that are at `base` in the open file `path`.
    pub(crate) fn stored(file: File, path: &Path, base: u64, ends: Vec<u64>) -> Self {
        Self { file, place: path.to_path_buf(), base, ends, buffer: Vec::new() }
    }

    pub(crate) fn push(&mut self, caption: &str) -> Result<(), FileError> {
        let end = self.bytes() + caption.len() as u64;
        self.ends.push(end);
        self.buffer.extend_from_slice(caption.as_bytes());
        if self.buffer.len() >= BUFFER_BYTES { self.finish() } else { Ok(()) }
    }

    pub(crate) fn finish(&mut self) -> Result<(), FileError> {
        let start = self.base + self.bytes() - self.buffer.len() as u64;
        self.file
            .write_all_at(&self.buffer, start)
            .map_err(|cause| FileError::new(&self.place, Operation::Write, cause))?;
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

    /// Bytes of their text.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The end of each caption in the text.
    pub(crate) fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// Reads the whole text.
    pub(crate) fn reader(&self) -> impl Read + '_ {
        TextReader { text: self, position: 0 }
    }

    pub(crate) fn get(&self, index: usize) -> Result<String> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let mut bytes = vec![0; (self.ends[index] - start) as usize];
        self.file
            .read_exact_at(&mut bytes, self.base + start)
            .map_err(|cause| FileError::new(&self.place, Operation::Read, cause))?;
        Ok(String::from_utf8(bytes)?)
    }
}

struct TextReader<'text> {
    text: &'text CaptionText,
    position: u64,
}

impl Read for TextReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.text.bytes() - self.position;
        let wanted = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.text.file.read_at(&mut into[..wanted], self.text.base + self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}
