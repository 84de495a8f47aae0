//! The files that are converted.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use runkit::logging::counted;
use runkit::path::is_address;
use runkit::signals::StopFlag;
use schemas::layouts::{Layout, names_of};
use schemas::pairs::{InputFile, PairFile, PairsError, discover_as, split_in_name};

use super::Config;

/// A file of pairs.
pub(super) struct Source {
    pub(super) input: InputFile,
    /// The name of its outputs, below the folder and without their numbers.
    pub(super) name: String,
    /// Its bytes, or those of the images in a folder.
    pub(super) bytes: u64,
    /// What tells one state of a file elsewhere from another, if its server does.
    pub(super) version: Option<String>,
    /// The opened file; `None` of a tar that lies elsewhere, which is opened when it is converted.
    pub(super) pairs: Option<PairFile>,
}

/// All of them, in order.
pub(super) struct Sources {
    pub(super) all: Vec<Source>,
}

impl Sources {
    /// Finds and opens the files that `config` names.
    pub(super) fn open(config: &Config, stop: &StopFlag) -> Result<Self> {
        let found = discover_as(&config.pairs, &config.splits, config.layout)?;
        if let Some(skipped) = found.skipped() {
            tracing::info!("{skipped}");
        }
        let mut names = names_of(&found.files)?;
        if let [split] = config.splits.as_slice() {
            names.iter_mut().for_each(|name| put_below(name, split));
            let mut taken = HashSet::new();
            let twice = names.iter().find(|name| !taken.insert(name.as_str()));
            ensure!(
                twice.is_none(),
                "two of the inputs would become {}-00000.parquet; hint: convert them into folders \
                 of their own",
                twice.map_or("", String::as_str)
            );
        }
        tracing::info!(files = found.files.len(), "opening");
        let open = |(input, name): (InputFile, String)| -> Result<Source> {
            stop.check()?;
            let (bytes, version) = (input.bytes()?, input.version()?);
            let pairs = match is_tar_elsewhere(&input) {
                true => None,
                false => Some(PairFile::open(&input)?),
            };
            Ok(Source { input, name, bytes, version, pairs })
        };
        let files: Vec<_> = found.files.into_iter().zip(names).collect();
        // All are opened before the first error is returned, in order.
        let all: Vec<Result<Source>> = files.into_par_iter().map(open).collect();
        let sources = Self { all: all.into_iter().collect::<Result<_>>()? };
        ensure!(
            sources.pairs(None) != Some(0),
            "the inputs hold no pair; hint: look into what was read, {}",
            counted(sources.all.len() as u64, "files")
        );
        Ok(sources)
    }

    /// How many pairs are converted; `None` if that is not known before the tars are read.
    pub(super) fn pairs(&self, limit: Option<u64>) -> Option<u64> {
        let rows = |source: &Source| Some(source.pairs.as_ref()?.num_rows().unsigned_abs());
        let rows: u64 = self.all.iter().map(rows).sum::<Option<u64>>()?;
        Some(limit.map_or(rows, |limit| rows.min(limit)))
    }

    /// The bytes that the output takes at least: those of the inputs that hold their images, as far
    /// as the limit reaches.
    pub(super) fn lower_bytes(&self, limit: Option<u64>) -> u64 {
        let (mut left, mut bytes) = (limit.unwrap_or(u64::MAX), 0.0);
        for source in &self.all {
            let Some(pairs) = &source.pairs else {
                // How many pairs it has is not known.
                if limit.is_none() {
                    bytes += source.bytes as f64;
                }
                continue;
            };
            let rows = pairs.num_rows().unsigned_abs();
            let taken = rows.min(left);
            left -= taken;
            let holds_images = matches!(
                pairs.layout(),
                Layout::PickAPic | Layout::ChosenRejected | Layout::WebDataset | Layout::Folder
            );
            if holds_images && rows > 0 {
                bytes += source.bytes as f64 * (taken as f64 / rows as f64);
            }
        }
        bytes as u64
    }

    /// Logs the layouts of the files.
    pub(super) fn say_layouts(&self, named: Option<Layout>) {
        let mut counts: BTreeMap<Layout, u64> = BTreeMap::new();
        for source in &self.all {
            *counts.entry(source.layout()).or_default() += 1;
        }
        let how = if named.is_some() { "named" } else { "recognised" };
        for (layout, files) in counts {
            let files = counted(files, "files");
            tracing::info!(%layout, "{files} in the layout {layout} ({how})");
        }
    }
}

impl Source {
    pub(super) fn layout(&self) -> Layout {
        self.pairs.as_ref().map_or(Layout::WebDataset, PairFile::layout)
    }

    pub(super) fn path(&self) -> &Path {
        &self.input.path
    }

    /// The opened file.
    pub(super) fn open(&self) -> Result<PairFile, PairsError> {
        self.pairs.clone().map_or_else(|| PairFile::open(&self.input), Ok)
    }
}

/// Puts the outputs of this name into a folder of their split, unless the name tells it.
fn put_below(name: &mut String, split: &str) {
    if split_in_name(&format!("{name}-00000.parquet")).as_deref() != Some(split) {
        *name = format!("{split}/{name}");
    }
}

fn is_tar_elsewhere(input: &InputFile) -> bool {
    let is_tar = match input.layout {
        Some(layout) => layout == Layout::WebDataset,
        None => input.path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar")),
    };
    is_tar && is_address(&input.path)
}

#[cfg(test)]
mod tests {
    use super::put_below;

    #[test]
    fn the_split_is_in_the_names_of_the_outputs() {
        for (name, split, expected) in [
            ("data/train-00000-of-00645-ab", "train", "data/train-00000-of-00645-ab"),
            ("train", "train", "train"),
            ("test/00000", "test", "test/00000"),
            ("00000", "train", "train/00000"),
            ("images", "validation", "validation/images"),
        ] {
            let mut found = name.to_owned();
            put_below(&mut found, split);
            assert_eq!(found, expected);
        }
    }
}
