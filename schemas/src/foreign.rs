//! Names what a file is that is not Parquet ([`Kind`]), with a hint that helps.

use runkit::files::Kind;
use runkit::text::quoted;

/// How many bytes are examined.
pub(crate) const LOOKED_AT: usize = 512;
/// The beginning of Parquet in base64.
const ENCODED_MARK: &str = "UEFSM";

/// Names what a file is by its first bytes, its length and its last four bytes, and quotes the
/// beginning of text.
pub(crate) fn describe(head: &[u8], length: u64, tail: [u8; 4]) -> String {
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let (mut name, mut hint) = match Kind::of_bytes(head, length, tail) {
        Kind::Binary => return "other data (no mark PAR1 at both ends)".to_owned(),
        Kind::Text if text.starts_with(ENCODED_MARK) => {
            (Kind::Base64.to_string(), Kind::Base64.hint())
        }
        Kind::Text => match ['\t', ',', ';', '|'].into_iter().find(|&mark| separates(text, mark)) {
            Some('\t') => ("TSV".to_owned(), None),
            Some(_) => ("CSV".to_owned(), None),
            None => (Kind::Text.to_string(), Some("download the file again, or name another")),
        },
        kind => (kind.to_string(), kind.hint()),
    };
    if ["CSV", "TSV"].contains(&name.as_str()) {
        hint = Some(
            "write it as Parquet, in DuckDB COPY (FROM read_csv('FILE')) TO 'NEW.parquet' (FORMAT \
             parquet)",
        );
    }
    let kind = Kind::of_bytes(head, length, tail);
    if kind == Kind::Json {
        hint = Some(
            "the answer of a server: download the file again; data: in DuckDB COPY (FROM \
             read_json('FILE')) TO 'NEW.parquet' (FORMAT parquet)",
        );
    }
    if matches!(kind, Kind::Text | Kind::Json | Kind::Html | Kind::Xml)
        && let Some(line) = text.lines().next()
    {
        name += &format!(" that begins with {}", quoted(line));
    }
    match hint {
        Some(hint) => format!("{name}; hint: {hint}"),
        None => name,
    }
}

/// Whether the first two lines hold a character equally often, at least once.
fn separates(text: &str, mark: char) -> bool {
    let mut counts = text.lines().map(|line| line.matches(mark).count());
    match (counts.next(), counts.next()) {
        (Some(first), Some(second)) => first > 0 && first == second,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn what_it_is_in_a_word() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n";
        let encoded =
            "TG9yZW0gaXBzdW0gZG9sb3Igc2l0IGFtZXQsIGNvbnNlY3RldHVyIGFkaXBpc2NpbmcgZWxpdA==";
        for (head, expected) in [
            (pointer.as_bytes(), "a git-lfs pointer"),
            (b"\xef\xbb\xbf<!DOCTYPE html>\n<title>", "an HTML page"),
            (b"{\"error\":\"Repository not found\"}", "JSON text that begins with"),
            (b"caption,jpg_0\na,b\n", "CSV that begins with \"caption,jpg_0\"; hint: write it as"),
            (b"Prompt\tCategory\na\tb\n", "TSV"),
            (b"UEFSMRUEFRAVFEwVAhUEAAASAAAA", "base64 text"),
            (encoded.as_bytes(), "base64 text"),
            (b"Entry not found", "plain text that begins with \"Entry not found\""),
            (b"Dear reader, this\nis no table.\n", "plain text"),
            (b"ARROW1\0\0", "Feather"),
            (b"PK\x03\x04..", "a zip archive"),
            (b"\x1f\x8b\x08", "a gzip file; hint: unpack it first"),
            (&[0; 40], "zero bytes"),
            (&[1, 2, 3, 0xfe], "other data"),
        ] {
            let found = describe(head, head.len() as u64, [0; 4]);
            assert!(found.contains(expected), "{expected}: {found}");
        }
        let long = format!("{{\"error\": \"{}\"}}", "x".repeat(400));
        let found = describe(long.as_bytes(), 400, [0; 4]);
        assert!(found.chars().count() < 500, "{found}");
    }
}
