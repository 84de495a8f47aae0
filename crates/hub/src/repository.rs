//! [`Repository`]: one folder or hub repository, and its files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ureq::http::Method;

use crate::cache::CachedRepository;
use crate::describe::{Wanted, describe};
use crate::download::Fetched;
use crate::http::{Attempts, Client};
use crate::name::{HubName, check_file};
use crate::remote::{ListedFile, Remote};
use crate::{HubError, Settings};

/// Limits of the listing of a folder.
const MAXIMUM_DEPTH: usize = 8;
const MAXIMUM_LISTED: usize = 10_000;

/// A model or data collection, as a folder or on the hub.
#[doc(alias = "from_pretrained")]
#[doc(alias = "snapshot_download")]
#[derive(Debug)]
pub struct Repository {
    location: Location,
}

#[derive(Debug)]
enum Location {
    Folder(PathBuf),
    Hub(Box<HubRepository>),
}

struct HubRepository {
    name: HubName,
    settings: Settings,
    cached: CachedRepository,
    commit: String,
    snapshot: PathBuf,
    client: Client,
    /// The files that the hub lists; `None` inside if it does not list them.
    listing: OnceLock<Option<Vec<ListedFile>>>,
    /// Files that the hub does not have, as earlier requests showed.
    absent: Mutex<HashSet<String>>,
}

impl std::fmt::Debug for HubRepository {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("HubRepository")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("commit", &self.commit)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens `name`: a folder, relative to `base` (the folder of the file that mentions it) or to
    /// the home as `~/…`, or `hf://owner/name[@revision]`; `hf://datasets/owner/name` for a data
    /// collection.
    ///
    /// Resolves the revision of a hub name to a commit once, from the cache or else the hub. All
    /// files then belong to that commit, even if the branch moves meanwhile.
    pub fn open(name: &str, base: &Path) -> Result<Self, HubError> {
        match HubName::parse(name) {
            None => Self::open_folder(name, base),
            Some(hub_name) => Self::open_hub(hub_name?, Settings::from_environment()?),
        }
    }

    /// As [`Repository::open`], with other settings than the environment's.
    pub fn open_with(name: &str, base: &Path, settings: Settings) -> Result<Self, HubError> {
        match HubName::parse(name) {
            None => Self::open_folder(name, base),
            Some(hub_name) => Self::open_hub(hub_name?, settings),
        }
    }

    /// Checks `name` without the hub: that it is well formed and, if it is a folder, exists.
    pub fn check_name(name: &str, base: &Path) -> Result<(), HubError> {
        match HubName::parse(name) {
            None => Self::open_folder(name, base).map(|_| ()),
            Some(hub_name) => hub_name.map(|_| ()),
        }
    }

    fn open_folder(name: &str, base: &Path) -> Result<Self, HubError> {
        let fail = |problem| Err(HubError::name(name, problem));
        if name.is_empty() {
            return fail("it is empty");
        }
        if name.contains('\0') {
            return fail("it holds a NUL character");
        }
        if runkit::path::is_address(Path::new(name)) {
            return fail("only hf:// addresses are known");
        }
        let path = runkit::path::resolve(Path::new(name), base);
        if path.is_dir() {
            return Ok(Self { location: Location::Folder(path) });
        }
        // The text shows whether a name has the form `owner/name`; the resolved path does not.
        let asked = if path.exists() { path.as_path() } else { Path::new(name) };
        let mut what = describe(asked, Wanted::Model);
        if !path.exists() && base != Path::new("") && Path::new(name).is_relative() {
            what += "; paths are relative to the file that names them";
        }
        Err(HubError::Folder { path, what })
    }

    fn open_hub(name: HubName, settings: Settings) -> Result<Self, HubError> {
        let cached = CachedRepository::new(&settings.cache, &name);
        let client = Client::new(&settings);
        let listing = OnceLock::new();
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
                let remote = Remote { settings: &settings, name: &name, client: &client };
                let found = remote.describe(&name.revision)?;
                cached.remember_commit(&name.revision, &found.commit)?;
                listing.get_or_init(|| found.files);
                found.commit
            }
        };
        tracing::debug!("{} is commit {commit}", name.shown());
        let snapshot = cached.snapshot(&commit);
        let absent = Mutex::default();
        let hub =
            HubRepository { name, settings, cached, commit, snapshot, client, listing, absent };
        Ok(Self { location: Location::Hub(Box::new(hub)) })
    }

    /// The local path of a file, downloaded first if necessary. `file` is relative to the
    /// repository, with forward slashes, and may not lead out of it.
    #[doc(alias = "hf_hub_download")]
    pub fn file(&self, file: &str) -> Result<PathBuf, HubError> {
        check_file(&self.shown(), file)?;
        if let Some(path) = self.find(file)? {
            return Ok(path);
        }
        Err(match &self.location {
            Location::Folder(folder) => HubError::Missing {
                folder: folder.clone(),
                file: file.to_owned(),
                holds: list(folder)?,
            },
            Location::Hub(hub) if hub.settings.offline => HubError::Offline {
                repository: hub.name.shown(),
                what: file.to_owned(),
                looked_in: hub.snapshot.join(file),
            },
            Location::Hub(hub) => HubError::NotOnHub {
                endpoint: hub.settings.endpoint.clone(),
                repository: hub.name.shown(),
                file: file.to_owned(),
            },
        })
    }

    /// As [`Repository::file`], with `None` if the repository has no such file. Offline, it has
    /// only the files in the cache.
    pub fn optional_file(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        check_file(&self.shown(), file)?;
        self.find(file)
    }

    /// Whether the repository has a file, without downloading it. Offline, it has only the files in
    /// the cache.
    pub fn has(&self, file: &str) -> Result<bool, HubError> {
        check_file(&self.shown(), file)?;
        let hub = match &self.location {
            Location::Folder(folder) => return Ok(folder.join(file).is_file()),
            Location::Hub(hub) => hub,
        };
        if hub.cached.file(&hub.commit, file)?.is_some() {
            return Ok(true);
        }
        if hub.settings.offline || hub.is_known_absent(file) {
            return Ok(false);
        }
        if let Some(files) = hub.listing()? {
            return Ok(files.iter().any(|listed| listed.name == file));
        }
        let mut attempts = Attempts::default();
        let asked = hub.remote().open(&Method::HEAD, &hub.commit, file, None, &mut attempts);
        let (_, response) = asked.map_err(|problem| hub.remote().explain(file)(problem))?;
        match response.status {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(hub.remote().refused(file, response)),
        }
    }

    /// Every file of the repository: the local ones of a folder or offline, else those that the hub
    /// lists.
    pub fn names(&self) -> Result<Vec<String>, HubError> {
        if let Location::Hub(hub) = &self.location
            && !hub.settings.offline
            && let Some(files) = hub.listing()?
        {
            return Ok(files.iter().map(|listed| listed.name.clone()).collect());
        }
        self.list_files()
    }

    /// The size in bytes of a file to download: `Some(None)` if no server states it, `None` if
    /// there is nothing to download.
    pub fn size_to_download(&self, file: &str) -> Result<Option<Option<u64>>, HubError> {
        check_file(&self.shown(), file)?;
        let Location::Hub(hub) = &self.location else { return Ok(None) };
        if hub.settings.offline || hub.cached.file(&hub.commit, file)?.is_some() {
            return Ok(None);
        }
        let size = hub.listing()?.and_then(|_| hub.listed(file)?.size);
        match size {
            Some(size) => Ok(Some(Some(size))),
            None => Ok(Some(hub.remote().size(&hub.commit, file)?)),
        }
    }

    fn find(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        let hub = match &self.location {
            Location::Folder(folder) => {
                let path = folder.join(file);
                return Ok(path.is_file().then_some(path));
            }
            Location::Hub(hub) => hub,
        };
        if let Some(path) = hub.cached.file(&hub.commit, file)? {
            return Ok(Some(path));
        }
        if hub.settings.offline || hub.is_known_absent(file) {
            return Ok(None);
        }
        match hub.remote().fetch(&hub.cached, &hub.commit, file, hub.listed(file))? {
            Fetched::Here => hub.cached.file(&hub.commit, file),
            Fetched::Absent { for_certain } => {
                // A 404 page of a server in between is no reason never to ask the hub again.
                if for_certain && let Err(error) = hub.cached.remember_absence(&hub.commit, file) {
                    tracing::debug!("{error}");
                }
                let mut absent = hub.absent.lock().unwrap_or_else(PoisonError::into_inner);
                absent.insert(file.to_owned());
                Ok(None)
            }
        }
    }

    /// The folder that holds the files: the folder itself, or the snapshot in the cache once it
    /// exists (with the files requested so far).
    pub fn folder(&self) -> Option<&Path> {
        match &self.location {
            Location::Folder(folder) => Some(folder),
            Location::Hub(hub) => hub.snapshot.is_dir().then_some(&hub.snapshot),
        }
    }

    /// The commit all files belong to; `None` for a folder.
    pub fn revision(&self) -> Option<&str> {
        match &self.location {
            Location::Folder(_) => None,
            Location::Hub(hub) => Some(&hub.commit),
        }
    }

    /// The files of the folder, or of the snapshot in the cache, sorted, relative, with forward
    /// slashes; at most 10,000, eight folders deep.
    pub fn list_files(&self) -> Result<Vec<String>, HubError> {
        self.folder().map_or(Ok(Vec::new()), list)
    }

    /// For messages: the folder, or `hf://owner/name@revision`.
    pub fn shown(&self) -> String {
        match &self.location {
            Location::Folder(folder) => folder.display().to_string(),
            Location::Hub(hub) => hub.name.shown(),
        }
    }
}

impl HubRepository {
    fn remote(&self) -> Remote<'_> {
        Remote { settings: &self.settings, name: &self.name, client: &self.client }
    }

    fn is_known_absent(&self, file: &str) -> bool {
        self.cached.is_known_absent(&self.commit, file)
            || self.absent.lock().unwrap_or_else(PoisonError::into_inner).contains(file)
    }

    /// The hub's list of files, requested once.
    fn listing(&self) -> Result<Option<&[ListedFile]>, HubError> {
        if let Some(files) = self.listing.get() {
            return Ok(files.as_deref());
        }
        let files = match self.remote().describe(&self.commit) {
            Ok(found) => found.files,
            // A mirror may serve files but no descriptions of commits.
            Err(HubError::Refused { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(self.listing.get_or_init(|| files).as_deref())
    }

    /// A file as the hub lists it, if the list was requested before.
    fn listed(&self, file: &str) -> Option<&ListedFile> {
        let files = self.listing.get()?.as_deref()?;
        files.iter().find(|listed| listed.name == file)
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
