//! What scoring would do: its networks loaded and timed, nothing written.

use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result};
use media::decode::{Image, Mode};
use scorers::{DescribedScorers, ScorerRecord, ScorerSet, ScorersManifest};
use serde::Serialize;

use super::external::{self, RequestsPlan};
use super::images::Subject;
use super::networks::Captions;
use super::scope::Scope;
use super::{STORE, Scoring, checksum_of_file, key, store};
use crate::generate::Manifest;
use crate::output::duration;
use crate::sources::Size;

/// The size of images if nothing is known about them.
const USUAL_SIZE: Size = Size { height: 512, width: 512 };
/// Batches that are timed; the first one only warms up.
const BATCHES: usize = 2;

/// What `Scoring::run` would do.
#[derive(Debug, Clone, Serialize)]
pub struct ScoringPlan {
    /// The reward models.
    pub scorers: Vec<ScorerPlan>,
    /// What those outside of this process get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestsPlan>,
    /// How long they take to load.
    pub loading_seconds: f64,
    /// Their dtype.
    pub dtype: String,
    /// Where they compute.
    pub device: String,
    /// Images per forward pass.
    pub batch_size: usize,
    /// Images that the scores will have.
    pub images: usize,
    /// Those that lack a score now.
    pub missing: usize,
    /// Images a second, if any is missing.
    pub images_per_second: Option<f64>,
    /// How long scoring takes.
    pub seconds: f64,
}

/// A reward model.
#[derive(Debug, Clone, Serialize)]
pub struct ScorerPlan {
    /// Its name, which is that of its metric.
    pub name: String,
    /// What it is: its kind, the layout of its files and its preprocessing.
    pub description: String,
    /// Its files of weights with the beginning of their SHA-256.
    pub weights: Vec<String>,
}

impl ScorerPlan {
    fn new(record: &ScorerRecord) -> Self {
        let weights = record.files().map(|weights| {
            let sum = weights.sha256.get(..12).unwrap_or_default();
            format!("{} {sum}", weights.file)
        });
        let (name, description) = (record.name.clone(), record.description());
        Self { name, description, weights: weights.collect() }
    }
}

impl Scoring<'_> {
    /// What `Scoring::run` would do after the images of `generated` were generated in the folder,
    /// all of them anew if `fresh`. The networks are loaded and timed on grey images; nothing is
    /// written.
    ///
    /// # Errors
    /// If a scorer is unusable.
    pub fn dry_run(&mut self, generated: Option<&Manifest>, fresh: bool) -> Result<ScoringPlan> {
        let described = match self.described.take() {
            Some(described) => described,
            None => DescribedScorers::of(&self.scorers, self.config.compute)?,
        };
        let manifest = described.manifest().clone();
        let (images, missing) = self.missing(generated, &manifest, fresh)?;
        let loading = Instant::now();
        let set = described.load()?;
        let loading_seconds = loading.elapsed().as_secs_f64();
        let batch_size = self.config.batch_size;
        let sizes = generated.into_iter().flat_map(|manifest| manifest.models.values());
        let size = sizes.map(|model| model.size).next().unwrap_or(USUAL_SIZE);
        let rate = match missing {
            0 => None,
            _ if set.scorers().is_empty() => None,
            missing => self.rate(&set, size, missing.min(batch_size))?,
        };
        Ok(ScoringPlan {
            scorers: manifest.scorers.iter().map(ScorerPlan::new).collect(),
            requests: external::rehearse(&self.scorers, &self.config.out, missing)?,
            loading_seconds,
            dtype: manifest.dtype,
            device: manifest.device,
            batch_size,
            images,
            missing,
            images_per_second: rate,
            seconds: rate.map_or(0.0, |rate| missing as f64 / rate),
        })
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
            let path = subject.path.as_deref().filter(|_| !fresh);
            let hash = path.and_then(|path| checksum_of_file(path).ok());
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
            captions.score(&images, &of_batch)?;
            seconds = Some(start.elapsed().as_secs_f64());
        }
        Ok(seconds.map(|seconds| count as f64 / seconds.max(1e-9)))
    }
}

impl fmt::Display for ScoringPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ScorerPlan { name, description, weights } in &self.scorers {
            write!(formatter, "scorer {name}: {description}")?;
            weights.iter().try_for_each(|weights| write!(formatter, ", {weights}"))?;
            writeln!(formatter)?;
        }
        self.requests.iter().try_for_each(|sent| writeln!(formatter, "sends to {sent}"))?;
        writeln!(
            formatter,
            "scorers: loaded in {:.1} s, {} on {}, batches of {}",
            self.loading_seconds, self.dtype, self.device, self.batch_size
        )?;
        write!(formatter, "{} of {} images to score", self.missing, self.images)?;
        if let Some(rate) = self.images_per_second {
            write!(formatter, ", {rate:.2} images/s, about {}", duration(self.seconds))?;
        }
        writeln!(formatter)
    }
}
