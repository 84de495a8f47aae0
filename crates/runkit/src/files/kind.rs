//! What a file really is, by its first bytes: for the message about a file that is not what its
//! name says.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a file is looked at.
const HEAD_BYTES: u64 = 1 << 12;
/// Base64 text shorter than this may as well be a word.
const LEAST_BASE64: usize = 64;
/// The largest header of a safetensors file, as its library has it.
const MOST_SAFETENSORS_HEADER: u64 = 100_000_000;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Not a file but a folder.
    Folder,
    /// A device, pipe or socket.
    Special,
    /// No bytes at all.
    Empty,
    /// Zero bytes only, as a download or copy that was cut off leaves them.
    Zeros,
    /// The few lines that git-lfs leaves in place of a large file.
    LfsPointer,
    /// A web page, usually an error or a login in place of a download.
    Html,
    /// XML or SVG.
    Xml,
    /// Text that begins as a JSON object or list.
    Json,
    /// One run of base64 characters.
    Base64,
    /// Other text in UTF-8.
    Text,
    /// Text in UTF-16.
    Utf16,
    /// Parquet, whole by its last bytes.
    Parquet,
    /// The beginning of a Parquet file without its end.
    ParquetCut,
    /// Arrow's file format (Feather).
    Arrow,
    /// Safetensors.
    Safetensors,
    /// A zip archive; PyTorch's checkpoints are zip archives too.
    Zip,
    /// A pickle, as PyTorch wrote checkpoints before version 1.6.
    Pickle,
    /// GGUF weights of llama.cpp.
    Gguf,
    /// HDF5, as Keras writes weights.
    Hdf5,
    /// A NumPy array.
    Numpy,
    /// A tar archive.
    Tar,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by zstd.
    Zstd,
    /// Compressed by bzip2.
    Bzip2,
    /// Compressed by xz.
    Xz,
    /// A PNG image.
    Png,
    /// A JPEG image.
    Jpeg,
    /// A WebP image.
    Webp,
    /// A GIF image.
    Gif,
    /// An SQLite or DuckDB database.
    Database,
    /// A PDF document.
    Pdf,
    /// A program.
    Executable,
    /// Bytes of another kind.
    Binary,
}

impl Kind {
    /// What the file at `path` is. At most a few kilobytes of it are read; a symbolic link is
    /// followed.
    ///
    /// # Errors
    /// If the file does not exist or cannot be read.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let found = std::fs::metadata(path)?;
        if found.is_dir() {
            return Ok(Self::Folder);
        }
        if !found.is_file() {
            return Ok(Self::Special);
        }
        let mut file = std::fs::File::open(path)?;
        let mut head = Vec::new();
        file.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
        let mut tail = [0; 4];
        if found.len() >= 12 {
            file.seek(SeekFrom::End(-4))?;
            file.read_exact(&mut tail)?;
        }
        Ok(Self::of_bytes(&head, found.len(), tail))
    }

    /// As [`Kind::of`] for bytes at hand: the first ones, how many there are in all, and the last
    /// four.
    #[must_use]
    pub fn of_bytes(head: &[u8], length: u64, tail: [u8; 4]) -> Self {
        if length == 0 {
            return Self::Empty;
        }
        let begins = |magic: &[u8]| head.starts_with(magic);
        let at = |place: usize, magic: &[u8]| {
            head.get(place..).is_some_and(|bytes| bytes.starts_with(magic))
        };
        let magics: [(&[u8], Self); 20] = [
            (b"version https://git-lfs.github.com/spec/", Self::LfsPointer),
            (b"version https://hawser.github.com/spec/", Self::LfsPointer),
            (b"ARROW1", Self::Arrow),
            (b"PK\x03\x04", Self::Zip),
            (b"PK\x05\x06", Self::Zip),
            (b"\x1f\x8b", Self::Gzip),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"BZh", Self::Bzip2),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x89PNG\r\n\x1a\n", Self::Png),
            (b"\xff\xd8\xff", Self::Jpeg),
            (b"GIF8", Self::Gif),
            (b"GGUF", Self::Gguf),
            (b"\x89HDF\r\n\x1a\n", Self::Hdf5),
            (b"\x93NUMPY", Self::Numpy),
            (b"SQLite format 3\0", Self::Database),
            (b"%PDF-", Self::Pdf),
            (b"\x7fELF", Self::Executable),
            (b"\xff\xfe", Self::Utf16),
            (b"\xfe\xff", Self::Utf16),
        ];
        if begins(b"PAR1") || begins(b"PARE") {
            let whole = matches!(&tail, b"PAR1" | b"PARE");
            return if whole { Self::Parquet } else { Self::ParquetCut };
        }
        if begins(b"RIFF") && at(8, b"WEBP") {
            return Self::Webp;
        }
        if at(8, b"DUCK") {
            return Self::Database;
        }
        if let Some((_, kind)) = magics.iter().find(|(magic, _)| begins(magic)) {
            return *kind;
        }
        if at(257, b"ustar") {
            return Self::Tar;
        }
        if is_safetensors(head, length) {
            return Self::Safetensors;
        }
        if begins(&[0x80]) && head.get(1).is_some_and(|version| (2..=5).contains(version)) {
            return Self::Pickle;
        }
        if head.iter().all(|&byte| byte == 0) {
            return Self::Zeros;
        }
        of_text(head).unwrap_or(Self::Binary)
    }

    /// What to do about a file that should hold data and is this, if that is clear.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::LfsPointer => "run `git lfs pull` in its folder, or download the file itself",
            Self::Html => "download the file again: the server sent a page in its place",
            Self::Empty | Self::Zeros | Self::ParquetCut => "download or copy the file again",
            Self::Gzip | Self::Zstd | Self::Bzip2 | Self::Xz => "unpack it first",
            Self::Tar => "unpack the archive first",
            Self::Base64 => "decode it first, for instance with `base64 -d`",
            Self::Utf16 => "save it as UTF-8",
            _ => return None,
        })
    }
}

/// A phrase with its article: "a git-lfs pointer (the file itself was not downloaded)".
impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Folder => "a folder",
            Self::Special => "a device, pipe or socket",
            Self::Empty => "an empty file",
            Self::Zeros => "nothing but zero bytes (a download that was cut off?)",
            Self::LfsPointer => "a git-lfs pointer (the file itself was not downloaded)",
            Self::Html => "an HTML page (a failed download?)",
            Self::Xml => "XML",
            Self::Json => "JSON text",
            Self::Base64 => "base64 text",
            Self::Text => "plain text",
            Self::Utf16 => "text in UTF-16",
            Self::Parquet => "a Parquet file",
            Self::ParquetCut => "the beginning of a Parquet file, without its end",
            Self::Arrow => "an Arrow (Feather) file",
            Self::Safetensors => "a safetensors file",
            Self::Zip => "a zip archive",
            Self::Pickle => "a Python pickle",
            Self::Gguf => "a GGUF file",
            Self::Hdf5 => "an HDF5 file",
            Self::Numpy => "a NumPy array",
            Self::Tar => "a tar archive",
            Self::Gzip => "a gzip file",
            Self::Zstd => "a zstd file",
            Self::Bzip2 => "a bzip2 file",
            Self::Xz => "an xz file",
            Self::Png => "a PNG image",
            Self::Jpeg => "a JPEG image",
            Self::Webp => "a WebP image",
            Self::Gif => "a GIF image",
            Self::Database => "a database",
            Self::Pdf => "a PDF document",
            Self::Executable => "a program",
            Self::Binary => "a binary file of an unknown kind",
        })
    }
}

fn is_safetensors(head: &[u8], length: u64) -> bool {
    let Some((size, header)) = head.split_first_chunk::<8>() else { return false };
    let size = u64::from_le_bytes(*size);
    header.first() == Some(&b'{') && size <= MOST_SAFETENSORS_HEADER && size < length
}

fn of_text(head: &[u8]) -> Option<Kind> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The end of the head may cut a character in two.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|one| one.is_control() && !"\t\n\r\u{b}\u{c}\u{1b}".contains(one)) {
        return None;
    }
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let start: String = text.chars().take(15).collect::<String>().to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| start.starts_with(tag)) {
        return Some(Kind::Html);
    }
    if start.starts_with("<?xml") || start.starts_with("<svg") {
        return Some(if text.to_ascii_lowercase().contains("<html") {
            Kind::Html
        } else {
            Kind::Xml
        });
    }
    let next = text.get(1..).and_then(|rest| rest.trim_start().chars().next());
    let json = match text.chars().next() {
        Some('{') => matches!(next, Some('"' | '}') | None),
        Some('[') => {
            matches!(next, Some('"' | '{' | '[' | ']' | '-' | '0'..='9' | 't' | 'f' | 'n') | None)
        }
        _ => false,
    };
    if json {
        return Some(Kind::Json);
    }
    let base64 = |one: char| one.is_ascii_alphanumeric() || "+/=_-\r\n".contains(one);
    let line = text.lines().next().unwrap_or_default();
    if line.len() >= LEAST_BASE64 && text.chars().all(base64) {
        return Some(Kind::Base64);
    }
    Some(Kind::Text)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::Kind;

    fn kind(bytes: &[u8]) -> Kind {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        Kind::of(&path).unwrap()
    }

    #[test]
    fn text_in_place_of_data_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
        assert_eq!(kind(pointer), Kind::LfsPointer);
        assert_eq!(kind(b"\n  <!DOCTYPE html><html>Sign in</html>"), Kind::Html);
        assert_eq!(kind(b"<html lang=en>"), Kind::Html);
        assert_eq!(kind(b"<?xml version=\"1.0\"?><Error><Code>AccessDenied"), Kind::Xml);
        assert_eq!(kind(b"{\"error\": \"Invalid username or password.\"}"), Kind::Json);
        assert_eq!(kind(b"[\n  1, 2]"), Kind::Json);
        assert_eq!(kind("iVBORw0KGgoAAAANSUhEUgAA".repeat(30).as_bytes()), Kind::Base64);
        assert_eq!(kind(b"[clip]\nname = 1\n"), Kind::Text);
        assert_eq!(kind("a fox, 狐\n".repeat(2000).as_bytes()), Kind::Text);
        assert_eq!(kind(b"\xff\xfea\0b\0"), Kind::Utf16);
        assert_eq!(kind(b""), Kind::Empty);
        assert_eq!(kind(&[0; 300]), Kind::Zeros);
    }

    #[test]
    fn files_are_known_by_their_first_bytes() {
        assert_eq!(kind(b"PAR1 and much between PAR1"), Kind::Parquet);
        assert_eq!(kind(b"PAR1 and then nothing more"), Kind::ParquetCut);
        assert_eq!(kind(b"\x10\0\0\0\0\0\0\0{\"a\": 1}        0000"), Kind::Safetensors);
        assert_eq!(kind(b"\x80\x02\x8a\x0a"), Kind::Pickle);
        assert_eq!(kind(b"PK\x03\x04..."), Kind::Zip);
        assert_eq!(kind(b"\x1f\x8b\x08"), Kind::Gzip);
        assert_eq!(kind(b"\x89PNG\r\n\x1a\n.."), Kind::Png);
        assert_eq!(kind(b"\xff\xd8\xff\xe0"), Kind::Jpeg);
        assert_eq!(kind(b"RIFF\0\0\0\0WEBPVP8 "), Kind::Webp);
        assert_eq!(kind(b"\x01\x02\xff\xfe\0\0\x03"), Kind::Binary);
        assert_eq!(Kind::of(tempfile::tempdir().unwrap().path()).unwrap(), Kind::Folder);
        assert!(Kind::of("absent").is_err());
    }
}
