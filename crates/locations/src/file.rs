//! A file that is read by the range, here or there.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::LocationError;
use crate::ahead::{Lanes, PIECE_BYTES};
use crate::location::Location;
use crate::remote::Object;
use crate::retry::wait;

/// How many bytes a [`Reader`] asks a local file for at a time.
const LOCAL_BYTES: usize = 1 << 20;

/// An open file. Clones share it; it has no position.
#[derive(Clone, Debug)]
pub struct File {
    kind: Kind,
    length: u64,
}

#[derive(Clone, Debug)]
enum Kind {
    Local(PathBuf, Arc<fs::File>),
    Remote(Arc<Object>),
    /// With ranges that were named beforehand.
    Ahead(Arc<Object>, Arc<Lanes>),
}

impl File {
    /// Opens a file. Of a remote one only the size and the version are asked for, and not even
    /// these if a listing told them.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be reached.
    pub fn open(location: &Location) -> Result<Self, LocationError> {
        match location {
            Location::Local(path) => {
                let fail = |error| LocationError::local(path, &error);
                let file = fs::File::open(path).map_err(fail)?;
                if !file.metadata().map_err(fail)?.is_file() {
                    let kind = io::ErrorKind::IsADirectory;
                    return Err(fail(io::Error::new(kind, "a folder or a device, not a file")));
                }
                Self::from_local(path, file).map_err(fail)
            }
            Location::Remote(remote) => {
                let task = remote.clone();
                let object = wait(&remote.access, async move { task.open().await })?;
                let length = object.known.size;
                Ok(Self { kind: Kind::Remote(Arc::new(object)), length })
            }
        }
    }

    /// A file of this machine that is open already.
    ///
    /// # Errors
    /// When its length cannot be told.
    pub fn from_local(path: &Path, file: fs::File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { kind: Kind::Local(path.to_owned(), Arc::new(file)), length })
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What tells one state of a remote file from another: the ETag, or the hub's checksum. Every
    /// read is of this version or fails with [`LocationError::Changed`].
    pub fn version(&self) -> Option<&str> {
        self.object()?.known.version.as_deref()
    }

    /// Whether it lies elsewhere.
    pub fn is_remote(&self) -> bool {
        self.object().is_some()
    }

    /// Its path or address, for messages.
    pub fn path(&self) -> &Path {
        match &self.kind {
            Kind::Local(path, _) => path,
            Kind::Remote(object) | Kind::Ahead(object, _) => &object.remote.shown,
        }
    }

    fn object(&self) -> Option<&Arc<Object>> {
        match &self.kind {
            Kind::Local(..) => None,
            Kind::Remote(object) | Kind::Ahead(object, _) => Some(object),
        }
    }

    /// The same file for a reader of `lanes`: each a list of groups of ranges that are read in
    /// turns, the groups one after another. The next ranges of a remote file are then fetched in
    /// the background. A group of several ranges is held whole and should have a few megabytes.
    /// Other ranges can still be read.
    #[must_use]
    pub fn reading(&self, lanes: Vec<Vec<Vec<Range<u64>>>>) -> Self {
        match self.object() {
            None => self.clone(),
            Some(object) => {
                let ahead = Arc::new(Lanes::new(Arc::clone(object), lanes));
                ahead.begin();
                Self { kind: Kind::Ahead(Arc::clone(object), ahead), length: self.length }
            }
        }
    }

    /// Fills `into` with the bytes from `start` on.
    ///
    /// # Errors
    /// When the file ends before, has changed or cannot be reached. The error of a remote file is a
    /// [`LocationError`] inside ([`LocationError::behind`]).
    pub fn read_exact_at(&self, into: &mut [u8], start: u64) -> io::Result<()> {
        let end = start.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &self.kind {
            Kind::Local(_, file) => file.read_exact_at(into, start),
            Kind::Ahead(_, lanes) => Ok(lanes.read_exact_at(into, start)?),
            Kind::Remote(object) => {
                let lanes = Lanes::new(Arc::clone(object), Vec::new());
                Ok(lanes.read_exact_at(into, start)?)
            }
        }
    }

    /// The bytes of a range, at once.
    ///
    /// # Errors
    /// As for [`File::read_exact_at`].
    pub fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        let length = range.end.saturating_sub(range.start).min(self.length);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }

    /// Reads a range in order, from a remote file with the next pieces fetched in the background.
    pub fn reader(&self, range: Range<u64>) -> Reader {
        let range = range.start.min(self.length)..range.end.min(self.length);
        let file = self.reading(vec![vec![vec![range.clone()]]]);
        let step = if self.is_remote() { PIECE_BYTES as usize } else { LOCAL_BYTES };
        Reader { file, position: range.start, end: range.end, step, buffer: Vec::new(), used: 0 }
    }
}

/// Reads a range of a [`File`] in order.
#[derive(Debug)]
pub struct Reader {
    file: File,
    position: u64,
    end: u64,
    step: usize,
    buffer: Vec<u8>,
    used: usize,
}

impl Reader {
    /// The offset in the file of the next byte.
    pub fn position(&self) -> u64 {
        self.position - (self.buffer.len() - self.used) as u64
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            let left = self.end.saturating_sub(self.position);
            let length = usize::try_from(left).map_or(self.step, |left| left.min(self.step));
            self.buffer.clear();
            self.used = 0;
            let mut next = std::mem::take(&mut self.buffer);
            next.resize(length, 0);
            self.file.read_exact_at(&mut next, self.position)?;
            self.buffer = next;
            self.position += length as u64;
        }
        let count = into.len().min(self.buffer.len() - self.used);
        into[..count].copy_from_slice(&self.buffer[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }
}
