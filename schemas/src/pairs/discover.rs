//! Finds the input files that the user named, in a fixed order and with stable names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use locations::{Location, PATTERN_CHARACTERS, PATTERN_RULES};
use rayon::prelude::*;

use super::splits::splits_of;
use super::{PairsError, own, remote};
use crate::layouts::{Layout, Listing, is_image_of_pair, recognised};

/// How many names of skipped files a message lists.
const NAMES_SHOWN: usize = 3;

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is: a path, or the address of a file elsewhere ([`Location::path`]).
    pub path: PathBuf,
    /// Its name in the output: relative to the folder that was given, or to the pattern-free folder
    /// of a pattern; the bare file name of a single file. Parts are separated by `/`.
    pub source_file: String,
    /// Its layout if it was named; recognised otherwise.
    pub layout: Option<Layout>,
}

/// The input files, and the files beside them that were skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// The input files, in order.
    pub files: Vec<InputFile>,
    /// Files and work folders of this workspace: labels, parts, caches, scores, win rates.
    pub own: Vec<PathBuf>,
    /// Names that begin with `.` or `_`, which Spark, Hadoop and macOS leave behind; pyarrow skips
    /// the same. Folders count once.
    pub hidden: usize,
    /// Files of splits that were not chosen.
    pub other_splits: usize,
    /// Files of JSON that hold no pairs, in folders of JSON.
    pub others: Vec<PathBuf>,
    /// The layout that was named.
    wanted: Option<Layout>,
}

impl Discovered {
    /// One sentence about skipped files, if there are any.
    pub fn skipped(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.own.is_empty() {
            let count = counted(self.own.len(), "output", "outputs");
            parts.push(format!("{count} of this program ({})", names(&self.own)));
        }
        if !self.others.is_empty() {
            let count = counted(self.others.len(), "file", "files");
            parts.push(format!("{count} of JSON without pairs ({})", names(&self.others)));
        }
        if self.hidden > 0 {
            parts.push(format!("{} beginning with . or _", counted(self.hidden, "name", "names")));
        }
        if self.other_splits > 0 {
            parts.push(format!("{} of other splits", counted(self.other_splits, "file", "files")));
        }
        (!parts.is_empty()).then(|| format!("skipped: {}", parts.join(", ")))
    }
}

/// The first names of a list, and how many more there are.
fn names(paths: &[PathBuf]) -> String {
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = paths.iter().take(NAMES_SHOWN).map(name).collect();
    if paths.len() > NAMES_SHOWN {
        names.push(format!("{} more", paths.len() - NAMES_SHOWN));
    }
    names.join(", ")
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// A file that was found, and the location it was found in.
pub(super) struct Candidate {
    pub(super) file: InputFile,
    pub(super) location: PathBuf,
    /// Whether the user gave this very name.
    pub(super) named: bool,
}

/// Finds the input files. Each input is a file, a folder (searched at any depth for `*.parquet`; if
/// there is none, for the files of another layout, [`discover_as`]) or a glob pattern, here or at an
/// address ([`locations`]). The order is the order given, and inside a folder or pattern that of the
/// names, part by part. Names that begin with `.` or `_`, and files that this workspace wrote, are
/// skipped and counted.
///
/// `splits` are the splits to take, by the names of files or folders. An empty list takes all
/// files, which must not be of several splits.
///
/// # Errors
/// When an input names nothing, two files have one `source_file`, one file is named twice, a name
/// is not UTF-8, the files are of several splits and `splits` is empty, or a split does not exist.
pub fn discover(inputs: &[PathBuf], splits: &[String]) -> Result<Discovered, PairsError> {
    discover_as(inputs, splits, None)
}

/// [`discover`] for files of `layout`: a folder is searched for what can be of it. Without a layout
/// it gives the first of these that it holds: Parquet, tars, lines of JSON, JSON in one of the
/// layouts, folders of `NAME_w.EXT` and `NAME_l.EXT`.
///
/// # Errors
/// As [`discover`].
pub fn discover_as(
    inputs: &[PathBuf],
    splits: &[String],
    layout: Option<Layout>,
) -> Result<Discovered, PairsError> {
    if inputs.is_empty() {
        return Err(PairsError::NoInputs);
    }
    let mut found = Discovered { wanted: layout, ..Discovered::default() };
    let mut candidates = Vec::new();
    let mut any_remote = false;
    for input in inputs {
        let location = Location::parse(input)?;
        any_remote |= location.is_remote();
        let (layout, mut files) = match &location {
            Location::Local(path) => find(path, layout, &mut found)?,
            Location::Remote(_) => remote::find(&location, layout, &mut found)?,
        };
        files.iter_mut().for_each(|candidate| candidate.file.layout = layout);
        candidates.extend(files);
    }
    let kinds: Vec<Option<&'static str>> = if any_remote {
        remote::kinds(&candidates)?
    } else {
        candidates.par_iter().map(|candidate| own::kind(&candidate.file.path)).collect()
    };
    let only_own = kinds.iter().all(Option::is_some);
    let mut files = Vec::new();
    for (candidate, kind) in candidates.into_iter().zip(kinds) {
        match kind {
            Some(kind) if only_own && candidate.named => {
                return Err(PairsError::Own { path: candidate.file.path, kind });
            }
            Some(_) => found.own.push(candidate.file.path),
            None => files.push(candidate),
        }
    }
    let Some(first) = inputs.first().filter(|_| !files.is_empty()) else {
        return Err(nothing(inputs.first().map_or(Path::new(""), PathBuf::as_path), &found));
    };
    let files = choose(first, files, splits, &mut found)?;
    refuse_duplicates(&files)?;
    found.files = files;
    Ok(found)
}

/// Keeps the files of `splits`.
fn choose(
    input: &Path,
    files: Vec<Candidate>,
    splits: &[String],
    found: &mut Discovered,
) -> Result<Vec<InputFile>, PairsError> {
    let names: Vec<(&str, &Path)> =
        files.iter().map(|c| (c.file.source_file.as_str(), c.location.as_path())).collect();
    let of_files = splits_of(&names);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for split in of_files.iter().flatten() {
        *counts.entry(split).or_default() += 1;
    }
    let list = || {
        let of = |(split, count): (&&str, &usize)| {
            format!("{split} ({})", counted(*count, "file", "files"))
        };
        counts.iter().map(of).collect::<Vec<_>>().join(", ")
    };
    if splits.is_empty() {
        let Some(example) = counts.keys().next().filter(|_| counts.len() > 1) else {
            return Ok(files.into_iter().map(|candidate| candidate.file).collect());
        };
        // The training split is the most likely choice.
        let example = if counts.contains_key("train") { "train" } else { example };
        let (path, found, example) = (input.to_owned(), list(), example.to_owned());
        return Err(PairsError::SeveralSplits { path, found, example });
    }
    if let Some(missing) = splits.iter().find(|split| !counts.contains_key(split.as_str())) {
        return Err(PairsError::NoSplit {
            path: input.to_owned(),
            split: missing.clone(),
            found: if counts.is_empty() { "no split".to_owned() } else { list() },
        });
    }
    let chosen = |split: &Option<String>| split.as_ref().is_some_and(|name| splits.contains(name));
    let kept: Vec<bool> = of_files.iter().map(chosen).collect();
    found.other_splits = kept.iter().filter(|kept| !**kept).count();
    let files = files.into_iter().zip(kept).filter(|(_, kept)| *kept);
    Ok(files.map(|(candidate, _)| candidate.file).collect())
}

/// The files of a path, and their layout if it is known.
fn find(
    input: &Path,
    layout: Option<Layout>,
    found: &mut Discovered,
) -> Result<(Option<Layout>, Vec<Candidate>), PairsError> {
    if input.is_dir() {
        let mut listing = Listing::default();
        walk(input, &mut HashSet::new(), &mut listing, found)?;
        let own = listing
            .set_own_aside(|path: &PathBuf| own::kind_of(path).map(|kind| kind.is_some()))?;
        found.own.extend(own);
        let (layout, mut paths) = listing.choose(layout);
        if layout.is_none() {
            let (pairs, others) = recognised(paths, PathBuf::as_path)?;
            paths = pairs;
            found.others.extend(others);
        }
        return Ok((layout, named(input, input, paths, found)?));
    }
    if input.exists() {
        let folder = input.parent().unwrap_or(Path::new(""));
        let mut file = named(input, folder, vec![input.to_owned()], found)?;
        file.iter_mut().for_each(|candidate| candidate.named = true);
        return Ok((layout, file));
    }
    match input.to_str() {
        Some(pattern) if pattern.contains(PATTERN_CHARACTERS) => {
            Ok((layout, matching(input, pattern, found)?))
        }
        _ => Err(PairsError::Missing { path: input.to_owned() }),
    }
}

fn matching(
    input: &Path,
    pattern: &str,
    found: &mut Discovered,
) -> Result<Vec<Candidate>, PairsError> {
    let search = |detail| PairsError::Search { path: input.to_owned(), detail };
    let folder = pattern_free_folder(input);
    // A pattern with a leading underscore or dot asks for hidden names.
    let means_hidden =
        relative(input, &folder).components().any(|part| is_hidden(part.as_os_str()));
    let mut paths = Vec::new();
    for path in
        glob::glob_with(pattern, PATTERN_RULES).map_err(|error| search(error.to_string()))?
    {
        let path = path.map_err(|error| search(error.to_string()))?;
        if !path.is_file() {
            continue;
        }
        let below = relative(&path, &folder);
        if !means_hidden && below.components().any(|part| is_hidden(part.as_os_str())) {
            found.hidden += 1;
        } else if path
            .ancestors()
            .skip(1)
            .take_while(|above| *above != folder)
            .any(own::is_work_folder)
        {
            found.own.push(path);
        } else {
            paths.push(path);
        }
    }
    named(input, &folder, paths, found)
}

/// The longest leading part of a pattern without a pattern character.
fn pattern_free_folder(pattern: &Path) -> PathBuf {
    pattern
        .components()
        .take_while(|part| match part {
            Component::Normal(name) => !name.to_string_lossy().contains(PATTERN_CHARACTERS),
            _ => true,
        })
        .collect()
}

/// `.` and `_` at the beginning, pyarrow's `ignore_prefixes`.
fn is_hidden(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    (name.starts_with(b".") && name != b"." && name != b"..") || name.starts_with(b"_")
}

/// Collects the files below `folder`. It does not enter a folder twice, whatever links lead to it.
fn walk(
    folder: &Path,
    seen: &mut HashSet<PathBuf>,
    files: &mut Listing<PathBuf>,
    found: &mut Discovered,
) -> Result<(), PairsError> {
    let search = |error: std::io::Error| PairsError::Search {
        path: folder.to_owned(),
        detail: error.to_string(),
    };
    if !seen.insert(folder.canonicalize().map_err(search)?) {
        return Ok(());
    }
    let mut has_images = false;
    for entry in std::fs::read_dir(folder).map_err(search)? {
        let path = entry.map_err(search)?.path();
        let is_parquet = path.extension().is_some_and(|extension| extension == "parquet");
        let (is_dir, name) = (path.is_dir(), path.file_name().unwrap_or_default());
        if is_hidden(name) {
            // Folders with a leading dot do not count; one of Spark's may hold the files that the
            // user is looking for.
            let counts =
                if is_dir { name.as_encoded_bytes().starts_with(b"_") } else { is_parquet };
            found.hidden += usize::from(counts);
        } else if is_dir && own::is_work_folder(&path) {
            found.own.push(path);
        } else if is_dir {
            walk(&path, seen, files, found)?;
        } else {
            let name = name.to_string_lossy();
            has_images |= is_image_of_pair(&name);
            files.add(&name, || path.clone());
        }
    }
    if has_images {
        files.add_folder(folder.to_owned());
    }
    Ok(())
}

/// Sorts the paths and gives them their names relative to `base`.
fn named(
    input: &Path,
    base: &Path,
    mut paths: Vec<PathBuf>,
    found: &Discovered,
) -> Result<Vec<Candidate>, PairsError> {
    if paths.is_empty() {
        return Err(nothing(input, found));
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let file = name(path, base)?;
            Ok(Candidate { file, location: base.to_owned(), named: false })
        })
        .collect()
}

pub(super) fn nothing(input: &Path, found: &Discovered) -> PairsError {
    let skipped = found.skipped().map_or_else(String::new, |skipped| format!(" ({skipped})"));
    let expected = found.wanted.map_or_else(
        || "files of pairs".to_owned(),
        |layout| format!("files of the layout {} ({})", layout.name(), layout.description()),
    );
    PairsError::Nothing { path: input.to_owned(), expected, skipped }
}

/// A path below `base`. A pattern such as `./*.parquet` yields paths without the leading dot.
fn relative<'path>(path: &'path Path, base: &Path) -> &'path Path {
    let plain = || {
        let plain: PathBuf = base.components().filter(|part| *part != Component::CurDir).collect();
        path.strip_prefix(plain).ok()
    };
    path.strip_prefix(base).ok().or_else(plain).unwrap_or(path)
}

fn name(path: PathBuf, base: &Path) -> Result<InputFile, PairsError> {
    let parts: Option<Vec<&str>> = relative(&path, base)
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .map(|part| part.as_os_str().to_str())
        .collect();
    match parts {
        // A folder of images that is the location itself.
        Some(parts) if parts.is_empty() => {
            let whole = std::path::absolute(&path).ok();
            let name = whole.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
            let source_file = name.unwrap_or("pairs").to_owned();
            Ok(InputFile { source_file, path, layout: None })
        }
        Some(parts) => Ok(InputFile { source_file: parts.join("/"), path, layout: None }),
        None => Err(PairsError::Name { path }),
    }
}

fn refuse_duplicates(files: &[InputFile]) -> Result<(), PairsError> {
    let mut names: HashMap<&str, &Path> = HashMap::new();
    let mut locations: HashMap<PathBuf, &Path> = HashMap::new();
    for file in files {
        // Opening a file that cannot be resolved reports it.
        let location = file.path.canonicalize().unwrap_or_else(|_| file.path.clone());
        if let Some(first) = locations.insert(location, &file.path) {
            return Err(PairsError::SameFile {
                first: first.to_owned(),
                second: file.path.clone(),
            });
        }
        if let Some(first) = names.insert(&file.source_file, &file.path) {
            return Err(PairsError::SameName {
                first: first.to_owned(),
                second: file.path.clone(),
                source_file: file.source_file.clone(),
            });
        }
    }
    Ok(())
}
