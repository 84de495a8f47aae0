//! Checksums of files: the hub states SHA-256 for large ones and git's SHA-1 for small ones.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use runkit::signals::StopFlag;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::HubError;

/// Bytes per read: large enough that system calls cost nothing.
const BLOCK: usize = 1 << 20;

/// The SHA-256 of a file as 64 hexadecimal digits, read block by block. A request to stop ends it
/// with an error.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String, HubError> {
    let mut digest = Sha256::new();
    read_blocks(path.as_ref(), &runkit::signals::flag_of_process(), |block| digest.update(block))?;
    Ok(hexadecimal(&digest.finalize()))
}

/// Passes a file to `take` block by block; checks for a request to stop before each block.
pub(crate) fn read_blocks(
    path: &Path,
    stop: &StopFlag,
    mut take: impl FnMut(&[u8]),
) -> Result<(), HubError> {
    let mut file = File::open(path).map_err(HubError::read(path))?;
    let mut block = vec![0; BLOCK];
    loop {
        stop.check()?;
        let count = match file.read(&mut block) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.map_err(HubError::read(path))?,
        };
        take(block.get(..count).unwrap_or_default());
    }
}

/// The checksum that a file's name in the cache stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// SHA-256 of the contents: files in large-file storage.
    Sha256,
    /// SHA-1 of git's blob, or of the contents alone, which some mirrors have as their tags.
    Sha1,
}

impl Expected {
    /// The kind of checksum that a tag is; `None` if it is another kind of name.
    pub(crate) fn of(tag: &str) -> Option<Self> {
        let is_hexadecimal = tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match tag.len() {
            64 if is_hexadecimal => Some(Self::Sha256),
            40 if is_hexadecimal => Some(Self::Sha1),
            _ => None,
        }
    }
}

/// Running checksums of a download. Git's needs the length first, so it is computed at the end.
#[derive(Clone, Default)]
pub(crate) struct Running {
    sha256: Sha256,
    sha1: Sha1,
}

impl Running {
    pub(crate) fn update(&mut self, bytes: &[u8], expected: Option<Expected>) {
        if expected == Some(Expected::Sha1) {
            self.sha1.update(bytes);
        } else {
            self.sha256.update(bytes);
        }
    }

    pub(crate) fn sha256(&self) -> String {
        hexadecimal(&self.sha256.clone().finalize())
    }

    pub(crate) fn sha1(&self) -> String {
        hexadecimal(&self.sha1.clone().finalize())
    }
}

/// Git's checksum of a file's contents: SHA-1 of `blob LENGTH`, a zero byte and the contents.
pub(crate) fn git_sha1_file(path: &Path, stop: &StopFlag) -> Result<String, HubError> {
    let length = std::fs::metadata(path).map_err(HubError::read(path))?.len();
    let mut digest = Sha1::new();
    digest.update(format!("blob {length}\0"));
    read_blocks(path, stop, |block| digest.update(block))?;
    Ok(hexadecimal(&digest.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Expected, git_sha1_file, sha256_file};
    use runkit::signals::StopFlag;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "fixtures")]
    fn known_digests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // FIPS 180-2, appendix B, and the digest of nothing.
        for (contents, expected) in [
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ] {
            std::fs::write(&path, contents).unwrap();
            assert_eq!(sha256_file(&path).unwrap(), expected);
        }
        // A million times "a" (FIPS 180-2, B.3) crosses no block; twice as many as a block does.
        std::fs::write(&path, vec![b'a'; 1_000_000]).unwrap();
        assert_eq!(
            sha256_file(&path).unwrap(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
        std::fs::write(&path, vec![b'a'; BLOCK + 1]).unwrap();
        let one_more = sha256_file(&path).unwrap();
        std::fs::write(&path, vec![b'a'; BLOCK]).unwrap();
        assert_ne!(sha256_file(&path).unwrap(), one_more);
        assert!(sha256_file(folder.path()).is_err());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "fixtures")]
    fn git_names_its_blobs_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // `printf 'hello\n' | git hash-object --stdin`, and the blob of nothing.
        for (contents, expected) in [
            ("hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
            ("", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        ] {
            std::fs::write(&path, contents).unwrap();
            assert_eq!(git_sha1_file(&path, &StopFlag::never()).unwrap(), expected);
            assert_eq!(Expected::of(expected), Some(Expected::Sha1));
        }
        assert_eq!(Expected::of("not a checksum"), None);
    }
}
