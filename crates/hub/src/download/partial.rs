//! A file during its download: received, resumed, compared and published.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use runkit::fault;
use runkit::files::{self, FileError, Operation};
use runkit::progress::Progress;
use ureq::http::Method;

use super::Wanted;
use crate::HubError;
use crate::cache::CachedRepository;
use crate::checksum::{Expected, Running, git_sha1_file, read_blocks};
use crate::http::{Attempts, Problem, Response};
use crate::remote::Remote;

/// A file during its download.
pub(super) struct Partial<'a> {
    remote: &'a Remote<'a>,
    cached: &'a CachedRepository,
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

impl<'a> Partial<'a> {
    /// Opens the file that receives `wanted`. `is_unique` gives it a name that no other process
    /// uses and removes it if the download fails.
    pub(super) fn open(
        remote: &'a Remote<'a>,
        cached: &'a CachedRepository,
        wanted: &'a Wanted<'a>,
        is_unique: bool,
    ) -> Result<Self, HubError> {
        let path = cached.partial(wanted.tag.as_deref(), is_unique);
        if let Some(folder) = path.parent() {
            files::create_folder(folder)?;
        }
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|cause| FileError::new(&path, Operation::Create, cause))?;
        Ok(Self {
            remote,
            cached,
            wanted,
            file,
            path,
            removes_itself: is_unique,
            running: Running::default(),
            position: 0,
            progress: None,
        })
    }

    /// Receives the file, from `response` unless an earlier process left a part, and publishes it.
    pub(super) fn receive(
        mut self,
        response: Response,
        attempts: &mut Attempts,
    ) -> Result<(), HubError> {
        let mut began_with = self.resume()?;
        self.check_space()?;
        let mut first = (began_with == 0).then_some(response);
        loop {
            self.fill(first.take(), attempts)?;
            match self.problem()? {
                None => return self.publish(),
                // The part of an earlier process may be at fault.
                Some(_) if began_with > 0 => {
                    tracing::warn!(
                        "{}: the part of an earlier download is damaged; starting over",
                        self.wanted.file
                    );
                    began_with = 0;
                    self.start_over();
                }
                Some((expected, found)) => {
                    self.removes_itself = true;
                    let (file, repository) =
                        (self.wanted.file.to_owned(), self.remote.name.shown());
                    return Err(HubError::Damaged { file, repository, expected, found });
                }
            }
        }
    }

    fn check_space(&self) -> Result<(), HubError> {
        let needed = self.wanted.size.unwrap_or(0).saturating_sub(self.position);
        let available = files::free_space(&self.path)?;
        if needed <= available {
            return Ok(());
        }
        Err(HubError::NoSpace {
            file: self.wanted.file.to_owned(),
            repository: self.remote.name.shown(),
            needed,
            available,
            cache: self.cached.root().to_owned(),
        })
    }

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
    fn publish(mut self) -> Result<(), HubError> {
        let own_name = self.running.sha256();
        let tag = self.wanted.tag.clone().unwrap_or(own_name);
        fault::point("received");
        self.file.sync_all().map_err(|cause| FileError::new(&self.path, Operation::Sync, cause))?;
        let blob = self.cached.blob(&tag);
        match files::rename_durably(&self.path, &blob) {
            // Without locks another process may have been faster, and its file is as good.
            Err(_) if !self.path.exists() && self.remote.is_sound(&blob, self.wanted)? => {}
            other => other?,
        }
        self.removes_itself = false;
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
        self.cached.link(self.wanted.commit, self.wanted.file, &tag)
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
