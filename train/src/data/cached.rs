//! Latents from the folder of a cache, read row by row in the order of use.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use nn::pipeline::PromptEmbeds;
use rayon::prelude::*;
use schemas::labels::Status;
use schemas::latents::{
    CaptionsFile, KEY_FINGERPRINT, KEY_MANIFEST, KEY_PART, LatentRow, LatentsFile, Manifest,
    Moments, PartRecord, captions_name, latents_name,
};
use schemas::pairs::positional_pair_id;
use tch::Tensor;

use super::augment::Augmentation;
use super::join::SmallRow;
use super::loader::{DecodedExample, Item, Loader, Row, Work};
use super::order::Location;
use super::{Content, DataError, Selection, StreamOptions};

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
    latents: Vec<LatentsFile>,
    captions: Vec<CaptionsFile>,
    parts: Vec<PartRecord>,
}

impl Cache {
    /// Opens all parts.
    pub(super) fn open(folder: &Path) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::Cache { folder: folder.to_owned(), reason };
        let count = parts_of(folder).map_err(refuse)?;
        let (mut latents, mut captions, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut fingerprint = None;
        for index in 0..count {
            let paths = [latents_name(index, count), captions_name(index, count)]
                .map(|name| folder.join(name));
            if let Some(missing) = paths.iter().find(|path| !path.exists()) {
                return Err(refuse(format!(
                    "the cache is not complete: {} is missing; hint: repeat the `train cache` that \
                     began it",
                    missing.file_name().unwrap_or_default().display()
                )));
            }
            let [latents_path, captions_path] = paths;
            let part = LatentsFile::open(latents_path)?;
            let texts = CaptionsFile::open(captions_path)?;
            for metadata in [part.metadata(), texts.metadata()] {
                let found = metadata.get(KEY_FINGERPRINT).cloned().unwrap_or_default();
                let expected = fingerprint.get_or_insert_with(|| found.clone());
                if *expected != found || found.is_empty() {
                    return Err(refuse(format!(
                        "part {index} is of another cache than the part before; hint: make the \
                         cache again in an empty folder"
                    )));
                }
            }
            parts.push(json::<PartRecord>(part.metadata(), KEY_PART).map_err(refuse)?);
            latents.push(part);
            captions.push(texts);
        }
        let first = latents.first().map(LatentsFile::metadata).cloned().unwrap_or_default();
        let manifest = json::<Manifest>(&first, KEY_MANIFEST).map_err(refuse)?;
        let cache = Self {
            folder: folder.to_owned(),
            manifest,
            fingerprint: fingerprint.unwrap_or_default(),
            latents,
            captions,
            parts,
        };
        cache.check().map_err(refuse)?;
        Ok(cache)
    }

    /// Checks that the parts fit together.
    fn check(&self) -> Result<(), String> {
        let files = &self.manifest.input.files;
        let hint = "hint: make the cache again in an empty folder";
        if files.len() != self.latents.len() {
            let (expected, found) = (files.len(), self.latents.len());
            return Err(format!("expected {expected} parts, found {found}; {hint}"));
        }
        let mut next = 0;
        let parts = self.parts.iter().zip(files).zip(self.latents.iter().zip(&self.captions));
        for (index, ((part, file), (latents, captions))) in parts.enumerate() {
            let rows = |rows: i64| u64::try_from(rows).unwrap_or(0);
            let groups: u64 = part.row_groups.iter().map(|(rows, _)| u64::from(*rows)).sum();
            let fits = rows(latents.num_rows()) == file.rows
                && groups == file.rows
                && part.first_caption == next
                && latents.layout().shape == self.manifest.latent_shape;
            if !fits {
                return Err(format!("part {index} does not fit the others; {hint}"));
            }
            next += captions.num_rows();
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
        self.latents.len()
    }

    pub(super) fn source_file(&self, file: usize) -> &str {
        self.manifest.input.files.get(file).map_or("", |file| &file.source_file)
    }

    pub(super) fn input_fingerprint(&self, file: usize) -> &str {
        self.manifest.input.files.get(file).map_or("", |file| &file.fingerprint)
    }

    pub(super) fn path(&self, file: usize) -> &Path {
        self.latents.get(file).map_or(&self.folder, LatentsFile::path)
    }

    pub(super) fn num_rows(&self, file: usize) -> i64 {
        self.latents.get(file).map_or(0, LatentsFile::num_rows)
    }

    /// The row groups of the pairs, which determine the order.
    pub(super) fn row_groups(&self) -> Vec<Vec<(u32, u64)>> {
        self.parts.iter().map(|part| part.row_groups.clone()).collect()
    }

    pub(super) fn each_row(
        &self,
        file: usize,
        each: &mut dyn FnMut(SmallRow<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let Some(part) = self.latents.get(file) else { return Ok(()) };
        for batch in part.rows()? {
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
        let part_of = |number: i64| self.parts.partition_point(|part| part.first_caption <= number);
        let runs: Vec<&[i64]> = numbers
            .chunk_by(|before, after| part_of(*before) == part_of(*after))
            .flat_map(|run| run.chunks(READ_TOGETHER))
            .collect();
        let read = |run: &&[i64]| -> Result<Vec<(i64, PromptEmbeds)>, DataError> {
            let mut texts = Vec::with_capacity(run.len());
            let part = run.first().map_or(0, |&first| part_of(first).saturating_sub(1));
            let (Some(file), Some(record)) = (self.captions.get(part), self.parts.get(part)) else {
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

/// The number of parts, from the name of any of them.
fn parts_of(folder: &Path) -> Result<usize, String> {
    let hint = "hint: name the folder that `train cache` wrote";
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("cannot list it: {error}; {hint}"))?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    let counts = names.filter_map(|name| {
        let count = name.to_str()?.strip_prefix("latents-")?.strip_suffix(".parquet")?;
        count.split_once("-of-")?.1.parse::<usize>().ok()
    });
    let counts: std::collections::BTreeSet<usize> = counts.collect();
    match counts.iter().collect::<Vec<_>>()[..] {
        [] => Err(format!("expected a cache, found no latents-*.parquet in it; {hint}")),
        [count] => Ok(*count),
        _ => Err(format!("it holds parts of several caches; {hint}")),
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
        let latents = cache.latents.first().map_or(0, |file| file.layout().numbers());
        let text = cache.captions.first().map_or(0, |file| {
            file.layout().numbers() + file.layout().pooled_numbers().unwrap_or(0)
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
        file: usize,
        wanted: &[(Location, usize)],
        epoch: u64,
    ) -> Result<Vec<(LatentRow, [Moments; 2])>, DataError> {
        let Some(part) = self.cache.latents.get(file) else { return Ok(Vec::new()) };
        let numbers: Vec<i64> =
            wanted.iter().map(|(location, _)| i64::from(location.row)).collect();
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
        let runs: Vec<&[(Location, usize)]> = wanted
            .chunk_by(|(before, _), (after, _)| before.file == after.file)
            .flat_map(|run| run.chunks(READ_TOGETHER))
            .collect();
        let read = |run: &&[(Location, usize)]| -> Result<Vec<_>, DataError> {
            let file = run.first().map_or(0, |(first, _)| first.file as usize);
            let found = self.part(file, run, epoch)?;
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
