//! The bytes behind a layout, here or elsewhere: a file that is read from any place on, and the
//! folder it lies in.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use locations::{Location, LocationError};
use rayon::prelude::*;

/// What a sequential reader holds of a local file: little, since it is read again behind every image
/// that a plan skips.
const BUFFER_BYTES: usize = 32 << 10;
/// Up to this many bytes of a local file are read and dropped, which is faster than to seek.
const LOCAL_GAP: u64 = 32 << 10;
/// The same for a remote file, whose next megabytes are on their way already.
const REMOTE_GAP: u64 = 16 << 20;
/// Requests for remote files at a time.
const REQUESTS: usize = 16;

/// The folder of an input file, in which its images lie.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    location: Location,
}

impl Folder {
    /// The folder that holds `file`.
    ///
    /// # Errors
    /// When the address is not understood; the same for every function here that takes a path.
    pub(crate) fn around(file: &Path) -> Result<Self, LocationError> {
        Ok(Self { location: Location::parse(file)?.parent() })
    }

    /// This folder.
    pub(crate) fn at(path: &Path) -> Result<Self, LocationError> {
        Ok(Self { location: Location::parse(path)? })
    }

    /// Opens a file by its name below the folder, parts separated by `/`.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        let joined = self.location.join(name).map_err(|error| {
            // The name is wrong, not the folder.
            io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
        })?;
        File::at(&joined)
    }

    /// The names and sizes of the files directly in the folder, in no order.
    pub(crate) fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let Location::Local(path) = &self.location else {
            let items = locations::find(&self.location)?.items.into_iter();
            let here = items.filter(|item| !item.name.contains('/'));
            // The listing told the sizes: this asks for nothing.
            let sized =
                here.map(|item| Ok((item.name, locations::File::open(&item.location)?.len())));
            return sized.collect();
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Ok(described) = fs::metadata(entry.path())
                && described.is_file()
            {
                names.push((name, described.len()));
            }
        }
        Ok(names)
    }

    /// Calls `work` for each of the items, several at a time: on all cores for local files, with
    /// more requests than cores for remote ones.
    pub(crate) fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> R + Send + Sync,
    ) -> Vec<R> {
        if !self.location.is_remote() {
            return items.par_iter().map(work).collect();
        }
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
        std::thread::scope(|scope| {
            for _ in 0..REQUESTS.min(items.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else { break };
                        let result = work(item);
                        done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

/// A file of a known length.
#[derive(Debug)]
pub(crate) enum File {
    Local(fs::File, u64),
    Remote(locations::File),
}

impl File {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::at(&Location::parse(path)?)
    }

    fn at(location: &Location) -> io::Result<Self> {
        let Location::Local(path) = location else {
            return Ok(Self::Remote(locations::File::open(location)?));
        };
        let file = fs::File::open(path)?;
        let described = file.metadata()?;
        if !described.is_file() {
            let found = if described.is_dir() { "a folder" } else { "not a plain file" };
            return Err(io::Error::new(io::ErrorKind::IsADirectory, found));
        }
        Ok(Self::Local(file, described.len()))
    }

    fn length(&self) -> u64 {
        match self {
            Self::Local(_, length) => *length,
            Self::Remote(file) => file.len(),
        }
    }

    /// The whole file, if it has at most `limit` bytes.
    pub(crate) fn read(self, limit: u64) -> io::Result<Bytes> {
        let length = self.length();
        if length > limit {
            let found = format!("it has {length} bytes; at most {limit} are read");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, found));
        }
        match self {
            Self::Remote(file) => file.bytes(0..length),
            Self::Local(file, _) => {
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
                Read::take(&file, limit).read_to_end(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }

    /// Reads on from `offset`.
    pub(crate) fn reader(self, offset: u64) -> io::Result<Reader> {
        self.reader_until(offset, None)
    }

    /// Reads on from `offset`; of a remote file nothing is fetched from `until` on, which is read
    /// as its end.
    pub(crate) fn reader_until(self, offset: u64, until: Option<u64>) -> io::Result<Reader> {
        let length = self.length();
        let end = until.map_or(length, |until| until.min(length));
        let buffered = match self {
            Self::Local(mut file, _) => {
                file.seek(SeekFrom::Start(offset))?;
                Buffered::Local(BufReader::with_capacity(BUFFER_BYTES, file))
            }
            Self::Remote(file) => {
                let reader = BufReader::new(file.reader(offset..end));
                Buffered::Remote(Box::new(reader), file)
            }
        };
        Ok(Reader { buffered, position: offset, length, end })
    }
}

#[derive(Debug)]
enum Buffered {
    Local(BufReader<fs::File>),
    Remote(Box<BufReader<locations::Reader>>, locations::File),
}

/// Reads a file in order.
#[derive(Debug)]
pub(crate) struct Reader {
    buffered: Buffered,
    position: u64,
    length: u64,
    /// Where the reading of a remote file ends.
    end: u64,
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
        let gap = match self.buffered {
            Buffered::Local(_) => LOCAL_GAP,
            Buffered::Remote(..) => REMOTE_GAP,
        };
        if count <= gap {
            io::copy(&mut Read::take(&mut *self, count), &mut io::sink())?;
        } else {
            self.seek(SeekFrom::Start(self.position.saturating_add(count)))?;
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.buffered {
            Buffered::Local(reader) => reader.read(buffer)?,
            Buffered::Remote(reader, _) => reader.read(buffer)?,
        };
        self.position += count as u64;
        Ok(count)
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match &mut self.buffered {
            Buffered::Local(reader) => reader.fill_buf(),
            Buffered::Remote(reader, _) => reader.fill_buf(),
        }
    }

    fn consume(&mut self, count: usize) {
        match &mut self.buffered {
            Buffered::Local(reader) => reader.consume(count),
            Buffered::Remote(reader, _) => reader.consume(count),
        }
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
        match &mut self.buffered {
            Buffered::Local(reader) => {
                let by = i128::from(wanted) - i128::from(self.position);
                match i64::try_from(by) {
                    Ok(by) => reader.seek_relative(by)?,
                    Err(_) => drop(reader.seek(SeekFrom::Start(wanted))?),
                }
            }
            Buffered::Remote(..) if wanted == self.position => {}
            Buffered::Remote(reader, file) => {
                **reader = BufReader::new(file.reader(wanted.min(self.end)..self.end));
            }
        }
        self.position = wanted;
        Ok(wanted)
    }
}
