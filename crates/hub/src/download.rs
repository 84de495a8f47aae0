//! Downloads into the cache through hf-hub, with what it lacks around it: a checked answer before a
//! path is made of it, room on the disk, the SHA-256 of large files, one commit for all files of a
//! repository, and no panic on a strange server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo, RepoType};
use runkit::progress::Progress;

use crate::cache::CachedRepository;
use crate::name::{HubName, Kind, check_url_safe, is_commit};
use crate::{HubError, Settings, sha256_file};

/// A broken connection is taken up again this often, where it broke.
const RETRIES: usize = 5;
/// How long another process may take to download the same file before we give up.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A repository on the hub.
pub(crate) struct Remote<'a> {
    settings: &'a Settings,
    name: &'a HubName,
    cached: &'a CachedRepository,
}

impl<'a> Remote<'a> {
    pub(crate) fn new(
        settings: &'a Settings,
        name: &'a HubName,
        cached: &'a CachedRepository,
    ) -> Self {
        Self { settings, name, cached }
    }

    /// Asks the hub for the commit of the revision.
    pub(crate) fn commit(&self) -> Result<String, HubError> {
        let what = "the description";
        let repository = self.repository(&self.name.revision, what)?;
        let information = self.guarded(what, || repository.info())?;
        match information {
            Ok(information) if is_commit(&information.sha) => Ok(information.sha),
            Ok(_) => Err(self.failed(what, "the answer names no commit".to_owned())),
            Err(error) => Err(self.explain(what, &error)),
        }
    }

    /// Brings a file of `commit` into the cache; false when the commit has no such file.
    pub(crate) fn fetch(&self, commit: &str, file: &str) -> Result<bool, HubError> {
        check_url_safe(&self.name.shown(), file)?;
        let api = self.api(file)?;
        let repository = api.repo(self.hub_name(commit));
        let metadata = match self.guarded(file, || api.metadata(&repository.url(file)))? {
            Err(error) if status_of(&error) == Some(404) => return Ok(false),
            other => other.map_err(|error| self.explain(file, &error))?,
        };
        self.check_answer(commit, file, &metadata)?;
        self.cached.remove_dangling(commit, file)?;
        let blob = self.cached.blob(metadata.etag());
        // Another revision may have brought the same contents.
        if std::fs::metadata(&blob).is_ok_and(|found| found.len() == metadata.size() as u64) {
            self.cached.link(commit, file, metadata.etag())?;
            return Ok(true);
        }
        self.check_space(file, &metadata, &blob)?;
        tracing::info!("downloading {file} of {} ({} bytes)", self.name.shown(), metadata.size());
        let pointer = self.download(&repository, commit, file)?;
        self.verify(file, &metadata, &blob, &pointer)?;
        Ok(true)
    }

    fn download(
        &self,
        repository: &ApiRepo,
        commit: &str,
        file: &str,
    ) -> Result<PathBuf, HubError> {
        let start = Instant::now();
        loop {
            let progress = Bar { name: format!("downloading {file}"), shown: None, bytes: 0 };
            let result =
                self.guarded(file, || repository.download_with_progress(file, progress))?;
            match result {
                Ok(pointer) => return Ok(pointer),
                Err(ApiError::LockAcquisition(_)) if start.elapsed() < LONGEST_WAIT => {
                    tracing::info!("waiting for another process that downloads {file}");
                    if let Some(pointer) = self.cached.file(commit, file)? {
                        return Ok(pointer);
                    }
                }
                Err(error) => return Err(self.explain(file, &error)),
            }
        }
    }

    /// The entity tag becomes a file name in the cache, and the commit a folder.
    fn check_answer(&self, commit: &str, file: &str, metadata: &Metadata) -> Result<(), HubError> {
        let etag = metadata.etag();
        let is_plain = !etag.is_empty()
            && etag.len() <= 128
            && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !is_plain {
            return Err(self.failed(file, format!("its entity tag {etag:?} is not usable")));
        }
        if metadata.commit_hash() != commit {
            let found = metadata.commit_hash();
            return Err(self.failed(file, format!("asked for commit {commit}, got {found:?}")));
        }
        Ok(())
    }

    fn check_space(&self, file: &str, metadata: &Metadata, blob: &Path) -> Result<(), HubError> {
        let size = metadata.size() as u64;
        let part = blob.with_extension("part");
        let already = std::fs::metadata(&part).map_or(0, |found| found.len());
        if already >= size && part.exists() {
            // hf-hub would ask for the bytes after the last one, which servers refuse.
            std::fs::remove_file(&part).map_err(HubError::read(&part))?;
        }
        let needed = if already < size { size - already } else { size };
        let available = runkit::files::free_space(&part)?;
        if needed <= available {
            return Ok(());
        }
        let (repository, cache) = (self.name.shown(), self.settings.cache.clone());
        Err(HubError::NoSpace { file: file.to_owned(), repository, needed, available, cache })
    }

    /// The entity tag of a large file is its SHA-256; of the others only the size is known.
    fn verify(
        &self,
        file: &str,
        metadata: &Metadata,
        blob: &Path,
        pointer: &Path,
    ) -> Result<(), HubError> {
        let length = std::fs::metadata(pointer).map_err(HubError::read(pointer))?.len();
        let etag = metadata.etag();
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (expected, found) = if length != metadata.size() as u64 {
            (format!("{} bytes", metadata.size()), format!("{length} bytes"))
        } else if is_sha256 {
            (
                format!("SHA-256 {}", etag.to_lowercase()),
                format!("SHA-256 {}", sha256_file(pointer)?),
            )
        } else {
            return sync(blob);
        };
        if expected == found {
            return sync(blob);
        }
        for path in [pointer, blob] {
            std::fs::remove_file(path).map_err(HubError::read(path))?;
        }
        let repository = self.name.shown();
        Err(HubError::Damaged { file: file.to_owned(), repository, expected, found })
    }

    fn api(&self, what: &str) -> Result<Api, HubError> {
        // hf-hub makes relative links and insists on absolute paths for both ends.
        let root = &self.settings.cache;
        let cache = std::path::absolute(root).map_err(HubError::read(root))?;
        let built = self.guarded(what, || {
            ApiBuilder::from_cache(Cache::new(cache))
                .with_endpoint(self.settings.endpoint.clone())
                .with_token(self.settings.token.clone())
                .with_user_agent("relabel", env!("CARGO_PKG_VERSION"))
                .with_retries(RETRIES)
                .build()
        })?;
        built.map_err(|error| self.failed(what, error.to_string()))
    }

    fn repository(&self, revision: &str, what: &str) -> Result<ApiRepo, HubError> {
        Ok(self.api(what)?.repo(self.hub_name(revision)))
    }

    fn hub_name(&self, revision: &str) -> Repo {
        let kind = match self.name.kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(self.name.id.clone(), kind, revision.to_owned())
    }

    /// hf-hub asserts and unwraps on answers it does not expect; that must not end the program.
    fn guarded<T>(&self, what: &str, call: impl FnOnce() -> T) -> Result<T, HubError> {
        catch_unwind(AssertUnwindSafe(call))
            .map_err(|_| self.failed(what, "the answer cannot be understood".to_owned()))
    }

    fn failed(&self, what: &str, problem: String) -> HubError {
        HubError::Download {
            endpoint: self.settings.endpoint.clone(),
            repository: self.name.shown(),
            what: what.to_owned(),
            problem,
        }
    }

    fn explain(&self, what: &str, error: &ApiError) -> HubError {
        match status_of(error) {
            Some(status @ (401 | 403 | 404)) => HubError::Refused {
                endpoint: self.settings.endpoint.clone(),
                repository: self.name.shown(),
                status,
            },
            _ => self.failed(what, error.to_string()),
        }
    }
}

fn status_of(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status_of(error),
        _ => None,
    }
}

fn sync(blob: &Path) -> Result<(), HubError> {
    let synced = std::fs::File::open(blob).and_then(|file| file.sync_all());
    synced.map_err(HubError::read(blob))
}

/// hf-hub counts bytes; people read megabytes.
struct Bar {
    name: String,
    shown: Option<Progress>,
    bytes: usize,
}

const MEGABYTE: usize = 1_000_000;

impl hf_hub::api::Progress for Bar {
    fn init(&mut self, size: usize, _file: &str) {
        // Called again at every attempt.
        if self.shown.is_none() {
            let total = size.div_ceil(MEGABYTE) as u64;
            self.shown = Some(Progress::new(&self.name, "MB", total));
        }
    }

    fn update(&mut self, size: usize) {
        let before = self.bytes / MEGABYTE;
        self.bytes += size;
        let more = (self.bytes / MEGABYTE - before) as u64;
        if let Some(shown) = self.shown.as_ref().filter(|_| more > 0) {
            shown.add(more);
        }
    }

    fn finish(&mut self) {
        if let Some(shown) = self.shown.take() {
            shown.finish();
        }
    }
}
