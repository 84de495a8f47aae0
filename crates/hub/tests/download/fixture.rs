//! A hub on this machine, with a cache for it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::{HubError, Limits, Network, Repository, Settings};
use testkit::server::{Reply, Request, Server};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// SHA-256 of "abc" (FIPS 180-2, appendix B), and git's checksum of a file with it.
pub(crate) const SHA256_OF_ABC: &str =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
pub(crate) const GIT_SHA1_OF_ABC: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";

/// Settings for a hub at `endpoint` with an own cache, and time limits that tests can wait for.
pub(crate) fn settings(cache: &Path, endpoint: &str) -> Settings {
    let limits = Limits {
        connect: Duration::from_secs(2),
        idle: Duration::from_millis(300),
        window: Duration::from_millis(400),
        least_bytes: 50,
        attempts: 3,
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_secs(2),
        other_process: Duration::from_secs(1),
    };
    Settings {
        cache: cache.to_owned(),
        endpoint: endpoint.to_owned(),
        token: None,
        offline: false,
        network: Network { limits, ..Network::default() },
    }
}

/// What the hub says of `owner/name`.
pub(crate) fn description(request: &Request) -> Option<Reply> {
    let is_asked = request.path().ends_with("/api/models/owner/name/revision/main")
        || request.path().ends_with(&format!("/api/models/owner/name/revision/{COMMIT}"));
    let body = format!("{{\"sha\": \"{COMMIT}\"}}");
    is_asked.then(|| Reply::new(200, body.as_bytes()).with("Content-Type", "application/json"))
}

/// The file that a request asks for.
pub(crate) fn file_of(request: &Request) -> Option<&str> {
    let start = format!("/owner/name/resolve/{COMMIT}/");
    request.path().split_once(&start).map(|(_, file)| file)
}

/// A file as the hub sends it, in ranges too.
pub(crate) fn hub_file(request: &Request, tag: &str, contents: &[u8]) -> Reply {
    Reply::new(200, contents)
        .ranged(request)
        .with("ETag", &format!("\"{tag}\""))
        .with("X-Repo-Commit", COMMIT)
}

pub(crate) fn absent() -> Reply {
    Reply::new(404, b"Entry not found").with("X-Error-Code", "EntryNotFound")
}

/// A hub that answers requests for files with `answer`, and a cache for it.
pub(crate) struct Hub {
    pub(crate) server: Server,
    pub(crate) cache: tempfile::TempDir,
    pub(crate) settings: Settings,
}

impl Hub {
    pub(crate) fn start(answer: impl Fn(&Request, &str) -> Reply + Send + Sync + 'static) -> Self {
        let server = Server::start(move |request| {
            description(request).unwrap_or_else(|| match file_of(request) {
                Some(file) => answer(request, file),
                None => Reply::new(404, b""),
            })
        });
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(cache.path(), &server.address());
        Self { server, cache, settings }
    }

    /// A hub with these files: name, tag and contents.
    pub(crate) fn with(files: &[(&str, &str, &[u8])]) -> Self {
        let files: HashMap<String, (String, Vec<u8>)> = files
            .iter()
            .map(|(name, tag, body)| ((*name).to_owned(), ((*tag).to_owned(), body.to_vec())))
            .collect();
        Self::start(move |request, file| match files.get(file) {
            Some((tag, contents)) => hub_file(request, tag, contents),
            None => absent(),
        })
    }

    pub(crate) fn open(&self, name: &str) -> Result<Repository, HubError> {
        Repository::open_with(name, Path::new("."), self.settings.clone())
    }

    pub(crate) fn repository(&self) -> Repository {
        self.open("hf://owner/name").unwrap()
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.repository().file(file).unwrap()).unwrap()
    }

    pub(crate) fn error(&self, file: &str) -> HubError {
        self.repository().file(file).unwrap_err()
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.cache.path().join("models--owner--name")
    }

    pub(crate) fn blob(&self, tag: &str) -> PathBuf {
        self.folder().join("blobs").join(tag)
    }

    /// Requests for files.
    pub(crate) fn file_requests(&self) -> Vec<Request> {
        let all = self.server.requests().into_iter();
        all.filter(|request| file_of(request).is_some()).collect()
    }

    /// The names in `blobs`.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder().join("blobs")).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
