//! Files of JSON records: an array of objects, or an object a line. Read as a stream, so that
//! neither needs memory for more than one record.

use std::io::{BufRead, Read};
use std::ops::Range;
use std::sync::Arc;

use super::beside::Beside;
use super::records::{Batched, Batches, Checkpoints, Draft, Origin, Records, guessed_groups};
use super::source::{File, Folder, Reader};
use super::{Layout, MAX_RECORD_BYTES, hpdv2, hpdv3, jsonl};
use crate::input::InputError;
use crate::pairs::{InputFile, PairsError, RowGroup};

/// The mark that some programs put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The pairs of a record, or what is wrong with it.
pub(super) type Parse = fn(&[u8]) -> Result<Vec<Draft>, String>;

/// A file of JSON records.
#[derive(Debug)]
pub(super) struct Documents {
    origin: Arc<Origin>,
    layout: Layout,
    parse: Parse,
    has_images: bool,
    rows: i64,
    /// The length of the file.
    length: u64,
    fingerprint: String,
    checkpoints: Checkpoints,
    /// The number of the record at each of the checkpoints, for messages.
    records: Vec<u64>,
    container: Container,
}

/// How records stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Array,
    Lines,
}

impl Documents {
    /// Reads the whole file once to count its pairs.
    ///
    /// # Errors
    /// When it cannot be read, or a record is not what the layout says.
    pub(super) fn open(
        input: &InputFile,
        layout: Layout,
        has_images: bool,
    ) -> Result<Self, PairsError> {
        let (parse, below): (Parse, &[&str]) = match layout {
            Layout::Ranked => (hpdv2::pairs, &hpdv2::FOLDERS),
            Layout::Hpdv3 => (hpdv3::pairs, &[]),
            _ => (jsonl::pairs, &[]),
        };
        let origin = Arc::new(Origin {
            path: input.path.clone(),
            source_file: input.source_file.clone(),
            beside: Beside::new(Folder::around(&input.path).map_err(InputError::from)?, below),
        });
        let mut scanner = Scanner::open(&origin)?;
        let mut opened = Self {
            layout,
            parse,
            has_images,
            rows: 0,
            length: scanner.reader.length(),
            fingerprint: String::new(),
            checkpoints: Checkpoints::default(),
            records: Vec::new(),
            container: scanner.container,
            origin,
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&opened.length.to_le_bytes());
        while let Some(at) = scanner.next_record()? {
            hasher.update(&scanner.record);
            let pairs = scanner.parsed(parse)?.len();
            if pairs > 0 && opened.checkpoints.offer(opened.rows, at) {
                opened.records.push(scanner.number - 1);
            }
            opened.rows += pairs as i64;
        }
        opened.fingerprint = hasher.finalize().to_hex().to_string();
        Ok(opened)
    }

    fn drafts(&self, first: i64) -> Result<Drafts, PairsError> {
        let mut scanner = Scanner::open(&self.origin)?;
        if scanner.reader.length() != self.length || scanner.container != self.container {
            let found = "the file has changed since it was opened";
            return Err(self.origin.broken("the file".to_owned(), found));
        }
        let mut skip = 0;
        if let Some((index, row, place)) = self.checkpoints.before(first) {
            let number = self.records.get(index).copied().unwrap_or(0);
            scanner.go_to(place, number)?;
            skip = usize::try_from(first - row).unwrap_or(0);
        }
        Ok(Drafts { scanner, parse: self.parse, ready: Vec::new().into_iter(), skip })
    }
}

impl Records for Documents {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn num_rows(&self) -> i64 {
        self.rows
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn row_groups(&self) -> Vec<RowGroup> {
        guessed_groups(self.rows)
    }

    fn has_images(&self) -> bool {
        self.has_images
    }

    fn rows(
        &self,
        rows: Range<i64>,
        batch_rows: usize,
        images: bool,
    ) -> Result<Batches, PairsError> {
        let drafts = self.drafts(rows.start)?;
        let origin = Arc::clone(&self.origin);
        Ok(Box::new(Batched::new(drafts, origin, rows, batch_rows, images)))
    }
}

/// The pairs from some record on.
struct Drafts {
    scanner: Scanner,
    parse: Parse,
    /// Pairs of the record that was read last.
    ready: std::vec::IntoIter<Draft>,
    /// Pairs to leave out.
    skip: usize,
}

impl Iterator for Drafts {
    type Item = Result<Draft, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(draft) = self.ready.next() {
                match self.skip {
                    0 => return Some(Ok(draft)),
                    _ => self.skip -= 1,
                }
                continue;
            }
            match self.scanner.next_record() {
                Ok(None) => return None,
                Ok(Some(_)) => {}
                Err(error) => return Some(Err(error)),
            }
            match self.scanner.parsed(self.parse) {
                Ok(pairs) => self.ready = pairs.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Finds the records of a file, one after the other.
struct Scanner {
    reader: Reader,
    origin: Arc<Origin>,
    container: Container,
    /// The bytes of the record that was found last.
    record: Vec<u8>,
    /// Records found so far; lines if a record is a line.
    number: u64,
}

impl Scanner {
    fn open(origin: &Arc<Origin>) -> Result<Self, PairsError> {
        let open = || File::open(&origin.path)?.reader(0);
        let mut scanner = Self {
            reader: open().map_err(|error| origin.io(error))?,
            origin: Arc::clone(origin),
            container: Container::Lines,
            record: Vec::new(),
            number: 0,
        };
        let mark = scanner.peek(BYTE_ORDER_MARK.len())?;
        if mark == BYTE_ORDER_MARK {
            scanner.reader.consume(BYTE_ORDER_MARK.len());
        }
        // Lines before the first record count, so look without taking them.
        let head = scanner.peek(4096)?;
        if head.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            scanner.container = Container::Array;
            scanner.next_byte()?;
            scanner.reader.consume(1);
        }
        Ok(scanner)
    }

    /// The next bytes, at most `count` and as many as are buffered, without taking them.
    fn peek(&mut self, count: usize) -> Result<Vec<u8>, PairsError> {
        let bytes = self.reader.fill_buf().map_err(|error| self.origin.io(error))?;
        Ok(bytes.get(..count).unwrap_or(bytes).to_vec())
    }

    /// Goes to the record `number`, which begins at `place`.
    fn go_to(&mut self, place: u64, number: u64) -> Result<(), PairsError> {
        let here = self.reader.position();
        self.reader.skip(place.saturating_sub(here)).map_err(|error| self.origin.io(error))?;
        self.number = number;
        Ok(())
    }

    /// Where the record that was found last is, for messages.
    fn place(&self) -> String {
        match self.container {
            Container::Lines => format!("line {}", self.number),
            Container::Array => format!("record {} (counted from 1)", self.number),
        }
    }

    fn broken(&self, detail: impl Into<String>) -> PairsError {
        self.origin.broken(self.place(), detail)
    }

    /// The pairs of the record that was found last.
    fn parsed(&self, parse: Parse) -> Result<Vec<Draft>, PairsError> {
        parse(&self.record).map_err(|detail| self.broken(detail))
    }

    /// Finds the next record and returns where it begins.
    fn next_record(&mut self) -> Result<Option<u64>, PairsError> {
        match self.container {
            Container::Lines => self.next_line(),
            Container::Array => self.next_element(),
        }
    }

    fn next_line(&mut self) -> Result<Option<u64>, PairsError> {
        loop {
            let at = self.reader.position();
            self.record.clear();
            let limit = MAX_RECORD_BYTES as u64 + 1;
            let read = Read::take(&mut self.reader, limit).read_until(b'\n', &mut self.record);
            self.number += 1;
            if read.map_err(|error| self.origin.io(error))? == 0 {
                return Ok(None);
            }
            if self.record.len() > MAX_RECORD_BYTES {
                return Err(self.too_large());
            }
            if !self.record.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(at));
            }
        }
    }

    fn too_large(&self) -> PairsError {
        self.broken(format!("expected at most {MAX_RECORD_BYTES} bytes in a record, found more"))
    }

    fn next_element(&mut self) -> Result<Option<u64>, PairsError> {
        self.number += 1;
        loop {
            let at = self.reader.position();
            match self.next_byte()? {
                Some(b',') => self.reader.consume(1),
                Some(b'{') => {
                    let at = self.reader.position().max(at);
                    self.object()?;
                    return Ok(Some(at));
                }
                Some(b']') => return Ok(None),
                Some(byte) => {
                    let found = char::from(byte).escape_default();
                    return Err(self.broken(format!("expected an object {{…}}, found '{found}'")));
                }
                None => return Err(self.incomplete()),
            }
        }
    }

    fn incomplete(&self) -> PairsError {
        let length = self.reader.length();
        self.broken(format!(
            "the file ends here, after {length} bytes, inside its array; hint: the download or \
             copy is incomplete"
        ))
    }

    /// The next byte that is not white space, without taking it.
    fn next_byte(&mut self) -> Result<Option<u8>, PairsError> {
        loop {
            let bytes = self.reader.fill_buf().map_err(|error| self.origin.io(error))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let found = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
            let next = found.and_then(|at| bytes.get(at).copied());
            let skipped = found.unwrap_or(bytes.len());
            self.reader.consume(skipped);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// Takes an object, up to the brace that ends it.
    fn object(&mut self) -> Result<(), PairsError> {
        self.record.clear();
        let (mut depth, mut in_text, mut escaped) = (0_u32, false, false);
        loop {
            let bytes = self.reader.fill_buf().map_err(|error| self.origin.io(error))?;
            if bytes.is_empty() {
                return Err(self.incomplete());
            }
            let mut end = None;
            for (at, &byte) in bytes.iter().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_text => escaped = true,
                    b'"' => in_text = !in_text,
                    b'{' | b'[' if !in_text => depth += 1,
                    b'}' | b']' if !in_text => {
                        depth = depth.saturating_sub(1);
                        if depth == 0 {
                            end = Some(at + 1);
                            break;
                        }
                    }
                    _ => {}
                }
            }
            let taken = end.unwrap_or(bytes.len());
            self.record.extend_from_slice(bytes.get(..taken).unwrap_or_default());
            self.reader.consume(taken);
            if self.record.len() > MAX_RECORD_BYTES {
                return Err(self.too_large());
            }
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

/// The first record of a file.
pub(super) fn first_record(path: &std::path::Path) -> Result<Option<Vec<u8>>, PairsError> {
    let origin = Arc::new(Origin {
        path: path.to_owned(),
        source_file: String::new(),
        beside: Beside::new(Folder::around(path).map_err(InputError::from)?, &[]),
    });
    let mut scanner = Scanner::open(&origin)?;
    if scanner.container == Container::Array
        && scanner.next_byte()?.is_some_and(|byte| !b"{]".contains(&byte))
    {
        return Ok(None);
    }
    let found = scanner.next_record()?;
    Ok(found.map(|_| scanner.record))
}

/// Reads a record as `T`.
pub(super) fn read<'record, T: serde::Deserialize<'record>>(
    record: &'record [u8],
) -> Result<T, String> {
    serde_json::from_slice(record).map_err(|error| {
        let said = error.to_string();
        // Its lines are those of the record, not of the file.
        let said = said.split(" at line ").next().unwrap_or_default();
        let kind = if error.is_data() { "not the record expected" } else { "not JSON" };
        let byte = byte_of(record, &error);
        let rest = record.get(byte.saturating_sub(2)..).unwrap_or_default();
        let is_number = [&b"NaN"[..], b"Inf"]
            .iter()
            .any(|word| rest.windows(word.len()).take(2).any(|found| found == *word));
        let hint =
            if is_number { "; hint: JSON has no NaN and no Infinity, write null" } else { "" };
        format!("{kind}: {said} at its byte {byte}{hint}")
    })
}

/// The byte of a record, from 1, at which an error was found.
fn byte_of(record: &[u8], error: &serde_json::Error) -> usize {
    let lines = record.split_inclusive(|byte| *byte == b'\n');
    lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>() + error.column()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &[u8]) -> Result<Vec<String>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, text).unwrap();
        let origin = Arc::new(Origin {
            path: file.path().to_owned(),
            source_file: "x.json".to_owned(),
            beside: Beside::new(Folder::around(file.path()).unwrap(), &[]),
        });
        let mut scanner = Scanner::open(&origin).map_err(|error| error.to_string())?;
        let mut records = Vec::new();
        while let Some(at) = scanner.next_record().map_err(|error| error.to_string())? {
            let record = std::str::from_utf8(&scanner.record).unwrap().trim_end();
            assert!(text[at as usize..].starts_with(record.as_bytes()), "{at}: {record}");
            records.push(record.to_owned());
        }
        Ok(records)
    }

    #[test]
    fn arrays_and_lines_give_the_same_records() {
        let records = [r#"{"a": "}]\"{"}"#, r#"{"b": [1, {"c": "\\"}]}"#, "{}"];
        for text in [
            format!("[{}]", records.join(",")),
            format!("\u{feff} [\n  {}\n]\n", records.join(",\n  ")),
            format!("{}\n", records.join("\n")),
            records.join("\r\n\n"),
        ] {
            assert_eq!(scan(text.as_bytes()).unwrap(), records, "{text}");
        }
        assert_eq!(scan(b"[]").unwrap(), [""; 0]);
        assert_eq!(scan(b"").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_cut_off_or_too_large_is_an_error_with_its_place() {
        for (text, expected) in [
            (&b"[{}, {\"a\": \"x"[..], "record 2 (counted from 1): the file ends here"),
            (b"[{},", "record 2 (counted from 1): the file ends here"),
            (b"[{}, 7]", "expected an object {…}, found '7'"),
        ] {
            let error = scan(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let long = format!("{{}}\n{{\"a\": \"{}\"}}\n", "x".repeat(MAX_RECORD_BYTES));
        let error = scan(long.as_bytes()).unwrap_err();
        assert!(error.contains("line 2: expected at most"), "{error}");
        let error = scan(format!("[{}]", long.replace('\n', ",")).as_bytes()).unwrap_err();
        assert!(error.contains("record 2 (counted from 1): expected at most"), "{error}");
    }
}
