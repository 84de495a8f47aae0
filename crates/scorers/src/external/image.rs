//! Images as external scorers get them: in their original encoding.

use std::path::PathBuf;

use bytes::Bytes;

/// An image that is sent as it is.
#[derive(Debug, Clone)]
pub struct EncodedImage {
    bytes: Bytes,
    digest: blake3::Hash,
    path: Option<PathBuf>,
}

impl EncodedImage {
    /// From the bytes of a file.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        let digest = blake3::hash(&bytes);
        Self { bytes, digest, path: None }
    }

    /// With the path of the file that holds the bytes, for scorers that read files.
    #[must_use]
    pub fn at(mut self, path: PathBuf) -> Self {
        self.path = Some(path);
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn digest(&self) -> blake3::Hash {
        self.digest
    }

    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// The media type and the usual extension, by the first bytes.
    pub(crate) fn format(&self) -> (&'static str, &'static str) {
        match &self.bytes[..] {
            [0x89, b'P', b'N', b'G', ..] => ("image/png", "png"),
            [0xFF, 0xD8, 0xFF, ..] => ("image/jpeg", "jpg"),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
                ("image/webp", "webp")
            }
            [b'G', b'I', b'F', b'8', ..] => ("image/gif", "gif"),
            _ => ("application/octet-stream", "bin"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_format() {
        let of = |bytes: &'static [u8]| EncodedImage::new(Bytes::from_static(bytes)).format().1;
        assert_eq!(of(b"\x89PNG\r\n\x1a\n"), "png");
        assert_eq!(of(b"\xff\xd8\xff\xe0"), "jpg");
        assert_eq!(of(b"RIFF\0\0\0\0WEBPVP8 "), "webp");
        assert_eq!(of(b"GIF89a"), "gif");
        assert_eq!(of(b""), "bin");
    }
}
