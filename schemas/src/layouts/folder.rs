//! A folder of images: `NAME_w.EXT` is the preferred one, `NAME_l.EXT` the other, `NAME.txt` the
//! caption; or `NAME.EXT`, `NAME-rejectedlabel.EXT` and `NAME.txt`, as trainers with a graphical
//! interface name them. In the order of the names.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Layout;
use super::beside::Beside;
use super::records::{Batched, Batches, Draft, Image, Origin, Records, group};
use super::source::Folder;
use crate::input::InputError;
use crate::pairs::{InputFile, MAX_CAPTION_BYTES, PairsError, RowGroup};

/// The endings of images.
const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// How the names of the two images end.
const WINNER: &str = "_w";
const LOSER: &str = "_l";
const REJECTED: &str = "-rejectedlabel";
/// The rows of a group.
const GROUP_ROWS: usize = 128;

/// A folder of pairs. It holds their names.
#[derive(Debug)]
pub(super) struct ImageFolder {
    pairs: Arc<Pairs>,
    has_images: bool,
    fingerprint: String,
}

#[derive(Debug)]
struct Pairs {
    origin: Arc<Origin>,
    folder: Folder,
    entries: Vec<Entry>,
    /// The endings of the files, as they are spelled.
    endings: Vec<String>,
}

/// A pair of the folder.
#[derive(Debug)]
struct Entry {
    stem: Box<str>,
    /// Whether the images are called `_w` and `_l`.
    is_marked: bool,
    /// The numbers of the endings of the images that are there.
    sides: [Option<u8>; 2],
    has_text: bool,
    /// The sizes of the images together.
    bytes: u64,
}

/// Whether a name is that of an image of a pair.
pub(super) fn is_image_of_pair(name: &str) -> bool {
    let Some((base, ending)) = name.rsplit_once('.') else { return false };
    is_image(ending) && [WINNER, LOSER, REJECTED].iter().any(|mark| base.ends_with(mark))
}

fn is_image(ending: &str) -> bool {
    IMAGES.iter().any(|image| ending.eq_ignore_ascii_case(image))
}

impl ImageFolder {
    /// Lists the folder.
    ///
    /// # Errors
    /// When it cannot be listed, or holds no pair.
    pub(super) fn open(input: &InputFile, images: bool) -> Result<Self, PairsError> {
        let folder = Folder::at(&input.path).map_err(InputError::from)?;
        let origin = Arc::new(Origin {
            path: input.path.clone(),
            source_file: input.source_file.clone(),
            beside: Beside::new(folder.clone(), &[]),
        });
        let mut files = folder.list().map_err(|error| origin.io(error))?;
        files.retain(|(name, _)| !name.starts_with('.'));
        files.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        let mut endings: Vec<String> = Vec::new();
        let mut entries: BTreeMap<(&str, bool), Entry> = BTreeMap::new();
        let mut texts: HashSet<&str> = HashSet::new();
        for (name, size) in &files {
            let Some((base, ending)) = name.rsplit_once('.') else { continue };
            if ending == "txt" {
                texts.insert(base);
            } else if !is_image(ending) {
                continue;
            }
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&size.to_le_bytes());
            if ending == "txt" {
                continue;
            }
            let (stem, is_marked, side) = match base {
                _ if base.ends_with(WINNER) => (base.strip_suffix(WINNER), true, 0),
                _ if base.ends_with(LOSER) => (base.strip_suffix(LOSER), true, 1),
                _ if base.ends_with(REJECTED) => (base.strip_suffix(REJECTED), false, 1),
                _ => (Some(base), false, 0),
            };
            let stem = stem.unwrap_or(base);
            let known = endings.iter().position(|known| known == ending).unwrap_or_else(|| {
                endings.push(ending.to_owned());
                endings.len() - 1
            });
            let entry = entries.entry((stem, is_marked)).or_insert_with(|| Entry {
                stem: stem.into(),
                is_marked,
                sides: [None, None],
                has_text: false,
                bytes: 0,
            });
            // There are at most 64 spellings of the endings. Of two with one name the first counts.
            if let Some(place @ None) = entry.sides.get_mut(side) {
                *place = u8::try_from(known).ok();
                entry.bytes += size;
            }
        }
        let is_pair = |entry: &Entry| entry.is_marked || entry.sides[1].is_some();
        let mut entries: Vec<Entry> = entries.into_values().filter(is_pair).collect();
        for entry in &mut entries {
            entry.has_text = texts.contains(&*entry.stem);
        }
        if entries.is_empty() {
            let found = match files.first() {
                None => "an empty folder".to_owned(),
                Some((name, _)) => format!("{} files such as {name:?}", files.len()),
            };
            let expected = "expected NAME_w.EXT, NAME_l.EXT and NAME.txt, or NAME.EXT, \
                            NAME-rejectedlabel.EXT and NAME.txt";
            return Err(
                origin.broken("the folder".to_owned(), format!("{expected}; found {found}"))
            );
        }
        let fingerprint = hasher.finalize().to_hex().to_string();
        let pairs = Arc::new(Pairs { origin, folder, entries, endings });
        Ok(Self { pairs, has_images: images, fingerprint })
    }
}

impl Records for ImageFolder {
    fn layout(&self) -> Layout {
        Layout::Folder
    }

    fn num_rows(&self) -> i64 {
        self.pairs.entries.len() as i64
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn row_groups(&self) -> Vec<RowGroup> {
        let mut first = 0;
        let chunks = self.pairs.entries.chunks(GROUP_ROWS);
        chunks
            .map(|entries| {
                let bytes =
                    entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
                let rows = entries.len() as i64;
                let here = group(first, rows, i64::try_from(bytes).unwrap_or(i64::MAX));
                first += rows;
                here
            })
            .collect()
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
        let pairs = Arc::clone(&self.pairs);
        let first = usize::try_from(rows.start).unwrap_or(0);
        let drafts = (first..pairs.entries.len()).map(move |index| pairs.draft(index));
        let origin = Arc::clone(&self.pairs.origin);
        Ok(Box::new(Batched::new(drafts, origin, rows, batch_rows, images)))
    }
}

impl Pairs {
    fn draft(&self, index: usize) -> Result<Draft, PairsError> {
        let Some(entry) = self.entries.get(index) else {
            return Err(self.origin.broken(format!("pair {index}"), "there is no such pair"));
        };
        let marks = if entry.is_marked { [WINNER, LOSER] } else { ["", REJECTED] };
        let names = [0, 1].map(|side| {
            let ending = entry.sides.get(side).copied().flatten();
            let ending = ending.and_then(|ending| self.endings.get(usize::from(ending)));
            let mark = marks.get(side).copied().unwrap_or_default();
            ending.map(|ending| format!("{}{mark}.{ending}", entry.stem))
        });
        let mut side = 0;
        let images = names.clone().map(|name| {
            let mark = marks.get(side).copied().unwrap_or_default();
            side += 1;
            let missing = || Image::Absent(format!("the image {}{mark} is missing", entry.stem));
            name.map_or_else(missing, |name| Image::Named(name.into()))
        });
        let uid = |name: String| format!("{}/{name}", self.origin.source_file);
        Ok(Draft {
            pair_id: None,
            caption: if entry.has_text { self.caption(&entry.stem)?.map(Into::into) } else { None },
            images,
            uids: names.map(|name| name.map(uid)),
            label_0: Some(1.0),
            no_vote: None,
            is_winner_first: true,
        })
    }

    fn caption(&self, stem: &str) -> Result<Option<String>, PairsError> {
        let name = format!("{stem}.txt");
        let limit = MAX_CAPTION_BYTES as u64 + 1;
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let mut reader = io::Read::take(self.folder.open(&name)?.reader(0)?, limit);
            io::Read::read_to_end(&mut reader, &mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|error| self.origin.io(error))?,
        };
        let is_whole = bytes.len() <= MAX_CAPTION_BYTES;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            // Too long to be a caption, and cut inside a character.
            Err(error) if !is_whole => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            Err(_) => return Err(self.origin.broken(name, "expected text in UTF-8")),
        };
        // Editors begin a file with a byte order mark and end it with a line break, which are no
        // part of a prompt.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        Ok(Some(text.strip_suffix('\r').unwrap_or(text).to_owned()))
    }
}
