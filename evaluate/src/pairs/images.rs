//! The bytes of images, as they were scored.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use schemas::layouts::MAX_IMAGE_BYTES;

use super::PairsError;
use super::plan::{PlannedImage, PlannedPrompt};
use crate::score::ScoredBytes;

/// Images of one prompt that are kept for its other pairs, in bytes.
const KEPT_BYTES: usize = 256 << 20;

/// Reads the images of one prompt after the other.
pub(super) struct Images<'run> {
    /// The folder of the scores, which name images relative to it.
    folder: &'run Path,
    scored: Option<ScoredBytes>,
    /// The images of the prompt of this text.
    text: String,
    kept: HashMap<usize, Image>,
    kept_bytes: usize,
}

/// An image file.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) bytes: Bytes,
    /// BLAKE3 of the bytes: equal names are equal images.
    pub(super) uid: String,
}

impl<'run> Images<'run> {
    pub(super) fn new(folder: &'run Path, scored: Option<ScoredBytes>) -> Self {
        Self { folder, scored, text: String::new(), kept: HashMap::new(), kept_bytes: 0 }
    }

    /// An image of a prompt.
    ///
    /// # Errors
    /// If it cannot be read, or is not the one that was scored.
    pub(super) fn read(
        &mut self,
        prompt: &PlannedPrompt,
        number: usize,
    ) -> Result<Image, PairsError> {
        if self.text != prompt.text {
            self.text.clone_from(&prompt.text);
            self.kept.clear();
            self.kept_bytes = 0;
        }
        if let Some(image) = self.kept.get(&number) {
            return Ok(image.clone());
        }
        let image = self.read_file(prompt, &prompt.images[number])?;
        if self.kept_bytes + image.bytes.len() <= KEPT_BYTES {
            self.kept_bytes += image.bytes.len();
            self.kept.insert(number, image.clone());
        }
        Ok(image)
    }

    fn read_file(&self, prompt: &PlannedPrompt, image: &PlannedImage) -> Result<Image, PairsError> {
        let path = self.folder.join(&image.file);
        let fail = |cause| PairsError::Image { path: path.clone(), cause };
        let bytes = path.metadata().map_err(fail)?.len();
        if bytes > MAX_IMAGE_BYTES {
            return Err(PairsError::TooLarge { path, bytes });
        }
        let bytes = Bytes::from(std::fs::read(&path).map_err(fail)?);
        let uid = blake3::hash(&bytes).to_hex().to_string();
        let is_scored = self.scored.as_ref().is_none_or(|scored| {
            let score = image.scores.get(scored.metric).copied();
            score.is_some_and(|score| scored.has(&uid, &prompt.text, score))
        });
        if is_scored { Ok(Image { bytes, uid }) } else { Err(PairsError::Changed { path }) }
    }
}
