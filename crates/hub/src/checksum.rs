//! SHA-256 of files, the checksum the hub keeps of large files.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::HubError;

/// Bytes read at a time: large enough that system calls do not count.
const BLOCK: usize = 1 << 20;

/// The SHA-256 of a file as 64 hexadecimal digits, read block by block.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String, HubError> {
    let path = path.as_ref();
    let mut file = File::open(path).map_err(HubError::read(path))?;
    let mut digest = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        let count = match file.read(&mut block) {
            Ok(0) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.map_err(HubError::read(path))?,
        };
        digest.update(block.get(..count).unwrap_or_default());
    }
    let mut text = String::with_capacity(64);
    for byte in digest.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, sha256_file};

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
}
