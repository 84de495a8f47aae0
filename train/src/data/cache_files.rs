//! Finds and opens the files of a cache, here or at an address.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use locations::{File, Location, LocationError};
use rayon::prelude::*;
use runkit::run_folder::MANIFEST;
use schemas::latents::{CacheManifest, CaptionsFile, LatentsFile, captions_name, latents_name};

use super::DataError;

/// Parts elsewhere that are opened at the same time, since each waits for a server.
const OPENED_TOGETHER: usize = 16;

/// The two files of a part.
pub(super) type PartFiles = (LatentsFile, CaptionsFile);

/// Reads the manifest of a cache and opens the files of its parts.
///
/// # Errors
/// If it is not a cache, a part is missing, or a file cannot be read.
pub(super) fn open(folder: &Path) -> Result<(CacheManifest, Vec<PartFiles>), DataError> {
    let place = Location::parse(folder)?;
    let manifest = manifest(folder, &place)?;
    let paths = paths(folder, &place, manifest.parts.len())?;
    Ok((manifest, open_all(&paths, place.is_remote())?))
}

fn refused(folder: &Path, reason: String) -> DataError {
    DataError::Cache { folder: folder.to_owned(), reason }
}

fn manifest(folder: &Path, place: &Location) -> Result<CacheManifest, DataError> {
    let refuse = |reason: String| {
        refused(folder, format!("{reason}; hint: name the folder that `train cache` wrote"))
    };
    let file = place.join(MANIFEST).and_then(|file| File::open(&file));
    let text = match file.map_err(io::Error::from).and_then(|file| file.bytes(0..file.len())) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse(format!("expected a cache, found no {MANIFEST} in it")));
        }
        Err(error) => {
            return Err(match LocationError::behind(&error) {
                Some(remote) if place.is_remote() => remote.clone().into(),
                _ => refuse(format!("{MANIFEST}: {error}")),
            });
        }
    };
    serde_json::from_slice(&text)
        .map_err(|error| refuse(format!("{MANIFEST} is not the manifest of a cache: {error}")))
}

/// The two files of each of so many parts. One listing tells whether those elsewhere exist.
fn paths(folder: &Path, place: &Location, parts: usize) -> Result<Vec<[PathBuf; 2]>, DataError> {
    let listed: Option<HashSet<String>> = match place.is_remote() {
        true => Some(locations::find(place)?.items.into_iter().map(|item| item.name).collect()),
        false => None,
    };
    let path = |name: String| -> Result<PathBuf, DataError> {
        let path = place.join(&name)?.path().to_owned();
        match listed.as_ref().map_or_else(|| path.exists(), |listed| listed.contains(&name)) {
            true => Ok(path),
            false => Err(refused(
                folder,
                format!(
                    "the cache is not complete: {name} is missing; hint: repeat the `train cache` \
                     that began it"
                ),
            )),
        }
    };
    (0..parts)
        .map(|number| Ok([path(latents_name(number))?, path(captions_name(number))?]))
        .collect()
}

fn open_all(paths: &[[PathBuf; 2]], is_remote: bool) -> Result<Vec<PartFiles>, DataError> {
    let open = |[latents, captions]: &[PathBuf; 2]| -> Result<PartFiles, DataError> {
        runkit::signals::check()?;
        Ok((LatentsFile::open(latents)?, CaptionsFile::open(captions)?))
    };
    let builder = rayon::ThreadPoolBuilder::new().num_threads(OPENED_TOGETHER);
    match is_remote.then(|| builder.build()).and_then(Result::ok) {
        Some(pool) => pool.install(|| paths.par_iter().map(open).collect()),
        None => paths.iter().map(open).collect(),
    }
}
