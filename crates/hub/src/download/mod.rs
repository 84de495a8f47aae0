//! Downloads into the cache. A file is received beside its final name and hashed on the way. It
//! gets its final name only after its checksum was compared and it is on the disk, so a process
//! killed at any instant leaves nothing that a later one takes for whole. The received part stays
//! for the next attempt, which hashes it and requests the rest.

mod partial;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use runkit::files::{self, FileError, Operation};
use ureq::http::Method;

use self::partial::Partial;
use crate::HubError;
use crate::cache::CachedRepository;
use crate::checksum::{Expected, Running, git_sha1_file, read_blocks};
use crate::http::{Attempts, Response};
use crate::remote::{Facts, ListedFile, Remote, host, is_from_hub};

/// The outcome of requesting a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// It is in the cache.
    Here,
    /// The commit has no such file; `for_certain` if the hub itself said so.
    Absent { for_certain: bool },
}

/// What is known of the contents before they arrive.
struct Wanted<'a> {
    commit: &'a str,
    file: &'a str,
    /// The name in `blobs`; `None` if no server names the contents.
    tag: Option<String>,
    /// The checksum they must have.
    checksum: Option<String>,
    size: Option<u64>,
}

/// The lock on the partial file.
enum Lock {
    /// Held here: the partial file has a name that the next attempt finds.
    Held(#[expect(dead_code, reason = "held until it is dropped")] File),
    /// Not held, as the file system has no locks or the holder is stuck: the partial file has a
    /// unique name.
    Missing,
}

impl Wanted<'_> {
    fn expected(&self) -> Option<Expected> {
        self.checksum.as_deref().and_then(Expected::of)
    }
}

impl Remote<'_> {
    /// Brings a file of `commit` into the cache.
    pub(crate) fn fetch(
        &self,
        cached: &CachedRepository,
        commit: &str,
        file: &str,
        listed: Option<&ListedFile>,
    ) -> Result<Fetched, HubError> {
        let mut attempts = Attempts::default();
        let mut lock = None;
        loop {
            let opened = self.open(&Method::GET, commit, file, None, &mut attempts);
            let (facts, response) = opened.map_err(self.explain(file))?;
            if response.status == 404 && facts.is_absent {
                return Ok(Fetched::Absent { for_certain: is_from_hub(&response.headers) });
            }
            if response.status != 200 {
                return Err(self.refused(file, response));
            }
            let wanted = self.wanted(commit, file, facts, &response, listed)?;
            cached.remove_dangling(commit, file)?;
            // Another revision, or another process, may have brought the same contents.
            if let Some(tag) = &wanted.tag
                && self.is_sound(&cached.blob(tag), &wanted)?
            {
                cached.link(commit, file, tag)?;
                return Ok(Fetched::Here);
            }
            if lock.is_none() {
                lock = self.try_lock(cached, &wanted)?;
            }
            let Some(lock) = &lock else {
                // No connection stays open during the wait.
                drop(response);
                lock = Some(self.wait_for_lock(cached, &wanted)?);
                continue;
            };
            let is_unique = matches!(lock, Lock::Missing) || wanted.tag.is_none();
            Partial::open(self, cached, &wanted, is_unique)?.receive(response, &mut attempts)?;
            return Ok(Fetched::Here);
        }
    }

    fn wanted<'a>(
        &self,
        commit: &'a str,
        file: &'a str,
        facts: Facts,
        response: &Response,
        listed: Option<&ListedFile>,
    ) -> Result<Wanted<'a>, HubError> {
        if let Some(found) = facts.commit.filter(|found| found != commit) {
            let found = found.chars().take(80).collect::<String>();
            return Err(self.failed(file, format!("expected commit {commit}, found {found:?}")));
        }
        let is_page =
            response.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        if is_page && !file.to_lowercase().ends_with("html") && facts.tag.is_none() {
            let problem = format!(
                "{} answers with a web page; a proxy may ask to log in",
                host(&response.address)
            );
            return Err(self.failed(file, problem));
        }
        if let Some(encoding) =
            response.header("content-encoding").filter(|name| *name != "identity")
        {
            let problem =
                format!("the server sent it compressed as {encoding:?}, which was not requested");
            return Err(self.failed(file, problem));
        }
        let listed_sum = listed.and_then(|listed| listed.checksum.clone());
        let tag = facts.tag.or_else(|| listed_sum.clone());
        let checksum = tag.clone().filter(|tag| Expected::of(tag).is_some()).or(listed_sum);
        let size = facts.size.or_else(|| listed.and_then(|listed| listed.size));
        Ok(Wanted { commit, file, tag, checksum: checksum.map(|sum| sum.to_lowercase()), size })
    }

    /// Whether a file of the cache has the contents that its name promises.
    fn is_sound(&self, blob: &Path, wanted: &Wanted<'_>) -> Result<bool, HubError> {
        let Ok(found) = std::fs::metadata(blob) else { return Ok(false) };
        if !found.is_file() || wanted.size.is_some_and(|size| size != found.len()) {
            return Ok(false);
        }
        let Some(expected) = wanted.expected() else { return Ok(wanted.size.is_some()) };
        let mut running = Running::default();
        let stop = self.client.stop();
        read_blocks(blob, stop, |block| running.update(block, Some(expected)))?;
        self.has_checksum(blob, &running, wanted)
    }

    fn has_checksum(
        &self,
        path: &Path,
        running: &Running,
        wanted: &Wanted<'_>,
    ) -> Result<bool, HubError> {
        let Some(checksum) = &wanted.checksum else { return Ok(true) };
        Ok(match wanted.expected() {
            Some(Expected::Sha256) => running.sha256() == *checksum,
            Some(Expected::Sha1) => {
                git_sha1_file(path, self.client.stop())? == *checksum || running.sha1() == *checksum
            }
            None => true,
        })
    }

    /// Takes the lock that the Python libraries use too; `None` while another process holds it.
    fn try_lock(
        &self,
        cached: &CachedRepository,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Lock>, HubError> {
        let Some(tag) = &wanted.tag else { return Ok(Some(Lock::Missing)) };
        let path = cached.lock(tag);
        if let Some(folder) = path.parent() {
            files::create_folder(folder)?;
        }
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        let file = opened.map_err(|cause| FileError::new(&path, Operation::Create, cause))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock::Held(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => {
                tracing::warn!(
                    "{}: this file system has no locks ({cause}); another process may download {} \
                     at the same time",
                    path.display(),
                    wanted.file
                );
                Ok(Some(Lock::Missing))
            }
        }
    }

    /// Waits while another process receives the file, and at most a minute after it stalls.
    fn wait_for_lock(
        &self,
        cached: &CachedRepository,
        wanted: &Wanted<'_>,
    ) -> Result<Lock, HubError> {
        const MOMENT: Duration = Duration::from_millis(100);
        tracing::info!("waiting for another process that downloads {}", wanted.file);
        let tag = wanted.tag.clone().unwrap_or_default();
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            self.client.check_stop().map_err(self.explain(wanted.file))?;
            if let Some(lock) = self.try_lock(cached, wanted)? {
                return Ok(lock);
            }
            let now = newest_partial(cached, &tag);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() > self.client.limits().other_process {
                tracing::warn!(
                    "the process that holds {} receives nothing; downloading {} independently",
                    cached.lock(&tag).display(),
                    wanted.file
                );
                return Ok(Lock::Missing);
            }
            std::thread::sleep(MOMENT);
        }
    }
}

/// The time of the last write to a partial file of these contents, and its length.
fn newest_partial(cached: &CachedRepository, tag: &str) -> Option<(SystemTime, u64)> {
    let blobs = cached.blob(tag);
    let entries = std::fs::read_dir(blobs.parent()?).ok()?;
    let partial = entries.flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(tag) && name.ends_with(".incomplete")
    });
    partial
        .filter_map(|entry| {
            let found = entry.metadata().ok()?;
            Some((found.modified().ok()?, found.len()))
        })
        .max()
}
