//! What a file is that lies where weights or a configuration should.

use runkit::files::Kind;
use runkit::text::quoted;

/// Bytes that are looked at.
const LOOKED_AT: usize = 1 << 12;
/// Letters of a text that a message shows.
const SHOWN: usize = 80;

/// What a file is by its bytes, and what to do about it.
pub(super) fn name(bytes: &[u8]) -> (String, &'static str) {
    describe(kind_of(bytes), bytes)
}

/// The same for a text or what a broken download leaves; none where the bytes are of another kind.
pub(crate) fn name_text(bytes: &[u8]) -> Option<(String, &'static str)> {
    let kind = kind_of(bytes);
    let is_text = matches!(
        kind,
        Kind::LfsPointer
            | Kind::Html
            | Kind::Xml
            | Kind::Json
            | Kind::Base64
            | Kind::Text
            | Kind::Utf16
            | Kind::Zeros
    );
    is_text.then(|| describe(kind, bytes))
}

fn kind_of(bytes: &[u8]) -> Kind {
    let tail = bytes.last_chunk::<4>().copied().unwrap_or_default();
    Kind::of_bytes(&bytes[..bytes.len().min(LOOKED_AT)], bytes.len() as u64, tail)
}

fn describe(kind: Kind, bytes: &[u8]) -> (String, &'static str) {
    let hint = kind.hint().unwrap_or("download the file again");
    let found = match kind {
        // The reason often stands there: what a server said instead of sending the file.
        Kind::Json | Kind::Text | Kind::Xml => {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LOOKED_AT)]);
            let shown: String = text.trim().chars().take(SHOWN).collect();
            format!("{kind} that begins with {}", quoted(&shown))
        }
        _ => kind.to_string(),
    };
    (found, hint)
}

#[cfg(test)]
mod tests {
    use super::{name, name_text};

    #[test]
    fn texts_show_how_they_begin() {
        let (found, _) = name_text(b"Entry not found").unwrap();
        assert_eq!(found, "plain text that begins with \"Entry not found\"");
        let (found, _) = name(&b"<?xml version=\"1.0\"?><Error><Code>AccessDenied".repeat(50));
        assert!(found.starts_with("XML that begins with") && found.len() < 150, "{found}");
        let (found, hint) = name_text(b"version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(found.contains("git-lfs pointer") && hint.contains("git lfs pull"));
        assert_eq!(name_text(b"\x80\x02\x8a"), None);
    }
}
