//! Reads members of a zip that is not trusted: within a limit, whatever the archive claims.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::source::{File, Reader};

/// An opened zip: its names are in memory, its members are not.
pub(super) struct Zip {
    name: String,
    archive: Mutex<ZipArchive<Reader>>,
}

impl fmt::Debug for Zip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Zip").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Zip {
    /// Reads the list of members.
    pub(super) fn open(name: &str, file: File) -> io::Result<Self> {
        let archive = ZipArchive::new(file.reader(0)?).map_err(|error| damaged(name, &error))?;
        Ok(Self { name: name.to_owned(), archive: Mutex::new(archive) })
    }

    /// A member, if there is one of that name.
    ///
    /// # Errors
    /// `FileTooLarge` if it has more than `limit` bytes, `InvalidData` if it is damaged.
    pub(super) fn read(&self, member: &str, limit: u64) -> io::Result<Option<Bytes>> {
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = archive.index_for_name(member) else { return Ok(None) };
        // Raw, and inflated here: the sizes that the archive claims bound nothing.
        let mut entry = archive.by_index_raw(index).map_err(|error| damaged(&self.name, &error))?;
        let (checksum, claimed) = (entry.crc32(), entry.size());
        let too_large = || {
            let found = format!("a member of {} with more than {limit} bytes", self.name);
            io::Error::new(io::ErrorKind::FileTooLarge, found)
        };
        if entry.encrypted() {
            return Err(damaged(&self.name, &"its members are encrypted"));
        }
        let mut bytes = Vec::new();
        match entry.compression() {
            CompressionMethod::Stored => {
                Read::take(&mut entry, limit + 1).read_to_end(&mut bytes)?;
            }
            CompressionMethod::DEFLATE => {
                Read::take(DeflateDecoder::new(&mut entry), limit + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|error| damaged(&self.name, &error))?;
            }
            other => {
                let found = format!("compression {other}; hint: unpack it");
                return Err(damaged(&self.name, &found));
            }
        }
        if bytes.len() as u64 > limit {
            return Err(too_large());
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        if bytes.len() as u64 != claimed || crc.sum() != checksum {
            return Err(damaged(&self.name, &format!("the checksum of {member:?} is wrong")));
        }
        Ok(Some(bytes.into()))
    }
}

fn damaged(name: &str, detail: &impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name}: not a readable zip: {detail}"))
}
