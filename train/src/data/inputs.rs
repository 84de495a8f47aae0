//! The files of pairs that a command reads, here or elsewhere, in any layout.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use runkit::path::is_address;
use runkit::signals::Stopped;
use schemas::layouts::Layout;
use schemas::pairs::{InputFile, PairFile, PairsError, discover_as};

use super::order::BLOCK_BYTES;

/// Files that are opened at the same time if they lie elsewhere, where each waits for a server.
const PARALLEL: usize = 16;

/// Where pairs come from, as the user gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PairInputs {
    /// Files, folders, patterns and addresses.
    pub pairs: Vec<PathBuf>,
    /// The splits to read; empty for the only one.
    pub splits: Vec<String>,
    /// The layout, if it is named.
    pub layout: Option<Layout>,
}

/// The layout of a file, and its largest row group that is read as a whole.
type About = (Layout, Option<(u64, PathBuf)>);

/// The files of [`PairInputs`], opened.
pub(crate) struct OpenedInputs<T> {
    /// In order.
    pub(crate) files: Vec<T>,
    notes: Vec<String>,
    /// The largest row group that is read as a whole, whatever is wanted of it, and its file.
    whole_group: Option<(u64, PathBuf)>,
}

/// Row groups of up to so many bytes are read more than once an epoch without a warning.
const SMALL_GROUP: u64 = 2 * BLOCK_BYTES;

impl<T> OpenedInputs<T> {
    /// Logs the layouts, and which files are not read.
    pub(crate) fn say(&self) {
        self.notes.iter().for_each(|note| tracing::info!("{note}"));
    }

    /// Warns if training in a random order reads much more than the pairs.
    pub(crate) fn warn_of_whole_groups(&self) {
        let Some((bytes, path)) =
            self.whole_group.as_ref().filter(|(bytes, _)| *bytes > SMALL_GROUP)
        else {
            return;
        };
        tracing::warn!(
            "{}: has no index of its pages, so every epoch reads each of its row groups (up to {} MB) \
             several times over the network; hint: `relabel convert` writes pairs with an index, and \
             `train cache` reads them once",
            path.display(),
            bytes / 1_000_000
        );
    }
}

impl PairInputs {
    /// Finds the files. Reads no more of them than tells which are pairs.
    ///
    /// # Errors
    /// As [`discover_as`].
    pub fn find(&self) -> Result<Vec<InputFile>, PairsError> {
        Ok(discover_as(&self.pairs, &self.splits, self.layout)?.files)
    }

    /// Finds and opens the files, and makes of each what `make` does.
    ///
    /// # Errors
    /// If they cannot be found or opened, or a signal stops it.
    pub(crate) fn open<T, E>(
        &self,
        make: impl Fn(InputFile, PairFile) -> Result<T, E> + Sync,
    ) -> Result<OpenedInputs<T>, E>
    where
        T: Send,
        E: From<PairsError> + From<Stopped> + Send,
    {
        let found = discover_as(&self.pairs, &self.splits, self.layout)?;
        let skipped = found.skipped();
        let open = |input: InputFile| -> Result<(About, T), E> {
            runkit::signals::check_at("plan")?;
            let file = PairFile::open(&input)?;
            let whole = file.bytes_of_whole_groups().map(|bytes| (bytes, input.path.clone()));
            Ok(((file.layout(), whole), make(input, file)?))
        };
        let is_remote = found.files.iter().any(|file| is_address(&file.path));
        let pool = is_remote
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(PARALLEL).build().ok())
            .flatten();
        let opened: Vec<(About, T)> = match pool {
            Some(pool) => {
                pool.install(|| found.files.into_par_iter().map(open).collect::<Result<_, E>>())?
            }
            None => found.files.into_iter().map(open).collect::<Result<_, E>>()?,
        };
        let (about, files): (Vec<About>, Vec<T>) = opened.into_iter().unzip();
        let (layouts, whole): (Vec<Layout>, Vec<_>) = about.into_iter().unzip();
        let notes = skipped.into_iter().chain([in_words(&layouts)]).collect();
        Ok(OpenedInputs { files, notes, whole_group: whole.into_iter().flatten().max() })
    }
}

/// How many files are in which layout.
fn in_words(layouts: &[Layout]) -> String {
    let mut counts: BTreeMap<Layout, usize> = BTreeMap::new();
    for layout in layouts {
        *counts.entry(*layout).or_default() += 1;
    }
    let of = |(layout, count): (Layout, usize)| match count {
        1 => format!("1 file in the layout {layout}"),
        _ => format!("{count} files in the layout {layout}"),
    };
    format!("pairs: {}", counts.into_iter().map(of).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_counted() {
        let layouts = [Layout::Jsonl, Layout::PickAPic, Layout::Jsonl];
        let expected = "pairs: 1 file in the layout pickapic, 2 files in the layout jsonl";
        assert_eq!(in_words(&layouts), expected);
    }
}
