//! What scoring would be: its networks loaded and timed, nothing written.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use media::decode::{Image, Mode};
use scorers::{DescribedScorers, ScorerSet, ScorersManifest};

use super::images::Subject;
use super::networks::{self, Captions};
use super::scope::Scope;
use super::{STORE, Scoring, checksum, key, store};
use crate::generate::Manifest;
use crate::output::duration;
use crate::sources::Size;

/// The size of images that nothing is known of.
const USUAL_SIZE: Size = Size { height: 512, width: 512 };
/// Batches that are timed; the first one only warms up.
const BATCHES: usize = 2;

impl Scoring<'_> {
    /// What [`Scoring::run`] would do, in sentences, after images as `generated` says were generated in
    /// the folder, all of them anew where `fresh` says so. The networks are loaded and timed on grey
    /// images; nothing is written.
    ///
    /// # Errors
    /// What is wrong with a scorer.
    pub fn dry_run(&mut self, generated: Option<&Manifest>, fresh: bool) -> Result<String> {
        let described = match self.described.take() {
            Some(described) => described,
            None => DescribedScorers::of(&self.scorers, self.config.compute)?,
        };
        let manifest = described.manifest().clone();
        let (images, missing) = self.missing(generated, &manifest, fresh)?;
        let loading = Instant::now();
        let set = described.load()?;
        let loading = loading.elapsed().as_secs_f64();
        let mut text = String::new();
        // Writing to a String cannot fail.
        for record in &manifest.scorers {
            let weights = record.image.weights.iter().chain(&record.head);
            let weights: Vec<String> = weights
                .map(|weights| {
                    let sum = weights.sha256.get(..12).unwrap_or_default();
                    format!("{} {sum}", weights.file)
                })
                .collect();
            let _ = writeln!(
                text,
                "scorer {}: {} {}, {}, {}",
                record.name,
                record.kind,
                record.image.layout,
                record.image.preprocess,
                weights.join(", ")
            );
        }
        let batch = self.config.batch_size;
        let sizes = generated.into_iter().flat_map(|generated| generated.models.values());
        let size = sizes.map(|model| model.size).next().unwrap_or(USUAL_SIZE);
        let _ = writeln!(
            text,
            "scorers: loaded in {loading:.1} s, {} on {}, {batch} images a batch",
            manifest.dtype, manifest.device
        );
        let _ = write!(text, "{missing} of {images} images to score");
        let rate = if missing > 0 { self.rate(&set, size, missing.min(batch))? } else { None };
        let _ = match rate {
            None => writeln!(text),
            Some(rate) => {
                let time = duration(missing as f64 / rate);
                writeln!(text, ", {rate:.2} images/s, about {time}")
            }
        };
        Ok(text)
    }

    /// How many images the scores will have, and how many of them lack a score now.
    fn missing(
        &mut self,
        generated: Option<&Manifest>,
        manifest: &ScorersManifest,
        fresh: bool,
    ) -> Result<(usize, usize)> {
        let collections = match self.collections.take() {
            Some(collections) => collections,
            None => self.collections(generated)?,
        };
        let prompts = self.existing.prompts();
        let out = &self.config.out;
        let scope = Scope::new(out, self.prompts, &prompts, &collections, &self.existing);
        let (subjects, _) = scope.subjects();
        let known = store::read_all(&out.join(STORE), manifest)?;
        let lacks = |subject: &Subject<'_>| {
            let hash = checksum(subject.path.as_deref()).ok().filter(|_| !fresh);
            let key = hash.map(|hash| key(&hash, subject.prompt));
            key.is_none_or(|key| known.iter().any(|store| !store.contains_key(&key)))
        };
        let images = subjects.iter().map(Vec::len).sum();
        Ok((images, subjects.iter().flatten().filter(|subject| lacks(subject)).count()))
    }

    /// Images a second, preprocessing included, on grey ones.
    fn rate(&self, set: &ScorerSet, size: Size, count: usize) -> Result<Option<f64>> {
        const GREY: u8 = 128;
        let side = |side: i64| u32::try_from(side).context("an image is too large");
        let (height, width) = (side(size.height)?, side(size.width)?);
        let pixels = vec![GREY; 3 * height as usize * width as usize];
        let image = Image::new(Mode::Rgb, width, height, pixels)?;
        let texts: Vec<&str> = self.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let mut captions = Captions::new(set, texts.iter().copied());
        let of_batch: Vec<&str> = texts.iter().copied().cycle().take(count).collect();
        let preprocessor = set.image_preprocessor();
        let mut seconds = None;
        for _ in 0..BATCHES {
            let start = Instant::now();
            let prepared = of_batch.iter().map(|_| preprocessor.preprocess(&image));
            let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
            let images: Vec<_> = prepared.iter().collect();
            networks::score(set, &mut captions, &images, &of_batch)?;
            seconds = Some(start.elapsed().as_secs_f64());
        }
        Ok(seconds.map(|seconds| count as f64 / seconds.max(1e-9)))
    }
}
