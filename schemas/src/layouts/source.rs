//! The bytes behind a layout: a file that is read at any place, and the folder it lies in.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// What a sequential reader holds.
const BUFFER_BYTES: usize = 256 << 10;
/// Up to this many bytes are read and dropped, which is faster than to seek.
const LARGEST_GAP: u64 = 64 << 10;

/// The folder of an input file, in which its images lie.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder that holds `file`.
    pub(crate) fn around(file: &Path) -> Self {
        Self { path: file.parent().unwrap_or(Path::new("")).to_owned() }
    }

    /// This folder.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Opens a file by its name below the folder, parts separated by `/`.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        File::open(&self.path.join(name))
    }

    /// The names and sizes of the files directly in the folder, in no order.
    pub(crate) fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let described = std::fs::metadata(entry.path());
            if let Ok(described) = described
                && described.is_file()
            {
                names.push((name, described.len()));
            }
        }
        Ok(names)
    }
}

/// A file of a known length.
#[derive(Debug)]
pub(crate) struct File {
    file: std::fs::File,
    length: u64,
}

impl File {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        let described = file.metadata()?;
        if !described.is_file() {
            let found = if described.is_dir() { "a folder" } else { "not a plain file" };
            return Err(io::Error::new(io::ErrorKind::IsADirectory, found));
        }
        Ok(Self { length: described.len(), file })
    }

    /// The whole file, if it has at most `limit` bytes.
    pub(crate) fn read(self, limit: u64) -> io::Result<Bytes> {
        if self.length > limit {
            let found = format!("it has {} bytes; at most {limit} are read", self.length);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, found));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0));
        Read::take(&self.file, limit).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    /// Reads on from `offset`.
    pub(crate) fn reader(self, offset: u64) -> io::Result<Reader> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(offset))?;
        let buffered = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(Reader { buffered, position: offset, length: self.length })
    }
}

/// Reads a file in order.
#[derive(Debug)]
pub(crate) struct Reader {
    buffered: BufReader<std::fs::File>,
    position: u64,
    length: u64,
}

impl Reader {
    /// Where in the file the next byte is.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The length of the file.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Skips `count` bytes, which may end beyond the file.
    pub(crate) fn skip(&mut self, count: u64) -> io::Result<()> {
        if count <= LARGEST_GAP {
            io::copy(&mut Read::take(&mut *self, count), &mut io::sink())?;
        } else {
            self.seek(SeekFrom::Start(self.position.saturating_add(count)))?;
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.buffered.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.buffered.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.buffered.consume(count);
        self.position += count as u64;
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let wanted = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let wanted = wanted.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let by = i128::from(wanted) - i128::from(self.position);
        match i64::try_from(by) {
            Ok(by) => self.buffered.seek_relative(by)?,
            Err(_) => drop(self.buffered.seek(SeekFrom::Start(wanted))?),
        }
        self.position = wanted;
        Ok(wanted)
    }
}
