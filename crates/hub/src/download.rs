//! Downloads into the cache. A file is received beside its final name and hashed on the way. It
//! gets its final name only after its checksum was compared and it is on the disk, so a process
//! killed at any instant leaves nothing that a later one takes for whole. The received part stays
//! for the next attempt, which hashes it and requests the rest.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use runkit::fault;
use runkit::files::{self, FileError, Operation};
use runkit::progress::Progress;
use ureq::http::Method;

use crate::HubError;
use crate::cache::CachedRepository;
use crate::checksum::{Expected, Running, git_sha1_file, read_blocks};
use crate::http::{Attempts, Problem, Response};
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
            self.receive(cached, &wanted, response, is_unique, &mut attempts)?;
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
                "{} answers with a web page; it may be a proxy's log-in page",
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

    fn receive(
        &self,
        cached: &CachedRepository,
        wanted: &Wanted<'_>,
        response: Response,
        is_unique: bool,
        attempts: &mut Attempts,
    ) -> Result<(), HubError> {
        let path = cached.partial(wanted.tag.as_deref(), is_unique);
        if let Some(folder) = path.parent() {
            files::create_folder(folder)?;
        }
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|cause| FileError::new(&path, Operation::Create, cause))?;
        let mut partial = Partial {
            remote: self,
            wanted,
            file,
            path,
            removes_itself: is_unique,
            running: Running::default(),
            position: 0,
            progress: None,
        };
        let mut began_with = partial.resume()?;
        self.check_space(cached, wanted, partial.position, &partial.path)?;
        let mut first = (began_with == 0).then_some(response);
        loop {
            partial.fill(first.take(), attempts)?;
            match partial.problem()? {
                None => return partial.publish(cached),
                // The part of an earlier process may be at fault.
                Some(_) if began_with > 0 => {
                    tracing::warn!(
                        "{}: the part of an earlier download is damaged; starting over",
                        wanted.file
                    );
                    began_with = 0;
                    partial.start_over();
                }
                Some((expected, found)) => {
                    partial.removes_itself = true;
                    let (file, repository) = (wanted.file.to_owned(), self.name.shown());
                    return Err(HubError::Damaged { file, repository, expected, found });
                }
            }
        }
    }

    fn check_space(
        &self,
        cached: &CachedRepository,
        wanted: &Wanted<'_>,
        already: u64,
        at: &Path,
    ) -> Result<(), HubError> {
        let needed = wanted.size.unwrap_or(0).saturating_sub(already);
        let available = files::free_space(at)?;
        if needed <= available {
            return Ok(());
        }
        let (file, repository) = (wanted.file.to_owned(), self.name.shown());
        Err(HubError::NoSpace {
            file,
            repository,
            needed,
            available,
            cache: cached.root().to_owned(),
        })
    }
}

/// A file during its download.
struct Partial<'a> {
    remote: &'a Remote<'a>,
    wanted: &'a Wanted<'a>,
    file: File,
    path: PathBuf,
    removes_itself: bool,
    /// Checksums of the bytes before `position`.
    running: Running,
    position: u64,
    progress: Option<Progress>,
}

const MEGABYTE: u64 = 1_000_000;

impl Partial<'_> {
    /// Resumes from the part of an earlier process, if a checksum can later show that it belongs to
    /// the file. Returns its length.
    fn resume(&mut self) -> Result<u64, HubError> {
        let length = self.file.metadata().map_err(HubError::read(&self.path))?.len();
        let fits = self.wanted.size.is_none_or(|size| length <= size);
        if length > 0 && fits && self.wanted.expected() == Some(Expected::Sha256) {
            let (running, stop) = (&mut self.running, self.remote.client.stop());
            read_blocks(&self.path, stop, |block| running.update(block, Some(Expected::Sha256)))?;
            self.position = length;
        }
        Ok(self.position)
    }

    fn start_over(&mut self) {
        self.running = Running::default();
        self.position = 0;
    }

    /// Receives up to the end, first from `response` if there is one.
    fn fill(
        &mut self,
        response: Option<Response>,
        attempts: &mut Attempts,
    ) -> Result<(), HubError> {
        if self.wanted.size.is_some_and(|size| size > 0 && self.position == size) {
            return Ok(());
        }
        self.start_progress();
        let mut response = response;
        loop {
            let opened = match response.take() {
                Some(response) => response,
                None => self.ask(attempts)?,
            };
            let before = self.position;
            match self.read(opened) {
                Ok(()) => return Ok(()),
                Err(ReceiveError::Network(Problem::Transient(reason))) => {
                    let least = self.remote.client.limits().least_bytes;
                    if self.position >= before + least {
                        attempts.progressed();
                    }
                    let explain = self.remote.explain(self.wanted.file);
                    self.remote.client.pause(attempts, &reason, None).map_err(explain)?;
                }
                Err(ReceiveError::Network(problem)) => {
                    return Err(self.remote.explain(self.wanted.file)(problem));
                }
                Err(ReceiveError::Disk(error)) => return Err(error),
            }
        }
    }

    /// Requests the bytes from `position` on, or all of them if the server supports no ranges.
    fn ask(&mut self, attempts: &mut Attempts) -> Result<Response, HubError> {
        let Wanted { commit, file, .. } = *self.wanted;
        // Without an entity tag, the rest may belong to other contents.
        if self.wanted.tag.is_none() {
            self.start_over();
        }
        loop {
            let first = (self.position > 0).then_some(self.position);
            let opened = self.remote.open(&Method::GET, commit, file, first, attempts);
            let (_, response) = opened.map_err(self.remote.explain(file))?;
            let starts_at = response.header("content-range").and_then(|range| {
                range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok()
            });
            match response.status {
                200 => {
                    self.start_over();
                    return Ok(response);
                }
                206 if starts_at == Some(self.position) => return Ok(response),
                206 | 416 if self.position > 0 => self.start_over(),
                _ => return Err(self.remote.refused(file, response)),
            }
        }
    }

    fn read(&mut self, mut response: Response) -> Result<(), ReceiveError> {
        let expected = self.wanted.expected();
        while let Some(bytes) = response.next().map_err(ReceiveError::Network)? {
            let written = fault::error_at("download")
                .and_then(|()| self.file.write_all_at(&bytes, self.position));
            written.map_err(|cause| {
                ReceiveError::Disk(FileError::new(&self.path, Operation::Write, cause).into())
            })?;
            self.running.update(&bytes, expected);
            self.count(bytes.len() as u64);
            fault::point("download");
            if self.wanted.size.is_some_and(|size| self.position > size) {
                return Ok(());
            }
        }
        if self.wanted.size.is_some_and(|size| self.position < size) {
            return Err(ReceiveError::Network(Problem::Transient(
                "the connection ended early".to_owned(),
            )));
        }
        if self.wanted.size.is_none()
            && self.wanted.checksum.is_none()
            && response.header("transfer-encoding").is_none()
        {
            tracing::warn!(
                "{}: the server states neither its size nor its checksum; a truncated file would go unnoticed",
                self.wanted.file
            );
        }
        Ok(())
    }

    /// What was expected and what was received, if they differ.
    fn problem(&mut self) -> Result<Option<(String, String)>, HubError> {
        if let Some(size) = self.wanted.size.filter(|&size| size != self.position) {
            return Ok(Some((
                format!("{size} bytes"),
                format!("at least {} bytes", self.position),
            )));
        }
        // The file of an earlier attempt may be longer.
        self.file.set_len(self.position).map_err(HubError::read(&self.path))?;
        if self.remote.has_checksum(&self.path, &self.running, self.wanted)? {
            return Ok(None);
        }
        let expected = self.wanted.checksum.clone().unwrap_or_default();
        let (kind, found) = match self.wanted.expected() {
            Some(Expected::Sha1) => {
                ("git SHA-1", git_sha1_file(&self.path, self.remote.client.stop())?)
            }
            _ => ("SHA-256", self.running.sha256()),
        };
        Ok(Some((format!("{kind} {expected}"), format!("{kind} {found}"))))
    }

    /// Gives the file its final name.
    fn publish(mut self, cached: &CachedRepository) -> Result<(), HubError> {
        let own_name = self.running.sha256();
        let tag = self.wanted.tag.clone().unwrap_or(own_name);
        fault::point("received");
        self.file.sync_all().map_err(|cause| FileError::new(&self.path, Operation::Sync, cause))?;
        let blob = cached.blob(&tag);
        match files::rename_durably(&self.path, &blob) {
            // Without locks another process may have been faster, and its file is as good.
            Err(_) if !self.path.exists() && self.remote.is_sound(&blob, self.wanted)? => {}
            other => other?,
        }
        self.removes_itself = false;
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
        cached.link(self.wanted.commit, self.wanted.file, &tag)
    }

    fn start_progress(&mut self) {
        if self.progress.is_some() {
            return;
        }
        let (file, repository) = (self.wanted.file, self.remote.name.shown());
        let size = match self.wanted.size {
            Some(size) => indicatif::HumanBytes(size).to_string(),
            None => "size unknown".to_owned(),
        };
        tracing::info!("downloading {file} of {repository} ({size})");
        let total = self.wanted.size.map(|size| size.div_ceil(MEGABYTE));
        let progress = Progress::new(&format!("downloading {file}"), "MB", total);
        progress.already_done(self.position / MEGABYTE);
        self.progress = Some(progress);
    }

    fn count(&mut self, bytes: u64) {
        let before = self.position / MEGABYTE;
        self.position += bytes;
        let more = self.position / MEGABYTE - before;
        if let Some(progress) = self.progress.as_ref().filter(|_| more > 0) {
            progress.add(more);
        }
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if self.removes_itself {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Why receiving stopped early.
enum ReceiveError {
    Network(Problem),
    Disk(HubError),
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
