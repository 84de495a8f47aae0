//! The half of ftfy that undoes mojibake: text that was UTF-8 but was read in another encoding.
//!
//! Matches `fix_encoding` of rspeer/python-ftfy, `ftfy/__init__.py`, `ftfy/fixes.py`,
//! `ftfy/bad_codecs/utf8_variants.py` at release 6.3.1.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::{Captures, Regex};

use super::tables::{
    CONTINUATION, CONTINUATION_STRICT, FIRST_OF_2, FIRST_OF_3, FIRST_OF_4, TABLES,
};

/// How often to repeat the steps on a text of so many bytes. ftfy repeats until nothing changes,
/// which takes hours on a long text made for it; this port stops after processing about 64 MiB.
pub(super) fn maximum_rounds(length: usize) -> usize {
    ((64 << 20) / (length + 1)).max(64)
}

/// UTF-8 sequences in which byte A0 has become a space (`ftfy/chardata.py`, `ALTERED_UTF8_RE`).
const ALTERED_UTF8: &str = r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9][ ]|[\xe2\xe3][ ][\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf][ ]|[\xf0][ ][\x80-\xbf][\x80-\xbf]|[\xf0][\x80-\xbf][ ][\x80-\xbf]|[\xf0][\x80-\xbf][\x80-\xbf][ ]";

/// UTF-8 sequences in which bytes are lost, each shown as 1A (`LOSSY_UTF8_RE`).
const LOSSY_UTF8: &str = r"(?-u)[\xc2-\xdf][\x1a]|[\xc2-\xc3][?]|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a";

#[expect(clippy::expect_used, reason = "a constant pattern, compiled by the tests")]
static ALTERED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(ALTERED_UTF8).expect("a constant pattern"));
#[expect(clippy::expect_used, reason = "a constant pattern, compiled by the tests")]
static LOSSY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(LOSSY_UTF8).expect("a constant pattern"));

/// Undoes mojibake, step by step, until nothing changes.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut current = Cow::Borrowed(text);
    for _ in 0..maximum_rounds(text.len()) {
        match fix_one_step(&current) {
            Some(fixed) if fixed != current => current = Cow::Owned(fixed),
            _ => break,
        }
    }
    current
}

/// Whether the text holds sequences that hardly occur outside mojibake.
fn is_bad(text: &str) -> bool {
    !text.is_ascii() && TABLES.badness.is_match(text)
}

/// One step: the text with one layer of mojibake removed, or `None` if it stays as it is.
fn fix_one_step(text: &str) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    let mut latin_1 = None;
    for encoding in &TABLES.encodings {
        let Some(mut bytes) = encoding.encode(text) else { continue };
        if encoding.latin_1 {
            latin_1 = Some(bytes.clone());
        }
        // macroman has its en dash where a space may well follow
        if !encoding.macroman && ALTERED.is_match(&bytes) {
            bytes = restore_byte_a0(&bytes);
        }
        if encoding.sloppy {
            bytes = LOSSY.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        if let Some(decoded) = decode_utf8_or_variant(bytes) {
            return Some(decoded);
        }
    }
    let fixed = decode_inconsistent_utf8(text);
    if fixed != text {
        return Some(fixed);
    }
    if let Some(bytes) = latin_1
        && !bytes.iter().any(|&byte| TABLES.is_undefined_in_windows_1252(byte))
    {
        // byte 1A is an ordinary control character in the strict encoding
        let fixed: String = bytes
            .iter()
            .map(|&byte| if byte == 0x1A { '\u{1a}' } else { TABLES.windows_1252().decode(byte) })
            .collect();
        if fixed != text {
            return Some(fixed);
        }
    }
    match fix_c1_controls(text) {
        Cow::Owned(fixed) => Some(fixed),
        Cow::Borrowed(_) => None,
    }
}

/// C1 control characters, read as Windows-1252 instead: what browsers do.
pub(super) fn fix_c1_controls(text: &str) -> Cow<'_, str> {
    let is_c1 = |character: char| matches!(character, '\u{80}'..='\u{9f}');
    if text.is_ascii() || !text.contains(is_c1) {
        return Cow::Borrowed(text);
    }
    let fixed = text.chars().map(|character| match u8::try_from(character) {
        Ok(byte) if is_c1(character) => TABLES.windows_1252().decode(byte),
        _ => character,
    });
    Cow::Owned(fixed.collect())
}

/// Restores byte A0 for a space inside what would otherwise be UTF-8. "Ã " as a separate word is
/// "à" before a space, except in the Portuguese contractions that begin with "à".
fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    const CONTRACTIONS: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut restored = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        restored.push(byte);
        rest = tail;
        if byte == 0xC3
            && let Some(after) = tail.strip_prefix(b" ")
            && !CONTRACTIONS.iter().any(|contraction| after.starts_with(contraction))
        {
            restored.extend_from_slice(b"\xa0 ");
            rest = after;
        }
    }
    ALTERED
        .replace_all(&restored, |found: &Captures<'_>| {
            let sequence = &found[0];
            sequence.iter().map(|&b| if b == b' ' { 0xA0 } else { b }).collect::<Vec<u8>>()
        })
        .into_owned()
}

/// The bytes as UTF-8, or, with a byte that only the variants use, as CESU-8 and Java's UTF-8.
fn decode_utf8_or_variant(bytes: Vec<u8>) -> Option<String> {
    if bytes.contains(&0xED) || bytes.contains(&0xC0) {
        decode_variant(&bytes)
    } else {
        String::from_utf8(bytes).ok()
    }
}

/// UTF-8 with surrogate pairs as two three-byte sequences and U+0000 as C0 80.
///
/// The original finds these with regular expressions whose `$` also matches before a newline that
/// ends the bytes; the two cases in which that shows are kept.
fn decode_variant(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut rest = bytes;
    while let Some(position) = find_special(rest) {
        text.push_str(std::str::from_utf8(&rest[..position]).ok()?);
        rest = &rest[position..];
        match *rest {
            [0xC0, _, ref tail @ ..] => {
                text.push('\0');
                rest = tail;
            }
            [
                0xED,
                second @ 0xA0..=0xAF,
                third @ 0x80..=0xBF,
                0xED,
                fifth @ 0xB0..=0xBF,
                sixth,
                ref tail @ ..,
            ] if matches!(sixth, 0x80..=0xBF) || (sixth == b'\n' && tail.is_empty()) => {
                let bits = (u32::from(second & 0x0F) << 16)
                    + (u32::from(third & 0x3F) << 10)
                    + (u32::from(fifth & 0x0F) << 6)
                    + u32::from(sixth & 0x3F);
                text.push(char::from_u32(bits + 0x10000)?);
                rest = tail;
            }
            _ => return None, // a lone surrogate or a truncated sequence
        }
    }
    text.push_str(std::str::from_utf8(rest).ok()?);
    Some(text)
}

/// Where the next sequence begins that is not plain UTF-8.
fn find_special(bytes: &[u8]) -> Option<usize> {
    let ends = |rest: &[u8]| rest.is_empty() || rest == b"\n";
    (0..bytes.len()).find(|&position| match &bytes[position..] {
        [0xC0, rest @ ..] => rest.first() == Some(&0x80) || ends(rest),
        [0xED, rest @ ..] => match rest {
            [0xA0..=0xBF, rest @ ..] => matches!(rest.first(), Some(0x80..=0xBF)) || ends(rest),
            _ => ends(rest),
        },
        _ => false,
    })
}

/// Fixes, each by itself, the sequences that look like UTF-8 mojibake inside other text
/// (`UTF8_DETECTOR_RE`: runs of such sequences, not after a character that may belong to one).
fn decode_inconsistent_utf8(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    let mut previous_is_strict = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if previous_is_strict { 0 } else { mojibake_run(rest) };
        let (run, tail) = rest.split_at(if length == 0 { first.len_utf8() } else { length });
        if length > 0 && run.len() < text.len() && is_bad(run) {
            fixed.push_str(&fix_encoding(run));
        } else {
            fixed.push_str(run);
        }
        let last = run.chars().next_back().unwrap_or(first);
        previous_is_strict = TABLES.clue(last) & CONTINUATION_STRICT != 0;
        rest = tail;
    }
    fixed
}

/// Length in bytes of the run of UTF-8 look-alikes at the start of `text`; 0 without one.
fn mojibake_run(text: &str) -> usize {
    let mut length = 0;
    loop {
        let mut characters = text[length..].chars();
        let Some(first) = characters.next() else { return length };
        let clue = TABLES.clue(first);
        let continuations = match () {
            () if clue & FIRST_OF_2 != 0 => 1,
            () if clue & FIRST_OF_3 != 0 => 2,
            () if clue & FIRST_OF_4 != 0 => 3,
            () => return length,
        };
        let mut sequence = first.len_utf8();
        for _ in 0..continuations {
            match characters.next() {
                Some(next) if TABLES.clue(next) & CONTINUATION != 0 => sequence += next.len_utf8(),
                _ => return length,
            }
        }
        length += sequence;
    }
}
