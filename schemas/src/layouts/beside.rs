//! Reads the images that records name by paths relative to their file, from folders or zips.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use locations::LocationError;

use super::MAX_IMAGE_BYTES;
use super::source::Folder;
use super::zipped::Zip;
use crate::input::unread;
use crate::pairs::PairsError;

/// The images beside a file.
#[derive(Debug)]
pub(super) struct Beside {
    folder: Folder,
    /// Folders in which a bare name may lie.
    below: &'static [&'static str],
    /// The zips that were looked for; `None` if nothing has that name.
    zips: Mutex<HashMap<String, Option<Arc<Zip>>>>,
}

impl Beside {
    /// Images below `folder`. A bare name is looked for in it and then in the folders `below`.
    pub(super) fn new(folder: Folder, below: &'static [&'static str]) -> Self {
        Self { folder, below, zips: Mutex::default() }
    }

    /// Reads files, several at a time; for each its bytes, or why they are missing.
    ///
    /// # Errors
    /// When reading fails in a way that says nothing about the file, such as a failing disk.
    pub(super) fn read(
        &self,
        names: &[Arc<str>],
    ) -> Result<Vec<Result<Bytes, String>>, PairsError> {
        let read = self.folder.each(names, |name| self.read_one(name));
        read.into_iter().collect()
    }

    fn read_one(&self, name: &str) -> Result<Result<Bytes, String>, PairsError> {
        let places = match inside(name) {
            Ok(name) => self.places(&name),
            Err(reason) => return Ok(Err(reason)),
        };
        for place in &places {
            let found = match place {
                Place::File(name) => self.file(name),
                Place::Member { zip, members } => self.member(zip, members),
            };
            match found {
                Ok(Some(bytes)) => return Ok(Ok(bytes)),
                Ok(None) => {}
                Err(error) if is_of_the_file(&error) => {
                    return Ok(Err(format!("{name:?}: {error}")));
                }
                Err(cause) => return Err(unread(Path::new(name), cause).into()),
            }
        }
        Ok(Err(format!("{name:?}: no such file beside the pairs")))
    }

    /// Where a file may lie, in the order in which it is looked for.
    fn places(&self, name: &str) -> Vec<Place> {
        let mut names = vec![name.to_owned()];
        match name.split_once('/') {
            None => names.extend(self.below.iter().map(|folder| format!("{folder}/{name}"))),
            Some((folder, bare)) if self.below.contains(&folder) => names.push(bare.to_owned()),
            Some(_) => {}
        }
        let mut places: Vec<Place> = names.iter().cloned().map(Place::File).collect();
        for name in &names {
            // a/b/c.webp may be in a/b.zip as c.webp, b/c.webp or a/b/c.webp, or in a.zip.
            for (end, _) in name.rmatch_indices('/') {
                let (folder, inner) = (&name[..end], &name[end + 1..]);
                let last = folder.rsplit('/').next().unwrap_or(folder);
                let mut members = vec![inner.to_owned(), format!("{last}/{inner}")];
                if last != folder {
                    members.push(name.clone());
                }
                places.push(Place::Member { zip: format!("{folder}.zip"), members });
            }
        }
        places
    }

    fn file(&self, name: &str) -> io::Result<Option<Bytes>> {
        match self.folder.open(name).and_then(|file| file.read(MAX_IMAGE_BYTES)) {
            Err(error) if is_nothing(&error) => Ok(None),
            found => found.map(Some),
        }
    }

    fn member(&self, zip: &str, members: &[String]) -> io::Result<Option<Bytes>> {
        let Some(zip) = self.zip(zip)? else { return Ok(None) };
        for member in members {
            if let Some(bytes) = zip.read(member, MAX_IMAGE_BYTES)? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn zip(&self, name: &str) -> io::Result<Option<Arc<Zip>>> {
        let mut zips = self.zips.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = zips.get(name) {
            return Ok(known.clone());
        }
        let opened = match self.folder.open(name) {
            Ok(file) => Some(Arc::new(Zip::open(name, file)?)),
            Err(error) if is_nothing(&error) => None,
            Err(error) => return Err(error),
        };
        zips.insert(name.to_owned(), opened.clone());
        Ok(opened)
    }
}

/// A file, or a member of a zip under one of some names.
enum Place {
    File(String),
    Member { zip: String, members: Vec<String> },
}

/// The path without its `.` parts, if it stays in the folder that it is relative to.
fn inside(path: &str) -> Result<String, String> {
    let drive = path.as_bytes().get(1) == Some(&b':');
    if path.starts_with('/') || path.starts_with('\\') || drive {
        return Err(format!("{path:?}: expected a path relative to the file of the pairs"));
    }
    if path.contains("://") {
        return Err(format!("{path:?}: expected a path relative to the file, found a URL"));
    }
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") || path.split('\\').any(|part| part == "..") {
        return Err(format!("{path:?}: expected a path below the folder of the file"));
    }
    if parts.is_empty() || path.contains('\0') {
        return Err(format!("{path:?}: expected the name of an image file"));
    }
    Ok(parts.join("/"))
}

/// Whether nothing has that name.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether an error says something about this one file, and others may be fine.
fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    // A server that refuses one file refuses them all.
    let remote = LocationError::behind(error).is_some();
    !remote
        && matches!(
            error.kind(),
            Kind::PermissionDenied
                | Kind::IsADirectory
                | Kind::FileTooLarge
                | Kind::InvalidData
                | Kind::InvalidFilename
                | Kind::InvalidInput
                | Kind::UnexpectedEof
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["../a.png", "a/../../b.png", "/etc/passwd", "C:\\a.png", "\\\\host\\a", ""] {
            assert!(inside(path).is_err(), "{path}");
        }
        for path in ["http://host/a.png", "file:///a", ".", "a\0b", "..\\a.png"] {
            assert!(inside(path).is_err(), "{path}");
        }
        for (path, expected) in [("./a//b.png", "a/b.png"), ("a..b/c...png", "a..b/c...png")] {
            assert_eq!(inside(path).unwrap(), expected);
        }
    }

    #[test]
    fn names_are_looked_for_in_folders_and_zips() {
        let beside = Beside::new(Folder::at("/x".as_ref()).unwrap(), &["train", "test"]);
        let spelled = |name: &str| -> Vec<String> {
            let spell = |place| match place {
                Place::File(name) => name,
                Place::Member { zip, members } => format!("{zip}[{}]", members.join("|")),
            };
            beside.places(name).into_iter().map(spell).collect()
        };
        assert_eq!(
            spelled("1.jpg"),
            [
                "1.jpg",
                "train/1.jpg",
                "test/1.jpg",
                "train.zip[1.jpg|train/1.jpg]",
                "test.zip[1.jpg|test/1.jpg]"
            ]
        );
        assert_eq!(
            spelled("train/1.jpg"),
            ["train/1.jpg", "1.jpg", "train.zip[1.jpg|train/1.jpg]"]
        );
        assert_eq!(
            spelled("images/t_1/1.webp"),
            [
                "images/t_1/1.webp",
                "images/t_1.zip[1.webp|t_1/1.webp|images/t_1/1.webp]",
                "images.zip[t_1/1.webp|images/t_1/1.webp]"
            ]
        );
    }
}
