//! `fix_text` of ftfy 6.3.1 with its default settings, which open_clip's tokenizer runs first.
//!
//! Matches rspeer/python-ftfy at release 6.3.1 (`ftfy/__init__.py`, `ftfy/fixes.py`,
//! `ftfy/chardata.py`, `ftfy/badness.py`). The steps and their order are the original's, because
//! later steps see what earlier ones left. Surrogates cannot occur in a `&str`, so that step is
//! absent.

mod encoding;
mod tables;

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use self::encoding::{fix_c1_controls, fix_encoding, maximum_rounds};
use self::tables::TABLES;
use super::html;

/// Longest piece fixed at once, in characters (`max_decode_length`).
const MAXIMUM_SEGMENT: usize = 1_000_000;

#[expect(clippy::expect_used, reason = "a constant pattern, compiled by the tests")]
static HTML_ENTITY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("a constant pattern"));
#[expect(clippy::expect_used, reason = "a constant pattern, compiled by the tests")]
static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[((?:\d|;)*)([a-zA-Z])").expect("a constant pattern"));

/// Repairs mojibake and glitches of a text, line by line.
pub(super) fn fix_text(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    // entities stay from the first line on that holds a literal "<": it may be HTML
    let mut unescape = true;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(MAXIMUM_SEGMENT).map_or(rest.len(), |(at, _)| at);
            let (segment, tail) = rest.split_at(end);
            unescape = unescape && !segment.contains('<');
            fixed.push_str(&fix_segment(segment, unescape));
            rest = tail;
        }
    }
    fixed
}

fn fix_segment(segment: &str, unescape: bool) -> Cow<'_, str> {
    let mut current = Cow::Borrowed(segment);
    for _ in 0..maximum_rounds(segment.len()) {
        let next = fix_once(&current, unescape);
        if next == current {
            break;
        }
        current = Cow::Owned(next.into_owned());
    }
    current
}

/// Runs all steps once. Borrowed if no step changed anything.
fn fix_once(text: &str, unescape: bool) -> Cow<'_, str> {
    let mut current = Cow::Borrowed(text);
    if unescape {
        current = then(current, unescape_html);
    }
    for step in [
        fix_encoding,
        fix_c1_controls,
        fix_latin_ligatures,
        fix_character_width,
        uncurl_quotes,
        fix_line_breaks,
        remove_terminal_escapes,
        remove_control_characters,
        compose,
    ] {
        current = then(current, step);
    }
    current
}

/// Applies a step, without copying a text that it does not change.
fn then<'a>(text: Cow<'a, str>, step: impl Fn(&str) -> Cow<'_, str>) -> Cow<'a, str> {
    match text {
        Cow::Borrowed(text) => step(text),
        Cow::Owned(text) => Cow::Owned(step(&text).into_owned()),
    }
}

/// Decodes the unambiguous entities, those with a semicolon, and upper-cased ones such as
/// `&EACUTE;`.
fn unescape_html(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    HTML_ENTITY.replace_all(text, |found: &Captures<'_>| {
        let entity = &found[0];
        let name = entity.trim_start_matches('&');
        if let Some(value) = html::named(name) {
            return value.to_owned();
        }
        if let Some(value) = TABLES.upper_case_entities.get(name) {
            return value.clone();
        }
        let unescaped = if name.starts_with('#') { html::unescape(entity) } else { entity.into() };
        // a semicolon left over says that only a part was decoded
        if unescaped.contains(';') { entity.to_owned() } else { unescaped.into_owned() }
    })
}

fn fix_latin_ligatures(text: &str) -> Cow<'_, str> {
    replace_characters(text, |character| TABLES.ligatures.get(&character).map(String::as_str))
}

fn fix_character_width(text: &str) -> Cow<'_, str> {
    replace_characters(text, |character| TABLES.widths.get(&character).map(String::as_str))
}

fn uncurl_quotes(text: &str) -> Cow<'_, str> {
    replace_characters(text, |character| match character {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some("'"),
        '\u{201c}'..='\u{201f}' => Some("\""),
        _ => None,
    })
}

/// Replaces characters above U+007F.
fn replace_characters<'a>(
    text: &'a str,
    replacement: impl Fn(char) -> Option<&'static str>,
) -> Cow<'a, str> {
    let replacement =
        |character: char| (!character.is_ascii()).then(|| replacement(character)).flatten();
    let Some(first) = text.find(|character| replacement(character).is_some()) else {
        return Cow::Borrowed(text);
    };
    let (clean, rest) = text.split_at(first);
    let mut replaced = String::with_capacity(text.len());
    replaced.push_str(clean);
    for character in rest.chars() {
        match replacement(character) {
            Some(other) => replaced.push_str(other),
            None => replaced.push(character),
        }
    }
    Cow::Owned(replaced)
}

fn fix_line_breaks(text: &str) -> Cow<'_, str> {
    const BREAKS: [char; 4] = ['\r', '\u{2028}', '\u{2029}', '\u{85}'];
    if !text.contains(BREAKS) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace(BREAKS, "\n"))
}

/// Removes the escape sequences that colour text in terminals.
fn remove_terminal_escapes(text: &str) -> Cow<'_, str> {
    if text.contains('\u{1b}') {
        TERMINAL_ESCAPE.replace_all(text, "")
    } else {
        Cow::Borrowed(text)
    }
}

/// Removes control characters without a displayed effect; white space and joiners stay.
fn remove_control_characters(text: &str) -> Cow<'_, str> {
    let is_control = |character: char| {
        matches!(character,
            '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
            | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
    };
    if text.contains(is_control) {
        Cow::Owned(text.replace(is_control, ""))
    } else {
        Cow::Borrowed(text)
    }
}

/// Unicode normalization form C.
fn compose(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}
