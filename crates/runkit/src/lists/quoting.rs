//! Whether quotation marks in a list are part of its texts or CSV's quoting.
//!
//! PartiPrompts is published raw: `"G I G G L E" painted on a wall` is a prompt with its marks. The
//! same file saved by pandas has `"""G I G G L E"" painted on a wall"`: the field is quoted, and
//! marks inside it are doubled (RFC 4180). A writer of the second kind never leaves a mark inside a
//! field that is not quoted, so the whole file shows which kind it is. If it holds both (files put
//! together), each field shows it for itself.

use std::borrow::Cow;

const MARK: u8 = b'"';
const BACKSLASH: u8 = b'\\';

/// What quotation marks are in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    /// Part of the texts. Fields with a mark at each end could be either.
    Raw {
        /// The line of the first such field, if there is one.
        ambiguous: Option<usize>,
    },
    /// Around fields, doubled inside (pandas, Excel, Python's csv).
    Doubled,
    /// Around fields, with a backslash before those inside (R's write.table).
    Escaped,
    /// Part of the texts, with a backslash before each (pandas with `doublequote=False`).
    Backslashed,
    /// Raw fields and fields with doubled marks in one file.
    Mixed {
        /// The line of the first field with doubled marks.
        line: usize,
    },
}

/// What a reading of a file as quoted finds.
#[derive(Debug, Default)]
struct Survey {
    /// The line of the first mark that no quoting explains.
    stray: Option<usize>,
    /// The line of the first field in marks whose content needs them.
    needed: Option<usize>,
    /// The line of the first field in marks with doubled or escaped marks inside, on one line.
    doubled: Option<usize>,
    /// The line of the first field in marks.
    whole: Option<usize>,
    /// A field in marks of the first record.
    header: bool,
    /// A field in marks reaches over separators and lines: rows that were read as one.
    swallows: bool,
    /// Records differ in their number of columns.
    ragged: bool,
    /// Each record after the first has a field in marks.
    every_record: bool,
}

/// A field with a mark at each end.
struct Field {
    end: usize,
    marks_inside: bool,
    lines: usize,
    separators: bool,
}

impl Quoting {
    /// Of a table with this separator between its columns, whose first line names them.
    pub fn of_table(bytes: &[u8], separator: u8) -> Self {
        if !bytes.contains(&MARK) {
            return Self::Raw { ambiguous: None };
        }
        let survey = Survey::new(bytes, separator, false);
        let sound = survey.stray.is_none() && !survey.ragged;
        if sound && survey.header {
            return Self::Doubled;
        }
        if sound && !survey.swallows && (survey.needed.is_some() || survey.every_record) {
            return Self::Doubled;
        }
        let escaped = Survey::new(bytes, separator, true);
        if escaped.header && escaped.stray.is_none() && !escaped.ragged {
            return Self::Escaped;
        }
        if all_marks_are_escaped(bytes) {
            return Self::Backslashed;
        }
        match (survey.doubled, survey.stray) {
            (Some(line), _) => Self::Mixed { line },
            (None, None) if !survey.swallows => Self::Raw { ambiguous: survey.whole },
            _ => Self::Raw { ambiguous: None },
        }
    }

    /// Of a list with a text in each line.
    pub fn of_lines<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut doubled, mut stray) = (None, false);
        for (number, line) in (1..).zip(lines) {
            let line = line.trim_ascii();
            if !line.contains(&MARK) {
                continue;
            }
            match field(line, u8::MAX, false).filter(|field| field.end == line.len()) {
                Some(field) if field.marks_inside => doubled = doubled.or(Some(number)),
                Some(_) => {}
                None => stray = true,
            }
        }
        match doubled {
            None => Self::Raw { ambiguous: None },
            Some(line) if stray => Self::Mixed { line },
            Some(_) => Self::Doubled,
        }
    }

    /// The text of a raw field: without its marks if they are quoting.
    pub fn unquoted(self, text: &str) -> Cow<'_, str> {
        let trimmed = text.trim();
        match self {
            Self::Raw { .. } | Self::Escaped => Cow::Borrowed(text),
            Self::Backslashed => Cow::Owned(text.replace("\\\"", "\"").replace("\\\\", "\\")),
            Self::Doubled | Self::Mixed { .. } => {
                let whole = field(trimmed.as_bytes(), u8::MAX, false)
                    .filter(|field| field.end == trimmed.len())
                    .filter(|field| field.marks_inside || self == Self::Doubled);
                let inside = whole.and_then(|_| trimmed.get(1..trimmed.len() - 1));
                inside.map_or(Cow::Borrowed(text), |text| Cow::Owned(text.replace("\"\"", "\"")))
            }
        }
    }
}

impl Survey {
    fn new(bytes: &[u8], separator: u8, backslash: bool) -> Self {
        let mut survey = Self { every_record: true, ..Self::default() };
        let (mut place, mut line) = (0, 1);
        let (mut columns, mut records, mut first_columns) = (0, 0, None);
        let mut in_marks = false;
        while place < bytes.len() {
            let start = line;
            match field(&bytes[place..], separator, backslash) {
                Some(field) => {
                    let needed = field.marks_inside || field.separators || field.lines > 0;
                    survey.whole = survey.whole.or(Some(start));
                    survey.needed = survey.needed.or(needed.then_some(start));
                    let doubled = field.marks_inside && field.lines == 0;
                    survey.doubled = survey.doubled.or(doubled.then_some(start));
                    survey.swallows |= field.separators && field.lines > 0;
                    survey.header |= records == 0;
                    in_marks = true;
                    line += field.lines;
                    place += field.end;
                }
                None => {
                    let ends = |&byte: &u8| byte == separator || byte == b'\n' || byte == b'\r';
                    let length = bytes[place..].iter().position(ends);
                    let end = length.map_or(bytes.len(), |length| place + length);
                    if bytes[place..end].contains(&MARK) {
                        survey.stray = survey.stray.or(Some(start));
                    }
                    place = end;
                }
            }
            columns += 1;
            if bytes.get(place) == Some(&separator) {
                place += 1;
                // A separator at the very end has an empty field after it.
                if place < bytes.len() {
                    continue;
                }
                columns += 1;
            }
            let ends = |byte: Option<&u8>| matches!(byte, Some(b'\n' | b'\r'));
            survey.ragged |= *first_columns.get_or_insert(columns) != columns;
            survey.every_record &= records == 0 || in_marks;
            records += 1;
            (columns, in_marks) = (0, false);
            while ends(bytes.get(place)) {
                line += usize::from(bytes[place] == b'\n');
                place += 1;
            }
        }
        survey.every_record &= records > 1;
        survey
    }
}

/// The field that begins with these bytes, if it has a mark at each end: the mark that ends it is
/// followed by a separator, the end of a line or nothing. Marks inside are doubled, or have a
/// backslash before them.
fn field(bytes: &[u8], separator: u8, backslash: bool) -> Option<Field> {
    if bytes.first() != Some(&MARK) {
        return None;
    }
    let mut found = Field { end: 0, marks_inside: false, lines: 0, separators: false };
    let mut place = 1;
    while let Some(&byte) = bytes.get(place) {
        let next = bytes.get(place + 1);
        match byte {
            BACKSLASH if backslash => {
                found.marks_inside |= next == Some(&MARK);
                place += 1;
            }
            MARK if next == Some(&MARK) && !backslash => {
                found.marks_inside = true;
                place += 1;
            }
            MARK => {
                let ends =
                    next.is_none_or(|&next| next == separator || matches!(next, b'\n' | b'\r'));
                found.end = place + 1;
                return ends.then_some(found);
            }
            b'\n' => found.lines += 1,
            other => found.separators |= other == separator,
        }
        place += 1;
    }
    None
}

/// Whether every mark has a backslash before it.
fn all_marks_are_escaped(bytes: &[u8]) -> bool {
    let marks = bytes.iter().enumerate().filter(|(_, byte)| **byte == MARK);
    marks.into_iter().all(|(place, _)| place > 0 && bytes[place - 1] == BACKSLASH)
}

#[cfg(test)]
mod tests {
    use super::Quoting;

    #[track_caller]
    fn table(text: &str, expected: Quoting) {
        assert_eq!(Quoting::of_table(text.as_bytes(), b'\t'), expected, "{text:?}");
        let windows = text.replace('\n', "\r\n");
        assert_eq!(Quoting::of_table(windows.as_bytes(), b'\t'), expected, "{windows:?}");
    }

    #[test]
    fn a_table_tells_what_its_marks_are() {
        const RAW: Quoting = Quoting::Raw { ambiguous: None };
        table("P\tC\na\tb\n", RAW);
        table("P\tC\n\"G I G\" on a wall\tb\n", RAW);
        table("P\tC\nthe word \"GO\"\tb\n\"hello\"\tb\n", RAW);
        table("P\tC\n\"hello\tb\nit is 5\"\tb\n", RAW);
        table("P\tC\n\"the word \"\"GO\"\"\"\tb\nx\ty\n", Quoting::Doubled);
        table("P\n\"a\nb\"\nc\n", Quoting::Doubled);
        table("P\tC\n\"a\tb\"\tc\nd\te\n", Quoting::Doubled);
        table("\"P\"\t\"C\"\n\"a\"\t\"b\"\n", Quoting::Doubled);
        table("\"P\"\t\"C\"\n\"a\tx\ny\"\t\"b\"\n", Quoting::Doubled);
        table("P\tC\n\"a\"\tb\n\"c\"\td\n", Quoting::Doubled);
        table("P\tC\n\"a\"\tb\nc\td\n", Quoting::Raw { ambiguous: Some(2) });
        table("\"P\"\t\"C\"\n\"the \\\"GO\\\"\"\t\"b\"\n", Quoting::Escaped);
        table("P\tC\nthe \\\"GO\\\"\tb\n", Quoting::Backslashed);
        table("P\tC\n\"say \"\"GO\"\"\"\tb\nsay \"NO\"\tb\n", Quoting::Mixed { line: 2 });
        // An empty last field, and a last line without its end.
        table("P\tC\n\"a \"\"b\"\"\"\t\nc\t", Quoting::Doubled);
    }

    #[test]
    fn a_list_tells_what_its_marks_are() {
        let of = |text: &str| Quoting::of_lines(text.lines().map(str::as_bytes));
        assert_eq!(of("a\n\"b\"\n"), Quoting::Raw { ambiguous: None });
        assert_eq!(of("a \"b\"\n\"c\" d\n"), Quoting::Raw { ambiguous: None });
        assert_eq!(of("a\n\"say \"\"b\"\"\"\n\"c, d\"\n"), Quoting::Doubled);
        assert_eq!(of("a \"b\"\n\"say \"\"b\"\"\"\n"), Quoting::Mixed { line: 2 });
    }

    #[test]
    fn marks_that_are_quoting_are_undone() {
        let mixed = Quoting::Mixed { line: 1 };
        for (quoting, text, expected) in [
            (Quoting::Doubled, "\"say \"\"GO\"\"\"", "say \"GO\""),
            (Quoting::Doubled, "\"a, b\"", "a, b"),
            (Quoting::Doubled, "plain", "plain"),
            (mixed, "\"say \"\"GO\"\"\" ", "say \"GO\""),
            (mixed, "\"a\"", "\"a\""),
            (mixed, "say \"GO\"", "say \"GO\""),
            (mixed, "\"", "\""),
            (Quoting::Backslashed, "the \\\"GO\\\" c:\\\\x", "the \"GO\" c:\\x"),
            (Quoting::Raw { ambiguous: None }, "\"say \"\"GO\"\"\"", "\"say \"\"GO\"\"\""),
        ] {
            assert_eq!(quoting.unquoted(text), expected, "{quoting:?} {text:?}");
        }
    }
}
