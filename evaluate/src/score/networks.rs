//! Images through the reward models: read → decode and preprocess → batches → scores.

use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use media::decode::{Limits, decode};
use rayon::prelude::*;
use scorers::{EncodedImage, Features, ImagePreprocessor, PreprocessedImage, Score, ScorerSet};

use super::images::Subject;
use super::pass::Batch;

/// Captions encoded together: always the same ones, since a feature's last bits depend on them.
const CAPTIONS_TOGETHER: usize = 64;

/// A batch with what decoding made of each image.
pub(super) struct Decoded<'run> {
    pub(super) batch: &'run Batch<'run>,
    pub(super) images: Vec<Result<DecodedImage, String>>,
}

/// An image for the networks, and as it is if scorers outside of this process want it.
pub(super) struct DecodedImage {
    pub(super) pixels: PreprocessedImage,
    pub(super) encoded: Option<EncodedImage>,
}

impl<'run> Decoded<'run> {
    /// Reads, decodes and preprocesses the images of a batch on every core.
    /// `keeps_encoded` says whether scorers outside of this process want them.
    pub(super) fn new(
        batch: &'run Batch<'run>,
        preprocessor: &ImagePreprocessor,
        keeps_encoded: bool,
    ) -> Self {
        let subjects = batch.subjects.par_iter();
        let images = subjects.map(|subject| decoded(subject, preprocessor, keeps_encoded));
        Self { batch, images: images.collect() }
    }
}

/// An image for the networks, or the reason why it has none.
fn decoded(
    subject: &Subject<'_>,
    preprocessor: &ImagePreprocessor,
    keeps_encoded: bool,
) -> Result<DecodedImage, String> {
    let path = subject.path.as_ref().ok_or_else(|| "no image".to_owned())?;
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let image = decode(&bytes, &Limits::default()).map_err(|error| error.to_string())?;
    let pixels = preprocessor.preprocess(&image).map_err(|error| error.to_string())?;
    let encoded = keeps_encoded.then(|| EncodedImage::new(Bytes::from(bytes)).at(path.clone()));
    Ok(DecodedImage { pixels, encoded })
}

/// The features of captions, each encoded once, in fixed groups.
pub(super) struct Captions<'run> {
    set: &'run ScorerSet,
    texts: Vec<&'run str>,
    index: BTreeMap<&'run str, usize>,
    /// For each group, once it is needed, its rows for each text tower.
    groups: Vec<Option<Vec<Vec<f32>>>>,
}

impl<'run> Captions<'run> {
    pub(super) fn new(set: &'run ScorerSet, texts: impl Iterator<Item = &'run str>) -> Self {
        let mut captions = Self { set, texts: Vec::new(), index: BTreeMap::new(), groups: vec![] };
        for text in texts {
            if let std::collections::btree_map::Entry::Vacant(entry) = captions.index.entry(text) {
                entry.insert(captions.texts.len());
                captions.texts.push(text);
            }
        }
        captions.groups.resize(captions.texts.len().div_ceil(CAPTIONS_TOGETHER), None);
        captions
    }

    /// The features of `texts`, in their order.
    fn get(&mut self, texts: &[&str]) -> Result<Features> {
        let mut towers = vec![Vec::new(); self.set.text_tower_count()];
        for text in texts {
            let Some(&caption) = self.index.get(text) else { continue };
            let (group, row) = (caption / CAPTIONS_TOGETHER, caption % CAPTIONS_TOGETHER);
            let members = self.texts.chunks(CAPTIONS_TOGETHER).nth(group).unwrap_or_default();
            if self.groups[group].is_none() {
                let features = self.set.encode_texts(&self.set.tokenize(members))?;
                let rows = (0..towers.len()).map(|tower| features.to_rows(tower));
                self.groups[group] = Some(rows.collect::<Result<_, _>>()?);
            }
            let rows = self.groups[group].iter().flatten();
            for (tower, rows) in towers.iter_mut().zip(rows) {
                let width = rows.len() / members.len();
                tower.extend_from_slice(&rows[row * width..(row + 1) * width]);
            }
        }
        Ok(self.set.text_features(&towers, texts.len())?)
    }

    /// The scores of images, each with its own caption: for each scorer of the set, one score per
    /// image.
    pub(super) fn score(
        &mut self,
        images: &[&PreprocessedImage],
        texts: &[&str],
    ) -> Result<Vec<Vec<Score>>> {
        if images.is_empty() {
            return Ok(vec![Vec::new(); self.set.scorers().len()]);
        }
        let image_features = self.set.encode_images(images)?;
        let mut distinct = texts.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let text_features = self.get(&distinct)?;
        let pairs: Vec<(usize, usize)> = texts
            .iter()
            .enumerate()
            .map(|(image, text)| (image, distinct.partition_point(|other| other < text)))
            .collect();
        Ok(self.set.score(&image_features, &text_features, &pairs)?)
    }
}
