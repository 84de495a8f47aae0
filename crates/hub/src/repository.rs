//! [`Repository`]: one folder or hub repository, and its files.

use std::path::{Path, PathBuf};

use crate::cache::CachedRepository;
use crate::download::Remote;
use crate::name::{HubName, check_file};
use crate::{HubError, Settings};

/// A folder of files is listed this deep and this far.
const MAXIMUM_DEPTH: usize = 8;
const MAXIMUM_LISTED: usize = 10_000;

/// A model or data collection whose files can be had.
#[derive(Debug)]
pub struct Repository {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Hub(Box<HubPlace>),
}

#[derive(Debug)]
struct HubPlace {
    name: HubName,
    settings: Settings,
    cached: CachedRepository,
    commit: String,
    snapshot: PathBuf,
}

impl Repository {
    /// Opens `name`: a folder, relative to `base` (the folder of the file that mentions it), or
    /// `hf://owner/name[@revision]`; `hf://datasets/owner/name` for a data collection.
    ///
    /// The revision of a hub name is resolved to a commit once: what the cache remembers, else what
    /// the hub says. All files then belong to that commit, also if the branch moves on meanwhile.
    ///
    /// # Errors
    /// When the folder does not exist, the name is malformed, the environment is, or the revision is
    /// neither cached nor to be had.
    pub fn open(name: &str, base: &Path) -> Result<Self, HubError> {
        match HubName::parse(name) {
            None => Self::open_folder(name, base),
            Some(hub_name) => Self::open_hub(hub_name?, Settings::from_environment()?),
        }
    }

    /// As [`Repository::open`] with other settings than the environment's.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn open_with(name: &str, base: &Path, settings: Settings) -> Result<Self, HubError> {
        match HubName::parse(name) {
            None => Self::open_folder(name, base),
            Some(hub_name) => Self::open_hub(hub_name?, settings),
        }
    }

    fn open_folder(name: &str, base: &Path) -> Result<Self, HubError> {
        let fail = |problem| Err(HubError::Name { name: name.to_owned(), problem });
        if name.is_empty() {
            return fail("it is empty");
        }
        if name.contains('\0') {
            return fail("it holds a NUL character");
        }
        if name.contains("://") {
            return fail("only hf:// addresses are known");
        }
        let path = base.join(name);
        if path.is_dir() {
            return Ok(Self { place: Place::Folder(path) });
        }
        let is_file = path.is_file();
        Err(HubError::Folder { path, is_file })
    }

    fn open_hub(name: HubName, settings: Settings) -> Result<Self, HubError> {
        let cached = CachedRepository::new(&settings.cache, &name);
        let commit = match cached.commit(&name.revision) {
            Some(commit) => commit,
            None if settings.offline => {
                return Err(HubError::Offline {
                    repository: name.shown(),
                    what: format!("revision {}", name.revision),
                    looked_in: cached.reference_path(&name.revision),
                });
            }
            None => {
                let commit = Remote::new(&settings, &name, &cached).commit()?;
                cached.remember_commit(&name.revision, &commit)?;
                commit
            }
        };
        tracing::debug!("{} is commit {commit}", name.shown());
        let snapshot = cached.snapshot(&commit);
        let hub = HubPlace { name, settings, cached, commit, snapshot };
        Ok(Self { place: Place::Hub(Box::new(hub)) })
    }

    /// The local path of a file, downloaded first where necessary. `file` is relative to the
    /// repository, with forward slashes, and may not lead out of it.
    ///
    /// # Errors
    /// When the name leads out of the repository, the repository has no such file, or it cannot be
    /// downloaded.
    pub fn file(&self, file: &str) -> Result<PathBuf, HubError> {
        check_file(&self.shown(), file)?;
        if let Some(path) = self.find(file)? {
            return Ok(path);
        }
        Err(match &self.place {
            Place::Folder(folder) => HubError::Missing {
                folder: folder.clone(),
                file: file.to_owned(),
                holds: list(folder)?,
            },
            Place::Hub(hub) if hub.settings.offline => HubError::Offline {
                repository: hub.name.shown(),
                what: file.to_owned(),
                looked_in: hub.snapshot.join(file),
            },
            Place::Hub(hub) => HubError::NotOnHub {
                endpoint: hub.settings.endpoint.clone(),
                repository: hub.name.shown(),
                file: file.to_owned(),
            },
        })
    }

    /// As [`Repository::file`], with `None` where the repository has no such file. Offline, a file
    /// that is not in the cache counts as one the repository does not have.
    ///
    /// # Errors
    /// As [`Repository::file`], except for the absence of the file.
    pub fn optional_file(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        check_file(&self.shown(), file)?;
        self.find(file)
    }

    fn find(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        let hub = match &self.place {
            Place::Folder(folder) => {
                let path = folder.join(file);
                return Ok(path.is_file().then_some(path));
            }
            Place::Hub(hub) => hub,
        };
        if let Some(path) = hub.cached.file(&hub.commit, file)? {
            return Ok(Some(path));
        }
        if hub.settings.offline || hub.cached.is_known_absent(&hub.commit, file) {
            return Ok(None);
        }
        if Remote::new(&hub.settings, &hub.name, &hub.cached).fetch(&hub.commit, file)? {
            return hub.cached.file(&hub.commit, file);
        }
        hub.cached.remember_absence(&hub.commit, file)?;
        Ok(None)
    }

    /// The folder that holds the files: the folder itself, or the snapshot in the cache once it
    /// exists (it holds what was asked for so far).
    pub fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Hub(hub) => hub.snapshot.is_dir().then_some(&hub.snapshot),
        }
    }

    /// The commit all files belong to; `None` for a folder.
    pub fn revision(&self) -> Option<&str> {
        match &self.place {
            Place::Folder(_) => None,
            Place::Hub(hub) => Some(&hub.commit),
        }
    }

    /// The files of the folder, or of the snapshot in the cache, sorted, relative, with forward
    /// slashes; at most 10,000, eight folders deep.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn list_files(&self) -> Result<Vec<String>, HubError> {
        self.folder().map_or(Ok(Vec::new()), list)
    }

    /// For messages: the folder, or `hf://owner/name@revision`.
    pub fn shown(&self) -> String {
        match &self.place {
            Place::Folder(folder) => folder.display().to_string(),
            Place::Hub(hub) => hub.name.shown(),
        }
    }
}

fn list(folder: &Path) -> Result<Vec<String>, HubError> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = open.pop() {
        for entry in std::fs::read_dir(&folder).map_err(HubError::read(&folder))? {
            let entry = entry.map_err(HubError::read(&folder))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let path = entry.path();
            if path.is_file() {
                found.push(name);
            } else if depth < MAXIMUM_DEPTH && path.is_dir() && !path.is_symlink() {
                open.push((path, format!("{name}/"), depth + 1));
            }
            if found.len() >= MAXIMUM_LISTED {
                open.clear();
                break;
            }
        }
    }
    found.sort();
    Ok(found)
}
