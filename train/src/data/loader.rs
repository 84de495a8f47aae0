//! What loaders hand to the stream: items with the work that is left for each.

use bytes::Bytes;
use media::decode::{Limits, decode};
use media::resize::Resizer;

use super::augment::Augmentation;
use super::join::Source as _;
use super::memory_budget::Permit;
use super::order::Location;
use super::transform::Transform;
use super::{Content, DataError, Selection};

/// Turns row indexes into items.
pub(super) trait Loader {
    /// The largest number of rows that are loaded together.
    fn chunk_rows(&self) -> usize;

    /// Items for `rows`, in their order. `None` if the stream is closed.
    fn load(&mut self, rows: &[Row], epoch: u64) -> Result<Option<Vec<Item>>, DataError>;
}

/// A row of the dataset and its place in the order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Its index in the dataset.
    pub(super) index: usize,
    pub(super) position: u64,
}

/// One example on its way.
pub(super) struct Item {
    /// The index of its row in the dataset.
    pub(super) index: usize,
    pub(super) position: u64,
    pub(super) work: Work,
}

/// The work that is left for an example.
pub(super) enum Work {
    Decode(Encoded),
    Ready(DecodedExample),
}

/// An example without its label.
pub(super) struct DecodedExample {
    pub(super) pair_id: String,
    pub(super) caption: String,
    pub(super) content: Content,
}

impl DecodedExample {
    /// The example of a skipped pair.
    pub(super) fn skipped() -> Self {
        Self { pair_id: String::new(), caption: String::new(), content: Content::Skipped }
    }
}

/// A pair as it was read, not decoded.
pub(super) struct Encoded {
    pub(super) location: Location,
    pub(super) epoch: u64,
    pub(super) pair_id: String,
    pub(super) caption: String,
    pub(super) images: [Bytes; 2],
    /// For the bytes of the images.
    pub(super) _permit: Permit,
}

impl Encoded {
    /// Decodes and transforms both images.
    pub(super) fn decode(
        self,
        selection: &Selection,
        transform: Transform,
        seed: u64,
        resizer: &mut Resizer,
    ) -> Result<DecodedExample, DataError> {
        let mut pixels = |image: usize, bytes: &[u8]| {
            let decoded = decode(bytes, &Limits::default()).map_err(|cause| DataError::Decode {
                path: selection.source.path(self.location.file as usize).to_owned(),
                row: self.location.row,
                pair_id: self.pair_id.clone(),
                image,
                cause,
            })?;
            let augmentation = Augmentation::new(seed, self.epoch, self.location, image as u64);
            Ok::<_, DataError>(transform.apply(&decoded, augmentation, resizer))
        };
        let [first, second] = &self.images;
        let pixels = [pixels(0, first)?, pixels(1, second)?];
        Ok(DecodedExample {
            pair_id: self.pair_id,
            caption: self.caption,
            content: Content::Pixels(pixels.map(|pixels| pixels.values)),
        })
    }
}
