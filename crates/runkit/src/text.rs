//! Text of unknown origin in messages: shortened and made safe, in one place.
//!
//! A message that quotes its input must stay a message, whatever the input is: a file given by
//! mistake as a list of prompts can hold a line of a gigabyte, or the codes that clear a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The most characters of the input that a message quotes.
pub const MOST_QUOTED: usize = 200;
/// The most characters of one line of an error. Longer ones hold more input than sentence.
const MOST_OF_A_LINE: usize = 1_000;

/// Text for a message: control characters escaped, truncated after [`MOST_QUOTED`] characters with
/// a note.
///
/// ```
/// use runkit::text::excerpt;
/// assert_eq!(excerpt("a red\u{1b}[31m fox\n"), "a red\\u{1b}[31m fox\\n");
/// let long = excerpt(&"é".repeat(5000)).to_string();
/// assert!(long.ends_with("éé… (cut: 10000 bytes in all)"));
/// ```
#[must_use]
pub fn excerpt(text: &str) -> String {
    let (mut shown, cut) = shortened(text, MOST_QUOTED, false);
    if cut {
        shown += &format!("… (cut: {} bytes in all)", text.len());
    }
    shown
}

/// As [`excerpt`], between quotation marks; those inside and backslashes are escaped.
///
/// ```
/// assert_eq!(runkit::text::quoted("say \"cut\""), "\"say \\\"cut\\\"\"");
/// ```
#[must_use]
pub fn quoted(text: &str) -> String {
    let (shown, cut) = shortened(text, MOST_QUOTED, true);
    match cut {
        true => format!("\"{shown}…\" (cut: {} bytes in all)", text.len()),
        false => format!("\"{shown}\""),
    }
}

/// A list of choices for a message: "a, b, c"; of a long list the beginning and how many follow.
/// "none" if the list is empty.
///
/// ```
/// use runkit::text::choices;
/// assert_eq!(choices(["clip", "hps"]), "clip, hps");
/// let many = (0..1000).map(|number| format!("column_{number}")).collect::<Vec<_>>();
/// assert!(choices(&many).ends_with(" and 981 more"));
/// ```
#[must_use]
pub fn choices<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut shown = String::new();
    let (mut length, mut more) = (0, 0_usize);
    for name in names {
        let name = excerpt(name.as_ref());
        let added = name.chars().count() + 2;
        if more > 0 || (length > 0 && length + added > MOST_QUOTED + 2) {
            more += 1;
            continue;
        }
        if length > 0 {
            shown += ", ";
        }
        shown += &name;
        length += added;
    }
    match (shown.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => shown,
        (false, more) => format!("{shown} and {more} more"),
    }
}

/// A message of a library that may quote its input at any length: text between quotation marks
/// (`"`, `'` or a backquote) is truncated as by [`excerpt`], and so is a word that is not a path,
/// and at five times that length each line as a whole.
#[must_use]
pub fn shorten_message(message: &str) -> String {
    let lines = message.lines().map(|line| {
        let line = match line.len() > MOST_QUOTED {
            true => shorten_words(&shorten_quotes(line)),
            false => line.to_owned(),
        };
        let (shown, cut) = shortened(&line, MOST_OF_A_LINE, false);
        if cut { format!("{shown}… (cut: {} bytes in all)", line.len()) } else { shown }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// No word of a sentence is as long as that; a path may be.
fn shorten_words(line: &str) -> String {
    let words = line.split(' ').map(|word| {
        let is_long = word.len() > MOST_QUOTED && !word.contains('/');
        if is_long { excerpt(word) } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn shorten_quotes(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(['"', '`', '\'']) {
        let (before, quote) = rest.split_at(start);
        let mark = quote.chars().next().unwrap_or('"');
        shown += before;
        let inside = &quote[mark.len_utf8()..];
        let is_apostrophe = mark == '\'' && before.ends_with(char::is_alphanumeric);
        let end = if is_apostrophe { None } else { closing(inside, mark) };
        let Some(end) = end else {
            // No quotation, or one that never ends.
            rest = inside;
            shown.push(mark);
            continue;
        };
        let text = &inside[..end];
        let (kept, cut) = shortened(text, MOST_QUOTED, false);
        if cut {
            shown += &format!("{mark}{kept}…{mark} (cut: {} bytes in all)", text.len());
        } else {
            shown += &format!("{mark}{text}{mark}");
        }
        rest = &inside[end + mark.len_utf8()..];
    }
    shown + rest
}

/// Where a quotation ends: at its mark, unless a backslash precedes it.
fn closing(inside: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    inside.char_indices().find_map(|(place, character)| {
        let ends = character == mark && !escaped;
        escaped = character == '\\' && !escaped;
        ends.then_some(place)
    })
}

/// The beginning of `text`, escaped, at most `most` characters long; and whether anything is
/// missing. An escape sequence is kept whole or left out.
fn shortened(text: &str, most: usize, quotes: bool) -> (String, bool) {
    let mut shown = String::new();
    let mut length = 0;
    let mut buffer = [0; 4];
    for character in text.chars() {
        let one = match character {
            '"' if quotes => "\\\"".into(),
            '\\' if quotes => "\\\\".into(),
            _ => escape_for_terminal(character.encode_utf8(&mut buffer)),
        };
        length += one.chars().count();
        if length > most {
            return (shown, true);
        }
        shown += &one;
    }
    (shown, false)
}

/// Makes text of unknown origin (captions, file names, model names) safe and visible in a log line:
/// control characters, line ends, bidirectional overrides and zero-width characters become `\n`,
/// `\t`, `\r` or `\u{…}`.
pub fn escape_for_terminal(text: &str) -> Cow<'_, str> {
    if !text.chars().any(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            _ if needs_escape(character) => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "{}", character.escape_unicode());
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

fn needs_escape(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::{MOST_QUOTED, choices, escape_for_terminal, excerpt, quoted, shorten_message};

    #[test]
    fn hostile_text_is_made_visible() {
        assert_eq!(escape_for_terminal("a red \u{1b}[31mfox\u{7}"), "a red \\u{1b}[31mfox\\u{7}");
        assert_eq!(escape_for_terminal("two\nlines\ttab\r"), "two\\nlines\\ttab\\r");
        assert_eq!(escape_for_terminal("\u{202e}gnp.exe\u{9b}2J"), "\\u{202e}gnp.exe\\u{9b}2J");
    }

    #[test]
    fn ordinary_text_is_untouched_and_not_copied() {
        for text in ["", "a fox", "ein Füchslein, 狐 🦊", "back\\slash"] {
            assert!(
                matches!(escape_for_terminal(text), std::borrow::Cow::Borrowed(same) if same == text)
            );
        }
    }

    #[test]
    fn short_text_stays_as_it_is() {
        assert_eq!(excerpt("a fox, 狐"), "a fox, 狐");
        assert_eq!(excerpt(&"狐".repeat(MOST_QUOTED)), "狐".repeat(MOST_QUOTED));
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn long_text_is_cut_between_characters_and_says_so() {
        for character in ["a", "é", "狐", "🦊", "\u{1b}", "\"", "\\", "\n"] {
            let text = character.repeat(1 << 20);
            for shown in [excerpt(&text), quoted(&text)] {
                assert!(shown.chars().count() < 260, "{} characters", shown.chars().count());
                assert!(shown.contains(&format!("cut: {} bytes", text.len())), "{shown}");
                assert!(!shown.contains('\u{1b}'), "{shown}");
            }
        }
    }

    #[test]
    fn an_escape_is_never_cut_in_two() {
        for spaces in 190..200 {
            let text = format!("{}\u{202e}{}", " ".repeat(spaces), "x".repeat(300));
            let shown = excerpt(&text);
            assert!(!shown.contains("\\u") || shown.contains("\\u{202e}"), "{shown}");
        }
    }

    #[test]
    fn lists_are_cut_between_names() {
        assert_eq!(choices(Vec::<String>::new()), "none");
        let names: Vec<String> = (0..300).map(|number| format!("scorer{number}")).collect();
        let shown = choices(&names);
        assert!(shown.starts_with("scorer0, scorer1, ") && shown.ends_with(" more"), "{shown}");
        assert!(shown.chars().count() < 230, "{shown}");
        assert!(choices(["x".repeat(1000)]).chars().count() < 240);
        assert_eq!(choices(["x".repeat(1000), "y".to_owned()]).matches(" and 1 more").count(), 1);
    }

    #[test]
    fn messages_of_libraries_lose_what_they_quote_too_much_of() {
        let long = "x".repeat(100_000);
        for message in [
            format!("invalid type: string \"{long}\", expected u64 at line 1"),
            format!("unknown field `{long}`, expected `a` or `b`"),
            format!("it isn't a number: '{long}'"),
            long.clone(),
        ] {
            let shown = shorten_message(&message);
            assert!(shown.chars().count() < 1_100, "{}", shown.chars().count());
            assert!(shown.contains("cut: "), "{shown}");
        }
        let shown = shorten_message(&format!("unknown field `{long}`, expected `a` or `b`"));
        assert!(shown.ends_with("expected `a` or `b`"), "{shown}");
        let shown = shorten_message(&format!("expected gelu, found {long}; hint: gelu"));
        assert!(shown.len() < 300 && shown.ends_with("bytes in all) hint: gelu"), "{shown}");
        let path = format!("/{}: not found", "folder/".repeat(60));
        assert_eq!(shorten_message(&path), path);
        let plain = "it's \"short\"\nhint: don't";
        assert_eq!(shorten_message(plain), plain);
        let words = format!("the model's own {}is the user's", "very ".repeat(100));
        assert_eq!(shorten_message(&words), words);
    }
}
