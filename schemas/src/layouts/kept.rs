//! The texts of tars that lie elsewhere, kept on this machine: without them every look at the
//! captions would fetch the tars with all their images again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::records::{Draft, Image};
use crate::pairs::NoVote;

/// Bytes that are written or read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A place for the texts of tars: a scratch file, or a part of a file that was saved. Clones share
/// it.
#[derive(Clone, Debug)]
pub struct TextStore {
    file: Arc<File>,
    /// Where the store begins in the file.
    base: u64,
    /// Its bytes so far.
    length: Arc<Mutex<u64>>,
}

/// What a store holds of one tar: its index, and where its texts are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where its texts begin in the store: a line of JSON for each pair.
    at: u64,
    /// The bytes of its texts. The offset of each pair in the tar follows, 8 bytes each.
    texts: u64,
    rows: u64,
    /// The length of the tar.
    pub(super) length: u64,
    pub(super) fingerprint: String,
    /// The version of the tar, such as its ETag, if the server tells it.
    version: Option<String>,
}

/// The text of a pair.
#[derive(Serialize, Deserialize)]
struct Text {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    caption: Option<String>,
    uids: [Option<String>; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label_0: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    no_vote: Option<u8>,
    /// Why an image is missing.
    #[serde(default, skip_serializing_if = "is_whole")]
    absent: [Option<String>; 2],
}

fn is_whole(absent: &[Option<String>; 2]) -> bool {
    absent.iter().all(Option::is_none)
}

/// The reasons, each with its number in a store.
const NO_VOTES: [NoVote; 3] = [NoVote::HasLabelFalse, NoVote::Contradiction, NoVote::NotANumber];

impl TextStore {
    /// An empty store in an unnamed file of this folder; the system removes it with the process.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn scratch(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(tempfile::tempfile_in(folder)?), base: 0, length: Arc::default() })
    }

    /// The store that [`TextStore::reader`] gave, at `base` of an open file.
    pub fn stored(file: File, base: u64, length: u64) -> Self {
        Self { file: Arc::new(file), base, length: Arc::new(Mutex::new(length)) }
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        *self.length.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads all of it.
    pub fn reader(&self) -> impl Read + use<> {
        self.part(0..self.len())
    }

    fn part(&self, range: Range<u64>) -> Part {
        Part { file: Arc::clone(&self.file), base: self.base, range }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(bytes, self.base + *length)?;
        *length += bytes.len() as u64;
        Ok(())
    }
}

impl Kept {
    /// The version of the tar that was read, if the server told it. Without it another process
    /// cannot know that the tar is still the same.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The offset of each pair in the tar.
    pub(super) fn offsets(&self, store: &TextStore) -> io::Result<Vec<u64>> {
        let start = self.at + self.texts;
        let mut reader = BufReader::new(store.part(start..start + 8 * self.rows));
        let mut offsets = Vec::with_capacity(usize::try_from(self.rows).unwrap_or(0));
        let mut bytes = [0; 8];
        for _ in 0..self.rows {
            reader.read_exact(&mut bytes)?;
            offsets.push(u64::from_le_bytes(bytes));
        }
        Ok(offsets)
    }

    /// The pairs from row `first` on, without their images.
    pub(super) fn drafts(
        &self,
        store: &TextStore,
        first: u64,
    ) -> impl Iterator<Item = io::Result<Draft>> + use<> {
        let part = store.part(self.at..self.at + self.texts);
        let mut reader = BufReader::with_capacity(PIECE_BYTES, part);
        let (mut skipped, mut line) = (0, Vec::new());
        std::iter::from_fn(move || {
            loop {
                line.clear();
                match reader.read_until(b'\n', &mut line) {
                    Ok(0) => return None,
                    Ok(_) if skipped < first => skipped += 1,
                    Ok(_) => return Some(draft(&line)),
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }
}

fn draft(line: &[u8]) -> io::Result<Draft> {
    let text: Text = serde_json::from_slice(line)?;
    Ok(Draft {
        pair_id: text.id,
        caption: text.caption.map(Into::into),
        images: text.absent.map(|reason| reason.map_or(Image::Unread, Image::Absent)),
        uids: text.uids,
        label_0: text.label_0,
        no_vote: text.no_vote.and_then(|number| NO_VOTES.get(usize::from(number)).copied()),
        is_winner_first: false,
    })
}

/// Writes the texts of one tar into a store.
pub(super) struct Keeping {
    store: TextStore,
    at: u64,
    buffer: Vec<u8>,
}

impl Keeping {
    pub(super) fn begin(store: &TextStore) -> Self {
        Self { store: store.clone(), at: store.len(), buffer: Vec::new() }
    }

    pub(super) fn add(&mut self, draft: &Draft) -> io::Result<()> {
        let number = |why: NoVote| NO_VOTES.iter().position(|known| *known == why);
        let absent = |image: &Image| match image {
            Image::Absent(reason) => Some(reason.clone()),
            _ => None,
        };
        let text = Text {
            id: draft.pair_id.clone(),
            caption: draft.caption.as_deref().map(str::to_owned),
            uids: draft.uids.clone(),
            label_0: draft.label_0,
            no_vote: draft.no_vote.and_then(number).and_then(|number| number.try_into().ok()),
            absent: draft.images.each_ref().map(absent),
        };
        serde_json::to_writer(&mut self.buffer, &text)?;
        self.buffer.write_all(b"\n")?;
        if self.buffer.len() >= PIECE_BYTES {
            self.store.append(&std::mem::take(&mut self.buffer))?;
        }
        Ok(())
    }

    /// Ends the texts with the index of the tar.
    pub(super) fn finish(
        mut self,
        offsets: &[u64],
        length: u64,
        fingerprint: &str,
        version: Option<String>,
    ) -> io::Result<Kept> {
        self.store.append(&std::mem::take(&mut self.buffer))?;
        let (at, texts) = (self.at, self.store.len() - self.at);
        for piece in offsets.chunks(PIECE_BYTES / 8) {
            let bytes: Vec<u8> = piece.iter().flat_map(|offset| offset.to_le_bytes()).collect();
            self.store.append(&bytes)?;
        }
        let (rows, fingerprint) = (offsets.len() as u64, fingerprint.to_owned());
        Ok(Kept { at, texts, rows, length, fingerprint, version })
    }
}

/// Reads a part of a file that others read too.
struct Part {
    file: Arc<File>,
    base: u64,
    range: Range<u64>,
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end.saturating_sub(self.range.start);
        let wanted = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut into[..wanted], self.base + self.range.start)?;
        self.range.start += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_reads_back_also_from_a_part_of_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = TextStore::scratch(folder.path()).unwrap();
        let drafts: Vec<Draft> = (0..5)
            .map(|row| Draft {
                pair_id: (row % 2 == 0).then(|| format!("id {row}")),
                caption: (row != 3).then(|| format!("a \"red\" fox\n{row}").into()),
                images: [Image::Unread, Image::Absent("it is not there".to_owned())],
                uids: [Some(format!("uid {row}")), None],
                label_0: [Some(0.5), Some(1.0), None][row % 3],
                no_vote: (row == 4).then_some(NoVote::Contradiction),
                is_winner_first: false,
            })
            .collect();
        let offsets = [0, 1024, 2048, 1 << 40, u64::MAX];
        let keep = || {
            let mut keeping = Keeping::begin(&store);
            drafts.iter().for_each(|draft| keeping.add(draft).unwrap());
            keeping.finish(&offsets, 7, "print", Some("tag".to_owned())).unwrap()
        };
        let (first, second) = (keep(), keep());
        assert!(second.at > first.at);
        let mut copy = vec![0; 11];
        store.reader().read_to_end(&mut copy).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&copy).unwrap();
        let stored = TextStore::stored(file, 11, store.len());
        for (store, kept) in [(&store, &first), (&store, &second), (&stored, &second)] {
            assert_eq!(kept.offsets(store).unwrap(), offsets);
            for from in [0, 3, 5] {
                let found: io::Result<Vec<Draft>> = kept.drafts(store, from).collect();
                assert_eq!(found.unwrap(), drafts[from as usize..]);
            }
        }
    }
}
