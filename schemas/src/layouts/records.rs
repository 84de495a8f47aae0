//! What every layout gives: rows of a file, from any row on; and the way from a record to a row.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use locations::Location;

use super::beside::Beside;
use super::deal::is_swapped;
use super::recognise::{of_name, of_table};
use super::table::Table;
use super::webdataset::WebDataset;
use super::{Kept, Layout, TextStore, chosen_rejected, folder, image_reward_db, json, pickapic};
use crate::input::unread;
use crate::pairs::{InputFile, NoVote, PairRow, PairsError, RowGroup, positional_pair_id};

/// The most text in one batch of rows, in bytes. Only captions far beyond the usual reach it.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// The rows of a group of a file that does not say how large its images are.
const GROUP_ROWS: i64 = 128;
/// The size of the two images of a pair in the published collection, on average.
const USUAL_PAIR_BYTES: i64 = 560 << 10;

/// Batches of rows, in order.
pub(crate) type Batches = Box<dyn Iterator<Item = Result<Vec<PairRow>, PairsError>> + Send>;

/// An opened file of pairs. It holds an index, not the rows.
pub(crate) trait Records: fmt::Debug + Send + Sync {
    /// The layout.
    fn layout(&self) -> Layout;
    /// How many pairs it gives.
    fn num_rows(&self) -> i64;
    /// Changes if the file does; in hexadecimal.
    fn fingerprint(&self) -> &str;
    /// Neighbouring rows that are read together, in order.
    fn row_groups(&self) -> Vec<RowGroup>;
    /// Whether it was opened with images.
    fn has_images(&self) -> bool;
    /// Whether the images of some rows cost those of all rows before them in their row group.
    fn costs_whole_groups(&self) -> bool {
        false
    }
    /// Streams rows, which lie in the file, with or without their images.
    ///
    /// # Errors
    /// When the file is missing, changed or damaged; the same for each item.
    fn rows(
        &self,
        rows: Range<i64>,
        batch_rows: usize,
        images: bool,
    ) -> Result<Batches, PairsError>;
}

/// Opens a file in its own layout, or in the one that was named.
pub(crate) fn open(input: &InputFile, images: bool) -> Result<Arc<dyn Records>, PairsError> {
    let named = input.layout;
    let layout = match named {
        Some(layout @ (Layout::PickAPic | Layout::ChosenRejected)) => Some(layout),
        Some(Layout::Ranked) if is_parquet(input) => Some(Layout::Ranked),
        Some(layout) => return open_stream(input, layout, images),
        None => match of_name(&input.path)? {
            Some(layout) => return open_stream(input, layout, images),
            None => None,
        },
    };
    let table = Table::open(&input.path)?;
    let layout = layout.map_or_else(|| of_table(&input.path, &table), Ok)?;
    Ok(match layout {
        Layout::ChosenRejected => {
            Arc::new(chosen_rejected::ChosenRejected::open(input, table, images)?)
        }
        Layout::Ranked => Arc::new(image_reward_db::ImageRewardDb::open(input, table, images)?),
        _ => Arc::new(pickapic::PickAPic::open(input, table, images)?),
    })
}

/// Opens a file that is not Parquet.
fn open_stream(
    input: &InputFile,
    layout: Layout,
    images: bool,
) -> Result<Arc<dyn Records>, PairsError> {
    Ok(match layout {
        Layout::WebDataset => Arc::new(WebDataset::open(input, images)?),
        Layout::Folder => Arc::new(folder::ImageFolder::open(input, images)?),
        _ => Arc::new(json::Documents::open(input, layout, images)?),
    })
}

/// [`open`] with images; of a tar that lies elsewhere the texts are kept in `texts`.
pub(crate) fn open_keeping(
    input: &InputFile,
    texts: &TextStore,
) -> Result<(Arc<dyn Records>, Option<Kept>), PairsError> {
    let is_tar = match input.layout {
        Some(layout) => layout == Layout::WebDataset,
        None => input.path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar")),
    };
    if !is_tar || !Location::parse(&input.path)?.is_remote() {
        return Ok((open(input, true)?, None));
    }
    let (tar, kept) = WebDataset::open_keeping(input, texts)?;
    Ok((Arc::new(tar), Some(kept)))
}

/// Opens a tar whose texts are kept; of the tar nothing is read.
pub(crate) fn open_kept(
    input: &InputFile,
    texts: &TextStore,
    kept: &Kept,
) -> Result<Arc<dyn Records>, PairsError> {
    Ok(Arc::new(WebDataset::open_kept(input, texts, kept)?))
}

fn is_parquet(input: &InputFile) -> bool {
    input.path.extension().is_some_and(|ending| ending == "parquet")
}

/// An image of a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Image {
    /// Its file.
    Bytes(Bytes),
    /// The name of its file, as the record has it.
    Named(Arc<str>),
    /// There is one, which was not to be read.
    Unread,
    /// There is none, and why.
    Absent(String),
}

/// A pair as its record has it, before it is dealt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Draft {
    pub(super) pair_id: Option<String>,
    /// Shared by the pairs of a record, as are the names of its images.
    pub(super) caption: Option<Arc<str>>,
    pub(super) images: [Image; 2],
    pub(super) uids: [Option<String>; 2],
    /// As it is stored, whether it counts or not.
    pub(super) label_0: Option<f64>,
    pub(super) no_vote: Option<NoVote>,
    /// Whether image 0 is the preferred one of a set that always puts it first.
    pub(super) is_winner_first: bool,
}

impl Draft {
    /// The bytes of its text in a row.
    fn text_bytes(&self) -> usize {
        let named = |image: &Image| match image {
            Image::Named(name) => name.len(),
            _ => 0,
        };
        self.caption.as_ref().map_or(0, |caption| caption.len())
            + self.images.iter().map(named).sum::<usize>()
    }
}

/// The file that records come from.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) path: PathBuf,
    pub(super) source_file: String,
    /// The images that records name.
    pub(super) beside: Beside,
}

impl Origin {
    /// The record `place` of the file is not what it should be.
    pub(super) fn broken(&self, place: String, detail: impl Into<String>) -> PairsError {
        PairsError::Record { path: self.path.clone(), place, detail: detail.into() }
    }

    pub(super) fn io(&self, cause: std::io::Error) -> PairsError {
        unread(&self.path, cause).into()
    }

    /// The name of an image file, below what the user gave.
    fn uid(&self, name: &str) -> String {
        match self.source_file.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{name}"),
            None => name.to_owned(),
        }
    }

    /// Makes rows of drafts, beginning with row `first`, and reads the images they name.
    pub(super) fn rows(
        &self,
        first: i64,
        drafts: Vec<Draft>,
        images: bool,
    ) -> Result<Vec<PairRow>, PairsError> {
        let mut named: Vec<Arc<str>> = Vec::new();
        for image in drafts.iter().flat_map(|draft| &draft.images) {
            if let Image::Named(name) = image
                && images
            {
                named.push(Arc::clone(name));
            }
        }
        // The nine images of a prompt are in eight pairs each.
        named.sort_unstable();
        named.dedup();
        let read = self.beside.read(&named)?;
        let read = |name: &Arc<str>| read.get(named.binary_search(name).ok()?).cloned();
        let mut rows = Vec::with_capacity(drafts.len());
        for (row, draft) in (first..).zip(drafts) {
            let pair_id = draft.pair_id.filter(|id| !id.is_empty());
            let pair_id = pair_id.unwrap_or_else(|| positional_pair_id(&self.source_file, row));
            let mut uids = draft.uids;
            let (mut image, mut absent) = ([None, None], [None, None]);
            for (side, found) in draft.images.into_iter().enumerate() {
                let found = match found {
                    Image::Named(name) => {
                        let found = read(&name);
                        if let Some(uid) = uids.get_mut(side) {
                            uid.get_or_insert_with(|| self.uid(&name));
                        }
                        found
                    }
                    Image::Bytes(bytes) => Some(Ok(bytes)),
                    Image::Unread => None,
                    Image::Absent(reason) => Some(Err(reason)),
                };
                match (found, image.get_mut(side), absent.get_mut(side)) {
                    (Some(Ok(bytes)), Some(image), _) => *image = Some(bytes),
                    (Some(Err(reason)), _, Some(absent)) => *absent = Some(reason),
                    _ => {}
                }
            }
            let mut label = draft.label_0;
            if draft.is_winner_first && is_swapped(&pair_id) {
                uids.reverse();
                image.reverse();
                absent.reverse();
                label = label.map(|label| 1.0 - label);
            }
            let counts = draft.no_vote.is_none();
            rows.push(PairRow {
                row,
                pair_id,
                caption: draft.caption.as_deref().map(str::to_owned),
                image_uid: uids,
                human_label_0: label.filter(|_| counts),
                no_vote: draft.no_vote,
                unused_label_0: label.filter(|_| !counts),
                image,
                absent,
            });
        }
        Ok(rows)
    }
}

/// Rows from a stream of drafts, a batch at a time. Ends after the first error.
pub(super) struct Batched<S> {
    /// `None` after the end or an error.
    drafts: Option<S>,
    origin: Arc<Origin>,
    rows: Range<i64>,
    batch_rows: usize,
    images: bool,
}

impl<S: Iterator<Item = Result<Draft, PairsError>>> Batched<S> {
    /// The first draft is row `rows.start`.
    pub(super) fn new(
        drafts: S,
        origin: Arc<Origin>,
        rows: Range<i64>,
        batch_rows: usize,
        images: bool,
    ) -> Self {
        Self { drafts: Some(drafts), origin, rows, batch_rows: batch_rows.max(1), images }
    }

    fn take(&mut self) -> Result<Option<Vec<PairRow>>, PairsError> {
        let Some(stream) = self.drafts.as_mut() else { return Ok(None) };
        let left = usize::try_from(self.rows.end - self.rows.start).unwrap_or(0);
        if left == 0 {
            return Ok(None);
        }
        let (mut drafts, mut text) = (Vec::new(), 0);
        while drafts.len() < left.min(self.batch_rows) && text < MAX_TEXT_BYTES {
            let Some(draft) = stream.next().transpose()? else {
                let missing =
                    format!("{} pairs fewer than when it was opened", left - drafts.len());
                return Err(self.origin.broken("the file".to_owned(), missing));
            };
            text += draft.text_bytes();
            drafts.push(draft);
        }
        let first = self.rows.start;
        self.rows.start += drafts.len() as i64;
        self.origin.rows(first, drafts, self.images).map(Some)
    }
}

impl<S: Iterator<Item = Result<Draft, PairsError>>> Iterator for Batched<S> {
    type Item = Result<Vec<PairRow>, PairsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.take().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.drafts = None;
        }
        item
    }
}

/// Places in a file at which reading can begin.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoints {
    /// The first row, and where its record begins.
    marks: Vec<(i64, u64)>,
}

impl Checkpoints {
    /// Rows between two places, at least.
    const EVERY: i64 = 128;

    /// Offers the place of a record whose first pair is `row`; rows and places only grow.
    /// Returns whether the place was kept.
    pub(super) fn offer(&mut self, row: i64, place: u64) -> bool {
        let keeps = self.marks.last().is_none_or(|(last, _)| row - last >= Self::EVERY);
        if keeps {
            self.marks.push((row, place));
        }
        keeps
    }

    /// The last place at or before `row`, with its number among the places and its row; `None` if
    /// the file has no pair.
    pub(super) fn before(&self, row: i64) -> Option<(usize, i64, u64)> {
        let index = self.marks.partition_point(|(first, _)| *first <= row).checked_sub(1)?;
        self.marks.get(index).map(|(row, place)| (index, *row, *place))
    }
}

/// Groups of rows whose images lie in other files: their sizes are a guess, the same for all.
pub(super) fn guessed_groups(rows: i64) -> Vec<RowGroup> {
    (0..rows)
        .step_by(GROUP_ROWS as usize)
        .map(|first_row| {
            let num_rows = GROUP_ROWS.min(rows - first_row);
            group(first_row, num_rows, num_rows * USUAL_PAIR_BYTES)
        })
        .collect()
}

/// A group of rows with this many bytes of images.
pub(super) fn group(first_row: i64, num_rows: i64, bytes: i64) -> RowGroup {
    RowGroup {
        first_row,
        num_rows,
        compressed_bytes: bytes,
        uncompressed_bytes: bytes,
        missing_images: [0, 0],
    }
}
