//! TensorBoard's event files: scalars and images.
//!
//! A file is a row of records, each a `tensorflow.Event` message with its length and two checksums
//! (tensorflow/tensorboard `tensorboard/compat/proto/event.proto` and
//! `tensorboard/summary/writer/record_writer.py` at 2.21.0). The few fields that are used here are
//! written by hand. Every session of a run has its own file, which begins with the mark of a
//! restart: TensorBoard then drops what earlier files hold of that step and later ones.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::{FileError, Operation, create_folder, sync_folder};

/// How TensorBoard recognises its files; ten digits and a part that makes the name unique follow.
const PREFIX: &str = "events.out.tfevents.";
/// The version since which restarts are heeded.
const FILE_VERSION: &[u8] = b"brain.Event:2";
/// `SessionLog.START`.
const SESSION_START: u64 = 1;
/// What a checksum is shifted by, so that one over data with checksums inside stays meaningful.
const CHECKSUM_SHIFT: u32 = 0xa282_ead8;
/// `Summary.Image.colorspace` of RGB.
const RGB: u64 = 3;

/// The event file of this session.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`, sorted after those there, of a session that begins with
    /// `first_step`.
    pub(super) fn create(folder: &Path, first_step: u64) -> Result<Self, FileError> {
        create_folder(folder)?;
        let fail = |cause| FileError::new(folder, Operation::Create, cause);
        let latest = latest_second(folder).map_err(fail)?;
        // A clock that was set back must not put this session before the one it follows.
        let second = (seconds_now() as u64).max(latest.map_or(0, |latest| latest + 1));
        let path = folder.join(format!("{PREFIX}{second:010}.{}", std::process::id()));
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(fail)?;
        sync_folder(folder).map_err(fail)?;
        let mut events = Self { path, file };
        let version = Event { seconds: seconds_now(), step: 0, what: What::Version };
        let start = Event { seconds: seconds_now(), step: first_step, what: What::Start };
        events.append(&[version, start])?;
        Ok(events)
    }

    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<(), FileError> {
        if values.is_empty() {
            return Ok(());
        }
        self.append(&[Event { seconds: seconds_now(), step, what: What::Scalars(values) }])
    }

    pub(super) fn image(
        &mut self,
        step: u64,
        name: &str,
        (width, height): (u32, u32),
        png: &[u8],
    ) -> Result<(), FileError> {
        let what = What::Image { name, width, height, png };
        self.append(&[Event { seconds: seconds_now(), step, what }])
    }

    pub(super) fn sync(&mut self) -> Result<(), FileError> {
        let fail = |cause| FileError::new(&self.path, Operation::Sync, cause);
        self.file.sync_data().map_err(fail)
    }

    fn append(&mut self, events: &[Event<'_>]) -> Result<(), FileError> {
        let bytes: Vec<u8> = events.iter().flat_map(|event| record(&event.encode())).collect();
        let fail = |cause| FileError::new(&self.path, Operation::Write, cause);
        self.file.write_all(&bytes).map_err(fail)
    }
}

/// The highest second in the names of a folder's event files.
fn latest_second(folder: &Path) -> io::Result<Option<u64>> {
    let mut latest = None;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let second = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next());
        latest = latest.max(second.and_then(|second| second.parse().ok()));
    }
    Ok(latest)
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// A `tensorflow.Event`.
struct Event<'a> {
    /// Since 1970.
    seconds: f64,
    step: u64,
    what: What<'a>,
}

enum What<'a> {
    Version,
    Start,
    Scalars(&'a [(&'a str, f32)]),
    Image { name: &'a str, width: u32, height: u32, png: &'a [u8] },
}

impl Event<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut event = Message::default();
        event.double(1, self.seconds);
        event.integer(2, self.step);
        match self.what {
            What::Version => event.bytes(3, FILE_VERSION),
            What::Scalars(values) => {
                let mut summary = Message::default();
                for (name, number) in values {
                    let mut value = Message::default();
                    value.bytes(1, name.as_bytes());
                    value.float(2, *number);
                    summary.bytes(1, &value.0);
                }
                event.bytes(5, &summary.0);
            }
            What::Image { name, width, height, png } => {
                let mut image = Message::default();
                image.integer(1, height.into());
                image.integer(2, width.into());
                image.integer(3, RGB);
                image.bytes(4, png);
                let mut value = Message::default();
                value.bytes(1, name.as_bytes());
                value.bytes(4, &image.0);
                let mut summary = Message::default();
                summary.bytes(1, &value.0);
                event.bytes(5, &summary.0);
            }
            What::Start => {
                let mut session = Message::default();
                session.integer(1, SESSION_START);
                event.bytes(7, &session.0);
            }
        }
        event.0
    }
}

/// A protocol buffer message being written: fields in the order of their numbers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const EIGHT_BYTES: u64 = 1;
    const BYTES: u64 = 2;
    const FOUR_BYTES: u64 = 5;

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    /// Zero is what a reader takes for a field that is not there.
    fn integer(&mut self, field: u64, number: u64) {
        if number != 0 {
            self.tag(field, Self::VARINT);
            self.varint(number);
        }
    }

    fn double(&mut self, field: u64, number: f64) {
        self.tag(field, Self::EIGHT_BYTES);
        self.0.extend(number.to_le_bytes());
    }

    fn float(&mut self, field: u64, number: f32) {
        self.tag(field, Self::FOUR_BYTES);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, Self::BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// Length, checksum of the length, data, checksum of the data.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(checksum(&length).to_le_bytes());
    record.extend(data);
    record.extend(checksum(data).to_le_bytes());
    record
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(CHECKSUM_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scripts/goldens/tensorboard_events.py`: written by TensorBoard's own classes.
    #[test]
    fn bytes_are_those_of_tensorboard() {
        let golden = include_bytes!("../../tests/fixtures/tensorboard/events.out.tfevents.golden");
        let at = |step, what| Event { seconds: 1_700_000_000.25, step, what };
        let scalars = [("loss", std::f32::consts::LN_2), ("z/mean", -0.0), ("bad", f32::NAN)];
        let png = [0x89, b'P', b'N', b'G', 0, 1, 2];
        let image = What::Image { name: "samples/a cat", width: 640, height: 3, png: &png };
        let written: Vec<u8> = [
            at(0, What::Version),
            at(101, What::Start),
            at(101, What::Scalars(&scalars)),
            at(1 << 40, image),
        ]
        .iter()
        .flat_map(|event| record(&event.encode()))
        .collect();
        assert_eq!(written, golden);
    }

    #[test]
    fn files_of_later_sessions_sort_after_earlier_ones() {
        let folder = tempfile::tempdir().unwrap();
        // A session from the future: the clock was set back since.
        let future = folder.path().join(format!("{PREFIX}4000000000.1"));
        OpenOptions::new().append(true).create(true).open(future).unwrap();
        let paths: Vec<PathBuf> =
            (0..3).map(|step| EventFile::create(folder.path(), step).unwrap().path).collect();
        assert!(paths.is_sorted());
        assert!(paths[0].to_str().unwrap().contains("4000000001"));
    }
}
