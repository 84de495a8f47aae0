//! What a text is that lies where weights or a configuration should.

/// Bytes that are looked at.
const LOOKED_AT: usize = 512;
/// Letters of it that a message shows.
const SHOWN: usize = 80;
/// Base64 without a space or a line break is this long at least.
const BASE64: usize = 64;

/// What a text is, and what to do about it; none where the bytes are no text.
pub(crate) fn name_text(bytes: &[u8]) -> Option<(String, &'static str)> {
    let again = "download the file again";
    if bytes.starts_with(b"version https://git-lfs") {
        let found = "a Git LFS pointer instead of the file itself".to_owned();
        return Some((found, "run git lfs pull in the folder it came from"));
    }
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A letter may be cut at the end.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return None,
    };
    let text = text.trim_start_matches('\u{feff}').trim();
    let control = |letter: char| letter.is_control() && !letter.is_whitespace();
    if text.is_empty() || text.contains(control) {
        return None;
    }
    let base64 = |letter: char| letter.is_ascii_alphanumeric() || "+/=-_".contains(letter);
    let shown: String = text.chars().take(SHOWN).collect();
    let shown = shown.escape_debug();
    Some(if text.starts_with('<') {
        let hint = "download the file again; a model behind a login needs a token";
        ("a web page".to_owned(), hint)
    } else if text.starts_with(['{', '[']) {
        (format!("JSON that begins with \"{shown}\""), again)
    } else if text.len() >= BASE64 && text.chars().all(base64) {
        ("base64 text".to_owned(), "decode it first, or download the file again")
    } else {
        (format!("text that begins with \"{shown}\""), again)
    })
}

#[cfg(test)]
mod tests {
    use super::name_text;

    #[test]
    fn texts_are_named_and_bytes_are_not() {
        for (bytes, says) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0"[..], "Git LFS pointer"),
            (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "web page"),
            (b"<?xml version=\"1.0\"?><Error>", "web page"),
            (b"{\"error\": \"Repository not found\"}", "JSON that begins with"),
            (b"Entry not found", "text that begins with \"Entry not found\""),
            (&[b'Q'; 200], "base64"),
            ("è".repeat(300).as_bytes(), "text that begins"),
        ] {
            let (found, _) = name_text(bytes).unwrap();
            assert!(found.contains(says) && found.len() < 250, "{found}");
        }
        for bytes in [&b""[..], b"  \n", b"\x80\x02\x8a", b"a\0b", b"\xff\xfe{\0}\0"] {
            assert_eq!(name_text(bytes), None);
        }
    }
}
