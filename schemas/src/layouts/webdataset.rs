//! Tars of samples, as the webdataset library writes them: the members of a sample stand together
//! and share a key, the name up to its first dot.
//!
//! Pick-a-Pic's (`sayakpaul/pickapic_v2_webdataset`) hold `KEY.jpg_0.jpg`, `KEY.jpg_1.jpg`,
//! `KEY.label_0.txt`, `KEY.label_1.txt` and `KEY.original_prompt.txt`; others `KEY.0.jpg`,
//! `KEY.1.jpg` and a `KEY.json` with `caption` or `prompt`, and `label_0`.
//!
//! Opening reads the headers and the texts, and keeps the offset of every pair: 8 bytes each. Of a
//! tar that lies elsewhere both can be kept ([`TextStore`]), so that it is fetched once for them.

use std::ops::Range;
use std::sync::Arc;

use locations::LocationError;
use serde_json::Value;

use super::beside::Beside;
use super::json;
use super::jsonl::{identifier, label};
use super::kept::Keeping;
use super::parts::{Part, key, label_of_text};
use super::records::{Batched, Batches, Draft, Image, Origin, Records, group};
use super::source::{File, Folder};
use super::tar::{Member, Members};
use super::{Kept, Layout, MAX_IMAGE_BYTES, MAX_RECORD_BYTES, TextStore};
use crate::input::InputError;
use crate::pairs::{InputFile, MAX_CAPTION_BYTES, NoVote, PairsError, RowGroup};

/// The size of a group of rows, in bytes of the archive.
const GROUP_BYTES: u64 = 64 << 20;

/// A tar of pairs.
#[derive(Debug)]
pub(super) struct WebDataset {
    origin: Arc<Origin>,
    has_images: bool,
    /// Where the sample of each pair begins.
    offsets: Vec<u64>,
    length: u64,
    fingerprint: String,
    /// The texts, if they are kept.
    kept: Option<(TextStore, Kept)>,
}

impl WebDataset {
    /// Reads the headers and texts of the whole archive.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or holds no pair.
    pub(super) fn open(input: &InputFile, has_images: bool) -> Result<Self, PairsError> {
        Self::read(origin_of(input)?, has_images, None)
    }

    /// [`WebDataset::open`] with images; the texts are kept in `texts`.
    pub(super) fn open_keeping(
        input: &InputFile,
        texts: &TextStore,
    ) -> Result<(Self, Kept), PairsError> {
        let (origin, version) = (origin_of(input)?, input.version()?);
        let mut keeping = Keeping::begin(texts);
        let mut archive = Self::read(Arc::clone(&origin), true, Some(&mut keeping))?;
        let Self { offsets, length, fingerprint, .. } = &archive;
        let kept = keeping.finish(offsets, *length, fingerprint, version);
        let kept = kept.map_err(|error| unkept(&origin, &error))?;
        archive.kept = Some((texts.clone(), kept.clone()));
        Ok((archive, kept))
    }

    /// An archive whose texts and index are kept; nothing of it is read.
    ///
    /// # Errors
    /// When it has another version now.
    pub(super) fn open_kept(
        input: &InputFile,
        texts: &TextStore,
        kept: &Kept,
    ) -> Result<Self, PairsError> {
        let origin = origin_of(input)?;
        let found = input.version()?;
        if found.as_deref() != kept.version() {
            let shown = |version: Option<&str>| version.unwrap_or("none").to_owned();
            return Err(PairsError::Location(LocationError::Changed {
                location: input.path.display().to_string(),
                expected: shown(kept.version()),
                found: shown(found.as_deref()),
            }));
        }
        Ok(Self {
            offsets: kept.offsets(texts).map_err(|error| unkept(&origin, &error))?,
            has_images: true,
            length: kept.length,
            fingerprint: kept.fingerprint.clone(),
            kept: Some((texts.clone(), kept.clone())),
            origin,
        })
    }

    fn read(
        origin: Arc<Origin>,
        has_images: bool,
        mut keeping: Option<&mut Keeping>,
    ) -> Result<Self, PairsError> {
        let mut samples = Samples::open(&origin, 0, None, false)?;
        let length = samples.length;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&length.to_le_bytes());
        samples.members.hasher = Some(hasher);
        let mut offsets = Vec::new();
        while let Some((at, draft)) = samples.next_pair()? {
            offsets.push(at);
            if let Some(keeping) = &mut keeping {
                keeping.add(&draft).map_err(|error| unkept(&origin, &error))?;
            }
        }
        if let (true, Some(example)) = (offsets.is_empty(), samples.example) {
            return Err(origin.broken(
                "the archive".to_owned(),
                format!(
                    "expected samples KEY.jpg_0.jpg, KEY.jpg_1.jpg, KEY.original_prompt.txt or \
                     KEY.0.jpg, KEY.1.jpg, KEY.json; found members such as {example:?}"
                ),
            ));
        }
        offsets.shrink_to_fit();
        let hasher = samples.members.hasher.take().unwrap_or_default();
        let fingerprint = hasher.finalize().to_hex().to_string();
        Ok(Self { origin, has_images, offsets, length, fingerprint, kept: None })
    }
}

fn origin_of(input: &InputFile) -> Result<Arc<Origin>, PairsError> {
    Ok(Arc::new(Origin {
        path: input.path.clone(),
        source_file: input.source_file.clone(),
        beside: Beside::new(Folder::around(&input.path).map_err(InputError::from)?, &[]),
    }))
}

/// The place of the kept texts failed, not the archive.
fn unkept(origin: &Origin, error: &std::io::Error) -> PairsError {
    origin.broken("its texts".to_owned(), format!("cannot be kept on this machine: {error}"))
}

impl Records for WebDataset {
    fn layout(&self) -> Layout {
        Layout::WebDataset
    }

    fn num_rows(&self) -> i64 {
        self.offsets.len() as i64
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn row_groups(&self) -> Vec<RowGroup> {
        let mut groups = Vec::new();
        let (mut first, mut start) = (0_usize, self.offsets.first().copied().unwrap_or(0));
        for row in 1..=self.offsets.len() {
            let end = self.offsets.get(row).copied();
            let here = end.unwrap_or(self.length);
            if end.is_none() || here - start >= GROUP_BYTES {
                let bytes = i64::try_from(here.saturating_sub(start)).unwrap_or(i64::MAX);
                groups.push(group(first as i64, (row - first) as i64, bytes));
                (first, start) = (row, here);
            }
        }
        groups
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
        let origin = Arc::clone(&self.origin);
        if let (false, Some((texts, kept))) = (images, &self.kept) {
            let first = u64::try_from(rows.start).unwrap_or(0);
            let of = Arc::clone(&self.origin);
            let drafts = kept.drafts(texts, first);
            let drafts = drafts.map(move |draft| draft.map_err(|error| unkept(&of, &error)));
            return Ok(Box::new(Batched::new(drafts, origin, rows, batch_rows, images)));
        }
        let offset = |row: i64| {
            let row = usize::try_from(row).unwrap_or(0);
            self.offsets.get(row).copied().unwrap_or(self.length)
        };
        let (at, until) = (offset(rows.start), offset(rows.end));
        let samples = Samples::open(&self.origin, at, Some(until), images)?;
        if samples.length != self.length {
            let found = format!(
                "it had {} bytes when it was opened and has {} now",
                self.length, samples.length
            );
            return Err(self.origin.broken("the archive".to_owned(), found));
        }
        Ok(Box::new(Batched::new(samples, origin, rows, batch_rows, images)))
    }
}

/// The samples from some offset on.
struct Samples {
    members: Members,
    origin: Arc<Origin>,
    images: bool,
    length: u64,
    /// The first member of the next sample, whose header was read.
    pending: Option<Member>,
    /// The name of the first member.
    example: Option<String>,
}

/// What was found of a sample.
#[derive(Default)]
struct Sample {
    images: [Option<Image>; 2],
    uids: [Option<String>; 2],
    names: [Option<String>; 2],
    caption: Option<String>,
    labels: [Option<f64>; 2],
    no_vote: Option<NoVote>,
    pair_id: Option<String>,
    is_pair: bool,
}

impl Samples {
    /// Begins at the byte `at`. Of an archive that lies elsewhere nothing is fetched from `until`
    /// on, where a sample begins.
    fn open(
        origin: &Arc<Origin>,
        at: u64,
        until: Option<u64>,
        images: bool,
    ) -> Result<Self, PairsError> {
        let open = || File::open(&origin.path)?.reader_until(at, until);
        let reader = open().map_err(|error| origin.io(error))?;
        let length = reader.length();
        let members = Members::new(reader);
        let origin = Arc::clone(origin);
        Ok(Self { members, origin, images, length, pending: None, example: None })
    }

    fn next_member(&mut self) -> Result<Option<Member>, PairsError> {
        if let Some(member) = self.pending.take() {
            return Ok(Some(member));
        }
        let at = self.members.position();
        let member = self.members.next_member().map_err(|error| self.damaged(at, error))?;
        if let (None, Some(member)) = (&self.example, &member) {
            self.example = Some(member.name.clone());
        }
        Ok(member)
    }

    fn damaged(&self, at: u64, error: std::io::Error) -> PairsError {
        match error.kind() {
            std::io::ErrorKind::InvalidData => {
                self.origin.broken(format!("byte {at} of the tar"), error.to_string())
            }
            _ => self.origin.io(error),
        }
    }

    /// The next sample that is a pair, and where it begins.
    fn next_pair(&mut self) -> Result<Option<(u64, Draft)>, PairsError> {
        let mut current: Option<(String, u64, Sample)> = None;
        loop {
            let member = self.next_member()?;
            let keyed = member.as_ref().and_then(|member| key(&member.name));
            let same =
                |current: &(String, u64, Sample)| keyed.is_some_and(|(key, _)| key == current.0);
            if let Some(ended) = current.take_if(|current| !same(current)) {
                let (key, at, sample) = ended;
                if sample.is_pair {
                    self.pending = member;
                    return Ok(Some((at, self.draft(&key, sample))));
                }
            }
            let Some(member) = member else { return Ok(None) };
            let Some((key, extension)) = key(&member.name) else { continue };
            let (_, _, sample) =
                current.get_or_insert_with(|| (key.to_owned(), member.at, Sample::default()));
            self.add(sample, Part::of(extension), &member)?;
        }
    }

    fn add(&mut self, sample: &mut Sample, part: Part, member: &Member) -> Result<(), PairsError> {
        let limit = match part {
            Part::Other => return Ok(()),
            Part::Image(_) if !self.images => 0,
            Part::Image(_) => MAX_IMAGE_BYTES,
            Part::Json => MAX_RECORD_BYTES as u64,
            _ => MAX_CAPTION_BYTES as u64 + 1,
        };
        let is_whole = member.size <= limit;
        let is_needed = !matches!(part, Part::Image(_)) || self.images && is_whole;
        let bytes = match is_needed {
            true => {
                let read = self.members.read(member, limit);
                read.map_err(|error| self.damaged(member.at, error))?
            }
            false => bytes::Bytes::new(),
        };
        if let (Some(hasher), false) = (&mut self.members.hasher, bytes.is_empty()) {
            hasher.update(&bytes);
        }
        let broken =
            |detail: String| self.origin.broken(format!("member {:?}", member.name), detail);
        let text = || -> Result<String, PairsError> {
            match std::str::from_utf8(&bytes) {
                // Without a byte order mark, which is no part of a prompt.
                Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned()),
                // A caption that is too long to be one, cut inside a character.
                Err(_) if !is_whole => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(_) => Err(broken("expected text in UTF-8".to_owned())),
            }
        };
        match part {
            Part::Image(side) => {
                let image = match (self.images, is_whole) {
                    (false, _) => Image::Unread,
                    (true, true) => Image::Bytes(bytes),
                    (true, false) => Image::Absent(format!(
                        "{:?}: it has {} bytes; at most {MAX_IMAGE_BYTES} are read",
                        member.name, member.size
                    )),
                };
                put(&mut sample.images, side, image);
                put(&mut sample.names, side, member.name.clone());
                sample.is_pair = true;
            }
            Part::Uid(side) => put(&mut sample.uids, side, text()?.trim().to_owned()),
            Part::Label(side) => {
                let found = text()?;
                let number = label_of_text(&found, &mut sample.no_vote).map_err(broken)?;
                if let Some(number) = number {
                    put(&mut sample.labels, side, number);
                }
                sample.is_pair = true;
            }
            Part::HasLabel => match text()?.trim() {
                "0" | "false" | "False" => sample.no_vote = Some(NoVote::HasLabelFalse),
                _ => {}
            },
            Part::PairId => sample.pair_id = Some(text()?.trim().to_owned()),
            Part::Caption => {
                sample.caption = Some(text()?);
                sample.is_pair |= member.name.ends_with("original_prompt.txt");
            }
            Part::Json => {
                if !is_whole {
                    return Err(broken(format!("expected at most {MAX_RECORD_BYTES} bytes")));
                }
                let value: Value = json::read(&bytes).map_err(broken)?;
                let named = |names: &[&str]| {
                    names.iter().map(|name| &value[*name]).find(|value| !value.is_null())
                };
                let caption = named(&["caption", "prompt", "original_prompt"]);
                if let Some(caption) = caption.and_then(Value::as_str) {
                    sample.caption.get_or_insert_with(|| caption.to_owned());
                }
                if let Some(number) = label(&value["label_0"]).map_err(broken)? {
                    put(&mut sample.labels, 0, number);
                }
                if let Some(id) = named(&["pair_id", "ranking_id"]).and_then(identifier) {
                    sample.pair_id = Some(id);
                }
                for (side, name) in ["image_0_uid", "image_1_uid"].into_iter().enumerate() {
                    if let Some(uid) = identifier(&value[name]) {
                        put(&mut sample.uids, side, uid);
                    }
                }
            }
            Part::Other => {}
        }
        Ok(())
    }

    fn draft(&self, key: &str, sample: Sample) -> Draft {
        let Sample { images, mut uids, names, caption, labels, mut no_vote, pair_id, .. } = sample;
        for (uid, name) in uids.iter_mut().zip(names) {
            if let Some(name) = name {
                uid.get_or_insert_with(|| format!("{}/{name}", self.origin.source_file));
            }
        }
        let [first, second] = labels;
        if let (Some(first), Some(second)) = (first, second)
            && first != 1.0 - second
        {
            no_vote.get_or_insert(NoVote::Contradiction);
        }
        let mut side = 0;
        let images = images.map(|image| {
            side += 1;
            let missing = || Image::Absent(format!("the sample {key:?} has no image {}", side - 1));
            image.unwrap_or_else(missing)
        });
        Draft {
            pair_id,
            caption: caption.map(Into::into),
            images,
            uids,
            label_0: first,
            no_vote,
            is_winner_first: false,
        }
    }
}

fn put<T>(places: &mut [Option<T>; 2], side: usize, value: T) {
    if let Some(place) = places.get_mut(side) {
        *place = Some(value);
    }
}

impl Iterator for Samples {
    type Item = Result<Draft, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_pair().transpose().map(|found| found.map(|(_, draft)| draft))
    }
}
