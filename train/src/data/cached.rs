//! Latents from the folder of a cache, read row by row in the order of use.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use nn::pipeline::PromptEmbeds;
use rayon::prelude::*;
use schemas::labels::Status;
use schemas::latents::{
    CacheManifest, CaptionsFile, KEY_FINGERPRINT, KEY_MANIFEST, KEY_PART, LatentRow, LatentsFile,
    Manifest, Moments, PartPlan, PartRecord,
};
use schemas::pairs::{FileRecord, positional_pair_id};
use tch::Tensor;

use super::augment::Augmentation;
use super::join::SmallRow;
use super::loader::{DecodedExample, Item, Loader, Row, Work};
use super::order::Location;
use super::{Content, DataError, Selection, StreamOptions, cache_files};

/// The most bytes that are loaded together: enough that neighbours share an opened file.
const CHUNK_BYTES: u64 = 128 << 20;
/// Rows of a file that one thread reads at a time.
const READ_TOGETHER: usize = 64;

/// A complete cache.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    manifest: Manifest,
    fingerprint: String,
    /// The parts, in order of their numbers and so of their first captions.
    parts: Vec<Part>,
    /// Per file its parts, in order of their rows, and its row groups.
    files: Vec<CachedFile>,
}

/// One part of a cache.
#[derive(Debug)]
struct Part {
    latents: LatentsFile,
    captions: CaptionsFile,
    record: PartRecord,
}

/// The parts of one input file.
#[derive(Debug)]
struct CachedFile {
    parts: Vec<usize>,
    row_groups: Vec<(u32, u64)>,
}

const AGAIN: &str = "hint: make the cache again in an empty folder";

impl Cache {
    /// Opens all parts.
    pub(super) fn open(folder: &Path) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::Cache { folder: folder.to_owned(), reason };
        let (CacheManifest { manifest, parts: plans }, opened) = cache_files::open(folder)?;
        let mut parts = Vec::with_capacity(plans.len());
        let mut files: Vec<CachedFile> =
            manifest.input.files.iter().map(|_| CachedFile::EMPTY).collect();
        let mut fingerprint: Option<String> = None;
        for (number, (plan, opened)) in plans.iter().zip(opened).enumerate() {
            let part = Part::new(opened, &mut fingerprint).map_err(refuse)?;
            let fits = |file: &&FileRecord| file.source_file == plan.source_file;
            let file = manifest.input.files.iter().position(|file| fits(&file));
            let (Some(file), true) = (file, part.is_of(plan, &manifest)) else {
                return Err(refuse(format!("part {number} does not fit the others; {AGAIN}")));
            };
            if let Some(file) = files.get_mut(file) {
                file.row_groups.clone_from(&part.record.row_groups);
                file.parts.push(number);
            }
            parts.push(part);
        }
        let folder = folder.to_owned();
        let fingerprint = fingerprint.unwrap_or_default();
        let mut cache = Self { folder, manifest, fingerprint, parts, files };
        cache.check().map_err(refuse)?;
        Ok(cache)
    }

    /// Sorts the parts of each file and checks that they hold each row and each caption once.
    fn check(&mut self) -> Result<(), String> {
        let mut next = 0;
        for (number, part) in self.parts.iter().enumerate() {
            if part.record.first_caption != next {
                return Err(format!("part {number} does not fit the others; {AGAIN}"));
            }
            next += part.captions.num_rows();
        }
        for (file, record) in self.files.iter_mut().zip(&self.manifest.input.files) {
            let first_row =
                |number: &usize| self.parts.get(*number).map_or(0, |part| part.record.first_row);
            file.parts.sort_by_key(first_row);
            let mut rows = 0;
            for number in &file.parts {
                if first_row(number) != rows {
                    return Err(format!("part {number} does not fit the others; {AGAIN}"));
                }
                rows += self.parts.get(*number).map_or(0, Part::rows);
            }
            if rows != record.rows {
                let (name, expected) = (&record.source_file, record.rows);
                return Err(format!("expected {expected} rows of {name}, found {rows}; {AGAIN}"));
            }
        }
        Ok(())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    pub(super) fn source_file(&self, file: usize) -> &str {
        self.manifest.input.files.get(file).map_or("", |file| &file.source_file)
    }

    pub(super) fn input_fingerprint(&self, file: usize) -> &str {
        self.manifest.input.files.get(file).map_or("", |file| &file.fingerprint)
    }

    pub(super) fn path(&self, file: usize) -> &Path {
        self.parts_of(file).next().map_or(&self.folder, |part| part.latents.path())
    }

    fn parts_of(&self, file: usize) -> impl Iterator<Item = &Part> {
        let numbers = self.files.get(file).map_or(&[][..], |file| &file.parts);
        numbers.iter().filter_map(|number| self.parts.get(*number))
    }

    /// The rows of a file; the cache may hold the first of them only.
    pub(super) fn num_rows(&self, file: usize) -> u64 {
        let groups = self.files.get(file).map_or(&[][..], |file| &file.row_groups);
        groups.iter().map(|(rows, _)| u64::from(*rows)).sum()
    }

    /// Whether the cache holds a row of a file.
    pub(super) fn has_row(&self, file: usize, row: u32) -> bool {
        self.manifest.input.files.get(file).is_some_and(|file| u64::from(row) < file.rows)
    }

    /// The row groups of the pairs, which determine the order.
    pub(super) fn row_groups(&self) -> Vec<Vec<(u32, u64)>> {
        self.files.iter().map(|file| file.row_groups.clone()).collect()
    }

    /// The number of the part that holds a pair.
    fn part_of(&self, location: Location) -> Option<usize> {
        let numbers = &self.files.get(location.file as usize)?.parts;
        let starts_before = |number: &usize| {
            let part = self.parts.get(*number);
            part.is_some_and(|part| part.record.first_row <= u64::from(location.row))
        };
        numbers.get(numbers.partition_point(starts_before).checked_sub(1)?).copied()
    }

    pub(super) fn each_row(
        &self,
        file: usize,
        each: &mut dyn FnMut(SmallRow<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        for part in self.parts_of(file) {
            self.each_row_of(part, each)?;
        }
        Ok(())
    }

    fn each_row_of(
        &self,
        part: &Part,
        each: &mut dyn FnMut(SmallRow<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        for batch in part.latents.rows()? {
            runkit::signals::check_at("plan")?;
            for row in batch? {
                each(SmallRow {
                    row: u32::try_from(row.source_row).unwrap_or(u32::MAX),
                    pair_id: &row.pair_id,
                    caption: row.caption.as_deref(),
                    image_uid: row.image_uid.each_ref().map(Option::as_deref),
                    usable: row.status == Status::Ok,
                })?;
            }
        }
        Ok(())
    }

    /// The captions of these numbers.
    fn texts(&self, mut numbers: Vec<i64>) -> Result<HashMap<i64, PromptEmbeds>, DataError> {
        numbers.sort_unstable();
        numbers.dedup();
        let part_of =
            |number: i64| self.parts.partition_point(|part| part.record.first_caption <= number);
        let runs: Vec<&[i64]> = numbers
            .chunk_by(|before, after| part_of(*before) == part_of(*after))
            .flat_map(|run| run.chunks(READ_TOGETHER))
            .collect();
        let read = |run: &&[i64]| -> Result<Vec<(i64, PromptEmbeds)>, DataError> {
            let mut texts = Vec::with_capacity(run.len());
            let part = run.first().map_or(0, |&first| part_of(first).saturating_sub(1));
            let Some(Part { captions: file, record, .. }) = self.parts.get(part) else {
                return Ok(texts);
            };
            let rows: Vec<i64> = run.iter().map(|number| number - record.first_caption).collect();
            let [tokens, features] = file.layout().shape;
            for row in file.rows_at(&rows)? {
                let hidden = Tensor::f_from_slice(&row.prompt_embeds)?;
                let pooled = row.pooled_prompt_embeds.map(|pooled| {
                    Tensor::f_from_slice(&pooled).and_then(|pooled| pooled.f_unsqueeze(0))
                });
                let text = PromptEmbeds {
                    embeds_BLD: hidden.f_view([1, tokens, features])?,
                    pooled_BD: pooled.transpose()?,
                };
                texts.push((row.caption_index, text));
            }
            Ok(texts)
        };
        let texts = runs.par_iter().map(read).collect::<Result<Vec<_>, DataError>>()?;
        Ok(texts.into_iter().flatten().collect())
    }
}

impl CachedFile {
    const EMPTY: Self = Self { parts: Vec::new(), row_groups: Vec::new() };
}

impl Part {
    /// The part of two files, which must have the `fingerprint` of the parts before.
    fn new(
        (latents, captions): (LatentsFile, CaptionsFile),
        fingerprint: &mut Option<String>,
    ) -> Result<Self, String> {
        for (path, metadata) in
            [(latents.path(), latents.metadata()), (captions.path(), captions.metadata())]
        {
            let found = metadata.get(KEY_FINGERPRINT).cloned().unwrap_or_default();
            let expected = fingerprint.get_or_insert_with(|| found.clone());
            if *expected != found || found.is_empty() {
                let name = path.file_name().unwrap_or_default().display();
                return Err(format!("{name} is of another cache than the part before; {AGAIN}"));
            }
        }
        let record = json::<PartRecord>(latents.metadata(), KEY_PART)?;
        Ok(Self { latents, captions, record })
    }

    fn rows(&self) -> u64 {
        u64::try_from(self.latents.num_rows()).unwrap_or(0)
    }

    /// Whether the part is the one that the manifest of the cache lists.
    fn is_of(&self, plan: &PartPlan, cache: &Manifest) -> bool {
        let Ok(own) = json::<Manifest>(self.latents.metadata(), KEY_MANIFEST) else { return false };
        let is_listed = |file: &FileRecord| {
            file.source_file == plan.source_file
                && cache.input.files.iter().any(|listed| {
                    (&listed.source_file, &listed.fingerprint)
                        == (&file.source_file, &file.fingerprint)
                })
        };
        own.input.files.first().is_some_and(is_listed)
            && (self.record.first_row, self.rows()) == (plan.first_row, plan.rows)
            && self.record.first_caption == plan.first_caption
            && self.captions.num_rows() == plan.captions
            && self.latents.layout().shape == cache.latent_shape
    }
}

fn json<T: serde::de::DeserializeOwned>(
    metadata: &BTreeMap<String, String>,
    key: &str,
) -> Result<T, String> {
    let text = metadata.get(key).ok_or_else(|| format!("expected metadata {key:?}, found none"))?;
    serde_json::from_str(text).map_err(|error| format!("metadata {key:?}: {error}"))
}

/// Loads chunks of a cache.
pub(super) struct CacheLoader<'data> {
    selection: &'data Selection,
    cache: &'data Cache,
    seed: u64,
    hflip: bool,
    chunk_rows: usize,
}

impl<'data> CacheLoader<'data> {
    pub(super) fn new(
        selection: &'data Selection,
        cache: &'data Cache,
        options: &StreamOptions,
    ) -> Self {
        let latents = cache.parts.first().map_or(0, |part| part.latents.layout().numbers());
        let text = cache.parts.first().map_or(0, |part| {
            let layout = part.captions.layout();
            layout.numbers() + layout.pooled_numbers().unwrap_or(0)
        });
        let bytes = 4 * (4 * latents as u64 + text as u64);
        // One chunk is used, one waits and one is being read; the fourth is headroom.
        let rows = (options.memory / 4).min(CHUNK_BYTES) / bytes.max(1);
        let chunk_rows = usize::try_from(rows).unwrap_or(usize::MAX).clamp(1, 4096);
        Self { selection, cache, seed: options.seed, hflip: options.hflip, chunk_rows }
    }

    /// Reads some rows of one part; `wanted` is in ascending order.
    fn part(
        &self,
        part: Option<usize>,
        wanted: &[(Location, usize)],
        epoch: u64,
    ) -> Result<Vec<(LatentRow, [Moments; 2])>, DataError> {
        let part = part.and_then(|part| self.cache.parts.get(part));
        let Some(Part { latents: part, record, .. }) = part else { return Ok(Vec::new()) };
        let first_row = i64::try_from(record.first_row).unwrap_or(0);
        let numbers: Vec<i64> =
            wanted.iter().map(|(location, _)| i64::from(location.row) - first_row).collect();
        let rows = part.rows_at(&numbers)?;
        let moments = |image: usize| {
            let is_flipped = |location: &Location| {
                self.hflip
                    && Augmentation::new(self.seed, epoch, *location, image as u64).is_flipped()
            };
            let mut found: Vec<Option<Moments>> = wanted.iter().map(|_| None).collect();
            for flipped in [false, true] {
                let these: Vec<usize> = (0..wanted.len())
                    .filter(|&at| {
                        wanted.get(at).is_some_and(|(location, _)| is_flipped(location) == flipped)
                    })
                    .collect();
                let numbers: Vec<i64> =
                    these.iter().filter_map(|&at| numbers.get(at)).copied().collect();
                if numbers.is_empty() {
                    continue;
                }
                for (at, moments) in
                    these.into_iter().zip(part.moments_at(image, flipped, &numbers)?)
                {
                    if let Some(found) = found.get_mut(at) {
                        *found = Some(moments);
                    }
                }
            }
            Ok::<_, DataError>(found)
        };
        let (first, second) = rayon::join(|| moments(0), || moments(1));
        let both = first?.into_iter().zip(second?);
        Ok(rows
            .into_iter()
            .zip(both)
            .filter_map(|(row, (first, second))| Some((row, [first?, second?])))
            .collect())
    }
}

impl Loader for CacheLoader<'_> {
    fn chunk_rows(&self) -> usize {
        self.chunk_rows
    }

    fn load(&mut self, rows: &[Row], epoch: u64) -> Result<Option<Vec<Item>>, DataError> {
        let mut wanted: Vec<(Location, usize)> = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| !self.selection.is_skipped(row.index))
            .map(|(at, row)| (self.selection.rows.location(row.index), at))
            .collect();
        wanted.sort_unstable();
        let part_of = |location: Location| self.cache.part_of(location);
        let runs: Vec<&[(Location, usize)]> = wanted
            .chunk_by(|(before, _), (after, _)| part_of(*before) == part_of(*after))
            .flat_map(|run| run.chunks(READ_TOGETHER))
            .collect();
        let read = |run: &&[(Location, usize)]| -> Result<Vec<_>, DataError> {
            let part = run.first().and_then(|(first, _)| part_of(*first));
            let found = self.part(part, run, epoch)?;
            Ok(run.iter().map(|(_, at)| *at).zip(found).collect::<Vec<_>>())
        };
        let read = runs.par_iter().map(read).collect::<Result<Vec<_>, DataError>>()?;
        let read: Vec<_> = read.into_iter().flatten().collect();
        let texts = self
            .cache
            .texts(read.iter().filter_map(|(_, (row, _))| row.caption_index).collect())?;
        let [channels, height, width] = self.cache.manifest.latent_shape;
        let tensor = |numbers: &[f32]| {
            Tensor::f_from_slice(numbers).and_then(|all| all.f_view([channels, height, width]))
        };
        let skipped = |&Row { index, position }: &Row| {
            let work = Work::Ready(DecodedExample::skipped());
            self.selection.is_skipped(index).then_some(Item { index, position, work })
        };
        let mut items: Vec<Option<Item>> = rows.iter().map(skipped).collect();
        for (at, (row, moments)) in read {
            let (Some(&Row { index, position }), Some(item)) = (rows.get(at), items.get_mut(at))
            else {
                continue;
            };
            let Some(text) = row.caption_index.and_then(|number| texts.get(&number)) else {
                continue;
            };
            let pair_id = match self.selection.positional.get(index) {
                Some(true) => positional_pair_id(&row.source_file, row.source_row),
                _ => row.pair_id,
            };
            let [first, second] = &moments;
            *item = Some(Item {
                index,
                position,
                work: Work::Ready(DecodedExample {
                    pair_id,
                    caption: row.caption.unwrap_or_default(),
                    content: Content::Latents {
                        mean: [tensor(&first.mean)?, tensor(&second.mean)?],
                        std: [tensor(&first.std)?, tensor(&second.std)?],
                        text: PromptEmbeds {
                            embeds_BLD: text.embeds_BLD.shallow_clone(),
                            pooled_BD: text.pooled_BD.as_ref().map(Tensor::shallow_clone),
                        },
                    },
                }),
            });
        }
        let lost = || DataError::Cache {
            folder: self.cache.folder.clone(),
            reason: "a pair or its caption is not where the cache says; hint: make the cache again"
                .to_owned(),
        };
        items.into_iter().map(|item| item.ok_or_else(lost)).collect::<Result<_, _>>().map(Some)
    }
}
