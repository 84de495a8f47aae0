//! Names bytes that no decoder knows: another image format, or text that replaced a file after a
//! failed download or conversion.

use super::DecodeError;

/// The error for bytes of no supported format.
pub(super) fn unknown(bytes: &[u8]) -> DecodeError {
    if let Some(name) = format(bytes) {
        return DecodeError::UnknownFormat { found: name.to_owned() };
    }
    if let Some((kind, hint)) = text(bytes) {
        let found = format!("{kind}: {:?}", beginning(bytes));
        return DecodeError::Text { found, hint };
    }
    let shown: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    DecodeError::UnknownFormat { found: format!("bytes {}", shown.join(" ")) }
}

/// The name of a format that is not decoded.
fn format(bytes: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 8] = [
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"%PDF", "PDF"),
        (b"\x1f\x8b", "gzip"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
    ];
    if let Some((_, name)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(name);
    }
    (bytes.get(4..8) == Some(b"ftyp")).then_some("AVIF or HEIF")
}

/// How many bytes are examined to recognise text.
const EXAMINED: usize = 512;
/// Characters of the text that are shown.
const SHOWN: usize = 60;

const FETCH: &str = "\nhint: fetch the data itself, for example with `git lfs pull`";
const DOWNLOAD: &str = "\nhint: it looks like the answer of a server; download the image again";
const DECODE: &str = "\nhint: the column should hold the image's bytes, not their text";

/// What kind of text the bytes are, with a hint; `None` if they are not text.
fn text(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let head = &bytes[..bytes.len().min(EXAMINED)];
    // The end of the examined bytes may split a character.
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.valid_up_to() + 4 > head.len() && head.len() == EXAMINED => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return None,
    };
    let is_text = |letter: char| !letter.is_control() || letter.is_whitespace();
    if valid.trim().is_empty() || !valid.chars().all(is_text) {
        return None;
    }
    let start = valid.trim_start();
    let lower = start.to_ascii_lowercase();
    let base64 = |letter: char| letter.is_ascii_alphanumeric() || "+/=-_\r\n".contains(letter);
    Some(
        if start.starts_with("version https://git-lfs")
            || start.starts_with("version https://hawser")
        {
            ("a pointer file of git-lfs", FETCH)
        } else if lower.starts_with("<svg")
            || (lower.starts_with("<?xml") && lower.contains("<svg"))
        {
            ("an SVG image", "\nhint: convert the image to JPEG, PNG or WebP")
        } else if lower.starts_with("<!doctype html")
            || lower.starts_with("<html")
            || lower.contains("<html")
        {
            ("an HTML page", DOWNLOAD)
        } else if start.starts_with('<') {
            ("text (markup)", DOWNLOAD)
        } else if start.starts_with(['{', '[']) {
            ("JSON", DOWNLOAD)
        } else if lower.starts_with("data:") {
            ("a data URL", DECODE)
        } else if ["http://", "https://", "s3://", "gs://", "file://"]
            .iter()
            .any(|scheme| lower.starts_with(scheme))
        {
            ("an address", DECODE)
        } else if start.len() >= 24 && start.chars().all(base64) {
            ("base64 text", DECODE)
        } else {
            ("text", DOWNLOAD)
        },
    )
}

fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXAMINED)]);
    let text = text.trim_start_matches('\u{feff}').trim();
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_an_images_place_is_named_as_what_it_is() {
        let base64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ".repeat(30);
        for (bytes, name) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"[..],
                "a pointer file of git-lfs",
            ),
            (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
            (b"\xef\xbb\xbf  <HTML lang=en>", "an HTML page"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "text (markup)"),
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "an SVG image"),
            (b"{\"error\": \"Entry not found\"}", "JSON"),
            (b"[1, 2]", "JSON"),
            (base64.as_bytes(), "base64 text"),
            (b"data:image/png;base64,iVBORw0KGgo=", "a data URL"),
            (b"https://example.org/a.png", "an address"),
            (b"Not Found", "text"),
            ("Fehler: größer".as_bytes(), "text"),
        ] {
            let error = unknown(bytes).to_string();
            assert!(
                error.starts_with(&format!("image data expected, found {name}: \"")),
                "{error}"
            );
            assert!(error.contains("\nhint: "), "{error}");
            assert!(error.chars().count() < 250, "{error}");
        }
        for bytes in [&b"\0\0\0\0"[..], b"GIF89a..", b"BM\x01\x02", b"\xff\xd8 cut", b"   "] {
            assert!(matches!(unknown(bytes), DecodeError::UnknownFormat { .. }));
        }
    }
}
