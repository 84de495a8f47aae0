//! `html.unescape` of CPython (`Lib/html/__init__.py`, 3.11), to the letter: entities without a
//! semicolon, longest matching names, Windows-1252 for the numbers 128 to 159, nothing for the
//! numbers that HTML forbids.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Longest name looked at, in characters, without the semicolon.
const LONGEST_NAME: usize = 32;

#[expect(
    clippy::expect_used,
    reason = "the asset is compiled in; every test of this module reads it"
)]
static NAMED: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    include_str!("../../assets/html5_entities.tsv")
        .lines()
        .map(|line| {
            let (name, points) = line.split_once('\t').expect("a tab in each line");
            let value = points.split(' ').map(|point| {
                let point = u32::from_str_radix(point, 16).expect("a hexadecimal code point");
                char::from_u32(point).expect("a character")
            });
            (name, value.collect())
        })
        .collect()
});

/// The characters of an entity, by its name without the `&`; the names of most end in `;`.
pub(super) fn named(name: &str) -> Option<&'static str> {
    NAMED.get(name).map(String::as_str)
}

/// Replaces character references, named and numeric, by their characters.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut unescaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('&') {
        unescaped.push_str(&rest[..position]);
        let after = &rest[position + 1..];
        let used = match after.strip_prefix('#') {
            Some(number) => numeric(number, &mut unescaped).map(|used| used + 1),
            None => reference(after, &mut unescaped),
        };
        if used.is_none() {
            unescaped.push('&');
        }
        rest = &after[used.unwrap_or(0)..];
    }
    unescaped.push_str(rest);
    Cow::Owned(unescaped)
}

/// Reads a number after `&#`; returns the bytes used, or `None` without digits.
fn numeric(text: &str, unescaped: &mut String) -> Option<usize> {
    let (digits, prefix, radix) = match text.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 1, 16),
        None => (text, 0, 10),
    };
    let length = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if length == 0 {
        return None;
    }
    // a number too large for the type is as wrong as one beyond the last code point
    let number = u32::from_str_radix(&digits[..length], radix).unwrap_or(u32::MAX);
    unescaped.extend(character_of(number));
    let semicolon = usize::from(digits[length..].starts_with(';'));
    Some(prefix + length + semicolon)
}

fn character_of(number: u32) -> Option<char> {
    const WINDOWS_1252: [char; 32] = [
        '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}',
        '\u{2021}', '\u{2c6}', '\u{2030}', '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}',
        '\u{8f}', '\u{90}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}',
        '\u{2014}', '\u{2dc}', '\u{2122}', '\u{161}', '\u{203a}', '\u{153}', '\u{9d}', '\u{17e}',
        '\u{178}',
    ];
    match number {
        0 => Some(char::REPLACEMENT_CHARACTER),
        0x80..=0x9f => WINDOWS_1252.get(number as usize - 0x80).copied(),
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ if number <= 0x10ffff && number & 0xfffe == 0xfffe => None,
        _ => Some(char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
}

/// Reads a name after `&`; returns the bytes used, or `None` if no name can begin.
fn reference(text: &str, unescaped: &mut String) -> Option<usize> {
    let length = text
        .char_indices()
        .enumerate()
        .find(|&(count, (_, c))| {
            count == LONGEST_NAME
                || matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';')
        })
        .map_or(text.len(), |(_, (at, _))| at);
    if length == 0 {
        return None;
    }
    let length = length + usize::from(text[length..].starts_with(';'));
    let name = &text[..length];
    // the whole name, else its longest beginning of two characters or more that is a name
    let known = name
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .skip(1)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .find_map(|end| named(&name[..end]).map(|value| (value, end)));
    match known {
        Some((value, end)) => {
            unescaped.push_str(value);
            unescaped.push_str(&name[end..]);
        }
        None => {
            unescaped.push('&');
            unescaped.push_str(name);
        }
    }
    Some(length)
}
