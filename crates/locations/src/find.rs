//! The files that a location stands for, in a fixed order.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::hub_data::Dataset;
use crate::location::{Known, Location, Place, Remote};
use crate::retry::{attempts, wait};
use crate::{LocationError, PATTERN_CHARACTERS, PATTERN_RULES};

/// What a location stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The folder that the names are relative to: the location itself if it is a folder, the
    /// pattern-free folder of a pattern, the folder of a file.
    pub base: Location,
    /// Whether the location names one file.
    pub is_file: bool,
    /// The files, in the order of their names, part by part.
    pub items: Vec<Item>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name below the base, parts separated by `/`.
    pub name: String,
    /// Where it is. [`crate::File::open`] asks for nothing that the listing told already.
    pub location: Location,
}

/// Finds the file, the files below a folder at any depth, or those that match a pattern. An empty
/// result is not an error; hidden names are kept.
///
/// # Errors
/// When nothing has the name, or the location cannot be listed.
pub fn find(location: &Location) -> Result<Found, LocationError> {
    let mut found = match location {
        Location::Local(path) => local(path)?,
        Location::Remote(remote) => {
            let task = remote.clone();
            wait(&remote.access, async move { find_remote(task).await })?
        }
    };
    found.items.sort_by(|a, b| a.name.split('/').cmp(b.name.split('/')));
    Ok(found)
}

async fn find_remote(remote: Remote) -> Result<Found, LocationError> {
    let key = remote.key().to_owned();
    let known = |remote: &Remote, key: &str, known: Known| {
        let found = remote.at(key);
        remote.access.pin(&found.shown, known);
        Location::Remote(found)
    };
    if matches!(remote.place, Place::Web { .. }) {
        let Some(found) = remote.head().await? else { return Err(missing(&remote)) };
        let base = Location::Remote(remote.clone()).parent();
        let name = Location::Remote(remote.clone()).name().to_owned();
        remote.access.pin(&remote.shown, found);
        let location = Location::Remote(remote);
        return Ok(Found { base, is_file: true, items: vec![Item { name, location }] });
    }
    if key.contains(PATTERN_CHARACTERS) {
        let folder = pattern_free_folder(&key);
        let pattern = glob::Pattern::new(&key).map_err(|error| LocationError::Form {
            location: remote.shown.display().to_string(),
            expected: format!("a pattern ({error})"),
        })?;
        let listed = list(&remote, &folder).await?.unwrap_or_default();
        let matching =
            listed.into_iter().filter(|(key, _)| pattern.matches_with(key, PATTERN_RULES));
        let items = items(&folder, matching, |key, found| known(&remote, key, found));
        return Ok(Found { base: Location::Remote(remote.at(&folder)), is_file: false, items });
    }
    // A name with a dot is a file first, any other a folder first; both may be wrong.
    let name = key.rsplit('/').next().unwrap_or_default();
    let file_first = name.contains('.');
    for is_file in [file_first, !file_first] {
        if is_file && !name.is_empty() {
            if let Some(found) = remote.head().await? {
                let base = Location::Remote(remote.clone()).parent();
                let item = Item { name: name.to_owned(), location: known(&remote, &key, found) };
                return Ok(Found { base, is_file: true, items: vec![item] });
            }
        } else if !is_file {
            let folder = key.trim_end_matches('/');
            let listed = list(&remote, folder).await?;
            if let Some(listed) = listed.filter(|listed| !listed.is_empty() || name.is_empty()) {
                let items = items(folder, listed, |key, found| known(&remote, key, found));
                return Ok(Found { base: Location::Remote(remote), is_file: false, items });
            }
        }
    }
    Err(missing(&remote))
}

fn missing(remote: &Remote) -> LocationError {
    LocationError::Missing { location: remote.shown.display().to_string(), detail: String::new() }
}

fn items(
    folder: &str,
    listed: impl IntoIterator<Item = (String, Known)>,
    location: impl Fn(&str, Known) -> Location,
) -> Vec<Item> {
    let below = |key: &str| {
        let rest = key.strip_prefix(folder).unwrap_or(key);
        rest.trim_start_matches('/').to_owned()
    };
    let listed: Vec<(String, Known)> = listed.into_iter().collect();
    let parents = |key: &str| {
        let ends = key.match_indices('/').map(|(end, _)| end).collect::<Vec<_>>();
        ends.into_iter().filter_map(|end| key.get(..end).map(str::to_owned)).collect::<Vec<_>>()
    };
    let folders: HashSet<String> = listed.iter().flat_map(|(key, _)| parents(key)).collect();
    listed
        .into_iter()
        // Some tools write an empty object for a folder.
        .filter(|(key, found)| *key != folder && !(found.size == 0 && folders.contains(key)))
        .map(|(key, found)| Item { name: below(&key), location: location(&key, found) })
        .collect()
}

/// The keys below a folder; `None` if there is no such folder.
async fn list(
    remote: &Remote,
    folder: &str,
) -> Result<Option<Vec<(String, Known)>>, LocationError> {
    let named = remote.named();
    match &remote.place {
        Place::Hub { id, revision, .. } => {
            let dataset = Dataset::open(&remote.access, id, revision, &named).await?;
            dataset.list(&remote.access, folder, true, &named).await
        }
        _ => {
            let Some(bucket) = remote.bucket()? else { return Ok(None) };
            attempts(&remote.access, &named, || bucket.list(folder)).await.map(Some)
        }
    }
}

/// The longest leading part of a pattern without a pattern character.
fn pattern_free_folder(pattern: &str) -> String {
    let parts: Vec<&str> = pattern.split('/').collect();
    let free = parts.iter().take_while(|part| !part.contains(PATTERN_CHARACTERS)).count();
    parts.get(..free).unwrap_or_default().join("/")
}

fn local(path: &Path) -> Result<Found, LocationError> {
    if path.is_dir() {
        let (mut items, mut seen) = (Vec::new(), HashSet::new());
        walk(path, "", &mut seen, &mut items)?;
        return Ok(Found { base: Location::Local(path.to_owned()), is_file: false, items });
    }
    let folder = |path: &Path| path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    if path.exists() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let items = vec![Item { name, location: Location::Local(path.to_owned()) }];
        return Ok(Found { base: Location::Local(folder(path)), is_file: true, items });
    }
    let text = path.to_string_lossy();
    if !text.contains(PATTERN_CHARACTERS) {
        return Err(LocationError::Missing {
            location: path.display().to_string(),
            detail: String::new(),
        });
    }
    let pattern = |error: String| LocationError::Form {
        location: path.display().to_string(),
        expected: format!("a pattern ({error})"),
    };
    let base = PathBuf::from(match pattern_free_folder(&text) {
        free if free.is_empty() && text.starts_with('/') => "/".to_owned(),
        free => free,
    });
    let matching = glob::glob_with(&text, PATTERN_RULES).map_err(|e| pattern(e.to_string()))?;
    let mut items = Vec::new();
    for found in matching {
        let found = found.map_err(|error| pattern(error.to_string()))?;
        if found.is_file() {
            let below = found.strip_prefix(&base).unwrap_or(&found);
            let name = below.to_string_lossy().into_owned();
            items.push(Item { name, location: Location::Local(found) });
        }
    }
    Ok(Found { base: Location::Local(base), is_file: false, items })
}

/// Collects the files below a folder. It does not enter a folder twice, whatever links lead to it.
fn walk(
    folder: &Path,
    prefix: &str,
    seen: &mut HashSet<PathBuf>,
    items: &mut Vec<Item>,
) -> Result<(), LocationError> {
    let fail = |error: std::io::Error| LocationError::local(folder, &error);
    if !seen.insert(folder.canonicalize().map_err(fail)?) {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            walk(&path, &format!("{name}/"), seen, items)?;
        } else {
            items.push(Item { name, location: Location::Local(path) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_pattern_has_no_pattern() {
        for (pattern, folder) in [("a/b/*.x", "a/b"), ("*.x", ""), ("a/*/b/c.x", "a"), ("a", "a")] {
            assert_eq!(pattern_free_folder(pattern), folder);
        }
    }

    #[test]
    fn local_files_are_found_in_the_order_of_their_parts() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.x", "a/z.x", "a-b/c.x", "a/y.txt"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a fixture")]
            std::fs::write(path, "x").unwrap();
        }
        let names = |location: &Path| -> Vec<String> {
            let found = find(&Location::Local(location.to_owned())).unwrap();
            found.items.into_iter().map(|item| item.name).collect()
        };
        assert_eq!(names(folder.path()), ["a/y.txt", "a/z.x", "a-b/c.x", "b.x"]);
        assert_eq!(names(&folder.path().join("*/*.x")), ["a/z.x", "a-b/c.x"]);
        assert_eq!(names(&folder.path().join("b.x")), ["b.x"]);
        assert!(find(&Location::Local(folder.path().join("none"))).is_err());
    }
}
