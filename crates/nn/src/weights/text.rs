//! Recognises a file that is not the expected weights or configuration.

use runkit::files::Kind;
use runkit::text::quoted;

/// How many bytes it reads.
const LOOKED_AT: usize = 1 << 12;
/// How many letters of a text a message shows.
const SHOWN: usize = 80;

/// Describes a file by its first bytes, with a hint.
pub(super) fn name(bytes: &[u8]) -> (String, &'static str) {
    describe(kind_of(bytes), bytes)
}

/// The same for text and the remains of a broken download; `None` for other bytes.
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
        // The text often has the reason: a server's message in place of the file.
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
