//! Finds input files that lie elsewhere, by the rules of [`discover()`](super::discover()) for this
//! machine.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use locations::Location;

use super::discover::{Candidate, Discovered, InputFile};
use super::{PairsError, own};
use crate::layouts::{Folder, Layout, Listing, is_image_of_pair, recognised};

/// Footers that are requested at the same time.
const PARALLEL: usize = 16;
/// The extension of hidden files that are counted.
const EXTENSION: &str = ".parquet";

/// What a file is, once it is known.
type Kind = Result<Option<&'static str>, PairsError>;

/// The files that an address stands for, in the order of their names, and their layout if it is
/// known.
pub(super) fn find(
    location: &Location,
    layout: Option<Layout>,
    found: &mut Discovered,
) -> Result<(Option<Layout>, Vec<Candidate>), PairsError> {
    let listed = locations::find(location)?;
    let base = listed.base.path().to_owned();
    let (is_pattern, is_file) = (location.is_pattern(), listed.is_file);
    let work_folders: HashSet<&str> =
        listed.items.iter().filter_map(|item| own::work_folder(&item.name)).collect();
    let (mut hidden, mut works) = (HashSet::new(), HashSet::new());
    // A pattern with a leading underscore or dot asks for hidden names.
    let pattern = location.path().strip_prefix(&base).unwrap_or(Path::new(""));
    let means_hidden = is_file || (is_pattern && pattern.to_str().and_then(hidden_part).is_some());
    let (mut named, mut listing) = (Vec::new(), Listing::default());
    let mut image_folders: Vec<&str> = Vec::new();
    for item in &listed.items {
        let above = |folder: &&&str| {
            item.name.strip_prefix(**folder).is_some_and(|rest| rest.starts_with('/'))
        };
        if let Some(part) = hidden_part(&item.name).filter(|_| !means_hidden) {
            // A folder counts once; those with a leading dot do not count.
            let (is_folder, has_dot) = (part.len() < item.name.len(), last(part).starts_with('.'));
            if is_pattern
                || (is_folder && !has_dot)
                || (!is_folder && item.name.ends_with(EXTENSION))
            {
                hidden.insert(part.to_owned());
            }
        } else if let Some(folder) = work_folders.iter().find(above) {
            works.insert(base.join(folder));
        } else if is_pattern || is_file {
            named.push((item.name.clone(), item.location.path().to_owned()));
        } else {
            let name = last(&item.name);
            listing.add(name, || (item.name.clone(), item.location.path().to_owned()));
            let folder = item.name.strip_suffix(name).unwrap_or_default().trim_end_matches('/');
            if is_image_of_pair(name) && image_folders.last() != Some(&folder) {
                image_folders.push(folder);
            }
        }
    }
    found.hidden += hidden.len();
    let mut works: Vec<_> = works.into_iter().collect();
    works.sort();
    found.own.extend(works);
    for folder in image_folders {
        listing.add_folder(match folder {
            "" => (listed.base.name().to_owned(), base.clone()),
            folder => (folder.to_owned(), listed.base.join(folder)?.path().to_owned()),
        });
    }
    let mut known = layout;
    if !is_pattern && !is_file {
        let is_own = |(_, path): &(String, PathBuf)| own::kind_of(path).map(|kind| kind.is_some());
        found.own.extend(listing.set_own_aside(is_own)?.into_iter().map(|(_, path)| path));
        (known, named) = listing.choose(layout);
        if known.is_none() {
            let (pairs, others) = recognised(named, |(_, path)| path.as_path())?;
            named = pairs;
            found.others.extend(others);
        }
    }
    if named.is_empty() {
        return Err(super::discover::nothing(location.path(), found));
    }
    let candidate = |(source_file, path)| Candidate {
        file: InputFile { path, source_file, layout: None },
        location: base.clone(),
        named: is_file,
    };
    Ok((known, named.into_iter().map(candidate).collect()))
}

/// The leading part of a name up to its first hidden part (pyarrow's `ignore_prefixes`).
fn hidden_part(name: &str) -> Option<&str> {
    let mut end = 0;
    for part in name.split('/') {
        end += part.len();
        if part.starts_with(['.', '_']) {
            return name.get(..end);
        }
        end += 1;
    }
    None
}

fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

impl InputFile {
    /// What tells one state of a file elsewhere from another, such as its ETag; `None` for a file
    /// of this machine, for a folder of images, and if the server does not say. Asks for nothing
    /// that a listing told.
    ///
    /// # Errors
    /// When the file cannot be reached.
    pub fn version(&self) -> Result<Option<String>, PairsError> {
        let location = Location::parse(&self.path)?;
        if self.layout == Some(Layout::Folder) || !location.is_remote() {
            return Ok(None);
        }
        Ok(locations::File::open(&location)?.version().map(str::to_owned))
    }

    /// The bytes of the file, or of the files in a folder of images; images beside a file of
    /// records do not count.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn bytes(&self) -> Result<u64, PairsError> {
        let unread = |cause| crate::input::unread(&self.path, cause);
        let location = Location::parse(&self.path)?;
        let is_folder = match &location {
            Location::Local(path) => path.is_dir(),
            Location::Remote(_) => self.layout == Some(Layout::Folder),
        };
        if is_folder {
            let listed = Folder::at(&self.path)?.list().map_err(unread)?;
            return Ok(listed.into_iter().map(|(_, bytes)| bytes).sum());
        }
        Ok(locations::File::open(&location)?.len())
    }
}

/// What each file is ([`own::kind`]), asked for at once rather than one after another.
///
/// # Errors
/// When a file cannot be reached; the first in order.
pub(super) fn kinds(files: &[Candidate]) -> Result<Vec<Option<&'static str>>, PairsError> {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let results: Mutex<Vec<Option<Kind>>> = Mutex::new(files.iter().map(|_| None).collect());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(index) else { break };
            if failed.load(Ordering::Relaxed) < index {
                break;
            }
            let kind = match file.file.layout {
                Some(Layout::Folder) => Ok(None),
                // No file of ours is called so, and its end would be fetched for nothing.
                _ if file.file.path.extension().is_some_and(|ending| ending == "tar") => Ok(None),
                _ => own::kind_of(&file.file.path),
            };
            if kind.is_err() {
                failed.fetch_min(index, Ordering::Relaxed);
            }
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = results.get_mut(index) {
                *place = Some(kind);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(files.len()) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}
