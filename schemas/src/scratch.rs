//! Bytes that are too many for memory lie in an unnamed, mapped scratch file, so that the system
//! can write them out and free their memory.
//!
//! The file lies in the folder for temporary files (`TMPDIR`, else `/tmp`). If that has no room,
//! the bytes stay in memory after all.

use std::fs::File;
use std::io::{self, Write};

use bytes::Bytes;
use memmap2::{Mmap, MmapMut};

/// The most bytes of one page that are held in memory.
pub const IN_MEMORY_BYTES: usize = 8 << 20;

/// A space of a known length, zeros at first.
pub(crate) enum Space {
    Memory(Vec<u8>),
    Scratch(MmapMut),
}

impl Space {
    pub(crate) fn of(length: usize) -> Self {
        if length > IN_MEMORY_BYTES
            && let Ok(mapped) = scratch_of(length)
        {
            return Self::Scratch(mapped);
        }
        Self::Memory(vec![0; length])
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Scratch(mapped) => mapped,
        }
    }

    pub(crate) fn into_bytes(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Memory(bytes) => bytes.into(),
            Self::Scratch(mapped) => Bytes::from_owner(mapped.make_read_only()?),
        })
    }
}

/// A scratch file of zeros. It writes them and leaves no hole, so that a full disk is an error here
/// and not a signal at the first access.
fn scratch_of(length: usize) -> io::Result<MmapMut> {
    let mut file = tempfile::tempfile()?;
    let zeros = [0_u8; 1 << 16];
    let mut left = length;
    while left > 0 {
        let now = left.min(zeros.len());
        file.write_all(&zeros[..now])?;
        left -= now;
    }
    #[expect(unsafe_code, reason = "a mapping is the only memory that the system can write out")]
    // SAFETY: the file has no name and is open nowhere else, so nobody can shorten or change it.
    let mapped = unsafe { MmapMut::map_mut(&file) };
    mapped
}

/// Collects bytes whose number is not known, at most `limit` of them.
pub(crate) struct Growing {
    memory: Vec<u8>,
    file: Option<File>,
    /// Whether no scratch file could be made.
    memory_only: bool,
    written: usize,
    limit: usize,
}

impl Growing {
    pub(crate) fn new(limit: usize) -> Self {
        Self { memory: Vec::new(), file: None, memory_only: false, written: 0, limit }
    }

    pub(crate) fn into_bytes(self) -> io::Result<Bytes> {
        let Some(file) = self.file else { return Ok(self.memory.into()) };
        #[expect(
            unsafe_code,
            reason = "a mapping is the only memory that the system can write out"
        )]
        // SAFETY: the file has no name and is open nowhere else, so nobody can shorten or change
        // it.
        let mapped = unsafe { Mmap::map(&file) }?;
        Ok(Bytes::from_owner(mapped))
    }

    fn move_to_scratch(&mut self) {
        match tempfile::tempfile().and_then(|mut file| {
            file.write_all(&self.memory)?;
            Ok(file)
        }) {
            Ok(file) => {
                self.file = Some(file);
                self.memory = Vec::new();
            }
            Err(_) => self.memory_only = true,
        }
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written = self.written.saturating_add(bytes.len());
        if self.written > self.limit {
            let message = format!("a page of more than {} bytes", self.limit);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if self.file.is_none() && !self.memory_only && self.written > IN_MEMORY_BYTES {
            self.move_to_scratch();
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes)?,
            None => self.memory.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_in_memory_and_on_disk() {
        for length in [0, 5, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 3 * IN_MEMORY_BYTES + 7] {
            let expected: Vec<u8> = (0..length).map(|position| (position % 251) as u8).collect();
            let mut space = Space::of(length);
            assert_eq!(matches!(space, Space::Scratch(_)), length > IN_MEMORY_BYTES);
            assert!(space.bytes_mut().iter().all(|&byte| byte == 0));
            space.bytes_mut().copy_from_slice(&expected);
            assert!(space.into_bytes().unwrap() == expected);

            let mut growing = Growing::new(length);
            for part in expected.chunks(100_000) {
                growing.write_all(part).unwrap();
            }
            assert_eq!(growing.file.is_some(), length > IN_MEMORY_BYTES);
            assert!(growing.write_all(&[1]).is_err(), "the limit is {length}");
            assert!(growing.into_bytes().unwrap() == expected);
        }
    }
}
