//! The cache layout of the Python libraries:
//! `models--owner--name/{refs,blobs,snapshots,.no_exist}`.
//!
//! `refs/REVISION` holds the commit of a branch or tag; `snapshots/COMMIT/FILE` is a link to the
//! contents in `blobs`; an empty `.no_exist/COMMIT/FILE` remembers that a commit has no such file
//! (huggingface/huggingface_hub `src/huggingface_hub/file_download.py`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use runkit::files;

use crate::HubError;
use crate::name::{HubName, is_commit};

/// One repository's folder in the cache, which need not exist.
#[derive(Debug, Clone)]
pub(crate) struct CachedRepository {
    root: PathBuf,
    folder: PathBuf,
}

impl CachedRepository {
    pub(crate) fn new(root: &Path, name: &HubName) -> Self {
        Self { root: root.to_owned(), folder: root.join(name.cache_folder()) }
    }

    pub(crate) fn reference_path(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The contents with this entity tag.
    pub(crate) fn blob(&self, tag: &str) -> PathBuf {
        self.folder.join("blobs").join(tag)
    }

    /// The lock for downloading contents, which the Python libraries use too.
    pub(crate) fn lock(&self, tag: &str) -> PathBuf {
        let name = self.folder.file_name().unwrap_or_default();
        self.root.join(".locks").join(name).join(format!("{tag}.lock"))
    }

    /// The file that receives contents: one that the next attempt finds again, or a unique one if
    /// other processes and machines may write at the same time.
    pub(crate) fn partial(&self, tag: Option<&str>, unique: bool) -> PathBuf {
        let start = tag.unwrap_or("unnamed");
        let name = if unique {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (process, moment) = (std::process::id(), now.as_nanos());
            format!("{start}.{process:x}-{moment:x}.incomplete")
        } else {
            format!("{start}.incomplete")
        };
        self.folder.join("blobs").join(name)
    }

    /// The cache.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The commit of a revision: the revision itself if it is a commit, else what the cache holds.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.reference_path(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Saves the commit of a branch or tag, as the Python libraries do.
    pub(crate) fn remember_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.reference_path(revision);
        create_parent(&path)?;
        Ok(files::write_atomic(&path, |writer| writer.write_all(commit.as_bytes()))?)
    }

    /// The cached file of a commit, if it is there.
    pub(crate) fn file(&self, commit: &str, file: &str) -> Result<Option<PathBuf>, HubError> {
        let path = self.snapshot(commit).join(file);
        if !path.is_file() {
            return Ok(None);
        }
        self.check_inside(&path)?;
        Ok(Some(path))
    }

    /// Makes `file` of a commit a link to contents that are in `blobs` already. Where the file
    /// system has no symbolic links the contents get a second name, or move there, as in Python's
    /// cache.
    pub(crate) fn link(&self, commit: &str, file: &str, tag: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(file);
        create_parent(&pointer)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let made = std::os::unix::fs::symlink(format!("{up}blobs/{tag}"), &pointer);
        let made = match made {
            Err(error) if has_no_links(&error) => std::fs::hard_link(self.blob(tag), &pointer),
            other => other,
        };
        match made {
            // Another process was faster.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) if has_no_links(&error) => {
                Ok(files::rename_durably(self.blob(tag), &pointer)?)
            }
            other => Ok(other.map_err(|cause| {
                files::FileError::new(&pointer, files::Operation::Create, cause)
            })?),
        }
    }

    /// Removes the link of a file whose contents are gone (someone cleaned `blobs`): it would block
    /// a new one.
    pub(crate) fn remove_dangling(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.is_symlink() && !pointer.exists() {
            std::fs::remove_file(&pointer).map_err(|cause| {
                files::FileError::new(&pointer, files::Operation::Remove, cause)
            })?;
        }
        Ok(())
    }

    /// Whether the commit is known not to have the file.
    pub(crate) fn is_known_absent(&self, commit: &str, file: &str) -> bool {
        self.absence_path(commit, file).is_file()
    }

    /// Saves that the commit does not have the file.
    pub(crate) fn remember_absence(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.absence_path(commit, file);
        create_parent(&path)?;
        Ok(files::write_atomic(&path, |_: &mut dyn Write| Ok(()))?)
    }

    fn absence_path(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Links into `blobs` are the layout; links out of the cache are not. The repository's folder
    /// may itself be a link to another disk.
    fn check_inside(&self, path: &Path) -> Result<(), HubError> {
        let target = path.canonicalize().map_err(HubError::read(path))?;
        let is_inside = [&self.root, &self.folder]
            .into_iter()
            .filter_map(|folder| folder.canonicalize().ok())
            .any(|folder| target.starts_with(folder));
        if is_inside { Ok(()) } else { Err(HubError::Outside { path: path.to_owned(), target }) }
    }
}

fn has_no_links(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::Unsupported)
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    Ok(path.parent().map_or(Ok(()), files::create_folder)?)
}
