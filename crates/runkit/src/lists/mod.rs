//! Lists that people write or programs export: the bytes of a text file as UTF-8, and its lines.

mod quoting;

pub use quoting::Quoting;

/// The marks at the beginning of text in other encodings, the longer ones first.
const MARKS: [(&[u8], &str); 4] = [
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
];
/// What some editors put before UTF-8.
const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";

/// A file is text in another encoding than UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected UTF-8 text, found {0}; hint: save it as UTF-8, or convert it: iconv -f {0} -t UTF-8"
)]
pub struct OtherEncoding(pub &'static str);

/// The bytes without the mark that some editors put before UTF-8.
///
/// # Errors
/// Where the mark is that of UTF-16 or UTF-32.
pub fn without_mark(bytes: &[u8]) -> Result<&[u8], OtherEncoding> {
    match MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        Some((_, name)) => Err(OtherEncoding(name)),
        None => Ok(bytes.strip_prefix(UTF_8_MARK).unwrap_or(bytes)),
    }
}

/// The lines of a text without their ends: `\n`, `\r\n`, and in a text that has no `\n` also `\r`.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = if bytes.contains(&b'\n') { b'\n' } else { b'\r' };
    let bytes = bytes.strip_suffix(&[end]).unwrap_or(bytes);
    bytes.split(move |&byte| byte == end).map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::{OtherEncoding, lines, without_mark};

    #[test]
    fn marks_are_removed_or_named() {
        assert_eq!(without_mark(b"\xef\xbb\xbfa"), Ok(&b"a"[..]));
        assert_eq!(without_mark(b"a\xef\xbb\xbf"), Ok(&b"a\xef\xbb\xbf"[..]));
        assert_eq!(without_mark(b"\xff\xfea\0"), Err(OtherEncoding("UTF-16")));
        assert_eq!(without_mark(b"\xfe\xff\0a"), Err(OtherEncoding("UTF-16")));
        assert_eq!(without_mark(b"\xff\xfe\0\0"), Err(OtherEncoding("UTF-32")));
        let sentence = OtherEncoding("UTF-16").to_string();
        assert!(sentence.contains("found UTF-16; hint: ") && sentence.contains("iconv -f UTF-16"));
    }

    #[test]
    fn lines_end_as_on_every_system() {
        for text in ["a\nb\n\nc", "a\r\nb\r\n\r\nc\r\n", "a\rb\r\rc\r", "a\nb\n\nc\n"] {
            let found: Vec<&[u8]> = lines(text.as_bytes()).collect();
            assert_eq!(found, [&b"a"[..], b"b", b"", b"c"], "{text:?}");
        }
        assert_eq!(lines(b"").collect::<Vec<_>>(), [b""]);
        assert_eq!(lines(b"a\rb\nc").collect::<Vec<_>>(), [&b"a\rb"[..], b"c"]);
    }
}
