//! Tells the layout of a file by its name, its columns or its first record, and which files of a
//! folder are inputs.

use std::path::{Path, PathBuf};

use super::table::Table;
use super::{Layout, chosen_rejected, folder, image_reward_db, json};
use crate::columns::PAIR_COLUMNS;
use crate::pairs::{ALIASES, PairsError};

/// What a file holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Parquet,
    Tar,
    Lines,
    Json,
    Folder,
}

impl Kind {
    /// The kind of a file of this name, if it may be an input.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let (_, ending) = name.rsplit_once('.')?;
        match &*ending.to_ascii_lowercase() {
            "parquet" => Some(Self::Parquet),
            "tar" => Some(Self::Tar),
            "jsonl" | "ndjson" => Some(Self::Lines),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// Whether files of this kind can be of the layout.
    fn is_of(self, layout: Layout) -> bool {
        match layout {
            Layout::PickAPic | Layout::ChosenRejected => self == Self::Parquet,
            Layout::Ranked => matches!(self, Self::Parquet | Self::Json),
            Layout::Hpdv3 | Layout::Jsonl => matches!(self, Self::Json | Self::Lines),
            Layout::WebDataset => self == Self::Tar,
            Layout::Folder => self == Self::Folder,
        }
    }
}

/// The files below a location that may be inputs, of all kinds.
#[derive(Debug)]
pub(crate) struct Listing<P> {
    found: Vec<(Kind, P)>,
}

impl<P> Default for Listing<P> {
    fn default() -> Self {
        Self { found: Vec::new() }
    }
}

impl<P> Listing<P> {
    /// Adds a file by its bare name, if it may be an input.
    pub(crate) fn add(&mut self, name: &str, path: impl FnOnce() -> P) {
        if let Some(kind) = Kind::of_name(name) {
            self.found.push((kind, path()));
        }
    }

    /// Adds a folder that holds images of pairs ([`is_image_of_pair`]).
    pub(crate) fn add_folder(&mut self, path: P) {
        self.found.push((Kind::Folder, path));
    }

    /// Takes out the Parquet files that are this workspace's own, if there are files of other kinds:
    /// labels beside the tars that they were made of must not be all that is found.
    ///
    /// # Errors
    /// The first error of `is_own`.
    pub(crate) fn set_own_aside<E>(
        &mut self,
        mut is_own: impl FnMut(&P) -> Result<bool, E>,
    ) -> Result<Vec<P>, E> {
        let mut own = Vec::new();
        if self.found.iter().all(|(kind, _)| *kind == Kind::Parquet) {
            return Ok(own);
        }
        for (kind, path) in std::mem::take(&mut self.found) {
            if kind == Kind::Parquet && is_own(&path)? {
                own.push(path);
            } else {
                self.found.push((kind, path));
            }
        }
        Ok(own)
    }

    /// The inputs: those that can be of `layout`; without one, those of the first kind that there
    /// is, in the order Parquet, tar, lines, JSON, folders of images. With them, the layout if it
    /// is known.
    pub(crate) fn choose(self, layout: Option<Layout>) -> (Option<Layout>, Vec<P>) {
        let first = self.found.iter().map(|(kind, _)| *kind).min();
        let is_chosen = |kind: Kind| match layout {
            Some(layout) => kind.is_of(layout),
            None => Some(kind) == first,
        };
        let folder = (first == Some(Kind::Folder)).then_some(Layout::Folder);
        let chosen = self.found.into_iter().filter(|(kind, _)| is_chosen(*kind));
        (layout.or(folder), chosen.map(|(_, path)| path).collect())
    }
}

/// Whether a name is that of an image of a pair in the layout `folder`.
pub(crate) fn is_image_of_pair(name: &str) -> bool {
    folder::is_image_of_pair(name)
}

/// The layout of a Parquet file, by its columns.
pub(super) fn of_table(path: &Path, table: &Table) -> Result<Layout, PairsError> {
    let ours = PAIR_COLUMNS.iter().any(|column| {
        // Captions are called so in many a set.
        column.name.contains("_0") && table.has(&[column.name])
    });
    if ours {
        return Ok(Layout::PickAPic);
    }
    if chosen_rejected::NAMES.iter().any(|names| table.has(&names[..])) {
        return Ok(Layout::ChosenRejected);
    }
    if table.has(&image_reward_db::COLUMNS) {
        return Ok(Layout::Ranked);
    }
    // Columns of other names that mean ours: the error of the columns says how to rename them.
    let known = |name: &str| {
        PAIR_COLUMNS.iter().any(|column| column.name.eq_ignore_ascii_case(name.trim()))
            || ALIASES
                .iter()
                .any(|(_, names)| names.iter().any(|alias| alias.eq_ignore_ascii_case(name.trim())))
    };
    if table.schema().fields().iter().any(|field| known(field.name())) {
        return Ok(Layout::PickAPic);
    }
    let names = table.schema().fields().iter().map(|field| field.name().as_str());
    Err(unknown(path, &format!("the columns {}", list(names))))
}

/// The layout of a file that is not Parquet, if its name says that it is not.
pub(super) fn of_name(path: &Path) -> Result<Option<Layout>, PairsError> {
    // Discovery names the layout of remote folders.
    if path.is_dir() {
        return Ok(Some(Layout::Folder));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip"]
        .iter()
        .any(|ending| name.ends_with(ending))
    {
        let found = "a compressed archive; hint: unpack it; tars are read as they are";
        return Err(unknown(path, found));
    }
    match Kind::of_name(&name) {
        Some(Kind::Tar) => Ok(Some(Layout::WebDataset)),
        Some(Kind::Lines | Kind::Json) => of_record(path).map(Some),
        _ => Ok(None),
    }
}

/// The files of a folder that may be pairs, and those that are JSON of another kind, such as
/// `dataset_infos.json`, by name.
///
/// # Errors
/// If a file cannot be read, or its first record is damaged.
pub(crate) fn recognised<P>(
    files: Vec<P>,
    path: impl Fn(&P) -> &Path,
) -> Result<(Vec<P>, Vec<PathBuf>), PairsError> {
    let (mut pairs, mut others) = (Vec::new(), Vec::new());
    for file in files {
        let is_json =
            path(&file).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
        match is_json.then(|| of_record(path(&file))) {
            None | Some(Ok(_)) => pairs.push(file),
            Some(Err(PairsError::Layout { .. })) => others.push(path(&file).to_owned()),
            Some(Err(error)) => return Err(error),
        }
    }
    others.sort_unstable();
    Ok((pairs, others))
}

/// The layout of a file of records, by the first of them.
fn of_record(path: &Path) -> Result<Layout, PairsError> {
    let Some(record) = json::first_record(path)? else {
        return Err(unknown(path, "no record"));
    };
    let broken = |detail: String| PairsError::Record {
        path: path.to_owned(),
        place: "the first record".to_owned(),
        detail,
    };
    if serde_json::from_slice::<serde::de::IgnoredAny>(&record).is_err_and(|error| error.is_eof()) {
        // An object over several lines is not a file of records.
        return Err(unknown(path, "a first line that is the beginning of something in JSON"));
    }
    let record: serde_json::Value = json::read(&record).map_err(broken)?;
    let Some(record) = record.as_object() else {
        return Err(unknown(path, "a first record that is no object"));
    };
    let has = |names: &[&str]| names.iter().all(|name| record.contains_key(*name));
    if has(&["path1", "path2"]) {
        Ok(Layout::Hpdv3)
    } else if has(&["file_path", "human_preference"]) || has(&["image_path", "rank"]) {
        Ok(Layout::Ranked)
    } else if has(&["image_0", "image_1"]) || has(&["chosen", "rejected"]) {
        Ok(Layout::Jsonl)
    } else {
        let names = list(record.keys().map(String::as_str));
        Err(unknown(path, &format!("a first record of {names}")))
    }
}

fn list<'name>(names: impl Iterator<Item = &'name str>) -> String {
    let mut names: Vec<&str> = names.take(21).collect();
    if names.len() > 20 {
        names.truncate(20);
        names.push("…");
    }
    names.join(", ")
}

fn unknown(path: &Path, found: &str) -> PairsError {
    PairsError::Layout { path: path.to_owned(), found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_the_files_of_its_first_kind_or_of_the_named_layout() {
        let listing = || {
            let mut listing = Listing::default();
            for name in ["a.json", "b.tar", "c.parquet", "d.jsonl", "README.md", "e.tar"] {
                listing.add(name, || name);
            }
            listing.add_folder("f");
            listing
        };
        assert_eq!(listing().choose(None), (None, vec!["c.parquet"]));
        assert_eq!(listing().choose(Some(Layout::WebDataset)).1, ["b.tar", "e.tar"]);
        assert_eq!(listing().choose(Some(Layout::Hpdv3)).1, ["a.json", "d.jsonl"]);
        assert_eq!(listing().choose(Some(Layout::Folder)).1, ["f"]);
        let mut listing = Listing::default();
        listing.add_folder("f");
        assert_eq!(listing.choose(None), (Some(Layout::Folder), vec!["f"]));
    }
}
